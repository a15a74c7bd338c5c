"""The index over a folder of parts: the hits of exact search, whatever happens to it."""

from __future__ import annotations

import json
import logging
import os
import shutil
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import shapely
from click.testing import CliRunner, Result

from terralign.chips import Window
from terralign.cli import main
from terralign.encoders.answers import Hits
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.vectors import as_unit
from terralign.errors import DataError, DiskFullError, StorageError
from terralign.index import ann, approximate, indexing, planner, probes
from terralign.index.approximate import FOLDER, read_state
from terralign.index.indexing import drop_index, index_folder
from terralign.index.parts import FORMAT_VERSION, PartFacts, PartRows, write_part
from terralign.index.planner import Probes, TowerRows, explain, plan_step
from terralign.index.probes import exact_best, made_queries
from terralign.index.search import Index, open_index

ROWS = 600
"""Of a part."""


@pytest.fixture(scope="module", autouse=True)
def small() -> Iterator[None]:
    """Few rows are enough for the index, and few queries are measured."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planner, "EXACT_ROWS", 100)
        patch.setattr(probes, "NAMES", probes.NAMES[:12])
        patch.setattr(probes, "TEMPLATES", probes.TEMPLATES[:1])
        patch.setattr(probes, "_GROUPS", 4)
        yield


def write(
    folder: Path, space: EmbeddingSpace, number: int, *, tower: str, rows: int = ROWS
) -> Path:
    """A part of clustered vectors, beside each other in degrees, of a year each."""
    rng = np.random.default_rng((5, number))
    world = np.random.default_rng(3)
    centres = world.normal(size=(20, space.dim)) + world.normal(size=space.dim)
    centres += 2 * (tower == "rgb") * world.normal(size=space.dim)
    vectors = as_unit(centres[rng.integers(0, 20, rows)] + 0.6 * rng.normal(size=(rows, space.dim)))
    west = number + np.arange(rows) % 30 * 0.01
    south = np.arange(rows) // 30 * 0.01
    facts = PartFacts(
        format=FORMAT_VERSION, key=f"{number:016x}", identity=f"{number:016x}", stamps="",
        source=f"scene-{number}", scene=f"scene-{number}", sensor="sentinel2-l2a", bands=("B02",),
        dn_offset=0.0, space_id=space.space_id, tower=tower, tower_id="1" * 16, model="gone",
        dim=space.dim, vector_type="float16", logit_scale=100.0, self_check=(1.0,), window_px=64,
        stride_px=64, gsd_m=10, scene_gsd_m=10, min_valid=0, max_cloud=None, num_windows=rows,
        num_invalid=0, num_cloudy=0,
    )  # fmt: skip
    path = folder / f"{number:06d}.parquet"
    write_part(
        path,
        PartRows(
            windows=[Window(row=64 * n, column=0, height=64, width=64) for n in range(rows)],
            shapes=shapely.box(west, south, west + 0.015, south + 0.015),
            centres=np.stack([west + 0.0075, south + 0.0075], 1),
            valid_shares=rng.random(rows).astype(np.float32),
            clouds=np.full(rows, np.nan, np.float32),
            vectors=vectors,
            datetime=None,
        ),
        facts,
    )
    return path


@pytest.fixture(scope="module")
def made(space: EmbeddingSpace, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three parts by one tower, two by another; the index looks into all clusters."""
    folder = tmp_path_factory.mktemp("ann") / "scenes"
    for number, tower in enumerate(("s2", "s2", "s2", "rgb", "rgb")):
        write(folder, space, number, tower=tower)
    index_folder(folder, space=space, force=True)
    state = read_state(folder)
    assert state is not None
    everywhere = [
        one.model_copy(
            update={
                "measured": tuple(
                    probes.model_copy(update={"probes": one.partitions}) for probes in one.measured
                )
            }
        )
        for one in state.towers
    ]
    indexing._write(folder, state.model_copy(update={"towers": tuple(everywhere)}))
    return folder


@pytest.fixture
def folder(made: Path, tmp_path: Path) -> Path:
    """A copy, with the times of its files."""
    shutil.copytree(made, tmp_path / "scenes", copy_function=shutil.copy2)
    return tmp_path / "scenes"


@pytest.fixture(autouse=True)
def every_cluster(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Indices that a test makes are looked into everywhere too, so that their hits are exact."""
    if "recall" not in request.node.name and "codes" not in request.node.name:
        monkeypatch.setattr(probes, "_ladder", lambda partitions: [partitions])


def both(index: Index, space: EmbeddingSpace, *query: Any, **options: Any) -> tuple[Hits, Hits]:
    """The hits by the index, and those of exact search."""
    return (
        index.search(space, *query, **options),
        index.search(space, *query, exact=True, **options),
    )


def ways(hits: Hits) -> dict[str, str]:
    return {one["tower"]: one["way"] for one in hits.how["steps"]}


def run(*words: Any) -> Result:
    return CliRunner().invoke(main, [str(one) for one in words])


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"towers": "s2"},
        {"centre": False},
        {"centre": True},
        {"k": 55},
        {"collapse": True},
        {"collapse": True, "towers": "rgb", "k": 20},
        {"cut": 0.08, "k": 5},
        {"against": "a lake"},
        {"min_valid": 0.5},
        {"bbox": (0.0, 0.0, 1.2, 0.1)},
        {"like": "0000000000000001-640-0", "unlike": "0000000000000003-64-0"},
    ],
)
def test_hits_are_those_of_exact_search(space: EmbeddingSpace, made: Path, options: Any) -> None:
    """Where every cluster is looked into, as here."""
    found, exact = both(open_index(made), space, [("a river", 2), "a harbour"], **options)
    assert "index" in ways(found).values()
    assert set(ways(exact).values()) == {"exact"}
    assert [one.key for one in found] == [one.key for one in exact]
    assert np.allclose(np.asarray(found), np.asarray(exact), atol=1e-6)
    assert found.num_searched == exact.num_searched
    assert np.allclose(
        [one.facts["ranked_by"] for one in found], [one.facts["ranked_by"] for one in exact]
    )


def test_few_rows_and_many_hits_are_compared_one_by_one(space: EmbeddingSpace, made: Path) -> None:
    index = open_index(made)
    for options in ({"bbox": (0.0, 0.0, 0.05, 0.05)}, {"k": 1000}):
        found, exact = both(index, space, "a river", towers="s2", **options)
        assert ways(found) == {"s2": "exact"}
        assert found.how["recall"] == 1
        assert [one.key for one in found] == [one.key for one in exact]


def test_a_filter_that_the_best_hits_do_not_meet_finds_the_best_that_do(
    space: EmbeddingSpace, made: Path
) -> None:
    """Content and place go together here, so that the share of rows says nothing."""
    index = open_index(made)
    vectors = index.store.vectors[: 3 * ROWS].astype(np.float32)
    query = vectors.mean(0)
    worst = int(np.argmin(vectors @ query))
    keys = index.search(space, "a river", 1, like=_key(index, worst), exact=True)
    found, exact = both(index, space, None, like=_key(index, worst), towers="s2", min_valid=0.4)
    assert len(keys) == 1
    assert [one.key for one in found] == [one.key for one in exact]


def _key(index: Index, row: int) -> str:
    place = index.store.rows[row]
    return f"{index.facts[place['part']].identity}-{place['window'][0]}-{place['window'][1]}"


def test_the_recall_that_is_stated_is_what_other_texts_get(
    space: EmbeddingSpace, folder: Path
) -> None:
    done = index_folder(folder, space=space, recall=0.8)
    assert done.done == {"rgb": "measured", "s2": "measured"}
    (stated, *_) = next(one for one in done.state.towers if one.tower == "s2").measured
    assert stated.probes < read_state(folder).towers[1].partitions  # type: ignore[union-attr]
    index = open_index(folder)
    shares = []
    for text in ("a wharf", "snow", "tulips", "a chapel", "sand", "a racecourse", "tents", "mud"):
        found, exact = both(index, space, text, towers="s2")
        shares.append(np.mean([one.key in {hit.key for hit in found} for one in exact]))
    assert np.mean(shares) > 0.65
    assert found.how["recall"] == stated.recall


def test_queries_made_of_the_windows_give_way_to_texts(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    for number in range(2):
        write(tmp_path, space, number, tower="s2")
    first = index_folder(tmp_path, force=True)
    assert "no text tower" in first.state.towers[0].texts
    assert index_folder(tmp_path).done == {"s2": "kept"}
    assert index_folder(tmp_path, space=lambda name, space_id: None).done == {"s2": "kept"}
    again = index_folder(tmp_path, space=lambda name, space_id: space)
    assert again.done == {"s2": "measured"}
    assert "text tower" in again.state.towers[0].texts
    assert index_folder(tmp_path, space=space).done == {"s2": "kept"}


def test_new_parts_are_searched_and_those_gone_or_changed_are_not(
    space: EmbeddingSpace, folder: Path
) -> None:
    write(folder, space, 7, tower="s2")
    (folder / "000000.parquet").unlink()
    write(folder, space, 4, tower="rgb", rows=ROWS - 1)
    index = open_index(folder)
    found, exact = both(index, space, "a river", k=20, centre=False)
    assert [one.key for one in found] == [one.key for one in exact]
    assert all(not one.key.startswith(f"{0:016x}-") for one in found)
    steps = {one["tower"]: one for one in found.how["steps"]}
    assert steps["s2"]["compared"] == ROWS
    assert steps["rgb"]["compared"] == ROWS - 1
    about = approximate.describe_approximate(folder, index.store)
    assert about is not None
    assert about["towers"]["s2"]["of parts gone or changed"] == ROWS

    done = index_folder(folder, space=space)
    assert done.done == {"s2": "made", "rgb": "made"}  # too much has changed
    found, exact = both(open_index(folder), space, "a river", k=20, centre=False)
    assert [one.key for one in found] == [one.key for one in exact]
    assert all(one["compared"] == 0 for one in found.how["steps"])


def test_a_small_change_is_added_to_the_index(space: EmbeddingSpace, folder: Path) -> None:
    size = approximate.folder_bytes(folder / FOLDER)
    for number in (7, 8):
        write(folder, space, number, tower="s2", rows=100)
        done = index_folder(folder, space=space)
        assert done.done == {"s2": "changed", "rgb": "kept"}
    (folder / "000007.parquet").unlink()
    done = index_folder(folder, space=space)
    assert done.done == {"s2": "changed", "rgb": "kept"}
    found, exact = both(open_index(folder), space, "a river", k=40)
    assert [one.key for one in found] == [one.key for one in exact]
    assert all(one["compared"] == 0 for one in found.how["steps"])
    assert approximate.folder_bytes(folder / FOLDER) < 1.3 * size
    assert index_folder(folder, space=space).done == {"s2": "kept", "rgb": "kept"}


def test_codes_find_the_same_after_their_candidates_are_compared(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    for number in range(7):
        write(tmp_path, space, number, tower="s2")
    done = index_folder(tmp_path, space=space, force=True, kind="pq", recall=0.9)
    assert done.state.towers[0].kind == "pq"
    index = open_index(tmp_path)
    shares = []
    for text in ("a river", "a harbour", "snow", "tents"):
        found, exact = both(index, space, text)
        assert ways(found) == {"s2": "index"}
        shares.append(np.mean([one.key in {hit.key for hit in found} for one in exact]))
    assert np.mean(shares) > 0.7


# What goes wrong


def test_a_damaged_index_is_reported_once_and_made_again(
    space: EmbeddingSpace, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    state = folder / FOLDER / "state.json"
    text = state.read_text()
    for damaged in ("", "{}", text[:-10], text.replace('"format": 1', '"format": 9'),
                    text.replace("terralign_", "../../")):  # fmt: skip
        caplog.clear()
        state.write_text(damaged)
        index = open_index(folder)
        with caplog.at_level(logging.WARNING):
            found, exact = both(index, space, "a river")
        assert [one.key for one in found] == [one.key for one in exact]
        assert len(caplog.messages) == 1
        assert "terralign index" in caplog.text
    assert set(index_folder(folder, space=space, force=True).done.values()) == {"made"}
    assert len(list((folder / FOLDER).glob("*.lance"))) >= 2


def test_a_table_that_is_gone_costs_time_and_no_hit(
    space: EmbeddingSpace, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = open_index(folder)
    for table in (folder / FOLDER).glob("*.lance"):
        shutil.rmtree(table)
    for _ in range(2):
        found, exact = both(index, space, "a river")
        assert [one.key for one in found] == [one.key for one in exact]
    assert len([one for one in caplog.messages if "all rows are compared" in one]) == 1
    assert set(index_folder(folder, space=space).done.values()) == {"made"}


def test_files_of_the_index_that_are_cut_off_cost_no_hit(
    space: EmbeddingSpace, folder: Path
) -> None:
    for path in (folder / FOLDER).rglob("*"):
        if path.suffix in (".idx", ".lance") and path.is_file():
            path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    found, exact = both(open_index(folder), space, "a river")
    assert [one.key for one in found] == [one.key for one in exact]


def test_another_process_makes_the_index_anew_under_an_open_one(
    space: EmbeddingSpace, folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    index = open_index(folder)
    index.search(space, "a river")
    write(folder, space, 9, tower="s2", rows=2 * ROWS)
    index_folder(folder, space=space)
    found, exact = both(index, space, "a river", k=30)
    assert [one.key for one in found] == [one.key for one in exact]
    assert ways(found)["s2"] == "index"
    assert "all rows are compared" not in caplog.text


def test_a_search_keeps_the_index_that_another_thread_closes(
    space: EmbeddingSpace, made: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = Index._plan

    def closing(self: Index, *given: Any, **options: Any) -> Any:
        steps = plan(self, *given, **options)
        self._approximate = None
        return steps

    monkeypatch.setattr(Index, "_plan", closing)
    found = open_index(made).search(space, "a river", 30)
    assert ways(found)["s2"] == "index"
    exact = open_index(made).search(space, "a river", 30, exact=True)
    assert [one.key for one in found] == [one.key for one in exact]


def test_stopped_before_its_last_step_it_leaves_the_old_index(
    space: EmbeddingSpace, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write(folder, space, 9, tower="s2")
    write(folder, space, 10, tower="s2")
    before = (folder / FOLDER / "state.json").read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(indexing, "_write", _stop)
        with pytest.raises(KeyboardInterrupt):
            index_folder(folder, space=space)
    assert (folder / FOLDER / "state.json").read_bytes() == before
    assert len(list((folder / FOLDER).glob("*.lance"))) == 3
    found, exact = both(open_index(folder), space, "a river", k=30)
    assert [one.key for one in found] == [one.key for one in exact]
    assert index_folder(folder, space=space).done == {"s2": "made", "rgb": "kept"}
    assert len(list((folder / FOLDER).glob("*.lance"))) == 2


def _stop(*_: Any) -> None:
    raise KeyboardInterrupt


def test_two_at_once_take_turns(space: EmbeddingSpace, folder: Path) -> None:
    write(folder, space, 9, tower="s2")
    write(folder, space, 10, tower="s2")
    done: list[str] = []

    def work() -> None:
        done.append(index_folder(folder, space=space).done["s2"])

    threads = [threading.Thread(target=work) for _ in range(2)]
    for one in threads:
        one.start()
    for one in threads:
        one.join()
    assert sorted(done) == ["kept", "made"]
    found, exact = both(open_index(folder), space, "a river", k=30)
    assert [one.key for one in found] == [one.key for one in exact]


def test_a_full_disk_is_one_line(
    space: EmbeddingSpace, folder: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.setattr(indexing, "check_free_space", _full)
    for rows in (ROWS // 4, 2 * ROWS):  # a change of the index, and a new one
        write(folder, space, 9, tower="s2", rows=rows)
        with pytest.raises(DiskFullError, match="MB free"):
            index_folder(folder, space=space)
    assert "made again" not in caplog.text
    found, exact = both(open_index(folder), space, "a river", k=30)
    assert [one.key for one in found] == [one.key for one in exact]
    drop_index(folder)
    with pytest.raises(StorageError, match="MB free"):
        index_folder(folder, space=space, force=True)
    assert not (folder / FOLDER).exists()


def _full(*_: Any) -> None:
    raise DiskFullError("it needs 5 MB but its disk has 1 MB free")


def test_links_are_not_followed(space: EmbeddingSpace, folder: Path, tmp_path: Path) -> None:
    """As of a folder that came from elsewhere, whose index would be removed through a link."""
    kept = tmp_path / "documents"
    kept.mkdir()
    (kept / "letter.txt").write_text("mine")
    table = next((folder / FOLDER).glob("*.lance"))
    shutil.rmtree(table)
    table.symlink_to(kept)
    for work in (index_folder, drop_index):
        with pytest.raises(StorageError, match="is a link"):
            work(folder)
    shutil.rmtree(folder / FOLDER)
    (folder / FOLDER).symlink_to(kept)
    for work in (index_folder, drop_index):
        with pytest.raises(StorageError, match="is a link"):
            work(folder)
    assert (kept / "letter.txt").read_text() == "mine"


def test_without_lancedb_one_line_names_the_extra(
    space: EmbeddingSpace, folder: Path, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    for module in (ann, approximate):
        monkeypatch.setattr(module, "is_installed", lambda: False)
    with pytest.raises(DataError, match=r"pip install 'terralign\[index\]'"):
        index_folder(folder, space=space)
    found = open_index(folder).search(space, "a river")
    assert set(ways(found).values()) == {"exact"}
    assert "pip install" in caplog.text


def test_the_index_can_be_demanded(space: EmbeddingSpace, folder: Path) -> None:
    assert "index" in ways(open_index(folder).search(space, "a river", exact=False)).values()
    drop_index(folder)
    assert not (folder / FOLDER).exists()
    assert len(open_index(folder).search(space, "a river")) == 10
    with pytest.raises(DataError, match="terralign index"):
        open_index(folder).search(space, "a river", exact=False)
    with pytest.raises(DataError, match="no index"):
        drop_index(folder)


# The parts


def test_a_tower_with_few_windows_gets_no_index(space: EmbeddingSpace, folder: Path) -> None:
    drop_index(folder)
    done = index_folder(folder, space=space)
    assert "compared one by one" in done.done["s2"]
    assert not (folder / FOLDER).exists()


def test_the_ways_of_a_plan(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planner, "EXACT_ROWS", 1000)
    measured = [
        Probes(depth=depth, probes=depth // 5, recall=0.96, low=0.95, recall_like=1, milliseconds=1)
        for depth in (10, 100, 1000)
    ]

    def rows(number: int, in_index: int = 100_000) -> TowerRows:
        return TowerRows(
            tower="s2", rows=number, indexed=number, in_index=in_index, partitions=500,
            measured=measured,
        )  # fmt: skip

    whole = plan_step(rows(100_000), 10)
    assert (whole.way, whole.depth, whole.probes, whole.recall) == ("index", 10, 2, 0.96)
    assert plan_step(rows(100_000), 11).probes == 20
    assert plan_step(rows(100_000), 1001).way == "exact"
    assert plan_step(rows(1000), 10).way == "exact"
    half = plan_step(rows(50_000), 10)
    assert (half.way, half.depth, half.probes) == ("index", 100, 20)
    assert plan_step(rows(3000), 10).depth == 1000
    assert plan_step(rows(1200), 10).way == "exact"
    new = plan_step(TowerRows.without_index("s2", 7), 10)
    assert (new.way, new.compared) == ("exact", 7)


def test_the_exact_best_are_those_of_brute_force() -> None:
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(500, 8)).astype(np.float16)
    queries = rng.normal(size=(3, 8)).astype(np.float32)
    found = exact_best(vectors, [range(100), range(200, 450)], queries, 20)
    rows = np.r_[0:100, 200:450]
    scores = queries @ vectors[rows].astype(np.float32).T
    assert (found == rows[np.argsort(-scores, axis=1)[:, :20]]).all()


def test_made_queries_lie_away_from_the_windows() -> None:
    rng = np.random.default_rng(0)
    windows = as_unit(rng.normal(size=(500, 32)) + 1)
    made = made_queries(windows)
    best = (made.held_out[:, 0] @ windows.T).max(1)
    assert made.chosen_with.shape == (probes._GROUPS, 1, 32)
    assert (best < 0.9).all()
    assert "no text tower" in made.name


# The command


def test_the_command(space: EmbeddingSpace, model: Path, folder: Path, tmp_path: Path) -> None:
    drop_index(folder)
    result = run("index", folder)
    assert result.exit_code == 0
    assert "--force" in result.stdout
    elsewhere = tmp_path / "elsewhere"
    result = run("index", folder, "--force", "--at", elsewhere, "--model", model, "--json")
    assert result.exit_code == 0, result.output
    value = json.loads(result.stdout)
    assert value["towers"]["s2"]["done"] == "made"
    assert value["towers"]["s2"]["measured"][0]["recall"] > 0.8
    assert len(list(elsewhere.glob("*.lance"))) == 2
    result = run("info", folder)
    assert result.exit_code == 0
    assert "elsewhere" in result.stdout
    asked = ("search", folder, "a river", "--model", model)
    result = run(*asked, "--explain")
    assert "the index" in result.stdout
    assert "recall to expect" in result.stdout
    value = json.loads(run(*asked, "--explain", "--json").stdout)
    assert {one["way"] for one in value["how"]["steps"]} == {"index"}
    assert len(value["hits"]) == 10
    value = json.loads(run(*asked, "--exact", "--explain", "--json").stdout)
    assert value["how"]["recall"] == 1
    result = run("index", folder, "--model", model, "--recall", "0.9")
    assert "measured" in result.stdout
    assert "GB" in result.stdout or "MB" in result.stdout or "kB" in result.stdout
    result = run("index", folder, "--drop")
    assert "removed" in result.stdout
    assert not list(elsewhere.glob("*.lance"))


def test_slips_are_one_line(folder: Path, tmp_path: Path) -> None:
    for words, code, text in (
        (("index", tmp_path / "nothing"), 1, "not found"),
        (("index", folder, "--recall", "1.5"), 2, "--recall"),
        (("index", folder, "--drop", "--force"), 2, "--drop"),
        (("index", folder, "--at", " "), 2, "--at"),
        (("index", folder, "--model", "nothing"), 1, "nothing"),
        (("index", tmp_path / "nothing", "--drop"), 1, "no index"),
        (("index", folder, "--at", folder / "000001.parquet", "--force"), 1, "000001.parquet"),
    ):
        result = run(*words)
        assert result.exit_code == code, result.output
        assert text in result.stderr
        if code == 1:
            assert len(result.stderr.strip().splitlines()) == 1, result.stderr


def test_what_was_done_is_said(space: EmbeddingSpace, made: Path) -> None:
    hits = open_index(made).search(space, "a river", towers="s2", min_valid=0.5)
    lines = explain(hits.how)
    assert "of the rows meet the conditions" in lines[1]
    assert "clusters" in lines[1]
    assert lines[-1].startswith("recall to expect: ")
    assert explain({}) == []
    assert os.path.isdir(made)
