# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""The page of examples/web_demo: what it shows, without Gradio, and the page itself in a browser."""

import json
import re
import shutil
import socket
import time

import numpy as np
import pytest
import torch
from PIL import Image
from testing_utils import randomize
from transformers import UperNetConfig, UperNetForSemanticSegmentation, pipeline

import modeling_internimage
from examples.web_demo import predictions
from modeling_internimage import (
    CBInternImageConfig,
    InternImageConfig,
    InternImageForImageClassification,
    MaskRCNNConfig,
    MaskRCNNForObjectDetection,
    create_image_processor,
)


TINY = {"embed_dim": 16, "depths": [1, 1, 1, 1], "num_groups": [1, 2, 4, 8]}
STAGES = ["stage1", "stage2", "stage3", "stage4"]
SIZE = {"shortest_edge": 64, "longest_edge": 128}


@pytest.fixture(scope="module")
def folder(photographs, tmp_path_factory):
    """A classifier, a segmentation model, a detector, and a photograph."""
    folder = tmp_path_factory.mktemp("models")
    Image.fromarray(photographs[1]).save(folder / "coffee.png")
    names = {"id2label": {0: "cup", 1: "cat", 2: "rocket"}, "label2id": {"cup": 0, "cat": 1, "rocket": 2}}
    backbone = InternImageConfig(**TINY, out_features=STAGES)
    upernet = UperNetConfig(
        backbone_config=backbone, hidden_size=8, auxiliary_channels=8, auxiliary_in_channels=64, **names
    )
    mask_rcnn = MaskRCNNConfig(
        backbone_config=CBInternImageConfig(**TINY, out_features=STAGES), hidden_size=16, box_head_hidden_size=16,
        max_detections=10, **names,
    )  # fmt: skip
    models = {
        "classifier": (
            InternImageForImageClassification(InternImageConfig(**TINY, image_size=64, **names)),
            create_image_processor(64),
        ),
        "segmenter": (
            UperNetForSemanticSegmentation(upernet),
            modeling_internimage.InternImageSegmentationImageProcessor(size=SIZE, size_divisor=32),
        ),
        "detector": (MaskRCNNForObjectDetection(mask_rcnn), modeling_internimage.MaskRCNNImageProcessor(size=SIZE)),
    }
    for name, (model, image_processor) in models.items():
        randomize(model).save_pretrained(folder / name)
        image_processor.save_pretrained(folder / name)
    return folder


def test_predictions_are_those_of_the_pipelines(folder):
    file = str(folder / "coffee.png")
    classifier, segmenter, detector = (
        pipeline(task, model=str(folder / name))
        for task, name in (
            ("image-classification", "classifier"), ("image-segmentation", "segmenter"),
            ("object-detection", "detector"),
        )
    )  # fmt: skip
    picture = predictions.look_at(str(folder / "classifier"), file)
    scores = {row["label"]: row["score"] for row in classifier(file)}
    assert predictions.class_scores(picture, 0.0) == pytest.approx(scores)
    assert list(predictions.class_scores(picture, max(scores.values()))) == [max(scores, key=scores.get)]

    picture = predictions.look_at(str(folder / "segmenter"), file)
    expected = {row["label"]: np.asarray(row["mask"]) > 0 for row in segmenter(file)}
    found = predictions.segments(picture)
    assert sum(share for _, _, share in found) == pytest.approx(1)
    for mask, label, _ in found:
        assert np.array_equal(mask.astype(bool), expected[label])

    picture = predictions.look_at(str(folder / "detector"), file)
    threshold = float(np.median([row["score"] for row in picture.results]))
    rows = predictions.detections(picture, threshold)
    expected = detector(file, threshold=threshold - 1e-6)
    assert len(rows) == len(expected) < len(picture.results)
    assert rows[0][:2] == [expected[0]["label"], pytest.approx(expected[0]["score"])]
    drawn = predictions.draw_boxes(picture, rows, detector.model.config)
    assert drawn.shape == (400, 600, 3) and not np.array_equal(drawn, np.asarray(picture.image))


@pytest.mark.parametrize("name", ["classifier", "segmenter", "detector"])
def test_sampling_points_are_drawn_where_the_model_samples(name, folder):
    """In the input of the model without its padding, and elsewhere for another pixel."""
    picture = predictions.look_at(str(folder / name), str(folder / "coffee.png"))
    height, width = picture.model_input.shape[:2]
    assert (height, width) == ((64, 64) if name == "classifier" else (64, 96))
    assert [stage.stride.tolist() for stage in picture.stages] == [[4, 4], [8, 8], [16, 16], [32, 32]]
    for stage in picture.stages:
        sample = stage.for_pixel(41, 37)
        left, top, right, bottom = sample["cell"].tolist()
        assert left <= 41 <= right and top <= 37 <= bottom
        torch.testing.assert_close(sample["grid"].mean(dim=0), (sample["cell"][:2] + sample["cell"][2:]) / 2)
    drawn = [np.asarray(predictions.draw_photograph(picture, *pixel)) for pixel in ((5, 5), (40, 40))]
    assert drawn[0].shape == (720 * height // width, 720, 3) and not np.array_equal(*drawn)
    assert predictions.draw_panels(picture, 0, height - 1).shape[2] == 4


@pytest.fixture(scope="module")
def address(folder):
    """Of the page, on this machine."""
    pytest.importorskip("gradio", reason="The page needs Gradio: pip install '.[web]'.")
    from examples.web_demo import app

    limit = Image.MAX_IMAGE_PIXELS
    models = [word for name in ("detector", "classifier") for word in ("--model", str(folder / name))]
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    args = app.parse_arguments([*models, "--port", port, "--max-file-size", "1mb", "--max-megapixels", "1"])
    server, address, _ = app.launch(args, prevent_thread_lock=True, quiet=True)
    yield address
    server.get_blocks().close()
    Image.MAX_IMAGE_PIXELS = limit


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """Headless Chromium."""
    binary, driver = shutil.which("chromium"), shutil.which("chromedriver")
    if not (binary and driver):
        pytest.skip("The page is tested in Chromium: apt-get install chromium chromium-driver.")
    webdriver = pytest.importorskip("selenium.webdriver", reason="The page is tested by selenium.")
    options = webdriver.ChromeOptions()
    options.binary_location = binary
    for argument in (
        "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
        "--disable-background-networking", "--disable-component-update", "--window-size=1280,1000",
        f"--user-data-dir={tmp_path_factory.mktemp('chromium')}",
    ):  # fmt: skip
        options.add_argument(argument)
    options.set_capability("goog:loggingPrefs", {"performance": "ALL"})
    browser = webdriver.Chrome(options=options, service=webdriver.ChromeService(driver))
    yield browser
    browser.quit()


class Page:
    """What a visitor does and sees."""

    def __init__(self, browser, address: str):
        self.browser = browser
        browser.get(address)

    def find(self, selector: str) -> list:
        return self.browser.find_elements("css selector", selector)

    def wait(self, condition):
        from selenium.common.exceptions import StaleElementReferenceException
        from selenium.webdriver.support.ui import WebDriverWait

        waiting = WebDriverWait(self.browser, 60, 0.05, ignored_exceptions=[StaleElementReferenceException])
        return waiting.until(lambda browser: condition())

    def upload(self, file):
        self.wait(lambda: self.find("#picture input[type=file]"))[0].send_keys(str(file))

    def text_of(self, selector: str, pattern: str) -> str:
        """As soon as it matches."""
        return self.wait(
            lambda: next((found.text for found in self.find(selector) if re.search(pattern, found.text)), None)
        )

    def source_of(self, selector: str) -> str:
        return self.wait(lambda: self.find(f"{selector} img"))[0].get_attribute("src")


@pytest.mark.slow
def test_upload_and_click_in_a_browser(browser, address, folder):
    from selenium.webdriver.common.action_chains import ActionChains

    page = Page(browser, address)
    page.upload(folder / "coffee.png")
    page.text_of("#table", "score")
    page.wait(lambda: [tab for tab in page.find("button[role=tab]") if tab.text == "Sampling points"])[0].click()
    page.text_of("#legend", "stage 4")
    seconds = []
    for offset in (-120, 0, 120, 60):
        before = [page.source_of(name) for name in ("#photograph", "#panels")]
        start = time.perf_counter()
        ActionChains(browser).move_to_element_with_offset(
            page.find("#photograph img")[0], offset, 30
        ).click().perform()
        page.wait(lambda before=before: page.source_of("#photograph") != before[0])
        seconds.append(time.perf_counter() - start)
        page.wait(lambda before=before: page.source_of("#panels") != before[1])
    print("seconds to follow a click:", [round(value, 2) for value in seconds])
    assert min(seconds) < 1

    events = [json.loads(entry["message"])["message"] for entry in browser.get_log("performance")]
    requests = [
        event["params"]["request"]["url"] for event in events if event["method"] == "Network.requestWillBeSent"
    ]
    web = [url for url in requests if re.match("(http|ws)s?://", url)]
    assert web and all(url.startswith(address) for url in web)


@pytest.mark.slow
@pytest.mark.parametrize(
    "name, message",
    [
        ("broken.png", "The picture is corrupt or truncated"),
        ("large.png", "The picture has 1100x1000 pixels, more than the 1000000"),
        ("heavy.png", "exceed the maximum allowed size"),
    ],
)
def test_errors_are_messages_in_the_page(name, message, browser, address, tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    Image.new("L", (1100, 1000)).save(tmp_path / "large.png")
    (tmp_path / "heavy.png").write_bytes(bytes(1_200_000))
    page = Page(browser, address)
    page.upload(tmp_path / name)
    text = page.text_of("[data-testid=toast-body]", message)
    assert "Traceback" not in text and str(tmp_path) not in text
