# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Export a checkpoint to plain ONNX and compare it with PyTorch.

    python -m modeling_internimage.export OpenGVLab/internimage_t_1k_224 internimage_t_onnx
    python -m modeling_internimage.export my_upernet my_upernet_onnx --size 512 512 --dynamic all --check ort openvino
"""

import argparse
import sys
from typing import Any

import torch
import transformers
from transformers import AutoConfig, AutoImageProcessor, PreTrainedModel

import modeling_internimage

from .onnx_export import DTYPES, DYNAMIC, OLDEST_OPSETS, export_onnx
from .verification import PACKAGES


# Classes of the official Hub repositories, whose code is not needed -> ours.
OFFICIAL_CLASSES = {
    "InternImageModelForImageClassification": "InternImageForImageClassification",
    "InternImage": "InternImageModel",
}


def parse_arguments(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        prog="python -m modeling_internimage.export",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("model", metavar="MODEL", help="a folder, or a repository of the Hub")
    parser.add_argument("folder", metavar="OUT", help="the new folder")
    parser.add_argument(
        "--operator", choices=list(OLDEST_OPSETS), default="grid_sample", help="what DCNv3 or DCNv4 becomes"
    )
    parser.add_argument("--opset", type=int, help="default: 18, with deform_conv 19")
    parser.add_argument(
        "--size", type=int, nargs=2, metavar=("H", "W"), help="of the images; default: that of the image processor"
    )
    parser.add_argument("--dynamic", choices=DYNAMIC, default="batch", help="sizes that stay open (default: batch)")
    dtypes = [str(dtype).removeprefix("torch.") for dtype in DTYPES]
    parser.add_argument("--dtype", choices=dtypes, default="float32", help="of weights and outputs (default: float32)")
    parser.add_argument(
        "--check", choices=list(PACKAGES), nargs="*", default=["ort"], help="runtimes that try the file (default: ort)"
    )
    parser.add_argument(
        "--model-class", metavar="NAME", help="another class than the checkpoint's, such as InternImageBackbone"
    )
    return parser.parse_args(arguments)


def load_model(name: str, model_class: str | None, dtype: torch.dtype) -> PreTrainedModel:
    """A checkpoint in evaluation mode. Raises a `ValueError` if weights are missing."""
    if model_class is None:
        architectures = AutoConfig.from_pretrained(name).architectures
        if not architectures:
            raise ValueError(f"The configuration of {name} has no `architectures`: name one with `--model-class`.")
        model_class = OFFICIAL_CLASSES.get(architectures[0], architectures[0])
    loaded_class = getattr(modeling_internimage, model_class, None) or getattr(transformers, model_class, None)
    if not (isinstance(loaded_class, type) and issubclass(loaded_class, PreTrainedModel)):
        raise ValueError(f"{model_class!r} is a model neither of this package nor of transformers.")
    loaded: Any = loaded_class.from_pretrained(name, dtype=dtype, output_loading_info=True)
    model, info = loaded
    if info["missing_keys"]:
        raise ValueError(f"{name} lacks weights of {model_class}, such as '{sorted(info['missing_keys'])[0]}'.")
    return model.eval()


def main(arguments: list[str] | None = None) -> int:
    """The exit status: 0 if the folder was written."""
    args = parse_arguments(arguments)
    try:
        model = load_model(args.model, args.model_class, getattr(torch, args.dtype))
        try:
            image_processor = AutoImageProcessor.from_pretrained(args.model)
        except OSError:
            image_processor = None
            print(f"{args.model} has no image processor; the folder gets no preprocessor_config.json.")
        report = export_onnx(
            model,
            args.folder,
            image_processor=image_processor,
            operator=args.operator,
            opset=args.opset,
            size=args.size,
            dynamic=args.dynamic,
            checks=tuple(args.check),
        )
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    for check, differences in report["differences"].items():
        result = differences if isinstance(differences, str) else f"differs by {max(differences.values()):.1e} at most"
        print(f"{PACKAGES[check]}: {result}")
    print(f"{args.folder}: {', '.join(report['inputs'])} -> {', '.join(report['outputs'])}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
