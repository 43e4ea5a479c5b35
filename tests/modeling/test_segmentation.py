# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Segmentation: image processing, inference, the SegFormer head. Numbers of whole models: tests/conversion."""

import json

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from testing_utils import GOLDEN, randomize
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    Mask2FormerConfig,
    Mask2FormerForUniversalSegmentation,
    ResNetConfig,
    SegformerConfig,
    SegformerForSemanticSegmentation,
    UperNetConfig,
    UperNetForSemanticSegmentation,
)
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

from examples.benchmark.measuring import peak_memory_mib
from modeling_internimage import (
    SegformerHeadConfig,
    SegformerHeadForSemanticSegmentation,
    create_image_processor,
    segment_image,
    semantic_scores,
    window_scores,
)
from modeling_internimage.resizing import resize_bilinear
from modeling_internimage.segmentation import MASK2FORMER_IMAGE_PROCESSOR_CLASSES, SEGMENTATION_IMAGE_PROCESSOR_CLASSES
from modeling_internimage.segmentation.inference import _add_probabilities


PREPROCESS = json.loads((GOLDEN / "segmentation" / "preprocess.json").read_text())["description"]
BACKENDS = sorted(SEGMENTATION_IMAGE_PROCESSOR_CLASSES)
INPUTS = {"ade": ([451, 0], (37, 53, 3)), "ade_tall": ([451, 1], (70, 30, 3)), "city": ([451, 2], (32, 64, 3))}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("name", INPUTS)
def test_golden_preprocessing(name, backend):
    """Bytes equal OpenCV's, the normalised numbers the original's; label maps come out at the same size."""
    arrays, description = np.load(GOLDEN / "segmentation" / "preprocess.npz"), PREPROCESS[name]
    seed, shape = INPUTS[name]
    image = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, shape, np.uint8)
    longest_edge, shortest_edge = description["img_scale"]
    image_processor = SEGMENTATION_IMAGE_PROCESSOR_CLASSES[backend](
        size={"shortest_edge": shortest_edge, "longest_edge": longest_edge},
        size_divisor=description["resize_to_multiple"],
    )
    resized = image_processor(image, do_rescale=False, do_normalize=False, return_tensors="np")["pixel_values"][0]
    np.testing.assert_array_equal(resized.transpose(1, 2, 0), arrays[f"{name}.resized_uint8_rgb"])
    batch = image_processor(Image.fromarray(image), segmentation_maps=image[..., 0], return_tensors="pt")
    expected = torch.from_numpy(arrays[f"{name}.normalised_hwc"]).permute(2, 0, 1)[None]
    torch.testing.assert_close(batch["pixel_values"], expected, rtol=0, atol=2e-6)
    assert batch["labels"].shape == batch["pixel_values"].shape[:1] + batch["pixel_values"].shape[2:]
    assert batch["labels"].dtype == torch.int64 and set(batch["labels"].unique().tolist()) <= set(range(256))


@pytest.mark.parametrize("size", [(1, 1), (1, 9), (7, 1), (5, 4), (40, 33)])
def test_resizing_of_floats_and_bytes_agree(size):
    """To one byte, but for rounding."""
    image = torch.randint(0, 256, (3, 10, 13), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    difference = resize_bilinear(image, *size).float() - resize_bilinear(image.double(), *size)
    assert difference.abs().max() <= 1
    assert resize_bilinear(image, 10, 13) is image


@pytest.mark.parametrize("backend", BACKENDS)
def test_label_maps(backend):
    """Nearest pixels; with `do_reduce_labels` 0 becomes 255 and the others one less."""
    image_processor = SEGMENTATION_IMAGE_PROCESSOR_CLASSES[backend](size={"height": 64, "width": 32})
    labels = np.array([[0, 1], [150, 255]], dtype=np.uint8)
    image = np.zeros((2, 2, 3), np.uint8)
    corners = np.s_[..., ::63, ::31]
    for reduce, expected in ((False, [[0, 1], [150, 255]]), (True, [[255, 0], [149, 255]])):
        batch = image_processor(image, segmentation_maps=labels.copy(), do_reduce_labels=reduce, return_tensors="pt")
        assert batch["labels"][0][corners].tolist() == expected and set(batch["labels"].unique().tolist()) == {
            value for row in expected for value in row
        }


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_processor_round_trip(backend, tmp_path):
    windows = {"window_size": {"height": 64, "width": 64}, "window_stride": {"height": 32, "width": 48}}
    size = {"shortest_edge": 64, "longest_edge": 256}
    image_processor = SEGMENTATION_IMAGE_PROCESSOR_CLASSES[backend](size=size, size_divisor=32, **windows)
    image_processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path, backend=backend)
    assert type(loaded) is type(image_processor) and loaded.to_dict() == image_processor.to_dict()
    assert loaded.window_stride == windows["window_stride"] and loaded.size_divisor == 32


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_processor_of_mask2former(backend, tmp_path):
    """Found by its name, where transformers' own also is. Only this one has what `pipeline` takes for instances."""
    MASK2FORMER_IMAGE_PROCESSOR_CLASSES[backend](size={"height": 64, "width": 32}).save_pretrained(tmp_path / "ours")
    kind = {"pil": "Mask2FormerImageProcessorPil", "torchvision": "Mask2FormerImageProcessor"}[backend]
    getattr(transformers, kind)().save_pretrained(tmp_path / "theirs")
    ours, theirs = (
        AutoImageProcessor.from_pretrained(tmp_path / name, backend=backend) for name in ("ours", "theirs")
    )
    assert type(ours) is MASK2FORMER_IMAGE_PROCESSOR_CLASSES[backend] and type(theirs).__name__ == kind
    for name in ("post_process_instance_segmentation", "post_process_panoptic_segmentation"):
        assert hasattr(ours, name) and not hasattr(SEGMENTATION_IMAGE_PROCESSOR_CLASSES[backend], name)


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_of_one_pixel_and_wrong_size(backend):
    image_processor = SEGMENTATION_IMAGE_PROCESSOR_CLASSES[backend](size={"shortest_edge": 32, "longest_edge": 128})
    pixel = Image.new("RGB", (1, 1), (1, 2, 3))
    assert image_processor(pixel, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 32)
    assert image_processor(pixel, size={"shortest_edge": 20}, return_tensors="pt")["pixel_values"].shape[2:] == (
        20,
        20,
    )
    with pytest.raises(ValueError, match="`size` must have `shortest_edge`, `longest_edge` or both, or `height` and"):
        image_processor(pixel, size={"max_height": 32, "max_width": 32})


class Stripes(nn.Module):
    """Logits that depend on the place in the input and on the input: class 0 counts columns, class 1 is the red."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.tensor(0.1))
        self.sizes = []

    def forward(self, pixel_values):
        self.sizes.append(tuple(pixel_values.shape[-2:]))
        columns = torch.arange(pixel_values.shape[-1]).expand(pixel_values[:, 0].shape)
        return SemanticSegmenterOutput(logits=torch.stack((columns * self.scale, pixel_values[:, 0]), dim=1))


def test_windows():
    """Their places, and that every pixel is the mean over the windows that cover it."""
    model = Stripes()
    pixel_values = torch.randn(1, 3, 5, 11)
    side = {"height": 4, "width": 6}
    scores = window_scores(model, pixel_values, side, {"height": 3, "width": 4})
    assert model.sizes == [(4, 6)] * 6  # rows at 0 and 1, columns at 0, 4 and 5
    torch.testing.assert_close(scores[0, 1], pixel_values[0, 0])
    starts = [[start for start in (0, 4, 5) if start <= column < start + 6] for column in range(11)]
    expected = [sum(0.1 * (column - start) for start in own) / len(own) for column, own in enumerate(starts)]
    torch.testing.assert_close(scores[0, 0], torch.tensor(expected).expand(5, 11))
    model.sizes.clear()
    window_scores(model, pixel_values, {"height": 8, "width": 32}, {"height": 8, "width": 8})
    assert model.sizes == [(5, 11)]  # never beyond the image


def test_windows_without_a_stride():
    """They lie side by side; a stride that leaves pixels out is refused."""
    model = Stripes()
    pixel_values = torch.randn(1, 3, 8, 12)
    scores = window_scores(model, pixel_values, {"height": 4, "width": 6}, None)
    assert model.sizes == [(4, 6)] * 4
    torch.testing.assert_close(scores[0, 0, 0], 0.1 * torch.arange(6.0).repeat(2))
    image_processor = SEGMENTATION_IMAGE_PROCESSOR_CLASSES["pil"](
        size={"height": 8, "width": 12}, window_size={"height": 4, "width": 6}
    )
    assert segment_image(model, image_processor, np.zeros((10, 10, 3), np.uint8)).shape == (2, 10, 10)
    for stride in (0, 7):
        with pytest.raises(ValueError, match=f"`window_stride` must be above 0 and .*, got {stride} and 6: every"):
            window_scores(model, pixel_values, {"height": 8, "width": 6}, {"height": 8, "width": stride})


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
def test_scales_and_mirror_images(backend, photographs):
    """The mean of the probabilities of single runs, at the size of the image."""
    model = Stripes()
    image_processor = SEGMENTATION_IMAGE_PROCESSOR_CLASSES[backend](
        size={"shortest_edge": 30, "longest_edge": 64}, size_divisor=16
    )
    image = photographs[1][:40, :60]
    probabilities = segment_image(model, image_processor, Image.fromarray(image), scales=(1.0, 1.5), flip=True)
    assert model.sizes == [(32, 48)] * 2 + [(48, 80)] * 2  # 30x45 and 45x68 pixels, up to multiples of 16
    runs = [segment_image(model, image_processor, image, scales=(scale,)) for scale in (1.0, 1.5)]
    mirrored = np.ascontiguousarray(image[:, ::-1])
    runs += [segment_image(model, image_processor, mirrored, scales=(scale,)).flip(-1) for scale in (1.0, 1.5)]
    assert probabilities.shape == (2, 40, 60)
    # (Resizing bytes of a mirror image is not quite the mirror image of resized bytes.)
    torch.testing.assert_close(probabilities, torch.stack(runs).mean(dim=0), rtol=0, atol=2e-3)
    with pytest.raises(ValueError, match="`scales` must be one or more factors above 0"):
        segment_image(model, image_processor, image, scales=())


def test_scores_of_mask2former():
    """Two queries by hand: probabilities of classes times those of masks; the class `no object` counts for nothing."""
    logits = torch.log(torch.tensor([[[0.5, 0.25, 0.25], [0.1, 0.1, 0.8]]]))
    masks = torch.logit(torch.tensor([0.5, 0.9])).view(1, 2, 1, 1).expand(1, 2, 2, 3)
    outputs = Mask2FormerForUniversalSegmentationOutput(class_queries_logits=logits, masks_queries_logits=masks)
    scores = semantic_scores(outputs)
    assert scores.shape == (1, 2, 8, 12)
    torch.testing.assert_close(scores[0, :, 0, 0], torch.tensor([0.5 * 0.5 + 0.1 * 0.9, 0.25 * 0.5 + 0.1 * 0.9]))


def tiny_mask2former(tiny_config):
    backbone_config = tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = Mask2FormerConfig(
        backbone_config=backbone_config, feature_size=32, mask_feature_size=32, hidden_dim=32,
        encoder_feedforward_dim=16, dim_feedforward=16, num_attention_heads=2, encoder_layers=1, decoder_layers=2,
        num_queries=5, num_labels=4,
    )  # fmt: skip
    return randomize(Mask2FormerForUniversalSegmentation(config))


def tiny_segformer(tiny_config):
    """Of transformers: its logits have a quarter of the size."""
    config = SegformerConfig(hidden_sizes=[8, 8, 16, 16], depths=[1, 1, 1, 1], num_attention_heads=[1, 1, 2, 2],
                             decoder_hidden_size=8, num_labels=4)  # fmt: skip
    return randomize(SegformerForSemanticSegmentation(config))


@torch.no_grad()
@pytest.mark.parametrize("window", [None, {"height": 33, "width": 45}], ids=["whole", "windows"])
@pytest.mark.parametrize("build", [tiny_mask2former, tiny_segformer])
def test_inputs_whose_size_is_no_multiple_of_4(build, window, tiny_config):
    """In the order of the original: quarter of the input, size of the input (or window), size of the image."""
    model = build(tiny_config)
    stride = window and {"height": 20, "width": 20}
    image_processor = SEGMENTATION_IMAGE_PROCESSOR_CLASSES["pil"](
        size={"height": 37, "width": 50}, window_size=window, window_stride=stride
    )
    image = torch.randint(0, 256, (3, 61, 90), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    total, count = torch.zeros(1, 4, 37, 50), torch.zeros(37, 50)
    for top, bottom in ((0, 37),) if window is None else ((0, 33), (4, 37)):
        for left, right in ((0, 50),) if window is None else ((0, 45), (5, 50)):
            outputs = model(pixel_values[..., top:bottom, left:right])
            if build is tiny_mask2former:
                classes = outputs.class_queries_logits.softmax(dim=-1)[..., :4]
                quarter = torch.einsum("bqc,bqhw->bchw", classes, outputs.masks_queries_logits.sigmoid())
            else:
                quarter = outputs.logits
            assert quarter.shape[-2:] == (-(-(bottom - top) // 4), -(-(right - left) // 4))
            total[..., top:bottom, left:right] += nn.functional.interpolate(
                quarter, size=(bottom - top, right - left), mode="bilinear"
            )
            count[top:bottom, left:right] += 1
    expected = nn.functional.interpolate(total / count, size=(61, 90), mode="bilinear")[0].softmax(dim=0)
    torch.testing.assert_close(segment_image(model, image_processor, image), expected)


class Pointwise(nn.Module):
    """Logits of every pixel, or of every fourth row and column."""

    def __init__(self, num_labels: int, stride: int):
        super().__init__()
        self.classifier = nn.Conv2d(3, num_labels, kernel_size=1)
        self.stride = stride

    def forward(self, pixel_values):
        return SemanticSegmenterOutput(logits=self.classifier(pixel_values[..., :: self.stride, :: self.stride]))


@pytest.mark.parametrize(
    "size, window, stride, options",
    [
        (60, None, 1, {}),
        (60, None, 4, {"flip": True}),
        (60, 40, 1, {"scales": (0.75, 1.0, 1.5), "flip": True}),
        (300, None, 1, {}),
    ],
    ids=["one scale", "mirrored", "windows", "size of the image"],
)
def test_memory_is_that_of_the_result(size, window, stride, options):
    """Tensors above weights and input. (Where several scales are as large as the image, the model's output counts.)"""
    window = window and {"height": window, "width": window}
    image_processor = SEGMENTATION_IMAGE_PROCESSOR_CLASSES["pil"](
        size={"height": size, "width": size * 4 // 3}, window_size=window
    )
    model, image = Pointwise(40, stride), np.zeros((300, 400, 3), np.uint8)
    peak = peak_memory_mib(lambda: segment_image(model, image_processor, image, **options), "cpu")
    assert peak < 1.3 * 40 * 300 * 400 * 4 / 2**20


@pytest.mark.parametrize("size", [(37, 50), (123, 77), (300, 8), (9, 200), (61, 90), (1, 1)], ids=str)
def test_bands_of_rows(size, monkeypatch):
    """Also very small ones are parts of the whole: `interpolate` and softmax at once."""
    monkeypatch.setattr("modeling_internimage.segmentation.inference.MIN_BAND", 1)
    scores = [4 * torch.randn(3, height, 50, generator=torch.Generator().manual_seed(height)) for height in (37, 100)]
    total, expected = None, 0
    for mirrored, score in enumerate(scores):
        whole = nn.functional.interpolate(score[None], size=size, mode="bilinear", align_corners=False)[0].softmax(
            dim=0
        )
        expected += whole.flip(-1) if mirrored else whole
        total = _add_probabilities(total, score.clone(), size, bool(mirrored))
    torch.testing.assert_close(total, expected, rtol=1e-5, atol=1e-5)


@torch.no_grad()
@pytest.mark.parametrize(
    "kind, options, inside",
    [("SegformerImageProcessor", {}, (40, 56)), ("Mask2FormerImageProcessor", {}, (64, 64)),
     ("Mask2FormerImageProcessor", {"pad_size": {"height": 80, "width": 96}}, (64, 64))],
)  # fmt: skip
def test_image_processors_of_transformers(kind, options, inside, tiny_config, photographs):
    """They know no windows; what is padded is no part of the image, mirrored or not."""
    model = tiny_mask2former(tiny_config)
    image_processor = getattr(transformers, kind)(size={"height": 40, "width": 56}, **options)
    image = Image.fromarray(photographs[0][:61, :90])
    pixel_values = image_processor(image, return_tensors="pt")["pixel_values"]
    assert pixel_values.shape[-2:] == ((80, 96) if options else inside)
    height, width = inside
    expected = 0
    for mirrored in (False, True):
        if mirrored:
            pixel_values[..., :width] = pixel_values[..., :width].flip(-1)
        scores = semantic_scores(model(pixel_values), pixel_values.shape[-2:])[..., :height, :width]
        scores = nn.functional.interpolate(scores, size=(61, 90), mode="bilinear")[0].softmax(dim=0) / 2
        expected += scores.flip(-1) if mirrored else scores
    torch.testing.assert_close(segment_image(model, image_processor, image, flip=True), expected, rtol=1e-5, atol=1e-5)


def test_what_segment_image_cannot_do():
    image, segmenter = np.zeros((20, 20, 3), np.uint8), SEGMENTATION_IMAGE_PROCESSOR_CLASSES["pil"]
    with pytest.raises(ValueError, match="The model has a single class, to which every pixel would belong"):
        segment_image(Pointwise(1, 1), segmenter(size={"height": 8, "width": 8}), image)
    with pytest.raises(ValueError, match=r"\(CLIPImageProcessorPil\) must make one input of the whole image"):
        segment_image(Pointwise(2, 1), create_image_processor(16, "pil"), image)
    with pytest.raises(ValueError, match="`num_labels=1` must be 2 or more: for one kind of object use 2"):
        SegformerHeadForSemanticSegmentation(SegformerHeadConfig(num_labels=1))


@pytest.fixture
def segformer_head(tiny_config):
    backbone_config = tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"])
    config = SegformerHeadConfig(backbone_config=backbone_config, hidden_size=16, num_labels=5)
    return randomize(SegformerHeadForSemanticSegmentation(config))


@torch.no_grad()
def test_segformer_head_round_trip(segformer_head, tmp_path):
    segformer_head.save_pretrained(tmp_path)
    loaded, info = AutoModelForSemanticSegmentation.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()) and type(loaded) is SegformerHeadForSemanticSegmentation
    pixel_values = torch.randn(2, 3, 37, 70)
    logits = segformer_head(pixel_values).logits
    assert logits.shape == (2, 5, 37, 70)
    torch.testing.assert_close(loaded(pixel_values).logits, logits)
    (only,) = loaded(pixel_values, return_dict=False)
    torch.testing.assert_close(only, logits)
    assert len(loaded(pixel_values, output_hidden_states=True).hidden_states) == 5


def test_segformer_head_loss(segformer_head):
    """The mean over the pixels that are not ignored, and 0 if there are none."""
    pixel_values, labels = torch.randn(1, 3, 32, 32), torch.randint(0, 5, (1, 32, 32))
    labels[0, :7] = 255
    outputs = segformer_head(pixel_values, labels=labels)
    expected = nn.functional.cross_entropy(outputs.logits.double(), labels, ignore_index=255)
    torch.testing.assert_close(outputs.loss, expected.float())
    segformer_head(pixel_values, labels=torch.full_like(labels, 255)).loss.backward()
    assert all(parameter.grad is None or not parameter.grad.any() for parameter in segformer_head.parameters())


@torch.no_grad()
@pytest.mark.parametrize("kind", ["segformer", "upernet"])
def test_feature_maps_reach_the_head_where_they_are(kind, segformer_head, tiny_config):
    """
    What the last module of a stage has written is the memory that the head's first modules read, in channels-last
    order, and no operator in the head is one that only copies. (What kernels do inside is not seen.)
    """

    class Copies(TorchDispatchMode):
        operators = []

        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            if any(part in str(function) for part in ("clone", "copy", "contiguous")):
                self.operators.append(str(function))
            return function(*args, **(kwargs or {}))

    model = segformer_head
    if kind == "upernet":
        backbone_config = tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"])
        model = UperNetForSemanticSegmentation(UperNetConfig(backbone_config=backbone_config, hidden_size=8)).eval()
    written, read = [], []
    for stage in model.backbone.encoder.stages:
        stage.norm.register_forward_hook(lambda module, inputs, output: written.append(output))
    for module in model.decode_head.modules():
        if isinstance(module, (nn.Conv2d, nn.AdaptiveAvgPool2d)):
            module.register_forward_pre_hook(lambda module, inputs: read.append(inputs[0]))
    feature_maps = model.backbone(torch.randn(2, 3, 96, 64)).feature_maps
    with Copies() as copies:
        model.decode_head(feature_maps)
    assert copies.operators == []
    for channels_last in written:
        assert channels_last.is_contiguous()
        same = [tensor for tensor in read if tensor.data_ptr() == channels_last.data_ptr()]
        assert same and all(torch.equal(tensor, channels_last.permute(0, 3, 1, 2)) for tensor in same)
        assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in same)
    assert len(written) == 4


def test_segformer_head_training(segformer_head):
    """The loss ignores 255, and gradient checkpointing changes no gradient."""
    segformer_head.train()
    segformer_head.decode_head.dropout.p = 0.0
    pixel_values, labels = torch.randn(2, 3, 64, 64), torch.randint(0, 5, (2, 64, 64))
    labels[:, :, 32:] = 255
    outputs = segformer_head(pixel_values, labels=labels)
    expected = nn.functional.cross_entropy(outputs.logits[..., :32], labels[..., :32])
    torch.testing.assert_close(outputs.loss, expected)
    gradients = torch.autograd.grad(outputs.loss, list(segformer_head.parameters()))
    segformer_head.gradient_checkpointing_enable()
    loss = segformer_head(pixel_values, labels=labels).loss
    again = torch.autograd.grad(loss, list(segformer_head.parameters()))
    for gradient, other in zip(gradients, again):
        torch.testing.assert_close(gradient, other, rtol=1e-4, atol=1e-6)


def test_segformer_head_on_another_backbone():
    backbone_config = ResNetConfig(
        embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1], layer_type="basic",
        out_features=["stage1", "stage2", "stage3", "stage4"],
    )  # fmt: skip
    model = SegformerHeadForSemanticSegmentation(SegformerHeadConfig(backbone_config=backbone_config, num_labels=3))
    assert model(torch.randn(1, 3, 64, 96)).logits.shape == (1, 3, 64, 96)


def test_upernet_trains_with_its_auxiliary_head(tiny_config):
    backbone_config = tiny_config(out_features=["stage1", "stage2", "stage3", "stage4"])
    model = UperNetForSemanticSegmentation(
        UperNetConfig(backbone_config=backbone_config, hidden_size=8, auxiliary_channels=8, num_labels=3)
    )
    loss = model(torch.randn(2, 3, 64, 64), labels=torch.zeros(2, 64, 64, dtype=torch.long)).loss
    loss.backward()
    assert model.backbone.embeddings.convolution1.weight.grad.abs().sum() > 0
    assert model.auxiliary_head.classifier.weight.grad is not None


@torch.no_grad()
@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "CMYK"])
def test_images_of_other_modes(mode, backend, photographs):
    image_processor = SEGMENTATION_IMAGE_PROCESSOR_CLASSES[backend](size={"shortest_edge": 32, "longest_edge": 64})
    image = Image.fromarray(photographs[0][:40, :50]).convert(mode)
    assert image_processor(image, return_tensors="pt")["pixel_values"].shape == (1, 3, 32, 40)
    assert segment_image(Stripes(), image_processor, image).shape == (2, 40, 50)


@pytest.mark.parametrize("backend", BACKENDS)
def test_what_the_original_s_resizing_cannot_do(backend):
    image_processor = SEGMENTATION_IMAGE_PROCESSOR_CLASSES[backend](size={"height": 8, "width": 8})
    image = np.zeros((4, 4, 3), np.uint8)
    with pytest.raises(ValueError, match="`resample` must be bilinear"):
        image_processor(image, resample=3)
    with pytest.raises(ValueError, match="must be uint8 or floating point, got torch.uint16"):
        resize_bilinear(torch.zeros(3, 4, 4, dtype=torch.uint16), 8, 8)
