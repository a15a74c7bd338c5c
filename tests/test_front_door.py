"""What a user writes on the first day: the public names, as documented, on small imagery."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from torch import nn

import terralign as ta
from imagery import NO_OFFSET, S2, dn, space_of, write_geotiff
from terralign.chips import make_layout
from terralign.encoders.clip.load import ClipModel, save_clip
from terralign.sensors import Band, Composite

FIRST_DAY = """
import terralign as ta
space = ta.load("runs/b32/model")              # or an open_clip folder, hub id, "ViT-B-32-quickgelu:openai"
space                                          # repr: D, towers with sensors and bands, id
space.classify("scene.tif", ["forest", "a river"], sensor="sentinel2-l2a")   # path, paths, folder, Chip, array, tensor, PIL image
tiles = space.embed("tiles/", sensor="sentinel2-l2a")        # keys, (N, D) vectors, space_id, tower_id, places
space.search(tiles, "solar panels beside a motorway", k=10)  # hits; refuses vectors of another space
data = ta.Samples.from_torchgeo(dataset, sensor=sensor, bands=bands)   # also from_arrays, from_folder, from_torchvision
tower = ta.align(space, data, name="mine", encoder=my_module, epochs=5)   # timm name, nn.Module or factory; None: inflate the RGB tower
space.add(tower); space.save("runs/mine"); ta.load("runs/mine", encoders={"mine": make_module})
patched = ta.patch(space, data, supported=[photos]); ta.evaluate(patched, data)
"""  # noqa: E501
"""Word for word what the project promises, with `...` filled in."""


class _TorchgeoSet:
    """As torchgeo's data sets are: dictionaries with a float image and a label."""

    classes = ("a field", "a lake")
    all_band_names = ("blue", "green", "red", "nir")

    def __len__(self) -> int:
        return 12

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        label = index % 2
        level = (0.05, 0.25)[label]
        image = torch.rand(4, 32, 32, generator=torch.manual_seed(index)) * 0.05 + level
        return {"image": image, "label": torch.tensor(label)}


PLANET = ta.Sensor(
    name="planet",
    unit="reflectance",
    bands=tuple(Band(name=name, gsd_m=3) for name in _TorchgeoSet.all_band_names),
    composites=(Composite(name="true-colour", bands=("red", "green", "blue"), stretch=0.3),),
)


def make_module() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(4, 8, 8, stride=8), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )


@pytest.fixture
def first_day(tiny_clip: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the first day reads, in the working directory."""
    space_of(tiny_clip).save(tmp_path / "runs/b32/model")
    write_geotiff(tmp_path / "scene.tif", dn(40), S2.band_names, tags=NO_OFFSET)
    for number in range(4):
        path = tmp_path / "tiles" / f"{number}.tif"
        write_geotiff(path, dn(32, seed=number), S2.band_names, tags=NO_OFFSET)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def _photos() -> ta.Samples:
    pixels = np.random.default_rng(0).integers(0, 256, (8, 3, 32, 32)).astype(np.uint8)
    labels = ["a cat", "a dog"] * 4
    return ta.Samples.from_arrays(pixels, sensor="rgb", labels=labels, name="photos")


def test_the_first_day_works_word_for_word(first_day: Path) -> None:
    names: dict[str, Any] = {
        "dataset": _TorchgeoSet(),
        "sensor": PLANET,
        "bands": _TorchgeoSet.all_band_names,
        "my_module": make_module(),
        "make_module": make_module,
        "photos": _photos(),
    }
    exec(compile(FIRST_DAY, "first day", "exec"), names)
    space, tiles = names["space"], names["tiles"]
    assert tiles.vectors.shape == (4, space.dim)
    assert tiles.space_id == space.space_id
    assert [Path(key).name for key in tiles.keys] == [f"{number}.tif" for number in range(4)]
    again = ta.load("runs/mine", encoders={"mine": make_module})
    assert again.tower_id("mine") == names["tower"].tower_id()
    assert again.sensors["planet"] == PLANET
    assert names["patched"].tower_names == ("rgb",)


def test_vectors_of_another_space_are_refused(first_day: Path, norm_clip: ClipModel) -> None:
    tiles = ta.load("runs/b32/model").embed("tiles", sensor="sentinel2-l2a")
    other = ta.EmbeddingSpace(norm_clip)
    with pytest.raises(ta.TerralignError, match="different spaces cannot be compared"):
        other.search(tiles, "a river")
    with pytest.raises(ta.TerralignError, match="different spaces cannot be compared"):
        other.embed(dn(32)[1:4].astype(np.uint8), sensor="rgb") + tiles


def test_results_are_values_and_show_as_tables(first_day: Path) -> None:
    space = ta.load("runs/b32/model")
    labels = ["forest", "a river", "<b>town</b>"]
    found = space.classify("scene.tif", labels, sensor="sentinel2-l2a")
    numbers = np.asarray(found)
    assert numbers.shape == (4, 3)
    assert numbers.sum(1) == pytest.approx(np.ones(4), abs=1e-5)
    assert [row.label for row in found] == [labels[one] for one in numbers.argmax(1)]
    tiles = space.embed("tiles/", sensor="sentinel2-l2a")
    assert np.asarray(tiles) == pytest.approx(tiles.vectors)
    assert np.linalg.norm(tiles.vectors, axis=1) == pytest.approx(np.ones(4), abs=1e-5)
    assert [row.keys for row in tiles] == [(key,) for key in tiles.keys]
    hits = space.search(tiles, "a river", k=10)
    assert len(hits) == 4
    assert np.asarray(hits).tolist() == sorted((hit.score for hit in hits), reverse=True)
    by_hand = tiles.vectors @ space.encode_text(["a river"])[0].numpy()
    assert [hit.score for hit in hits] == pytest.approx(sorted(by_hand, reverse=True), rel=1e-5)
    assert space.search(tiles, tiles[2])[0].key == tiles.keys[2]
    for value in (space, found, tiles, hits):
        assert len(repr(value).splitlines()) > 2
        shown = value._repr_html_()
        assert "<table>" in shown
        assert "<b>" not in shown
    west, south, east, north = hits[0].place.bounds
    assert (west, south, east, north) == pytest.approx((15.0, 45.14, 15.01, 45.16), abs=0.02)


def test_vectors_are_kept_in_geoparquet(first_day: Path) -> None:
    space = ta.load("runs/b32/model")
    tiles = space.embed(["tiles/*.tif", "scene.tif"], sensor="sentinel2-l2a")
    assert len(tiles) == 8
    tiles.save("tiles.parquet")
    again = ta.Embeddings.load("tiles.parquet")
    assert np.array_equal(again.vectors, tiles.vectors)
    for name in ("keys", "towers", "space_id", "tower_ids", "model"):
        assert getattr(again, name) == getattr(tiles, name)
    assert [place.window for place in again.places] == [place.window for place in tiles.places]
    assert [place.bounds for place in again.places] == [place.bounds for place in tiles.places]
    assert len(tiles + again) == 16
    assert (tiles[1:3] + tiles[5]).keys == (*tiles.keys[1:3], tiles.keys[5])


def test_every_kind_of_input_gives_the_vectors_of_its_pixels(first_day: Path) -> None:
    space = ta.load("runs/b32/model")
    pixels = dn(32, seed=1)
    how: dict[str, Any] = {"sensor": "sentinel2-l2a", "dn_offset": 0}
    expected = space.embed("tiles/1.tif", **how).vectors
    chip = ta.open_scene("tiles/1.tif", sensor="sentinel2-l2a", dn_offset=0).read()
    bands = S2.band_names
    samples = ta.Samples.from_arrays(pixels[None], sensor="sentinel2-l2a", dn_offset=0)
    for found in (
        space.embed(chip),
        space.embed([chip]),
        space.embed(pixels, **how),
        space.embed(pixels[None], bands=bands, **how),
        space.embed(torch.from_numpy(pixels.astype(np.int32)), **how),
        space.embed([pixels], **how),
        space.embed(pixels / 10_000, sensor="sentinel2-l2a", units="physical"),
        space.embed(samples),
    ):
        assert found.vectors == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("mistake", "reason"),
    [
        (lambda space: ta.EmbeddingSpace("runs/b32/model"), r"write terralign.load"),
        (lambda space: ta.SENSORS["sentinel2"], "'sentinel2-l1c' or 'sentinel2-l2a'"),
        (lambda space: space.embed("scene.tif", sensor="Sentinel2-L2A"), "did you mean"),
        (lambda space: space.embed("nowhere.tif"), "nowhere.tif not found"),
        (lambda space: space.embed("tiles/*.jp2"), r"no file matches tiles/\*.jp2"),
        (lambda space: space.embed("scene.tif"), "sensor"),
        (lambda space: space.embed(dn(32).transpose(1, 2, 0), sensor=S2), "channels first"),
        (lambda space: space.embed(dn(32) / 10_000, sensor=S2), "units='physical'"),
        (lambda space: space.embed(dn(32), sensor=S2), "need dn_offset"),
        (lambda space: space.embed(dn(32)[0], sensor=S2), r"expected \(C, H, W\)"),
        (lambda space: space.embed(dn(32)), "need their sensor"),
        (lambda space: space.embed(dn(32), sensor=3), "sensor is a int"),
        (lambda space: space.embed(dn(32), sensor=S2, bands="B02"), "is one text"),
        (lambda space: space.embed({"a": 1}), "cannot embed a dict"),
        (lambda space: space.embed(None), "cannot embed a NoneType"),
        (lambda space: space.embed("scene.tif", sensor=S2, window=0), "window must be"),
        (lambda space: space.embed("scene.tif", sensor=S2, tower="s3"), "no tower 's3'"),
        (lambda space: space.embed("scene.tif", sensor=S2, errors="ignore"), "errors must be"),
        (lambda space: space.classify("scene.tif", "forest", sensor=S2), "one text"),
        (lambda space: space.search("tiles", "a river"), "embed the imagery first"),
        (lambda space: space.search(_AsBytes(), "a river"), "embed the imagery first"),
        (lambda space: space.search(space.embed("tiles", sensor=S2), ""), "query is empty"),
        (lambda space: space.search(space.embed("tiles", sensor=S2), "a", k=0), "k must be"),
        (lambda space: space.search(space.embed("tiles", sensor=S2), ["a"]), "search for a list"),
    ],
)
def test_natural_mistakes_end_in_a_line_that_says_what_to_do(
    mistake: Any, reason: str, first_day: Path
) -> None:
    space = ta.load("runs/b32/model")
    with pytest.raises(ta.TerralignError, match=reason) as caught:
        mistake(space)
    assert "\n" not in str(caught.value)


def test_a_path_is_searched_by_what_lies_there(first_day: Path) -> None:
    space = ta.load("runs/b32/model")
    vectors, parts = first_day / "vectors", first_day / "parts"
    for folder, name in ((vectors, "tiles"), (parts, f"a.{'0' * 16}.{'f' * 16}")):
        folder.mkdir()
        (folder / f"{name}.parquet").touch()
    with pytest.raises(ta.TerralignError, match=r"with ta\.open_index\(FOLDER\) or ta\.Embed"):
        space.search(vectors, "a river")  # type: ignore[arg-type]
    with pytest.raises(ta.TerralignError, match=r"open_index\('.*/parts'\)"):
        space.search(parts, "a river")  # type: ignore[arg-type]


class _AsBytes:
    """A path whose text is bytes, as `os.PathLike` allows."""

    def __fspath__(self) -> bytes:
        return b"tiles"


def test_what_cannot_be_read_is_raised_or_listed(first_day: Path) -> None:
    space = ta.load("runs/b32/model")
    (first_day / "tiles" / "5.tif").write_bytes(b"II*\0 broken")
    with pytest.raises(ta.TerralignError, match=r"5\.tif"):
        space.embed("tiles", sensor="sentinel2-l2a")
    found = space.embed("tiles", sensor="sentinel2-l2a", errors="skip")
    assert len(found) == 4
    assert [Path(one.key).name for one in found.faults] == ["5.tif"]
    assert "1 input not read" in repr(found)


def _planet(dn_scale: float) -> ta.Sensor:
    return replace(PLANET, dn_scale=dn_scale)


def test_a_tower_cannot_redefine_the_sensor_of_another(first_day: Path) -> None:
    space = ta.load("runs/b32/model")
    data = ta.Samples.from_torchgeo(
        _TorchgeoSet(), sensor=PLANET, bands=_TorchgeoSet.all_band_names
    )
    first = ta.align(space, data, name="first")
    other = ta.align(space, data, name="other")
    space.add(first)
    before = space.embed(_planet_chip(), tower="first").vectors
    other.sensors = (_planet(2e-4),)
    with pytest.raises(
        ta.TerralignError, match="has another sensor 'planet', that of tower 'first'"
    ):
        space.add(other)
    assert np.array_equal(space.embed(_planet_chip(), tower="first").vectors, before)
    other.sensors = (replace(PLANET, name="sentinel2-l2a"),)
    with pytest.raises(ta.TerralignError, match="built-in sensor of another definition"):
        space.add(other)


def _planet_chip() -> ta.Chip:
    pixels = np.full((4, 32, 32), 0.2, dtype=np.float32)
    layout = make_layout(PLANET, PLANET.band_names, units="physical")
    return ta.Chip(pixels=pixels, valid=np.ones(pixels.shape, bool), layout=layout)


def test_a_raster_damaged_half_way_is_one_fault_and_no_result(first_day: Path) -> None:
    """A tile is damaged that is not among those checked when it is opened."""
    path = first_day / "long.tif"
    with rasterio.open(
        path, "w", driver="GTiff", dtype="uint16", count=4, height=16384, width=96, tiled=True,
        blockxsize=64, blockysize=64, crs="EPSG:32633", compress="deflate",
        transform=rasterio.Affine(10, 0, 500_000, 0, -10, 5_000_000),
    ) as file:  # fmt: skip
        file.write(np.random.default_rng(0).integers(200, 3000, (4, 16384, 96)).astype(np.uint16))
        for number, name in enumerate(("B02", "B03", "B04", "B08"), 1):
            file.set_band_description(number, name)
    content = bytearray(path.read_bytes())
    middle = len(content) * 5 // 16  # between two of the places that are checked
    content[middle : middle + 400] = bytes(400)
    path.write_bytes(content)
    space = ta.load("runs/b32/model")
    how: dict[str, Any] = {"sensor": "sentinel2-l2a", "dn_offset": 0}
    with pytest.raises(ta.TerralignError, match=r"long\.tif"):
        space.embed("long.tif", **how)
    found = space.embed(["tiles/0.tif", "long.tif", "tiles/1.tif"], errors="skip", **how)
    assert [Path(key).name for key in found.keys] == ["0.tif", "1.tif"]
    assert [one.key for one in found.faults] == ["long.tif"]


def test_nothing_can_be_kept_too(first_day: Path) -> None:
    tiles = ta.load("runs/b32/model").embed("tiles", sensor="sentinel2-l2a")
    tiles[:0].save("none.parquet")
    assert len(ta.Embeddings.load("none.parquet")) == 0


def test_samples_keep_their_places(first_day: Path) -> None:
    space = ta.load("runs/b32/model")
    data = ta.Samples.from_folder("tiles", sensor="sentinel2-l2a", dn_offset=0)
    by_samples, by_files = space.embed(data), space.embed("tiles", sensor="sentinel2-l2a")
    assert by_samples.vectors == pytest.approx(by_files.vectors, abs=1e-5)
    for one, other in zip(by_samples.places, by_files.places, strict=True):
        assert one.bounds == pytest.approx(other.bounds, abs=1e-6)


def test_classifications_are_taken_by_row_label_and_slice(first_day: Path) -> None:
    space = ta.load("runs/b32/model")
    found = space.classify("tiles", ["forest", "a river"], sensor="sentinel2-l2a", prompts=["{}!"])
    numbers = np.asarray(found)
    assert np.array_equal(found["a river"], numbers[:, 1])
    assert np.array_equal(np.asarray(found[1:3]), numbers[1:3])
    assert np.array_equal(np.asarray(found[numbers[:, 0] > 0]), numbers)
    assert found[-1].key == found.keys[-1]
    with pytest.raises(ta.TerralignError, match="did you mean 'forest'"):
        found["forests"]


def test_public_names_are_listed_and_light() -> None:
    assert set(dir(ta)) == set(ta.__all__)
    heavy = ["torch", "rasterio", "pyarrow", "PIL", "scipy", "shapely"]
    names = ", ".join(name for name in ta.__all__ if not name.startswith("_"))
    code = (
        f"import sys; from terralign import {names}; from terralign.cli import main; "
        f"sys.exit(str([name for name in {heavy} if name in sys.modules]))"
    )
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True
    )
    assert found.stderr.strip() == "[]"


def test_a_name_that_was_not_used_yet_behaves_as_the_object_itself(
    first_day: Path,
) -> None:
    code = """
import copy, inspect, pickle
import terralign as ta
from terralign import EmbeddingSpace, Samples, align, load

assert "epochs" in inspect.signature(align).parameters
assert "Stage 2" in align.__doc__ and inspect.isfunction(align)
space = load("runs/b32/model")
assert isinstance(space, EmbeddingSpace) and not isinstance(1, EmbeddingSpace)
assert inspect.isclass(Samples) and "from_folder" in dir(Samples)
from terralign.datasets.samples import Samples as real
assert Samples == real and ta.Samples is real and hash(Samples) == hash(real)
assert pickle.loads(pickle.dumps(Samples)) is real
class Mine(Samples):
    pass
assert issubclass(Mine, Samples) and Mine.__mro__[1] is real
def f(data: Samples | None = None) -> None | EmbeddingSpace: ...
assert repr(Samples) == repr(real)
"""
    found = subprocess.run(
        [sys.executable, "-c", code], check=False, capture_output=True, text=True, cwd=first_day
    )
    assert found.returncode == 0, found.stderr


def test_an_open_clip_folder_is_a_space(tiny_clip: ClipModel, tmp_path: Path) -> None:
    folder = tmp_path / "clip"
    folder.mkdir()
    save_clip(tiny_clip, folder)
    space = ta.load(folder)
    assert space.tower_names == ("rgb",)
    assert "rgb" in repr(space)
