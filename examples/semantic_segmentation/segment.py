# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Segment image files: a picture of each with its classes in colours and a legend, photo_segmentation.png, and the label
map, photo_segmentation_map.png, if asked for.

    python -m examples.semantic_segmentation.segment --model_name_or_path outputs/my_segmenter photo.jpg
"""

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torchvision.transforms.v2.functional import pil_to_tensor
from torchvision.utils import draw_segmentation_masks

from examples.image_datasets import decode_image
from examples.output_files import check_outputs, mark_of, write_picture
from examples.pictures import class_colours, plt
from examples.semantic_segmentation.segmentation_models import load_segmentation_model
from modeling_internimage import segment_image
from modeling_internimage.label_maps import label_map_image


MARK = mark_of(__file__)
OPACITY = 0.55
LEGEND_ROWS = 18


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("images", nargs="+", help="image files")
    parser.add_argument("--model_name_or_path", required=True, help="checkpoint: a folder or a Hub id")
    parser.add_argument(
        "--output_dir", type=Path, default=Path("outputs/segmentation"), help="folder for the pictures"
    )
    parser.add_argument("--save_maps", action="store_true", help="also write label maps, PNG files with a palette")
    parser.add_argument("--scales", nargs="+", type=float, default=[1.0], help="average over these sizes")
    parser.add_argument("--flip", action="store_true", help="average with the mirror image")
    parser.add_argument("--dtype", choices=["float32", "float16", "bfloat16"], default="float32", help="of the model")
    parser.add_argument("--use_kernels", action="store_true", help="run DCNv3 as a compiled kernel")
    args = parser.parse_args(argv)
    outputs = [path for file in args.images for path in output_paths(args, file)]
    check_outputs(outputs, MARK, args.images)
    return args


def output_paths(args: argparse.Namespace, file: str) -> list[Path]:
    """Of the picture and, with `--save_maps`, the label map."""
    names = ["segmentation"] + ["segmentation_map"] * args.save_maps
    return [args.output_dir / f"{Path(file).stem}_{name}.png" for name in names]


def blend(image: Image.Image, labels: np.ndarray, colours: np.ndarray) -> np.ndarray:
    """uint8 (height, width, 3). Pixels whose label is not an index of `colours` (ignored ones) keep their colour."""
    classes = np.unique(labels[labels < len(colours)])
    masks = torch.from_numpy(labels == classes[:, None, None])
    palette = [tuple(colour) for colour in colours[classes].tolist()]
    picture = draw_segmentation_masks(pil_to_tensor(image), masks, alpha=OPACITY, colors=palette)
    return picture.permute(1, 2, 0).numpy()


def save_overlay(image: Image.Image, labels: np.ndarray, colours: np.ndarray, names: dict[int, str], path: Path):
    """`labels` (height, width) over the image, with a legend of the classes in it, the largest first."""
    classes, counts = np.unique(labels, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    handles = [
        plt.Rectangle((0, 0), 1, 1, color=colours[idx] / 255, label=f"{names[idx]}  {count / labels.size:.1%}")
        for idx, count in zip(classes[order].tolist(), counts[order])
    ]
    scale = 8 / max(image.size)
    figure, axes = plt.subplots(figsize=(max(image.width * scale, 1), max(image.height * scale, 1)))
    axes.imshow(blend(image, labels, colours))
    axes.set_axis_off()
    columns = -(-len(handles) // LEGEND_ROWS)
    axes.legend(
        handles=handles, loc="upper left", bbox_to_anchor=(1.02, 1.0), borderaxespad=0, ncols=columns, frameon=False
    )
    figure.savefig(path, dpi=120, bbox_inches="tight", metadata={"Software": MARK})
    plt.close(figure)


def main(argv: list[str] | None = None):
    args = parse_arguments(argv)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, image_processor = load_segmentation_model(args.model_name_or_path, args.dtype, device, args.use_kernels)
    colours = class_colours(model.config)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    for file in args.images:
        image = decode_image({"bytes": None, "path": file})
        probabilities = segment_image(model, image_processor, image, scales=args.scales, flip=args.flip)
        labels = probabilities.argmax(dim=0).cpu().numpy()
        paths = output_paths(args, file)
        save_overlay(image, labels, colours, model.config.id2label, paths[0])
        for path in paths[1:]:
            write_picture(path, label_map_image(labels, colours), MARK)
        print("\n".join(f"Written: {path}" for path in paths))


if __name__ == "__main__":
    main()
