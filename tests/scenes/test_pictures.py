"""Pictures are decoded and resized as CLIP's own evaluation does it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torchvision.transforms import CenterCrop, Compose, InterpolationMode, Resize

from terralign.errors import DataError
from terralign.scenes import pictures
from terralign.scenes.pictures import decode_rgb, picture_shape


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
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 1199)
    with pytest.raises(DataError, match=r"40x30 pixels, more than the limit of 1199"):
        decode_rgb(path)
    monkeypatch.setattr(pictures, "MAX_IMAGE_PIXELS", 1200)
    assert decode_rgb(path).shape == (3, 30, 40)


def test_a_decompression_bomb_is_a_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "bomb.png"
    Image.new("L", (100, 100)).save(path)
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 1000)
    with pytest.raises(DataError, match=r"bomb.png cannot be read"):
        decode_rgb(path)


def test_a_sliver_that_would_grow_without_bound_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "sliver.png"
    Image.fromarray(noise(1, 600_000)).save(path)
    with pytest.raises(DataError, match=r"resized it would have 224x134400000|134400000x224"):
        decode_rgb(path, 224)
