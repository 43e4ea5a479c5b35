# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Model cards of converted checkpoints, made from their registry records."""

import re
from pathlib import Path
from string import Template

from huggingface_hub import EvalResult, ModelCardData
from transformers import PreTrainedConfig

from conversion.checkpoints import ARCHITECTURES, METRICS, OWN_DATASET, Checkpoint, entries_of_file
from conversion.errors import printable
from conversion.heads import BACKBONE, HEADS
from conversion.offset_mask import UNREAD


TEMPLATE = Path(__file__).with_name("model_card_template.md")
# Names of data sets on the Hub, where it has them.
HUB_DATASETS = {
    "ImageNet-1k": "imagenet-1k",
    "ImageNet-22k": "imagenet-22k",
    "iNaturalist 2018": "inaturalist-2018",
    "ADE20K": "ade20k",
    "Cityscapes": "cityscapes",
}
USES = {
    "image-classification": """```python
import modeling_internimage  # registers InternImage with transformers
from transformers import pipeline

classifier = pipeline("image-classification", model="$name")  # this repository or folder
print(classifier("photo.jpg"))
```

`AutoModel`, `AutoModelForImageClassification`, `InternImageBackbone` and `AutoImageProcessor` load it too.""",
    "image-feature-extraction": """```python
from modeling_internimage import InternImageBackbone

backbone = InternImageBackbone.from_pretrained("$name")  # this repository or folder
feature_maps = backbone(pixel_values).feature_maps  # of every stage: (batch_size, channels, height, width)
```

`AutoModel.from_pretrained("$name", add_pooling_layer=False)` loads it too. `AutoImageProcessor` normalises pixels with
ImageNet's mean and standard deviation and leaves the size of images as it is.""",
    "image-segmentation": """```python
import modeling_internimage  # registers InternImage with transformers
from transformers import pipeline

segmenter = pipeline("image-segmentation", model="$name")  # this repository or folder
for segment in segmenter("photo.jpg"):
    print(segment["label"], segment["mask"])
```

`$auto_class` and `AutoImageProcessor` load it too. `modeling_internimage.segment_image` gives the probabilities of
every pixel as the original's evaluation computes them, ${windows}on request with several scales and mirror images.""",
    "object-detection": """```python
import modeling_internimage  # registers InternImage with transformers
from transformers import pipeline

detector = pipeline("object-detection", model="$name")  # this repository or folder
for detection in detector("photo.jpg", threshold=0.5):
    print(detection["label"], detection["score"], detection["box"])
```

`$auto_class` and `AutoImageProcessor` load it too${masks}.""",
}
METADATA_USE = """

The classes also depend on when and where an image was taken, if the model is told:

```python
from modeling_internimage import encode_metadata
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForImageClassification

model = AutoModelForImageClassification.from_pretrained("$name")
image_processor = AutoImageProcessor.from_pretrained("$name")
inputs = image_processor(Image.open("photo.jpg"), return_tensors="pt")
metadata = encode_metadata(["2018-06-30"], latitudes=[48.1], longitudes=[11.6])  # None for what is unknown
print(model.config.id2label[model(**inputs, **metadata).logits.argmax().item()])
```"""
METADATA_RESULTS = """

They measured it with the date and the place of each image. Without them, as in the pipeline, the model goes by the
image alone; its accuracy then was not reported."""
# What the authors say elsewhere about the results of a checkpoint.
RESULT_NOTES = {
    "mask2former_flash_internimage_s_640_160k_ade20k_ss": """

Another table of the authors says 52.2 for this file
([source](https://github.com/OpenGVLab/DCNv4/tree/main/segmentation/configs/ade20k))."""
}
# Test sets whose results are those of a model that was trained on more.
TRAINING_SETS = {
    "LVIS v1 minival": "LVIS v1",
    "LVIS v1 val": "LVIS v1",
    "VOC 2007": "VOC 2007 and 2012",
    "VOC 2012": "VOC 2007 and 2012",
}
OPEN_IMAGES_CLASSES = (
    "The original reads the class names when it runs, from class-descriptions-boxable.csv of Open Images. These are "
    "the names of version 6, in mmdetection's order: compare them with that file before you rely on them."
)
UNKNOWN_CLASSES = (
    "The classes are not known: the labels are numbers. The authors publish no list of them, nor how these $number "
    "were chosen from the 365 of Objects365. That they are the classes of $likely, in its order, is a guess from the "
    "number: do not rely on it. The file is a start for fine-tuning."
)
REPORTED = "Reported by the authors, not measured again here"
OFFICIAL_LICENCE = "The weights are under the MIT licence of the original."
OWN_LICENCE = (
    "The licence of these weights is for their owner to name; the authors' weights are under the MIT licence."
)


def create_model_card(checkpoint: Checkpoint, config: PreTrainedConfig, options, dropped, provenance) -> str:
    """
    The text of a `README.md` with its metadata.

    Args:
        checkpoint: The registry's record.
        config: The configuration that is written.
        options (`ConversionOptions`): How it was converted.
        dropped: Original keys that were left out.
        provenance: The entries `source`, `command` and `versions` of the conversion report.
    """
    metadata = card_metadata(checkpoint, options).to_yaml()
    width, height = checkpoint.image_size[1], checkpoint.image_size[0]
    values = {
        "name": checkpoint.title or checkpoint.name,
        "model": _model(checkpoint),
        "origin": _origin(checkpoint, config),
        "licence": OWN_LICENCE if checkpoint.title else OFFICIAL_LICENCE,
        "task": _task(checkpoint),
        "use": _use(checkpoint),
        "classes": _classes(checkpoint, config),
        "size": f"{height}x{width}",
        "results": _results(checkpoint, options),
        "changes": "\n".join(f"- {change}" for change in _changes(checkpoint, config, options, dropped)),
        "source": _source(checkpoint, provenance["source"]["file"]),
        "sha256": provenance["source"]["sha256"],
        "command": _code(provenance["command"]),
        "versions": ", ".join(f"{name} {version}" for name, version in provenance["versions"].items()),
        "operator": checkpoint.family.operator,
        "paper": checkpoint.family.paper,
        "paper_url": checkpoint.family.paper_url,
        "code": checkpoint.family.code,
        "citation": checkpoint.family.citation,
    }
    return f"---\n{metadata}\n---\n\n{Template(TEMPLATE.read_text(encoding='utf-8')).substitute(values)}"


def card_metadata(checkpoint: Checkpoint, options) -> ModelCardData:
    """The YAML metadata. Metrics belong to the authors' weights: with another classifier there are none."""
    is_official, family = checkpoint.title is None, checkpoint.family
    datasets = [HUB_DATASETS[checkpoint.dataset]] if is_official and checkpoint.dataset in HUB_DATASETS else None
    results = [
        EvalResult(
            task_type=checkpoint.task,
            dataset_type=HUB_DATASETS.get(entry.dataset, entry.dataset),
            dataset_name=entry.dataset,
            metric_type=METRICS[metric][1],
            metric_name=f"{METRICS[metric][0]} (reported by the authors)",
            metric_value=value,
            verified=False,
            source_name=family.repository,
            source_url=family.reports[checkpoint.task],
        )
        for entry in ([] if options.imagenet_1k_head else entries_of_file(checkpoint))
        for metric, value in entry.reported.items()
    ]
    return ModelCardData(
        license=checkpoint.license,
        library_name="transformers",
        pipeline_tag=checkpoint.task,
        tags=list(dict.fromkeys(["internimage", family.model.lower(), family.operator.lower(), "vision"])),
        datasets=datasets,
        base_model=checkpoint.hub_name or (family.repository if checkpoint.file and is_official else None),
        model_name=checkpoint.name if results else None,
        eval_results=results or None,
    )


def _markdown(text: str) -> str:
    """Text from a file, escaped for a Markdown table."""
    return re.sub(r"([\\`*\[\]<>|])", r"\\\1", printable(text))


def _code(text: str) -> str:
    """Text from a file, as a code span in a Markdown table."""
    return f"`{printable(text).replace('`', chr(39)).replace('|', chr(92) + '|')}`"


def _origin(checkpoint: Checkpoint, config: PreTrainedConfig) -> str:
    if checkpoint.head == BACKBONE:
        return "Taken out of a larger model in its owner's file"
    classes = f"({config.num_labels} classes)"
    if checkpoint.title is None:
        pretraining = f", after pretraining on {checkpoint.pretraining}" if checkpoint.pretraining else ""
        dataset = TRAINING_SETS.get(checkpoint.dataset, checkpoint.dataset)
        return f"Trained by its authors on {dataset} {classes}{pretraining}"
    own = f", trained on {checkpoint.dataset}" if checkpoint.dataset == OWN_DATASET else ""
    return f"Converted from its owner's file{own} {classes}, not from a download of the authors' weights"


def _model(checkpoint: Checkpoint) -> str:
    if checkpoint.head == "CB-DINO":
        return f"CB-InternImage-{checkpoint.backbone} (two InternImage-{checkpoint.backbone} in one)"
    if checkpoint.backbone not in ARCHITECTURES:
        return f"{checkpoint.family.model} {checkpoint.backbone}"
    return f"{checkpoint.family.model}-{checkpoint.backbone.removeprefix('Flash-')}"


def _task(checkpoint: Checkpoint) -> str:
    if checkpoint.task == "image-classification":
        return "image classification"
    if checkpoint.head == BACKBONE:
        return "feature maps, as the backbone of other models"
    if checkpoint.task == "object-detection":
        masks = " and instance segmentation" if _has_masks(checkpoint) else ""
        return f"object detection{masks} with {checkpoint.head.removeprefix('CB-')}"
    return f"semantic segmentation with a {checkpoint.head.removesuffix(' head')} head"


def _has_masks(checkpoint: Checkpoint) -> bool:
    return "Mask" in checkpoint.head


def _takes_metadata(checkpoint: Checkpoint) -> bool:
    return checkpoint.architecture.get("use_metadata_head", False)


def _use(checkpoint: Checkpoint) -> str:
    windows = ""
    if checkpoint.window:
        side, stride = checkpoint.window
        windows = f"in windows of {side} pixels at steps of {stride} (the pipeline takes the image as a whole), "
    values = {
        "name": checkpoint.title or checkpoint.name,
        "auto_class": HEADS[checkpoint.head].auto_class.__name__,
        "windows": windows,
        "masks": (
            "; `post_process_instance_segmentation` of the image\nprocessor gives masks"
            if _has_masks(checkpoint)
            else ""
        ),
    }
    use = USES[checkpoint.task] + (METADATA_USE if _takes_metadata(checkpoint) else "")
    return Template(use).substitute(values)


def _classes(checkpoint: Checkpoint, config: PreTrainedConfig) -> str:
    """A section with the classes of a segmentation or detection model, and the colours of the former."""
    if checkpoint.task == "image-classification" or not checkpoint.labels:
        return ""
    columns, note = {"index": range(config.num_labels), "class": map(_markdown, config.id2label.values())}, ""
    if checkpoint.palette:
        columns["colour"] = [f"`#{red:02x}{green:02x}{blue:02x}`" for red, green, blue in config.palette]
        note = "The colours are also `model.config.palette`.\n\n"
    elif checkpoint.category_ids:
        ids = f"Their ids in annotations of {TRAINING_SETS.get(checkpoint.dataset, checkpoint.dataset)}"
        note = f"{ids} are `category_ids` of the image processor, in this order.\n\n"
    elif checkpoint.dataset == "OpenImages":
        note = f"{OPEN_IMAGES_CLASSES}\n\n"
    rows = [columns, ["---"] * len(columns), *zip(*columns.values(), strict=True)]
    table = "\n".join(f"| {' | '.join(map(str, row))} |" for row in rows)
    return f"## Classes\n\n{note}{table}\n\n"


def _source(checkpoint: Checkpoint, file: str) -> str:
    if checkpoint.file is None or checkpoint.title:
        return _code(file)
    repository = checkpoint.family.repository
    return f"[{checkpoint.file}](https://huggingface.co/{repository}/blob/main/{checkpoint.file}) of {repository}"


def _results(checkpoint: Checkpoint, options) -> str:
    if options.imagenet_1k_head:
        return "None are known: this is a start for fine-tuning."
    if not checkpoint.reported:
        return "None are known for this file." if checkpoint.title else "None were reported for these weights."
    tables = []
    for entry in entries_of_file(checkpoint):
        rows = [f"| {METRICS[metric][0]} | {value} |" for metric, value in entry.reported.items()]
        tables.append("\n".join([f"| {entry.dataset} | percent |", "|---|---|", *rows]))
    note = METADATA_RESULTS if _takes_metadata(checkpoint) else ""
    if _has_tta(checkpoint):
        note += "\n\nHow they augmented at test time is not published."
    note += RESULT_NOTES.get(checkpoint.name, "")
    return f"{REPORTED} ([source]({checkpoint.family.reports[checkpoint.task]})):\n\n" + "\n\n".join(tables) + note


def _has_tta(checkpoint: Checkpoint) -> bool:
    return any("box_mAP_tta" in entry.reported for entry in entries_of_file(checkpoint))


def _changes(checkpoint: Checkpoint, config: PreTrainedConfig, options, dropped) -> list[str]:
    dtype = str(config.dtype).removeprefix("torch.")
    changes = ["The parameters have the names of `modeling_internimage`; their values are those of the original file"]
    changes[0] += f", rounded to {dtype}." if options.dtype else f", bit for bit ({dtype})."
    if options.ema:
        changes.append("They are the exponential moving average that the file holds, not the last step's weights.")
    if options.imagenet_1k_head:
        changes.append(
            "The classifier has the 1000 rows of the ImageNet-22k classifier that stand for ImageNet-1k's classes, by "
            "the authors' list (class 850, teddy bear, has the row of teapot: ImageNet-22k has no such class)."
        )
    for reason in dict.fromkeys(dropped.values()):
        keys = [key for key, its_reason in dropped.items() if its_reason == reason]
        what = f"Rows of {len(keys)} tensors" if reason == UNREAD else f"{len(keys)} tensors"
        changes.append(f"{what} were left out ({_markdown(keys[0])}, ...): {reason}.")
    if checkpoint.dataset == "Objects365":
        values = {"number": config.num_labels, "likely": {80: "COCO", 20: "VOC"}[config.num_labels]}
        changes.append(Template(UNKNOWN_CLASSES).substitute(values))
    elif checkpoint.head != BACKBONE and config.id2label[0] == "LABEL_0":
        changes.append("Class names are not known: the labels are numbers.")
    elif checkpoint.head != BACKBONE:
        names = "are those in the file" if checkpoint.dataset == OWN_DATASET else "were added to the configuration"
        changes.append(f"Class names {names}.")
    if checkpoint.num_original_labels:
        changes.append(
            f"The original's classifiers have {checkpoint.num_original_labels} rows, of which only the first "
            f"{checkpoint.num_labels} stand for a class: the others were left out."
        )
    preprocessing = "; preprocessing is the authors'" if checkpoint.file else ""
    changes.append(f"`config.json` and `preprocessor_config.json` were written anew{preprocessing}.")
    if options.remote_code:
        changes.append("Two source files were added for `trust_remote_code=True`.")
    return changes
