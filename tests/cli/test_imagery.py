"""`classify`, `embed` and `search`: the command line gives what Python gives."""

from __future__ import annotations

import json
import logging
import subprocess
import sys
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
import torch
from click.testing import CliRunner, Result

from imagery import (
    NEW_PRODUCT,
    NO_OFFSET,
    S2,
    dn,
    write_geotiff,
    write_picture,
    write_product,
)
from terralign.cli import main
from terralign.cli.checks import check_sensor
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.sources import sensors_of
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.vectors import Embeddings
from terralign.errors import SensorError
from terralign.scenes.scene import open_scene

LABELS = ["forest", "a river", "town"]


@pytest.fixture(autouse=True)
def threads_as_they_were(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def _call(*arguments: object) -> Result:
    return CliRunner().invoke(main, ["--quiet", *(str(one) for one in arguments)])


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("classify", "scene.tif", "starter", "--labels", "a,b"), "scene.tif is imagery, not a"),
        (("search", "a river", "scenes"), 'first: terralign search scenes "a river"'),
        (("search", "scenes", "a", "river"), 'in quotes: "a river"'),
        (("search", ".", "a river"), "did you mean scenes?"),
        (("classify", "scenes", "starter", "--labels", "a,b"), "starter is a model, not imagery"),
        (("score", "tiles.parquet", "a river", "--out", "a.tif"), "is one file of vectors; maps"),
        (("info", "sensor"), "did you mean 'sensors'?"),
    ],
)
def test_slips_of_a_first_call_have_a_hint(
    words: tuple[str, ...], told: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scene.tif").touch()
    (tmp_path / "scenes").mkdir()
    (tmp_path / "scenes" / f"a.{'0' * 16}.{'1' * 16}.parquet").touch()
    result = _call(*words)
    assert result.exit_code in (1, 2)
    assert told in result.output


def _classify(model: Path, *arguments: object) -> list[dict[str, Any]]:
    labels = ",".join(LABELS)
    result = _call("classify", model, *arguments, "--labels", labels, "--device", "cpu", "--json")
    assert result.exit_code == 0, result.output
    found: list[dict[str, Any]] = json.loads(result.stdout)
    return found


def _digital_numbers(folder: Path) -> tuple[list[Path], list[str], dict[str, Any]]:
    path = write_geotiff(folder / "scene.tif", dn(32), S2.band_names)
    return [path], ["--sensor", S2.name, "--dn-offset", "0"], {"sensor": S2.name, "dn_offset": 0}


def _physical(folder: Path) -> tuple[list[Path], list[str], dict[str, Any]]:
    pixels = (dn(32) / 10_000).astype(np.float32)
    path = write_geotiff(folder / "scene.tif", pixels, S2.band_names)
    how = {"sensor": S2.name, "units": "physical"}
    return [path], ["--sensor", S2.name, "--units", "physical"], how


def _own_nodata(folder: Path) -> tuple[list[Path], list[str], dict[str, Any]]:
    pixels = dn(32)
    pixels[:, :8] = 65535
    path = write_geotiff(folder / "scene.tif", pixels, S2.band_names, nodata=65535)
    return [path], ["--sensor", S2.name, "--dn-offset", "0"], {"sensor": S2.name, "dn_offset": 0}


def _unnamed_bands(folder: Path) -> tuple[list[Path], list[str], dict[str, Any]]:
    path = write_geotiff(folder / "scene.tif", dn(32)[:4])
    bands = ["B02", "B03", "B04", "B08"]
    how = {"sensor": S2.name, "dn_offset": 0, "bands": bands}
    return [path], ["--sensor", S2.name, "--dn-offset", "0", "--bands", ",".join(bands)], how


def _picture(folder: Path) -> tuple[list[Path], list[str], dict[str, Any]]:
    return [write_picture(folder / "a.jpg")], [], {}


def _pictures(folder: Path) -> tuple[list[Path], list[str], dict[str, Any]]:
    for number in range(3):
        write_picture(folder / "pictures" / f"{number}.png", seed=number, size=40 + number)
    return [folder / "pictures"], [], {}


def _several(folder: Path) -> tuple[list[Path], list[str], dict[str, Any]]:
    paths = [write_picture(folder / f"{number}.png", seed=number) for number in range(3)]
    return paths, [], {}


def _product(folder: Path) -> tuple[list[Path], list[str], dict[str, Any]]:
    return [write_product(folder / NEW_PRODUCT, dn(60, offset=1000))], [], {}


def _scene(folder: Path) -> tuple[list[Path], list[str], dict[str, Any]]:
    path = write_geotiff(folder / "scene.tif", dn(80), S2.band_names)
    how = {"sensor": S2.name, "dn_offset": 0, "tower": "rgb", "window": 40}
    options = ["--sensor", S2.name, "--dn-offset", "0", "--tower", "rgb", "--window", "40"]
    return [path], options, how


@pytest.mark.parametrize(
    "make",
    [
        *(_digital_numbers, _physical, _own_nodata, _unnamed_bands, _picture, _pictures),
        *(_several, _product, _scene),
    ],
)
def test_python_and_the_command_give_the_same_numbers(
    make: Callable[[Path], tuple[list[Path], list[str], dict[str, Any]]],
    model: Path,
    space: EmbeddingSpace,
    tmp_path: Path,
) -> None:
    paths, options, how = make(tmp_path)
    by_python = space.classify(paths, LABELS, **how)
    by_command = _classify(model, *paths, *options)
    rows = [row for one in by_command for row in one.get("windows", [one])]
    numbers = np.array([list(row["probabilities"].values()) for row in rows], dtype=np.float32)
    assert np.array_equal(numbers, np.asarray(by_python))
    assert [row["label"] for row in rows] == list(by_python.predicted)
    assert [row["tower"] for row in rows] == list(by_python.towers)
    if len(paths) == 1:
        assert np.array_equal(np.asarray(space.classify(str(paths[0]), LABELS, **how)), numbers)


def test_a_scene_is_cut_into_windows_that_lie_where_they_should(
    model: Path, tmp_path: Path
) -> None:
    """80 pixels in windows of 32: rows and columns 0, 32 and 48, shifted inwards."""
    path = write_geotiff(tmp_path / "scene.tif", dn(80), S2.band_names)
    how = ["--sensor", S2.name, "--dn-offset", "0", "--geojson", tmp_path / "out.geojson"]
    [found] = _classify(model, path, *how)
    corners = [(one["window"]["row"], one["window"]["column"]) for one in found["windows"]]
    assert corners == [(row, column) for row in (0, 32, 48) for column in (0, 32, 48)]
    mean = np.mean([list(one["probabilities"].values()) for one in found["windows"]], axis=0)
    assert list(found["probabilities"].values()) == pytest.approx(mean.tolist(), rel=1e-6)
    features = json.loads((tmp_path / "out.geojson").read_text(encoding="utf-8"))["features"]
    assert len(features) == 9
    with rasterio.open(path) as file:
        for feature, (row, column) in zip(features, corners, strict=True):
            xs, ys = zip(*feature["geometry"]["coordinates"][0], strict=True)
            east, north = rasterio.warp.transform("EPSG:4326", file.crs, xs, ys)
            left, top = 500_000 + 10 * column, 5_000_000 - 10 * row
            right, bottom = left + 320, top - 320
            assert (min(east), max(east)) == pytest.approx((left, right), abs=0.01)
            assert (min(north), max(north)) == pytest.approx((bottom, top), abs=0.01)
    properties = features[0]["properties"]
    chances = found["windows"][0]["probabilities"]
    assert properties["label"] == found["windows"][0]["label"]
    assert properties["p_a river"] == pytest.approx(chances["a river"], abs=1e-6)


def test_windows_are_printed_with_their_counts(model: Path, tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "scene.tif", dn(400), S2.band_names)
    labels = ",".join(LABELS)
    how = ["--sensor", S2.name, "--dn-offset", "0", "--device", "cpu"]
    result = _call("classify", model, path, "--labels", labels, *how)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{path}: 169 windows of 32x32 pixels (s2): ")
    assert lines[-1] == "  ... and 149 more windows; --json and --geojson have all"
    counts = [int(part.split()[-3]) for part in lines[0].split(": ", 2)[2].split(", ")]
    assert sum(counts) == 169


def write_catalogue(root: Path, hrefs: str = ".") -> Path:
    """An item collection of one product, twice."""
    folder = write_product(root / NEW_PRODUCT, dn(120, offset=1000))
    assets = {
        path.stem: {"href": f"{hrefs}/{folder.name}/{path.name}", "bands": [{"name": path.stem}]}
        for path in folder.glob("*.tif")
    }
    item = {
        "type": "Feature",
        "stac_version": "1.1.0",
        "geometry": None,
        "collection": "sentinel-2-l2a",
        "properties": {"datetime": "2022-07-06T08:56:11Z", "processing:version": "04.00"},
        "assets": assets,
    }
    items = [{**item, "id": name} for name in ("one", "two")]
    path = root / "items.json"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": items}), encoding="utf-8")
    return path


def test_items_of_a_catalogue_are_taken_wherever_imagery_is(
    model: Path, space: EmbeddingSpace, tmp_path: Path
) -> None:
    items = write_catalogue(tmp_path)
    folder = space.embed(tmp_path / NEW_PRODUCT, window=32)
    found = space.embed(items, window=32)
    assert len(found) == 2 * len(folder)
    assert np.array_equal(found.vectors[: len(folder)], folder.vectors)
    assert found.keys[0].startswith(f"{items}#one")
    rows = _classify(model, items, "--window", "32")
    assert [row["file"] for row in rows] == [f"{items}#one", f"{items}#two"]
    for out in (tmp_path / "a.parquet", tmp_path / "parts"):
        result = _call("embed", items, "--model", model, "--out", out, "--device", "cpu")
        assert result.exit_code == 0, result.output
    assert len(list((tmp_path / "parts").glob("**/*.parquet"))) == 2


def test_catalogues_that_cannot_be_read_are_one_line(model: Path, tmp_path: Path) -> None:
    items = write_catalogue(tmp_path, hrefs="ftp://host")
    for source, said in [
        (items, "is not opened; expected an https, http or s3 address"),
        ("stac:https://host.invalid/v1", "names no collections"),
        ("http://127.0.0.1:9/items.json", "does not answer"),
    ]:
        result = _call("classify", model, source, "--labels", "a,b", "--device", "cpu")
        assert result.exit_code == 1, result.output
        assert said in result.stderr


def test_embed_writes_what_search_finds(model: Path, space: EmbeddingSpace, tmp_path: Path) -> None:
    folder = tmp_path / "tiles"
    for number in range(5):
        write_geotiff(folder / f"{number}.tif", dn(32, seed=number), S2.band_names)
    out = tmp_path / "tiles.parquet"
    how = ["--sensor", S2.name, "--dn-offset", "0", "--device", "cpu"]
    result = _call("embed", folder, "--model", model, "--out", out, *how)
    assert result.exit_code == 0, result.output
    found = Embeddings.load(out)
    direct = space.embed(folder, sensor=S2.name, dn_offset=0)
    assert found.keys == direct.keys
    assert np.array_equal(found.vectors, direct.vectors)
    assert found.tower_id == direct.tower_id == space.tower_id("s2")

    result = _call("search", out, "a river", "-k", "3", "--json", "--device", "cpu")
    assert result.exit_code == 0, result.output
    hits = json.loads(result.stdout)
    expected = space.search(direct, "a river", k=3)
    assert [hit["key"] for hit in hits] == [hit.key for hit in expected]
    assert [hit["score"] for hit in hits] == pytest.approx([hit.score for hit in expected])
    assert [hit["rank"] for hit in hits] == [1, 2, 3]

    on_the_fly = _call("search", folder, "a river", "-k", "3", "--model", model, *how)
    assert on_the_fly.exit_code == 0, on_the_fly.output
    assert [line.split()[2] for line in on_the_fly.stdout.splitlines()[1:]] == [
        Path(hit["key"]).name for hit in hits
    ]


@pytest.mark.parametrize(
    ("arguments", "code", "reason"),
    [
        (["embed", "a.png", "--model", "MODEL", "--out", "a.npy"], 2, "ends in .parquet"),
        (
            ["embed", "a.png", "--model", "MODEL", "--out", "nowhere/a.parquet"],
            2,
            "nowhere; make it first",
        ),
        (
            ["embed", "a.png", "--model", "MODEL", "--out", "a.png/a.parquet"],
            2,
            "a.png/a.parquet: a.png is a file, not a folder\n",
        ),
        (["embed", "nowhere.png", "--model", "MODEL", "--out", "a.parquet"], 1, "nowhere.png not"),
        (["search", "a.png", "forest"], 2, "--model is needed"),
        (["search", "a.png", " ", "--model", "MODEL"], 2, "the query is empty"),
        (["search", "", "a lake", "--model", "MODEL"], 2, "a path is empty"),
        (["search", "a.png", "forest", "--model", "MODEL", "-k", "0"], 2, "-k"),
        (["search", "bad.parquet", "forest"], 1, "damaged, or no file of vectors"),
        (["search", "bad.parquet", "forest", "--sensor", "rgb"], 2, "no effect on vectors"),
        (["search", "tiles.parquet", "forest", "--model", "OTHER"], 1, "different spaces"),
        (["classify", "MODEL", "a.png", "--labels", "a,b", "--window", "0"], 2, "--window"),
        (["classify", "MODEL", "a.png", "--labels", "a,b", "--geojson", "a.png"], 2, ".geojson"),
    ],
)
def test_mistakes_are_told_in_one_line(
    arguments: list[str],
    code: int,
    reason: str,
    model: Path,
    norm_clip: ClipModel,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path)
    write_picture(tmp_path / "a.png")
    before = (tmp_path / "a.png").read_bytes()
    (tmp_path / "bad.parquet").write_bytes(b"PAR1 is how such files begin")
    EmbeddingSpace.load(model).embed("a.png").save("tiles.parquet")
    EmbeddingSpace(norm_clip).save("other")
    words = [{"MODEL": str(model), "OTHER": "other"}.get(one, one) for one in arguments]
    result = _call(*words)
    assert result.exit_code == code, result.output
    assert reason in result.stderr
    assert "Traceback" not in result.stderr
    assert (tmp_path / "a.png").read_bytes() == before


def test_a_map_without_places_is_refused(model: Path, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png")
    out = tmp_path / "out.geojson"
    result = _call("classify", model, path, "--labels", "a,b", "--geojson", out, "--device", "cpu")
    assert result.exit_code == 1
    assert "no place on a map is known for 1 result" in result.stderr
    assert not out.exists()


def test_one_file_given_twice_is_reported_twice(model: Path, tmp_path: Path) -> None:
    path = write_picture(tmp_path / "a.png")
    first, second = _classify(model, path, path)
    assert first == second
    scene = write_geotiff(tmp_path / "scene.tif", dn(40), S2.band_names)
    found = _classify(model, scene, scene, "--sensor", S2.name, "--dn-offset", "0")
    assert [len(one["windows"]) for one in found] == [4, 4]


def test_only_files_of_its_own_are_overwritten(model: Path, tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "scene.tif", dn(32), S2.band_names)
    how = ["--sensor", S2.name, "--dn-offset", "0", "--device", "cpu"]
    classify = ["classify", model, path, "--labels", "a,b", *how, "--geojson"]
    embed = ["embed", path, "--model", model, *how, "--out"]
    for words, name in ((classify, "out.geojson"), (embed, "out.parquet")):
        out = tmp_path / name
        assert _call(*words, out).exit_code == 0
        assert _call(*words, out).exit_code == 0
        out.write_text('{"type": "FeatureCollection", "features": []}')
        result = _call(*words, out)
        assert result.exit_code == 1
        assert "exists and was not written by terralign" in result.stderr
        assert out.read_text() == '{"type": "FeatureCollection", "features": []}'


@pytest.mark.realdata
@pytest.mark.parametrize(
    ("name", "warned"),
    [
        ("S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419", False),
        ("S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543", True),
    ],
)
def test_real_scenes_are_mapped(real_data: Path, tmp_path: Path, name: str, warned: bool) -> None:
    """The map covers the scene, and says of the reprocessed one why its offset is 0."""
    scene, out = real_data / "scenes" / name, tmp_path / "out.geojson"
    words = ["classify", str(real_data / "micro-clip"), str(scene), "--geojson", str(out)]
    words += ["--window", "192", "--labels", "forest,river,town,farmland,cloud", "--device", "cpu"]
    result = CliRunner().invoke(main, words)
    assert result.exit_code == 0, result.output
    assert ("the pixels rule out -1000" in result.stderr) is warned
    assert ("using 0" in result.stderr) is warned
    features = json.loads(out.read_text(encoding="utf-8"))["features"]
    assert len(features) == 6 * 6
    corners = [xy for one in features for xy in one["geometry"]["coordinates"][0]]
    with rasterio.open(scene / "B04.tif") as file:
        bounds = rasterio.warp.transform_bounds(file.crs, "EPSG:4326", *file.bounds)
    west, south = (min(values) for values in zip(*corners, strict=True))
    east, north = (max(values) for values in zip(*corners, strict=True))
    assert (west, south, east, north) == pytest.approx(bounds, abs=1e-4)


def test_a_sensor_of_the_models_own_is_known_before_it_is_loaded(model: Path) -> None:
    own = sensors_of(str(model))
    assert own == EmbeddingSpace.load(model).sensors
    for name, sensor in own.items():
        assert check_sensor(name, str(model)) == sensor
    assert sensors_of("ViT-B-32:openai") == {}


def test_an_opened_scene_is_embedded_like_its_path(space: EmbeddingSpace, tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "scene.tif", dn(80), S2.band_names)
    scene = open_scene(path, sensor=S2, dn_offset=0)
    found, expected = space.embed(scene), space.embed(path, sensor=S2, dn_offset=0)
    assert found.keys == expected.keys
    assert np.array_equal(found.vectors, expected.vectors)
    with pytest.raises(SensorError, match="a scene has its own sensor"):
        space.embed(scene, sensor=S2)


def test_the_offset_that_is_applied_is_logged_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(logging.getLogger("terralign"), "propagate", True)
    caplog.set_level(logging.INFO, logger="terralign")
    named = write_geotiff(tmp_path / NEW_PRODUCT / "scene.tif", dn(32) + 1000, S2.band_names)
    declared = write_geotiff(tmp_path / "scene.tif", dn(32), S2.band_names)
    for _ in range(2):
        open_scene(named, sensor=S2)
        open_scene(declared, sensor=S2, dn_offset=0)
    assert [record.getMessage() for record in caplog.records if "DN" in record.getMessage()] == [
        f"{named}: DN offset -1000, as its metadata or name states",
    ]


def test_faults_of_one_cause_are_reported_together(model: Path, tmp_path: Path) -> None:
    for number in range(6):
        write_geotiff(tmp_path / f"{number}.tif", dn(32)[:4])
    how = ["--labels", "a,b", "--sensor", S2.name, "--dn-offset", "0", "--device", "cpu"]
    result = _call("classify", model, tmp_path, *how)
    assert result.exit_code == 1
    *first, others, last = result.stderr.strip().splitlines()
    assert len(first) == 3
    assert others.startswith("terralign: 3 more inputs failed for this reason: ... has 4 band(s)")
    assert "bands=" not in others  # the command's options, as in the first three
    assert last == "terralign: 6 of 6 inputs failed"
    result = _call("classify", model, tmp_path, *how, "--json")
    assert len(json.loads(result.stdout)) == 6


def test_a_run_folder_names_its_space(model: Path, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "model").symlink_to(model)
    picture = write_picture(tmp_path / "a.png")
    result = _call("classify", tmp_path / "run", picture, "--labels", "a,b")
    assert result.exit_code == 1
    assert f"its space is {tmp_path / 'run' / 'model'}" in result.stderr
    assert f"its space is {tmp_path / 'run' / 'model'}" in _call("info", tmp_path / "run").stderr


def _printed(*arguments: object) -> str:
    """What a command of its own process prints on stderr."""
    script = "import sys; from terralign.cli import main; main(sys.argv[1:])"
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, check=False).stderr


def test_what_gdal_says_of_bytes_that_are_no_text_is_not_printed(
    model: Path, tmp_path: Path
) -> None:
    path = write_geotiff(tmp_path / "a.tif", dn(32), S2.band_names, tags=NO_OFFSET)
    data = path.read_bytes()
    assert data.count(b"<GDALMetadata>") == 1
    path.write_bytes(data.replace(b"<GDALMetadata>", b"<GDALMetad\xfft>>"))
    said = _printed("classify", model, path, "--sensor", S2.name, "--dn-offset", "0",
                    "--labels", "forest,river")  # fmt: skip
    assert "Traceback" not in said


def test_what_pillow_warns_of_is_not_printed(tmp_path: Path) -> None:
    (tmp_path / "photos" / "forest").mkdir(parents=True)
    photo = write_picture(tmp_path / "photos" / "forest" / "photo.png")
    data = photo.read_bytes()
    frames = b"acTL" + bytes(8)  # an animation of no picture
    chunk = b"\0\0\0\x08" + frames + zlib.crc32(frames).to_bytes(4)
    photo.write_bytes(data[:33] + chunk + data[33:])
    (tmp_path / "photos.toml").write_text(
        'name = "photos"\nreader = "folder"\nsensor = "rgb"\nroot = "photos"\n'
        '[classes]\nforest = "a forest"\n'
    )
    said = _printed("pack", tmp_path / "photos.toml", tmp_path / "store")
    assert "PIL" not in said, said
    assert (tmp_path / "store" / "manifest.json").is_file(), said
