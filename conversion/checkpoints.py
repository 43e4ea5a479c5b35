# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""
The registry of the official checkpoints: a typed record for each of the 84 that the authors list, and for three starts
for fine-tuning that they publish without listing them, read from `checkpoints.csv` beside this file. READMEs,
`--list`, model cards and tests are made from it.

Its sources are the README files and configurations of the repositories in `FAMILIES`.
"""

import csv
import difflib
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from transformers import PreTrainedConfig

from conversion.errors import ConversionError
from conversion.heads import BACKBONE, HEADS
from modeling_internimage import InternImageConfig, create_image_processor
from modeling_internimage.configuration_internimage import imagenet_labels
from modeling_internimage.detection.labels import detection_labels
from modeling_internimage.dino_detr import DINO_DETR_IMAGE_PROCESSOR_CLASSES
from modeling_internimage.mask_rcnn import MASK_RCNN_IMAGE_PROCESSOR_CLASSES
from modeling_internimage.segmentation import SEGMENTATION_IMAGE_PROCESSOR_CLASSES


OWN_DATASET = "a data set of its own"  # of a user's weights with other classes


@dataclass(frozen=True)
class Family:
    """
    The models around one operator, and where their authors publish them.

    Args:
        model: Name of the models, without the letter of the architecture.
        operator: The operator, a value of `InternImageConfig.core_op`.
        repository: Repository of the weights on the Hub.
        code: Address of the original code.
        reports: Addresses of the reported metrics, by task.
        paper: Title of the paper.
        paper_url: Its address.
        citation: Its BibTeX entry.
    """

    model: str
    operator: str
    repository: str
    code: str
    reports: dict[str, str]
    paper: str
    paper_url: str
    citation: str


# By `InternImageConfig.core_op`.
FAMILIES = {
    "DCNv3": Family(
        model="InternImage",
        operator="DCNv3",
        repository="OpenGVLab/InternImage",
        code="https://github.com/OpenGVLab/InternImage",
        reports={
            "image-classification": "https://github.com/OpenGVLab/InternImage#released-models",
            "image-segmentation": "https://github.com/OpenGVLab/InternImage/tree/master/segmentation",
            "object-detection": "https://github.com/OpenGVLab/InternImage/tree/master/detection",
        },
        paper="InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions",
        paper_url="https://arxiv.org/abs/2211.05778",
        citation="""@inproceedings{wang2023internimage,
  title={InternImage: Exploring Large-Scale Vision Foundation Models with Deformable Convolutions},
  author={Wang, Wenhai and Dai, Jifeng and Chen, Zhe and Huang, Zhenhang and Li, Zhiqi and Zhu, Xizhou and Hu, Xiaowei
    and Lu, Tong and Lu, Lewei and Li, Hongsheng and others},
  booktitle={Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  pages={14408--14419},
  year={2023}
}""",
    ),
    "DCNv4": Family(
        model="FlashInternImage",
        operator="DCNv4",
        repository="OpenGVLab/DCNv4",
        code="https://github.com/OpenGVLab/DCNv4",
        reports=dict.fromkeys(
            ("image-classification", "image-segmentation", "object-detection"),
            "https://github.com/OpenGVLab/DCNv4#released-models",
        ),
        paper="Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision Applications",
        paper_url="https://arxiv.org/abs/2401.06197",
        citation="""@article{xiong2024efficient,
  title={Efficient Deformable ConvNets: Rethinking Dynamic and Sparse Operator for Vision Applications},
  author={Xiong, Yuwen and Li, Zhiqi and Chen, Yuntao and Wang, Feng and Zhu, Xizhou and Luo, Jiapeng and Wang, Wenhai
    and Lu, Tong and Li, Hongsheng and Qiao, Yu and Lu, Lewei and Zhou, Jie and Dai, Jifeng},
  journal={arXiv preprint arXiv:2401.06197},
  year={2024}
}""",
    ),
}

# Arguments of `InternImageConfig` by the papers' letters (tables 1 and 10 of InternImage's, the YAML files of the
# original repositories).
_SMALL = {"post_norm": True, "layer_scale_init_value": 1e-5}
_LARGE = _SMALL | {"offset_scale": 2.0}
_FLASH = {"core_op": "DCNv4"}
_FLASH_SMALL = _FLASH | _SMALL | {"depthwise_kernel_size": 3}
_FLASH_LARGE = _FLASH_SMALL | {"offset_scale": 2.0, "dcn_output_bias": True, "mlp_fc2_bias": True}
_HUGE = {"depthwise_kernel_size": 5, "center_feature_scale": True, "use_clip_projector": True}
ARCHITECTURES: dict[str, dict[str, Any]] = {
    "T": {"embed_dim": 64, "depths": [4, 4, 18, 4], "num_groups": [4, 8, 16, 32]},
    "S": {"embed_dim": 80, "depths": [4, 4, 21, 4], "num_groups": [5, 10, 20, 40]} | _SMALL,
    "B": {"embed_dim": 112, "depths": [4, 4, 21, 4], "num_groups": [7, 14, 28, 56]} | _SMALL,
    "L": {"embed_dim": 160, "depths": [5, 5, 22, 5], "num_groups": [10, 20, 40, 80]} | _LARGE,
    "XL": {"embed_dim": 192, "depths": [5, 5, 24, 5], "num_groups": [12, 24, 48, 96]} | _LARGE,
    "H": {"embed_dim": 320, "depths": [6, 6, 32, 6], "num_groups": [10, 20, 40, 80]}
    | _HUGE
    | {"res_post_norm": True, "level2_post_norm_block_ids": [5, 11, 17, 23, 29]},
    "G": {"embed_dim": 512, "depths": [2, 2, 48, 4], "num_groups": [16, 32, 64, 128]}
    | _HUGE
    | {"post_norm": True, "level2_post_norm_block_ids": [5, 11, 17, 23, 29, 35, 41, 47]},
    "Flash-T": {"embed_dim": 64, "depths": [4, 4, 18, 4], "num_groups": [4, 8, 16, 32]} | _FLASH,
    "Flash-S": {"embed_dim": 80, "depths": [4, 4, 21, 4], "num_groups": [5, 10, 20, 40]} | _FLASH_SMALL,
    "Flash-B": {"embed_dim": 112, "depths": [4, 4, 21, 4], "num_groups": [7, 14, 28, 56]}
    | _FLASH_SMALL
    | {"offset_scale": 0.5},
    "Flash-L": {"embed_dim": 160, "depths": [5, 5, 22, 5], "num_groups": [10, 20, 40, 80]} | _FLASH_LARGE,
}

# Metric -> its name in tables, its type in the metadata of model cards. All values are in percent.
METRICS = {
    "accuracy": ("top-1", "accuracy"),
    "mIoU_ss": ("mIoU", "mean_iou"),
    "mIoU_ms": ("mIoU multi-scale", "mean_iou"),
    "box_mAP": ("box AP", "mean_average_precision"),
    "box_mAP_tta": ("box AP with test-time augmentation", "mean_average_precision"),
    "box_mAP50": ("box AP50", "mean_average_precision"),
    "mask_mAP": ("mask AP", "mean_average_precision"),
    "openimages_mAP50": ("Open Images mAP at IoU 0.5", "mean_average_precision"),
}

# Arguments of the configuration of each segmentation head.
_MASK2FORMER = {
    "encoder_layers": 6,
    "decoder_layers": 10,  # transformers counts the prediction before the 9 layers too
    "dropout": 0.0,
    "pre_norm": False,
    "enforce_input_projection": False,
    "common_stride": 4,
    "feature_strides": [4, 8, 16, 32],
    "backbones_supported": ["internimage"],  # else the configuration warns that only Swin is
}
_WIDE_MASK2FORMER = {"feature_size": 1024, "mask_feature_size": 1024, "hidden_dim": 1024} | {
    "num_attention_heads": 32, "num_queries": 200, "encoder_feedforward_dim": 4096, "dim_feedforward": 4096,
}  # fmt: skip
_NARROW_MASK2FORMER = {"feature_size": 256, "mask_feature_size": 256, "hidden_dim": 256} | {
    "num_attention_heads": 8, "num_queries": 100, "encoder_feedforward_dim": 1024, "dim_feedforward": 2048,
}  # fmt: skip
_FLASH_MASK2FORMER = _NARROW_MASK2FORMER | {"num_queries": 200, "encoder_feedforward_dim": 2048}  # S, B, L

# Arguments of the configuration of each two-stage detector, with the settings of their training.
_CASCADE = {
    "bbox_reg_stds": [[0.1, 0.1, 0.2, 0.2], [0.05, 0.05, 0.1, 0.1], [0.033, 0.033, 0.067, 0.067]],
    "stage_positive_ious": [0.5, 0.6, 0.7],
    "stage_loss_weights": [1, 0.5, 0.25],
    "allow_low_quality_matches": False,
    "num_train_proposals": 2000,
    "rpn_outside_anchors": False,
    "rpn_box_loss": "smooth_l1",
}
_DETECTORS = {
    "Mask R-CNN": {},
    "Cascade Mask R-CNN": _CASCADE
    | {"box_head_num_conv_layers": 4, "box_head_num_fc_layers": 1, "box_loss": "giou", "box_loss_weight": 10.0},
    "Cascade R-CNN": _CASCADE | {"class_agnostic_boxes": True, "use_mask_head": False, "box_loss": "smooth_l1"},
}
# What a configuration of the original code does not say of a head, or not in the same words.
HEAD_DEFAULTS = {"Mask2Former": _MASK2FORMER} | _DETECTORS
# Detections in an image, of every DINO detector but that on T; denoising queries in the training of H and G.
_MANY_DETECTIONS, _MANY_DENOISING = {"max_detections": 300}, {"num_denoising": 1000}

# Classes of the segmentation data sets, [name, red, green, blue] each, and whether 0 means unlabelled in their files.
SEGMENTATION_CLASSES = json.loads(Path(__file__).with_name("segmentation_classes.json").read_text(encoding="utf-8"))
# Data sets with the classes of another one. (Mapillary's were merged into Cityscapes' for the training.)
_CLASSES_OF = {
    "Mapillary Vistas": "Cityscapes",
    "COCO-Stuff-164K": "COCO-Stuff",
    "COCO-Stuff-10K": "COCO-Stuff",
    "LVIS v1 minival": "LVIS v1",
    "LVIS v1 val": "LVIS v1",
    "VOC 2007": "VOC",
    "VOC 2012": "VOC",
}
# Rows in the classifiers of some checkpoints for the 19 classes of Cityscapes. The other rows are left out.
_CITYSCAPES_CLASSIFIER = 150


# Ids of the categories in annotation files, in the order of the classes. COCO leaves out ten of 1 to 90. In those of
# CrowdHuman (`detection/tools/create_crowd_anno.py` of the original), persons are 1 and all else is `iscrowd`. Open
# Images and VOC have no files in this format.
CATEGORY_IDS = {
    "LVIS v1": list(range(1, 1204)),
    "COCO": [idx for idx in range(1, 91) if idx not in (12, 26, 29, 30, 45, 66, 68, 69, 71, 83)],
    "CrowdHuman": [1],
}


@dataclass(frozen=True)
class Checkpoint:
    """
    What is known about a checkpoint.

    Args:
        name: Name in the original's model tables: that of the file without `.pth`, unless two share a file.
        task: Pipeline tag on the Hub.
        head: Name of the head on top of the backbone, a key of `HEADS`.
        backbone: Name of the architecture, a key of `ARCHITECTURES`.
        architecture: Arguments of `InternImageConfig`.
        image_size: Height and width in pixels: of the input (classification), of training crops (segmentation), of the
            shorter and longer side that test images are fitted into (detection).
        num_parameters: With every head, without buffers; `None` if unknown.
        dataset: What it was trained on last.
        num_labels: Classes of that data set.
        pretraining: What it was trained on before, `None` for training from scratch. "joint 427M" are the images of
            LAION-400M, YFCC-15M and CC12M together (section 4.1 of the paper).
        reported: Metrics reported by the authors, keys of `METRICS`.
        file: In the repository of its family; `None` if no weights were published.
        hub_name: Repository of the authors on the Hub with the same weights.
        labels: Class names, where they are known.
        head_config: Arguments of the configuration beside the backbone's (segmentation and detection).
        palette: Colour (red, green, blue) of each class in pictures.
        reduce_labels: Whether 0 means unlabelled in the label maps of the data set, and k the class k - 1.
        num_original_labels: Rows of the original's classifier, where they are more than the classes.
        test_scale: Longer and shorter side in pixels that test images are fitted into; `None` for the default of the
            image processor.
        normalisation: Mean and standard deviation of each channel of test images, of values from 0 to 255; `None` for
            those of ImageNet.
        size_divisor: Of the height and width of test images.
        window: Side and stride in pixels of the sliding windows on test images.
        license: Of the weights, as the Hub calls it.
        title: Name on the model card of a user's own weights; `None` for those of the authors.
    """

    name: str
    task: str
    head: str
    backbone: str
    architecture: dict[str, Any]
    image_size: tuple[int, int]
    num_parameters: int | None
    dataset: str
    num_labels: int
    pretraining: str | None
    reported: dict[str, float]
    file: str | None
    hub_name: str | None
    labels: list[str] | None
    head_config: dict[str, Any] = field(default_factory=dict)
    palette: list[list[int]] | None = None
    reduce_labels: bool = False
    num_original_labels: int | None = None
    test_scale: tuple[int, int] | None = None
    normalisation: tuple[list[float], list[float]] | None = None
    size_divisor: int | None = None
    window: tuple[int, int] | None = None
    license: str = "mit"
    title: str | None = None

    @property
    def status(self) -> str:
        return "no weights published" if self.file is None else "convertible"

    @property
    def family(self) -> Family:
        return FAMILIES[self.architecture.get("core_op", "DCNv3")]

    @property
    def category_ids(self) -> list[int] | None:
        """Ids of the classes in annotations in COCO's format, where the data set has such files."""
        return CATEGORY_IDS.get(_CLASSES_OF.get(self.dataset, self.dataset))

    def backbone_config(self, **kwargs) -> InternImageConfig:
        config_class = HEADS[self.head].backbone_config_class
        return config_class(**self.architecture, image_size=self.image_size[0], **kwargs)

    def config(self) -> PreTrainedConfig:
        """Configuration of the model. (Dropout and stochastic depth are 0, as in the official repositories.)"""
        labels = {"num_labels": self.num_labels}
        if self.labels:
            id2label = dict(enumerate(self.labels))
            labels = {"id2label": id2label, "label2id": {label: idx for idx, label in id2label.items()}}
        if self.task == "image-classification":
            return self.backbone_config(**labels)
        if self.head == BACKBONE:
            return self.backbone_config(out_features=list(HEADS[BACKBONE].out_features))
        palette = {"palette": self.palette} if self.palette else {}
        head = HEADS[self.head]
        backbone_config = self.backbone_config(out_features=list(head.out_features))
        return head.config_class(backbone_config=backbone_config, **self.head_config, **labels, **palette)

    def image_processor(self):
        """The official preprocessing."""
        if self.task == "image-classification":
            return create_image_processor(self.image_size[0])
        if self.head == BACKBONE:  # what surrounds it decides the size
            image_processor = create_image_processor(self.image_size[0])
            image_processor.do_resize = image_processor.do_center_crop = False
            return image_processor
        settings: dict[str, Any] = {}
        if self.test_scale:
            settings["size"] = dict(zip(("longest_edge", "shortest_edge"), self.test_scale))
        if self.normalisation:
            mean, std = self.normalisation
            settings |= {"image_mean": [value / 255 for value in mean], "image_std": [value / 255 for value in std]}
        if self.task == "object-detection":
            settings["category_ids"] = self.category_ids
            if "DINO" not in self.head:
                return _preferred(MASK_RCNN_IMAGE_PROCESSOR_CLASSES)(**settings)
            max_detections = self.config().max_detections
            return _preferred(DINO_DETR_IMAGE_PROCESSOR_CLASSES)(**settings, max_detections=max_detections)
        windows = {}
        if self.window:
            windows = {
                name: {"height": side, "width": side}
                for name, side in zip(("window_size", "window_stride"), self.window)
            }
        return _preferred(SEGMENTATION_IMAGE_PROCESSOR_CLASSES)(
            size_divisor=self.size_divisor, do_reduce_labels=self.reduce_labels, **windows, **settings
        )

    def reported_text(self) -> str:
        return ", ".join(f"{METRICS[metric][0]} {value}" for metric, value in self.reported.items())


def _preferred(classes: dict[str, type]) -> type:
    return classes.get("torchvision", classes["pil"])


def _read_row(row: dict[str, str]) -> Checkpoint:
    architecture = ARCHITECTURES[row["backbone"]]
    if row["task"] != "image-classification" and row["backbone"] not in ("H", "G"):
        # The original gives the T to XL backbones of its segmentation and detection models a layer scale of 1.
        architecture = architecture | {"layer_scale_init_value": 1.0}
    if row["dataset"] == "iNaturalist 2018":
        architecture = architecture | {"use_metadata_head": True}
    num_labels = int(row["num_labels"])
    data_set_of_classes = _CLASSES_OF.get(row["dataset"], row["dataset"])
    classes = SEGMENTATION_CLASSES.get(data_set_of_classes)
    if classes is not None:
        labels = [name for name, *_ in classes["classes"]]
    elif row["dataset"].startswith("ImageNet"):
        labels = list(imagenet_labels(num_labels).values())
    else:
        labels = detection_labels(data_set_of_classes)
    reported = (metric.split("=") for metric in row["reported"].split())
    return Checkpoint(
        name=row["name"],
        task=row["task"],
        head=row["head"],
        backbone=row["backbone"],
        architecture=architecture,
        image_size=(int(row["height"]), int(row["width"])),
        num_parameters=int(row["num_parameters"]),
        dataset=row["dataset"],
        num_labels=num_labels,
        pretraining=row["pretraining"] or None,
        reported={metric: float(value) for metric, value in reported},
        file=row["file"] or None,
        hub_name=row["hub_name"] or None,
        labels=labels,
        head_config=_head_config(row, architecture),
        palette=classes and [colour for _, *colour in classes["classes"]],
        reduce_labels=bool(classes and classes["reduce_zero_label"]),
        num_original_labels=(
            _CITYSCAPES_CLASSIFIER if num_labels == 19 and row["head"] in ("UperNet", "SegFormer head") else None
        ),
        test_scale=_numbers(row["test_scale"], "x"),
        size_divisor=int(row["size_divisor"]) if row["size_divisor"] else None,
        window=_numbers(row["window"], "/"),
    )


def _head_config(row: dict[str, str], architecture: dict[str, Any]) -> dict[str, Any]:
    if row["head"] == "UperNet":
        return {
            "hidden_size": 512, "auxiliary_channels": 256, "auxiliary_in_channels": 4 * architecture["embed_dim"]
        }  # fmt: skip
    if row["head"] == "SegFormer head":
        return {"hidden_size": 256}
    if row["head"] == "Mask2Former":
        sizes = _NARROW_MASK2FORMER
        if row["backbone"] in ("Flash-S", "Flash-B", "Flash-L"):
            sizes = _FLASH_MASK2FORMER
        elif row["backbone"] == "H" and row["dataset"] in ("ADE20K", "COCO-Stuff-164K", "COCO-Stuff-10K"):
            sizes = _WIDE_MASK2FORMER
        return _MASK2FORMER | sizes
    if row["head"] in ("DINO", "CB-DINO"):
        return (_MANY_DETECTIONS if row["backbone"] != "T" else {}) | (
            _MANY_DENOISING if row["backbone"] in ("H", "G") else {}
        )
    fpn = {"fpn_norm": "layer_norm"} if row["backbone"].startswith("Flash-") and row["head"] in _DETECTORS else {}
    return _DETECTORS.get(row["head"], {}) | fpn


def _numbers(text: str, separator: str) -> tuple[int, ...] | None:
    return tuple(map(int, text.split(separator))) if text else None


def _read_registry() -> dict[str, Checkpoint]:
    with open(Path(__file__).with_suffix(".csv"), encoding="utf-8", newline="") as file:
        return {row["name"]: _read_row(row) for row in csv.DictReader(file)}


CHECKPOINTS: dict[str, Checkpoint] = _read_registry()


def entries_of_file(checkpoint: Checkpoint) -> list[Checkpoint]:
    """`checkpoint` and, if it is one of the authors', the other entries of the registry with the same file."""
    if checkpoint.file is None or checkpoint.title is not None:
        return [checkpoint]
    others = (entry for entry in CHECKPOINTS.values() if entry.file == checkpoint.file)
    return [checkpoint, *(entry for entry in others if entry.name != checkpoint.name)]


def find_checkpoint(name: str) -> Checkpoint:
    """The record called `name`. Raises `ConversionError` for an unknown one, naming the nearest."""
    if name in CHECKPOINTS:
        return CHECKPOINTS[name]
    nearest = difflib.get_close_matches(name.lower().removesuffix(".pth"), CHECKPOINTS, n=3, cutoff=0.4)
    hint = f" Did you mean {' or '.join(map(repr, nearest))}?" if nearest else ""
    raise ConversionError(f"Unknown checkpoint {name!r}.{hint} `--list` shows all {len(CHECKPOINTS)}.")


def table_rows(checkpoints) -> list[list[str]]:
    """A header and a row of text for each of the `checkpoints`."""
    rows = [["name", "task", "head", "parameters", "resolution", "reported by the authors", "source file", "status"]]
    for checkpoint in checkpoints:
        billions = checkpoint.num_parameters / 1e9
        rows.append(
            [
                checkpoint.name,
                checkpoint.task,
                checkpoint.head,
                f"{billions:.2f}B" if billions >= 1 else f"{1000 * billions:.0f}M",
                "x".join(map(str, checkpoint.image_size)),
                checkpoint.reported_text() or "-",
                f"{checkpoint.family.repository}/{checkpoint.file}" if checkpoint.file else "-",
                checkpoint.status,
            ]
        )
    return rows


def text_table(checkpoints) -> str:
    rows = table_rows(checkpoints)
    widths = [max(map(len, column)) for column in zip(*rows)]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(row, widths)).rstrip() for row in rows)


def markdown_table(checkpoints) -> str:
    header, *rows = table_rows(checkpoints)
    return "\n".join("| " + " | ".join(row) + " |" for row in (header, ["---"] * len(header), *rows))


def accuracy_commands(checkpoints) -> str:
    """The commands that repeat the accuracies reported for image classifiers."""
    lines = []
    for checkpoint in checkpoints:
        if "accuracy" not in checkpoint.reported:
            continue
        lines.append(f"# {checkpoint.reported_text()}")
        model = checkpoint.hub_name
        if model is None:
            model = f"converted/{checkpoint.name}"
            lines.append(
                f"python -m conversion.convert_internimage_to_hf --checkpoint {checkpoint.name} \\\n"
                f"    --output-dir {model}"
            )
        data = "--data_dir imagenet/val"
        if checkpoint.architecture.get("use_metadata_head"):
            data = "--dataset_name inat2018 \\\n    --metadata_columns date latitude longitude"
        lines.append(
            "accelerate launch -m examples.image_classification.evaluate_accuracy \\\n"
            f"    --model_name_or_path {model} {data}"
        )
    return "\n".join(lines)
