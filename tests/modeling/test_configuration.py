# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
import random

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from testing_utils import MANIFESTS, OFFICIAL_CONFIG
from transformers import AutoConfig, BertConfig, ResNetConfig, VisionTextDualEncoderConfig, VisionTextDualEncoderModel
from transformers.utils import is_torchvision_available

from modeling_internimage import (
    InternImageConfig,
    InternImageModel,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
    SegformerHeadConfig,
    SegformerHeadForSemanticSegmentation,
)


NON_DEFAULT = {
    "num_channels": 4, "embed_dim": 48, "depths": [1, 2, 3, 1], "num_groups": [3, 6, 12, 24], "mlp_ratio": 2.5,
    "hidden_act": "relu", "hidden_dropout_prob": 0.1, "drop_path_rate": 0.2, "drop_path_type": "uniform",
    "layer_norm_eps": 1e-5, "layer_scale_init_value": 1e-5, "offset_scale": 2.0, "post_norm": True,
    "depthwise_kernel_size": 5, "center_feature_scale": True, "remove_center": True,
    "level2_post_norm_block_ids": [0, 2], "use_clip_projector": True, "cls_scale": 2.0, "image_size": 96,
    "initializer_range": 0.01, "out_features": ["stage2", "stage4"], "out_indices": [2, 4],
    "id2label": {0: "cat", 1: "dog", 2: "owl"}, "problem_type": "multi_label_classification",
}  # fmt: skip


def test_round_trip(tmp_path, caplog):
    """Every argument survives JSON unchanged."""
    config = InternImageConfig(**NON_DEFAULT)
    config.save_pretrained(tmp_path)
    loaded = AutoConfig.from_pretrained(tmp_path)
    assert type(loaded) is InternImageConfig
    for source in (config, loaded, InternImageConfig.from_dict(config.to_dict())):
        for name, value in NON_DEFAULT.items():
            assert getattr(source, name) == value and type(getattr(source, name)) is type(value), name
    assert not caplog.messages


def test_defaults_are_internimage_t(caplog):
    config = InternImageConfig()
    assert (config.depths, config.num_groups, config.hidden_sizes) == (
        [4, 4, 18, 4],
        [4, 8, 16, 32],
        [64, 128, 256, 512],
    )
    assert config.num_hidden_layers == 4 and config.hidden_size == 768 and config.num_labels == 2
    assert (config.out_features, config.out_indices) == (["stage4"], [4])
    assert not caplog.messages


@pytest.mark.parametrize("name", MANIFESTS)
def test_official_names(name, caplog):
    official = MANIFESTS[name]["config"]
    config = InternImageConfig(**(OFFICIAL_CONFIG | official))
    for theirs, value in official.items():
        if theirs in ("norm_layer", "level2_post_norm", "label_smoothing"):
            continue
        default_size = 3 if official.get("core_op") != "DCNv4" else None
        expected = {"act_layer": "gelu", "dw_kernel_size": value or default_size}.get(theirs, value)
        assert getattr(config, theirs) == expected, theirs
    saved = config.to_dict()
    assert not {"channels", "groups", "num_classes", "with_cp", "norm_layer", "act_layer"} & set(saved)
    assert not caplog.messages


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"embed_dim": 50, "num_groups": [4, 8, 16, 32]}, "does not divide"),
        ({"embed_dim": 63}, "`embed_dim` must be even"),
        ({"depths": [1, 1, 1]}, "one entry per stage"),
        ({"depths": [1, 0, 1, 1]}, "`depths` must be from 1 to 1000, got .1, 0, 1, 1."),
        ({"depths": [1] * 12, "num_groups": [1] * 12}, "12 entries of `depths`: the last stage would have more than"),
        ({"hidden_act": "gelú"}, "Unknown `hidden_act='gelú'`"),
        ({"act_layer": "Swoosh"}, "Unknown `hidden_act='swoosh'`"),
        ({"drop_path_type": "cosine"}, "Unknown `drop_path_type='cosine'`"),
        ({"drop_path_rate": 1.0}, "`drop_path_rate` must be from 0 to 0.99, got 1.0"),
        ({"embed_dim": 2, "num_groups": [1, 1, 1, 1], "mlp_ratio": 0.4}, "`mlp_ratio=0.4` leaves none of 2 channels"),
        ({"image_size": (224, 224, 3)}, "`image_size` must be one number, or a height and a width"),
        ({"depthwise_kernel_size": 4}, "`depthwise_kernel_size` must be odd"),
        ({"level2_post_norm_block_ids": [3, 18]}, "third stage .level 2., which has 18"),
        ({"level2_post_norm": True}, "needs `level2_post_norm_block_ids`"),
        ({"norm_layer": "BN"}, "`norm_layer='BN'` is not supported"),
        ({"core_op": "DCNv5"}, "`core_op='DCNv5'` is not supported. Choose 'DCNv3' .* or 'DCNv4'"),
        ({"core_op": "DCNv4", "use_clip_projector": True}, "`use_clip_projector=True` with `core_op='DCNv4'`"),
        ({"depths": [1], "num_groups": [4], "use_clip_projector": True}, "pools the last two stages"),
        ({"out_features": ["stage5"]}, "stage5"),
        ({"out_features": ["stage1"], "out_indices": [2]}, "correspond to the same stages"),
        ({"depths": "4"}, "depths"),
    ],
    ids=str,
)
def test_rejected(arguments, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        InternImageConfig(**arguments)


def test_too_many_stages():
    with pytest.raises((ValueError, StrictDataclassError), match="10000 entries of `depths`"):
        InternImageConfig(depths=[1] * 10**4, num_groups=[1] * 10**4)


NUMBERS = {
    InternImageConfig: (
        "num_channels", "embed_dim", "mlp_ratio", "hidden_dropout_prob", "drop_path_rate", "layer_norm_eps",
        "layer_scale_init_value", "offset_scale", "depthwise_kernel_size", "cls_scale", "image_size",
        "initializer_range", "num_labels",
    ),
    MaskRCNNConfig: (
        "hidden_size", "anchor_scale", "num_proposals", "box_head_num_conv_layers", "box_roi_size", "score_threshold",
        "max_detections", "rpn_smooth_l1_beta", "box_loss_weight", "num_labels",
    ),
    SegformerHeadConfig: ("hidden_size", "classifier_dropout_prob", "initializer_range", "num_labels"),
}  # fmt: skip


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -1, 10**9, 1e9, True])
@pytest.mark.parametrize("config_class, name", [(key, name) for key, names in NUMBERS.items() for name in names])
def test_numbers_that_make_no_model(config_class, name, number):
    with pytest.raises((ValueError, StrictDataclassError), match=name):
        config_class(**{name: number})


TINY = {"embed_dim": 16, "depths": [1, 1], "num_groups": [1, 2], "out_features": ["stage1", "stage2"]}
MODELS = {
    InternImageModel: lambda **changes: InternImageConfig(**(TINY | changes)),
    MaskRCNNForObjectDetection: lambda **changes: MaskRCNNConfig(
        **({"backbone_config": InternImageConfig(**TINY), "feature_strides": [4, 8]} | changes)
    ),
    SegformerHeadForSemanticSegmentation: lambda **changes: SegformerHeadConfig(
        **({"backbone_config": InternImageConfig(**TINY)} | changes)
    ),
}


@pytest.mark.parametrize("model_class", MODELS)
def test_damaged_configurations(model_class):
    """Fields at random, values at random: the model can be built, or an error names a field."""
    if model_class is MaskRCNNForObjectDetection and not is_torchvision_available():
        pytest.skip("Mask R-CNN needs torchvision")
    random.seed(0)
    names = [
        name for name in model_class.config_class.__annotations__ if name not in ("model_type", "backbone_config")
    ]
    names = [name.removeprefix("_") for name in names if name != "attribute_map"] + ["num_labels"]
    numbers = [float("nan"), float("inf"), -1, -0.5, 0, 0.5, 1, 2, 3, 7, 64, 10**5, 10**12, -(10**12), 1e300, 1e-300]
    values = [*numbers, True, None, "", "4", "gelu", {}, [], [[]], [None], ["stage1"], "stage9"]
    values += (
        [[number] for number in numbers] + [[number] * 2 for number in numbers] + [[[1, 1, 1, 1]], (1, 2), [1] * 99]
    )
    num_built = 0
    for _ in range(600):
        changes = {random.choice(names): random.choice(values) for _ in range(random.choice([1, 1, 2]))}
        try:
            config = MODELS[model_class](**changes)
            with torch.device("meta"):
                model_class(config)
        except (ValueError, StrictDataclassError) as error:
            # (A wrong `depths` may be found where `out_features` do not fit it.)
            assert any(name in str(error) for name in [*changes, "out_features"]), (changes, error)
        else:
            num_built += 1
    assert 20 < num_built < 400


@pytest.mark.parametrize("image_size", [(224, 320), [224, 320]])
def test_rectangular_image_size(image_size, tmp_path):
    InternImageConfig(image_size=image_size).save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).image_size == [224, 320]


@pytest.mark.parametrize("use_clip_projector, hidden_size", [(False, 48), (True, 768)])
@torch.no_grad()
def test_vision_text_dual_encoder(use_clip_projector, hidden_size):
    """`hidden_size` is that of `pooler_output`, which is projected."""
    text = BertConfig(
        hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, vocab_size=50
    )  # fmt: skip
    vision = InternImageConfig(embed_dim=16, depths=[1, 1], num_groups=[1, 2], use_clip_projector=use_clip_projector)
    assert vision.hidden_size == hidden_size
    config = VisionTextDualEncoderConfig.from_vision_text_configs(vision, text, projection_dim=16)
    model = VisionTextDualEncoderModel(config).eval()
    outputs = model(input_ids=torch.tensor([[1, 2, 3]]), pixel_values=torch.randn(2, 3, 64, 64))
    assert outputs.logits_per_image.shape == (2, 1) and outputs.image_embeds.shape == (2, 16)
    assert outputs.vision_model_output.pooler_output.shape == (2, hidden_size)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"res_post_norm": True, "post_norm": True}, "`res_post_norm=True` has no effect"),
        ({"res_post_norm": True, "layer_scale": 1e-5}, "because `layer_scale_init_value` is set"),
        ({"level2_post_norm": False, "level2_post_norm_block_ids": [1]}, "is ignored"),
        ({"with_cp": True}, "gradient_checkpointing_enable"),
    ],
    ids=str,
)
def test_flags_that_override_each_other_warn(arguments, message, caplog):
    InternImageConfig(**arguments)
    assert any(message in warning for warning in caplog.messages), caplog.messages


def test_other_model_type(tmp_path):
    ResNetConfig().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="`model_type='resnet'`, not 'internimage'"):
        InternImageConfig.from_pretrained(tmp_path)
