# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
The images of an index that are most like a query, by the cosine similarity of their features.

    python -m examples.image_search.search photo.jpg --index outputs/photo_index --picture outputs/neighbours.png
"""

import argparse
from pathlib import Path

import numpy as np
from PIL import Image

from examples.image_files import embed_files, list_files, load_feature_extractor
from examples.image_search.build_index import add_model_arguments
from examples.image_search.image_index import ImageIndex, model_signature
from examples.output_files import check_outputs, mark_of, write_picture
from examples.pictures import plt
from modeling_internimage.images import decode_image


MARK = mark_of(__file__)


def save_picture(results: dict[str, list[tuple[str, float]]], count: int, path: Path):
    """A row for each query: the query itself, then its neighbours with their names and similarities."""
    figure, grid = plt.subplots(
        len(results),
        count + 1,
        figsize=(1.9 * (count + 1), 2.3 * len(results) + 0.3),
        layout="constrained",
        squeeze=False,
        dpi=90,
    )
    for axes in grid.flat:
        axes.set_axis_off()
    for row, (query, neighbours) in zip(grid, results.items()):
        draw(row[0], query, f"query\n{short_name(query)}")
        for axes, (file, similarity) in zip(row[1:], neighbours):
            draw(axes, file, f"{similarity:.2f}\n{short_name(file)}")
    figure.suptitle("Query and its nearest neighbours, with cosine similarity", fontsize=11)
    figure.canvas.draw()
    picture = Image.fromarray(np.asarray(figure.canvas.buffer_rgba())).convert("RGB")
    write_picture(path, picture.quantize(256), MARK)  # of photographs, a third of the size
    plt.close(figure)


def draw(axes, file: str, title: str):
    axes.set_title(title, fontsize=9)
    try:
        axes.imshow(decode_image(file, f"The image file {file}"))
    except ValueError:  # the index may have been moved without its images
        axes.text(0.5, 0.5, "not readable", ha="center", va="center", fontsize=9)


def short_name(file: str) -> str:
    """The folder and the name of a file, in lines of at most 24 characters."""
    name = "/".join(Path(file).parts[-2:])
    return name if len(name) <= 24 else f"...{name[-21:]}"


def main(argv: list[str] | None = None):
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("queries", nargs="+", help="image files, folders, patterns, .txt files with paths")
    parser.add_argument("--index", type=Path, required=True, help="folder that build_index.py has written")
    parser.add_argument("--model", help="where the index's model is, if it has moved")
    parser.add_argument("--count", type=int, default=5, help="neighbours of each query")
    parser.add_argument("--picture", type=Path, help="PNG file with the queries and their neighbours")
    add_model_arguments(parser)
    args = parser.parse_args(argv)
    if args.count < 1:
        raise ValueError(f"`--count {args.count}` must be at least 1.")
    queries = list_files(args.queries)
    if args.picture is not None:
        check_outputs([args.picture], MARK, queries)
    index = ImageIndex.load(args.index)
    model = args.model or index.model
    extractor = load_feature_extractor(model, args.device, args.dtype, args.kernel)
    index.check_model(model, model_signature(extractor))

    results: dict[str, list[tuple[str, float]]] = {}
    num_unreadable = 0
    for batch in embed_files(extractor, queries, args.batch_size):
        results |= zip(batch.files, index.nearest(batch.features, args.count) if batch.files else [])
        num_unreadable += len(batch.unreadable)
        for reason in batch.unreadable.values():
            print(f"Left out: {reason}")
    if num_unreadable:
        print(f"{num_unreadable} of {len(queries)} queries are unreadable.")
    if not results:
        raise ValueError("None of the queries can be read.")
    for query, neighbours in results.items():
        print(query)
        for file, similarity in neighbours:
            print(f"  {similarity:6.3f}  {file}")
    if args.picture is not None:
        args.picture.parent.mkdir(parents=True, exist_ok=True)
        save_picture(results, min(args.count, len(index.files)), args.picture)
        print(f"Written: {args.picture}")


if __name__ == "__main__":
    main()
