"""The bench: same samples, nothing measured twice, nothing lost, nothing chosen on what is told."""

from __future__ import annotations

import json
import logging
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import pytest
import timm
import torch
from click.testing import CliRunner
from PIL import Image

from fakes import input_spec
from terralign.bench.data import divide
from terralign.bench.degrade import Condition, Degraded, conditions
from terralign.bench.models import name_models
from terralign.bench.run import BenchResult, run_bench
from terralign.bench.suite import Suite, load_suite, parse_suite
from terralign.cli import main
from terralign.datasets.catalog import open_dataset
from terralign.datasets.composited import with_composite
from terralign.datasets.subset import limit_samples
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.sensor import TowerConfig, build_tower
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.timm_encoder import TimmEncoder
from terralign.errors import RecipeError, StorageError
from terralign.evaluation.calibration import choose_thresholds
from terralign.evaluation.classification import evaluate_zero_shot
from terralign.evaluation.embed import choose_route, embed_samples
from terralign.evaluation.paired import MIN_SAMPLES
from terralign.evaluation.retrieval import evaluate_retrieval
from terralign.evaluation.rows import COLUMNS, Row, check_rows, read_rows
from terralign.files import read_json, write_json
from terralign.preprocess import scale_composite
from terralign.preprocess.spec import layout_composite
from terralign.report.comparison import format_table
from terralign.sensors import SENSORS

SUITE = """
name = "small"
num_bootstrap = 50
variants = ["centred", "csls", "qb-norm", "prompt-average"]

[[entries]]
name = "scenes"
data = "synthetic-scenes"
split = "test"
role = "alignment"
tasks = ["zero-shot", "retrieval", "linear-probe", "knn", "few-shot", "robustness", "diagnostics"]
limit = 24
fit = "train"
validation = "val"
fit_limit = 30
shots = [1]
num_seeds = 2
robustness_limit = 12

[[entries]]
name = "many"
data = "synthetic-scenes-multilabel"
split = "test"
role = "alignment"
tasks = ["zero-shot", "decisions"]
limit = 24
validation = "val"
fit_limit = 30

[[entries]]
name = "photos"
data = "synthetic-photos"
split = "test"
role = "supported"
tasks = ["zero-shot", "retrieval", "knn"]
limit = 40
validation = "train"
fit_limit = 30
"""

SHORT = SUITE.partition('[[entries]]\nname = "many"')[0].replace(
    '"retrieval", "linear-probe", "knn", "few-shot", "robustness", "diagnostics"', '"diagnostics"'
)
SHORT = "\n".join(
    line
    for line in SHORT.splitlines()
    if not line.startswith(("validation", "shots", "num_seeds", "robust"))
)


BRIEF = """
name = "brief"
num_bootstrap = 50

[[entries]]
data = "synthetic-scenes-multilabel"
split = "test"
role = "alignment"
tasks = ["zero-shot", "retrieval", "decisions"]
limit = 16

[[entries]]
name = "photos"
data = "synthetic-photos"
split = "test"
role = "supported"
tasks = ["zero-shot", "diagnostics"]
limit = 16
"""


def suite(text: str = SUITE) -> Suite:
    return parse_suite(text, origin="test")


@pytest.fixture(scope="module")
def spaces(tiny_clip: ClipModel, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A base, and the same with another RGB tower and a Sentinel-2 tower."""
    folder = tmp_path_factory.mktemp("models")
    EmbeddingSpace(tiny_clip).save(folder / "base")
    generator = torch.Generator().manual_seed(1)
    state = {
        key: value + 0.02 * torch.randn(value.shape, generator=generator)
        for key, value in tiny_clip.visual.state_dict().items()
    }
    patched = tiny_clip.with_visual(state, source="patched")
    sensor = SENSORS["sentinel2-l2a"]
    spec = input_spec(sensor.name, sensor.band_names, mean=0.2, std=0.2, missing="zero")
    config = TowerConfig(name="s2", backbone="test_vit", input=spec, embed_dim=tiny_clip.dim)
    tower = build_tower(config, patched, seed=0)
    EmbeddingSpace(patched, towers={"s2": tower}).save(folder / "patched")
    return {name: folder / name for name in ("base", "patched")}


@pytest.fixture(scope="module")
def finished(spaces: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bench of both; shared, so no test may change it."""
    out = tmp_path_factory.mktemp("bench") / "b"
    result = run_bench(suite(), [str(path) for path in spaces.values()], out)
    assert result.num_measured > 0
    assert [row.note for row in result.rows if row.status == "failed"] == []
    return out


@pytest.fixture(scope="module")
def brief(spaces: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A complete bench of a smaller suite; shared, so no test may change it."""
    out = tmp_path_factory.mktemp("bench") / "brief"
    assert run_bench(suite(BRIEF), [str(path) for path in spaces.values()], out).num_failed == 0
    return out


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The towers of every forward pass over images."""
    made: list[str] = []
    for kind in (EmbeddingSpace, TimmEncoder):
        plain = kind.encode_ready

        def count(self: Any, *args: Any, plain: Any = plain, **options: Any) -> Any:
            made.append(options["tower"])
            return plain(self, *args, **options)

        monkeypatch.setattr(kind, "encode_ready", count)
    return made


def rows_of(out: Path, **where: Any) -> list[Row]:
    found = read_rows(out / "results.json")
    where = {"status": "measured", "reference": None, **where}
    return [row for row in found if all(getattr(row, k) == value for k, value in where.items())]


def one(out: Path, **where: Any) -> Row:
    (row,) = rows_of(out, **where)
    return row


# What is measured


def test_every_task_has_figures_and_no_two_rows_answer_one_question(finished: Path) -> None:
    rows = read_rows(finished / "results.json")
    measured = [row for row in rows if row.status == "measured"]
    assert {row.task for row in measured} == {
        "zero-shot", "multi-label", "retrieval", "linear-probe", "knn", "few-shot", "robustness",
        "decisions", "diagnostics",
    }  # fmt: skip
    assert len({row.question for row in measured}) == len(measured)
    names = read_json(finished / "versions.json")
    assert all(row.versions in names and row.seed == 0 for row in measured)
    for row in measured:
        if row.reference is None:
            assert (finished / "measurements" / f"{row.measurement}.json").is_file()


def test_zero_shot_and_retrieval_agree_with_measuring_by_hand(
    finished: Path, spaces: dict[str, Path]
) -> None:
    space = EmbeddingSpace.load(spaces["patched"])
    samples = limit_samples(open_dataset("synthetic-scenes", data_root=None, split="test"), 24)
    for tower in ("rgb", "s2"):
        hand = evaluate_zero_shot(space, samples, tower=tower).result
        where = {"model": "patched", "task": "zero-shot", "tower": tower, "variant": "plain"}
        row = one(finished, entry="scenes", metric="top1", **where)
        metric = hand.metric("top1")
        assert row.value == metric.value
        assert row.low <= row.value <= row.high
        assert row.prompts == "synthetic-scenes"
        details = read_json(finished / "measurements" / f"{row.measurement}.json")["details"]
        confusion = np.array(details["confusion"])
        assert confusion.sum() == 24
        assert np.trace(confusion) / 24 == pytest.approx(row.value)
    hand = evaluate_retrieval(space, samples, query="s2", gallery="rgb").result
    where = {"model": "patched", "entry": "scenes", "task": "retrieval", "variant": "plain"}
    pair = {"query_tower": "s2", "gallery_tower": "rgb"}
    row = one(finished, metric="recall@5", level="instance", **where, **pair)
    assert row.value == pytest.approx(hand.value("recall@5"), abs=1e-12)


def test_an_entry_may_name_the_composite_that_rgb_towers_see(
    spaces: dict[str, Path], tmp_path: Path
) -> None:
    """Two entries of one split that differ in it have values of their own."""
    entry = """
    [[entries]]
    name = "{name}"
    data = "synthetic-scenes"
    split = "test"
    role = "alignment"
    tasks = ["zero-shot"]
    limit = 24
    composite = "{composite}"
    """
    names = ("paper-l2a", "eurosat")
    text = 'name = "c"\nnum_bootstrap = 20\n' + "".join(
        entry.format(name=name, composite=name) for name in names
    )
    result = run_bench(suite(text), [str(spaces["patched"])], tmp_path)
    assert result.num_failed == 0
    space = EmbeddingSpace.load(spaces["patched"])
    samples = limit_samples(open_dataset("synthetic-scenes", data_root=None, split="test"), 24)
    for name in names:
        hand = evaluate_zero_shot(space, with_composite(samples, name), tower="rgb").result
        row = one(tmp_path, entry=name, metric="top1", tower="rgb")
        assert row.value == hand.value("top1")
        assert f"the {name} composite" in row.note
    figures = [
        one(tmp_path, entry=name, metric="expected_calibration_error", tower="rgb").value
        for name in names
    ]
    assert figures[0] != figures[1]


def test_by_class_a_sample_does_not_find_its_own_place(
    finished: Path, spaces: dict[str, Path]
) -> None:
    space = EmbeddingSpace.load(spaces["patched"])
    samples = limit_samples(open_dataset("synthetic-scenes", data_root=None, split="test"), 24)
    assert samples.labels is not None
    query, gallery = (
        torch.nn.functional.normalize(
            embed_samples(space, samples, choose_route(space, samples, tower)).vectors, dim=-1
        )
        for tower in ("s2", "rgb")
    )
    near = (query @ gallery.T).fill_diagonal_(-2)
    same = samples.labels.values[:, None] == samples.labels.values[None]
    known = same.sum(axis=1) > 1
    found = same[np.arange(24), near.argmax(dim=1).numpy()][known].mean()
    pair = {"query_tower": "s2", "gallery_tower": "rgb", "variant": "plain"}
    row = one(finished, model="patched", entry="scenes", metric="map@1", **pair)
    assert row.value == pytest.approx(found)
    assert row.num_samples == known.sum()
    assert "does not find its own sample" in row.note
    details = read_json(finished / "measurements" / f"{row.measurement}.json")["details"]
    for example in details["examples"]:
        assert example["query_index"] not in [one["index"] for one in example["results"]]


def test_retrieval_goes_between_all_pairs(finished: Path) -> None:
    found = rows_of(finished, model="patched", entry="scenes", task="retrieval", variant="plain")
    pairs = {(row.query_tower, row.gallery_tower) for row in found}
    names = ("text", "rgb", "s2")
    assert pairs == {(a, b) for a in names for b in names if a != b}


def test_captions_are_retrieved_as_the_protocol_says_with_all_that_others_have(
    finished: Path, spaces: dict[str, Path]
) -> None:
    space = EmbeddingSpace.load(spaces["patched"])
    samples = limit_samples(open_dataset("synthetic-photos", data_root=None, split="test"), 40)
    where: dict[str, Any] = {"model": "patched", "entry": "photos", "task": "retrieval"}
    for query, gallery in (("text", "rgb"), ("rgb", "text")):
        pair = {"query_tower": query, "gallery_tower": gallery}
        hand = evaluate_retrieval(space, samples, query=query, gallery=gallery).result
        for name in ("recall@1", "recall@10", "map@5"):
            row = one(finished, metric=name, variant="plain", **where, **pair)
            assert row.value == pytest.approx(hand.value(name), abs=1e-6)
        changed = rows_of(finished, metric="recall@10", reference="base", **where, **pair)
        assert {row.variant for row in changed} == {"plain", "centred", "csls", "qb-norm"}
        skipped = rows_of(finished, status="skipped", variant="prompt-average", **where, **pair)
        assert "no prompts to average" in skipped[0].note
        details = read_json(finished / "measurements" / f"{row.measurement}.json")["details"]
        texts = {text for own in samples.captions or () for text in own}
        for example in details["examples"]:
            said = [example["query"]] if query == "text" else [r["key"] for r in example["results"]]
            assert set(said) <= texts
            assert (example["query_index"] is None) == (query == "text")
    # The suite's settings: fewer resamples than the 1000 of the function's own default.
    row = one(finished, metric="recall@10", variant="plain", **where, **pair)
    metric = hand.metric("recall@10")
    assert (row.low, row.high) != (metric.low, metric.high)


def test_csls_changes_map_and_qb_norm_is_skipped_where_samples_have_several_labels(
    finished: Path,
) -> None:
    where = {"model": "base", "entry": "many", "task": "multi-label", "tower": "rgb"}
    plain, csls = (
        one(finished, metric="macro_map", variant=variant, **where) for variant in ("plain", "csls")
    )
    assert plain.value != csls.value
    assert rows_of(finished, variant="qb-norm", **where) == []
    (skipped,) = rows_of(finished, status="skipped", variant="qb-norm", **where)
    assert "samples cannot be ranked by them within a class" in skipped.note


def test_thresholds_come_from_validation_data_alone(
    finished: Path, spaces: dict[str, Path]
) -> None:
    row = one(finished, model="base", task="decisions", metric="macro_f1", variant="plain")
    assert "chosen on val" in row.note
    details = read_json(finished / "measurements" / f"{row.measurement}.json")["details"]
    space = EmbeddingSpace.load(spaces["base"])
    name = "synthetic-scenes-multilabel"
    samples = limit_samples(open_dataset(name, data_root=None, split="val"), 30)
    assert samples.labels is not None
    assert samples.prompts is not None
    layout = samples.layouts["sentinel2-l2a"]
    pixels = samples.read(np.arange(30))["sentinel2-l2a"]
    embedded = space.encode_layout(torch.from_numpy(pixels), layout, tower="rgb")
    from terralign.encoders.zeroshot import PromptSet

    prompts = PromptSet(name=name, templates=samples.prompts)
    weights = space.zero_shot_weights(samples.labels.class_names, prompts)
    scores = (torch.nn.functional.normalize(embedded, dim=-1) @ weights.T).numpy()
    wanted = choose_thresholds(scores, samples.labels.values)
    np.testing.assert_allclose(details["thresholds"]["per_class"], wanted.per_class, atol=1e-6)
    assert wanted.num_classes_without_positives == 0
    assert "have no positives there" not in row.note


def test_classes_that_validation_data_lack_are_told(brief: Path) -> None:
    name = "synthetic-scenes-multilabel"
    samples = limit_samples(open_dataset(name, data_root=None, split="test"), 16)
    unseen = (~divide(samples, (0, 1), 0)[0].labels.any(axis=0)).sum()
    assert unseen > 0
    row = one(brief, model="base", task="decisions", metric="macro_f1", variant="plain")
    assert f"{unseen} of 12 classes have no positives there" in row.note


def test_few_shot_tells_how_many_labels_it_takes_beside_the_shots(finished: Path) -> None:
    row = one(finished, model="base", task="few-shot", variant="1 shot")
    assert "C is chosen on 30 labelled validation samples" in row.note


def test_differences_to_the_reference_are_those_of_the_rows(finished: Path) -> None:
    differences = rows_of(finished, model="patched", reference="base")
    assert {row.metric for row in differences} >= {
        "top1",
        "macro_map",
        "map@10",
        "macro_f1",
        "micro_f1",
        "micro_map",
        "macro_accuracy",
        "top5",
    }
    assert {row.p_value is None for row in differences} == {True, False}
    measured = {row.question: row for row in rows_of(finished)}
    for row in differences:
        own = measured[row.model_copy(update={"reference": None}).question]
        tower = row.tower
        if tower == "s2":  # which the base has not: against its RGB tower
            tower = "rgb"
            assert "the rgb tower of base" in row.note
        changes = {"model": "base", "tower": tower, "reference": None}
        base = measured[row.model_copy(update=changes).question]
        assert row.value == pytest.approx(own.value - base.value, abs=1e-9)
        assert row.low <= row.value <= row.high
        if row.num_samples < MIN_SAMPLES:
            assert row.p_value is None
            assert "no p-value" in row.note
        else:
            assert 0 < row.p_value <= 1


def test_a_model_does_not_differ_from_itself(spaces: dict[str, Path], tmp_path: Path) -> None:
    source = spaces["base"]
    enough = SHORT.replace("\nlimit = 24", f"\nlimit = {MIN_SAMPLES}")
    result = run_bench(suite(enough), [f"a={source}", f"b={source}"], tmp_path / "b")
    differences = [row for row in result.rows if row.reference == "a"]
    assert differences
    assert {(row.value, row.p_value) for row in differences} == {(0.0, 1.0)}
    (moved,) = [row for row in result.rows if row.metric == "mean_cosine"]
    assert moved.value == pytest.approx(1, abs=1e-6)


def test_how_far_patching_moved_is_told_wherever_rgb_embeddings_are_needed(
    finished: Path, spaces: dict[str, Path], tmp_path: Path, calls: list[str]
) -> None:
    rows = rows_of(finished, metric="mean_cosine")
    assert {(row.model, row.entry) for row in rows} == {
        ("patched", "scenes"), ("patched", "many"), ("patched", "photos"),
    }  # fmt: skip
    samples = limit_samples(open_dataset("synthetic-photos", data_root=None, split="test"), 40)
    before, after = (
        torch.nn.functional.normalize(
            embed_samples(space, samples, choose_route(space, samples, "rgb")).vectors, dim=-1
        )
        for space in map(EmbeddingSpace.load, spaces.values())
    )
    value = one(finished, metric="mean_cosine", entry="photos").value
    assert value == pytest.approx(float((before * after).sum(dim=1).mean()), abs=1e-6)
    # Robustness looks at changed pixels, a tower of Sentinel-2 at others: no pass is made for it.
    entry = SHORT.partition("fit = ")[0].replace('"zero-shot", "diagnostics"', '"robustness"')
    entry += 'robustness_limit = 8\n[[entries]]\nname = "s2"\ntowers = ["s2"]\n'
    entry += 'data = "synthetic-scenes"\nsplit = "test"\nrole = "unseen"\ntasks = ["zero-shot"]\n'
    calls.clear()
    models = [f"{name}={path}" for name, path in spaces.items()]
    result = run_bench(suite(entry + "limit = 8\n"), models, tmp_path / "b")
    assert [row for row in result.rows if row.metric == "mean_cosine"] == []
    assert one(tmp_path / "b", entry="s2", metric="top1", variant="plain").tower == "s2"
    robust = len(rows_of(tmp_path / "b", task="robustness", metric="top1"))
    assert len(calls) == robust + 1


# Nothing twice


def test_the_same_bench_again_does_nothing(
    finished: Path, spaces: dict[str, Path], calls: list[str]
) -> None:
    files = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    result = run_bench(suite(), [str(path) for path in spaces.values()], finished)
    assert (result.num_measured, calls) == (0, [])
    after = {path: path.stat().st_mtime_ns for path in finished.rglob("*") if path.is_file()}
    changed = {path.name for path in after if after[path] != files.get(path)}
    assert changed <= {".lock"}


def test_figures_of_before_go_where_their_measurement_is_skipped_now(
    spaces: dict[str, Path], tmp_path: Path
) -> None:
    text = BRIEF.partition('[[entries]]\nname = "photos"')[0]
    text = text.replace("num_bootstrap", 'variants = ["qb-norm"]\nnum_bootstrap')
    text = text.replace('"zero-shot", "retrieval", "decisions"', '"zero-shot"')
    text += 'fit = "train"\nfit_limit = 16\n'
    models, out = [f"base={spaces['base']}"], tmp_path / "b"
    rows = list(run_bench(suite(text), models, out).rows)
    (skipped,) = [row for row in rows if row.status == "skipped"]
    changes = {"status": "measured", "metric": "macro_map", "value": 0.5, "note": None}
    old = skipped.model_copy(update=changes)
    other = old.model_copy(update={"tower": "s1"})
    write_json(out / "results.json", {"rows": [row.to_json() for row in (*rows, old, other)]})
    kept = run_bench(suite(text), models, out).rows
    assert (old in kept, other in kept, skipped in kept) == (False, True, True)


def test_two_benches_give_identical_numbers_and_a_table_of_them(
    brief: Path, spaces: dict[str, Path], tmp_path: Path
) -> None:
    run_bench(suite(BRIEF), [str(path) for path in spaces.values()], tmp_path / "b")
    again = (tmp_path / "b" / "results.json").read_bytes()
    assert again == (brief / "results.json").read_bytes()
    values = read_json(brief / "results.json")["rows"]
    assert [tuple(value) for value in values] == [COLUMNS] * len(values)
    assert pq.read_table(brief / "results.parquet").to_pylist() == values
    part = format_table(check_rows(values)).partition("supported: photos (test), zero-shot")[2]
    line = next(one for one in part.splitlines() if one.split()[:2] == ["rgb", "top1"])
    where = {"entry": "photos", "task": "zero-shot", "metric": "top1"}
    shown = [f"{100 * one(brief, model=name, **where).value:.1f}" for name in spaces]
    assert line.split()[2:6:2] == shown


def test_other_prompts_models_and_labels_cost_no_forward_pass(
    spaces: dict[str, Path], tmp_path: Path, calls: list[str]
) -> None:
    out, first = tmp_path / "b", f"base={spaces['base']}"
    run_bench(suite(SHORT), [first], out)
    assert set(calls) == {"rgb"}
    calls.clear()
    before = rows_of(out)
    result = run_bench(suite(SHORT), [first], out, prompts=["plain"])
    assert (calls, result.num_measured > 0) == ([], True)
    rows = rows_of(out)
    assert [row for row in before if row not in rows] == []
    assert {row.prompts for row in rows if row.variant == "plain"} == {
        "synthetic-scenes", "plain",
    }  # fmt: skip
    # Another model adds its rows and its passes alone.
    run_bench(suite(SHORT), [first, f"patched={spaces['patched']}"], out)
    assert set(calls) == {"rgb", "s2"}
    assert {row.model for row in rows_of(out)} == {"base", "patched"}
    assert [row for row in before if row not in rows_of(out)] == []


def test_benches_share_a_cache_and_sets_with_the_same_pixels_their_embeddings(
    spaces: dict[str, Path], tmp_path: Path, calls: list[str]
) -> None:
    def bench(data: str, out: Path) -> BenchResult:
        text = (
            'name = "one"\nnum_bootstrap = 20\n[[entries]]\nsplit = "test"\nrole = "unseen"\n'
            f'tasks = ["zero-shot"]\nlimit = 16\ndata = "{data}"\n'
        )
        models = [f"{name}={path}" for name, path in spaces.items()]
        return run_bench(suite(text), models, out, cache=tmp_path / "cache")

    first = bench("synthetic-scenes", tmp_path / "a")
    assert sorted(calls) == ["rgb", "rgb", "s2"]
    calls.clear()
    # The same pixels with other labels.
    assert bench("synthetic-scenes-multilabel", tmp_path / "b").num_measured > 0
    again = bench("synthetic-scenes", tmp_path / "c")
    assert (calls, again.num_measured) == ([], 0)
    assert again.rows == first.rows
    assert {row.versions for row in again.rows} <= set(read_json(tmp_path / "c" / "versions.json"))


@pytest.mark.parametrize("passes", [0, 3, 4])
def test_a_stopped_bench_goes_on_to_the_same_results(
    passes: int,
    brief: Path,
    spaces: dict[str, Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    models = [str(path) for path in spaces.values()]
    plain, left = EmbeddingSpace.encode_ready, iter(range(1000))

    def stop(self: Any, *args: Any, **options: Any) -> Any:
        if next(left) == passes:
            raise KeyboardInterrupt
        return plain(self, *args, **options)

    with monkeypatch.context() as patch:
        patch.setattr(EmbeddingSpace, "encode_ready", stop)
        with pytest.raises(KeyboardInterrupt):
            run_bench(suite(BRIEF), models, tmp_path / "b")
    whole = len(list((brief / "measurements").glob("*.json")))
    kept = list((tmp_path / "b").glob("measurements/[!c]*.json"))
    assert (len(kept) == 0) == (passes == 0)
    assert (tmp_path / "b" / "results.json").is_file() == (passes > 0)  # of the first model
    assert len(kept) < whole
    again = run_bench(suite(BRIEF), models, tmp_path / "b")
    assert 0 < again.num_measured <= whole - len(kept)
    told = (tmp_path / "b" / "results.json").read_bytes()
    assert told == (brief / "results.json").read_bytes()


# What goes wrong


def test_a_failed_model_and_entry_are_rows_and_do_not_end_the_bench(
    spaces: dict[str, Path], tmp_path: Path
) -> None:
    text = SHORT + (
        '\n[[entries]]\ndata = "eurosat-rgb"\nsplit = "val"\nrole = "unseen"\n'
        'tasks = ["zero-shot"]\n'
    )
    path = tmp_path / "s.toml"
    path.write_text(text)
    models = [str(spaces["base"]), str(tmp_path / "none"), f"patched={spaces['patched']}"]
    arguments = ["bench", str(path), "--models", *models, "--out", str(tmp_path / "b")]
    arguments += ["--data-root", str(tmp_path)]
    done = CliRunner().invoke(main, [*arguments, "--json"])
    assert done.exit_code == 1
    value = json.loads(done.stdout)
    rows = check_rows(value["rows"])
    failed = [row for row in rows if row.status == "failed"]
    assert {(row.model, row.entry) for row in failed} == {
        ("none", None), ("base", "eurosat-rgb/val"), ("patched", "eurosat-rgb/val"),
    }  # fmt: skip
    assert value["num_failed"] == 3
    assert f"writing the report of {tmp_path / 'b'}" in done.stderr
    assert all("\n" not in row.note for row in failed)
    assert rows_of(tmp_path / "b", model="patched", task="zero-shot", tower="s2")
    assert "failed: none:" in format_table(rows)
    # The right path then: the mistyped one is forgotten, and what failed counts where it was asked.
    again = run_bench(suite(text), [str(spaces["base"])], tmp_path / "b", tmp_path)
    told = {(row.model, row.entry) for row in again.rows if row.status == "failed"}
    assert told == {("base", "eurosat-rgb/val"), ("patched", "eurosat-rgb/val")}
    assert again.num_failed == 1


def test_nothing_is_fitted_or_chosen_on_copies_of_what_is_reported(
    spaces: dict[str, Path], tmp_path: Path
) -> None:
    """Two pictures of the reported split are in `fit` under other names."""
    for number in range(24):
        noise = np.random.default_rng(number).integers(0, 256, (32, 32, 3), dtype=np.uint8)
        folder = tmp_path / "im" / ("Sea", "Bog")[number % 2]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(noise).save(folder / f"{number}.png")
    for number in (0, 2):
        shutil.copy(tmp_path / f"im/Sea/{number}.png", tmp_path / f"im/Sea/copy-{number}.png")
    names = sorted(f"{path.parent.name}/{path.name}" for path in (tmp_path / "im").rglob("*.png"))
    reported = [name for name in names if name.split("/")[1] in ("0.png", "2.png", "1.png")]
    fitted = [name for name in names if name not in reported]
    (tmp_path / "im/test.txt").write_text("\n".join(reported))
    (tmp_path / "im/train.txt").write_text("\n".join(fitted))
    (tmp_path / "d.toml").write_text(
        'name = "d"\nreader = "folder"\nsensor = "rgb"\nroot = "im"\n'
        '[classes]\nSea = "sea"\nBog = "bog"\n'
        '[splits]\ntest = "test.txt"\ntrain = "train.txt"\n'
    )
    text = (
        f'name = "s"\nnum_bootstrap = 20\n[[entries]]\ndata = "{tmp_path}/d.toml"\n'
        'split = "test"\nrole = "unseen"\ntasks = ["zero-shot", "knn"]\nfit = "train"\n'
    )
    model = [str(spaces["base"])]
    found = run_bench(suite(text), model, tmp_path / "a", tmp_path).rows
    [failed] = [row for row in found if row.status == "failed"]
    assert failed.task == "knn"
    assert "2 of the 3 samples of d/test are also in d/train" in failed.note
    assert "'Sea/0' ('Sea/copy-0' there)" in failed.note
    assert "allow_shared_samples = true" in failed.note
    assert rows_of(tmp_path / "a", task="zero-shot")
    allowed = text.replace("[[entries]]", "allow_shared_samples = true\n[[entries]]")
    run_bench(suite(allowed), model, tmp_path / "b", tmp_path)
    row = one(tmp_path / "b", task="knn", metric="top1")
    assert "2 of 3 samples of d/test are also in d/train" in row.note


@pytest.mark.parametrize("damage", [b"", b'{"rows'])
def test_damaged_files_are_set_aside_and_made_again(
    damage: bytes,
    brief: Path,
    spaces: dict[str, Path],
    tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:
    out = tmp_path / "b"
    shutil.copytree(brief, out)

    def figures() -> list[dict[str, Any]]:  # the command line may have changed the threads since
        return [{**row, "versions": None} for row in read_json(out / "results.json")["rows"]]

    told = figures()
    kept = sorted(out.glob("measurements/[!c]*.json"))
    damaged = [
        *(kept[0], kept[1].with_suffix(".safetensors"), *out.glob("measurements/compare-*")),
        *out.glob("embeddings/*"),
    ]
    for path in damaged:
        path.write_bytes(damage)
    with caplog.at_level(logging.WARNING):
        result = run_bench(suite(BRIEF), [str(path) for path in spaces.values()], out)
    assert (result.num_measured, result.num_failed) == (2, 0)
    assert figures() == told
    aside = {path.name for path in out.rglob("*.damaged")}
    assert {f"{kept[0].name}.damaged", f"{damaged[1].name}.damaged"} < aside
    assert len(caplog.records) == len(aside)
    assert f"{kept[0]} is damaged" in caplog.text


def test_damaged_files_that_benches_share_are_made_again(
    spaces: dict[str, Path], tmp_path: Path
) -> None:
    def bench(out: Path) -> BenchResult:
        return run_bench(suite(BRIEF), [str(spaces["base"])], out, cache=tmp_path / "cache")

    first = bench(tmp_path / "a")
    for path in tmp_path.glob("cache/*/*.safetensors"):
        path.write_bytes(b"{}")
    again = bench(tmp_path / "b")
    assert (again.rows, again.num_measured) == (first.rows, first.num_measured)


def test_damage_that_cannot_be_made_good_is_told_with_a_remedy(
    brief: Path, spaces: dict[str, Path], tmp_path: Path
) -> None:
    for name, text, remedy in (
        ("results.json", '{"rows": [{"foreign": 1}]}', "delete it and run the same commands again"),
        ("results.json", '{"ro', "delete it and run the same commands again"),
        ("models.json", "[]", "put back a whole copy, or delete it"),
        ("versions.json", "{", "put back a whole copy, or delete it"),
        ("suite.toml", "name = ", "put back a whole copy of this suite, or choose another folder"),
        ("suite.toml", "\xff", "put back a whole copy of this suite, or choose another folder"),
    ):
        out = tmp_path / f"{name}-{len(text)}"
        out.mkdir()
        shutil.copy(brief / "suite.toml", out)
        (out / name).write_text(text, encoding="latin-1")
        with pytest.raises(StorageError, match=rf"{re.escape(str(out / name))} is .*{remedy}"):
            run_bench(suite(BRIEF), [str(spaces["base"])], out)


def test_another_suite_in_the_folder_is_refused_with_the_difference(
    finished: Path, spaces: dict[str, Path]
) -> None:
    changed = suite(SUITE.replace("limit = 40", "limit = 50"))
    with pytest.raises(RecipeError, match=r"entries.photos.limit: 40 -> 50"):
        run_bench(changed, [str(spaces["base"])], finished)


def test_of_a_very_different_suite_the_name_and_two_more_differences_are_told(
    brief: Path, spaces: dict[str, Path]
) -> None:
    said = r"Different: name: 'brief' -> 'quick'; [^;]+; [^;]+; and \d+ more$"
    with pytest.raises(RecipeError, match=said) as fault:
        run_bench(load_suite("quick"), [str(spaces["base"])], brief)
    assert len(str(fault.value)) < 600


def test_a_folder_in_which_no_model_was_loaded_takes_another_suite(
    spaces: dict[str, Path], tmp_path: Path
) -> None:
    out, base = tmp_path / "b", str(spaces["base"])
    assert run_bench(suite(BRIEF), [str(tmp_path / "typo")], out).num_failed == 1
    short = suite(SHORT.replace(', "diagnostics"', ""))
    result = run_bench(short, [base], out)
    assert {row.model for row in result.rows} == {"base"}
    assert {row.entry for row in result.rows} == {"scenes"}
    with pytest.raises(RecipeError, match="name: 'small' -> 'brief'"):
        run_bench(suite(BRIEF), [base], out)


def test_a_name_stands_for_one_model(finished: Path, spaces: dict[str, Path]) -> None:
    with pytest.raises(RecipeError, match=r"knows 'base' as model .* give it another name"):
        run_bench(suite(), [f"base={spaces['patched']}"], finished)
    with pytest.raises(RecipeError, match=r"'bass' is not one of the models; did you mean 'base'"):
        run_bench(suite(), [f"base={spaces['base']}"], finished, reference="bass")


def test_an_encoder_without_text_has_probes_and_is_told_of_the_rest(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = timm.create_model("test_vit", num_classes=0)
    torch.save(model.state_dict(), tmp_path / "w.pth")
    text = SUITE.replace(
        '"retrieval", "linear-probe", "knn", "few-shot", "robustness", ', '"knn", '
    )
    text = text.partition('[[entries]]\nname = "many"')[0]
    text = "\n".join(
        line for line in text.splitlines() if not line.startswith(("shots", "num_", "robust"))
    )
    result = run_bench(suite(text), [f"vit=timm:test_vit:{tmp_path / 'w.pth'}"], tmp_path / "b")
    assert result.num_failed == 0
    out = tmp_path / "b"
    assert one(out, task="knn", metric="top1", tower="rgb").chance == pytest.approx(0.1, abs=0.1)
    (skipped,) = [row for row in result.rows if row.status == "skipped" and row.task]
    assert (skipped.task, skipped.value) == ("zero-shot", None)
    assert "without text" in skipped.note
    assert one(out, task="diagnostics", metric="effective_rank").value > 1


def test_faults_of_the_command_line() -> None:
    runner = CliRunner()
    for words in (["quick", "--out", "b"], ["quick", "--out", "b", "--models"]):
        assert runner.invoke(main, ["bench", *words]).exit_code == 2
    context = main.commands["bench"].make_context(
        "bench",
        ["micro", "--models", "a", "x=b", "c", "--data-root", "d", "--out", "b"],
    )
    assert (*context.params["models"], *context.params["more"]) == ("a", "x=b", "c")
    assert context.params["suite"] == "micro"


def test_data_in_files_without_a_data_root_are_refused_before_anything_is_written(
    spaces: dict[str, Path], tmp_path: Path
) -> None:
    arguments = ["bench", "micro", "--models", str(spaces["base"]), "--out", str(tmp_path / "b")]
    done = CliRunner(env={"TERRALIGN_DATA": None}).invoke(main, arguments)
    assert done.exit_code == 1
    assert "give the folder that holds them with --data-root" in done.stderr
    for name in ("eurosat-rgb", "eurosat-ms", "aid"):
        assert f"`terralign info {name}`" in done.stderr
    assert not (tmp_path / "b").exists()


def test_models_get_names() -> None:
    given = [
        "data/micro-clip", "runs/m/model", "runs/n/model", "patched=runs/x/model", "elsewhere/m",
        "ViT-B-32:w/RemoteCLIP-ViT-B-32.pt", "ViT-B-32-quickgelu:openai", "hf-hub:org/NAME",
        "ms-clip:w.pt", "timm:vit_small_patch16_224@sentinel2-l1c:w.pt",
    ]  # fmt: skip
    assert list(name_models(given)) == [
        "micro-clip", "m", "n", "patched", "m-2", "RemoteCLIP-ViT-B-32",
        "ViT-B-32-quickgelu-openai", "NAME", "ms-clip", "vit_small_patch16_224-sentinel2-l1c",
    ]  # fmt: skip
    with pytest.raises(RecipeError, match="two models are called 'a'"):
        name_models(["a=x", "a=y"])


# Parts and conditions


def test_parts_of_a_set_without_another_split_do_not_overlap_and_have_every_class() -> None:
    samples = limit_samples(open_dataset("synthetic-scenes", data_root=None, split="val"), 200)
    assert samples.labels is not None
    pattern = (0, 0, 0, 0, 0, 1, 1, 2, 2, 2)
    parts = divide(samples, pattern, 0)
    rows = np.concatenate([part.rows for part in parts.values()])
    assert sorted(rows) == list(range(200))
    assert [len(part.rows) for part in parts.values()] == [100, 40, 60]
    for part in parts.values():
        assert len(np.unique(part.labels)) == len(samples.labels.class_names)
    again = divide(samples, pattern, 0)
    assert all((parts[number].rows == again[number].rows).all() for number in parts)


@pytest.fixture
def scenes() -> Any:
    return limit_samples(open_dataset("synthetic-scenes", data_root=None, split="val"), 6)


def test_conditions_change_what_they_say_and_nothing_else(scenes: Any) -> None:
    name = "sentinel2-l2a"
    layout, all_rows = scenes.layouts[name], np.arange(6)
    plain = scenes.read(all_rows)[name].astype(np.float64)
    plain_set = Degraded(scenes, Condition(kind="as is", sensor=name))
    np.testing.assert_array_equal(plain_set.read(all_rows)[name], plain)

    without = Degraded(scenes, Condition(kind="without", sensor=name, band="B8A"))
    channel = layout.bands.index("B8A")
    changed = without.read(all_rows)[name]
    assert not changed[:, channel].any()
    others = [n for n in range(plain.shape[1]) if n != channel]
    np.testing.assert_array_equal(changed[:, others], plain[:, others])

    offset = Degraded(scenes, Condition(kind="offset", sensor=name)).read(all_rows)[name]
    np.testing.assert_array_equal(offset, np.where(plain == 0, 0, plain + 1000))

    noisy = Degraded(scenes, Condition(kind="noise", sensor=name))
    noise = (noisy.read(all_rows)[name] - plain)[plain > 0]
    assert noise.std() == pytest.approx(200, rel=0.02)  # 0.02 reflectance
    # A sample's noise does not depend on what is read beside it.
    np.testing.assert_array_equal(noisy.read(np.array([4]))[name][0], noisy.read(all_rows)[name][4])
    prints = [one.fingerprint for one in (plain_set, without, noisy)]
    assert len({*prints, scenes.fingerprint}) == 4


@pytest.mark.parametrize(
    ("data", "sensor"), [("synthetic-scenes", "sentinel2-l2a"), ("synthetic-photos", "rgb")]
)
def test_a_picture_without_a_band_keeps_the_others(data: str, sensor: str) -> None:
    samples = limit_samples(open_dataset(data, data_root=None, split="val"), 6)
    layout, all_rows = samples.layouts[sensor], np.arange(6)
    bands = layout_composite(layout).bands
    plain = scale_composite(torch.from_numpy(samples.read(all_rows)[sensor]), layout)
    without = [
        one
        for one in conditions(layout, bands, takes_l2a=True, as_picture=True)
        if one.kind == "without"
    ]
    assert [one.band for one in without] == list(bands)
    for channel, condition in enumerate(without):
        raw = Degraded(samples, condition).read(all_rows)[sensor]
        picture = scale_composite(torch.from_numpy(raw), layout)
        assert picture[:, channel].nan_to_num().max() < 0.001
        others = [one for one in range(3) if one != channel]
        assert torch.equal(picture[:, others], plain[:, others])


def test_l1c_told_to_be_l2a_loses_b10_by_name() -> None:
    from dataclasses import replace

    class L1C:
        name, split, fingerprint, captions, prompts = "x", "val", "f", None, None
        labels, keys = None, ("a",)
        sensor = SENSORS["sentinel2-l1c"]

        def __init__(self) -> None:
            names = self.sensor.band_names
            self.bands = (*names[:8], *names[9:], "B8A")  # as EuroSAT has them
            base = open_dataset("synthetic-scenes", data_root=None, split="val")
            layout = base.layouts["sentinel2-l2a"]
            recipe = self.sensor.composite()
            self.layouts = {
                self.sensor.name: replace(
                    layout, sensor=self.sensor, bands=self.bands, composite=recipe
                )
            }

        def __len__(self) -> int:
            return 1

        def read(self, indices: Any) -> dict[str, Any]:
            values = [self.sensor.band_names.index(band) for band in self.bands]
            return {self.sensor.name: np.array(values, np.uint16)[None, :, None, None]}

    samples: Any = L1C()
    worse = Degraded(samples, Condition(kind="level", sensor="sentinel2-l1c"))
    layout = worse.layouts["sentinel2-l2a"]
    assert set(layout.bands) == set(SENSORS["sentinel2-l2a"].band_names)
    numbers = worse.read(np.array([0]))["sentinel2-l2a"][0, :, 0, 0]
    told = [SENSORS["sentinel2-l1c"].band_names[number] for number in numbers]
    assert tuple(told) == layout.bands
    titles = [one.title for one in conditions(samples.layouts["sentinel2-l1c"], (), takes_l2a=True)]
    assert titles == ["as is", "noise", "offset +1000 left in", "L1C fed as L2A"]


@pytest.mark.realdata
def test_real_figures_are_those_of_evaluating(real_data: Path, tmp_path: Path) -> None:
    text = (
        'name = "r"\n[[entries]]\ndata = "bigearthnet-mini-5"\nsplit = "test"\nrole = "unseen"\n'
        'tasks = ["zero-shot", "robustness"]\n'
    )
    run_bench(suite(text), [str(real_data / "micro-clip")], tmp_path / "b", real_data)
    space = EmbeddingSpace.load(real_data / "micro-clip")
    samples = open_dataset("bigearthnet-mini-5", data_root=real_data, split="test", size=64)
    hand = evaluate_zero_shot(space, samples, tower="rgb").result.metric("macro_map")
    row = one(tmp_path / "b", task="multi-label", metric="macro_map")
    assert (row.value, row.low, row.high) == (hand.value, hand.low, hand.high)
    as_is = one(tmp_path / "b", task="robustness", metric="macro_map", variant="as is")
    assert as_is.value == row.value
