# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Deployment of exported models: pictures in and results out without torch, the pages, the browser."""

import functools
import http.server
import re
import shlex
import shutil
import subprocess
import sys
import threading

import numpy as np
import pytest
import torch
from PIL import Image
from testing_utils import REPOSITORY, randomize, run_module
from transformers import UperNetConfig, UperNetForSemanticSegmentation
from transformers.modeling_outputs import SemanticSegmenterOutput
from transformers.models.mask2former.modeling_mask2former import Mask2FormerForUniversalSegmentationOutput

import modeling_internimage
from examples.deployment import preprocessing
from modeling_internimage import (
    DinoDetrConfig,
    DinoDetrForObjectDetection,
    DinoDetrImageProcessorPil,
    DinoDetrObjectDetectionOutput,
    InternImageConfig,
    InternImageForImageClassification,
    InternImageMask2FormerImageProcessorPil,
    InternImageSegmentationImageProcessorPil,
    MaskRCNNImageProcessorPil,
    MaskRCNNObjectDetectionOutput,
    create_image_processor,
)
from modeling_internimage.export import export_onnx


def build_image_processor(name: str, backend: str, options: dict):
    if name == "classifier":
        return create_image_processor(**options, backend=backend)
    return getattr(modeling_internimage, name + {"pil": "Pil", "torchvision": ""}[backend])(**options)


@pytest.mark.parametrize(
    "name, options, grey_values",  # by which torchvision's pixels may differ: it rounds bicubic resizing otherwise
    [
        ("classifier", {"image_size": 224}, 1),
        ("classifier", {"image_size": (96, 160)}, 1),
        ("InternImageSegmentationImageProcessor", {}, 0),
        ("InternImageSegmentationImageProcessor", {"size": {"longest_edge": 300}, "size_divisor": 32}, 0),
        ("MaskRCNNImageProcessor", {}, 0),
        ("DinoDetrImageProcessor", {"size": {"longest_edge": 256}, "pad_size": {"height": 256, "width": 256}}, 0),
    ],
)
def test_pixels_are_those_of_the_image_processors(name, options, grey_values, photographs, tmp_path):
    with_pillow, with_torchvision = (
        build_image_processor(name, backend, options) for backend in ("pil", "torchvision")
    )
    with_pillow.save_pretrained(tmp_path)
    settings = preprocessing.read_json(tmp_path, "preprocessor_config.json")
    for photograph in photographs:
        image = Image.fromarray(photograph)
        inputs = preprocessing.preprocess(image, settings)
        expected = with_pillow(image, return_tensors="np")
        assert inputs.keys() == expected.keys()
        for key, array in inputs.items():
            np.testing.assert_array_equal(array, expected[key])
            assert array.dtype == expected[key].dtype and array.flags.c_contiguous
        grey_value = 1 / 255 / np.array(settings["image_std"])[:, None, None]
        difference = inputs["pixel_values"] - with_torchvision(image, return_tensors="np")["pixel_values"]
        assert np.abs(difference / grey_value).max() < grey_values + 1e-3


@pytest.mark.parametrize(
    "name, options, same_by_options",
    [
        ("InternImageSegmentationImageProcessor", {"size_divisor": 32}, {"size": {"height": 64, "width": 96}}),
        ("MaskRCNNImageProcessor", {}, {"size": {"height": 64, "width": 64}, "pad_size": {"height": 64, "width": 96}}),
    ],
)
def test_pixels_for_a_file_of_a_fixed_size(name, options, same_by_options, photographs):
    image = Image.fromarray(photographs[0])  # a square
    settings = build_image_processor(name, "pil", options).to_dict()
    inputs = preprocessing.preprocess(image, settings, (64, 96))
    for key, expected in build_image_processor(name, "pil", same_by_options)(image, return_tensors="np").items():
        np.testing.assert_array_equal(inputs[key], expected)
    open_size = preprocessing.preprocess(image, settings, ("height", "width"))
    np.testing.assert_array_equal(open_size["pixel_values"], preprocessing.preprocess(image, settings)["pixel_values"])


@pytest.mark.parametrize("size", [(50, 90), (31, 20)])
def test_label_maps_are_those_of_the_image_processor(size):
    generator = torch.Generator().manual_seed(0)
    image_processor = InternImageMask2FormerImageProcessorPil()
    for outputs in (
        SemanticSegmenterOutput(logits=torch.randn(1, 7, 32, 48, generator=generator)),
        Mask2FormerForUniversalSegmentationOutput(
            class_queries_logits=torch.randn(1, 20, 8, generator=generator),
            masks_queries_logits=3 * torch.randn(1, 20, 8, 12, generator=generator),
        ),
    ):
        expected = image_processor.post_process_semantic_segmentation(outputs, target_sizes=[size])[0]
        labels = preprocessing.label_map({name: tensor.numpy() for name, tensor in outputs.items()}, *size)
        assert labels.shape == size and (labels == expected.numpy()).mean() > 0.999  # ties, within rounding


@pytest.mark.parametrize("threshold", [0.0, 0.5, 0.999])
def test_detections_are_those_of_the_image_processors(threshold):
    generator = torch.Generator().manual_seed(0)
    centre, size = torch.rand(2, 1, 40, 2, generator=generator)
    size[:, 3, 0] = 0  # a box without width
    boxes, size = torch.cat([centre, size], dim=-1), (70, 110)
    scores = torch.rand(1, 40, generator=generator).sort(descending=True).values
    mask_rcnn = MaskRCNNObjectDetectionOutput(
        pred_boxes=boxes,
        pred_scores=scores,
        pred_labels=torch.arange(40)[None],
        pred_masks=torch.randn(1, 40, 28, 28, generator=generator),
    )
    dino = DinoDetrObjectDetectionOutput(pred_boxes=boxes, logits=torch.randn(1, 40, 5, generator=generator))
    for outputs, expected in (
        (
            mask_rcnn,
            MaskRCNNImageProcessorPil().post_process_instance_segmentation(mask_rcnn, threshold, target_sizes=[size]),
        ),
        (dino, DinoDetrImageProcessorPil().post_process_object_detection(dino, threshold, target_sizes=[size])),
    ):
        outputs = {name: tensor.numpy() for name, tensor in outputs.items()}
        result = preprocessing.detections(outputs, *size, threshold)
        assert ("masks" in result) == ("pred_masks" in outputs)
        np.testing.assert_array_equal(result["labels"], expected[0]["labels"])
        np.testing.assert_allclose(result["scores"], expected[0]["scores"], rtol=1e-6)
        np.testing.assert_allclose(result["boxes"], expected[0]["boxes"], atol=1e-4)
        if "masks" in result:
            assert result["masks"].shape == expected[0]["masks"].shape
            assert (result["masks"] != expected[0]["masks"].numpy()).sum() <= 1e-5 * result["masks"].size


def test_preprocessing_needs_neither_torch_nor_transformers():
    code = "import sys, examples.deployment.preprocessing; assert not {'torch', 'transformers'} & set(sys.modules)"
    subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, check=True)


# The pages, and what has to be installed for them.
PAGES = {
    "README.md": "onnxruntime", "onnx_runtime.md": "onnxruntime", "openvino.md": "openvino",
    "tensorrt.md": "tensorrt_rtx", "aot_inductor.md": "torch", "browser/README.md": "onnxruntime",
}  # fmt: skip
# Commands that begin so are not run with the pages; npm and the server have tests of their own below.
NOT_RUN = ("pip install ", "npm install ", "python -m http.server ", "trtexec ")
DEPLOYMENT = REPOSITORY / "examples" / "deployment"
OFFICIAL_REPOSITORY = "OpenGVLab/internimage_t_1k_224"
TINY = {"embed_dim": 16, "depths": [1, 1], "num_groups": [1, 2]}
BACKBONE = InternImageConfig(**TINY, out_features=["stage1", "stage2"])


@pytest.fixture(scope="module")
def stock(photographs, tmp_path_factory):
    """What the pages begin with: a picture and a classifier."""
    folder = tmp_path_factory.mktemp("stock")
    Image.fromarray(photographs[1]).save(folder / "photo.jpg")
    randomize(InternImageForImageClassification(InternImageConfig(**TINY, num_labels=10))).save_pretrained(
        folder / "official"
    )
    create_image_processor(224).save_pretrained(folder / "official")
    return folder


def export_segmenter_and_detector():
    """Of an open and of a fixed size, which `preprocess` treats differently."""
    size = {"shortest_edge": 64, "longest_edge": 128}
    config = UperNetConfig(backbone_config=BACKBONE, hidden_size=8, use_auxiliary_head=False, num_labels=3)
    segmenter = randomize(UperNetForSemanticSegmentation(config))
    export_onnx(
        segmenter, "segmenter", image_processor=InternImageSegmentationImageProcessorPil(size=size), size=(64, 96)
    )
    config = DinoDetrConfig(
        backbone_config=BACKBONE, d_model=64, encoder_layers=1, decoder_layers=1, encoder_ffn_dim=32,
        decoder_ffn_dim=32, num_queries=20, num_labels=3, num_feature_levels=2,
    )  # fmt: skip
    image_processor = DinoDetrImageProcessorPil(size=size)
    export_onnx(
        randomize(DinoDetrForObjectDetection(config)), "detector", image_processor=image_processor, size=(64, 96)
    )


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES)
def test_pages_run_from_top_to_bottom(page, stock, tmp_path, monkeypatch):
    pytest.importorskip(PAGES[page])
    shutil.copytree(stock, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    if page == "onnx_runtime.md":
        export_segmenter_and_detector()
    elif page == "aot_inductor.md":  # where every layer takes the C++ compiler many seconds
        config = InternImageConfig(embed_dim=16, depths=[1], num_groups=[1], num_labels=10)
        randomize(InternImageForImageClassification(config)).save_pretrained("official")
    for language, text in re.findall(r"```(python|bash)\n(.*?)```", (DEPLOYMENT / page).read_text(), re.S):
        text = text.replace(OFFICIAL_REPOSITORY, "official")
        if language == "python":
            exec(text, {"__name__": "__main__"})
            continue
        for command in text.replace("\\\n", " ").splitlines():
            if not command.startswith(NOT_RUN):
                python, option, module, *arguments = shlex.split(command)
                assert (python, option) == ("python", "-m")
                run_module(module if module.startswith("examples.") else f"{module}.__main__", *arguments)


@pytest.fixture(scope="module")
def exported(stock):
    """The classifier, exported."""
    model = InternImageForImageClassification.from_pretrained(stock / "official")
    export_onnx(model, stock / "exported", image_processor=create_image_processor(224))
    return stock / "exported"


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    """A driver of headless Chromium."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("The page is tested in Chromium: apt-get install chromium chromium-driver.")
    if not (DEPLOYMENT / "browser" / "node_modules" / "onnxruntime-web").is_dir():
        pytest.skip("The page needs onnxruntime-web: npm install --prefix examples/deployment/browser.")
    webdriver = pytest.importorskip(
        "selenium.webdriver", reason="The page is tested by selenium: pip install selenium."
    )
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--window-size=1000,720",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(argument)
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


@pytest.fixture
def page(chromium, tmp_path):
    """A function that opens the page and returns the browser; `tmp_path` is its folder on the server."""
    for path in (DEPLOYMENT / "browser").iterdir():
        (tmp_path / path.name).symlink_to(path)
    (tmp_path / "model").unlink(missing_ok=True)  # somebody's own

    class Handler(http.server.SimpleHTTPRequestHandler):
        def log_message(self, *args):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Handler, directory=tmp_path))
    threading.Thread(target=server.serve_forever, daemon=True).start()

    def open_page():
        chromium.get(f"http://127.0.0.1:{server.server_port}/")
        return chromium

    yield open_page
    server.shutdown()
    server.server_close()


def status(browser, pattern: str) -> str:
    """What the page says, as soon as it matches."""
    from selenium.webdriver.support.ui import WebDriverWait

    def matching(browser):
        text = browser.find_element("id", "status").text
        return text if re.search(pattern, text) else None

    return WebDriverWait(browser, 60).until(matching)


@pytest.mark.slow
def test_browser_computes_what_pytorch_computes(page, exported, stock, photographs, tmp_path):
    (tmp_path / "model").symlink_to(exported)
    Image.fromarray(photographs[0]).save(tmp_path / "photo.png")
    browser = page()
    status(browser, "The model is loaded")
    browser.find_element("id", "file").send_keys(str(tmp_path / "photo.png"))
    text = status(browser, "It took")

    model = InternImageForImageClassification.from_pretrained(stock / "official")
    image_processor = create_image_processor(224, "pil")
    with torch.no_grad():
        logits = model(**image_processor(Image.fromarray(photographs[0]), return_tensors="pt")).logits[0]
    expected = logits.softmax(-1).topk(5)
    rows = browser.find_elements("css selector", "#classes li")
    labels = [row.find_element("class name", "label").text for row in rows]
    assert labels == [model.config.id2label[idx] for idx in expected.indices.tolist()] and labels[0] in text
    probabilities = [float(row.get_attribute("data-probability")) for row in rows]
    np.testing.assert_allclose(probabilities, expected.values, rtol=1e-4)
    assert not browser.get_log("browser")  # neither errors nor warnings


@pytest.mark.slow
@pytest.mark.parametrize(
    "options",
    [{}, {"resample": 2}, {"size": {"height": 700, "width": 90}}, {"crop_size": {"height": 230, "width": 9}}],
)
def test_browser_resizes_as_pillow(options, page, exported, photographs, tmp_path):
    (tmp_path / "model").symlink_to(exported)
    Image.fromarray(photographs[1]).save(tmp_path / "photo.png")
    settings = preprocessing.read_json(exported, "preprocessor_config.json") | options
    values, dims = page().execute_async_script(
        """
        const [settings, done] = arguments;
        const { pixelsOf, preprocess } = await import("./preprocessing.js");
        const { values, dims } = preprocess(await pixelsOf(await (await fetch("photo.png")).blob()), settings);
        done([Array.from(values), dims]);
        """,
        settings,
    )
    expected = preprocessing.preprocess(preprocessing.open_image(tmp_path / "photo.png"), settings)["pixel_values"]
    np.testing.assert_array_equal(np.array(values, dtype=np.float32).reshape(dims), expected)


@pytest.mark.slow
def test_browser_says_what_is_wrong(page, exported, tmp_path):
    browser = page()
    assert re.match(r"There is no (preprocessor_)?config\.json in", status(browser, "Export a classifier"))
    (tmp_path / "model").symlink_to(exported)
    browser = page()
    status(browser, "The model is loaded")
    (tmp_path / "notes.txt").write_text("no picture")
    browser.find_element("id", "file").send_keys(str(tmp_path / "notes.txt"))
    status(browser, r"notes\.txt is not a picture")
    browser.execute_script("dispatchEvent(new DragEvent('drop', { dataTransfer: new DataTransfer() }));")
    status(browser, "That was not a file")
    assert not browser.find_element("id", "result").is_displayed()
