"""Pictures in files, JPEG, PNG and 8-bit TIFF, decoded by Pillow as CLIP's evaluation does it."""

from __future__ import annotations

import io
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from terralign.errors import DataError, first_line

MAX_IMAGE_PIXELS = 89_478_485
"""A picture with more pixels is refused before it is decoded: the limit at which Pillow warns."""

IMAGE_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP")
_CONVERTIBLE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_IMAGE_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    Image.DecompressionBombError,
    Image.DecompressionBombWarning,
)


def decode_rgb(path: Path, size: int | None = None) -> NDArray[np.uint8]:
    """Decode a JPEG, PNG or 8-bit TIFF to (3, H, W) uint8; (3, size, size) where `size` is given.

    Resizing is CLIP's own evaluation transform: the shorter side to `size` with Pillow's bicubic
    filter, then the centre crop. An image whose shorter side is `size` already is only cropped.
    Raises `DataError` naming a file that is missing, damaged, too large or no image.
    """
    require_file(path)
    with _open_picture(path, str(path)) as image:
        return _decode(image, str(path), size)


def decode_rgb_bytes(content: bytes, what: str, size: int | None = None) -> NDArray[np.uint8]:
    """`decode_rgb` of a file's bytes; errors call it `what`."""
    with _open_picture(io.BytesIO(content), what) as image:
        return _decode(image, what, size)


def resize_rgb(pixels: NDArray[np.uint8], size: int) -> NDArray[np.uint8]:
    """Decoded pixels (3, H, W) uint8 as `decode_rgb` would have given them at `size`."""
    picture = _resize_and_crop(Image.fromarray(pixels.transpose(1, 2, 0)), size)
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _decode(image: Image.Image, what: str, size: int | None) -> NDArray[np.uint8]:
    try:
        picture = _to_rgb(image, what)
        if size is not None:
            picture = _resize_and_crop(picture, size)
    except _IMAGE_FAULTS as error:
        raise DataError(f"{what} is damaged: {first_line(error)}") from error
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def picture_shape(path: Path) -> tuple[int, int]:
    """(height, width) of a picture, from its header."""
    require_file(path)
    with _open_picture(path, str(path)) as image:
        return (image.height, image.width)


@contextmanager
def _open_picture(source: Path | io.BytesIO, what: str) -> Iterator[Image.Image]:
    try:
        image = Image.open(source, formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        raise DataError(f"{what} is not an image: it is no JPEG, PNG or TIFF") from error
    except _IMAGE_FAULTS as error:
        raise DataError(f"{what} cannot be read as an image: {first_line(error)}") from error
    with image:
        if image.width * image.height > MAX_IMAGE_PIXELS:
            raise DataError(
                f"{what} has {image.width}x{image.height} pixels, more than the limit of "
                f"{MAX_IMAGE_PIXELS}; cut it into smaller images"
            )
        yield image


def _to_rgb(image: Image.Image, what: str) -> Image.Image:
    if image.mode not in _CONVERTIBLE_MODES:
        raise DataError(
            f"{what} has pixels of mode {image.mode}, not 8 bits per channel; "
            "save it as an 8-bit RGB image"
        )
    if image.mode in ("P", "PA") and "transparency" in image.info:
        return image.convert("RGBA").convert("RGB")
    return image.convert("RGB")


def _resize_and_crop(image: Image.Image, size: int) -> Image.Image:
    width, height = image.size
    short = min(width, height)
    if short != size:
        width, height = int(size * width / short), int(size * height / short)
        if width * height > MAX_IMAGE_PIXELS:
            raise ValueError(f"resized it would have {width}x{height} pixels; cut it first")
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = round((width - size) / 2), round((height - size) / 2)
    return image.crop((left, top, left + size, top + size))


def require_file(path: Path) -> None:
    """Raise `DataError` where `path` is missing or is no file."""
    if not path.is_file():
        raise DataError(f"{path} is not there" if not path.exists() else f"{path} is not a file")
