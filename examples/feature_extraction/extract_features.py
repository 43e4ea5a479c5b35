# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Intermediate features of an image: of the stem and every stage, or of any modules by name (`extract_feature.py` of the
original).

    python -m examples.feature_extraction.extract_features --model outputs/digits --image photo.jpg --output features
    python -m examples.feature_extraction.extract_features ... --modules encoder.stages.2.layers.1.dcn pooler

Writes `features.safetensors` (one tensor per module) and, of the feature maps among them, `features.png`: the first
three principal components of each as red, green and blue. Regions of one colour look alike to the network.
"""

import argparse
import os
from pathlib import Path

import torch
from safetensors.torch import save_file
from transformers import AutoImageProcessor, AutoModel

import modeling_internimage  # noqa: F401  (registers InternImage)
from examples.image_datasets import decode_image
from examples.output_files import check_outputs, mark_of
from examples.pictures import plt
from examples.sampling_points import displayable


MARK = mark_of(__file__)


def extract_features(model, pixel_values: torch.Tensor, module_names: list[str]) -> dict[str, torch.Tensor]:
    """
    Outputs of the named modules of an `InternImageModel` for a batch of images.

    Without names: `stem`, `stage1`, ..., each (batch_size, channels, height, width), and `pooler_output`. Modules
    inside a stage return channels-last tensors, (batch_size, height, width, channels).
    """
    modules = dict(model.named_modules())
    unknown = [name for name in module_names if name not in modules]
    if unknown:
        raise ValueError(
            f"The model has no module {unknown[0]!r}. Its parts are {[name for name, _ in model.named_children()]}; "
            "`print(model)` shows all names."
        )
    features = {}
    hooks = [
        modules[name].register_forward_hook(lambda module, inputs, output, name=name: features.update({name: output}))
        for name in module_names
    ]
    with torch.inference_mode():
        outputs = model(pixel_values, output_hidden_states=True)
    for hook in hooks:
        hook.remove()
    if not module_names:
        features = dict(zip(model.config.stage_names, outputs.hidden_states))
        features["pooler_output"] = outputs.pooler_output
    return features


def principal_components_as_rgb(feature_map: torch.Tensor) -> torch.Tensor:
    """(height, width, channels) -> (height, width, 3), each component scaled to [0, 1]."""
    height, width, channels = feature_map.shape
    pixels = feature_map.reshape(-1, channels).float()
    pixels = pixels - pixels.mean(dim=0)
    _, _, directions = torch.linalg.svd(pixels, full_matrices=False)
    components = pixels @ directions[:3].T
    components = torch.nn.functional.pad(components, (0, 3 - components.shape[1]))
    low, high = components.quantile(0.02, dim=0), components.quantile(0.98, dim=0)
    return ((components - low) / (high - low).clamp_min(1e-6)).clamp(0, 1).view(height, width, 3)


def draw(image: torch.Tensor, feature_maps: dict[str, torch.Tensor], path: Path):
    """The preprocessed image (height, width, 3) beside its feature maps (height, width, channels)."""
    height, width, channels = image.shape
    count = 1 + len(feature_maps)
    figure, panels = plt.subplots(
        1, count, figsize=(2.6 * count, 2.6 * height / width + 0.7), layout="constrained", squeeze=False
    )
    panels = panels[0]
    panels[0].imshow(image)
    panels[0].set_title(f"input\n{channels} x {height} x {width}", fontsize=10)
    for axes, (name, feature_map) in zip(panels[1:], feature_maps.items()):
        axes.imshow(principal_components_as_rgb(feature_map))
        height, width, channels = feature_map.shape
        axes.set_title(f"{name}\n{channels} x {height} x {width}", fontsize=10)
    for axes in panels:
        axes.axis("off")
    figure.savefig(path, dpi=100, bbox_inches="tight", metadata={"Software": MARK})
    plt.close(figure)


def load(model_path: str, image_path: str, image_size: int | None = None):
    """Model, image processor and pixel values of one image, at another size than the processor's if given."""
    model = AutoModel.from_pretrained(model_path).eval()
    size = {} if image_size is None else {"size": {"shortest_edge": image_size}, "crop_size": image_size}
    image_processor = AutoImageProcessor.from_pretrained(model_path, **size)
    image = decode_image({"bytes": None, "path": image_path}, image_processor.size)
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    return model, image_processor, pixel_values


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a saved model, or a Hub id")
    parser.add_argument("--image", required=True, help="image file")
    parser.add_argument("--image-size", type=int, help="side in pixels; default: that of the image processor")
    parser.add_argument("--modules", nargs="*", default=[], help="module names; default: the stem, stages and pooler")
    parser.add_argument("--output", default="features", help="path of the results, without ending")
    args = parser.parse_args()
    files = {ending: Path(f"{args.output}.{ending}") for ending in ("safetensors", "png")}
    check_outputs(files.values(), MARK, [args.image])

    model, image_processor, pixel_values = load(args.model, args.image, args.image_size)
    features = extract_features(model, pixel_values, args.modules)
    os.makedirs(os.path.dirname(os.path.abspath(args.output)), exist_ok=True)
    tensors = {name: feature.contiguous() for name, feature in features.items()}
    save_file(tensors, files["safetensors"], metadata={"Software": MARK})
    for name, feature in features.items():
        print(f"{name:<40} {list(feature.shape)}")
    channels_first = set(model.config.stage_names) | {"embeddings", *(f"encoder.stages.{i}" for i in range(9))}
    feature_maps = {
        name: feature[0].permute(1, 2, 0) if name in channels_first else feature[0]
        for name, feature in features.items()
        if feature.ndim == 4
    }
    if feature_maps:
        draw(displayable(pixel_values[0], image_processor), feature_maps, files["png"])
        print(f"Written: {files['safetensors']}, {files['png']}")
    else:
        print(f"Written: {files['safetensors']}")


if __name__ == "__main__":
    main()
