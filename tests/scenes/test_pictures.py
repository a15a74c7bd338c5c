"""Pictures are decoded and resized as CLIP's own evaluation does it."""

from __future__ import annotations

import io
import os
import struct
import tracemalloc
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from PIL import Image
from rasterio import Affine
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from imagery import read_chip
from terralign.errors import DataError
from terralign.preprocess import scale_composite
from terralign.scenes import pictures
from terralign.scenes.pictures import (
    PICTURE_SUFFIXES,
    PictureSize,
    as_picture_size,
    decode_rgb,
    decode_rgb_bytes,
    describe_size,
    image_with_mask,
    picture_shape,
    resize_rgb,
)


def noise(height: int, width: int, channels: int = 3) -> np.ndarray:
    return np.random.default_rng(1).integers(0, 256, (height, width, channels), dtype=np.uint8)


@pytest.mark.parametrize(
    ("height", "width", "size"),
    [(64, 64, 64), (150, 150, 64), (97, 64, 64), (50, 83, 64), (31, 20, 64), (65, 64, 64)],
)
def test_resizing_equals_the_evaluation_transform_of_clip(
    tmp_path: Path, height: int, width: int, size: int
) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(height, width)).save(path)
    transform = Compose([Resize(size, InterpolationMode.BICUBIC), CenterCrop(size)])
    expected = np.asarray(transform(Image.open(path))).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_rgb(path, size), expected)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "LA"])
def test_every_8_bit_mode_becomes_rgb(tmp_path: Path, mode: str) -> None:
    picture = Image.fromarray(noise(8, 9)).convert(mode)
    path = tmp_path / ("a.jpg" if mode == "CMYK" else "a.png")
    picture.save(path)
    pixels = decode_rgb(path)
    assert pixels.shape == (3, 8, 9)
    assert pixels.dtype == np.uint8
    expected = np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(pixels, expected)


def test_a_palette_with_transparency_reads_quietly(tmp_path: Path) -> None:
    picture = Image.fromarray(noise(8, 9)).convert("P")
    path = tmp_path / "a.png"
    picture.save(path, transparency=bytes(range(200)))
    assert decode_rgb(path).shape == (3, 8, 9)


def test_a_palette_picture_without_a_palette_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.fromarray(noise(8, 9)).convert("P").save(path)
    content = path.read_bytes()
    start = content.index(b"PLTE") - 4
    stop = content.index(b"IDAT") - 4
    path.write_bytes(content[:start] + content[stop:])
    with pytest.raises(DataError, match=r"a\.png is damaged"):
        decode_rgb(path)


def test_16_bit_pictures_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "deep.png"
    Image.fromarray(np.full((4, 4), 40_000, np.uint16)).save(path)
    with pytest.raises(DataError, match=r"deep.png has 16 bits per channel"):
        decode_rgb(path)


def test_an_exif_orientation_is_not_applied(tmp_path: Path) -> None:
    path = tmp_path / "a.jpg"
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGB", (8, 4)).save(path, exif=exif)
    assert decode_rgb(path).shape == (3, 4, 8)
    assert picture_shape(path) == (4, 8)


def test_text_called_jpg_is_named(tmp_path: Path) -> None:
    path = tmp_path / "text.jpg"
    path.write_text("this is no picture")
    with pytest.raises(DataError, match=r"text.jpg is not an image"):
        decode_rgb(path)


@pytest.mark.parametrize("suffix", ["jpg", "png"])
def test_a_truncated_picture_is_named(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"cut.{suffix}"
    Image.fromarray(noise(64, 64)).save(path)
    path.write_bytes(path.read_bytes()[:1500])
    with pytest.raises(DataError, match=rf"cut.{suffix} is damaged"):
        decode_rgb(path)


def test_a_picture_over_the_limit_is_refused_by_its_header(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (40, 30)).save(path)
    monkeypatch.setenv("TERRALIGN_LIMITS", "picture_pixels=1199")
    with pytest.raises(
        DataError, match=r"\(40x30\) has 1,200 pixels, more than the limit of 1,199"
    ):
        decode_rgb(path)
    monkeypatch.setenv("TERRALIGN_LIMITS", "picture_pixels=1200")
    assert decode_rgb(path).shape == (3, 30, 40)


def test_a_raised_limit_is_not_pillows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "large.png"
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    assert decode_rgb(path).shape == (3, 100, 100)


@pytest.mark.parametrize("shape", [(1, 400_000), (400_000, 1), (3, 100_001)])
@pytest.mark.parametrize("mode", ["shortest", "squash"])
def test_a_sliver_is_resized_in_little_memory(
    tmp_path: Path, shape: tuple[int, int], mode: Any
) -> None:
    path = tmp_path / "sliver.png"
    Image.fromarray(noise(*shape)).save(path)
    tracemalloc.start()
    pixels = decode_rgb(path, PictureSize(64, mode))
    assert tracemalloc.get_traced_memory()[1] < 40e6
    tracemalloc.stop()
    assert pixels.shape == (3, 64, 64)


def test_of_a_long_picture_the_same_pixels_are_seen_as_if_the_whole_were_resized() -> None:
    picture = noise(3400, 200)
    whole = Image.fromarray(picture).resize((100, 1700), Image.Resampling.BICUBIC)
    expected = np.asarray(whole)[800:900].transpose(2, 0, 1)
    np.testing.assert_array_equal(resize_rgb(picture.transpose(2, 0, 1), 100), expected)


def test_pixels_without_data_are_resized_alike_in_strips(monkeypatch: pytest.MonkeyPatch) -> None:
    picture = noise(90, 70).transpose(2, 0, 1).astype(np.float32)
    picture[:, 20:50, 10:60] = np.nan
    whole = resize_rgb(picture, 32)
    monkeypatch.setattr(pictures, "_STRIP_PIXELS", 500)
    np.testing.assert_array_equal(resize_rgb(picture, 32), whole)
    assert np.isnan(whole).any()


def progressive(num_scans: int) -> bytes:
    """A JPEG of 8x8 pixels whose last scan comes so often."""
    stream = io.BytesIO()
    Image.fromarray(noise(8, 8)).save(stream, "JPEG", progressive=True)
    data = stream.getvalue()
    last = data[data.rindex(b"\xff\xda") : -2]
    return data[:-2] + last * num_scans + b"\xff\xd9"


def test_a_jpeg_of_very_many_scans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scans.jpg"
    path.write_bytes(progressive(20))
    assert decode_rgb(path).shape == (3, 8, 8)
    path.write_bytes(progressive(400))
    with pytest.raises(DataError, match=r"scans.jpg has 4\d\d scans, more than the limit of 200"):
        decode_rgb(path)


def test_a_jpeg_of_very_many_segments_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "segments.jpg"
    Image.fromarray(noise(8, 8)).save(path)
    data, segment = path.read_bytes(), b"\xff\xe1\0\x10Exif\0\0abcdefgh"
    path.write_bytes(data[:2] + 300 * segment + data[2:])
    assert decode_rgb(path).shape == (3, 8, 8)
    path.write_bytes(data[:2] + 200_000 * segment + data[2:])
    with pytest.raises(DataError, match=r"segments.jpg has at least 5,001 segments"):
        decode_rgb(path)


@pytest.mark.parametrize("filling", [b"\xff", b"\0", b"\xff\xd0"])
def test_a_jpeg_that_is_filled_up_is_refused(tmp_path: Path, filling: bytes) -> None:
    path = tmp_path / "filled.jpg"
    Image.fromarray(noise(8, 8)).save(path)
    data = path.read_bytes()
    end = data.index(b"\xff\xdb")
    path.write_bytes(data[:end] + 1000 * filling + data[end:])
    assert decode_rgb(path).shape == (3, 8, 8)
    path.write_bytes(data[:end] + 5_000_000 * filling + data[end:])
    with pytest.raises(DataError, match=r"filled.jpg (is damaged: no segment|has at least 5,001)"):
        decode_rgb(path)


def test_a_webp_with_alpha_has_a_limit_of_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "webp_alpha_pixels=63")
    path = tmp_path / "a.webp"
    Image.fromarray(noise(8, 8)).save(path)
    assert decode_rgb(path).shape == (3, 8, 8)
    Image.fromarray(noise(8, 8, 4)).save(path)
    with pytest.raises(DataError, match=r"a.webp has 64 pixels, more than the limit of 63"):
        decode_rgb(path)


def test_run_lengths_of_a_bmp_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "runs.bmp"
    sizes = struct.pack("<IiiHHIIiiII", 40, 6000, 6000, 1, 8, 1, 0, 0, 0, 0, 0)
    path.write_bytes(b"BM" + struct.pack("<IHHI", 0, 0, 0, 1078) + sizes + bytes(1024))
    os.truncate(path, 20_000_000)
    with pytest.raises(DataError, match=r"runs.bmp has run lengths of 19.07 MiB, more than"):
        decode_rgb(path)


def test_a_png_of_very_many_chunks_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "chunks.png"
    Image.fromarray(noise(32, 32)).save(path)
    monkeypatch.setenv("TERRALIGN_LIMITS", "png_chunks=20")
    assert decode_rgb(path).shape == (3, 32, 32)
    data, nothing = path.read_bytes(), struct.pack(">I4sI", 0, b"abCd", zlib.crc32(b"abCd"))
    path.write_bytes(data[:33] + 30 * nothing + data[33:])
    with pytest.raises(DataError, match=r"chunks.png has at least 21 chunks"):
        decode_rgb(path)


# What a file is


def write_tiff(path: Path, pixels: np.ndarray, **profile: Any) -> Path:
    """(C, H, W) through GDAL."""
    settings: dict[str, Any] = {"driver": "GTiff", "dtype": pixels.dtype, "count": len(pixels)}
    settings |= {"height": pixels.shape[1], "width": pixels.shape[2]}
    settings["transform"] = Affine(10, 0, 500_000, 0, -10, 5_000_000)
    with rasterio.open(path, "w", **(settings | profile)) as file:
        file.write(pixels)
    return path


def deep_png(path: Path, channels: int) -> Path:
    """A PNG of 16 bits per channel, which Pillow does not write."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    pixels = np.full((4, 5, channels), 2000, ">u2")
    kind = {1: 0, 2: 4, 3: 2, 4: 6}[channels]
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)
    head = chunk(b"IHDR", struct.pack(">IIBBBBB", 5, 4, 16, kind, 0, 0, 0))
    body = chunk(b"IDAT", zlib.compress(rows)) + chunk(b"IEND", b"")
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + head + body)
    return path


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
def test_a_png_of_16_bits_is_refused_whatever_its_channels(tmp_path: Path, channels: int) -> None:
    path = deep_png(tmp_path / "deep.png", channels)
    for read in (decode_rgb, read_chip):
        with pytest.raises(
            DataError, match=r"deep.png has 16 bits per channel.*convert it to an 8"
        ):
            read(path)
    with pytest.raises(DataError, match="member has 16 bits per channel"):
        decode_rgb_bytes(path.read_bytes(), "member")


@pytest.mark.parametrize(
    ("pixels", "profile", "said"),
    [
        (np.ones((3, 4, 4), np.uint16), {}, "has 16 bits per channel, .*declare the sensor"),
        (np.ones((3, 4, 4), np.uint16), {"photometric": "RGB"}, "has 16 bits per channel"),
        (np.ones((3, 4, 4), np.uint16), {"interleave": "band"}, "has 16 bits per channel"),
        (np.ones((4, 4, 4), np.uint16), {"photometric": "CMYK"}, "has 16 bits per channel"),
        (np.ones((1, 4, 4), np.int16), {}, "has 16 bits per channel, signed"),
        (np.ones((3, 4, 4), np.float32), {}, "has 32 bits per channel, floating-point"),
        (np.ones((1, 4, 4), np.int8), {}, "has 8 bits per channel, signed"),
        (np.ones((4, 4, 4), np.uint8), {"photometric": "RGB", "alpha": "no"}, "has 4 channels"),
        (np.ones((5, 4, 4), np.uint8), {"photometric": "RGB"}, "has 5 channels"),
    ],
)
def test_a_tiff_that_is_no_8_bit_picture_is_refused_for_what_it_is(
    tmp_path: Path, pixels: np.ndarray, profile: dict[str, Any], said: str
) -> None:
    with pytest.raises(DataError, match=f"a.tif {said}"):
        decode_rgb(write_tiff(tmp_path / "a.tif", pixels, **profile))


def test_several_pages_and_animations_are_refused(tmp_path: Path) -> None:
    frames = [Image.fromarray(noise(8, 8)) for _ in range(3)]
    frames[1].putpixel((0, 0), (0, 0, 0))
    frames[2].putpixel((1, 1), (0, 0, 0))
    for name in ("a.tif", "a.gif", "a.webp", "a.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
        with pytest.raises(DataError, match=rf"{name} (has 3 pages|is an animation)"):
            decode_rgb(tmp_path / name)
    with pytest.raises(DataError, match=r"a.tif has 3 pages"):
        read_chip(tmp_path / "a.tif")


@pytest.mark.parametrize("name", ["a.webp", "a.bmp", "a.gif", "a.PNG", "a.tiff"])
def test_every_format_is_read(tmp_path: Path, name: str) -> None:
    picture = Image.fromarray(noise(8, 9))
    options: dict[str, Any] = {"lossless": True} if name == "a.webp" else {}
    picture.save(tmp_path / name, **options)
    with Image.open(tmp_path / name) as written:
        expected = np.asarray(written.convert("RGB")).transpose(2, 0, 1)
    np.testing.assert_array_equal(decode_rgb(tmp_path / name), expected)
    assert (tmp_path / name).suffix.lower() in PICTURE_SUFFIXES
    if name != "a.tiff":
        np.testing.assert_array_equal(read_chip(tmp_path / name).pixels, expected)


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"\0\0\0\x0cjP  \r\n\x87\n" + bytes(40), "is a JPEG 2000 file"),
        (b"\0\0\0\x1cftypheic" + bytes(40), "is a HEIF file"),
        (b"\x89HDF\r\n\x1a\n" + bytes(40), "is a HDF5 or netCDF-4 file"),
        (b"PK\x03\x04" + bytes(40), "is a ZIP file"),
        (bytes(257) + b"ustar", "is a tar file, .*; unpack it"),
        (b"\n<!DOCTYPE html><html>", "is an HTML file, .* login page"),
        (b"<?xml version='1.0'?><Error/>", "is an XML file, .* download it again"),
        (b'{"error": "expired"}', "is a JSON file, .* download it again"),
        (b"version https://git-lfs.github.com/spec/v1", "is a Git LFS pointer .*git lfs pull"),
        (b"EHFA_HEADER_TAG" + bytes(40), "is an ERDAS Imagine file"),
    ],
)
def test_another_format_is_named(tmp_path: Path, content: bytes, said: str) -> None:
    path = tmp_path / "a.jpg"
    path.write_bytes(content)
    for read in (decode_rgb, read_chip):
        with pytest.raises(DataError, match=f"a.jpg {said}"):
            read(path)


# Sizes


@pytest.mark.parametrize("size", [(0, 5), (5, 0), (0, 0)])
def test_a_picture_without_pixels_is_refused(size: tuple[int, int]) -> None:
    with pytest.raises(DataError, match="has no pixels"):
        image_with_mask(Image.new("RGB", size))
    with pytest.raises(DataError, match="has no pixels"):
        resize_rgb(np.zeros((3, *size), np.uint8), 8)


def test_a_picture_in_a_file_of_any_name_is_named_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "a\nb\x1b.png"
    path.write_bytes(b"\x89PNG\r\n\x1a\nno more")
    with pytest.raises(DataError, match=r"a\\nb\\x1b\.png is a PNG file that is damaged"):
        decode_rgb(path)


def test_a_picture_size_is_described_and_read_back() -> None:
    for size in (PictureSize(64), PictureSize(64, "squash"), PictureSize(9, "squash", "bilinear")):
        assert as_picture_size(size.describe()) == size
    assert as_picture_size(64) == as_picture_size("64") == as_picture_size("64-shortest-bicubic")
    assert describe_size(PictureSize(64)) == 64
    assert as_picture_size("64-bilinear") == PictureSize(64, "shortest", "bilinear")
    for wrong in ("", "64-longest", "64-squash-nearest", "0", "big"):
        with pytest.raises(DataError, match="size"):
            as_picture_size(wrong)


# No data


def half_transparent(mode: str = "RGBA") -> tuple[Image.Image, np.ndarray]:
    """A picture whose left half has alpha 0 over a strong red, and what is right of it."""
    pixels = noise(40, 60)
    pixels[:, :30] = (255, 0, 0)
    alpha = np.full((40, 60, 1), 255, np.uint8)
    alpha[:, :30] = 0
    return Image.fromarray(np.concatenate([pixels, alpha], -1)).convert(mode), pixels


@pytest.mark.parametrize("name", ["a.png", "a.webp", "a.tif"])
def test_transparent_pixels_are_nan_at_their_own_size(tmp_path: Path, name: str) -> None:
    picture, pixels = half_transparent()
    picture.save(tmp_path / name, **({"lossless": True, "exact": True} if "webp" in name else {}))
    found = decode_rgb(tmp_path / name)
    assert found.dtype == np.float32
    assert np.isnan(found[:, :, :30]).all()
    np.testing.assert_array_equal(found[:, :, 30:], pixels.transpose(2, 0, 1)[:, :, 30:])
    np.testing.assert_array_equal(decode_rgb_bytes((tmp_path / name).read_bytes(), "x"), found)


@pytest.mark.parametrize("mode", ["squash", "shortest"])
def test_resizing_never_mixes_in_what_is_transparent(tmp_path: Path, mode: Any) -> None:
    pixels = np.zeros((40, 40, 4), np.uint8)
    pixels[:, :17] = (255, 0, 0, 0)
    pixels[:, 17:] = (10, 20, 200, 255)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    found = decode_rgb(tmp_path / "a.png", PictureSize(12, mode))
    valid = np.isfinite(found).all(0)
    assert valid.any()
    assert not valid.all()
    assert valid[:, 6:].all()  # 17 of 40 columns are 5.1 of 12
    assert not valid[:, :5].any()
    for channel, value in enumerate((10, 20, 200)):
        np.testing.assert_array_equal(found[channel][valid], value)
    np.testing.assert_array_equal(
        resize_rgb(decode_rgb(tmp_path / "a.png"), PictureSize(12, mode)), found
    )


def test_a_crop_without_transparent_pixels_is_whole_numbers(tmp_path: Path) -> None:
    pixels = np.full((10, 30, 4), 255, np.uint8)
    pixels[:, 0, 3] = 0
    Image.fromarray(pixels).save(tmp_path / "a.png")
    assert decode_rgb(tmp_path / "a.png", 10).dtype == np.uint8
    assert decode_rgb(tmp_path / "a.png").dtype == np.float32


def test_partly_transparent_pixels_are_as_without_alpha(tmp_path: Path) -> None:
    pixels = np.concatenate([noise(20, 20), np.full((20, 20, 1), 3, np.uint8)], -1)
    Image.fromarray(pixels).save(tmp_path / "a.png")
    Image.fromarray(pixels[..., :3]).save(tmp_path / "b.png")
    np.testing.assert_array_equal(
        decode_rgb(tmp_path / "a.png", 8), decode_rgb(tmp_path / "b.png", 8)
    )


@pytest.mark.parametrize("mode", ["P", "L", "RGB"])
def test_a_transparent_colour_is_no_data(tmp_path: Path, mode: str) -> None:
    picture = Image.new(mode, (6, 4), 0)
    if mode == "P":
        picture.putpalette([9, 9, 9, 200, 100, 50])
    inside = {"P": 1, "L": 77, "RGB": (1, 2, 3)}[mode]
    picture.paste(inside, (2, 0, 6, 4))
    picture.save(tmp_path / "a.png", transparency=(0, 0, 0) if mode == "RGB" else 0)
    found = decode_rgb(tmp_path / "a.png")
    assert np.isnan(found[:, :, :2]).all()
    assert np.isfinite(found[:, :, 2:]).all()


def test_a_chip_of_a_picture_has_its_alpha_as_its_mask(tmp_path: Path) -> None:
    half_transparent()[0].save(tmp_path / "a.png")
    chip = read_chip(tmp_path / "a.png")
    assert not chip.valid[:, :, :30].any()
    assert chip.valid[:, :, 30:].all()


def test_the_masks_of_a_geotiff_hold_where_it_is_read_as_a_picture(tmp_path: Path) -> None:
    pixels = noise(6, 8).transpose(2, 0, 1).clip(1)
    pixels[:, :, :2] = 0
    path = write_tiff(tmp_path / "nodata.tif", pixels, nodata=0, photometric="RGB")
    assert np.isnan(decode_rgb(path)).any(0).sum() == 12
    assert np.isnan(decode_rgb_bytes(path.read_bytes(), "x")).any(0).sum() == 12
    mask = np.full((6, 8), 255, np.uint8)
    mask[:3] = 0
    for name, inside in (("inside.tif", True), ("beside.tif", False)):
        path = write_tiff(tmp_path / name, pixels, photometric="RGB")
        with rasterio.Env(GDAL_TIFF_INTERNAL_MASK=inside), rasterio.open(path, "r+") as file:
            file.write_mask(mask)
        assert (tmp_path / f"{name}.msk").exists() != inside
        found = decode_rgb(path)
        assert np.isnan(found[:, :3]).all()
        np.testing.assert_array_equal(found[:, 3:], pixels[:, 3:])


def test_no_data_of_a_picture_is_the_same_whichever_way_it_is_read(tmp_path: Path) -> None:
    pixels = noise(6, 8).transpose(2, 0, 1).clip(1)
    pixels[:, :, :2] = 0
    pixels[0, :, 2:4] = 0  # no red: a colour
    path = write_tiff(tmp_path / "nodata.tif", pixels, nodata=0, photometric="RGB")
    chip = read_chip(path)
    assert not chip.valid[:, :, :2].any()
    assert chip.valid[:, :, 2:].all()
    picture = scale_composite(torch.from_numpy(chip.pixels)[None], chip.layout)
    assert picture.isnan().sum() == 36
    assert np.isnan(decode_rgb(path)).sum() == 36


def test_overviews_are_no_pages(tmp_path: Path) -> None:
    path = write_tiff(tmp_path / "a.tif", noise(64, 64).transpose(2, 0, 1), photometric="RGB")
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    assert decode_rgb(path).dtype == np.uint8


def test_a_damaged_profile_behind_the_pixels_is_told(tmp_path: Path) -> None:
    path = tmp_path / "photo.png"
    Image.new("RGB", (8, 8)).save(path)
    profile = b"iCCPname\0"
    chunk = (len(profile) - 4).to_bytes(4) + profile + zlib.crc32(profile).to_bytes(4)
    data = path.read_bytes()
    path.write_bytes(data[:-12] + chunk + data[-12:])
    with pytest.raises(DataError, match=r"photo.png is damaged: index out of range"):
        read_chip(path)
