"""Stage 1: the sweep and the choice of alpha; three ways of patching."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from fakes import Counted
from terralign.datasets.synthetic import SyntheticSet
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import StateDict, hash_state, read_state_dict
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import DataError, RecipeError
from terralign.evaluation.classification import evaluate_zero_shot, score_classes
from terralign.train import patch as module
from terralign.train import sweep as sweep_module
from terralign.train.finetune import PatchingTask
from terralign.train.interpolate import interpolate, merge, merge_ties
from terralign.train.patch import PatchResult, PatchSettings, patch
from terralign.train.stage import Stage
from terralign.train.sweep import SweepPoint, Tally, choose_alpha, sweep

ALPHAS = (0.0, 0.5, 1.0)
QUICK = PatchSettings(epochs=1, batch_size=8, lr=1e-3, alphas=ALPHAS, max_supported_drop=0.5)


def _moved(clip: ClipModel) -> StateDict:
    """Weights some way from those of the tower."""
    generator = torch.Generator().manual_seed(1)
    return {
        key: value + 0.05 * torch.randn(value.shape, generator=generator)
        if value.is_floating_point() and "running" not in key
        else value.clone()
        for key, value in clip.visual.state_dict().items()
    }


def _with_samples(task: PatchingTask, samples: Any) -> PatchingTask:
    return PatchingTask(samples=samples, prompts=task.prompts, class_names=task.class_names)


# The sweep


def test_the_sweep_equals_evaluating_each_alpha(
    tiny_clip: ClipModel, validation: PatchingTask, supported: PatchingTask
) -> None:
    theta_0, theta_1 = tiny_clip.visual.state_dict(), _moved(tiny_clip)
    points = sweep(
        tiny_clip, lambda alpha: interpolate(theta_0, theta_1, alpha), ALPHAS,
        validation=[validation], supported=[supported],
    )  # fmt: skip
    assert [point.alpha for point in points] == list(ALPHAS)
    for point in points:
        theta = interpolate(theta_0, theta_1, point.alpha)
        space = EmbeddingSpace(tiny_clip.with_visual(theta, source="test"))
        for task, values in ((validation, point.patching), (supported, point.supported)):
            found = evaluate_zero_shot(space, task.samples, tower="rgb", prompts=task.prompts)
            name = f"{task.samples.name}/{task.samples.split}"
            assert values == {name: found.result.value("top1")}


def test_a_multi_label_sweep_equals_evaluating_each_alpha(
    tiny_clip: ClipModel, many_label_task: PatchingTask
) -> None:
    theta_0, theta_1 = tiny_clip.visual.state_dict(), _moved(tiny_clip)
    points = sweep(
        tiny_clip, lambda alpha: interpolate(theta_0, theta_1, alpha), ALPHAS,
        validation=[many_label_task], supported=[], batch_size=7,
    )  # fmt: skip
    for point in points:
        theta = interpolate(theta_0, theta_1, point.alpha)
        found = evaluate_zero_shot(
            EmbeddingSpace(tiny_clip.with_visual(theta, source="test")),
            many_label_task.samples, tower="rgb", prompts=many_label_task.prompts,
        )  # fmt: skip
        (value,) = point.patching.values()
        assert value == pytest.approx(found.result.value("macro_map"), abs=1e-6)


def test_a_tally_counts_ties_as_the_metrics_do(task: PatchingTask) -> None:
    """Features that are near no class, or as near to one as to another."""
    labels = task.samples.labels
    assert labels is not None
    weights = torch.eye(len(labels.class_names))
    rows = torch.randint(0, 2, (len(labels.values), len(weights))).float() + 1e-3
    tally = Tally(task, weights)
    for number, part in enumerate(rows.split(9)):
        tally.keep(tally.score(part, 9 * number))
    expected = score_classes(rows, weights, labels, num_bootstrap=1).value("top1")
    assert tally.value() == pytest.approx(expected, abs=1e-12)
    assert 0 < expected < 1


def test_a_tally_keeps_no_more_than_the_metric_needs(
    task: PatchingTask, many_label_task: PatchingTask, tiny_clip: ClipModel
) -> None:
    for one, per_sample in ((task, 8), (many_label_task, 4 * len(many_label_task.class_names))):
        tally = Tally(one, one.weights(tiny_clip))
        held = [value for value in vars(tally).values() if isinstance(value, np.ndarray)]
        assert sum(value.nbytes for value in held) == per_sample * len(one.samples)


def test_a_tower_that_gives_nan_is_told(task: PatchingTask, tiny_clip: ClipModel) -> None:
    tally = Tally(task, task.weights(tiny_clip))
    with pytest.raises(DataError, match="NaN or infinite values within samples 3 to 4"):
        tally.score(torch.full((2, tiny_clip.dim), float("nan")), 3)


def test_each_image_is_read_once_for_all_alphas(
    tiny_clip: ClipModel, validation: PatchingTask, scenes_val: SyntheticSet
) -> None:
    counted = Counted(scenes_val)
    made = []

    def make(alpha: float) -> StateDict:
        made.append(alpha)
        return tiny_clip.visual.state_dict()

    alphas = [0.0, 0.3, 0.6, 1.0]
    task = _with_samples(validation, counted)
    sweep(tiny_clip, make, alphas, validation=[task], supported=[], batch_size=7)
    np.testing.assert_array_equal(counted.reads, 1)
    assert made == alphas


def test_pieces_give_the_same_values_and_still_read_once(
    tiny_clip: ClipModel, validation: PatchingTask, scenes_val: SyntheticSet
) -> None:
    theta_0, theta_1 = tiny_clip.visual.state_dict(), _moved(tiny_clip)

    def run(limit_bytes: int) -> tuple[tuple[SweepPoint, ...], list[float], NDArray[np.int64]]:
        counted, made = Counted(scenes_val), []

        def make(alpha: float) -> StateDict:
            made.append(alpha)
            return interpolate(theta_0, theta_1, alpha)

        points = sweep(
            tiny_clip, make, ALPHAS, validation=[_with_samples(validation, counted)],
            supported=[], batch_size=5, limit_bytes=limit_bytes,
        )  # fmt: skip
        return points, made, counted.reads

    whole, one_piece, _ = run(2**30)
    parts, several, reads = run(2 * 5 * 3 * 32 * 32 * 4)  # two batches of 5 pictures at a time
    assert parts == whole
    assert one_piece == list(ALPHAS)
    assert several == list(ALPHAS)  # made once, whatever the number of pieces
    np.testing.assert_array_equal(reads, 1)


def test_the_sweep_leaves_the_clip_as_it_is(tiny_clip: ClipModel, validation: PatchingTask) -> None:
    before = hash_state(tiny_clip.model.state_dict())
    moved = _moved(tiny_clip)
    sweep(tiny_clip, lambda alpha: moved, [0.0, 1.0], validation=[validation], supported=[])
    assert hash_state(tiny_clip.model.state_dict()) == before


def test_two_tasks_of_the_same_set_keep_apart(
    tiny_clip: ClipModel, validation: PatchingTask
) -> None:
    state = tiny_clip.visual.state_dict()
    (point,) = sweep(
        tiny_clip, lambda alpha: state, [0.0], validation=[validation], supported=[validation]
    )
    assert len({*point.patching, *point.supported}) == 2


def test_an_interrupted_sweep_goes_on_after_the_tasks_it_finished(
    tiny_clip: ClipModel, validation: PatchingTask, supported: PatchingTask, tmp_path: Path
) -> None:
    theta_0, theta_1 = tiny_clip.visual.state_dict(), _moved(tiny_clip)

    def stages(name: str) -> Callable[[PatchingTask], Stage]:
        return lambda task: Stage.named_by_identity(
            "the curve of a task", {"sweep": name, "task": task.identity()}, tmp_path
        )

    def run(first: Any, second: Any, stage_of: Any) -> tuple[SweepPoint, ...]:
        return sweep(
            tiny_clip, lambda alpha: interpolate(theta_0, theta_1, alpha), ALPHAS,
            validation=[_with_samples(validation, first)],
            supported=[_with_samples(supported, second)], stage_of=stage_of,
        )  # fmt: skip

    scenes, photos = validation.samples, supported.samples
    with pytest.raises(OSError, match="cable pulled"):
        run(scenes, Counted(photos, fail_after=0), stages("same"))
    again = Counted(scenes)
    points = run(again, photos, stages("same"))
    assert again.reads.sum() == 0
    assert points == run(scenes, photos, None)
    run(again, photos, stages("another"))
    assert again.reads.sum() == len(scenes)


# The choice


def _points(*values: tuple[float, dict[str, float], dict[str, float]]) -> list[SweepPoint]:
    return [SweepPoint(alpha=a, patching=p, supported=s) for a, p, s in values]


def test_the_best_mean_within_the_bound_is_chosen() -> None:
    points = _points(
        (0.0, {"p": 0.4, "q": 0.4}, {"s": 0.60}),
        (0.5, {"p": 0.7, "q": 0.5}, {"s": 0.595}),
        (0.8, {"p": 0.5, "q": 0.9}, {"s": 0.59}),
        (1.0, {"p": 0.9, "q": 0.9}, {"s": 0.58}),
    )
    choice = choose_alpha(points, max_supported_drop=0.01)
    assert choice.alpha == 0.8
    assert "70.00 %" in choice.reason
    assert "1.00 points (s)" in choice.reason
    assert choose_alpha(points, max_supported_drop=0.02).alpha == 1.0
    assert choose_alpha(points, max_supported_drop=0.005).alpha == 0.5


def test_the_bound_holds_for_every_supported_task() -> None:
    """A mean drop within the bound is not enough."""
    points = _points(
        (0.0, {"p": 0.4}, {"s": 0.6, "t": 0.5}),
        (0.5, {"p": 0.6}, {"s": 0.6, "t": 0.495}),
        (1.0, {"p": 0.9}, {"s": 0.7, "t": 0.48}),
    )
    assert choose_alpha(points, max_supported_drop=0.01).alpha == 0.5


def test_of_equal_means_the_smaller_alpha_is_chosen() -> None:
    points = _points(
        (0.0, {"p": 0.4}, {}), (0.4, {"p": 0.8}, {}), (0.6, {"p": 0.8}, {}), (1.0, {"p": 0.7}, {})
    )
    choice = choose_alpha(points, max_supported_drop=0.01)
    assert choice.alpha == 0.4
    assert "no supported task was given" in choice.reason


def test_means_that_differ_by_rounding_are_equal() -> None:
    """0.1 + 0.2 + 0.3 depends on the order in which it is added up."""
    points = _points(
        (0.0, {"p": 0.0, "q": 0.0, "r": 0.0}, {}),
        (0.4, {"p": 0.3, "q": 0.2, "r": 0.1}, {}),
        (1.0, {"p": 0.1, "q": 0.2, "r": 0.3}, {}),
    )
    assert points[1].mean_patching != points[2].mean_patching
    assert choose_alpha(points, max_supported_drop=0.01).alpha == 0.4


def test_where_only_zero_qualifies_the_curve_is_told() -> None:
    points = _points(
        (0.0, {"p": 0.4}, {"s": 0.6}), (0.5, {"p": 0.7}, {"s": 0.5}), (1.0, {"p": 0.9}, {"s": 0.3})
    )
    choice = choose_alpha(points, max_supported_drop=0.01)
    assert choice.alpha == 0.0
    assert "only alpha 0" in choice.reason
    for part in ("alpha 0.5: p 70.00 %, s 50.00 %", "alpha 1: p 90.00 %, s 30.00 %"):
        assert part in choice.reason


def test_patching_that_does_not_help_is_not_called_a_broken_bound() -> None:
    points = _points((0.0, {"p": 0.8}, {"s": 0.6}), (1.0, {"p": 0.7}, {"s": 0.6}))
    choice = choose_alpha(points, max_supported_drop=0.01)
    assert choice.alpha == 0.0
    assert "only alpha 0" not in choice.reason


def test_drops_are_measured_against_the_baseline() -> None:
    """Of a later task of sequential patching, where alpha 0 has lost something already."""
    points = _points((0.0, {"p": 0.4}, {"s": 0.592}), (1.0, {"p": 0.9}, {"s": 0.585}))
    assert choose_alpha(points, max_supported_drop=0.01).alpha == 1.0
    assert choose_alpha(points, max_supported_drop=0.01, baseline={"s": 0.6}).alpha == 0.0


def test_a_sweep_without_zero_cannot_be_judged() -> None:
    with pytest.raises(RecipeError, match="lacks alpha 0"):
        choose_alpha(_points((1.0, {"p": 0.9}, {})), max_supported_drop=0.01)


# End to end


def _patch(
    clip: ClipModel,
    folder: Path,
    tasks: list[PatchingTask],
    validation: list[PatchingTask],
    supported: PatchingTask,
    *,
    allow_shared_samples: bool = False,
    **change: Any,
) -> PatchResult:
    settings = QUICK.model_copy(update=change)
    return patch(
        clip, tasks, settings, folder, validation=validation, supported=[supported],
        allow_shared_samples=allow_shared_samples,
    )  # fmt: skip


def _same(a: StateDict, b: StateDict) -> bool:
    return hash_state(a) == hash_state(b)


def test_patching_jointly(
    tiny_clip: ClipModel,
    task: PatchingTask,
    validation: PatchingTask,
    supported: PatchingTask,
    tmp_path: Path,
) -> None:
    found = _patch(tiny_clip, tmp_path, [task], [validation], supported, alphas=(0.5, 1.0))
    assert [point.alpha for point in found.points] == [0.0, 0.5, 1.0]
    theta_0 = tiny_clip.visual.state_dict()
    assert not _same(found.finetuned, theta_0)
    assert _same(found.patched, interpolate(theta_0, found.finetuned, found.choice.alpha))
    assert _same(read_state_dict(tmp_path / "finetuned.safetensors"), found.finetuned)
    assert _same(read_state_dict(tmp_path / "patched.safetensors"), found.patched)
    kept = json.loads((tmp_path / "sweep.json").read_text())
    assert kept["chosen"]["alpha"] == found.choice.alpha
    assert len(kept["points"]) == 3


def test_patching_again_reads_what_is_complete(
    tiny_clip: ClipModel,
    task: PatchingTask,
    validation: PatchingTask,
    supported: PatchingTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    first = _patch(tiny_clip, tmp_path, [task], [validation], supported)

    def never(*args: Any, **options: Any) -> Any:
        raise AssertionError("nothing is left to do")

    monkeypatch.setattr(module, "finetune", never)
    monkeypatch.setattr(sweep_module, "task_values", never)
    again = _patch(tiny_clip, tmp_path, [task], [validation], supported)
    assert again.choice == first.choice
    assert again.points == first.points
    assert _same(again.patched, first.patched)
    with pytest.raises(RecipeError, match="holds stage 1 of other settings"):
        _patch(tiny_clip, tmp_path, [task], [validation], supported, lr=2e-3)


def test_patching_two_tasks_jointly_sequentially_and_in_parallel(
    tiny_clip: ClipModel,
    task: PatchingTask,
    many_label_val: PatchingTask,
    many_label_task: PatchingTask,
    validation: PatchingTask,
    supported: PatchingTask,
    tmp_path: Path,
) -> None:
    tasks, checks = [task, many_label_task], [validation, many_label_val]
    alone = [
        _patch(tiny_clip, tmp_path / str(n), [one], [check], supported).finetuned
        for n, (one, check) in enumerate(zip(tasks, checks, strict=True))
    ]
    theta_0 = tiny_clip.visual.state_dict()
    names = {"synthetic-scenes/val", "synthetic-scenes-multilabel/val"}

    joint = _patch(tiny_clip, tmp_path / "joint", tasks, checks, supported)
    assert set(joint.points[0].patching) == names

    parallel = _patch(tiny_clip, tmp_path / "parallel", tasks, checks, supported, mode="parallel")
    assert set(parallel.points[0].patching) == names
    alpha = parallel.choice.alpha
    assert _same(parallel.patched, merge(theta_0, alone, [alpha, alpha]))
    merged = read_state_dict(tmp_path / "parallel" / "finetuned.safetensors")
    assert _same(merged, merge(theta_0, alone, [1.0, 1.0]))

    ties = _patch(tiny_clip, tmp_path / "ties", tasks, checks, supported, mode="ties", density=0.3)
    assert set(ties.points[0].patching) == names
    changed = merge_ties(
        theta_0, alone, density=0.3, trained=dict(tiny_clip.visual.named_parameters())
    )
    assert _same(ties.finetuned, changed)
    assert _same(ties.patched, interpolate(theta_0, changed, ties.choice.alpha))

    kept = tmp_path / "sequential"
    sequential = _patch(tiny_clip, kept, tasks, checks, supported, mode="sequential")
    first = read_state_dict(kept / "task-1-synthetic-scenes" / "patched.safetensors")
    assert _same(read_state_dict(kept / "patched.safetensors"), sequential.patched)
    assert _same(
        sequential.patched, interpolate(first, sequential.finetuned, sequential.choice.alpha)
    )
    assert set(sequential.points[0].patching) == names
    assert len({hash_state(one) for one in (joint.finetuned, merged, sequential.finetuned)}) == 3


def test_drops_of_later_tasks_are_measured_from_before_any_patching(
    tiny_clip: ClipModel,
    task: PatchingTask,
    validation: PatchingTask,
    supported: PatchingTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    curves = iter([0.60, 0.55])  # what is left of the supported task at alpha 0
    given = []

    def curve(*args: Any, **options: Any) -> tuple[SweepPoint, ...]:
        left = next(curves)
        return tuple(_points((0.0, {"p": 0.1}, {"s": left}), (1.0, {"p": 0.9}, {"s": left})))

    def choose(points: Any, *, max_supported_drop: float, baseline: Any) -> Any:
        given.append(baseline)
        return choose_alpha(points, max_supported_drop=max_supported_drop, baseline=baseline)

    monkeypatch.setattr(module, "sweep", curve)
    monkeypatch.setattr(module, "choose_alpha", choose)
    two = [task, validation]
    _patch(
        tiny_clip, tmp_path, two, two, supported,
        allow_shared_samples=True, mode="sequential", max_supported_drop=0.1,
    )  # fmt: skip
    assert given == [{"s": 0.60}, {"s": 0.60}]


def test_training_data_may_not_choose_alpha(
    tiny_clip: ClipModel,
    task: PatchingTask,
    many_label_task: PatchingTask,
    validation: PatchingTask,
    supported: PatchingTask,
    photos: SyntheticSet,
    tmp_path: Path,
) -> None:
    """The many-label set has the scenes of the other under the same keys."""
    for judging, support in ((task, supported), (many_label_task, supported), (validation, task)):
        with pytest.raises(RecipeError, match=r"40 of the 40 samples .*alpha is chosen"):
            _patch(tiny_clip, tmp_path, [task], [judging], support)
    with pytest.raises(RecipeError, match=r"24 of the 24 samples of synthetic-photos/val"):
        patch(
            tiny_clip, [task], QUICK, tmp_path,
            validation=[validation], supported=[supported], preserve_on=photos,
        )  # fmt: skip
    assert list(tmp_path.iterdir()) == []
    _patch(tiny_clip, tmp_path, [task], [task], supported, allow_shared_samples=True)


def test_a_way_of_patching_several_tasks_needs_several(
    tiny_clip: ClipModel,
    task: PatchingTask,
    validation: PatchingTask,
    supported: PatchingTask,
    tmp_path: Path,
) -> None:
    with pytest.raises(RecipeError, match='mode = "parallel" has no effect on a single'):
        _patch(tiny_clip, tmp_path, [task], [validation], supported, mode="parallel")
    with pytest.raises(RecipeError, match="each with its validation data"):
        _patch(tiny_clip, tmp_path, [task], [], supported)


def test_a_preserving_batch_needs_pictures_to_preserve_on(
    tiny_clip: ClipModel, task: PatchingTask, validation: PatchingTask, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"preserve_batch_size": 32})
    with pytest.raises(RecipeError, match="preserve_batch_size = 32 has no effect without"):
        patch(tiny_clip, [task], settings, tmp_path, validation=[validation], supported=[])


def test_trained_batch_norms_are_estimated_anew_for_each_alpha(
    norm_clip: ClipModel,
    task: PatchingTask,
    validation: PatchingTask,
    supported: PatchingTask,
    tmp_path: Path,
) -> None:
    found = _patch(
        norm_clip, tmp_path, [task], [validation], supported,
        batch_norm="train", alphas=(1.0,), max_supported_drop=1.0, lr=1e-2,
    )  # fmt: skip
    key = "bn1.running_mean"
    settings = QUICK.model_copy(update={"batch_norm": "train", "lr": 1e-2})
    run = module._Patching(norm_clip, settings, tmp_path, [], None, 0, False, None)
    theta_0 = copy.deepcopy(norm_clip.visual.state_dict())
    half = interpolate(theta_0, found.finetuned, 0.5)
    pictures = run.pictures([task])
    anew = run.with_statistics(half, 0.5, lambda: pictures)
    assert not torch.equal(anew[key], half[key])
    assert all(torch.equal(anew[k], half[k]) for k in half if "running" not in k and "num" not in k)
    assert run.with_statistics(theta_0, 0.0, lambda: pictures) is theta_0


def test_the_finetuned_tower_is_the_one_of_the_curve(
    norm_clip: ClipModel,
    task: PatchingTask,
    validation: PatchingTask,
    supported: PatchingTask,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its batch-norm statistics too; training pictures are decoded once for all alphas."""
    calls = []
    real = module.training_pictures

    def counted(*args: Any, **options: Any) -> Any:
        calls.append(1)
        return real(*args, **options)

    monkeypatch.setattr(module, "training_pictures", counted)
    found = _patch(
        norm_clip, tmp_path, [task], [validation], supported,
        batch_norm="train", alphas=(0.5, 1.0), max_supported_drop=1.0, lr=1e-2,
    )  # fmt: skip
    assert len(calls) == 1
    space = EmbeddingSpace(norm_clip.with_visual(found.finetuned, source="test"))
    for one, values in ((validation, "patching"), (supported, "supported")):
        measured = evaluate_zero_shot(space, one.samples, tower="rgb", prompts=one.prompts)
        name = f"{one.samples.name}/{one.samples.split}"
        assert getattr(found.points[-1], values)[name] == measured.result.value("top1")
    trained = read_state_dict(tmp_path / "finetuned.safetensors")
    assert not torch.equal(trained["bn1.running_mean"], found.finetuned["bn1.running_mean"])
    assert torch.equal(trained["conv1.weight"], found.finetuned["conv1.weight"])
