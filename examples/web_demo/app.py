# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
A page that classifies, segments or detects an uploaded picture with any checkpoint, and shows where DCNv3 samples for
a pixel that is clicked on.

    python -m examples.web_demo.app --model outputs/digits
"""

import argparse
import functools
import html
import logging

import gradio as gr
from PIL import Image

from examples.web_demo import predictions
from examples.web_demo.predictions import load_pipeline, look_at
from modeling_internimage.cli.errors import CommandError


logger = logging.getLogger(__name__)

LOCAL_HOSTS = ("127.0.0.1", "localhost")


def in_page(function):
    """Errors become messages in the page that stay until they are closed."""

    @functools.wraps(function)
    def wrapped(*args, **kwargs):
        try:
            return function(*args, **kwargs)
        except (ValueError, OSError, CommandError) as error:  # sentences for the user
            message = str(error)
        except Exception as error:
            logger.exception("An error that the page shows")
            message = f"{type(error).__name__}: {error}"
        raise gr.Error(html.escape(message), duration=None, print_exception=False)

    return wrapped


def look(model: str | None, path: str) -> predictions.Picture:
    if not model:
        raise ValueError("No model is chosen: type the folder of a checkpoint or its name on the Hub into `Model`.")
    return look_at(model, path)


@in_page
def predict(model: str | None, path: str | None, threshold: float):
    """The preview, and what the first tab shows: slider, scores of classes, segments, boxes, and the table."""
    preview, slider, scores, segmented, boxes, table = (
        gr.Image(visible=False),
        gr.Slider(),
        gr.Label(visible=False),
        gr.AnnotatedImage(visible=False),
        gr.Image(visible=False),
        gr.Dataframe(visible=False),
    )
    if path is None:
        return preview, slider, scores, segmented, boxes, table
    picture = look(model, path)
    pipe = load_pipeline(model)
    preview = gr.Image(picture.image, visible=True)
    if pipe.task == "image-classification":
        scores = gr.Label(predictions.class_scores(picture, threshold), visible=True)
    elif pipe.task == "image-segmentation":
        found = predictions.segments(picture)
        masks = [(mask, label) for mask, label, _ in found]
        colours = predictions.colours_of_classes(pipe.model.config)
        segmented = gr.AnnotatedImage((picture.image, masks), color_map=colours, visible=True)
        rows = [[label, f"{share:.1%}"] for _, label, share in found]
        table = gr.Dataframe(rows, headers=["class", "share of the picture"], visible=True)
    else:
        found = predictions.detections(picture, threshold)
        boxes = gr.Image(predictions.draw_boxes(picture, found, pipe.model.config), visible=True)
        rows = [[label, f"{score:.3f}", *box] for label, score, *box in found]
        headers = ["class", "score", "left", "top", "right", "bottom"]
        table = gr.Dataframe(rows, headers=headers, visible=True)
    slider = gr.Slider(visible=pipe.task != "image-segmentation")  # classes of pixels have no scores
    return preview, slider, scores, segmented, boxes, table


@in_page
def start_sampling(model: str | None, path: str | None):
    """What the second tab shows for a new picture: legend, photograph and panels, for the pixel in the middle."""
    if path is None:
        return "", None, None
    picture = look(model, path)
    if not picture.stages:
        return f"There is no InternImage in {html.escape(model)}, so there are no sampling points.", None, None
    height, width = picture.model_input.shape[:2]
    colours = predictions.colours_of_stages(len(picture.stages))
    legend = " ".join(
        f'<span style="color: rgb{colour}; font-size: 1.5em; vertical-align: -0.1em">&#9679;</span> stage {number} '
        f"(stride {stage.stride[0]:.0f})"
        for number, (colour, stage) in enumerate(zip(colours, picture.stages), start=1)
    )
    x, y = width // 2, height // 2
    return legend, predictions.draw_photograph(picture, x, y), predictions.draw_panels(picture, x, y)


def clicked_pixel(model: str, path: str, event: gr.SelectData) -> tuple[predictions.Picture, int, int]:
    """The pixel of the model's input that was clicked on, from its place in the drawn photograph."""
    picture = look(model, path)
    scale = predictions.enlargement(picture)
    height, width = picture.model_input.shape[:2]
    x, y = (int(position / scale) for position in event.index)
    return picture, min(max(x, 0), width - 1), min(max(y, 0), height - 1)


@in_page
def follow_click(model: str, path: str, event: gr.SelectData):
    return predictions.draw_photograph(*clicked_pixel(model, path, event))


@in_page
def zoom_in_on_click(model: str, path: str, event: gr.SelectData):
    return predictions.draw_panels(*clicked_pixel(model, path, event))


def build_page(models: list[str], takes_other_models: bool) -> gr.Blocks:
    """The page, not yet started."""
    with gr.Blocks(title="InternImage", analytics_enabled=False, delete_cache=(3600, 3600)) as page:
        gr.Markdown("# InternImage\nClassify, segment or detect a picture, and see where DCNv3 samples in it.")
        model = gr.Dropdown(
            models,
            value=models[0] if models else None,
            label="Model",
            info="A folder, or a name on the Hub: choose or type one" if takes_other_models else None,
            allow_custom_value=takes_other_models,
            elem_id="model",
        )
        with gr.Row():
            with gr.Column(scale=1):
                # Not an image to upload, which Gradio would open, with errors that are no sentences.
                path = gr.File(file_types=["image"], type="filepath", label="Picture", elem_id="picture")
                preview = gr.Image(visible=False, show_label=False, buttons=[], format="jpeg", elem_id="preview")
            with gr.Column(scale=2), gr.Tabs():
                with gr.Tab("Predictions"):
                    threshold = gr.Slider(
                        0, 1, 0.5, step=0.01, label="Threshold", info="The lowest score shown", elem_id="threshold"
                    )
                    scores = gr.Label(label="Classes", visible=False, elem_id="scores")
                    segmented = gr.AnnotatedImage(label="Segments", visible=False, buttons=[], elem_id="segments")
                    boxes = gr.Image(show_label=False, format="jpeg", visible=False, buttons=[], elem_id="boxes")
                    table = gr.Dataframe(visible=False, interactive=False, elem_id="table")
                with gr.Tab("Sampling points"):
                    gr.Markdown(
                        "Click on a pixel of the photograph, which is as the model gets it. The points are where the "
                        "last layer of each stage samples for it; their area is their weight. Below, each stage "
                        "zoomed in: the red square is the pixel of its feature map, crosses are a regular convolution."
                    )
                    legend = gr.HTML(elem_id="legend")
                    photograph = gr.Image(
                        show_label=False,
                        format="jpeg",
                        interactive=False,
                        buttons=[],
                        elem_id="photograph",
                    )
                    panels = gr.Image(
                        show_label=False,
                        format="png",
                        interactive=False,
                        buttons=["fullscreen"],
                        elem_id="panels",
                    )
        shown = [preview, threshold, scores, segmented, boxes, table]
        new_picture = [path.change, model.change]
        # One model at a time, so that memory is that of one picture.
        gr.on(new_picture, predict, [model, path, threshold], shown, concurrency_id="model").success(
            start_sampling, [model, path], [legend, photograph, panels], concurrency_id="model"
        )
        threshold.release(predict, [model, path, threshold], shown, concurrency_id="model", show_progress="hidden")
        photograph.select(follow_click, [model, path], photograph, show_progress="hidden")
        photograph.select(zoom_in_on_click, [model, path], panels, concurrency_id="model", show_progress="hidden")
    return page.queue(max_size=20, default_concurrency_limit=1)


def parse_arguments(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--model", action="append", default=[], help="folder or Hub id of a checkpoint; may be given several times"
    )
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 for other machines, too")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on")
    parser.add_argument("--max-file-size", default="20mb", help="of an uploaded picture")
    parser.add_argument("--max-megapixels", type=float, default=25, help="of an uploaded picture")
    args = parser.parse_args(argv)
    if args.host not in LOCAL_HOSTS and not args.model:
        raise SystemExit(f"`--host {args.host}` lets others in, who may only choose a `--model` of yours: name one.")
    return args


def launch(args: argparse.Namespace, **kwargs):
    """Start the page. Other arguments go to `gradio.Blocks.launch`, whose result is returned."""
    Image.MAX_IMAGE_PIXELS = int(args.max_megapixels * 1e6)  # all that read the picture look at it
    # Others must not make this machine read any folder or download any repository.
    page = build_page(args.model, takes_other_models=args.host in LOCAL_HOSTS)
    return page.launch(
        server_name=args.host,
        server_port=args.port,
        share=False,
        ssr_mode=False,
        max_file_size=args.max_file_size,
        show_error=True,
        footer_links=[],
        **kwargs,
    )


def main(argv: list[str] | None = None):
    launch(parse_arguments(argv))


if __name__ == "__main__":
    main()
