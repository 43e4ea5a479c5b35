# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Where DCNv3 or DCNv4 samples for one pixel of an image, in the last layer of every stage.

    python -m examples.feature_extraction.show_sampling_points --model outputs/digits --image photo.jpg --pixel 120 80

A point is one sample of one group, the darker and larger the greater its weight; crosses are the regular grid of a
convolution, on which the points of an untrained network lie. Weights of DCNv4 may be negative: blue, and positive ones
red. Each panel zooms in on its points.
"""

import argparse
from pathlib import Path

from examples.feature_extraction.extract_features import load
from examples.output_files import check_outputs, mark_of
from examples.sampling_points import displayable, draw_stages, sample_stages


MARK = mark_of(__file__)


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

    image, stages, _ = sample_stages(model, lambda: model(pixel_values))
    figure = draw_stages(
        displayable(image, image_processor),
        stages,
        x,
        y,
        f"Where {model.config.core_op} samples for the pixel at ({x}, {y}). Red: its pixel of the feature map; "
        "crosses: a regular 3x3 convolution",
    )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(args.output, dpi=110, bbox_inches="tight", metadata={"Software": MARK})
    print(f"Written: {args.output}")


if __name__ == "__main__":
    main()
