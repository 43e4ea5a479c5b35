# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Where DCNv3 or DCNv4 samples for one pixel of an image, in the last layer of every stage.

    python -m examples.feature_extraction.show_sampling_points --model outputs/digits --image photo.jpg --pixel 120 80

A point is one sample of one group, the darker the larger its weight; crosses are the regular grid of a convolution, on
which the points of an untrained network lie. Weights of DCNv4 may be negative: blue, and positive ones red. Each panel
zooms in on its points.
"""

import argparse
from pathlib import Path

import torch

from examples.feature_extraction.extract_features import displayable, load
from examples.output_files import check_outputs, mark_of
from examples.pictures import plt
from examples.sampling_points import draw_points, inputs_of
from modeling_internimage.modeling_internimage import InternImageDCNv3, InternImageDCNv4


MARK = mark_of(__file__)


def sampling_points(dcn: InternImageDCNv3 | InternImageDCNv4, hidden_states: torch.Tensor, row: int, column: int):
    """
    Sampling points of one pixel, in pixels of the feature map.

    Args:
        dcn: the module, and `hidden_states` (1, height, width, channels), its input.
        row, column: the pixel.

    Returns:
        `points` (num_groups, num_points, 2), x and y; `weights` (num_groups, num_points), which in DCNv3 are positive
        and sum to 1 in a group; `grid` (num_points, 2), the points without learned offsets.
    """
    offset, mask, _ = dcn.sampling_parameters(hidden_states)
    offset = offset[0, row, column].view(dcn.num_groups, -1, 2)
    weights = mask[0, row, column].view(dcn.num_groups, -1)
    if dcn.softmax:
        weights = weights.softmax(dim=-1)
    reach = dcn.kernel_size // 2
    steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
    grid = torch.cartesian_prod(steps, steps)  # x-major, as the offsets are
    if dcn.remove_center:
        grid = torch.cat((grid[: len(grid) // 2], grid[len(grid) // 2 + 1 :]))
    centre = torch.tensor([column, row], dtype=torch.float32)
    return centre + (grid + offset) * dcn.offset_scale, weights, centre + grid * dcn.offset_scale


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", required=True, help="folder of a saved model, or a Hub id")
    parser.add_argument("--image", required=True, help="image file")
    parser.add_argument("--image-size", type=int, help="side in pixels; default: that of the image processor")
    parser.add_argument(
        "--pixel", nargs=2, type=int, metavar=("X", "Y"), help="in the preprocessed image; default: centre"
    )
    parser.add_argument("--output", default=Path("sampling_points.png"), type=Path, help="picture to write, PNG")
    args = parser.parse_args()
    if args.output.suffix != ".png":
        raise SystemExit(f"`--output {args.output}` must end in .png.")
    check_outputs([args.output], MARK, [args.image])

    model, image_processor, pixel_values = load(args.model, args.image, args.image_size)
    height, width = pixel_values.shape[2:]
    x, y = args.pixel or (width // 2, height // 2)
    if not (0 <= x < width and 0 <= y < height):
        raise SystemExit(
            f"`--pixel {x} {y}` is outside of the preprocessed image, which is {width} wide, {height} high."
        )

    last_dcns = [stage.layers[-1].dcn for stage in model.encoder.stages]
    inputs, _ = inputs_of(last_dcns, lambda: model(pixel_values))
    inputs = {dcn: arguments[0] for dcn, arguments in inputs.items()}

    figure, panels = plt.subplots(
        1, len(last_dcns), figsize=(3.4 * len(last_dcns), 4), layout="constrained", squeeze=False
    )
    image = displayable(pixel_values[0], image_processor)
    for stage, (axes, dcn) in enumerate(zip(panels[0], last_dcns), start=1):
        stride_y, stride_x = height / inputs[dcn].shape[1], width / inputs[dcn].shape[2]
        row, column = int(y / stride_y), int(x / stride_x)
        with torch.inference_mode():
            points, weights, grid = sampling_points(dcn, inputs[dcn], row, column)
        to_image = torch.tensor([stride_x, stride_y])
        points, grid = ((positions + 0.5) * to_image - 0.5 for positions in (points, grid))
        weights = weights.flatten()
        largest = weights.abs().max().item()
        colours = {"cmap": "viridis_r", "vmin": 0} if dcn.softmax else {"cmap": "coolwarm", "vmin": -largest}
        scatter = draw_points(
            axes, image, points.flatten(0, 1), weights.abs(), c=weights, s=16, vmax=largest, **colours
        )
        axes.plot(*grid.T, "x", color="black", markersize=5, markeredgewidth=0.9)
        axes.plot(x, y, "o", color="red", markersize=9, markerfacecolor="none", markeredgewidth=2)
        axes.set_title(
            f"stage {stage}, stride {stride_x:.0f}\n{dcn.num_groups} groups of {points.shape[1]} points", fontsize=10
        )
        reach = 1.15 * (points - torch.tensor([x, y])).abs().max().item()  # zoom in on the points
        axes.set_xlim(x - reach, x + reach)
        axes.set_ylim(y + reach, y - reach)
        outside = ((points < 0) | (points > torch.tensor([width, height]) - 1)).any(-1).float().mean()
        axes.set_xlabel(f"{outside:.0%} of the points outside", fontsize=9)
        figure.colorbar(scatter, ax=axes, shrink=0.6, label="weight" if stage == len(last_dcns) else None)
    figure.suptitle(
        f"Where {model.config.core_op} samples for the pixel at ({x}, {y}); crosses: a regular 3x3 convolution",
        fontsize=11,
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=120, metadata={"Software": MARK})
    print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
