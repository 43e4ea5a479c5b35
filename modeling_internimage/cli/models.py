# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Checkpoints as pipelines of transformers."""

from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from transformers import (
    MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING,
    MODEL_FOR_OBJECT_DETECTION_MAPPING,
    MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING,
    MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING,
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForImageClassification,
    AutoModelForObjectDetection,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    ImageFeatureExtractionPipeline,
    ImageSegmentationPipeline,
    ObjectDetectionPipeline,
    Pipeline,
    PreTrainedConfig,
    PreTrainedModel,
    pipeline,
)

from ..kernel_integration import KernelNotAvailableError, use_dcnv3_kernel
from .errors import CommandError, complaints, import_extra


DTYPES = ("float32", "float16", "bfloat16")
# Task of the pipeline, Auto class, its models. The first that fits the configuration counts.
TASKS: tuple[tuple[str, Any, Any], ...] = (
    ("image-classification", AutoModelForImageClassification, MODEL_FOR_IMAGE_CLASSIFICATION_MAPPING),
    ("object-detection", AutoModelForObjectDetection, MODEL_FOR_OBJECT_DETECTION_MAPPING),
    ("image-segmentation", AutoModelForSemanticSegmentation, MODEL_FOR_SEMANTIC_SEGMENTATION_MAPPING),
    ("image-segmentation", AutoModelForUniversalSegmentation, MODEL_FOR_UNIVERSAL_SEGMENTATION_MAPPING),
)


class DetectionPipeline(ObjectDetectionPipeline):
    """
    The pipeline for detection, whose boxes are not rounded to whole pixels, and with masks if asked for.

    Attributes:
        with_masks (`bool`, defaults to `False`):
            Whether detections have `segmentation`, the mask as compressed run lengths of COCO.
    """

    image_processor: Any
    with_masks = False

    def postprocess(self, model_outputs, threshold=0.5) -> list[dict]:
        """Detections, the best first: `label`, `label_id`, `score`, and the box in pixels, `xmin` to `ymax`."""
        process = self.image_processor.post_process_object_detection
        if self.with_masks:
            process = self.image_processor.post_process_instance_segmentation
        found = process(model_outputs, threshold=threshold, target_sizes=model_outputs["target_size"])[0]
        rows = []
        for idx, (label, score, box) in enumerate(
            zip(*(found[key].tolist() for key in ("labels", "scores", "boxes")))
        ):
            row = {"label": self.model.config.id2label[label], "label_id": label, "score": score}
            row |= dict(zip(("xmin", "ymin", "xmax", "ymax"), box))
            if self.with_masks:
                row["segmentation"] = run_lengths(found["masks"][idx].numpy())
            rows.append(row)
        return rows


class LabelMapPipeline(ImageSegmentationPipeline):
    """The pipeline for semantic segmentation, with one label map instead of a mask for each class."""

    image_processor: Any

    def postprocess(self, model_outputs, **kwargs) -> np.ndarray:
        """Class indices, (height, width) of the original image."""
        sizes = model_outputs["target_size"]
        return self.image_processor.post_process_semantic_segmentation(model_outputs, target_sizes=sizes)[0].numpy()


class FeaturePipeline(ImageFeatureExtractionPipeline):
    """
    The pipeline for features, of which one kind is kept.

    Attributes:
        stage (`str`):
            `"pooled"`, or a name in `config.stage_names`.
    """

    stage = "pooled"

    def _forward(self, model_inputs) -> dict[str, torch.Tensor]:
        if self.stage == "pooled":
            return {"features": self.model(**model_inputs).pooler_output}
        hidden_states = self.model(**model_inputs, output_hidden_states=True).hidden_states
        return {"features": hidden_states[self.model.config.stage_names.index(self.stage)]}

    def postprocess(self, model_outputs, **kwargs) -> np.ndarray:
        """float32: (channels,) if pooled, else (channels, height, width)."""
        return model_outputs["features"][0].float().numpy()


def run_lengths(mask: np.ndarray) -> dict:
    """The mask (height, width), bool, in COCO's compressed format: `size` and `counts`."""
    coco_mask = import_extra("pycocotools.mask", "Masks in a .coco.json file")
    encoded = coco_mask.encode(np.asfortranarray(mask, dtype=np.uint8))
    return {"size": list(map(int, encoded["size"])), "counts": encoded["counts"].decode()}


def load_config(name: str) -> PreTrainedConfig:
    with _loading(name):
        return AutoConfig.from_pretrained(name)


def find_task(config: PreTrainedConfig, name: str) -> tuple[str, Any]:
    """The pipeline's task and the Auto class of a checkpoint called `name`."""
    fitting = [
        (task, auto_class, models[type(config)]) for task, auto_class, models in TASKS if type(config) in models
    ]
    for task, auto_class, model_class in fitting:  # configurations of transformers may have models of several tasks
        if model_class.__name__ in (config.architectures or ()):
            return task, auto_class
    if not fitting:
        raise CommandError(f"{name} is a model of type {config.model_type}: no classifier, detector or segmentation.")
    return fitting[0][:2]


def load_model(auto_class: Any, name: str, dtype: str = "float32") -> PreTrainedModel:
    """In evaluation mode. Raises a `CommandError` if weights are missing."""
    with _loading(name):
        model, info = auto_class.from_pretrained(name, dtype=getattr(torch, dtype), output_loading_info=True)
    if info["missing_keys"]:
        raise CommandError(
            f"{name} lacks weights of {type(model).__name__}, such as {sorted(info['missing_keys'])[0]}: it is a "
            "checkpoint for something else, or has not been trained for this."
        )
    return model.eval()


def load_pipeline(task: str, auto_class: Any, name: str, device: str | None, dtype: str, kernel: bool) -> Pipeline:
    """
    The pipeline of a checkpoint: [`DetectionPipeline`], [`LabelMapPipeline`], [`FeaturePipeline`] or that of
    transformers.

    Args:
        task, auto_class: As [`find_task`] returns them, or `"image-feature-extraction"` and `AutoModel`.
        name: A folder, or a repository of the Hub.
        device: Defaults to `"cuda"` where it is available, else `"cpu"`.
        dtype: One of `DTYPES`.
        kernel: Whether DCNv3 must run as the compiled kernel.
    """
    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    with complaints(RuntimeError, AssertionError, prefix=f"--device {device} cannot be used: "):
        torch.empty(0, device=device)
    with _loading(name):
        image_processor = AutoImageProcessor.from_pretrained(name)
    model: Any = load_model(auto_class, name, dtype)
    model = model.to(device)
    if kernel:
        with complaints(KernelNotAvailableError, prefix="--kernel: "):
            use_dcnv3_kernel(model, strict=True)
    classes: dict[str, Any] = {
        "object-detection": DetectionPipeline,
        "image-segmentation": LabelMapPipeline,
        "image-feature-extraction": FeaturePipeline,
    }
    return pipeline(
        task, model=model, image_processor=image_processor, device=device, pipeline_class=classes.get(task)
    )


def load_feature_pipeline(name: str, stage: str, **kwargs) -> FeaturePipeline:
    """[`load_pipeline`] for the features of an InternImage, whose `stage` must be "pooled" or one of its stages."""
    config = load_config(name)
    if config.model_type != "internimage":
        raise CommandError(
            f"{name} is a model of type {config.model_type}: features are those of an InternImage, of which a "
            "classifier's checkpoint, too, has the weights."
        )
    stages = ["pooled", *config.stage_names]
    if stage not in stages:
        raise CommandError(f"--stage {stage} must be one of {', '.join(stages)}.")
    features: Any = load_pipeline("image-feature-extraction", AutoModel, name, **kwargs)
    features.stage = stage
    return features


def gives_one_size(image_processor) -> bool:
    """Whether all images have the same size after the image processor, whatever size the files have."""
    size = dict(image_processor.size or {})
    fixed = bool(size.get("height") and size.get("width"))
    return bool(getattr(image_processor, "do_center_crop", None) or (image_processor.do_resize and fixed))


def _loading(name: str):
    return complaints(
        OSError, ValueError, RuntimeError, SafetensorError, ImportError, prefix=f"The model {name} cannot be loaded: "
    )
