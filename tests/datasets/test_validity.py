"""No-data stays no data, whatever marks it, from the file through every reader, batch and store."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from numpy.typing import NDArray
from rasterio import Affine

from fake_world.files import (
    write_optical,
    write_radar,
    write_tif,
    write_v1_json,
    write_v1_radar_json,
)
from fakes import input_spec
from terralign.datasets.batches import keep_in_memory
from terralign.datasets.catalog import open_dataset
from terralign.datasets.published.bigearthnet_v1 import open_bigearthnet_v1
from terralign.datasets.published.sen12ms import decode_triplet
from terralign.datasets.sample import SampleSet, Subset
from terralign.datasets.store import PackSettings, StoreSet, pack
from terralign.errors import DataError
from terralign.preprocess import make_ready, resize, scale_bands, scale_composite, to_physical

MINE = """
name = "mine"
unit = "reflectance"
dn_scale = 0.0005
composites = [{ name = "rgb", bands = ["r", "g", "b"], stretch = 0.3 }]
bands = [{ name = "r" }, { name = "g" }, { name = "b" }, { name = "n" }]
"""
SIDE = 32
FOUR = ("B02", "B03", "B04", "B08")


@dataclass(frozen=True, kw_only=True)
class Kind:
    """One way in which files of a sensor mark what has no data."""

    name: str
    sensor: str
    bands: tuple[str, ...]
    dtype: str
    low: float
    high: float
    mark: str
    """nodata:N, nan, mask, msk or alpha."""
    more: str = ""
    """Of the declaration."""


KINDS = [
    Kind(name="dn-0", sensor="sentinel2-l2a", bands=FOUR, dtype="uint16", low=300, high=3000,
         mark="zero", more="dn_offset = 0"),
    Kind(name="dn-65535", sensor="sentinel2-l2a", bands=FOUR, dtype="uint16", low=1300, high=4000,
         mark="nodata:65535", more="dn_offset = -1000"),
    Kind(name="dn-mask", sensor="sentinel2-l1c", bands=FOUR, dtype="uint16", low=300, high=3000,
         mark="mask", more="dn_offset = 0"),
    Kind(name="dn-msk", sensor="sentinel2-l2a", bands=FOUR, dtype="int16", low=300, high=3000,
         mark="msk", more="dn_offset = 0"),
    Kind(name="reflectance-nan", sensor="sentinel2-l2a", bands=FOUR, dtype="float32", low=0.03,
         high=0.3, mark="nan", more='units = "physical"'),
    Kind(name="reflectance-9999", sensor="landsat-oli-l2", bands=("B2", "B3", "B4", "B5"),
         dtype="float32", low=0.03, high=0.3, mark="nodata:-9999", more='units = "physical"'),
    Kind(name="landsat-dn", sensor="landsat-oli-l2", bands=("B2", "B3", "B4", "B5"),
         dtype="uint16", low=8500, high=18000, mark="nodata:65535"),
    Kind(name="radar-nan", sensor="sentinel1-grd", bands=("VV", "VH"), dtype="float32", low=-25,
         high=-5, mark="nan"),
    Kind(name="radar-9999", sensor="sentinel1-grd", bands=("VV", "VH"), dtype="float64", low=-25,
         high=-5, mark="nodata:-9999"),
    Kind(name="radar-mask", sensor="sentinel1-grd", bands=("VV", "VH"), dtype="float32", low=-25,
         high=-5, mark="mask"),
    Kind(name="own-mask", sensor="mine.toml", bands=("r", "g", "b", "n"), dtype="uint16", low=60,
         high=600, mark="mask"),
    Kind(name="own-65535", sensor="mine.toml", bands=("r", "g", "b", "n"), dtype="uint16", low=60,
         high=600, mark="nodata:65535"),
    Kind(name="own-bytes-msk", sensor="mine.toml", bands=("r", "g", "b", "n"), dtype="uint8",
         low=40, high=250, mark="msk"),
]  # fmt: skip

GARBAGE = {"uint16": 9000, "int16": 9000, "uint8": 255, "float32": 7.5, "float64": 7.5}
VALID = np.arange(SIDE) >= SIDE // 2
"""(W,): the right half of the second sample is valid, all of the others."""


def geotiff(path: Path, kind: Kind, pixels: NDArray[Any], *, holed: bool) -> None:
    pixels = pixels.copy()
    mark, _, number = kind.mark.partition(":")
    if holed:
        filling = {"nan": np.nan, "zero": 0, "nodata": float(number or 0)}
        pixels[:, :, ~VALID] = filling.get(mark, GARBAGE[kind.dtype])
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        rasterio.Env(GDAL_TIFF_INTERNAL_MASK=mark == "mask"),
        rasterio.open(
            path, "w", driver="GTiff", count=len(pixels), height=SIDE, width=SIDE,
            dtype=kind.dtype, crs="EPSG:32633", transform=Affine(10, 0, 5e5, 0, -10, 5e6),
            nodata=float(number) if mark == "nodata" else None,
        ) as file,
    ):  # fmt: skip
        file.write(pixels)
        file.descriptions = kind.bands
        if holed and mark in ("mask", "msk"):
            file.write_mask(np.broadcast_to(VALID, (SIDE, SIDE)))


def made(kind: Kind) -> list[NDArray[Any]]:
    """Three chips (C, SIDE, SIDE)."""
    rng = np.random.default_rng(0)
    size = (3, len(kind.bands), SIDE, SIDE)
    chips = rng.uniform(kind.low, kind.high, size).astype(kind.dtype)
    return list(chips)


def folder(root: Path, kind: Kind) -> str:
    for number, chip in enumerate(made(kind)):
        geotiff(root / f"x/{number}.tif", kind, chip, holed=number == 1)
    return (
        f'reader = "folder"\nsensor = "{kind.sensor}"\nroot = "x"\nunlabelled = true\n{kind.more}\n'
    )


def class_folder(root: Path, kind: Kind) -> str:
    for number, chip in enumerate(made(kind)):
        geotiff(root / f"x/a/{number}.tif", kind, chip, holed=number == 1)
    classes = '\n[classes]\na = "a place"\n'
    return f'reader = "folder"\nsensor = "{kind.sensor}"\nroot = "x"\n{kind.more}\n{classes}'


def table(root: Path, kind: Kind) -> str:
    for number, chip in enumerate(made(kind)):
        geotiff(root / f"x/{number}.tif", kind, chip, holed=number == 1)
    rows = "".join(f"{number},{number}.tif\n" for number in range(3))
    (root / "x/samples.csv").write_text("key,file\n" + rows)
    return (
        'reader = "table"\nroot = "x"\ntable = "x/samples.csv"\n[columns]\nkey = "key"\n'
        f'[sensors."{kind.sensor}"]\ncolumn = "file"\n{kind.more}\n'
    )


def shards(root: Path, kind: Kind) -> str:
    (root / "x").mkdir()
    with tarfile.open(root / "x/one.tar", "w") as archive:
        for number, chip in enumerate(made(kind)):
            geotiff(root / f"y/{number}.tif", kind, chip, holed=number == 1)
            archive.add(root / f"y/{number}.tif", f"{number}.s.tif")
    return (
        'reader = "shards"\nroot = "x"\nshards = "one.tar"\n'
        f'[sensors."{kind.sensor}"]\nmember = "s.tif"\n{kind.more}\n'
    )


READERS = [folder, class_folder, table, shards]


def opened(root: Path, kind: Kind, write: Callable[[Path, Kind], str]) -> SampleSet:
    (root / "mine.toml").write_text(MINE)
    (root / "set.toml").write_text(f'name = "set"\n{write(root, kind)}')
    return open_dataset(str(root / "set.toml"), data_root=root, split="all", to_pack=True)


def assert_masked(samples: SampleSet, kind: Kind) -> None:
    """Read in batches of any make-up, the second sample has data in its right half alone."""
    (sensor, layout), *_ = samples.layouts.items()
    for rows in ([0, 1, 2], [1], [2, 0], [1, 1]):
        raw = torch.from_numpy(np.asarray(samples.read(np.array(rows))[sensor]))
        physical, valid = to_physical(raw, layout)
        for place, row in enumerate(rows):
            expected = np.broadcast_to(VALID if row == 1 else True, valid[place].shape)
            np.testing.assert_array_equal(valid[place].numpy(), expected)
        chips = made(kind)
        for place, row in enumerate(rows):
            there = chips[row].astype(np.float64)
            if layout.units == "dn":
                there = (there + layout.dn_offset) * layout.dn_scale + layout.add
            known = valid[place].numpy()
            np.testing.assert_allclose(
                physical[place].numpy()[known], there[known], rtol=1e-5, atol=1e-6
            )
        if layout.composite is not None:
            picture = scale_composite(raw, layout)
            assert torch.equal(~picture.isnan(), valid[:, :3])
        spec = input_spec(sensor, layout.bands, (-40.0, 40.0), mean=0.3, std=0.2, size=8)
        ready = make_ready(resize(scale_bands(raw, layout, spec), spec), spec)
        for place, row in enumerate(rows):
            assert ((ready[place] == 0).float().mean() == 0.5) == (row == 1)


@pytest.mark.parametrize("write", READERS, ids=lambda one: one.__name__)
@pytest.mark.parametrize("kind", KINDS, ids=lambda one: one.name)
def test_every_mark_survives_every_reader_and_the_store(
    tmp_path: Path, kind: Kind, write: Callable[[Path, Kind], str]
) -> None:
    if write is shards and kind.mark == "msk":
        pytest.skip("a member of a tar has no file beside it")
    samples = opened(tmp_path, kind, write)
    assert_masked(samples, kind)
    assert_masked(keep_in_memory(samples), kind)
    assert_masked(Subset(samples, np.arange(3)), kind)
    if write is not folder:
        return
    for order, name in ((np.arange(3), "straight"), (np.array([1, 0, 2]), "masked-first")):
        chosen = Subset(samples, order)
        pack({"all": chosen}, tmp_path / name, PackSettings(shard_bytes=1), has_splits=False)
        store = StoreSet(tmp_path / name, "all")
        assert_masked(Subset(store, np.argsort(order)), kind)
        (sensor,) = store.layouts
        if kind.dtype in ("uint8", "uint16") and name == "straight":
            kept = store.read(np.array([0]))[sensor]
            assert kept.dtype == kind.dtype  # whole numbers stay small


def test_all_numbers_of_a_store_come_back_under_the_mask_of_their_sample(tmp_path: Path) -> None:
    kind = next(one for one in KINDS if one.name == "own-mask")
    samples = opened(tmp_path, kind, folder)
    pack({"all": samples}, tmp_path / "store", has_splits=False)
    store = StoreSet(tmp_path / "store", "all")
    both = samples.read(np.arange(3))["mine"], store.read(np.arange(3))["mine"]
    np.testing.assert_array_equal(*both)
    assert store.read(np.array([0, 2]))["mine"].dtype == np.uint16


def test_a_nan_of_an_array_in_a_tar_is_no_data(tmp_path: Path) -> None:
    chip = np.full((2, SIDE, SIDE), -9, np.float32)
    chip[:, :, ~VALID] = np.nan
    content = io.BytesIO()
    np.save(content, chip)
    with tarfile.open(tmp_path / "one.tar", "w") as archive:
        info = tarfile.TarInfo("k.s.npy")
        info.size = len(content.getvalue())
        archive.addfile(info, io.BytesIO(content.getvalue()))
    (tmp_path / "set.toml").write_text(
        'name = "s"\nreader = "shards"\nroot = "."\nshards = "one.tar"\n'
        '[sensors.sentinel1-grd]\nmember = "s.npy"\nbands = ["VV", "VH"]\n'
    )
    samples = open_dataset(
        str(tmp_path / "set.toml"), data_root=tmp_path, split="all", to_pack=True
    )
    raw = torch.from_numpy(samples.read(np.array([0]))["sentinel1-grd"])
    _, valid = to_physical(raw, samples.layouts["sentinel1-grd"])
    np.testing.assert_array_equal(valid[0].numpy(), np.broadcast_to(VALID, chip.shape))


def arrays_in_a_tar(root: Path, arrays: list[np.ndarray], more: str = "") -> str:
    """A data set of RGB arrays."""
    with tarfile.open(root / "rgb.tar", "w") as archive:
        for number, array in enumerate(arrays):
            content = io.BytesIO()
            np.save(content, array)
            info = tarfile.TarInfo(f"{number}.npy")
            info.size = len(content.getvalue())
            archive.addfile(info, io.BytesIO(content.getvalue()))
    (root / "set.toml").write_text(
        'name = "s"\nreader = "shards"\nroot = "."\nshards = "rgb.tar"\n'
        f'[sensors.rgb]\nmember = "npy"\nbands = ["red", "green", "blue"]\n{more}'
    )
    return str(root / "set.toml")


@pytest.mark.parametrize(("dtype", "units"), [(np.uint16, ""), (np.uint8, 'units = "physical"')])
def test_rgb_in_arrays_is_held_against_what_is_declared(
    tmp_path: Path, dtype: type[np.generic], units: str
) -> None:
    arrays = [np.full((3, 8, 8), 200 if dtype is np.uint8 else 9000, dtype) for _ in range(3)]
    name = arrays_in_a_tar(tmp_path, arrays, units)
    with pytest.raises(DataError, match=r"rgb.tar: 0: 100 % of the numbers lie out"):
        open_dataset(name, data_root=tmp_path, split="all", to_pack=True)


def test_physical_rgb_of_a_store_is_no_picture_that_is_resized(tmp_path: Path) -> None:
    array = np.linspace(0, 1, 192, dtype=np.float32).reshape(3, 8, 8)
    name = arrays_in_a_tar(tmp_path, [array] * 2, 'units = "physical"')
    samples = open_dataset(name, data_root=tmp_path, split="all", to_pack=True)
    pack({"all": samples}, tmp_path / "store", has_splits=False)
    store = StoreSet(tmp_path / "store", "all", size=4)
    assert store.is_mapped
    np.testing.assert_array_equal(store.read(np.array([1]))["rgb"][0], array)


def test_no_data_of_bigearthnets_radar_is_masked(tmp_path: Path) -> None:
    name = "S2A_MSIL2A_20170613T101031_0_0"
    partner = "S1A_IW_GRDH_1SDV_20170613T165043_33UUP_0_0"
    patch = tmp_path / "BigEarthNet-v1.0" / name
    radar = tmp_path / "BigEarthNet-S1-v1.0" / partner
    write_v1_json(patch, ["Pastures"], "33UUP")
    write_optical(patch)
    write_v1_radar_json(radar, name)
    write_radar(radar, -10.0)
    for band, nodata in (("VV", None), ("VH", -9999.0)):
        path = radar / f"{partner}_{band}.tif"
        with rasterio.open(path, "r+") as file:
            pixels = file.read()
            pixels[:, :, :60] = np.nan if nodata is None else nodata
            file.nodata = nodata
            file.write(pixels)
    samples = open_bigearthnet_v1(tmp_path, "all", radar=True)
    raw = torch.from_numpy(samples.read(np.array([0]))["sentinel1-grd"])
    _, valid = to_physical(raw, samples.layouts["sentinel1-grd"])
    assert valid[0, :, :, 60:].all()
    assert not valid[0, :, :, :60].any()


def test_no_data_of_sen12ms_radar_is_masked(tmp_path: Path) -> None:
    base = tmp_path / "ROIs1158_spring"
    write_tif(base / "s2_1/ROIs1158_spring_s2_1_p30.tif", np.full((13, 256, 256), 500, np.uint16))
    radar = np.full((2, 256, 256), -12.0, np.float32)
    radar[:, :100] = -9999
    path = base / "s1_1/ROIs1158_spring_s1_1_p30.tif"
    write_tif(path, radar)
    with rasterio.open(path, "r+") as file:
        file.nodata = -9999
    pixels = decode_triplet(base / "s2_1/ROIs1158_spring_s2_1_p30.tif")["sentinel1-grd"]
    assert np.isnan(pixels[:, :100]).all()
    assert (pixels[:, 100:] == -12).all()
