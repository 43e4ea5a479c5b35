# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What several test files share: golden numbers, stand-in weights, short runs of scripts."""

import gzip
import importlib.util
import json
import math
import re
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from conversion.convert_checkpoint import ConversionOptions, plan_conversion
from conversion.original_config import checkpoint_from_config
from modeling_internimage import InternImageForImageClassification
from modeling_internimage.modeling_internimage import ORIGINAL_TO_CONVERTED_KEY_MAPPING, InternImageDCNv4


def read_json(file: Path) -> dict:
    content = file.read_bytes()
    return json.loads(gzip.decompress(content) if file.suffix == ".gz" else content)


REPOSITORY = Path(__file__).parents[1]
GOLDEN = Path(__file__).parent / "fixtures" / "golden"

_spec = importlib.util.spec_from_file_location("seeded_weights", GOLDEN / "seeded_weights.py")
seeded_weights = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(seeded_weights)

# Classifiers: of InternImage and of FlashInternImage, whose names begin with "flash" or "tiny_flash".
REDUCED_MODELS, FULLSIZE_MODELS, TRAINING, MANIFESTS = (
    {name: facts | {"folder": file.parent} for file in files for name, facts in read_json(file).items()}
    for files in (
        [GOLDEN / folder / "reduced_models.json" for folder in ("classification", "dcnv4")],
        [GOLDEN / folder / "fullsize.json" for folder in ("classification", "dcnv4")],
        [GOLDEN / folder / "training.json" for folder in ("classification", "dcnv4")],
        [GOLDEN / "classification" / "manifests.json.gz", GOLDEN / "dcnv4" / "classification_manifests.json.gz"],
    )
)

# Arguments of the training scripts, for a run of seconds.
_SHORT_TRAINING = {
    "do_train": True,
    "do_eval": True,
    "num_train_epochs": 1,
    "per_device_train_batch_size": 2,
    "eval_strategy": "epoch",
    "save_strategy": "epoch",
    "logging_steps": 1,
    "learning_rate": 1e-3,
    "dataloader_pin_memory": False,
    "report_to": "none",
    "disable_tqdm": True,
}


def run_short_training(script, file: Path, **arguments):
    """Run a training script with these arguments, in a JSON `file`, added to the usual ones. `None` leaves one out."""
    arguments = {name: value for name, value in (_SHORT_TRAINING | arguments).items() if value is not None}
    file.parent.mkdir(exist_ok=True, parents=True)
    file.write_text(json.dumps(arguments))
    script.main([str(file)])


def first_quick(values: Iterable, kind: Callable = lambda value: None, slow_kinds: Iterable = ()) -> list:
    """Parameters of a test, of which all but the first of each `kind`, and all of `slow_kinds`, are slow tests."""
    seen, parameters = set(slow_kinds), []
    for value in values:
        marks = [pytest.mark.slow] * (kind(value) in seen)
        seen.add(kind(value))
        parameters.append(pytest.param(*(value if isinstance(value, tuple) else [value]), marks=marks))
    return parameters


def run_module(name: str, *arguments: str):
    """`python -m name arguments`, in this process: most of a short command's time would be its imports."""
    with mock.patch.object(sys, "argv", [name, *map(str, arguments)]):
        assert not importlib.import_module(name).main()


# What the official config.json contain beyond the architecture. (Their remote code is not to be asked for.)
OFFICIAL_CONFIG = {
    "_name_or_path": "OpenGVLab/internimage_t_1k_224",
    "architectures": ["InternImageModelForImageClassification"],
    "auto_map": {
        "AutoConfig": "configuration_internimage.InternImageConfig",
        "AutoModel": "modeling_internimage.InternImageModel",
        "AutoModelForImageClassification": "modeling_internimage.InternImageModelForImageClassification",
    },
    "core_op": "DCNv3",
    "model_type": "internimage",
    "torch_dtype": "float32",
    "transformers_version": "4.37.2",
    "with_cp": False,
}


def golden_input(shape, seed: int) -> torch.Tensor:
    """The input of a golden number: golden/README section 1."""
    generator = np.random.Generator(np.random.PCG64([seed, 12345]))
    return torch.from_numpy(generator.standard_normal(shape, dtype=np.float32))


def original_state_dict(keys: dict, seed: int) -> dict[str, torch.Tensor]:
    """Stand-in weights under the names of the original `.pth` files."""
    return {key: torch.from_numpy(array) for key, array in seeded_weights.seeded_state_dict(keys, seed).items()}


def write_without_data(name: str, file: Path):
    """A full-size original checkpoint as a file of kilobytes: every tensor is a broadcast zero."""
    keys = MANIFESTS[name]["keys"]
    integer = {key: torch.zeros((), dtype=torch.int64) for key in keys if key.endswith("num_batches_tracked")}
    torch.save({"model": {key: torch.zeros(()).expand(shape) for key, shape in keys.items()} | integer}, file)


def rename(key: str) -> str:
    """Original key -> ours, without the prefix of the base model."""
    for pattern, replacement in ORIGINAL_TO_CONVERTED_KEY_MAPPING.items():
        key = re.sub(pattern, replacement, key)
    return key


def official_key(key: str) -> str:
    """Original key -> that in the official Hub repositories."""
    return "model." + key.replace(".gamma", ".layer_scale")


def convert_original(folder: Path, config: dict, keys: dict, seed: int) -> InternImageForImageClassification:
    """A classifier with stand-in weights, converted from an original `.pth` file with the original's configuration."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    torch.save({"model": original_state_dict(keys, seed)}, folder / "source.pth")
    record = checkpoint_from_config(folder / "config.json", folder / "source.pth")
    return plan_conversion(record, folder / "source.pth", ConversionOptions()).model()


def unread_parameters(keys: dict) -> int:
    """The parameters of `offset_mask` projections that nothing reads, of groups with 9 points (27 rows each)."""
    shapes = (shape for key, shape in keys.items() if ".offset_mask." in key)
    return sum(shape[0] % 27 * math.prod(shape[1:]) for shape in shapes)


def write_official_checkpoint(folder: Path, config: dict, keys: dict, seed: int) -> Path:
    """A checkpoint in the layout of the official Hub repositories, with stand-in weights."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config | OFFICIAL_CONFIG))
    state_dict = {official_key(key): tensor for key, tensor in original_state_dict(keys, seed).items()}
    save_file(state_dict, folder / "model.safetensors", metadata={"format": "pt"})
    processor = {
        "feature_extractor_type": "CLIPFeatureExtractor", "size": 224, "crop_size": 224, "resample": 3,
        "do_resize": True, "do_center_crop": True, "do_normalize": True,
        "image_mean": [0.485, 0.456, 0.406], "image_std": [0.229, 0.224, 0.225],
    }  # fmt: skip
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    return folder


def randomize(model: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Weights at which every part of the network matters: a fresh model has zero offsets and equal masks."""
    generator = torch.Generator().manual_seed(seed)
    # Without a softmax, large offsets and weights make a random model chaotic: it would enlarge every rounding error.
    small = {
        id(parameter)
        for module in model.modules()
        if isinstance(module, InternImageDCNv4)
        for projection in (module.offset_proj, module.mask_proj)
        for parameter in projection.parameters()
    }
    with torch.no_grad():
        for parameter in model.parameters():
            scale = parameter[0].numel() ** -0.5 if parameter.ndim > 1 else 0.1
            scale /= 16 if id(parameter) in small else 1
            shift = 1.0 if parameter.ndim == 1 and (parameter > 0).all() else 0.0
            noise = torch.randn(parameter.shape, generator=generator, dtype=torch.float32)
            parameter.copy_(noise * scale + shift)
    return model.eval()
