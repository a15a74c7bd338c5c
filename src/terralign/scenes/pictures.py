"""Pictures in files of 8 bits per channel, decoded by Pillow as CLIP's evaluation does it.

Numbers are whole, uint8, where every pixel may be used. Where a picture has pixels without data
(alpha 0, a TIFF's own no-data number or mask, a `.msk` file beside it), its numbers are float32,
0-255, with NaN there.
"""

from __future__ import annotations

import io
import math
import os
import re
import struct
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from terralign.chips import MAX_ASPECT, middle
from terralign.errors import DataError, first_line, shown
from terralign.limits import beyond, enough_memory, limit, require
from terralign.scenes.geotiff import read_mask, read_mask_file, require_file
from terralign.scenes.tiff_pages import read_pages

IMAGE_FORMATS = ("JPEG", "PNG", "TIFF", "WEBP", "BMP", "GIF")
"""The formats that are read, as Pillow calls them."""

PICTURE_SUFFIXES = (
    *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".tif", ".tiff", ".webp", ".bmp", ".gif"),
)
"""The endings that files of these formats have, in lower case."""

_READ = "JPEG, PNG, TIFF, WebP, BMP or GIF"
_CONVERTIBLE_MODES = ("1", "L", "LA", "P", "PA", "RGB", "RGBA", "CMYK", "YCbCr")
_IMAGE_FAULTS = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    LookupError,
    ArithmeticError,
    TypeError,
    AttributeError,
    AssertionError,
    Image.DecompressionBombWarning,
)
"""What Pillow raises of damaged files: its readers are Python that believes what files say."""

Picture = NDArray[np.uint8] | NDArray[np.float32]
"""(3, H, W): uint8, or float32 0-255 with NaN where there is no data."""

_RESAMPLING = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


@dataclass(frozen=True, slots=True)
class PictureSize:
    """The square that pictures are brought to, and how, as open_clip's own transform does it.

    `side`: height and width in pixels. `mode`: "shortest" (the shorter side to `side`, then the
    centre crop) or "squash" (both sides to `side`). `interpolation`: Pillow's filter.
    """

    side: int
    mode: Literal["shortest", "squash"] = "shortest"
    interpolation: Literal["bicubic", "bilinear"] = "bicubic"

    def __post_init__(self) -> None:
        if self.side < 1:
            raise DataError(f"size is {self.side}; expected the side of an image in pixels")

    def describe(self) -> int | str:
        """A plain value that `as_picture_size` reads back: 224, or "224-squash-bilinear"."""
        if (self.mode, self.interpolation) == ("shortest", "bicubic"):
            return self.side
        return f"{self.side}-{self.mode}-{self.interpolation}"


Size = PictureSize | int | str
"""A picture size: whole, as the side alone (CLIP's transform), or as `PictureSize.describe` gives
it."""


def as_picture_size(size: Size) -> PictureSize:
    """The picture size that a side or a description means; `DataError` for any other text."""
    if isinstance(size, PictureSize):
        return size
    if isinstance(size, int):
        return PictureSize(size)
    found = re.fullmatch(r"(\d+)(?:-(shortest|squash))?(?:-(bicubic|bilinear))?", size.strip())
    if found is None:
        raise DataError(
            f"picture size {size!r} is not understood; expected the side in pixels, with the "
            "resize mode and interpolation where they are not CLIP's, as in 224, 224-squash or "
            "224-squash-bilinear"
        )
    mode: Any = found[2] or "shortest"
    interpolation: Any = found[3] or "bicubic"
    return PictureSize(int(found[1]), mode, interpolation)


def describe_size(size: Size | None) -> int | str | None:
    """A size as a plain value, the same for all that mean the same; None for None."""
    return None if size is None else as_picture_size(size).describe()


def decode_rgb(path: Path | str, size: Size | None = None) -> Picture:
    """Decode a picture to (3, H, W); to (3, side, side) where `size` is given.

    Resizing is open_clip's own evaluation transform (see `PictureSize`), on the pixels that have
    data alone: a pixel that is resized from more pixels without data than with is NaN. An image
    of the right size already is only cropped. An orientation stored in EXIF is not applied, as
    CLIP's evaluation does not apply it. Raises `DataError` naming a file that is missing, damaged,
    too large, an animation, of several pages, of more than 8 bits per channel or no image.
    """
    return _joined(*_decode_file(Path(path), size))


def decode_rgb_bytes(content: bytes, what: str, size: Size | None = None) -> Picture:
    """`decode_rgb` of a file's bytes; errors call it `what`."""
    with _open_picture(io.BytesIO(content), what) as (image, has_mask):
        return _joined(*_decode(image, what, size, content if has_mask else None))


def decode_with_mask(path: Path | str) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """Pixels (3, H, W) uint8 and `valid` (H, W) bool, True where a pixel has data."""
    picture, valid = _decode_file(Path(path), None)
    pixels = _channels_first(picture)
    return pixels, np.ones(pixels.shape[1:], dtype=bool) if valid is None else valid


def image_with_mask(image: Image.Image) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
    """`decode_with_mask` of a Pillow image in memory."""
    what = f"the image of {image.width}x{image.height} pixels"
    if image.mode not in _CONVERTIBLE_MODES:
        raise DataError(_too_deep(what, f"pixels of mode {image.mode}"))
    _check_size(image.width, image.height, what)
    picture, valid = _decode(image, what, None, None)
    pixels = _channels_first(picture)
    return pixels, np.ones(pixels.shape[1:], dtype=bool) if valid is None else valid


def resize_rgb(pixels: NDArray[Any], size: Size) -> Picture:
    """Decoded pixels (3, H, W) as `decode_rgb` would have given them at `size`.

    Whole numbers 0-255, or floating point 0-255 with NaN where there is no data. `DataError` where
    there is no pixel.
    """
    _require_pixels(pixels.shape[2], pixels.shape[1], "the picture")
    valid = None
    if np.issubdtype(pixels.dtype, np.floating):
        valid = np.isfinite(pixels).all(0)
    picture = Image.merge("RGB", [Image.fromarray(_as_bytes(one, valid)) for one in pixels])
    chosen = as_picture_size(size)
    return _joined(*_resize(picture, None if valid is None or valid.all() else valid, chosen))


def _as_bytes(plane: NDArray[Any], valid: _Mask) -> NDArray[np.uint8]:
    """Numbers 0-255 (H, W) as whole ones of 8 bits; 0 where they are not valid."""
    if valid is not None:
        plane = np.rint(np.where(valid, plane, 0))
    if plane.dtype != np.uint8:
        plane = plane.clip(0, 255).astype(np.uint8)
    return np.ascontiguousarray(plane)


def picture_shape(path: Path | str) -> tuple[int, int]:
    """(height, width) of a picture, from its header."""
    path = Path(path)
    require_file(path)
    with open(path, "rb") as file, _open_picture(file, shown(path)) as (image, _):
        return (image.height, image.width)


# What a file is

_SIGNATURES = (
    (rb"\xff\xd8\xff", "JPEG"),
    (rb"\x89PNG\r\n\x1a\n", "PNG"),
    (rb"(II[*+]\0|MM\0[*+])", "TIFF"),
    (rb"RIFF....WEBP", "WEBP"),
    (rb"BM", "BMP"),
    (rb"GIF8[79]a", "GIF"),
    (rb"\0\0\0\x0cjP  \r\n\x87\n|\xff\x4f\xff\x51", "JPEG 2000"),
    (rb"\0\0\0\x0cJXL |\xff\x0a", "JPEG XL"),
    (rb"....ftypavif", "AVIF"),
    (rb"....ftyp(hei[cfmsx]|hev|mif1)", "HEIF"),
    (rb"\x89HDF\r\n\x1a\n", "HDF5 or netCDF-4"),
    (rb"CDF[\x01\x02\x05]", "netCDF"),
    (rb"\x93NUMPY", "NumPy"),
    (rb"NITF|NSIF", "NITF"),
    (rb"PK\x03\x04", "ZIP"),
    (rb"\x1f\x8b", "gzip"),
    (rb"%PDF", "PDF"),
    (rb"P[1-7]\s", "PNM"),
    (rb".{257}ustar", "tar"),
    (rb"SQLite format 3\0", "GeoPackage or SQLite"),
    (rb"EHFA_HEADER_TAG", "ERDAS Imagine"),
    (rb"GRIB", "GRIB"),
    (rb"ENVI\s", "ENVI header"),
    (rb"<VRTDataset", "VRT"),
    (rb"version https://git-lfs", "Git LFS pointer"),
    (rb"(?i)(\xef\xbb\xbf)?\s*<(!doctype html|html)", "HTML"),
    (rb"(\xef\xbb\xbf)?\s*<[?!\w]", "XML"),
    (rb"(\xef\xbb\xbf)?\s*[{\[]\s*[\"{\[\]}]", "JSON"),
)
_PATTERNS = tuple((re.compile(pattern, re.DOTALL), name) for pattern, name in _SIGNATURES)

HEAD_BYTES = 512
"""How much of a file `format_of` wants to see."""


def format_of(head: bytes) -> str | None:
    """A file's format by its first bytes, one of `IMAGE_FORMATS` or another; None if unknown."""
    return next((name for pattern, name in _PATTERNS if pattern.match(head)), None)


def no_picture(head: bytes, *, read: str = _READ) -> str:
    """Why a file with these first bytes is no picture, as the end of a sentence."""
    known = format_of(head)
    if not head:
        return f"is empty, not an image; expected {read}"
    if known is None:
        return f"is not an image: it is no {read}"
    article = "an" if known.startswith(("A", "E", "HTML", "X")) else "a"
    todo = _TODO.get(known, f"convert it to {read}")
    return f"is {article} {known} file, which is not read; {todo}"


_TEXT = "it may be an error or a login page of the server that it came from: download it again"
_TODO = {
    **dict.fromkeys(("tar", "gzip"), "unpack it"),
    "ZIP": "unpack it, or name it .zip where it holds a product with a file per band",
    "Git LFS pointer": "fetch the file that it stands for (git lfs pull)",
    "JPEG 2000": "give the folder of its product, or convert it to GeoTIFF (gdal_translate)",
    "VRT": "write it out as GeoTIFF (gdal_translate)",
    **dict.fromkeys(("HTML", "XML", "JSON"), _TEXT),
}
"""Format -> what to do about it, unless it is to be converted."""


@contextmanager
def _open_picture(file: IO[bytes], what: str) -> Iterator[tuple[Image.Image, bool]]:
    """The picture, not yet decoded, and whether it is a TIFF with a mask or no-data number.

    What fails within the block because memory is short is a fault of the file.
    """
    head = file.read(HEAD_BYTES)
    file.seek(0)
    kind = format_of(head)
    if kind == "PNG" and len(head) > 24 and head[24] > 8:
        raise DataError(_too_deep(what, f"{head[24]} bits per channel"))
    has_mask = kind == "TIFF" and _check_tiff(file, what)
    if kind == "JPEG":
        _check_jpeg(file, what)
    if kind == "PNG":
        _check_chunks(file, what)
    if kind == "BMP" and head[30:31] in (b"\1", b"\2"):  # run lengths, decoded one by one
        size = file.seek(0, os.SEEK_END)
        file.seek(0)
        require("bmp_rle_bytes", size, f"{what} has run lengths of", todo="save it as PNG")
    if Image.MAX_IMAGE_PIXELS is not None and limit("picture_pixels") > Image.MAX_IMAGE_PIXELS:
        Image.MAX_IMAGE_PIXELS = limit("picture_pixels")  # or a raised limit would be Pillow's
    try:
        image = Image.open(file, formats=IMAGE_FORMATS)
    except UnidentifiedImageError as error:
        if kind in IMAGE_FORMATS:
            raise DataError(
                f"{what} is a {kind} file that is damaged or of a kind that is not read; save it "
                "as an 8-bit RGB picture"
            ) from error
        raise DataError(f"{what} {no_picture(head)}") from error
    except Image.DecompressionBombError as error:
        num_pixels = re.search(r"(\d+) pixels", str(error))
        given = int(num_pixels[1]) if num_pixels else None
        cut = "cut it into smaller pictures"
        raise DataError(beyond("picture_pixels", given, f"{what} has", todo=cut)) from error
    except _IMAGE_FAULTS as error:
        raise DataError(f"{what} cannot be read as an image: {first_line(error)}") from error
    with image, enough_memory(what):
        _check_size(image.width, image.height, what)
        if kind == "WEBP" and image.mode == "RGBA":
            size = image.width * image.height
            require("webp_alpha_pixels", size, f"{what} has", todo="save it as PNG")
        if image.mode not in _CONVERTIBLE_MODES:
            raise DataError(_too_deep(what, f"pixels of mode {image.mode}"))
        if kind in ("PNG", "WEBP", "GIF") and getattr(image, "is_animated", False):
            raise DataError(f"{what} is an animation; save one of its pictures as PNG")
        yield image, has_mask


def _require_pixels(width: int, height: int, what: str) -> None:
    if not (width and height):
        raise DataError(f"{what} has no pixels ({width}x{height}); expected a picture")


def _check_size(width: int, height: int, what: str) -> None:
    _require_pixels(width, height, what)
    size = f"{what} ({width}x{height}) has"
    require("picture_pixels", width * height, size, todo="cut it into smaller pictures")
    require("picture_rows", height, size, todo="cut it into smaller pictures")


def _check_jpeg(file: IO[bytes], what: str) -> None:
    """Refuse a JPEG of very many segments, which Pillow joins one by one, or of very many scans,
    each of which goes through all pixels."""
    num_scans = 0
    if not _is_of_one_scan(file, what):
        file.seek(0)
        last = b""
        while block := file.read(2**20):
            num_scans += (last + block).count(_SCAN) if last else block.count(_SCAN)
            last = block[1 - len(_SCAN) :]
    file.seek(0)
    require("jpeg_scans", num_scans, f"{what} has", todo="save it anew")


def _is_of_one_scan(file: IO[bytes], what: str) -> bool:
    """Whether a JPEG is sequential with all colours in its first scan, after which nothing is
    decoded. `DataError` where too many segments come before that."""
    position, num_colours, num_segments = 2, 0, 0
    while True:
        file.seek(position)
        head = file.read(10)
        if head[:1] != b"\xff" or head[1:2] in b"\0\xff":
            found = _MARKER.search(head + file.read(_MOST_FILLED))
            if found is None and file.read(1):
                raise DataError(f"{what} is damaged: no segment begins where one must")
            if found is None:
                return False
            position += found.start()
            continue
        if len(head) < 10:
            return False
        if head[1] in (0xC0, 0xC1):
            num_colours = head[9]
        elif head[1] == 0xDA:
            return num_colours == head[4]
        num_segments += 1
        require("jpeg_segments", num_segments, f"{what} has at least", todo="save it anew")
        position += 2 if head[1] in _WITHOUT_LENGTH else 2 + int.from_bytes(head[2:4])


_MARKER = re.compile(rb"\xff[^\0\xff]")
_MOST_FILLED = 2**12
"""Bytes between two segments of a JPEG, which Pillow skips one by one."""
_WITHOUT_LENGTH = (0xC8, *range(0xD0, 0xDA), *range(0xF0, 0xFE))
"""Markers that Pillow takes for alone."""


def _check_chunks(file: IO[bytes], what: str) -> None:
    """Refuse a PNG of very many chunks, which Pillow takes one by one in Python."""
    most = limit("png_chunks")
    if file.seek(0, os.SEEK_END) > most * _LEAST_CHUNK:
        position, num_chunks = 8, 0
        while num_chunks <= most:
            file.seek(position)
            size = file.read(4)
            if len(size) < 4:
                break
            position += int.from_bytes(size) + _LEAST_CHUNK
            num_chunks += 1
        require("png_chunks", num_chunks, f"{what} has at least", todo="save it anew")
    file.seek(0)


_LEAST_CHUNK = 12
"""Bytes of a PNG's chunk without data."""

_SCAN = b"\xff\xda\0"
"""How a scan of a JPEG begins: its marker, and the upper byte of a length below 256."""


def _too_deep(what: str, found: str) -> str:
    return (
        f"{what} has {found}, pictures of sensor 'rgb' have 8 bits per channel; declare the sensor "
        "of its bands (of a GeoTIFF), or convert it to an 8-bit RGB picture"
    )


_BITS, _EXTRA, _FORMAT, _SUBFILE, _NODATA = 258, 338, 339, 254, 42113
_TILE = (322, 323)
"""TIFF tags: bits per sample, what further samples are, the kind of numbers, what a page is,
GDAL's no-data number; width and height of tiles."""
_KINDS = {2: "signed", 3: "floating-point", 5: "complex", 6: "complex"}
_REDUCED, _MASK = 1, 4
"""Bits of what a page is: an overview, and a mask, of the page before it."""


def _check_tiff(file: IO[bytes], what: str) -> bool:
    """Refuse a TIFF that is no 8-bit picture for what it is: Pillow drops bits and channels.

    True where it has a mask or a no-data number.
    """
    try:
        pages = read_pages(file, what, (_BITS, _EXTRA, _FORMAT, _SUBFILE, *_TILE))
    except ValueError as error:
        raise DataError(f"{what} is damaged: {first_line(error)}") from error
    finally:
        file.seek(0)
    bits = pages[0].get(_BITS) or (1,)
    kind = _KINDS.get(max(pages[0].get(_FORMAT) or (1,)))
    tile = math.prod(max(pages[0].get(side) or (0,)) for side in _TILE)
    require("block_bytes", tile * len(bits), f"{what} has tiles of", todo="save it as PNG")
    if max(bits) > 8 or kind:
        number = " and ".join(str(one) for one in sorted(set(bits))[:5])
        described = f"{number} bits per channel" + (f", {kind}" if kind else "")
        raise DataError(_too_deep(what, described))
    if 0 in pages[0].get(_EXTRA, ()):
        raise DataError(
            f"{what} has {len(bits)} channels, some of which are neither colour nor alpha; declare "
            "the sensor of its bands, or save its three colours alone"
        )
    kinds = [max(page.get(_SUBFILE) or (0,)) for page in pages]
    num_whole = sum(not kind & (_REDUCED | _MASK) for kind in kinds)
    if num_whole > 1:
        raise DataError(f"{what} has {num_whole} pages; save one picture per file")
    return _NODATA in pages[0] or any(kind & _MASK for kind in kinds)


# Decoding

_Mask = NDArray[np.bool_] | None
"""(H, W), True where a pixel has data; None where all have."""


def _decode_file(path: Path, size: Size | None) -> tuple[Image.Image, _Mask]:
    require_file(path)
    with open(path, "rb") as file, _open_picture(file, shown(path)) as (image, has_mask):
        return _decode(image, shown(path), size, path if has_mask else None, path)


def _decode(
    image: Image.Image,
    what: str,
    size: Size | None,
    masked: Path | bytes | None,
    path: Path | None = None,
) -> tuple[Image.Image, _Mask]:
    """`masked`: a TIFF with its own mask; `path`: beside which a mask may be (`.msk`)."""
    try:
        picture, valid = _to_rgb(image)
        mask = _mask_of(masked, path, what, (image.height, image.width))
        if mask is not None:
            if mask.shape != (image.height, image.width):
                raise ValueError(f"its mask has {mask.shape[1]}x{mask.shape[0]} pixels")
            valid = mask if valid is None else valid & mask
        if valid is not None and valid.all():
            valid = None
        if size is not None:
            picture, valid = _resize(picture, valid, as_picture_size(size))
    except _IMAGE_FAULTS as error:
        raise DataError(f"{what} is damaged: {first_line(error)}") from error
    return picture, valid


def _mask_of(
    masked: Path | bytes | None, path: Path | None, what: str, shape: tuple[int, int]
) -> _Mask:
    if masked is not None:
        return read_mask(masked, what)
    beside = None if path is None else path.with_name(f"{path.name}.msk")
    return None if beside is None or not beside.is_file() else read_mask_file(beside, shape)


def _to_rgb(image: Image.Image) -> tuple[Image.Image, _Mask]:
    image.load()
    if not image.has_transparency_data:
        return _in_mode(image, "RGB"), None
    rgba = _in_mode(image, "RGBA")
    return rgba.convert("RGB"), np.asarray(rgba.getchannel("A")) > 0


def _in_mode(image: Image.Image, mode: str) -> Image.Image:
    """The picture in a mode; itself, where `convert` would copy it, if it is in that."""
    return image if image.mode == mode else image.convert(mode)


def _resize(image: Image.Image, valid: _Mask, size: PictureSize) -> tuple[Image.Image, _Mask]:
    width, height = image.size
    side = size.side
    resample = _RESAMPLING[size.interpolation]
    if size.mode == "squash":
        if height > MAX_ASPECT * width:  # the long side first, or all its rows would be enlarged
            image, valid = _resized(image, valid, (width, side), resample)
        width, height = side, side
    else:
        rows, columns = middle(height, width), middle(width, height)
        if (rows.stop - rows.start, columns.stop - columns.start) != (height, width):
            image = image.crop((columns.start, rows.start, columns.stop, rows.stop))
            valid = None if valid is None else valid[rows, columns]
            width, height = image.size
        if min(width, height) != side:
            short = min(width, height)
            width, height = int(side * width / short), int(side * height / short)
    image, valid = _resized(image, valid, (width, height), resample)
    left, top = round((width - side) / 2), round((height - side) / 2)
    if valid is not None:
        valid = valid[top : top + side, left : left + side]
    return image.crop((left, top, left + side, top + side)), valid


def _resized(
    image: Image.Image, valid: _Mask, shape: tuple[int, int], resample: Image.Resampling
) -> tuple[Image.Image, _Mask]:
    """The picture at `shape` (width, height), as it is where that is its size."""
    if shape == image.size:
        return image, valid
    require("picture_pixels", shape[0] * shape[1], "the picture, once resized, has")
    if valid is None:
        return image.resize(shape, resample), None
    return _resize_valid(image, valid, shape, resample)


def _resize_valid(
    image: Image.Image, valid: NDArray[np.bool_], shape: tuple[int, int], resample: Image.Resampling
) -> tuple[Image.Image, NDArray[np.bool_]]:
    """Pixels without data have no weight; one with less than half of its weight left has none.

    Resized along rows first, some rows at a time, as Pillow does it for whole pictures.
    """
    strips = []
    for rows in _strips(*image.size):
        mask = valid[rows].astype(np.float32)
        channels = _rows_of(image, rows)
        planes = [mask, *(channels[..., channel] * mask for channel in range(3))]
        across = (shape[0], len(mask))
        strips.append([np.asarray(Image.fromarray(one).resize(across, resample)) for one in planes])
    weight, *sums = (
        np.asarray(Image.fromarray(np.concatenate(parts)).resize(shape, resample))
        for parts in zip(*strips, strict=True)
    )
    numbers = np.stack(sums, -1) / np.maximum(weight, 0.5)[..., None]
    whole = np.rint(numbers.clip(0, 255)).astype(np.uint8)
    return Image.fromarray(whole), weight >= 0.5


_STRIP_PIXELS = 2**22
"""About how many pixels of a large picture are worked on at a time."""


def _strips(width: int, height: int) -> list[slice]:
    """The rows of a picture, some at a time; all at once of one that is not large."""
    step = max(1, _STRIP_PIXELS // width)
    return [slice(top, min(top + step, height)) for top in range(0, height, step)]


def _rows_of(image: Image.Image, rows: slice) -> NDArray[np.uint8]:
    """(rows, W, 3)."""
    if rows == slice(0, image.height):
        return np.asarray(image)
    return np.asarray(image.crop((0, rows.start, image.width, rows.stop)))


def _channels_first(picture: Image.Image) -> NDArray[np.uint8]:
    pixels = np.empty((3, picture.height, picture.width), np.uint8)
    for rows in _strips(*picture.size):
        pixels[:, rows] = _rows_of(picture, rows).transpose(2, 0, 1)
    return pixels


def _joined(picture: Image.Image, valid: _Mask) -> Picture:
    """Pixels and their mask as one array."""
    if valid is None or valid.all():
        return _channels_first(picture)
    pixels = np.full((3, *valid.shape), np.nan, np.float32)
    for rows in _strips(*picture.size):
        np.copyto(pixels[:, rows], _rows_of(picture, rows).transpose(2, 0, 1), where=valid[rows])
    return pixels
