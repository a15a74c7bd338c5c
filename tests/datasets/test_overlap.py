"""Shared samples: found by key and by content, whatever sets, folders and files are called."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import rasterio
from PIL import Image

from terralign.chips import PixelLayout, make_layout
from terralign.datasets.array_set import ArraySet
from terralign.datasets.batches import keep_in_memory
from terralign.datasets.catalog import open_dataset
from terralign.datasets.overlap import Overlaps, keep_apart
from terralign.datasets.packing import pack_dataset
from terralign.datasets.sample import SampleSet, Subset
from terralign.datasets.samples import Samples
from terralign.datasets.store import PackSettings
from terralign.datasets.synthetic import open_synthetic_photos, open_synthetic_scenes
from terralign.errors import DataError, RecipeError
from terralign.sensors import SENSORS

L2A = "sentinel2-l2a"
CLASSES = '[classes]\nForest = "forest"\nRiver = "river"\n'


def picture(path: Path, seed: int, side: int = 16, **options: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(seed).integers(0, 256, (side, side, 3), dtype=np.uint8)
    Image.fromarray(noise).save(path, **options)


def raster(path: Path, seed: int, bands: int = 12, side: int = 8) -> None:
    """All are of one size in bytes: DN of reflectance, or, of two bands, dB."""
    path.parent.mkdir(parents=True, exist_ok=True)
    limits = (-25, -5) if bands == 2 else (1, 9000)
    pixels = np.random.default_rng(seed).integers(*limits, (bands, side, side), dtype=np.int16)
    with rasterio.open(
        path, "w", driver="GTiff", count=bands, height=side, width=side, dtype="int16",
        crs="EPSG:32633", transform=rasterio.Affine(10, 0, 5e5, 0, -10, 5e6),
    ) as file:  # fmt: skip
        file.write(pixels)


def declared(
    root: Path, folder: str, *, name: str | None = None, split: str = "all", more: str = ""
) -> SampleSet:
    """The class folders of `folder` as a data set."""
    path = root / f"{folder}.toml"
    path.write_text(
        f'name = "{name or folder}"\nreader = "folder"\nsensor = "rgb"\nroot = "{folder}"\n'
        f"{CLASSES}{more}"
    )
    return open_dataset(str(path), data_root=root, split=split)


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """Six pictures of training, and six others of validation."""
    for number in range(6):
        folder = "Forest" if number % 2 else "River"
        picture(tmp_path / "train" / folder / f"{number}.png", number)
        picture(tmp_path / "val" / folder / f"{number}.png", 100 + number)
    return tmp_path


def shared(first: SampleSet, second: SampleSet) -> dict[str, str]:
    """Key in `second` -> key in `first`."""
    found = Overlaps().find(first, second)
    return {second.keys[b]: first.keys[a] for b, a in zip(found.rows, found.partners, strict=True)}


def test_sets_without_a_common_sample_share_none(pictures: Path) -> None:
    assert shared(declared(pictures, "train"), declared(pictures, "val")) == {}


def _copied(source: Path, target: Path) -> None:
    shutil.copy(source, target)


def _linked(source: Path, target: Path) -> None:
    target.symlink_to(source)


@pytest.mark.parametrize("put", [_copied, _linked])
def test_a_picture_is_found_under_another_name_and_class_in_another_set(
    pictures: Path, put: Callable[[Path, Path], None]
) -> None:
    put(pictures / "train" / "Forest" / "3.png", pictures / "val" / "River" / "other.png")
    found = shared(declared(pictures, "train"), declared(pictures, "val"))
    assert found == {"River/other": "Forest/3"}


def test_a_folder_of_another_set_behind_a_link_is_found(pictures: Path) -> None:
    shutil.rmtree(pictures / "val" / "Forest")
    (pictures / "val" / "Forest").symlink_to(pictures / "train" / "Forest")
    found = shared(declared(pictures, "train"), declared(pictures, "val"))
    assert sorted(found) == ["Forest/1", "Forest/3", "Forest/5"]


def test_two_declarations_of_one_folder_share_all(pictures: Path) -> None:
    first = declared(pictures, "train")
    (pictures / "again").symlink_to(pictures / "train")
    assert len(shared(first, declared(pictures, "again"))) == 6


def test_split_lists_that_name_the_same_files_share_them(pictures: Path) -> None:
    folder = pictures / "train"
    (folder / "a.txt").write_text("Forest/1.png\nForest/3.png\nRiver/0.png\n")
    (folder / "b.txt").write_text("River/0.png\nRiver/2.png\n")
    lists = '[splits]\na = "a.txt"\nb = "b.txt"\n'
    first = declared(pictures, "train", split="a", more=lists)
    assert shared(first, declared(pictures, "train", split="b", more=lists)) == {
        "River/0": "River/0"
    }


def test_one_key_of_two_folders_is_no_shared_sample(pictures: Path) -> None:
    """Folders train and val that number their files alike, declared under one name."""
    first = declared(pictures, "train", name="mine")
    second = declared(pictures, "val", name="mine")
    assert set(first.keys) == set(second.keys)
    assert shared(first, second) == {}
    assert keep_apart(Overlaps(), [first], [second], chosen="alpha") == []


def test_pictures_of_one_size_in_bytes_are_told_apart(tmp_path: Path) -> None:
    for number in range(4):
        picture(tmp_path / "train" / "Forest" / f"{number}.bmp", number, side=200)
        picture(tmp_path / "val" / "Forest" / f"{number}.bmp", 50 + number, side=200)
        picture(tmp_path / "train" / "River" / f"{number}.bmp", 90 + number, side=200)
        picture(tmp_path / "val" / "River" / f"{number}.bmp", 130 + number, side=200)
    size = (tmp_path / "train" / "Forest" / "0.bmp").stat().st_size
    assert size > 64 * 1024
    assert shared(declared(tmp_path, "train"), declared(tmp_path, "val")) == {}
    # Two files that agree in size and in their middle are read whole.
    other = bytearray((tmp_path / "train" / "Forest" / "0.bmp").read_bytes())
    (tmp_path / "val" / "Forest" / "0.bmp").write_bytes(other)
    other[-1] ^= 255
    (tmp_path / "val" / "Forest" / "1.bmp").write_bytes(other)
    found = shared(declared(tmp_path, "train"), declared(tmp_path, "val"))
    assert found == {"Forest/0": "Forest/0"}


def test_only_files_whose_size_occurs_on_both_sides_are_read(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    picture(pictures / "train" / "Forest" / "large.png", 7, side=40)
    picture(pictures / "val" / "Forest" / "larger.png", 7, side=41)
    first, second = declared(pictures, "train"), declared(pictures, "val")
    sizes = [
        {file.stat().st_size for file in (pictures / name).rglob("*.png")}
        for name in ("train", "val")
    ]
    read: list[Path] = []
    from terralign.datasets.content import FileContent

    middle = FileContent.middle

    def counted(self: FileContent) -> bytes:
        read.append(self.path)
        return middle(self)

    monkeypatch.setattr(FileContent, "middle", counted)
    assert shared(first, second) == {}
    assert {file.stat().st_size for file in read} <= sizes[0] & sizes[1]
    assert not {file.name for file in read} & {"large.png", "larger.png"}


def test_a_part_and_what_is_kept_in_memory_are_looked_through(pictures: Path) -> None:
    shutil.copy(pictures / "train" / "Forest" / "3.png", pictures / "val" / "River" / "x.png")
    first, second = declared(pictures, "train"), declared(pictures, "val")
    chosen = first.keys.index("Forest/3")
    with_it = Subset(keep_in_memory(first), np.array([chosen, chosen + 1]))
    without = Subset(first, np.array([one for one in range(6) if one != chosen]))
    assert shared(with_it, keep_in_memory(second)) == {"River/x": "Forest/3"}
    assert shared(without, second) == {}


def test_parts_of_one_set_share_what_is_in_both(pictures: Path) -> None:
    whole = declared(pictures, "train")
    first, second = Subset(whole, np.array([0, 2, 4])), Subset(whole, np.array([1, 2, 3]))
    assert shared(first, second) == {whole.keys[2]: whole.keys[2]}


def test_rows_of_arrays_are_compared_by_their_numbers() -> None:
    sensor = SENSORS["sentinel2-l2a"]
    pixels = np.random.default_rng(0).integers(0, 9000, (8, 12, 64, 64), dtype=np.uint16)
    layouts = {sensor.name: make_layout(sensor, sensor.band_names, units="dn", dn_offset=0.0)}

    def array_set(name: str, rows: list[int], array: np.ndarray = pixels) -> ArraySet:
        return ArraySet(
            name=name, split=name, layouts=layouts,
            keys=tuple(f"{name}-{number}" for number in range(len(rows))),
            arrays={sensor.name: array}, rows=np.array(rows), content=[rows],
        )  # fmt: skip

    assert pixels[0].nbytes > 64 * 1024
    first = array_set("a", [0, 1, 2, 3])
    assert shared(first, array_set("b", [4, 3, 5])) == {"b-1": "a-3"}
    almost = pixels.copy()
    almost[:, 0, 0, 0] += 1
    assert shared(first, array_set("b", [0, 1], almost)) == {}


def test_counted_keys_name_no_sample() -> None:
    """Arrays of one default name, whose samples are only counted, of sensors that differ."""
    chips = Samples.from_arrays(np.full((4, 12, 8, 8), 900, np.uint16), sensor=L2A, dn_offset=0)
    photos = Samples.from_arrays(np.full((3, 3, 8, 8), 90, np.uint8), sensor="rgb")
    assert chips.name == photos.name
    assert set(photos.keys) < set(chips.keys)
    assert not len(Overlaps().find(chips, photos))
    named = {"keys": ["north", "south", "west"], "sensor": "rgb"}
    photos = Samples.from_arrays(np.full((3, 3, 8, 8), 90, np.uint8), **named)
    radar = Samples.from_arrays(
        np.full((1, 2, 8, 8), -9, np.float32), sensor="sentinel1-grd", keys=["south"]
    )
    assert Overlaps().find(photos, radar).partners.tolist() == [1]


def test_synthetic_samples_are_what_they_are_drawn_from() -> None:
    train = open_synthetic_scenes("train", num_samples=8)
    assert shared(train, open_synthetic_scenes("val", num_samples=8)) == {}
    assert len(shared(train, open_synthetic_scenes("train", num_samples=5, multi_label=True))) == 5
    assert len(shared(train, open_synthetic_scenes("train", num_samples=5, size=64))) == 5
    assert shared(train, open_synthetic_scenes("train", num_samples=8, seed=1)) == {}
    photos = open_synthetic_photos("train", num_samples=8)
    assert shared(photos, train) == {}


def test_a_folder_of_bands_is_found_under_another_name(tmp_path: Path) -> None:
    """Files of one size throughout, as BigEarthNet's; the JSON beside them does not count."""
    from terralign.datasets.file_set import FileSet

    for number in range(4):
        for band in ("B02", "B03"):
            raster(tmp_path / f"p{number}" / f"p{number}_{band}.tif", 10 * number, bands=1)
        (tmp_path / f"p{number}" / "labels.json").write_text(f'{{"patch": {number}}}')
    shutil.copytree(tmp_path / "p1", tmp_path / "q1")
    for path in (tmp_path / "q1").glob("*.tif"):
        path.rename(path.with_name(path.name.replace("p1", "q1")))
    (tmp_path / "q1" / "labels.json").write_text("{}")
    shutil.copytree(tmp_path / "p2", tmp_path / "q2")
    raster(tmp_path / "q2" / "p2_B03.tif", 99, bands=1)  # the first band is the same, another not
    sensor = SENSORS["sentinel2-l2a"]
    layout: PixelLayout = make_layout(sensor, ("B02", "B03"), units="dn", dn_offset=0.0)

    def folders(name: str, *patches: str) -> FileSet:
        return FileSet(
            name=name, split="all", layouts={sensor.name: layout}, keys=patches,
            files=tuple(tmp_path / patch for patch in patches), decode=lambda _: {},
            content=[],
        )  # fmt: skip

    first = folders("a", "p0", "p1", "p2", "p3")
    assert shared(first, folders("b", "q1", "q2")) == {"q1": "p1"}
    assert shared(first, folders("b", "p3")) == {"p3": "p3"}
    # What is not on disk under its name, such as a row of a Parquet file, is known by that name.
    rows = replace(first, files=tuple(tmp_path / "no" / one for one in first.keys))
    others = replace(rows, name="c", keys=("x",), files=rows.files[2:3])
    assert shared(rows, others) == {"x": "p2"}


def test_samples_of_several_sensors_are_compared_by_those_in_common(tmp_path: Path) -> None:
    for number in range(3):
        raster(tmp_path / "a" / "s2" / f"{number}.tif", number)
        raster(tmp_path / "a" / "s1" / f"{number}.tif", 50, bands=2)  # one radar scene for all
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    raster(tmp_path / "b" / "s2" / "1.tif", 77)

    def both(folder: str, *sensors: str) -> SampleSet:
        tables = {
            "s2": '[sensors.sentinel2-l2a]\nroot = "s2"\ndn_offset = 0\n'
            f"bands = {list(SENSORS['sentinel2-l2a'].band_names)}\n",
            "s1": '[sensors.sentinel1-grd]\nroot = "s1"\nbands = ["VV", "VH"]\nunits = "dn"\n',
        }
        path = tmp_path / "set.toml"
        path.write_text(
            f'name = "{folder}"\nreader = "folder"\nunlabelled = true\nroot = "{folder}"\n'
            + "".join(tables[one] for one in sensors)
        )
        return open_dataset(str(path), data_root=tmp_path, split="all")

    # Number 1 has the same radar scene, and another optical one.
    assert sorted(shared(both("a", "s2", "s1"), both("b", "s2", "s1"))) == ["0", "2"]
    assert sorted(shared(both("a", "s2"), both("b", "s2", "s1"))) == ["0", "2"]
    assert len(shared(both("a", "s2", "s1"), both("b", "s1"))) == 3


def test_paths_of_a_table_are_files(pictures: Path) -> None:
    (pictures / "table.csv").write_text("path,kind\ntrain/Forest/1.png,a\ntrain/River/2.png,b\n")
    (pictures / "table.toml").write_text(
        'name = "table"\nreader = "table"\ntable = "table.csv"\n[sensors.rgb]\ncolumn = "path"\n'
        '[columns]\nsplit = "kind"\n[splits]\na = "a"\nb = "b"\n'
    )
    rows = open_dataset(str(pictures / "table.toml"), data_root=pictures, split="b")
    assert shared(declared(pictures, "train"), rows) == {"train/River/2": "River/2"}


@pytest.mark.parametrize("images", ["pixels", "encoded"])
def test_a_packed_store_is_compared_with_stores_and_files(pictures: Path, images: str) -> None:
    shutil.copy(pictures / "train" / "Forest" / "3.png", pictures / "val" / "River" / "x.png")
    files = declared(pictures, "train")
    store = pictures / "store"
    pack_dataset(
        str(pictures / "train.toml"), store, data_root=pictures,
        settings=PackSettings(images=images),  # type: ignore[arg-type]
    )  # fmt: skip
    packed = open_dataset(str(store), data_root=None, split="all")
    assert len(shared(packed, files)) == 6  # one name, so by key
    assert shared(packed, declared(pictures, "val")) == {"River/x": "Forest/3"}
    assert shared(declared(pictures, "val"), packed) == {"Forest/3": "River/x"}
    (pictures / "renamed").symlink_to(pictures / "train")
    declared(pictures, "renamed")
    pack_dataset(
        str(pictures / "renamed.toml"), pictures / "other", data_root=pictures,
        settings=PackSettings(images=images),  # type: ignore[arg-type]
    )  # fmt: skip
    other = open_dataset(str(pictures / "other"), data_root=None, split="all")
    assert len(shared(packed, other)) == 6


def test_pictures_that_lack_data_are_found_in_a_packed_store(tmp_path: Path) -> None:
    """Their numbers are of another type, and so are those that are read together with them."""
    for number in range(40):
        pixels = np.random.default_rng(number).integers(0, 256, (16, 16, 4), dtype=np.uint8)
        pixels[..., 3] = 255
        pixels[:4, :, 3] *= number not in (0, 35)
        path = tmp_path / "train" / ("Forest" if number % 2 else "River") / f"{number:02}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    (tmp_path / "renamed").symlink_to(tmp_path / "train")
    files = declared(tmp_path, "renamed")
    declared(tmp_path, "train")
    pack_dataset(str(tmp_path / "train.toml"), tmp_path / "store", data_root=tmp_path)
    packed = open_dataset(str(tmp_path / "store"), data_root=None, split="all")
    expected = {key: key for key in files.keys}
    assert shared(files, packed) == expected
    assert shared(packed, files) == expected


class _Plain:
    """A set of one's own, which says nothing of what its samples are made of."""

    def __init__(self, samples: SampleSet, name: str) -> None:
        self.name, self.split, self.fingerprint = name, "all", name
        self.keys = tuple(f"{name}-{index}" for index in range(len(samples)))
        self.layouts, self.read = samples.layouts, samples.read
        self.labels = self.captions = self.prompts = None

    def __len__(self) -> int:
        return len(self.keys)


def test_a_set_that_says_nothing_of_its_contents_is_read(pictures: Path) -> None:
    shutil.copy(pictures / "train" / "Forest" / "3.png", pictures / "val" / "River" / "x.png")
    first = _Plain(declared(pictures, "train"), "own")
    second = declared(pictures, "val")
    row = declared(pictures, "train").keys.index("Forest/3")
    assert shared(first, second) == {"River/x": f"own-{row}"}
    assert list(shared(second, _Plain(second, "twin")).values()) == list(second.keys)


# Keeping apart


def test_what_is_shared_is_refused_with_numbers_examples_and_a_remedy(pictures: Path) -> None:
    for number in (1, 3, 5):
        shutil.copy(
            pictures / "train" / "Forest" / f"{number}.png",
            pictures / "val" / "Forest" / f"copy-{number}.png",
        )
    first, second = declared(pictures, "train"), declared(pictures, "val")
    with pytest.raises(RecipeError) as caught:
        keep_apart(Overlaps(), [first], [second], chosen="alpha")
    said = str(caught.value)
    assert "3 of the 9 samples of val/all are also in train/all" in said
    assert "'Forest/copy-1' ('Forest/1' there) and 'Forest/copy-3' ('Forest/3' there)" in said
    assert "allow_shared_samples = true" in said
    assert "\n" not in said
    notes = keep_apart(Overlaps(), [first], [second], chosen="alpha", allowed=True)
    assert len(notes) == 1
    assert "3 of the 9 samples" in notes[0]


def test_samples_that_a_split_has_twice_are_told_once(
    pictures: Path, caplog: pytest.LogCaptureFixture
) -> None:
    for number in range(2):
        shutil.copy(
            pictures / "train" / "Forest" / "3.png",
            pictures / "train" / "River" / f"again-{number}.png",
        )
    first, second = declared(pictures, "train"), declared(pictures, "val")
    with caplog.at_level(logging.WARNING):
        keep_apart(Overlaps(), [first, first], [second], chosen="alpha")
    [record] = caplog.records
    assert "train/all: 2 of 8 samples have the same content as another" in record.getMessage()
    assert "'Forest/3'" in record.getMessage()


def test_a_file_that_cannot_be_read_is_named(pictures: Path) -> None:
    second = declared(pictures, "val")
    (pictures / "loop").symlink_to(pictures / "loop")
    broken = replace(second, files=(pictures / "loop" / "x.png",) * len(second))  # type: ignore[type-var]
    with pytest.raises(DataError, match=r"cannot read .*loop"):
        shared(declared(pictures, "train"), broken)


@pytest.mark.realdata
def test_real_splits_share_nothing_and_nomenclatures_of_one_patch_share_all(
    real_data: Path,
) -> None:
    def real(name: str, split: str) -> SampleSet:
        return open_dataset(name, data_root=real_data, split=split, size=64)

    for name in ("eurosat-rgb", "eurosat-ms", "s2-l2a", "bigearthnet-mini"):
        assert shared(real(name, "train"), real(name, "val")) == {}
    # The same places as pictures and as rasters: other data, though their keys are alike.
    assert shared(real("eurosat-rgb", "train"), real("eurosat-ms", "train")) == {}
    same = real("bigearthnet-mini-5", "train")
    assert len(shared(real("bigearthnet-mini", "train"), same)) == len(same)
