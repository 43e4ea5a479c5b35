# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What the pictures of sampling points share."""

from collections.abc import Callable, Iterable

import torch
from torch import nn

from examples.pictures import plt
from modeling_internimage.modeling_internimage import (
    InternImageDCNv3,
    InternImageDCNv4,
    InternImageEmbeddings,
    InternImageEncoder,
)


# Area of the point with the largest weight, in square points of a printer.
LARGEST_POINT = 120


def inputs_of(modules: Iterable[nn.Module], run: Callable[[], object]) -> tuple[dict[nn.Module, tuple], object]:
    """The positional inputs that each of `modules` gets in `run`, without gradients, and the result of `run`."""
    inputs = {}
    hooks = [
        module.register_forward_pre_hook(lambda module, arguments: inputs.update({module: arguments}))
        for module in modules
    ]
    with torch.inference_mode():
        result = run()
    for hook in hooks:
        hook.remove()
    return inputs, result


class StageSampling:
    """
    Where a DCNv3 or DCNv4 samples for each pixel of its feature map.

    Args:
        dcn: the module, and `hidden_states` (1, height, width, channels), its input.
        image_size: height and width of the image, with its padding, that the feature map belongs to.
    """

    def __init__(
        self,
        dcn: InternImageDCNv3 | InternImageDCNv4,
        hidden_states: torch.Tensor,
        image_size: tuple[int, int],
    ):
        height, width = hidden_states.shape[1:3]
        self.stride = torch.tensor([image_size[1] / width, image_size[0] / height])
        self.has_signed_weights = not dcn.softmax
        self.offset_scale = dcn.offset_scale
        offset, mask, _ = dcn.sampling_parameters(hidden_states)
        self.offset = offset[0].unflatten(-1, (dcn.num_groups, -1, 2)).float()
        weights = mask[0].unflatten(-1, (dcn.num_groups, -1)).float()
        self.weights = weights.softmax(dim=-1) if dcn.softmax else weights
        reach = dcn.kernel_size // 2
        steps = torch.arange(-reach, reach + 1, dtype=torch.float32)
        self.grid = torch.cartesian_prod(steps, steps)  # x-major, as the offsets are
        if dcn.remove_center:
            self.grid = torch.cat((self.grid[: len(self.grid) // 2], self.grid[len(self.grid) // 2 + 1 :]))

    def at(self, row: int, column: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """
        Of one pixel of the feature map: `points` (num_groups, num_points, 2), x and y in pixels of the feature map;
        `weights` (num_groups, num_points), which in DCNv3 are positive and sum to 1 in a group; `grid` (num_points,
        2), the points without learned offsets.
        """
        centre = torch.tensor([column, row], dtype=torch.float32)
        points = centre + (self.grid + self.offset[row, column]) * self.offset_scale
        return points, self.weights[row, column], centre + self.grid * self.offset_scale

    def for_pixel(self, x: int, y: int) -> dict[str, torch.Tensor]:
        """
        The same for a pixel of the image, in pixels of the image: `points` (num_groups * num_points, 2), `weights`
        (num_groups * num_points,), `grid` (num_points, 2), and `cell` (4,), left, top, right, bottom of the pixel of
        the feature map that the pixel of the image belongs to.
        """
        column, row = (torch.tensor([x, y]) / self.stride).int().tolist()
        points, weights, grid = self.at(row, column)
        cell = torch.tensor([column, row, column + 1, row + 1]) * self.stride.repeat(2) - 0.5
        points, grid = ((positions + 0.5) * self.stride - 0.5 for positions in (points.flatten(0, 1), grid))
        return {"points": points, "weights": weights.flatten(), "grid": grid, "cell": cell}


def find_encoders(model: nn.Module) -> list[InternImageEncoder]:
    """Of the InternImage somewhere in `model`: none, one or, of CB-InternImage, two, the lead network last."""
    return [module for module in model.modules() if isinstance(module, InternImageEncoder)]


@torch.inference_mode()
def sample_stages(model: nn.Module, run: Callable[[], object]) -> tuple[torch.Tensor, list[StageSampling], object]:
    """
    What the InternImage somewhere in `model` does in `run`: the image that it gets, (3, height, width), without the
    padding of detectors, the sampling of the last layer of each stage, and the result of `run`.
    """
    encoder = find_encoders(model)[-1]
    embeddings = next(module for module in model.modules() if isinstance(module, InternImageEmbeddings))
    dcns = [stage.layers[-1].dcn for stage in encoder.stages]
    inputs, result = inputs_of([embeddings, *dcns], run)
    pixel_values = inputs[embeddings][0]
    stages = [StageSampling(dcn, inputs[dcn][0], pixel_values.shape[2:]) for dcn in dcns]
    return _without_padding(pixel_values[0]), stages, result


def _without_padding(image: torch.Tensor) -> torch.Tensor:
    """(3, height, width) without the rows below and the columns on the right that are all zeros."""
    is_filled = (image != 0).any(dim=0)
    height, width = (int(is_filled.any(dim=dim).nonzero().max()) + 1 for dim in (1, 0))
    return image[:, :height, :width]


def displayable(pixel_values: torch.Tensor, image_processor) -> torch.Tensor:
    """Undo the normalisation: (3, height, width) -> (height, width, 3) in [0, 1]."""
    mean, std = (
        torch.tensor(values)[:, None, None] for values in (image_processor.image_mean, image_processor.image_std)
    )
    return (pixel_values * std + mean).clamp(0, 1).permute(1, 2, 0)


def draw_stages(image: torch.Tensor, stages: list[StageSampling], x: int, y: int, title: str | None = None):
    """
    A figure with a panel for each stage, zoomed in on the samples for the pixel (`x`, `y`) of `image` (height, width,
    3): points, whose colours and areas are their weights, and crosses on the grid of a regular convolution.
    """
    size = image.shape[:2]
    samples = [stage.for_pixel(x, y) for stage in stages]
    largest = max(sample["weights"].abs().max().item() for sample in samples)
    colours = {"cmap": "viridis_r", "vmin": 0, "vmax": largest}
    if any(stage.has_signed_weights for stage in stages):
        colours = {"cmap": "coolwarm", "vmin": -largest, "vmax": largest}
    figure, panels = plt.subplots(
        1, len(stages), figsize=(3.1 * len(stages) + 0.8, 3.9), layout="constrained", squeeze=False
    )
    for number, (axes, stage, sample) in enumerate(zip(panels[0], stages, samples), start=1):
        left, top, right, bottom = sample["cell"].tolist()
        axes.add_patch(plt.Rectangle((left, top), right - left, bottom - top, fill=False, edgecolor="red", lw=1.5))
        areas = LARGEST_POINT * sample["weights"].abs() / largest
        scatter = draw_points(
            axes, image, sample["points"], sample["weights"].abs(), c=sample["weights"], s=areas, **colours
        )
        axes.plot(*sample["grid"].T, "x", color="black", markersize=5, markeredgewidth=0.9)
        _zoom(axes, sample["points"], (x, y), size)
        is_outside = ((sample["points"] < -0.5) | (sample["points"] > torch.tensor(size[::-1]) - 0.5)).any(dim=-1)
        axes.set_title(
            f"stage {number}, stride {stage.stride[0]:.0f}\n{stage.weights.shape[2]} groups of "
            f"{len(sample['grid'])} points",
            fontsize=10,
        )
        axes.set_xlabel(f"{is_outside.float().mean():.0%} of the points outside the picture", fontsize=9)
    label = "weight" if colours["vmin"] else "weight of a point in its group"
    figure.colorbar(scatter, ax=panels[0], shrink=0.75, pad=0.01, label=label)
    if title is not None:
        figure.suptitle(title, fontsize=11)
    return figure


def _zoom(axes, points: torch.Tensor, centre: tuple[int, int], image_size: tuple[int, int]):
    """Show a square around `centre` with the `points`, moved and cut so that nothing outside the image is in it."""
    reach = 1.15 * (points - torch.tensor(centre)).abs().max().item()
    for position, size, set_limits in zip(centre, image_size[::-1], (axes.set_xlim, axes.set_ylim)):
        side = min(2 * reach, size)
        low = min(max(position - reach, -0.5), size - 0.5 - side)
        set_limits(low, low + side)
    axes.invert_yaxis()


def draw_points(axes, image, points: torch.Tensor, weights: torch.Tensor, **kwargs):
    """
    Draw `points` (n, 2), x and y in pixels of `image`, over a pale `image`, those with large `weights` (n,) on top.
    Other arguments, of which tensors (n,) belong to the points, go to `axes.scatter`, whose result is returned.
    """
    order = weights.argsort()
    kwargs = {name: value[order] if isinstance(value, torch.Tensor) else value for name, value in kwargs.items()}
    axes.imshow(image, alpha=0.55)
    axes.set_xticks([])
    axes.set_yticks([])
    return axes.scatter(*points[order].T, linewidths=0, **kwargs)
