"""Class folders and split lists: every folder has a class, every entry a file, nothing guessed."""

from __future__ import annotations

import logging
import os
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine

from terralign.datasets.class_folders import open_folder, read_split_list
from terralign.datasets.content import FileContent
from terralign.datasets.file_set import FileSet
from terralign.datasets.pixels import Pixels
from terralign.errors import DataError
from terralign.scenes.pictures import PictureSize, decode_rgb
from terralign.sensors import SENSORS

CLASSES = {"Sea": "open sea", "Bog": "peat bog"}
RGB = Pixels(sensor=SENSORS["rgb"])


def picture(path: Path, side: int = 8, seed: int = 0) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, format="PNG")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for seed, name in enumerate(["Sea/b.png", "Sea/a.JPG", "Bog/c.png", "Bog/d.TIFF"]):
        picture(tmp_path / name, seed=seed)
    return tmp_path


def opened(root: Path, *, split_list: Path | None = None, pixels: Pixels = RGB) -> FileSet:
    return open_folder(
        root,
        name="mine",
        split="test",
        classes=CLASSES,
        class_list="mine",
        pixels=pixels,
        split_list=split_list,
    )


def test_samples_are_sorted_within_classes_in_the_given_order(root: Path) -> None:
    samples = opened(root)
    assert samples.keys == ("Sea/a", "Sea/b", "Bog/c", "Bog/d")
    assert samples.labels is not None
    assert samples.labels.values.tolist() == [0, 0, 1, 1]
    assert samples.labels.class_names == ("open sea", "peat bog")
    assert len(samples) == 4


def test_pixels_are_those_of_the_files_asked_for(root: Path) -> None:
    samples = opened(root)
    pixels = samples.read(np.array([3, 0]))["rgb"]
    assert pixels.shape == (2, 3, 8, 8)
    for got, name in zip(pixels, ["Bog/d.TIFF", "Sea/a.JPG"], strict=True):
        np.testing.assert_array_equal(got, np.asarray(Image.open(root / name)).transpose(2, 0, 1))


def test_reading_from_many_threads_gives_the_same(root: Path) -> None:
    samples = opened(root)
    expected = samples.read(np.arange(4))["rgb"]
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: samples.read(np.arange(4))["rgb"], range(20)):
            np.testing.assert_array_equal(got, expected)


def test_hidden_and_other_files_are_passed_over(root: Path) -> None:
    (root / ".cache").mkdir()
    (root / "readme.txt").write_text("x")
    (root / "Sea" / "notes.txt").write_text("x")
    picture(root / "Sea" / ".hidden.png")
    assert len(opened(root)) == 4


def test_a_folder_without_a_class_and_the_reverse_are_named(root: Path) -> None:
    (root / "Moor").mkdir()
    with pytest.raises(DataError, match="folders without a class: Moor"):
        opened(root)
    (root / "Moor").rename(root / ".Moor")
    (root / "Bog").rename(root / ".Bog")
    with pytest.raises(DataError, match="no folder for the classes Bog"):
        opened(root)
    with pytest.raises(DataError, match=r"nowhere not found"):
        opened(root / "nowhere")


def test_class_folders_without_images_are_an_error(tmp_path: Path) -> None:
    (tmp_path / "Sea").mkdir()
    (tmp_path / "Bog").mkdir()
    with pytest.raises(DataError, match="no image found"):
        opened(tmp_path)


def test_images_of_several_sizes_need_a_size(root: Path) -> None:
    picture(root / "Bog" / "e.png", side=12)
    samples = opened(root)
    assert samples.read(np.array([0]))["rgb"].shape == (1, 3, 8, 8)
    message = r"e.png has 12x12 pixels, .*a.JPG has 8x8.*give RGB images a size"
    with pytest.raises(DataError, match=message):
        samples.read(np.array([4]))
    resized = opened(root, pixels=replace(RGB, size=6)).read(np.arange(5))["rgb"]
    assert resized.shape == (5, 3, 6, 6)
    np.testing.assert_array_equal(resized[4], decode_rgb(root / "Bog" / "e.png", 6))


def test_the_way_of_resizing_is_part_of_what_a_set_is(root: Path) -> None:
    sizes = [6, PictureSize(6), PictureSize(6, "squash"), PictureSize(6, "shortest", "bilinear")]
    found = [opened(root, pixels=replace(RGB, size=size)) for size in sizes]
    assert found[0].fingerprint == found[1].fingerprint
    assert len({one.fingerprint for one in found}) == 3


def test_a_deep_tiff_under_rgb_is_refused_for_its_bits(root: Path) -> None:
    geotiff(root / "Bog" / "deep.tif", np.ones((3, 8, 8), dtype=np.uint16))
    samples = opened(root, pixels=replace(RGB, size=8))
    with pytest.raises(DataError, match=r"deep\.tif has 16 bits per channel"):
        samples.read(np.arange(len(samples)))


def test_a_file_that_is_no_image_is_named_when_it_is_read(root: Path) -> None:
    (root / "Bog" / "z.jpg").write_text("a text file")
    samples = opened(root)
    samples.read(np.arange(4))
    with pytest.raises(DataError, match=r"z.jpg is not an image"):
        samples.read(np.array([4]))


def test_files_that_differ_in_their_ending_keep_it_in_their_keys(root: Path) -> None:
    picture(root / "Sea" / "a.png")
    assert opened(root).keys[:3] == ("Sea/a.JPG", "Sea/a.png", "Sea/b.png")


def test_the_fingerprint_follows_files_size_and_meaning(root: Path, tmp_path: Path) -> None:
    first = opened(root).fingerprint
    assert opened(root).fingerprint == first
    resized = opened(root, pixels=replace(RGB, size=6)).fingerprint
    listed = tmp_path / "list.txt"
    listed.write_text("Sea/a.JPG\nBog/c.png\n")
    part = opened(root, split_list=listed).fingerprint
    picture(root / "Bog" / "c.png", side=9)
    changed = opened(root).fingerprint
    assert len({first, resized, part, changed}) == 4


def test_a_pipe_among_pictures_is_not_opened(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "a.png")  # which would wait for somebody to write into it
    content = FileContent(tmp_path / "a.png")
    assert (content.length(), content.middle()) == (-1, content.address.encode())


def test_the_fingerprint_follows_pixels_that_change_while_the_file_keeps_its_size(
    root: Path,
) -> None:
    path = root / "Bog" / "d.TIFF"
    found = []
    for offset in (0, 1):  # as where an offset is taken off in place
        numbers = np.arange(192, dtype=np.uint8).reshape(8, 8, 3) + np.uint8(offset)
        Image.fromarray(numbers).save(path, format="TIFF")
        found.append((path.stat().st_size, opened(root).fingerprint, opened(root).pixels_id))
    assert found[0][0] == found[1][0]
    assert found[0][1] != found[1][1]
    assert found[0][2] != found[1][2]


def test_a_split_list_picks_its_files(root: Path, tmp_path: Path) -> None:
    listed = tmp_path / "list.txt"
    listed.write_text("# mine\nd.TIFF\n\nSea/b.png\n")
    samples = opened(root, split_list=listed)
    assert samples.keys == ("Sea/b", "Bog/d")
    assert samples.labels is not None
    assert samples.labels.values.tolist() == [0, 1]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Sea/b.png\nSea/nope.png\n", r"'Sea/nope.png' is no image below"),
        ("same.png\n", r"'same.png' is in several folders; write it as folder/file"),
        ("Sea/b.png\nSea/b.png\n", r"names 'Sea/b.png' twice"),
        ("Sea/b.png\n./Sea/b.png\n", r"'./Sea/b.png' names .* a second time"),
        ("../Sea/b.png\n", r"'../Sea/b.png' leads outside"),
        ("Sea/../../x.png\n", r"leads outside"),
        ("/etc/passwd\n", r"'/etc/passwd' leads outside"),
        ("C:/x.png\n", r"leads outside"),
        ("# nothing\n", r"names no file"),
    ],
)
def test_a_wrong_split_list_is_one_clear_error(
    root: Path, tmp_path: Path, text: str, message: str
) -> None:
    picture(root / "Sea" / "same.png")
    picture(root / "Bog" / "same.png")
    listed = tmp_path / "list.txt"
    listed.write_text(text)
    with pytest.raises(DataError, match=message):
        opened(root, split_list=listed)


def test_a_missing_split_list_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot read split list .*gone.txt"):
        read_split_list(tmp_path / "gone.txt")


def geotiff(path: Path, pixels: np.ndarray, nodata: float | None = None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    settings = {"driver": "GTiff", "dtype": pixels.dtype, "nodata": nodata}
    count, height, width = pixels.shape
    size = {"count": count, "height": height, "width": width}
    with rasterio.open(
        path, "w", transform=Affine(10, 0, 0, 0, -10, 0), **size, **settings
    ) as file:
        file.write(pixels)


MS = Pixels(sensor=SENSORS["sentinel2-l2a"], bands=("B04", "B03"), dn_offset=-1000.0)


def test_bands_beside_those_of_the_sensor_are_left_out(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.full((3, 4, 4), 900, dtype=np.uint16)
    for number, folder in enumerate(("Sea", "Bog")):
        geotiff(tmp_path / folder / "a.tif", pixels + number)
        with rasterio.open(tmp_path / folder / "a.tif", "r+") as file:
            file.descriptions = ("B4", "NDVI" if number else "QA60", "B3")
    sensor = SENSORS["sentinel2-l2a"]
    named = Pixels(sensor=sensor, dn_offset=0)
    samples = opened(tmp_path, pixels=named)
    assert samples.layouts[sensor.name].bands == ("B04", "B03")
    assert "'QA60' is no band" in caplog.text
    with pytest.raises(DataError, match="'NDVI' is not known"):
        samples.read(np.arange(2))
    declared = opened(tmp_path, pixels=replace(named, bands=("B04", "-", "B03")))
    assert declared.read(np.arange(2))[sensor.name].shape == (2, 2, 4, 4)


def test_geotiffs_of_a_declared_sensor(tmp_path: Path) -> None:
    pixels = np.arange(1501, 1533, dtype=np.uint16).reshape(2, 4, 4)
    geotiff(tmp_path / "Sea" / "a.tif", pixels)
    geotiff(tmp_path / "Bog" / "b.tif", pixels + 1)
    samples = opened(tmp_path, pixels=MS)
    layout = samples.layouts["sentinel2-l2a"]
    assert (layout.bands, layout.dn_offset, layout.units) == (("B04", "B03"), -1000.0, "dn")
    got = samples.read(np.array([1, 0]))["sentinel2-l2a"]
    np.testing.assert_array_equal(got, np.stack([pixels + 1, pixels]))


def test_the_no_data_of_a_file_becomes_that_of_the_sensor(tmp_path: Path) -> None:
    pixels = np.full((2, 4, 4), 1500, dtype=np.uint16)
    pixels[1, 2, 3] = 9999
    geotiff(tmp_path / "Sea" / "a.tif", pixels, nodata=9999)
    (tmp_path / "Bog").mkdir()
    got = opened(tmp_path, pixels=MS).read(np.array([0]))["sentinel2-l2a"][0]
    assert got.dtype == np.uint16
    assert got[1, 2, 3] == 0
    assert (got == 1500).sum() == got.size - 1

    decibel = np.full((2, 4, 4), -10, dtype=np.float32)
    decibel[0, 0, 0] = np.nan
    geotiff(tmp_path / "Sea" / "a.tif", decibel)
    radar = Pixels(sensor=SENSORS["sentinel1-grd"], bands=("VV", "VH"))
    got = opened(tmp_path, pixels=radar).read(np.array([0]))["sentinel1-grd"][0]
    assert np.isnan(got[0, 0, 0])
    assert np.isnan(got).sum() == 1


def test_no_data_of_whole_numbers_that_the_sensor_has_no_mark_for_is_nan(tmp_path: Path) -> None:
    pixels = np.full((2, 4, 4), 500, dtype=np.uint16)
    pixels[0, 1, 2] = pixels[1, 1, 2] = 65535
    geotiff(tmp_path / "Sea" / "a.tif", pixels, nodata=65535)
    (tmp_path / "Bog").mkdir()
    mute = replace(SENSORS["sentinel2-l2a"], name="mine", nodata=None, offset_varies=False)
    mine = Pixels(sensor=mute, bands=("B04", "B03"), units="dn")
    low = replace(mine, sensor=replace(mute, nodata=-9999))  # which uint16 cannot hold
    for one in (mine, low):
        got = opened(tmp_path, pixels=one).read(np.array([0]))["mine"][0]
        assert got.dtype == np.float32
        np.testing.assert_array_equal(got, np.where(pixels == 65535, np.nan, pixels))
    high = replace(mine, sensor=replace(mute, nodata=65535))
    np.testing.assert_array_equal(
        opened(tmp_path, pixels=high).read(np.array([0]))["mine"][0], pixels
    )

    geotiff(tmp_path / "Sea" / "a.tif", pixels.astype(np.float32), nodata=65535)
    got = opened(tmp_path, pixels=mine).read(np.array([0]))["mine"][0]
    np.testing.assert_array_equal(np.isnan(got), pixels == 65535)


def test_a_geotiff_with_other_bands_or_size_is_named(tmp_path: Path) -> None:
    pixels = np.full((2, 4, 4), 1500, dtype=np.uint16)
    geotiff(tmp_path / "Sea" / "a.tif", pixels)
    geotiff(tmp_path / "Bog" / "b.tif", np.ones((3, 4, 4), dtype=np.uint16))
    geotiff(tmp_path / "Bog" / "c.tif", np.full((2, 5, 4), 1500, dtype=np.uint16))
    samples = opened(tmp_path, pixels=MS)
    with pytest.raises(DataError, match=r"b.tif has 3 band\(s\), but 2 were declared"):
        samples.read(np.array([1]))
    with pytest.raises(DataError, match=r"c.tif has 4x5 pixels, .*a.tif has 4x4"):
        samples.read(np.array([0, 2]))


# What lies in the folders


@pytest.mark.parametrize("ending", ["webp", "bmp", "jfif", "jpe", "JPEG", "WebP", "BMP", "TIFF"])
def test_pictures_are_read_whatever_their_format_and_the_case_of_their_ending(
    root: Path, ending: str
) -> None:
    formats = {"webp": "WEBP", "bmp": "BMP", "tiff": "TIFF"}
    Image.new("RGB", (8, 8), (20, 80, 20)).save(
        root / "Sea" / f"x.{ending}", format=formats.get(ending.lower(), "JPEG")
    )
    samples = opened(root)
    assert samples.keys == ("Sea/a", "Sea/b", "Sea/x", "Bog/c", "Bog/d")
    mean = samples.read(np.array([2]))["rgb"].mean(axis=(0, 2, 3))
    np.testing.assert_allclose(mean, (20, 80, 20), atol=3)


def test_files_that_are_left_out_are_named_in_one_warning(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(4):
        np.save(root / "Bog" / f"{number}.npy", np.zeros(3))
    (root / "Sea" / "sub").mkdir()
    for name in ("Sea/x.jp2", "Sea/sub/y.JP2", "Sea/noending"):
        (root / name).write_bytes(b"x")
    picture(root / "stray.png")
    for name in (
        "classnames.json", "train.txt", "README.md", "LICENSE", "Thumbs.db", ".DS_Store",
        "Bog/c.png.aux.xml", "Bog/d.TIFF.msk", "Bog/d.TIFF.ovr", "labels.csv",
    ):  # fmt: skip
        (root / name).write_text("x")
    with caplog.at_level(logging.WARNING):
        assert len(opened(root)) == 4
        opened(root)
    [record] = caplog.records
    said = record.getMessage()
    assert "left out: 8 files (.npy 4, .jp2 2, " in said
    assert ".png 1" in said
    assert "without ending 1" in said
    assert "such as" in said


def test_what_a_split_list_does_not_name_is_not_warned_of(
    root: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (root / "Sea" / "x.jp2").write_bytes(b"x")
    (root / "list.txt").write_text("Sea/b.png\nBog/c.png\n")
    with caplog.at_level(logging.WARNING):
        assert len(opened(root, split_list=root / "list.txt")) == 2
    assert caplog.records == []
    (root / "list.txt").write_text("Sea/b.png\nSea/x.jp2\n")
    with pytest.raises(
        DataError, match=r"'Sea/x.jp2' is no image below .* files .jp2 are not read"
    ):
        opened(root, split_list=root / "list.txt")


@pytest.mark.parametrize(
    "entry", ["Sea/A.jpg", "Sea/a.jpg", "Sea/a", "sea/a.JPG", "A.JPG", "a.png"]
)
def test_an_entry_in_another_case_or_ending_names_the_right_one(root: Path, entry: str) -> None:
    (root / "list.txt").write_text(f"Sea/b.png\n{entry}\n")
    with pytest.raises(DataError, match=r"did you mean '(Sea/)?a.JPG'\? Case and ending count"):
        opened(root, split_list=root / "list.txt")


def test_a_split_list_may_begin_with_a_byte_order_mark(root: Path) -> None:
    (root / "list.txt").write_bytes(b"\xef\xbb\xbfSea/b.png\nBog/c.png\n")
    assert opened(root, split_list=root / "list.txt").keys == ("Sea/b", "Bog/c")


def test_a_long_split_list_with_a_repeated_entry_is_refused_at_once(tmp_path: Path) -> None:
    names = [f"Sea/{number}.png" for number in range(200_000)]
    (tmp_path / "list.txt").write_text("\n".join([*names, names[-1]]))
    with pytest.raises(DataError, match=r"names 'Sea/199999.png' twice"):
        read_split_list(tmp_path / "list.txt")


def test_folders_inside_a_class_folder_belong_to_the_class(root: Path) -> None:
    """As torchvision's ImageFolder reads them."""
    picture(root / "Sea" / "north" / "a.png", seed=7)
    picture(root / "Sea" / "south" / "deep" / "a.png", seed=8)
    picture(root / "Sea" / ".hidden" / "a.png", seed=9)
    samples = opened(root)
    assert samples.keys[:4] == ("Sea/a", "Sea/b", "Sea/north/a", "Sea/south/deep/a")
    assert samples.labels is not None
    assert samples.labels.values.tolist() == [0, 0, 0, 0, 1, 1]
    (root / "list.txt").write_text("Sea/north/a.png\nc.png\n")
    assert opened(root, split_list=root / "list.txt").keys == ("Sea/north/a", "Bog/c")


def test_a_file_name_that_is_not_utf8_is_refused(root: Path) -> None:
    try:
        picture(root / "Sea" / "\udcff.png", seed=7)
    except OSError:
        pytest.skip("the file system takes UTF-8 names only")
    with pytest.raises(DataError, match=r"Sea/\\udcff.png is not UTF-8; rename the file"):
        opened(root)


def test_links_are_followed_and_those_that_lead_nowhere_are_refused(root: Path) -> None:
    picture(root / ".elsewhere" / "e.png", seed=7)
    (root / "Sea" / "linked.png").symlink_to(root / ".elsewhere" / "e.png")
    (root / "Bog" / "folder").symlink_to(root / ".elsewhere")
    assert opened(root).keys == ("Sea/a", "Sea/b", "Sea/linked", "Bog/c", "Bog/d", "Bog/folder/e")
    (root / "Sea" / "loop").symlink_to(root / "Sea")
    with pytest.raises(DataError, match=r"Sea/loop is a link to a folder that holds it"):
        opened(root)
    (root / "Sea" / "loop").unlink()
    (root / ".elsewhere" / "e.png").unlink()
    with pytest.raises(DataError, match=r"linked.png is a link to .*e.png, which is missing"):
        opened(root)


def test_a_class_folder_without_images_is_warned_of(
    root: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for path in (root / "Bog").iterdir():
        path.unlink()
    with caplog.at_level(logging.WARNING):
        assert len(opened(root)) == 2
    assert "no sample of 1 of 2 classes: peat bog" in caplog.text


def test_folders_of_other_files_only_say_what_they_hold(tmp_path: Path) -> None:
    for name in ("Sea/a.npy", "Bog/b.npy"):
        (tmp_path / name).parent.mkdir()
        (tmp_path / name).write_bytes(b"x")
    with pytest.raises(DataError, match=r"no image found .*left out: 2 files \(.npy 2\), such as"):
        opened(tmp_path)


def test_beside_geotiffs_other_rasters_and_previews_are_named(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = np.ones((2, 4, 4), dtype=np.uint16)
    geotiff(tmp_path / "Sea" / "a.TIF", pixels)
    geotiff(tmp_path / "Bog" / "b.tiff", pixels)
    picture(tmp_path / "Sea" / "a.png")
    for name in ("Sea/c.jp2", "Bog/d.img"):
        (tmp_path / name).write_bytes(b"x")
    with caplog.at_level(logging.WARNING):
        assert opened(tmp_path, pixels=MS).keys == ("Sea/a", "Bog/b")
    assert "left out: 3 files" in caplog.text
    assert all(f"{ending} 1" in caplog.text for ending in (".png", ".jp2", ".img"))


def test_what_is_neither_file_nor_folder_is_refused(root: Path) -> None:
    os.mkfifo(root / "Sea/pipe.png")
    with pytest.raises(DataError, match=r"Sea/pipe.png is neither a file nor a folder; remove it"):
        opened(root)


def test_folders_nested_beyond_sense_are_refused(root: Path) -> None:
    folder = root / "Sea"
    for _ in range(150):
        folder /= "a"
        folder.mkdir()
    with pytest.raises(DataError, match=r"lies in more than 100 folders; move it"):
        opened(root)


@pytest.mark.parametrize("entry", ["a\0b.png", "Sea/" + "x" * 10**6, "../" + "x" * 10**6])
def test_a_name_that_no_file_has_is_one_line_of_sensible_length(
    root: Path, tmp_path: Path, entry: str
) -> None:
    (tmp_path / "list.txt").write_text(entry)
    with pytest.raises(DataError, match=r"list.txt") as caught:
        opened(root, split_list=tmp_path / "list.txt")
    assert len(str(caught.value)) < 1000
