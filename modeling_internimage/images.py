# Copyright 2026 The modeling-internimage authors. Licensed under the Apache License, Version 2.0.
"""Reads image files as RGB images of 8 bits."""

import io
from contextlib import contextmanager

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError
from transformers.image_utils import is_pil_image

from .resizing import check_num_pixels


# "Brands" at the start of HEIC files. Pillow reads those of AVIF by itself.
HEIF_BRANDS = (b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1")


def image_endings() -> set[str]:
    """File name endings of images, in lower case. (HEIC is included: the error for it says how to read it.)"""
    endings = {ending for ending, name in Image.registered_extensions().items() if name in Image.OPEN}
    return endings | {".heic", ".heif"}


def open_image(source: str | io.BytesIO, subject: str) -> Image.Image:
    """
    The decoded image of a file, in the mode it is stored in.

    Args:
        source (`str` or `io.BytesIO`):
            Path or content of the file.
        subject (`str`):
            What error messages call it: "The image file photo.jpg".

    Raises:
        `ValueError`: if there is no such file, if it cannot be decoded, or if it has more pixels than
            `PIL.Image.MAX_IMAGE_PIXELS`.
    """
    with _complaints(subject):
        image = _open(source)
    if image is None:
        raise ValueError(
            f"{subject} is a HEIC file, for which Pillow needs a plugin: pip install pillow-heif, or save it as JPEG."
        )
    check_num_pixels(image.height, image.width, subject)
    with _complaints(subject):
        image.load()
    return image


def decode_image(source: str | io.BytesIO, subject: str, size=None) -> Image.Image:
    """
    As [`open_image`], but an RGB image of 8 bits, turned as its EXIF data says. With the `size` of an image processor,
    also raises a `ValueError` for an image that would be resized to too many pixels.
    """
    image = open_image(source, subject)
    size = dict(size or {})
    if size.get("shortest_edge") and not size.get("longest_edge"):
        factor = size["shortest_edge"] / min(image.size)
        check_num_pixels(int(image.height * factor), int(image.width * factor), f"{subject}, resized,")
    with _complaints(subject):
        ImageOps.exif_transpose(image, in_place=True)  # which keeps the format, that `eight_bit_image` looks at
    image = eight_bit_image(image, subject)
    with _complaints(subject):
        return image.convert("RGB")


def eight_bit_image(image: Image.Image, subject: str = "The image") -> Image.Image:
    """
    Grey values of 16 bits divided by 256, as OpenCV's `IMREAD_COLOR` does it. (Pillow's own conversion makes all above
    255 white.) Other images as they are.

    Raises:
        `ValueError`: for pixels whose range is not known: floating point or integers of 32 bits.
    """
    # Pillow has the 16 bits of a PGM file (before version 11 also those of a PNG file) in the mode of 32.
    if image.mode.startswith("I;16") or (image.mode == "I" and image.format in ("PPM", "PNG")):
        return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8))
    if image.mode in ("I", "F"):
        kind = "integers of 32 bits" if image.mode == "I" else "floating point"
        raise ValueError(
            f"{subject} has pixels of {kind} (mode {image.mode}), for which black and white are not defined: scale "
            "it to 8 bits (0 to 255) or 16 bits (0 to 65535)."
        )
    return image


class EightBitImages:
    """For image processors: [`eight_bit_image`] before Pillow's conversion to RGB."""

    def process_image(self, image, do_convert_rgb=None, **kwargs):
        if do_convert_rgb and is_pil_image(image):
            image = eight_bit_image(image)
        return super().process_image(image, do_convert_rgb=do_convert_rgb, **kwargs)


@contextmanager
def _complaints(subject: str):
    try:
        yield
    except Image.DecompressionBombError as error:
        raise ValueError(f"{subject} is too large. ({error}) Cut it into parts, or make it smaller.") from error
    except FileNotFoundError as error:
        raise ValueError(f"{subject} does not exist.") from error
    except Exception as error:  # decoders of damaged files raise almost any: SyntaxError, struct.error, KeyError, ...
        raise ValueError(
            f"{subject} is corrupt or truncated ({type(error).__name__}: {error}). Replace or remove it."
        ) from error


def _open(source: str | io.BytesIO) -> Image.Image | None:
    """`None`: a HEIC file, and the plugin for these is not installed."""
    try:
        return Image.open(source)
    except UnidentifiedImageError:
        if isinstance(source, str):
            with open(source, "rb") as file:
                head = file.read(12)
        else:
            head = source.getvalue()[:12]
        if head[4:8] != b"ftyp" or head[8:] not in HEIF_BRANDS:
            raise
    try:
        from pillow_heif import register_heif_opener
    except ImportError:
        return None
    register_heif_opener()
    return Image.open(source)
