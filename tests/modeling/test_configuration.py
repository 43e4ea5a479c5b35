# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
import pytest
from conftest import MANIFESTS, OFFICIAL_CONFIG
from huggingface_hub.errors import StrictDataclassError
from transformers import AutoConfig, ResNetConfig

from modeling_internimage import InternImageConfig


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
    assert config.num_hidden_layers == 4 and config.hidden_size == 512 and config.num_labels == 2
    assert (config.out_features, config.out_indices) == (["stage4"], [4])
    assert not caplog.messages


@pytest.mark.parametrize("name", MANIFESTS)
def test_official_names(name, caplog):
    official = MANIFESTS[name]["config"]
    config = InternImageConfig(**official, **OFFICIAL_CONFIG)
    for theirs, value in official.items():
        if theirs in ("norm_layer", "level2_post_norm", "label_smoothing"):
            continue
        expected = {"act_layer": "gelu", "dw_kernel_size": value or 3}.get(theirs, value)
        assert getattr(config, theirs) == expected, theirs
    saved = config.to_dict()
    assert not {"channels", "groups", "num_classes", "core_op", "with_cp", "norm_layer", "act_layer"} & set(saved)
    assert not caplog.messages


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"embed_dim": 50, "num_groups": [4, 8, 16, 32]}, "does not divide"),
        ({"embed_dim": 63}, "`embed_dim` must be even"),
        ({"depths": [1, 1, 1]}, "one entry per stage"),
        ({"depths": [1, 0, 1, 1]}, "`depths` must be positive"),
        ({"hidden_act": "gelú"}, "Unknown `hidden_act='gelú'`"),
        ({"act_layer": "Swoosh"}, "Unknown `hidden_act='swoosh'`"),
        ({"drop_path_type": "cosine"}, "Unknown `drop_path_type='cosine'`"),
        ({"drop_path_rate": 1.0}, "`drop_path_rate` must be at least 0 and below 1"),
        ({"depthwise_kernel_size": 4}, "`depthwise_kernel_size` must be odd"),
        ({"level2_post_norm_block_ids": [3, 18]}, "third stage .level 2., which has 18"),
        ({"level2_post_norm": True}, "needs `level2_post_norm_block_ids`"),
        ({"norm_layer": "BN"}, "`norm_layer='BN'` is not supported"),
        ({"core_op": "DCNv4"}, "`core_op='DCNv4'` is not supported"),
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
