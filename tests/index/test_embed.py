"""Scenes become parts: covered, in order, resumable to the same bytes, shared between processes."""

from __future__ import annotations

import json
import multiprocessing
import os
import random
import signal
import sys
import time
import types
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
import torch
import torch.nn.functional as F
from rasterio.errors import NotGeoreferencedWarning

from imagery import NEW_PRODUCT, NO_OFFSET, S2, dn, space_of, write_geotiff, write_product
from terralign.chips import Grid, Window
from terralign.datasets.synthetic import open_synthetic_scenes
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import DataError, SpaceMismatchError
from terralign.files import claimed
from terralign.index import embed as embedding
from terralign.index.embed import EmbeddedScenes, embed_scenes
from terralign.index.grids import hilbert_numbers, majortom_cells
from terralign.index.parts import facts_of
from terralign.index.plan import grid_gsd, plan_windows, window_shapes
from terralign.scenes.scene import open_scene
from terralign.train.student import StudentSettings, new_student


def write_scene(path: Path, size: int = 80, *, seed: int = 0, **options: Any) -> Path:
    return write_geotiff(path, dn(size, seed=seed), S2.band_names, tags=NO_OFFSET, **options)


def embedded(space: EmbeddingSpace, inputs: Any, out: Path, **options: Any) -> EmbeddedScenes:
    return embed_scenes(space, inputs, out, sensor=S2.name, **options)


def contents(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


def table_of(found: EmbeddedScenes) -> list[dict[str, Any]]:
    return [row for one in found.scenes for row in pq.read_table(one.path).to_pylist()]


def test_every_window_has_the_vector_that_embed_gives(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    path = write_scene(tmp_path / "scene.tif")
    rows = table_of(embedded(space, path, tmp_path / "out", vectors="float32"))
    wanted = space.embed(path, sensor=S2.name)
    keys = [f"{path}@{row['window_row']},{row['window_column']}" for row in rows]
    assert sorted(keys) == sorted(wanted.keys)
    order = [wanted.keys.index(key) for key in keys]
    assert np.allclose([row["vector"] for row in rows], wanted.vectors[order], atol=1e-6)
    shapes = shapely.from_wkb([row["geometry"] for row in rows])
    for shape, place in zip(shapes, (wanted.places[n] for n in order), strict=True):
        assert shapely.hausdorff_distance(shape, place.shape) < 1e-7


@pytest.mark.parametrize(("kind", "loss"), [("float32", 0), ("float16", 1e-3), ("int8", 1e-2)])
def test_vectors_come_back_from_their_type(
    space: EmbeddingSpace, tmp_path: Path, kind: Any, loss: float
) -> None:
    path = write_scene(tmp_path / "scene.tif")
    found = embedded(space, path, tmp_path / "out", vectors=kind)
    [one] = found.scenes
    vectors = np.array([row["vector"] for row in table_of(found)], np.float32) * one.facts.scale
    exact = table_of(embedded(space, path, tmp_path / "exact", vectors="float32"))
    assert np.abs(vectors - [row["vector"] for row in exact]).max() <= loss
    stored = pq.read_schema(one.path).field("vector").type
    assert stored.value_type == {"float16": "halffloat", "float32": "float", "int8": "int8"}[kind]
    assert stored.list_size == space.dim


def test_the_footer_states_space_tower_and_a_vector_to_check_the_tower_by(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    path = write_scene(tmp_path / "scene.tif")
    [one] = embedded(space, path, tmp_path / "out", tower="s2", stride=16).scenes
    footer = {
        name.decode(): json.loads(value)
        for name, value in pq.read_schema(one.path).metadata.items()
        if name in (b"geo", b"emb", b"terralign")
    }
    facts = footer["terralign"]
    assert (facts["space_id"], facts["tower"]) == (space.space_id, "s2")
    assert facts["tower_id"] == space.tower_id("s2")
    assert facts["logit_scale"] == pytest.approx(space.clip.logit_scale)
    assert (facts["window_px"], facts["stride_px"], facts["gsd_m"]) == (32, 16, 10)
    picture = torch.sin(torch.arange(4 * 32 * 32, dtype=torch.float64) * 0.37).float()
    with torch.no_grad():
        expected = F.normalize(space.towers["s2"](picture.reshape(1, 4, 32, 32)), dim=-1)[0]
    assert np.allclose(facts["self_check"], expected, atol=1e-5)
    column = footer["geo"]["columns"]["geometry"]
    assert (footer["geo"]["version"], column["crs"]["id"]["code"]) == ("1.1.0", 4326)
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]
    with rasterio.open(path) as file:
        west, south, east, north = rasterio.warp.transform_bounds(
            file.crs, "EPSG:4326", *file.bounds
        )
    assert column["bbox"] == pytest.approx([west, south, east, north], abs=1e-5)
    assert footer["emb"]["emb:dimensions"] == space.dim
    assert footer["emb"]["emb:chip_layout"]["stride"] == [16, 16]


def test_the_geo_entry_is_valid_by_the_published_schema(
    space: EmbeddingSpace, tmp_path: Path, real_data: Path
) -> None:
    jsonschema = pytest.importorskip("jsonschema")
    [one] = embedded(space, write_scene(tmp_path / "scene.tif"), tmp_path / "out").scenes
    geo = json.loads(pq.read_schema(one.path).metadata[b"geo"])
    schema = json.loads(
        (real_data / "formats/schemas/geoparquet-1.1.0/schema.json").read_text(encoding="utf-8")
    )
    del geo["columns"]["geometry"]["crs"]  # its schema is another file on the web
    jsonschema.Draft7Validator(schema).validate(geo)


def test_geopandas_reads_a_part_and_part_of_it_by_place(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    geopandas = pytest.importorskip("geopandas")
    [one] = embedded(space, write_scene(tmp_path / "scene.tif"), tmp_path / "out").scenes
    frame = geopandas.read_parquet(one.path)
    assert (len(frame), frame.crs.to_epsg()) == (9, 4326)
    west, south, east, north = frame.geometry.iloc[0].bounds
    middle = ((west + east) / 2, (south + north) / 2)
    some = geopandas.read_parquet(one.path, bbox=(*middle, *middle))
    assert 1 <= len(some) < 9


def test_rows_lie_along_a_hilbert_curve_with_their_cells(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    found = embedded(space, write_scene(tmp_path / "scene.tif", 200), tmp_path / "out", stride=16)
    rows = table_of(found)
    centres = np.array(
        [shapely.get_coordinates(shapely.from_wkb(row["geometry"]).centroid)[0] for row in rows]
    )
    assert (np.diff(hilbert_numbers(centres[:, 0], centres[:, 1])) >= 0).all()
    assert [row["cell"] for row in rows] == majortom_cells(centres[:, 0], centres[:, 1])


def test_neighbours_on_the_hilbert_curve_are_neighbours_on_the_map() -> None:
    side = 16
    step = 360 / side
    lon, lat = np.meshgrid(-180 + step * (np.arange(side) + 0.5), -90 + step / 2 * (
        np.arange(side) + 0.5))  # fmt: skip
    lon, lat = lon.ravel(), lat.ravel()
    numbers = hilbert_numbers(lon, lat)
    order = np.argsort(numbers)
    moves = np.abs(np.diff(lon[order])) / step + np.abs(np.diff(lat[order])) / (step / 2)
    assert len(set(numbers.tolist())) == side * side
    assert np.allclose(moves, 1)


def test_cells_are_those_of_the_published_grid() -> None:
    """Cells by the published code: rows and columns of 180 / 2004 degrees at the equator."""
    places = {"0U_0R": (0.01, 0.01), "1D_1L": (-0.01, -0.01), "1001U_0R": (0.5, 89.92)}
    lons, lats = np.array(list(places.values())).T
    assert majortom_cells(lons, lats) == list(places)
    assert majortom_cells(np.array([179.999]), np.array([0.01])) == ["0U_2003R"]
    assert majortom_cells(np.array([-179.999]), np.array([0.01])) == ["0U_2004L"]


def test_a_finished_scene_is_not_done_again(
    space: EmbeddingSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_scene(tmp_path / f"{n}.tif", seed=n) for n in range(2)]
    first = embedded(space, paths, tmp_path / "out")
    before = contents(tmp_path / "out")
    monkeypatch.setattr(EmbeddingSpace, "encode_ready", None)
    again = embedded(space, paths, tmp_path / "out")
    assert [one.was_done for one in again.scenes] == [True, True]
    assert contents(tmp_path / "out") == before
    assert again.num_vectors == first.num_vectors == 18


def test_a_changed_scene_replaces_its_part_and_a_changed_setting_is_another(
    space: EmbeddingSpace, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    path = write_scene(tmp_path / "scene.tif")
    [old] = embedded(space, path, tmp_path / "out").scenes
    write_scene(path, seed=1)
    os.utime(path, ns=(1, 1))
    [new] = embedded(space, path, tmp_path / "out").scenes
    assert not new.was_done
    assert [one.name for one in (tmp_path / "out").glob("*.parquet")] == [new.path.name]
    assert old.facts.identity != new.facts.identity
    assert not caplog.records
    [other] = embedded(space, path, tmp_path / "out", stride=16).scenes
    assert set((tmp_path / "out").glob("*.parquet")) == {new.path, other.path}
    again = embedded(space, path, tmp_path / "out", stride=16)
    assert "\nscene.tif  " in str(again)  # without its folder
    [told] = caplog.messages
    assert (
        f"windows twice; remove one of the two parts ({new.path.name}, {other.path.name})" in told
    )
    caplog.clear()
    embedded(space, path, tmp_path / "out", window=16)  # another size is no second copy
    assert not caplog.records


def test_another_precision_is_recorded_and_makes_another_part_of_nearly_the_same_vectors(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    path = write_scene(tmp_path / "scene.tif")
    exact, half = (
        embedded(space, path, tmp_path / "out", vectors="float32", precision=one)
        for one in ("fp32", "bf16")
    )
    assert [one.scenes[0].facts.precision for one in (exact, half)] == ["fp32", "bf16"]
    assert len(list((tmp_path / "out").glob("*.parquet"))) == 2
    one, other = (np.array([row["vector"] for row in table_of(found)]) for found in (exact, half))
    assert 0 < np.abs(one - other).max() < 0.03


def test_a_tower_with_other_weights_replaces_the_part(tiny_clip: ClipModel, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif")
    space = space_of(tiny_clip)
    [old] = embedded(space, path, tmp_path / "out").scenes
    with torch.no_grad():
        next(iter(space.towers["s2"].parameters())).add_(0.1)
    [new] = embedded(space, path, tmp_path / "out").scenes
    assert not new.was_done
    assert new.facts.tower_id != old.facts.tower_id
    assert [one.name for one in (tmp_path / "out").glob("*.parquet")] == [new.path.name]


def test_a_folder_takes_vectors_of_one_space_only(
    space: EmbeddingSpace, norm_clip: ClipModel, tmp_path: Path
) -> None:
    path = write_scene(tmp_path / "scene.tif")
    embedded(space, path, tmp_path / "out")
    with pytest.raises(SpaceMismatchError, match="choose another folder"):
        embedded(EmbeddingSpace(norm_clip), path, tmp_path / "out")


def test_a_damaged_part_is_made_again(space: EmbeddingSpace, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif")
    [one] = embedded(space, path, tmp_path / "out").scenes
    whole = one.path.read_bytes()
    one.path.write_bytes(whole[:1000])
    [again] = embedded(space, path, tmp_path / "out").scenes
    assert not again.was_done
    assert again.path.read_bytes() == whole


def test_scenes_that_fail_are_listed_and_do_not_stop_the_others(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    good = write_scene(tmp_path / "good.tif")
    (tmp_path / "bad.tif").write_bytes(b"II*\0 no more")
    no_place = tmp_path / "no_place.tif"
    with rasterio.open(good) as file, warnings.catch_warnings():
        warnings.simplefilter("ignore", NotGeoreferencedWarning)
        profile = {**file.profile, "crs": None, "transform": None}
        with rasterio.open(no_place, "w", **profile) as other:
            other.write(file.read())
            other.update_tags(**NO_OFFSET)
            other.descriptions = file.descriptions
    empty = write_geotiff(tmp_path / "empty.tif", dn(40) * 0, S2.band_names, tags=NO_OFFSET)
    missing = tmp_path / "missing.tif"
    found = embedded(
        space, [tmp_path / "bad.tif", no_place, empty, missing, good], tmp_path / "out"
    )
    assert [one.facts.scene for one in found.scenes] == ["good.tif"]
    texts = [one.error for one in found.faults]
    for text, part in zip(
        texts, ["not a readable", "no reference system", "no window with", "not found"], strict=True
    ):
        assert part in text
        assert "\n" not in text
    assert not list((tmp_path / "out").rglob("*.partial"))


def test_windows_without_data_are_left_out_and_counted(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    pixels = dn(96)
    pixels[:, :, :40] = 0  # a column of windows is empty, the next a quarter
    path = write_geotiff(tmp_path / "scene.tif", pixels, S2.band_names, tags=NO_OFFSET)
    [one] = embedded(space, path, tmp_path / "out").scenes
    assert (one.num_vectors, one.facts.num_invalid) == (6, 3)
    rows = pq.read_table(one.path).to_pylist()
    assert {round(row["valid_share"], 3) for row in rows} == {0.75, 1.0}
    [one] = embedded(space, path, tmp_path / "out", min_valid=0.8).scenes
    assert (one.num_vectors, one.facts.num_invalid) == (3, 6)


def test_clouds_of_a_mask_within_the_file_leave_windows_out(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    names = (*S2.band_names, "QA60")
    pixels = np.concatenate([dn(80), np.zeros((1, 80, 80), np.uint16)])
    pixels[-1, :40, :40] = 1 << 10
    path = write_geotiff(tmp_path / "a.tif", pixels, names, tags=NO_OFFSET)
    rows = table_of(embedded(space, path, tmp_path / "all"))
    shares = [row["cloud_share"] for row in rows]
    assert max(shares) == 1
    assert min(shares) == 0
    found = embedded(space, path, tmp_path / "few", max_cloud=0.5)
    assert len(table_of(found)) == sum(share <= 0.5 for share in shares) < len(shares)


def test_max_cloud_needs_a_mask(space: EmbeddingSpace, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scene.tif")
    found = embedded(space, path, tmp_path / "out", max_cloud=0.1)
    assert "has no cloud mask" in found.faults[0].error


def test_cloudy_windows_are_left_out_by_the_sources_shares(
    space: EmbeddingSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dataclasses import replace

    path = write_scene(tmp_path / "scene.tif")
    opened = embedding.open_sources

    def cloudy(*arguments: Any, **options: Any) -> Iterator[Any]:
        for one in opened(*arguments, **options):
            yield replace(one, cloud_shares=lambda cut: (w.column / 100 for w in cut))

    monkeypatch.setattr(embedding, "open_sources", cloudy)
    [one] = embedded(space, path, tmp_path / "out", max_cloud=0.4).scenes
    rows = pq.read_table(one.path).to_pylist()
    assert one.facts.num_cloudy == 3
    assert {round(row["cloud_share"], 2) for row in rows} == {0, 0.32}


def test_scenes_at_another_gsd_are_resampled_to_the_towers(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    path = write_scene(tmp_path / "coarse.tif", 40, gsd_m=20)
    [one] = embedded(space, path, tmp_path / "out").scenes
    rows = pq.read_table(one.path).to_pylist()
    assert {row["window_height"] for row in rows} == {16}  # 320 m, as 32 pixels of 10 m
    assert "20 m are resampled to the tower's 10 m" in one.facts.notes[0]
    chip = open_scene(path, sensor=S2.name).read(Window(row=0, column=0, height=16, width=16))
    expected = space.encode_image(chip)[0].numpy()
    [first] = [row for row in rows if (row["window_row"], row["window_column"]) == (0, 0)]
    assert np.allclose(first["vector"], expected, atol=1e-3)


@pytest.mark.parametrize(
    ("crs", "corner", "pixel", "metres"),
    [
        ("EPSG:32633", (500_000, 5_000_000), 10, 10),
        ("EPSG:4326", (15, 60), 1e-4, 111_320e-4 * 0.5**0.5),
        ("EPSG:2263", (1_000_000, 200_000), 32.808, 10),  # US survey feet
        ("EPSG:3857", (1_669_792, 8_399_738), 10, 5),  # web Mercator at 60 degrees north
    ],
)
def test_pixels_are_measured_on_the_ground(
    crs: str, corner: tuple[float, float], pixel: float, metres: float
) -> None:
    for turn in ((pixel, 0, 0, -pixel), (0, pixel, pixel, 0)):
        transform = (*turn[:2], corner[0], *turn[2:], corner[1])
        grid = Grid(crs=crs, transform=transform, height=40, width=40)
        assert grid_gsd(grid, "scene.tif") == pytest.approx(metres, rel=0.01)


def test_windows_are_as_large_on_the_ground_as_the_samples_of_the_towers_training(
    tiny_clip: ClipModel, tmp_path: Path
) -> None:
    samples = open_synthetic_scenes("train", num_samples=12, size=16)
    tower, _ = new_student("s2", tiny_clip, StudentSettings(), [S2.name], [samples], seed=0)
    space = EmbeddingSpace(tiny_clip)
    space.add(tower)
    assert tower.config.gsd_m == 160 / tower.config.input.size  # 16 pixels of 10 m
    [one] = embedded(space, write_scene(tmp_path / "scene.tif"), tmp_path / "out").scenes
    assert (one.facts.gsd_m, one.facts.tower) == (tower.config.gsd_m, "s2")
    assert {row["window_height"] for row in pq.read_table(one.path).to_pylist()} == {16}
    [as_asked] = embedded(space, tmp_path / "scene.tif", tmp_path / "out", gsd_m=10).scenes
    assert {row["window_height"] for row in pq.read_table(as_asked.path).to_pylist()} == {32}


def test_a_scene_given_open_and_a_product_are_taken(space: EmbeddingSpace, tmp_path: Path) -> None:
    product = write_product(tmp_path / NEW_PRODUCT, dn(60, offset=1000))
    by_path = embed_scenes(space, product, tmp_path / "a")
    by_scene = embed_scenes(space, open_scene(product), tmp_path / "b")
    assert table_of(by_path)[0]["vector"] == table_of(by_scene)[0]["vector"]
    assert table_of(by_path)[0]["datetime"].year == 2022
    with pytest.raises(DataError, match="cannot embed a ndarray as a scene"):
        embed_scenes(space, dn(32), tmp_path / "c", sensor=S2.name)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stride": 64}, "so that every pixel is covered"),
        ({"window": 0}, "window must be a number of pixels"),
        ({"vectors": "float64"}, "vectors are stored as float16"),
        ({"min_valid": 2}, "min_valid is 2"),
        ({"part": (3, 2)}, "part is 3 of 2"),
        ({"engine": "dask"}, "engine is 'local' or 'ray'"),
        ({"tower": "s3"}, "no tower 's3'"),
        ({"num_workers": 2}, "no effect"),
        ({"gsd_m": -1}, "gsd_m must be"),
        ({"precision": "fp8"}, "precision must be one of fp32, tf32, bf16, not 'fp8'"),
    ],
)
def test_settings_without_sense_have_one_line(
    space: EmbeddingSpace, tmp_path: Path, options: Any, message: str
) -> None:
    path = write_scene(tmp_path / "scene.tif")
    try:
        found = embedded(space, path, tmp_path / "out", **options)
        text = found.faults[0].error
    except Exception as error:
        text = str(error)
    assert message in text
    assert "\n" not in text


def test_a_scene_that_is_given_twice_is_one(space: EmbeddingSpace, tmp_path: Path) -> None:
    path = write_scene(tmp_path / "scenes" / "a.tif", 32)
    again = path.parent / ".." / "scenes" / path.name
    found = embedded(space, [path, str(again), path.parent], tmp_path / "out")
    assert [len(found), found.num_vectors] == [1, facts_of(found.scenes[0].path).num_windows]


def test_a_scene_with_a_local_reference_system_is_a_fault(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    good, local = (write_scene(tmp_path / "x" / f"{name}.tif", 32) for name in "ab")
    with rasterio.open(local, "r+") as file:
        file.crs = 'LOCAL_CS["mine",UNIT["metre",1]]'
    found = embedded(space, [local, good], tmp_path / "out")
    assert [one.facts.scene for one in found.scenes] == ["a.tif"]
    assert "windows cannot be brought to WGS84" in found.faults[0].error


def test_shares_of_the_scenes_make_the_whole(space: EmbeddingSpace, tmp_path: Path) -> None:
    paths = [write_scene(tmp_path / f"{n}.tif", 40, seed=n) for n in range(5)]
    embedded(space, paths, tmp_path / "whole")
    found = [embedded(space, paths, tmp_path / "shared", part=(i, 3)) for i in (1, 2, 3)]
    assert [len(one) for one in found] == [2, 2, 1]
    assert contents(tmp_path / "whole") == contents(tmp_path / "shared")


def test_a_scene_that_another_process_has_is_waited_for(
    space: EmbeddingSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_scene(tmp_path / f"{n}.tif", 40, seed=n) for n in range(2)]
    [one, _] = embedded(space, paths, tmp_path / "out").scenes
    one.path.unlink()
    slept: list[float] = []
    with claimed(tmp_path / "out" / ".claims" / one.facts.key) as _:
        claim = tmp_path / "out" / ".claims" / one.facts.key / ".lock"

        def sleep(seconds: float) -> None:
            slept.append(seconds)
            claim.unlink()  # the other process is done with it

        monkeypatch.setattr(time, "sleep", sleep)
        found = embedded(space, paths, tmp_path / "out")
    assert len(slept) == 1
    assert [each.was_done for each in found.scenes] == [False, True]


def _embed_in_process(model: Path, paths: list[Path], out: Path) -> None:
    torch.set_num_threads(1)
    embedded(EmbeddingSpace.load(model), paths, out, stride=8, batch_size=8)


def _killed_again_and_again(
    model: Path, paths: list[Path], out: Path, *, kills: int, seconds: float
) -> int:
    """Two processes embed into one folder; kill -9 one of them after a random time, `kills` times.

    Returns how many were killed before they were done.
    """
    # Not forked from this process: GDAL's threads, where it has read files, would be missing there.
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["terralign.index.embed"])
    rng, num_killed = random.Random(0), 0
    at_work = []
    for _ in range(kills):
        while len(at_work) < 2:
            at_work.append(
                context.Process(target=_embed_in_process, args=(model, paths, out), daemon=True)
            )
            at_work[-1].start()
        time.sleep(rng.uniform(0, seconds))
        victim = at_work.pop(rng.randrange(2))
        if victim.is_alive():
            num_killed += 1
            os.kill(victim.pid or 0, signal.SIGKILL)
        victim.join()
    for one in at_work:
        one.join(120)
        assert one.exitcode == 0, "the last process ends by itself"
    _embed_in_process(model, paths, out)
    return num_killed


@pytest.mark.slow
def test_killed_processes_leave_the_same_bytes(model: Path, tmp_path: Path) -> None:
    paths = [write_scene(tmp_path / f"{n}.tif", 160, seed=n) for n in range(6)]
    start = time.monotonic()
    _embed_in_process(model, paths, tmp_path / "whole")
    seconds = (time.monotonic() - start) / 2  # of any machine, so that kills come before the end
    killed = _killed_again_and_again(model, paths, tmp_path / "out", kills=20, seconds=seconds)
    assert killed >= 5
    assert contents(tmp_path / "out") == contents(tmp_path / "whole")


def test_windows_across_the_antimeridian_are_split() -> None:
    grid = Grid(
        crs="EPSG:32601", transform=(10, 0, 181_000, 0, -10, 2_000_000), height=64, width=400
    )
    windows = plan_windows(grid, size=64, window=None, stride=None, gsd_m=10, origin="x").windows
    shapes, centres = window_shapes(grid, windows, origin="x")
    kinds = [one.geom_type for one in shapes]
    assert kinds.count("MultiPolygon") == 1
    assert (np.abs(centres[:, 0]) > 179).all()
    for shape in shapes:
        west, _, east, _ = shape.bounds
        assert -180 <= west <= east <= 180
        assert all(part.bounds[2] - part.bounds[0] < 1 for part in getattr(shape, "geoms", [shape]))


def test_every_pixel_is_covered_by_windows_of_one_size() -> None:
    grid = Grid(crs="EPSG:32633", transform=(10, 0, 0, 0, -10, 0), height=150, width=97)
    plan = plan_windows(grid, size=32, window=None, stride=20, gsd_m=10, origin="x")
    seen = np.zeros((150, 97), bool)
    for one in plan.windows:
        assert (one.height, one.width) == (32, 32)
        seen[one.row : one.row + 32, one.column : one.column + 32] = True
    assert seen.all()


class _FakeRay(types.ModuleType):
    """The few calls of Ray that the driver makes, in this process; actors may die."""

    def __init__(self, *, dies_at: int | None = None) -> None:
        super().__init__("ray")
        self.started = 0
        self.calls = 0
        self.dies_at = dies_at
        self.exceptions = types.SimpleNamespace(RayActorError=ConnectionError)

    def is_initialized(self) -> bool:
        return False

    def init(self) -> None:
        self.started += 1

    def cluster_resources(self) -> dict[str, float]:
        return {"CPU": 2.0}

    def put(self, value: Any) -> Any:
        return value

    def remote(self, kind: Any) -> Any:
        fake = self

        class Actor:
            def __init__(self, *arguments: Any) -> None:
                self.held = kind(*arguments)
                self.embed = types.SimpleNamespace(remote=self._embed)

            def _embed(self, *arguments: Any) -> Any:
                fake.calls += 1
                dead = fake.calls == fake.dies_at
                return object.__new__(Reference).of(None if dead else self.held.embed(*arguments))

        class Reference:
            def of(self, value: Any) -> Any:
                self.value = value
                return self

        handle = types.SimpleNamespace(remote=Actor)
        return types.SimpleNamespace(options=lambda **given: handle)

    def wait(self, references: list[Any], num_returns: int) -> tuple[list[Any], list[Any]]:
        return references[-1:], references[:-1]

    def get(self, reference: Any) -> Any:
        if reference.value is None:
            raise ConnectionError("the actor died")
        return reference.value


def test_ray_actors_make_the_same_bytes(
    space: EmbeddingSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths: list[Any] = [write_scene(tmp_path / f"{n}.tif", 40, seed=n) for n in range(4)]
    embedded(space, paths, tmp_path / "local")
    monkeypatch.setitem(sys.modules, "ray", _FakeRay())
    found = embedded(space, [*paths, tmp_path / "missing"], tmp_path / "ray", engine="ray")
    assert contents(tmp_path / "ray") == contents(tmp_path / "local")
    assert [one.facts.scene for one in found.scenes] == [path.name for path in paths]
    assert [Path(one.key).name for one in found.faults] == ["missing"]


def test_an_actor_that_dies_gives_its_scene_back(
    space: EmbeddingSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    paths = [write_scene(tmp_path / f"{n}.tif", 40, seed=n) for n in range(3)]
    monkeypatch.setitem(sys.modules, "ray", _FakeRay(dies_at=2))
    found = embedded(space, paths, tmp_path / "out", engine="ray", num_workers=2)
    assert len(found.scenes) == 2
    assert "the actor that embedded it failed" in found.faults[0].error


def test_ray_is_asked_for_where_it_is_missing(
    space: EmbeddingSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(DataError, match=r"pip install 'terralign\[ray\]'"):
        embedded(space, write_scene(tmp_path / "a.tif"), tmp_path / "out", engine="ray")


def test_facts_are_read_from_the_footer_alone(space: EmbeddingSpace, tmp_path: Path) -> None:
    [one] = embedded(space, write_scene(tmp_path / "scene.tif"), tmp_path / "out").scenes
    assert facts_of(one.path) == one.facts
