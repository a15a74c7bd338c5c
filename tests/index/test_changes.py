"""Two dates compared: windows of one place in pairs, the known change first, refused otherwise."""

from __future__ import annotations

import json
import sqlite3
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import rasterio
import shapely
from click.testing import CliRunner, Result
from numpy.typing import NDArray
from rasterio import Affine

from imagery import NO_OFFSET, ORIGIN, S2, KnownSpace, known_space, space_of, write_geotiff
from report_page import Page
from terralign.cli import main
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import DataError, SpaceMismatchError
from terralign.index.embed import embed_scenes
from terralign.index.pairs import best_partners, outline_shares
from terralign.index.results import save_hits
from terralign.index.search import Index, open_index
from terralign.searching.report import save_report

BEFORE, AFTER = "2022-07-06", "2023-07-11"
SIZE, SIDE = 128, 32


@pytest.fixture(scope="module")
def space(tiny_clip: ClipModel) -> KnownSpace:
    return known_space(tiny_clip)


def write_scene(folder: Path, day: str, *, changed: int = 1000, shift: int = 0) -> Path:
    """Dark ground of 1000, a window of which is `changed`; `shift`: metres to the east."""
    dn = np.full((12, SIZE, SIZE), 1000, np.uint16)
    dn[:, 64:96, 32:64] = changed
    name = f"S2A_MSIL2A_{day.replace('-', '')}T085611_N9999_R007_T33NZA_20230101T000000.tif"
    path = write_geotiff(folder / name, dn, S2.band_names, tags=NO_OFFSET)
    with rasterio.open(path, "r+") as file:
        file.transform = Affine(10, 0, ORIGIN[0] + shift, 0, -10, ORIGIN[1])
    return path


def embedded(space: EmbeddingSpace, paths: list[Path], out: Path, **options: Any) -> Path:
    embed_scenes(space, paths, out, sensor=S2.name, vectors="float32", **options)
    return out


@pytest.fixture(scope="module")
def paths(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    folder = tmp_path_factory.mktemp("scenes")
    return [write_scene(folder, BEFORE), write_scene(folder, AFTER, changed=3000)]


@pytest.fixture(scope="module")
def index(space: KnownSpace, paths: list[Path]) -> Index:
    return open_index(embedded(space, paths, paths[0].parent / "out"))


def test_the_known_change_is_first_with_both_scores_scenes_and_dates(
    space: KnownSpace, index: Index, paths: list[Path]
) -> None:
    found = index.compare(space, "bright", BEFORE, AFTER, 3)
    assert found.num_searched == (SIZE // SIDE) ** 2
    first = found[0]
    assert first.score == pytest.approx(0.5, abs=1e-6)
    assert (first.place.window.row, first.place.window.column) == (64, 32)
    assert (first.facts["score_before"], first.facts["score_after"]) == (0.25, 0.75)
    assert first.facts["scene_before"] == paths[0].name
    assert first.facts["source_before"] == str(paths[0])
    assert (first.facts["scene"], first.place.source) == (paths[1].name, str(paths[1]))
    assert first.facts["datetime_before"].startswith(BEFORE)
    assert f"{first.place.datetime:%Y-%m-%d}" == AFTER
    row = index.row_of(first.facts["key_before"])
    assert index.store.rows["window"][row].tolist() == [64, 32, 32, 32]
    assert np.asarray(found)[1:] == pytest.approx([0, 0], abs=1e-6)
    assert [one.rank for one in found[1:]] == [2, 3]
    text = found[:1].table().text()
    for part in ("0.5000", "0.2500", "0.7500", BEFORE, AFTER, paths[0].name[-40:]):
        assert part in text


def test_swapped_dates_find_what_fell(space: KnownSpace, index: Index) -> None:
    found = index.compare(space, "bright", AFTER, BEFORE, 100)
    assert found[-1].score == pytest.approx(-0.5, abs=1e-6)
    assert found[-1].place.window.row == 64


def test_periods_are_days_pairs_or_texts_with_a_slash(space: KnownSpace, index: Index) -> None:
    one = index.compare(space, "bright", BEFORE, AFTER)
    for before, after in (
        ("2022-01-01/2022-12-31", ("2023-01-01", "2023-12-31")),
        ("2022-07-06T00:00:00/2022-07-06T23:00:00", AFTER),
    ):
        assert [hit.key for hit in index.compare(space, "bright", before, after)] == [
            hit.key for hit in one
        ]


def test_rises_of_several_towers_are_ranked_in_standard_deviations(
    space: KnownSpace, paths: list[Path], tmp_path: Path
) -> None:
    both = open_index(embedded(space, paths, tmp_path / "out", tower=["s2", "rgb"]))
    found = both.compare(space, "bright", BEFORE, AFTER, 100)
    assert found.num_searched == 32
    for tower in both.towers:
        [best] = [hit for hit in found if hit.tower == tower][:1]
        spread = np.sqrt(both.moments_of(tower)[1][0, 0])
        assert best.facts["ranked_by"] == pytest.approx(best.score / spread, rel=1e-4)
    plain = both.compare(space, "bright", BEFORE, AFTER, 100, centre=False)
    assert list(np.asarray(plain)) == sorted(np.asarray(plain), reverse=True)


@pytest.mark.parametrize(("shift", "num_pairs"), [(140, 16), (180, 12)])
def test_windows_pair_with_the_greatest_overlap_of_half_or_more(
    space: KnownSpace, paths: list[Path], tmp_path: Path, shift: int, num_pairs: int
) -> None:
    """Of windows 320 m wide, 140 m to the east, all share more than half with their own place;
    180 m to the east, with the next one, which those of the last column lack."""
    moved = write_scene(tmp_path, AFTER, changed=3000, shift=shift)
    index = open_index(embedded(space, [paths[0], moved], tmp_path / "out"))
    found = index.compare(space, "bright", BEFORE, AFTER, 100)
    assert found.num_searched == len(found) == num_pairs
    for hit in found:
        old = index.store.rows["window"][index.row_of(hit.facts["key_before"])]
        assert hit.place.window.row == old[0]
        assert old[1] - hit.place.window.column == (0 if shift == 140 else 32)


def test_rotated_windows_pair_by_their_outlines_not_their_bounds(
    space: KnownSpace, tmp_path: Path
) -> None:
    """Windows at 45 degrees, 0.4 of their side apart in rows and columns: their bounds have 60 % in
    common, they have 36 %."""
    step = 10 / np.sqrt(2)
    paths = []
    for number, day in enumerate((BEFORE, AFTER)):
        path = write_scene(tmp_path, day)
        corner = (ORIGIN[0] + number * 2 * 0.4 * SIDE * step, ORIGIN[1])
        with rasterio.open(path, "r+") as file:
            file.transform = Affine(step, step, corner[0], step, -step, corner[1])
        paths.append(path)
    index = open_index(embedded(space, paths, tmp_path / "out"))
    with pytest.raises(DataError, match="nothing to compare"):
        index.compare(space, "bright", BEFORE, AFTER)


def brute_force(boxes: Any, others: Any, times: Any) -> dict[int, int]:
    found = {}
    for number, one in enumerate(shapely.box(*boxes.T)):
        two = shapely.box(*others.T)
        shares = outline_shares(np.full(len(two), one), two)
        best = max(range(len(two)), key=lambda n: (round(shares[n], 3), times[n]))
        if shares[best] >= 0.5:
            found[number] = best
    return found


def random_boxes(rng: np.random.Generator, num: int) -> NDArray[np.float64]:
    corners = rng.uniform(10, 11, (num, 2))
    return np.concatenate([corners, corners + rng.uniform(0.1, 0.2, (num, 2))], axis=1)


def test_partners_are_those_of_brute_force(monkeypatch: pytest.MonkeyPatch) -> None:
    rng = np.random.default_rng(0)
    boxes, others = random_boxes(rng, 100), random_boxes(rng, 50)
    others = np.concatenate([others, others])  # each twice, at another time
    times = rng.permutation(100)
    expected = brute_force(boxes, others, times)
    assert 10 < len(expected) < 90
    for chunk in (50_000, 7):
        monkeypatch.setattr("terralign.index.pairs._CHUNK", chunk)
        numbers, partners = best_partners(boxes, others, times)
        assert dict(zip(numbers.tolist(), partners.tolist(), strict=True)) == expected


def test_partners_are_found_across_the_antimeridian() -> None:
    across = np.array([[179.8, 0, -179.8, 0.4]])
    east, west = np.array([[179.75, 0, 180, 0.4]]), np.array([[-180, 0, -179.75, 0.4]])
    inside = np.array([[-179.99, 0, -179.8, 0.4], [179.8, 0, 179.99, 0.4]])
    wide = np.array([[179.9, 0, -179.8, 0.4]])
    times = np.zeros(2, np.int64)
    assert best_partners(across, across, times)[0].tolist() == [0]
    assert best_partners(wide, west, times)[0].tolist() == [0]
    assert best_partners(west, wide, times)[0].tolist() == [0]
    assert best_partners(east, inside, times)[1].tolist() == [1]
    assert best_partners(east, west, times)[0].tolist() == []


def test_the_report_shows_both_dates(space: KnownSpace, index: Index, tmp_path: Path) -> None:
    hits = index.compare(space, "bright", BEFORE, AFTER, 3)
    page = Page(save_report(space, index, hits, tmp_path / "page.html").read_text())
    assert "rise 0.5000, from 0.2500 on 2022-07-06 to 0.7500" in page.text
    assert hits[0].facts["key_before"] in page.text
    pictures = [one for one in page.sources if one.startswith("data:image/jpeg")]
    assert len(pictures) == 3 * 4
    assert pictures[0] != pictures[2]
    assert "before, true colour" in page.text


# What is refused


def test_what_cannot_be_compared_is_one_clear_line(
    space: KnownSpace, index: Index, norm_clip: ClipModel, paths: list[Path], tmp_path: Path
) -> None:
    for wrong, told in {
        ("2022-07-06", "2021-01-01"): "no window of 2021-01-01 meets the conditions; it has windows"
        " of 2022-07-06, 2023-07-11",
        ("2022-07-06", "2022-07-01/2022-07-08"): "2022-07-01 to 2022-07-08 overlap; give two",
        ("last year", "2022-07-06"): "before is 'last year'; expected a day, as 2022-07-06, or",
        ("2022-07-06", "2022-07-06T10:00:00"): "after is '2022-07-06T10:00:00'; expected a day",
        ("2022-07-09/2022-07-08", "2022-07-06"): "start 2022-07-09 is after end 2022-07-08",
    }.items():
        with pytest.raises(DataError, match=told):
            index.compare(space, "bright", *wrong)
    with pytest.raises(DataError, match="k must be"):
        index.compare(space, "bright", BEFORE, AFTER, 0)
    with pytest.raises(SpaceMismatchError, match=f"index's vectors are of space {space.space_id}"):
        index.compare(EmbeddingSpace(norm_clip), "bright", BEFORE, AFTER)
    out = tmp_path / "out"
    for path, tower in zip(paths, ("rgb", "s2"), strict=True):
        embedded(space, [path], out, tower=tower)
    with pytest.raises(DataError, match=r"towers: s2\) has half .* 2022-07-06 \(towers: rgb\)"):
        open_index(out).compare(space, "bright", BEFORE, AFTER)


# The command


@pytest.fixture(scope="module")
def folder(tiny_clip: ClipModel, paths: list[Path], tmp_path_factory: Any) -> Path:
    """Parts of a space that the command can load."""
    out: Path = tmp_path_factory.mktemp("real")
    space_of(tiny_clip).save(out / "model")
    return embedded(EmbeddingSpace.load(out / "model"), paths, out / "scenes")


def call(folder: Path, *arguments: object) -> Result:
    words = ["--quiet", "search", folder, "a river", *arguments, "--device", "cpu"]
    return CliRunner().invoke(main, [str(one) for one in words])


def test_every_output_has_both_scores_scenes_and_dates(folder: Path, tmp_path: Path) -> None:
    index = open_index(folder)
    hits = index.compare(EmbeddingSpace.load(index.model), "a river", BEFORE, AFTER, 4)
    outs = {ending: tmp_path / f"hits.{ending}" for ending in ("geojson", "gpkg", "parquet")}
    result = call(
        folder, "--compare", BEFORE, AFTER, "-k", 4, "--json", "--out", outs["gpkg"], "--geojson",
        outs["geojson"],
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    assert json.loads(result.stdout) == [json.loads(json.dumps(hit.to_json())) for hit in hits]
    save_hits(hits, outs["parquet"])
    facts = hits[0].facts
    for ending, out in outs.items():
        if ending == "geojson":
            row = json.loads(out.read_text())["features"][0]["properties"]
        elif ending == "parquet":
            row = pq.read_table(out).to_pylist()[0]
        else:
            connection = sqlite3.connect(out)
            connection.row_factory = sqlite3.Row
            row = dict(connection.execute("SELECT * FROM windows WHERE rank = 1").fetchone())
            connection.close()
        assert row["score"] == pytest.approx(hits[0].score, abs=1e-6)
        for name in ("scene", "score_before", "score_after", "scene_before", "datetime_before"):
            assert row[name] == facts[name], (ending, name)
        assert str(row["datetime"]).startswith(AFTER)


@pytest.mark.parametrize(
    ("arguments", "code", "told"),
    [
        (["--start", BEFORE, "--cut", "0.5"], 2, "--start, --cut: no effect with --compare"),
        (["--polygon", "none.geojson"], 2, "none.geojson"),
    ],
)
def test_slips_of_a_comparison_are_usage_errors(
    folder: Path, arguments: list[str], code: int, told: str
) -> None:
    result = call(folder, "--compare", BEFORE, AFTER, *arguments)
    assert result.exit_code == code
    assert told in result.output


def test_a_date_that_is_none_is_reported_before_the_model_is_loaded(folder: Path) -> None:
    result = call(folder, "--compare", "yesterday", AFTER, "--model", folder)
    assert result.exit_code == 1
    assert "a date of --compare is 'yesterday'; expected a day" in result.output
