# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
Classify image files of held-out digits with a model that `run_image_classification.py` saved, through the pipeline.

    python -m examples.image_classification.classify_digits --model outputs/digits

Writes the images, prints a table of predictions and draws them into a picture.
"""

import argparse
from pathlib import Path

from PIL import Image
from transformers import pipeline

import modeling_internimage  # noqa: F401  (registers InternImage)
from examples.image_classification.digits import load_digits_dataset
from examples.output_files import check_outputs, mark_of, write_data
from examples.pictures import plt


MARK = mark_of(__file__)


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=Path("outputs/digits"), help="folder of the saved model")
    parser.add_argument("--count", type=int, default=20, help="how many digits to classify")
    args = parser.parse_args()

    folder = args.model / "held_out_digits"
    picture = args.model / "predictions.png"
    check_outputs([picture], MARK)
    test_set = load_digits_dataset()["test"]
    count = min(args.count, len(test_set))
    files, truth = [], []
    for idx, row in enumerate(test_set.select(range(count))):
        files.append(str(folder / f"{idx:03d}_is_{row['label']}.png"))
        write_data(Path(files[-1]), row["image"])
        truth.append(str(row["label"]))

    classifier = pipeline("image-classification", model=str(args.model), device="cpu")
    predictions = classifier(files, batch_size=10, top_k=2)

    print(f"\n{'image file':<20} {'digit':>5} {'predicted':>9} {'score':>6}   runner-up")
    for file, label, (best, second) in zip(files, truth, predictions):
        mark = "" if best["label"] == label else "  <- wrong"
        runner_up = f"{second['label']} ({second['score']:.3f})"
        print(f"{Path(file).name:<20} {label:>5} {best['label']:>9} {best['score']:>6.3f}   {runner_up}{mark}")
    correct = sum(best["label"] == label for label, (best, _) in zip(truth, predictions))
    print(f"{correct} of {len(files)} correct")

    columns = 10
    rows = -(-len(files) // columns)
    figure, grid = plt.subplots(rows, columns, figsize=(columns, 1.35 * rows), layout="constrained", squeeze=False)
    for axes in grid.flat:
        axes.axis("off")
    for axes, file, label, (best, _) in zip(grid.flat, files, truth, predictions):
        axes.imshow(Image.open(file), cmap="gray_r")
        is_correct = best["label"] == label
        text = f"{best['label']}  {best['score']:.2f}" + ("" if is_correct else f"\nis a {label}")
        axes.set_title(text, color="tab:green" if is_correct else "tab:red", fontsize=10)
    figure.suptitle(
        f"Held-out digits: predicted class and score; {correct} of {len(files)} correct (red: wrong, true class)",
        fontsize=11,
    )
    figure.savefig(picture, dpi=150, metadata={"Software": MARK})
    print(f"Picture: {picture}\nCurves:  {args.model / 'training_curves.png'}")


if __name__ == "__main__":
    main()
