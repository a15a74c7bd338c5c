"""Training by several processes: the losses of one, its bits with shards, faults, stops, resuming.

One test starts two processes in the default run; the others are slow.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import Changed, losses_of, stopping_in_step
from ranked import in_ranks
from small_sets import PLAIN, as_task
from terralign import ranks
from terralign.datasets.synthetic import SyntheticSet
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import hash_state
from terralign.errors import Interrupted, RankLostError, RecipeError, TrainingError
from terralign.train.align import AlignmentSource, AlignSettings, align
from terralign.train.finetune import FinetuneSettings, finetune
from terralign.train.loop import Batch
from terralign.train.student import StudentSettings, new_student

S2 = "sentinel2-l2a"
QUICK: dict[str, Any] = {"epochs": 4, "batch_size": 8, "lr": 1e-3}
Trained = tuple[str, list[float]]
"""The hash of the weights, and the losses."""


def _align(clip: ClipModel, samples: SyntheticSet, folder: Path, **settings: Any) -> Trained:
    backbone = settings.pop("student", {})
    student = new_student("s2", clip, StudentSettings(**backbone), [S2], [samples], seed=0)[0]
    source = AlignmentSource(samples=samples, prompts=PLAIN, class_names=samples.labels.class_names)
    align(clip, student, [source], AlignSettings(**{**QUICK, **settings}), folder)
    return hash_state(student.state_dict()), losses_of(folder)


def _patch(clip: ClipModel, samples: SyntheticSet, folder: Path, **settings: Any) -> Trained:
    kept = settings.pop("preserve_on", None)
    theta = finetune(
        clip, [as_task(samples)], FinetuneSettings(**{**QUICK, **settings}), folder,
        preserve_on=kept,
    )  # fmt: skip
    return hash_state(theta), losses_of(folder)


def _same(size: int, train: Callable[[Path], Trained], folder: Path) -> Trained:
    """What `size` ranks train together, which all have in the end."""
    results = in_ranks(size, lambda: train(folder / str(size)))
    for one in results:
        if isinstance(one, Exception):
            raise one
    assert len({weights for weights, _ in results}) == 1
    found: Trained = results[0]
    return found


def test_two_processes_train_as_one(
    tiny_clip: ClipModel, many_labels: SyntheticSet, tmp_path: Path
) -> None:
    """Contrastively within 1e-5; by shards, to the bit."""
    losses = {"infonce": 1.0, "label": 0.1}

    def train(folder: Path) -> tuple[Trained, Trained]:
        return (
            _align(tiny_clip, many_labels, folder / "s2", epochs=1, batch_size=7, losses=losses),
            _patch(tiny_clip, many_labels, folder / "rgb", epochs=1, shards=2),
        )

    one = train(tmp_path / "one")
    (aligned, patched), others = in_ranks(2, lambda: train(tmp_path / "two"))
    assert aligned[1] == pytest.approx(one[0][1], rel=1e-5)
    assert patched == one[1]
    assert [weights for weights, _ in others] == [aligned[0], patched[0]]


def test_a_batch_is_dealt_as_ranks_share_it() -> None:
    """And other pictures with it; together the shares weigh as the whole."""
    pixels, others = torch.arange(7.0)[:, None], torch.arange(3.0)
    batch = Batch(keys=list("abcdefg"), pixels=pixels, unlabelled=others)
    first, second = batch.deal(2)
    assert first.keys == list("aceg")
    assert second.pixels.flatten().tolist() == [1, 3, 5]
    assert first.share + second.share == 1
    mean = sum(one.share * one.unlabelled_share * one.unlabelled.mean() for one in (first, second))  # type: ignore[union-attr, misc]
    assert float(mean) == pytest.approx(1.0)
    pieces = [piece for part in batch.deal(2) for piece in part.split(2)]
    assert sum(piece.share for piece in pieces) == pytest.approx(1)
    weights = [piece.share * piece.unlabelled_share for piece in pieces]
    assert sum(weights) == pytest.approx(1)


def test_shards_that_cannot_be_are_refused(
    tiny_clip: ClipModel, norm_clip: ClipModel, many_labels: SyntheticSet, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="infonce needs the whole batch at once; leave shards"):
        _align(tiny_clip, many_labels, tmp_path, losses={"infonce": 1.0, "label": 1.0}, shards=2)
    with pytest.raises(RecipeError, match="a batch of 8 samples cannot be split into 9 parts"):
        _patch(tiny_clip, many_labels, tmp_path, shards=9)
    with pytest.raises(RecipeError, match="batch_norm"):
        _patch(norm_clip, many_labels, tmp_path, shards=2, batch_norm="train")


# With more processes


@pytest.mark.slow
@pytest.mark.parametrize("size", [2, 4])
@pytest.mark.parametrize(
    ("train", "settings"),
    [
        (_align, {}),
        (_align, {"losses": {"infonce": 1.0, "label": 1.0}, "batch_size": 7}),
        (_align, {"accumulate": 3, "live_teacher": True}),
        (_patch, {}),
        (_patch, {"preserve_unlabelled": 1.0, "preserve_batch_size": 5, "batch_size": 7}),
    ],
)
def test_losses_are_those_of_one_process(
    tiny_clip: ClipModel,
    many_labels: SyntheticSet,
    photos: SyntheticSet,
    tmp_path: Path,
    train: Callable[..., Trained],
    settings: dict[str, Any],
    size: int,
) -> None:
    if "preserve_unlabelled" in settings:
        settings = {**settings, "preserve_on": photos}
    one = train(tiny_clip, many_labels, tmp_path / "one", **settings)
    more = _same(size, lambda folder: train(tiny_clip, many_labels, folder, **settings), tmp_path)
    assert len(one[1]) >= 20
    assert more[1] == pytest.approx(one[1], rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("train", "settings"),
    [(_align, {"student": {"backbone": "test_vit", "drop_path": 0.2}}), (_patch, {})],
)
def test_with_shards_any_number_of_processes_gives_the_same_bits(
    tiny_clip: ClipModel,
    many_labels: SyntheticSet,
    tmp_path: Path,
    train: Callable[..., Trained],
    settings: dict[str, Any],
) -> None:
    def run(folder: Path) -> Trained:
        return train(tiny_clip, many_labels, folder, shards=4, **settings)

    one = run(tmp_path / "one")
    assert one == _same(2, run, tmp_path) == _same(4, run, tmp_path)


@pytest.mark.slow
def test_running_statistics_are_the_same_at_all_ranks(
    norm_clip: ClipModel, many_labels: SyntheticSet, tmp_path: Path
) -> None:
    _same(3, lambda at: _patch(norm_clip, many_labels, at, batch_norm="train"), tmp_path)


@pytest.mark.slow
def test_shards_need_a_number_that_ranks_can_share(
    tiny_clip: ClipModel, many_labels: SyntheticSet, tmp_path: Path
) -> None:
    faults = in_ranks(3, lambda: _patch(tiny_clip, many_labels, tmp_path, shards=4))
    assert sorted(type(one) for one in faults if isinstance(one, RecipeError)) == [RecipeError]
    assert sum(isinstance(one, RankLostError) for one in faults) == 2, "it is reported once"


@pytest.mark.slow
def test_a_loss_that_is_not_finite_is_reported_once_with_the_whole_batch(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    def train() -> Trained:
        return _patch(tiny_clip, scenes, tmp_path, lr=1e30, clip_norm=None)

    faults = in_ranks(2, train)
    (fault,) = (one for one in faults if not isinstance(one, RankLostError))
    assert isinstance(fault, TrainingError)
    assert str(fault).count("scene") + str(fault).count("train") >= 8, str(fault)


@pytest.mark.slow
def test_a_rank_that_fails_has_the_others_end(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    """In a step, and while they wait for the first."""

    def in_step() -> Trained:
        samples = scenes
        if ranks.rank() == 1:
            samples = Changed(scenes, read=_unplugged)
        return _patch(tiny_clip, samples, tmp_path / "a")

    def in_wait() -> None:
        if ranks.rank() == 1:
            raise OSError("cable pulled")
        ranks.by_first(lambda: time.sleep(1))
        ranks.greatest(0)

    for work in (in_step, in_wait):
        began = time.monotonic()
        faults = in_ranks(3, work)
        assert time.monotonic() - began < 20
        assert [type(one) for one in faults] == [RankLostError, OSError, RankLostError], faults


def _unplugged(indices: Any) -> None:
    raise OSError("cable pulled")


@pytest.mark.slow
@pytest.mark.parametrize("again", [2, 1])
def test_stopped_at_one_rank_all_stop_and_resume(
    tiny_clip: ClipModel, many_labels: SyntheticSet, tmp_path: Path, again: int
) -> None:
    """With as many processes to the same bits, with fewer within rounding."""

    def train(folder: Path) -> Trained:
        return _align(tiny_clip, many_labels, folder)

    def stopped() -> Trained:
        if ranks.rank() == 0:
            return train(tmp_path / "cut")
        with stopping_in_step(6, signal.SIGTERM):
            return train(tmp_path / "cut")

    whole = _same(2, train, tmp_path)
    ends = in_ranks(2, stopped)
    assert [type(one) for one in ends] == [Interrupted, Interrupted], ends
    assert len(losses_of(tmp_path / "cut")) == 7
    if again == 1:
        resumed = train(tmp_path / "cut")
        assert resumed[1] == pytest.approx(whole[1], rel=1e-5)
    else:
        assert _same(2, lambda _: train(tmp_path / "cut"), tmp_path) == whole
