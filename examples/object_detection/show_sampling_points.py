# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
The places of an image that vote for one detection of DINO: where each layer of the decoder samples for its query.

    python -m examples.object_detection.show_sampling_points --model_name_or_path outputs/objects_dino --image a.jpg

A point is one sample of one head on one level, the larger the greater its weight; the colour is that of the level. A
dashed line is the box that a layer starts from, a solid one the box that it predicts.
"""

import argparse
from pathlib import Path

import torch
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from transformers.image_transforms import center_to_corners_format

from examples.image_datasets import decode_image
from examples.object_detection.detection_models import load_detection_model
from examples.output_files import check_outputs, mark_of
from examples.pictures import plt
from examples.sampling_points import draw_points, inputs_of
from modeling_internimage import DinoDetrConfig


MARK = mark_of(__file__)
NUM_COLUMNS = 3
# Area of a point, in square points of a printer, that has all the weight of its head.
LARGEST_POINT = 400


def detection_with_points(model, inputs: dict[str, torch.Tensor], number: int) -> dict[str, torch.Tensor]:
    """
    A detection in an image, and where the decoder's cross-attention samples for it.

    Args:
        model: [`DinoDetrForObjectDetection`] in eval mode.
        inputs: `pixel_values` and `pixel_mask` of a single image.
        number: 0 for the detection with the highest score, 1 for the next, ...

    Returns:
        `score` and `label`; `boxes` (num_layers + 1, 4), centre x, centre y, width, height: that of the encoder, which
        the first layer starts from, and those of the layers; `points` (num_layers, num_heads, num_levels, num_points,
        2), x and y, and their `weights`, which sum to 1 for each head. All positions are relative to the image without
        padding.
    """
    layers = model.decoder.layers
    modules = [module for layer in layers for module in (layer, layer.encoder_attn.attn)]
    arguments, outputs = inputs_of(modules, lambda: model(**inputs))
    # A query may be detected as several classes.
    score, index = outputs.logits[0].sigmoid().flatten().sort(descending=True, stable=True)
    if not 0 <= number < len(score):
        raise ValueError(f"`number={number}` (`--detection`) must be from 0 to {len(score) - 1}.")
    query, label = divmod(index[number].item(), model.config.num_labels)
    start = outputs.init_reference_points[0, query][None]
    boxes = torch.cat((start, outputs.intermediate_reference_points[0, :, query], outputs.pred_boxes[0, query][None]))
    points, weights = [], []
    for layer, box in zip(layers, boxes):
        # Both are relative to the levels with their padding: only where a point is in the box is the same everywhere.
        level_boxes = arguments[layer][2][0, query][:, None]  # (num_levels, 1, 4)
        locations = arguments[layer.encoder_attn.attn][4][0, query]
        points.append(box[:2] + (locations - level_boxes[..., :2]) / level_boxes[..., 2:] * box[2:])
        weights.append(arguments[layer.encoder_attn.attn][5][0, query])
    return {
        "score": score[number],
        "label": label,
        "boxes": boxes,
        "points": torch.stack(points),
        "weights": torch.stack(weights),
    }


def draw(image, detection: dict[str, torch.Tensor], title: str):
    """A panel for each layer of the decoder, zoomed in on the boxes and points."""
    size = torch.tensor(image.size)
    points = detection["points"] * size - 0.5
    corners = center_to_corners_format(detection["boxes"]) * size.repeat(2) - 0.5
    num_layers, num_levels = len(points), points.shape[2]
    everything = torch.cat((points.reshape(-1, 2), corners.reshape(-1, 2)))
    everything = torch.minimum(everything.clamp(min=-0.5), size - 0.5)
    left, top = (everything.amin(dim=0) - 3).clamp(min=-0.5).tolist()
    right, bottom = torch.minimum(everything.amax(dim=0) + 3, size - 0.5).tolist()
    rows = -(-num_layers // NUM_COLUMNS)
    columns = min(num_layers, NUM_COLUMNS)
    height = min(max(4.2 * (bottom - top) / (right - left), 2.5), 6) + 0.6
    figure, panels = plt.subplots(rows, columns, figsize=(4.2 * columns, height * rows + 0.8), squeeze=False)
    figure.set_layout_engine("constrained")
    colours = plt.get_cmap("plasma")(torch.linspace(0, 0.9, num_levels).numpy())
    for axes in panels.flat[num_layers:]:
        axes.set_axis_off()
    for idx, (axes, weights) in enumerate(zip(panels.flat, detection["weights"])):
        levels = torch.arange(num_levels)[:, None].expand(weights.shape).flatten()
        draw_points(
            axes,
            image,
            points[idx].flatten(0, 2),
            weights.flatten(),
            s=weights.flatten() * LARGEST_POINT,
            c=torch.from_numpy(colours)[levels],
            alpha=0.75,
        )
        for (x1, y1, x2, y2), style in zip(corners[idx : idx + 2].tolist(), ("--", "-")):
            axes.add_patch(Rectangle((x1, y1), x2 - x1, y2 - y1, fill=False, linewidth=2, linestyle=style))
        shares = weights.sum(dim=(0, 2)) / weights.sum()
        axes.set_title(f"layer {idx + 1} of {num_layers}", fontsize=11)
        axes.set_xlabel("weight by level: " + ", ".join(f"{share:.0%}" for share in shares), fontsize=9)
        axes.set_xlim(left, right)
        axes.set_ylim(bottom, top)
    handles = [
        Line2D([], [], marker="o", linestyle="", color=colour, label=f"level {level + 1}")
        for level, colour in enumerate(colours)
    ]
    handles += [
        Line2D([], [], marker="o", linestyle="", color="grey", label=f"weight {weight}", markersize=size)
        for weight, size in ((weight, (weight * LARGEST_POINT) ** 0.5) for weight in (0.1, 0.3))
    ]
    handles += [
        Line2D([], [], color="black", linestyle=style, label=label)
        for style, label in (("--", "box before the layer"), ("-", "box after it"))
    ]
    figure.legend(handles=handles, loc="outside lower center", ncols=4, fontsize=9, frameon=False)
    figure.suptitle(title, fontsize=12)
    return figure


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model_name_or_path", required=True, help="DINO checkpoint: a folder or a Hub id")
    parser.add_argument("--image", required=True, help="image file")
    parser.add_argument("--detection", type=int, default=0, help="0 for the highest score, 1 for the next, ...")
    parser.add_argument("--output", default=Path("sampling_points.png"), type=Path, help="picture to write, PNG")
    args = parser.parse_args(argv)
    if args.output.suffix != ".png":
        raise ValueError(f"`--output {args.output}` must end in .png.")
    check_outputs([args.output], MARK, [args.image])
    model, image_processor = load_detection_model(
        args.model_name_or_path, "float32", torch.device("cpu"), use_kernels=False
    )
    config = model.config
    if not isinstance(config, DinoDetrConfig):
        raise ValueError(
            f"`--model_name_or_path {args.model_name_or_path}` is a model of type {config.model_type}, it must be "
            f"{DinoDetrConfig.model_type}: only its decoder samples."
        )
    image = decode_image({"bytes": None, "path": args.image})
    detection = detection_with_points(model, image_processor(image, return_tensors="pt"), args.detection)
    name = f"{config.id2label[detection['label']]}, {detection['score']:.2f}"
    figure = draw(image, detection, f"Where the decoder looks for detection {args.detection} ({name})")
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=120, metadata={"Software": MARK})
    plt.close(figure)
    print(f"{name}. Written: {args.output}")


if __name__ == "__main__":
    main()
