"""What ranks share beside training: teacher views, sweep, validation, embedding, whole runs.

And what each of them is trained on: over ranks and restarts, every sample once per epoch.
"""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from fakes import Changed, Counted, losses_of
from ranked import in_ranks
from small_run import small_recipe, small_values
from small_sets import PLAIN, as_task
from terralign import ranks
from terralign.datasets.synthetic import SyntheticSet
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import DataError, RankLostError
from terralign.evaluation.embed import choose_route, embed_samples
from terralign.files import hash_file
from terralign.preprocess import ViewSpec
from terralign.runs.run import run_recipe
from terralign.train import loop
from terralign.train.align import AlignmentSource, AlignSettings, align
from terralign.train.checkpoints import Checkpoints
from terralign.train.student import StudentSettings, new_student
from terralign.train.student_validation import validation_value
from terralign.train.sweep import sweep
from terralign.train.teacher import ViewPlan, stored_views

S2 = "sentinel2-l2a"


def _share(clip: ClipModel, samples: SyntheticSet, folder: Path) -> dict[str, Any]:
    """All that is shared out, of batches that no number of ranks divides; with it, how often this
    rank has read each sample for the views."""
    counted = Counted(samples)
    views = stored_views(
        clip, counted, ViewPlan(spec=ViewSpec(), num_views=2, seed=1), folder, batch_size=9
    )
    moved = {
        key: value * 1.5 if value.is_floating_point() else value
        for key, value in clip.visual.state_dict().items()
    }
    points = sweep(
        clip, lambda alpha: clip.visual.state_dict() if alpha == 0 else moved, [0.0, 1.0],
        validation=[as_task(samples)], supported=[], batch_size=9, limit_bytes=2**17,
    )  # fmt: skip
    student, _ = new_student("s2", clip, StudentSettings(), [S2], [samples], seed=0)
    student.eval()
    names = samples.labels.class_names
    space = EmbeddingSpace(clip)
    embedded = embed_samples(space, samples, choose_route(space, samples, "rgb"), batch_size=9)
    return {
        "views": np.array(views).tobytes(),
        "points": [(point.alpha, point.patching) for point in points],
        "accuracy": validation_value(clip, student, samples, PLAIN, names),
        "cosine": validation_value(clip, student, samples, None, None),
        "vectors": embedded.vectors.numpy(),
        "valid": (embedded.valid_share, embedded.num_empty),
        "reads": counted.reads,
    }


def test_two_processes_find_what_one_finds(
    tiny_clip: ClipModel, many_labels: SyntheticSet, tmp_path: Path
) -> None:
    """The same bits, and no sample is computed twice."""
    one = _share(tiny_clip, many_labels, tmp_path / "one")
    first, second = in_ranks(2, lambda: _share(tiny_clip, many_labels, tmp_path / "two"))
    np.testing.assert_array_equal(first.pop("vectors"), one.pop("vectors"))
    assert len(second["vectors"]) == 0
    np.testing.assert_array_equal(first.pop("reads") + second["reads"], one.pop("reads"))
    assert second["reads"].sum() > 20
    assert first == one
    for shared in ("views", "points", "accuracy", "cosine"):
        assert second[shared] == one[shared]


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["reading", "nan"])
def test_a_fault_in_shared_work_ends_all_with_one_report(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path, kind: str
) -> None:
    """By a rank that is not the first."""

    def work() -> None:
        samples, moved = scenes, tiny_clip.visual.state_dict()
        if ranks.rank() == 1 and kind == "nan":
            moved = {key: value * torch.nan for key, value in moved.items()}
        if ranks.rank() == 1 and kind == "reading":
            samples = Changed(scenes, read=_unplugged)
        sweep(
            tiny_clip, lambda alpha: moved, [0.0],
            validation=[as_task(samples)], supported=[], batch_size=4,
        )  # fmt: skip

    faults = in_ranks(3, work)
    expected = OSError if kind == "reading" else DataError
    assert [type(one) for one in faults] == [RankLostError, expected, RankLostError], faults
    if kind == "nan":
        assert "within samples 4 to 7" in str(faults[1])


def _unplugged(indices: Any) -> None:
    raise OSError("cable pulled")


@pytest.mark.slow
@pytest.mark.usefixtures("figures_undrawn")
def test_a_run_of_several_processes_measures_what_one_measures(tmp_path: Path) -> None:
    """With shards every file of the measurements has the same bytes."""
    values = small_values()
    values["patch"]["shards"] = values["align"][0]["shards"] = values["align"][1]["shards"] = 4
    values["align"][1] |= {"keep": "best", "validate_every": 3}
    values["align"][1]["validation"] = {
        "data": "synthetic-scenes", "split": "val", "limit": 20
    }  # fmt: skip
    recipe = small_recipe(**values)

    def run(size: int) -> dict[str, str]:
        folder = tmp_path / str(size)
        if size == 1:
            run_recipe(recipe, folder, device="cpu")
        else:
            ends = in_ranks(size, lambda: run_recipe(recipe, folder, device="cpu").folder)
            assert ends == [folder] * size
        names = [folder / "results.json", folder / "patch" / "sweep.json"]
        names += [*(folder / "evaluate").iterdir(), *(folder / "teacher").iterdir()]
        return {str(path.relative_to(folder)): hash_file(path) for path in names}

    one = run(1)
    assert len(one) > 20
    assert run(2) == run(4) == one


# What each rank is trained on


def _counted(
    train: Callable[[], None], log: Path, *, kill_at: int | None = None
) -> Callable[[], None]:
    """`train`, which checkpoints every third step and writes down the samples of each step.

    `kill_at`: the step, counted from 1, after which rank 1 is killed.
    """

    def counted() -> None:
        path = log.with_name(f"{log.name}-{ranks.rank()}.jsonl")
        add = loop._Journal.add
        steps = [0]

        def write_down(journal: loop._Journal, taken: loop._Taken) -> None:
            steps[0] = taken.step
            with path.open("a") as file:
                file.write(json.dumps([taken.step, list(taken.batch.keys)]) + "\n")
            add(journal, taken)
            if taken.step == kill_at and ranks.rank() == 1:
                os.kill(os.getpid(), signal.SIGKILL)

        loop._Journal.add = write_down  # type: ignore[method-assign]
        Checkpoints.due = lambda self: steps[0] % 3 == 0  # type: ignore[method-assign]
        train()

    return counted


def _steps_of(log: Path) -> dict[int, list[str]]:
    """Step -> samples, over all ranks."""
    found: dict[int, list[str]] = {}
    for path in log.parent.glob(f"{log.name}-*.jsonl"):
        for line in path.read_text().splitlines():
            step, keys = json.loads(line)
            found.setdefault(step, []).extend(keys)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("again", [3, 2, 1])
def test_every_sample_is_trained_on_once_per_epoch_over_ranks_and_restarts(
    tiny_clip: ClipModel,
    scenes: SyntheticSet,
    scenes_val: SyntheticSet,
    tmp_path: Path,
    again: int,
) -> None:
    """Three ranks of which one is killed, then as many, two, or one; one set counts twice."""
    epochs = 2

    def train() -> None:
        student, _ = new_student("s2", tiny_clip, StudentSettings(), [S2], [scenes], seed=0)
        settings = AlignSettings(epochs=epochs, batch_size=7, lr=1e-3)
        sources = [
            AlignmentSource(samples=scenes), AlignmentSource(samples=scenes_val, repeats=2)
        ]  # fmt: skip
        align(tiny_clip, student, sources, settings, tmp_path / "run")

    killed = in_ranks(3, _counted(train, tmp_path / "first", kill_at=11))
    assert all(isinstance(one, RankLostError) for one in killed), killed
    assert in_ranks(again, _counted(train, tmp_path / "then")) == [None] * again
    before, after = _steps_of(tmp_path / "first"), _steps_of(tmp_path / "then")
    resumed = min(after)
    assert 1 < resumed <= 12
    assert max(before) >= 11
    steps = {step: keys for step, keys in before.items() if step < resumed} | after
    assert sorted(steps) == list(range(1, len(losses_of(tmp_path / "run")) + 1))
    expected = Counter(scenes.keys) + Counter([*scenes_val.keys, *scenes_val.keys])
    per_epoch = len(steps) // epochs
    for epoch in range(epochs):
        first = 1 + epoch * per_epoch
        seen = Counter(key for step in range(first, first + per_epoch) for key in steps[step])
        assert seen == expected
