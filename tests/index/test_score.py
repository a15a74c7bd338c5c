"""Maps of scores and classes: the numbers follow from the definition, and lie where they should."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ElementTree
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import rasterio
import torch
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from rasterio import Affine

from imagery import NO_OFFSET, S2, KnownSpace, known_space, write_geotiff
from terralign.chips import Grid, make_layout
from terralign.cli import main
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import DataError, SpaceMismatchError, StorageError
from terralign.index.blend import Blend
from terralign.index.cog import Layer, colours, write_maps
from terralign.index.embed import embed_scenes
from terralign.index.parts import facts_of
from terralign.index.score import class_map, score_map
from terralign.index.search import open_index
from terralign.preprocess.spec import ALL_CELLS, valid_cells

SIDE, STRIDE, PIXEL = 32, 16, 4
HEIGHT, WIDTH = 100, 76
"""Of the scene: no multiple of stride or pixel, so that windows are shifted inwards."""


@pytest.fixture(scope="module")
def space(tiny_clip: ClipModel) -> KnownSpace:
    return known_space(tiny_clip)


def reflectances() -> NDArray[np.uint16]:
    """(12, H, W): dark above and bright below, with a bright square, and nothing at the right."""
    dn = np.full((12, HEIGHT, WIDTH), 1000, np.uint16)
    dn[:, 48:], dn[:, 10:30, 20:44] = 3000, 3600
    dn[:, :40, 64:] = 0
    return dn


@pytest.fixture(scope="module")
def scene(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A rotated scene of the numbers above, in UTM 33N."""
    path = tmp_path_factory.mktemp("scene") / "scene.tif"
    write_geotiff(path, reflectances(), S2.band_names, tags=NO_OFFSET, nodata=0)
    with rasterio.open(path, "r+") as file:
        file.transform = Affine(8, 6, 500_000, 6, -8, 5_000_000)
    return path


@pytest.fixture(scope="module")
def folder(space: KnownSpace, scene: Path) -> Path:
    out = scene.parent / "out"
    embed_scenes(space, scene, out, sensor=S2.name, stride=STRIDE, vectors="float32")
    return out


def by_definition(values: Any) -> NDArray[np.float64]:
    """The blend at every pixel of the map of `values` (K,) of a window's (B02 numbers, valid)."""
    dn = reflectances()[0].astype(float)
    starts = [sorted({*range(0, length - SIDE, STRIDE), length - SIDE})
              for length in (HEIGHT, WIDTH)]  # fmt: skip
    rows, columns = -(-HEIGHT // PIXEL), -(-WIDTH // PIXEL)
    found = np.full((len(values(dn[:SIDE, :SIDE])), rows, columns), np.nan)
    for i in range(rows):
        for j in range(columns):
            y = (i * PIXEL + min((i + 1) * PIXEL, HEIGHT)) / 2
            x = (j * PIXEL + min((j + 1) * PIXEL, WIDTH)) / 2
            total, sums = 0.0, np.zeros(len(found))
            for top in starts[0]:
                for left in starts[1]:
                    u, v = (y - top) / SIDE, (x - left) / SIDE
                    if not (0 <= u <= 1 and 0 <= v <= 1):
                        continue
                    cell = SIDE // 8
                    row = top + min(7, int(u * 8)) * cell
                    column = left + min(7, int(v * 8)) * cell
                    if not (dn[row : row + cell, column : column + cell] > 0).any():
                        continue
                    weight = (1 - abs(2 * u - 1)) * (1 - abs(2 * v - 1))
                    sums += weight * values(dn[top : top + SIDE, left : left + SIDE])
                    total += weight
            if total > 0:
                found[:, i, j] = sums / total
    return found


def cosine(window: NDArray[np.float64]) -> NDArray[np.float64]:
    """Of the known tower; holes are filled with the mean of the sensor's range, half of it."""
    return np.array([np.where(window > 0, window / 4000, 0.5).mean()])


def read(path: Path) -> NDArray[Any]:
    with rasterio.open(path) as file:
        found: NDArray[Any] = file.read(1)
    return found


def test_a_score_map_is_the_blend_of_the_windows_cosines(
    space: KnownSpace, folder: Path, tmp_path: Path
) -> None:
    found = score_map(space, folder, "bright", tmp_path / "map.tif")
    expected = by_definition(cosine)[0]
    assert np.isnan(expected).any(), "some pixels are invalid"
    assert np.allclose(read(found.path), expected, atol=1e-5, equal_nan=True)
    assert (found.lowest, found.highest) == pytest.approx(
        (np.nanmin(expected), np.nanmax(expected)), abs=1e-5
    )
    assert found.covered == pytest.approx(np.isfinite(expected).mean())
    assert found.num_windows == len(open_index(folder))


def test_a_scene_gives_the_map_that_its_folder_gives(
    space: KnownSpace, scene: Path, folder: Path, tmp_path: Path
) -> None:
    by_folder = score_map(space, folder, "bright", tmp_path / "folder.tif")
    by_scene = score_map(space, scene, "bright", tmp_path / "scene.tif", sensor=S2.name)
    assert np.array_equal(read(by_scene.path), read(by_folder.path), equal_nan=True)
    assert by_scene.grid == by_folder.grid, "half a window is the default stride"


def test_the_map_lies_on_the_scenes_own_grid_and_says_what_it_is(
    space: KnownSpace, scene: Path, folder: Path, tmp_path: Path
) -> None:
    score_map(space, folder, "bright", tmp_path / "map.tif", against="a \x07 bell")
    with rasterio.open(tmp_path / "map.tif") as file, rasterio.open(scene) as whole:
        assert file.crs == whole.crs
        for x, y in ((0, 0), (0.5, 0.5), (7, 11)):
            a, b, c, d, e, f = tuple(whole.transform)[:6]
            there = (a * PIXEL * x + b * PIXEL * y + c, d * PIXEL * x + e * PIXEL * y + f)
            assert file.xy(y, x, offset="ul") == pytest.approx(there, abs=1e-6)
        tags = file.tags()
        assert (file.driver, file.tags(ns="IMAGE_STRUCTURE")["LAYOUT"]) == ("GTiff", "COG")
        assert np.isnan(file.nodata)
    assert tags["QUERY"] == "bright, not: a \\x07 bell"
    assert (tags["SPACE_ID"], tags["TOWER"]) == (space.space_id, "s2")
    assert tags["TOWER_ID"] == space.tower_id("s2")
    assert (tags["SOURCE"], tags["MODEL"]) == (str(scene), space.source)


@pytest.mark.parametrize(("pixel_m", "shape"), [(10, (100, 76)), (75, (13, 10)), (320, (4, 3))])
def test_the_size_of_a_pixel_is_the_callers(
    space: KnownSpace, folder: Path, tmp_path: Path, pixel_m: float, shape: tuple[int, int]
) -> None:
    found = score_map(space, folder, "bright", tmp_path / "map.tif", pixel_m=pixel_m)
    assert read(found.path).shape == shape
    assert found.pixel_m == pytest.approx(max(1, round(pixel_m / 10)) * 10)
    if pixel_m == 10:  # every pixel of the scene has its own: one in the middle of a window
        assert read(found.path)[80, 30] == pytest.approx(3000 / 4000, abs=1e-3)


def test_a_pixel_that_is_no_fraction_of_a_window_is_refused(
    space: KnownSpace, folder: Path, tmp_path: Path
) -> None:
    for wrong in (1, 321, float("nan")):
        with pytest.raises(DataError, match="expected metres from 10, the scene's, to 320"):
            score_map(space, folder, "bright", tmp_path / "map.tif", pixel_m=wrong)


def test_memory_is_bounded_by_strips_that_give_the_same_map(
    space: KnownSpace, folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = read(score_map(space, folder, "bright", tmp_path / "a.tif").path)
    monkeypatch.setattr("terralign.index.blend._STRIP_BYTES", 3 * 8 * 2 * whole.shape[1])
    strips = read(score_map(space, folder, "bright", tmp_path / "b.tif").path)
    assert np.array_equal(whole, strips, equal_nan=True)


def test_windows_that_only_touch_leave_no_gap_between_them() -> None:
    """Windows of 30 pixels side by side, and map pixels of 4, one of which is centred on 30."""
    windows = np.array([[0, 0, 30, 30], [30, 0, 30, 30]])
    blend = Blend(
        windows=windows, cells=np.full(2, ALL_CELLS, np.uint64), height=60, width=30, pixel_px=4
    )
    [(_, [values])] = blend.strips(1, lambda some: np.array([[1.0], [3.0]])[some])
    assert np.array_equal(values[:, 3], [1.0] * 7 + [2.0] + [3.0] * 7)


def test_classes_are_the_argmax_of_the_blended_probabilities(
    space: KnownSpace, folder: Path, tmp_path: Path
) -> None:
    def chances(window: NDArray[np.float64]) -> NDArray[np.float64]:
        [share] = cosine(window)
        logits = space.clip.logit_scale * np.array([share, np.sqrt(1 - share**2), 0])
        powers = np.exp(logits - logits.max())
        return np.asarray(powers / powers.sum())

    labels = ["bright", "dark & <low>", "never"]
    found = class_map(space, folder, labels, tmp_path / "map.tif")
    expected = by_definition(chances)
    there = np.isfinite(expected[0])
    codes = read(found.path)
    assert np.array_equal(codes[there], expected.argmax(0)[there] + 1)
    assert (codes[~there] == 0).all()
    assert set(np.unique(codes)) == {0, 1, 2}
    probability = read(found.probability_path)
    assert np.allclose(probability, expected.max(0), atol=1e-4, equal_nan=True)
    assert found.shares[2] == 0
    assert found.shares[0] == pytest.approx((codes == 1).sum() / (codes > 0).sum())
    with rasterio.open(found.path) as file:
        assert (file.dtypes, file.nodata) == (("uint8",), 0)
        assert [file.colormap(1)[code] for code in (1, 2, 3)] == list(colours(3).values())
        assert file.tags()["CLASSES"] == ", ".join(labels)
    tree = ElementTree.parse(f"{found.path}.aux.xml")
    assert [one.text for one in tree.iter("Category")] == ["no data", *labels]
    rows = [[cell.text for cell in row] for row in tree.iter("Row")]
    assert rows[2] == ["2", labels[1], "255", "127", "14", "255"]
    style = ElementTree.parse(found.path.with_suffix(".qml"))
    entries = [one.attrib for one in style.iter("paletteEntry")]
    assert [one["label"] for one in entries] == labels
    assert entries[1]["color"] == "#ff7f0e"


def test_more_classes_than_a_byte_holds_are_16_bits(
    space: KnownSpace, folder: Path, tmp_path: Path
) -> None:
    names = [f"class {number}" for number in range(300)]
    space_of_few = space.zero_shot_weights(["one"])
    assert len(set(colours(300).values())) > 290
    with pytest.MonkeyPatch.context() as patch:
        weights = torch.cat([torch.zeros(299, space.dim), space_of_few])
        patch.setattr(KnownSpace, "zero_shot_weights", lambda *_, **__: weights)
        found = class_map(space, folder, names, tmp_path / "map.tif")
    with rasterio.open(found.path) as file:
        assert file.dtypes == ("uint16",)
        assert file.read(1).max() == 300


def test_large_maps_are_tiled_and_have_overviews(tmp_path: Path) -> None:
    grid = Grid(crs="EPSG:32633", transform=(80, 0, 5e5, 0, -80, 5e6), height=600, width=700)
    values = np.arange(600 * 700, dtype=np.float32).reshape(600, 700)
    values[:, :100] = np.nan
    layer = Layer(
        path=tmp_path / "map.tif", dtype="float32", nodata=np.nan, description="x",
        tags={"TERRALIGN": "score map"}, resampling="AVERAGE",
    )  # fmt: skip
    write_maps([layer], grid, [(0, [values[:300]]), (300, [values[300:]])])
    with rasterio.open(layer.path) as file:
        assert np.array_equal(file.read(1), values, equal_nan=True)
        assert (file.block_shapes, file.overviews(1)) == ([(256, 256)], [2, 4])
        [overview] = file.read(out_shape=(1, 300, 350))
    assert np.isnan(overview[:, :50]).all()
    assert np.allclose(overview[:, 50:], values.reshape(300, 2, 350, 2).mean((1, 3))[:, 50:])
    assert list(tmp_path.iterdir()) == [layer.path]


def test_cells_are_valid_where_a_number_is() -> None:
    layout = make_layout(S2, ("B02", "B03"), units="dn")
    pixels = torch.ones(2, 16, 20, dtype=torch.int32)
    assert valid_cells(pixels, layout, ["B02"]) == ALL_CELLS
    pixels[:, :2] = 0  # the first row of cells
    pixels[0, 2:4, :3] = 0  # the first cell of the next in B02, and a column of its neighbour
    assert valid_cells(pixels, layout, ["B02"]) == ALL_CELLS & ~0x1FF
    assert valid_cells(pixels, layout, ["B02", "B03"]) == ALL_CELLS & ~0xFF
    assert valid_cells(pixels, layout, ["B02", "B03"], together=True) == ALL_CELLS & ~0x1FF


# What is refused


def test_a_folder_of_several_scenes_towers_or_settings_asks_which(
    space: KnownSpace, scene: Path, tmp_path: Path
) -> None:
    other = write_geotiff(tmp_path / "other.tif", reflectances(), S2.band_names, tags=NO_OFFSET)
    out = tmp_path / "out"
    how: Any = {"sensor": S2.name, "vectors": "float32"}
    embed_scenes(space, [scene, other], out, tower=["s2", "rgb"], **how)
    [coarse] = embed_scenes(space, other, out, tower="s2", stride=SIDE // 2, **how).scenes

    def mapped(**chosen: Any) -> Any:
        return score_map(space, out, "bright", tmp_path / "map.tif", **chosen)

    with pytest.raises(DataError, match=r"2 scenes: other\.tif, scene\.tif; name one"):
        mapped()
    with pytest.raises(DataError, match=r"no scene 'othr\.tif'; did you mean 'other\.tif'"):
        mapped(scene="othr.tif")
    with pytest.raises(DataError, match="embedded by rgb, s2; name one"):
        mapped(scene="scene.tif")
    with pytest.raises(DataError, match="no windows by tower 's1' here"):
        mapped(scene="scene.tif", tower="s1")
    with pytest.raises(
        DataError, match=r"several settings; .*every (16|32), fp32\), .*every (16|32), fp32\)"
    ):
        mapped(scene="other.tif", tower="s2")
    assert mapped(scene=str(scene), tower="rgb").tower == "rgb"
    assert mapped(scene=coarse.path.name).scene == "other.tif"
    with pytest.raises(DataError, match="window=: no effect on scenes that are embedded already"):
        mapped(window=16)


def rewritten(part: Path, folder: Path, change: Any, drop: Sequence[str] = ()) -> Path:
    """A folder with a part whose footer is changed in place, without some columns."""
    table = pq.read_table(part).drop_columns(list(drop))
    footer = json.loads(table.schema.metadata[b"terralign"])
    change(footer)
    metadata = {**table.schema.metadata, b"terralign": json.dumps(footer).encode()}
    folder.mkdir()
    pq.write_table(table.replace_schema_metadata(metadata), folder / part.name)
    return folder


def test_a_part_of_an_early_version_is_searched_and_not_mapped(
    space: KnownSpace, folder: Path, tmp_path: Path
) -> None:
    [part] = folder.glob("*.parquet")
    old = rewritten(part, tmp_path / "out", lambda footer: footer.pop("grid"), ["valid_cells"])
    assert facts_of(old / part.name).grid is None
    assert len(space.search(open_index(old), "bright", 3)) == 3
    with pytest.raises(DataError, match="does not state the scene's grid; remove it, and embed"):
        score_map(space, old, "bright", tmp_path / "map.tif")


@pytest.mark.parametrize(
    ("grid", "told"),
    [
        ({"crs": "junk"}, "reference system is not known"),
        ({"transform": [0] * 6}, "pixels of size 0"),
        ({"transform": [1e308, 0, 0, 0, -1e308, 0]}, r"damaged: its footer has grid\.transform"),
        ({"height": 20}, "its windows do not lie within the scene"),
        ({"height": 2**30, "width": 2**30}, "more than the limit of 1,000,000,000 pixels"),
    ],
)
def test_a_part_with_a_wrong_grid_is_one_clear_line(
    space: KnownSpace, folder: Path, tmp_path: Path, grid: dict[str, Any], told: str
) -> None:
    [part] = folder.glob("*.parquet")
    wrong = rewritten(part, tmp_path / "out", lambda footer: footer["grid"].update(grid))
    with pytest.raises(DataError, match=told):
        score_map(space, wrong, "bright", tmp_path / "map.tif")
    assert not (tmp_path / "map.tif").exists()


def test_a_map_without_any_value_has_no_lowest_one(
    space: KnownSpace, folder: Path, tmp_path: Path
) -> None:
    [part] = folder.glob("*.parquet")
    table = pq.read_table(part)
    place = table.schema.get_field_index("valid_cells")
    cells = pa.array(np.full(len(table), 1 << (8 * 2 + 2), np.uint64))  # where no pixel is centred
    (tmp_path / "out").mkdir()
    pq.write_table(table.set_column(place, "valid_cells", cells), tmp_path / "out" / part.name)
    found = score_map(space, tmp_path / "out", "bright", tmp_path / "map.tif", pixel_m=320)
    assert (found.covered, found.to_json()["lowest"], found.to_json()["highest"]) == (0, None, None)


def test_vectors_of_another_space_and_missing_windows_are_refused(
    space: KnownSpace, folder: Path, norm_clip: ClipModel, tmp_path: Path
) -> None:
    with pytest.raises(SpaceMismatchError, match=f"index's vectors are of space {space.space_id}"):
        score_map(EmbeddingSpace(norm_clip), folder, "bright", tmp_path / "map.tif")
    with pytest.raises(DataError, match="has no window to map: none of 24"):
        score_map(space, folder, "bright", tmp_path / "map.tif", max_cloud=0.5)
    assert not (tmp_path / "map.tif").exists()


def test_only_maps_of_ours_are_replaced(
    space: KnownSpace, folder: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    out = tmp_path / "map.tif"
    class_map(space, folder, ["bright", "dark"], out)
    score_map(space, folder, "bright", out)
    assert sorted(one.name for one in tmp_path.iterdir()) == ["map.tif", "map_probability.tif"]
    style = tmp_path / "map.qml"
    style.write_text("as QGIS saved it")
    class_map(space, folder, ["bright", "dark"], out)
    assert style.read_text() == "as QGIS saved it"
    assert "map.qml stays, in whose style QGIS shows the map" in caplog.text
    foreign = write_geotiff(tmp_path / "foreign.tif", np.zeros((1, 4, 4), np.uint8))
    before = foreign.read_bytes()
    for wrong in (foreign, tmp_path / "map.png"):
        with pytest.raises(StorageError, match="choose"):
            score_map(space, folder, "bright", wrong)
    (tmp_path / "classes_probability.tif").write_bytes(before)
    with pytest.raises(StorageError, match=r"classes_probability\.tif exists and was not written"):
        class_map(space, folder, ["bright", "dark"], tmp_path / "classes.tif")
    assert foreign.read_bytes() == before


# The command


def call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["--quiet", "score", *(str(one) for one in arguments)])


def test_the_command_writes_what_python_writes(model: Path, scene: Path, tmp_path: Path) -> None:
    space = EmbeddingSpace.load(model)
    embed_scenes(space, scene, tmp_path / "out", sensor=S2.name)
    by_python = score_map(space, tmp_path / "out", "a river", tmp_path / "a.tif", against="mud")
    result = call(tmp_path / "out", "a river", "--against", "mud", "--out", tmp_path / "b.tif",
                  "--json", "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == {**by_python.to_json(), "out": str(tmp_path / "b.tif")}
    assert (tmp_path / "b.tif").read_bytes() == (tmp_path / "a.tif").read_bytes()
    result = call(scene, "--labels", "river,town", "--model", model, "--sensor", S2.name, "--out",
                  tmp_path / "c.tif", "--device", "cpu")  # fmt: skip
    assert result.exit_code == 0, result.output
    assert "river" in result.stdout
    by_python = class_map(space, scene, ["river", "town"], tmp_path / "d.tif", sensor=S2.name)
    for end in (".tif", "_probability.tif"):
        assert np.array_equal(
            read(tmp_path / f"c{end}"), read(tmp_path / f"d{end}"), equal_nan=True
        )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["IMAGERY"], "the query is empty"),
        (["IMAGERY", "x", "--labels", "a,b"], "not both"),
        (["SCENE", "x"], "--model is needed"),
        (["IMAGERY", "x", "--stride", "8", "--sensor", "rgb"], "--sensor, --stride: no effect"),
        (["IMAGERY", "x", "--window", "whole"], "give a number"),
        (["SCENE", "x", "--scene", "y", "--model", "MODEL"], "--scene: no effect on a scene"),
    ],
)
def test_slips_are_usage_errors(
    arguments: list[str], told: str, folder: Path, scene: Path, tmp_path: Path
) -> None:
    given = {"IMAGERY": str(folder), "SCENE": str(scene)}
    result = call(*(given.get(one, one) for one in arguments), "--out", tmp_path / "map.tif")
    assert result.exit_code == 2
    assert told in " ".join(result.output.split())
