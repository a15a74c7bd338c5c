"""The inputs that a path names."""

from __future__ import annotations

import errno
import logging
import os
from pathlib import Path

import pytest
from band_folders import NAME, write_band, write_product

from terralign.errors import DataError
from terralign.limits import LIMITS
from terralign.scenes import inputs
from terralign.scenes.scene import find_inputs
from terralign.sensors import Band, Sensor


def test_a_file_and_a_product_are_themselves(tmp_path: Path) -> None:
    product = write_product(tmp_path / NAME, {"B04.tif": 1})
    assert find_inputs(str(product)) == [product]
    assert find_inputs(product / "B04.tif") == [product / "B04.tif"]


def test_a_folder_gives_pictures_geotiffs_and_products_below_it(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    product = write_product(tmp_path / "deep" / "p", {"red.tif": 1, "nir.tif": 1})
    write_band(tmp_path / "deep" / "scene.TIF")
    for name in ("b.jpg", "a.png", ".hidden.png", "c.png.part", "notes.txt", "x.npy", "y.npy"):
        (tmp_path / name).touch()
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "d.png").touch()
    with caplog.at_level(logging.INFO):
        found = find_inputs(tmp_path)
    assert found == sorted(
        [tmp_path / "a.png", tmp_path / "b.jpg", product, tmp_path / "deep" / "scene.TIF"]
    )
    assert "4 inputs; 2 other files left out (.npy 2)" in caplog.text


def test_links_are_followed_once(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "one.png").touch()
    (tmp_path / "a" / "up").symlink_to(tmp_path)
    (tmp_path / "self").symlink_to(tmp_path)
    (tmp_path / "dead.png").symlink_to(tmp_path / "nowhere")
    assert [path.name for path in find_inputs(tmp_path)] == ["one.png"]


def test_nothing_to_read_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="not found"):
        find_inputs(tmp_path / "missing")
    (tmp_path / "x.npy").touch()
    with pytest.raises(DataError, match=r"holds nothing to read \(1 other files\): looked for"):
        find_inputs(tmp_path)


def test_what_lies_too_deep_is_skipped(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """200 such folders deep no path can be given to the system at all."""
    (tmp_path / "a.png").touch()
    home, folder = os.getcwd(), tmp_path
    try:
        os.chdir(tmp_path)
        for _ in range(200):
            os.mkdir("a_folder_with_a_long_name")
            os.chdir("a_folder_with_a_long_name")
    finally:
        os.chdir(home)
    for _ in range(LIMITS["folder_depth"]):
        folder /= "a_folder_with_a_long_name"
    (folder / "b.png").touch()
    (folder / "a_folder_with_a_long_name" / "c.png").touch()
    assert [path.name for path in find_inputs(tmp_path)] == ["a.png", "b.png"]
    assert f"1 of the folders and files below it are skipped, such as {folder}" in caplog.text
    assert "more than 32 folders" in caplog.text


def test_what_cannot_be_read_is_skipped(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Simulated, since root may read any folder."""

    def is_product(folder: Path, *, sensor: Sensor | None = None) -> bool:
        if folder.name == "locked":
            raise PermissionError(errno.EACCES, "Permission denied")
        return False

    monkeypatch.setattr(inputs, "is_product", is_product)
    for name in ("locked", "open"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "a.png").touch()
    assert find_inputs(tmp_path) == [tmp_path / "open" / "a.png"]
    assert f"such as {tmp_path / 'locked'}: Permission denied" in caplog.text
    with pytest.raises(DataError, match="locked cannot be read: Permission denied"):
        find_inputs(tmp_path / "locked")


def test_a_name_that_is_too_long_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="cannot be read: File name too long"):
        find_inputs(tmp_path / ("x" * 5000))


def test_their_number_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "folder_inputs=2")
    for name in ("a", "b", "c"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "1.png").touch()
    (tmp_path / "d").mkdir()
    with pytest.raises(DataError, match="holds at least 3 inputs, more than the limit of 2"):
        find_inputs(tmp_path)


def test_a_custom_sensor_makes_products(tmp_path: Path) -> None:
    mine = Sensor(name="mine", bands=(Band(name="pan"), Band(name="swir9")), unit="reflectance")
    for name in ("s_pan.tif", "s_swir9.tif"):
        (tmp_path / name).touch()
    assert find_inputs(tmp_path, sensor=mine) == [tmp_path]
    assert len(find_inputs(tmp_path)) == 2
