# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""What image files become, and what is said about those that cannot be read."""

import io
import sys

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps

from modeling_internimage import segment_image
from modeling_internimage.images import decode_image, eight_bit_image
from modeling_internimage.mask_rcnn import MASK_RCNN_IMAGE_PROCESSOR_CLASSES
from modeling_internimage.resizing import target_size
from modeling_internimage.segmentation import SEGMENTATION_IMAGE_PROCESSOR_CLASSES


RAMP = np.arange(256, dtype=np.uint16).reshape(16, 16)
SUBJECT = "The image file photo"


def saved(image: Image.Image, image_format: str, **kwargs) -> io.BytesIO:
    file = io.BytesIO()
    image.save(file, image_format, **kwargs)
    return file


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "PPM"])
def test_16_bits_of_files(image_format):
    """As OpenCV's `IMREAD_COLOR`: the upper 8 bits."""
    decoded = decode_image(saved(Image.fromarray(RAMP * 257), image_format), SUBJECT)
    assert decoded.mode == "RGB" and (np.asarray(decoded) == RAMP[..., None]).all()


@pytest.mark.parametrize("mode, order", [("I;16", "<"), ("I;16L", "<"), ("I;16B", ">")])
def test_16_bits_of_every_order(mode, order):
    image = Image.frombytes(mode, (16, 16), (RAMP * 256 + 200).astype(f"{order}u2").tobytes())
    assert (np.asarray(eight_bit_image(image)) == RAMP).all()


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "RGBX", "LA", "PA", "CMYK", "YCbCr", "LAB", "HSV"])
def test_other_modes_are_pillow_s(mode):
    image = Image.new(mode, (2, 3), 1)
    assert eight_bit_image(image) is image and image.convert("RGB").size == (2, 3)


@pytest.mark.parametrize("mode, kind", [("I", "integers of 32 bits"), ("F", "floating point")])
@pytest.mark.parametrize("processors", [SEGMENTATION_IMAGE_PROCESSOR_CLASSES, MASK_RCNN_IMAGE_PROCESSOR_CLASSES])
def test_images_in_memory(mode, kind, processors, tmp_path):
    """Image processors and `segment_image` know the same images as files."""
    for processor_class in processors.values():
        image_processor = processor_class(size={"height": 16, "width": 16})
        options = {"do_normalize": False, "do_rescale": False, "return_tensors": "np"}
        pixel_values = image_processor(Image.fromarray(RAMP * 257), **options)["pixel_values"][0]
        assert (pixel_values[..., :16, :16] == RAMP).all()
        with pytest.raises(ValueError, match=rf"The image has pixels of {kind} \(mode {mode}\), for which black"):
            image_processor(Image.new(mode, (4, 4)), **options)
    Image.new(mode, (4, 4)).save(tmp_path / "photo.tif")
    for image, name in ((Image.new(mode, (4, 4)), "The image"), (str(tmp_path / "photo.tif"), ".*photo.tif")):
        with pytest.raises(ValueError, match=f"{name} has pixels of {kind}"):
            segment_image(torch.nn.Linear(1, 1), image_processor, image)


def test_exif_turns_before_bits_are_counted():
    exif = Image.Exif()
    exif[274] = 6  # turned by 90 degrees
    turned = decode_image(saved(Image.fromarray(RAMP * 257), "PNG", exif=exif), SUBJECT)
    assert np.asarray(turned)[..., 0].tolist() == np.rot90(RAMP, -1).tolist()
    image = Image.effect_noise((20, 30), 50).convert("RGB")
    file = saved(image, "PNG", exif=exif)
    assert decode_image(file, SUBJECT) == ImageOps.exif_transpose(Image.open(file)).convert("RGB")


@pytest.mark.parametrize(
    "error", [RuntimeError, SyntaxError, NotImplementedError, KeyError, OSError, MemoryError, ValueError]
)
@pytest.mark.parametrize(
    "step", ["Image.open", "ImageFile.ImageFile.load", "ImageOps.exif_transpose", "Image.Image.convert"]
)
def test_any_error_of_decoding_names_the_file(error, step, monkeypatch):
    """Whatever Pillow raises, at any step."""
    file = saved(Image.fromarray(RAMP.astype(np.uint8)), "PNG")

    def fail(*args, **kwargs):
        raise error("bad")

    monkeypatch.setattr(f"PIL.{step}", fail)
    with pytest.raises(ValueError, match=rf"^{SUBJECT} is corrupt or truncated \({error.__name__}: '?bad'?\)"):
        decode_image(file, SUBJECT)


@pytest.mark.parametrize(
    "brand, message", [(b"heic", "pip install pillow-heif"), (b"mp42", "is corrupt or truncated")]
)
def test_heic_needs_a_plugin(brand, message, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    content = b"\0\0\0\x18ftyp" + brand + b"\0" * 40
    (tmp_path / "photo.jpg").write_bytes(content)
    for source in (str(tmp_path / "photo.jpg"), io.BytesIO(content)):
        with pytest.raises(ValueError, match=f"{SUBJECT} .*{message}"):
            decode_image(source, SUBJECT)
    with pytest.raises(ValueError, match=f"{SUBJECT} does not exist"):
        decode_image(str(tmp_path / "none.jpg"), SUBJECT)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
def test_limit_of_pixels(monkeypatch):
    """Also between one and two times Pillow's limit, of which it only warns; and of resized images."""
    file = saved(Image.new("L", (20, 30)), "PNG")
    for limit, message in ((599, "has 20x30 pixels, more than the 599 of `PIL.Image.MAX"), (200, "is too large")):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        with pytest.raises(ValueError, match=f"{SUBJECT} {message}"):
            decode_image(file, SUBJECT)
    for limit in (600, None):
        monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", limit)
        assert decode_image(file, SUBJECT).size == (20, 30)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 600)
    for processor_class in SEGMENTATION_IMAGE_PROCESSOR_CLASSES.values():
        image_processor = processor_class(size={"shortest_edge": 30, "longest_edge": 21})
        assert target_size(1, 20000, image_processor.size) == (1, 21)
        with pytest.raises(ValueError, match="An image of 2x1 pixels, resized, has 25x25 pixels, more than the 600"):
            image_processor(Image.new("RGB", (2, 1)), size={"height": 25, "width": 25})


@pytest.mark.filterwarnings("ignore")  # Pillow's, about the files
def test_damaged_files():
    """Files with a few bytes changed: an RGB image, or a `ValueError` that starts with the name."""
    random = np.random.default_rng(0)
    exif = Image.Exif()
    exif[274] = 6
    image = Image.fromarray(np.kron(random.integers(0, 256, (4, 5, 3), np.uint8), np.ones((7, 6, 1), np.uint8)))
    files = [
        saved(image, image_format, **kwargs).getvalue()
        for image_format, kwargs in (
            ("PNG", {"exif": exif}), ("JPEG", {"exif": exif}), ("TIFF", {"compression": "tiff_lzw"}), ("TIFF", {}),
            ("WEBP", {"exif": exif}), ("GIF", {}), ("BMP", {}), ("DDS", {}), ("PPM", {}), ("ICO", {}),
        )
    ]  # fmt: skip
    outcomes = {True: 0, False: 0}
    for idx in range(600):
        content = bytearray(files[idx % len(files)])
        for _ in range(random.integers(1, 6)):
            content[random.integers(min(len(content), random.choice([60, 400, 10**6])))] = random.integers(256)
        try:
            is_image = decode_image(io.BytesIO(content), SUBJECT).mode == "RGB"
        except ValueError as error:
            assert str(error).startswith(SUBJECT)
            is_image = False
        outcomes[is_image] += 1
    assert min(outcomes.values()) > 80
