"""The alpha sweep of stage 1, and its choice.

Every alpha is evaluated on the validation data of patching and supported tasks; each image is
decoded and preprocessed once for all alphas. The chosen alpha has the best mean over the patching
tasks among those whose drop on *every* supported task is within the bound.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from pydantic import BaseModel
from torch import Tensor, nn

from terralign import ranks
from terralign.compute import inferring
from terralign.datasets.feeding import feed_samples, starts_of
from terralign.datasets.sample import optical_layout, require_labels
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import StateDict
from terralign.errors import DataError, RecipeError, StorageError
from terralign.evaluation.metrics import hit_probability, multilabel_metrics, rank_labels
from terralign.preprocess import InputSpec, make_ready, resize, scale_composite
from terralign.progress import Progress
from terralign.train.finetune import PatchingTask
from terralign.train.stage import Stage, run_stage

READY_LIMIT_BYTES = 1024**3
"""Ready tensors of the sweep held in memory at a time; larger sets go through in pieces."""


class CurveNote(BaseModel):
    """Of the curve of a task: alpha -> value."""

    values: dict[str, float]


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepPoint:
    """One alpha on validation data: task name -> top1 or macro_map, fractions of 1."""

    alpha: float
    patching: dict[str, float]
    supported: dict[str, float]

    @property
    def mean_patching(self) -> float:
        """The mean over the patching tasks."""
        return float(np.mean(list(self.patching.values())))


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """The alpha that was chosen, and why, in one sentence."""

    alpha: float
    reason: str


def sweep(
    clip: ClipModel,
    make: Callable[[float], StateDict],
    alphas: Sequence[float],
    *,
    validation: Sequence[PatchingTask],
    supported: Sequence[PatchingTask],
    batch_size: int = 128,
    limit_bytes: int = READY_LIMIT_BYTES,
    stage_of: Callable[[PatchingTask], Stage] | None = None,
) -> tuple[SweepPoint, ...]:
    """Validation accuracy of every alpha; each image is decoded and preprocessed once for all.

    `make(alpha)`: the RGB tower's weights there. Ready tensors are held up to `limit_bytes`; a
    larger set goes through in pieces, each of them through all alphas. `stage_of`: what keeps the
    curve of a task, so that no task is swept twice.
    """
    tasks = [*validation, *supported]
    make = _remembered(make, len(alphas), device=next(clip.model.parameters()).device)

    def values_of(task: PatchingTask) -> dict[str, float]:
        def measure() -> dict[str, Any]:
            return {"values": task_values(clip, make, alphas, task, batch_size, limit_bytes)}

        if stage_of is None:
            return dict(measure()["values"])
        stage = stage_of(task)
        found = dict(run_stage(stage, measure, together=True)["values"])
        if found.keys() != {str(alpha) for alpha in alphas}:
            raise StorageError(
                f"{stage.note} is damaged: it has other alphas; delete it to make it again"
            )
        return found

    values = dict(zip(unique_names(tasks), map(values_of, tasks), strict=True))
    names = list(values)
    split = len(validation)
    return tuple(
        SweepPoint(
            alpha=alpha,
            patching={name: values[name][str(alpha)] for name in names[:split]},
            supported={name: values[name][str(alpha)] for name in names[split:]},
        )
        for alpha in alphas
    )


def _remembered(
    make: Callable[[float], StateDict], num_alphas: int, *, device: torch.device
) -> Callable[[float], StateDict]:
    """`make`, whose weights are kept for the next data where those of all alphas fit in memory."""
    if device.type == "cuda":
        limit_bytes = torch.cuda.mem_get_info(device)[0] // 2
    else:
        limit_bytes = READY_LIMIT_BYTES
    kept: dict[float, StateDict] = {}

    def remembered(alpha: float) -> StateDict:
        if alpha in kept:
            return kept[alpha]
        state = make(alpha)
        if num_alphas * sum(value.nbytes for value in state.values()) <= limit_bytes:
            kept[alpha] = state
        return state

    return remembered


def task_values(
    clip: ClipModel,
    make: Callable[[float], StateDict],
    alphas: Sequence[float],
    task: PatchingTask,
    batch_size: int,
    limit_bytes: int,
) -> dict[str, float]:
    """Alpha, as text -> the task's top1 or macro_map; scores are kept, not features (`Tally`).

    The same at all ranks, among which the samples are shared out.
    """
    device = next(clip.model.parameters()).device
    visual = copy.deepcopy(clip.visual)
    weights = task.weights(clip)
    tallies = [Tally(task, weights) for _ in alphas]
    label = f"sweep over {len(alphas)} alphas of {task.samples.name} {task.samples.split}"

    def score(starts: Sequence[int]) -> Generator[ranks.Found, None, None]:
        total = sum(min(batch_size, len(task.samples) - start) for start in starts) * len(alphas)
        limit = limit_bytes // ranks.world_size()
        pieces = ready_pieces(task, clip.input_spec, starts, batch_size, limit, device)
        with Progress(label, total=total, unit="sample") as progress:
            for piece in pieces:
                found: list[list[Tensor]] = [[] for _ in piece]
                for alpha, tally in zip(alphas, tallies, strict=True):
                    visual.load_state_dict(make(alpha))
                    for (start, batch), scores in zip(piece, found, strict=True):
                        scores.append(tally.score(embed_ready(visual, batch), start))
                        progress.advance(len(batch))
                yield from map(tuple, found)

    for found in ranks.share_out(starts_of(task.samples, batch_size), score):
        for tally, scores in zip(tallies, found, strict=True):
            tally.keep(scores)

    def values() -> dict[str, float]:
        return {str(alpha): one.value() for alpha, one in zip(alphas, tallies, strict=True)}

    return ranks.by_first(values)


def unique_names(tasks: Sequence[PatchingTask]) -> list[str]:
    """What the figures of each task go by: `data set/split`, numbered where that is taken."""
    names: list[str] = []
    for task in tasks:
        name = f"{task.samples.name}/{task.samples.split}"
        number = sum(name == one.rpartition("#")[0] or name == one for one in names) + 1
        names.append(name if number == 1 else f"{name}#{number}")
    return names


def ready_pieces(
    task: PatchingTask,
    spec: InputSpec,
    starts: Sequence[int],
    batch_size: int,
    limit_bytes: int,
    device: torch.device,
) -> Iterator[list[tuple[int, Tensor]]]:
    """The batches of a task that begin at `starts`, each with its first sample, ready for the
    tower, in pieces of at most `limit_bytes`."""
    layout = optical_layout(task.samples)

    def make(pixels: Tensor) -> Tensor:
        return make_ready(resize(scale_composite(pixels, layout), spec), spec)

    piece: list[tuple[int, Tensor]] = []
    num_bytes = 0
    stream = feed_samples(
        task.samples, layout, make, batch_size=batch_size, device=device, starts=starts
    )
    for start, batch in zip(starts, stream, strict=True):
        size = batch.numel() * batch.element_size()
        if piece and num_bytes + size > limit_bytes:
            yield piece
            piece, num_bytes = [], 0
        piece.append((start, batch))
        num_bytes += size
    if piece:
        yield piece


def embed_ready(visual: nn.Module, batch: Tensor) -> Tensor:
    """(B, D) float32 features, on the CPU, of pixels (B, 3, H, W) ready for the tower."""
    visual.eval()
    with inferring(batch.device):
        features: Tensor = visual(batch)
    return features.float().cpu()


def primary_metric(task: PatchingTask) -> str:
    """The figure a task is judged by: top1, or macro_map where it is multi-label."""
    return "macro_map" if require_labels(task.samples).multi_label else "top1"


class Tally:
    """What `primary_metric` needs of the embeddings of a task, kept batch by batch.

    Of N samples and K classes it holds N numbers for a single-label task, N * K in float32 for a
    multi-label one, whose average precision ranks all samples at once; never features (N, D).
    """

    def __init__(self, task: PatchingTask, weights: Tensor) -> None:
        self._labels = require_labels(task.samples)
        self._weights = weights
        self._num_kept = 0
        size = (len(task.samples),)
        self._kept = (
            np.empty((*size, len(weights)), np.float32)
            if self._labels.multi_label
            else np.empty(size, np.float64)
        )

    def score(self, features: Tensor, start: int) -> Tensor:
        """What is kept of features (B, D) of the task's samples from `start` on: whether each is
        right (B,) float64, or its scores (B, K) float32."""
        scores = (F.normalize(features.float(), dim=-1) @ self._weights.T).numpy()
        rows = slice(start, start + len(scores))
        if not np.isfinite(scores).all():
            raise DataError(
                f"the tower gives NaN or infinite values within samples {rows.start} "
                f"to {rows.stop - 1}"
            )
        if self._labels.multi_label:
            return torch.from_numpy(scores)
        hits = hit_probability(*rank_labels(scores, self._labels.values[rows]), 1)
        return torch.from_numpy(np.asarray(hits, np.float64))

    def keep(self, scores: Tensor) -> None:
        """The next scores, in the order of the task's samples."""
        rows = slice(self._num_kept, self._num_kept + len(scores))
        self._kept[rows] = scores.numpy()
        self._num_kept = rows.stop

    def value(self) -> float:
        """`primary_metric` of all samples, a fraction of 1."""
        assert self._num_kept == len(self._kept), "samples are missing"
        if self._labels.multi_label:
            result = multilabel_metrics(
                self._kept, self._labels.values.astype(np.bool_), num_bootstrap=1
            )
            return result.value("macro_map")
        return float(np.ones(len(self._kept), np.int64) @ self._kept / len(self._kept))


def within_bound(
    supported: Mapping[str, float], before: Mapping[str, float], max_supported_drop: float
) -> bool:
    """Whether every supported task is at most `max_supported_drop` below its value `before`."""
    return all(
        before[name] - value <= max_supported_drop + 1e-9 for name, value in supported.items()
    )


def choose_alpha(
    points: Sequence[SweepPoint],
    *,
    max_supported_drop: float,
    baseline: Mapping[str, float] | None = None,
) -> Choice:
    """The alpha with the best mean over patching tasks among those within the bound.

    The bound holds for every supported task, against `baseline`: its value before any patching,
    by default at alpha 0. Equal means: the smaller alpha.
    """
    zero = next((point for point in points if point.alpha == 0), None)
    if zero is None:
        raise RecipeError("the sweep lacks alpha 0, against which drops are measured")
    before = zero.supported if baseline is None else baseline
    allowed = [
        point for point in points if within_bound(point.supported, before, max_supported_drop)
    ] or [zero]
    top = max(point.mean_patching for point in allowed) - 1e-9  # sums in another order are equal
    best = min(
        (point for point in allowed if point.mean_patching >= top),
        key=lambda point: abs(point.alpha),
    )
    bound = f"{100 * max_supported_drop:g} point{'' if max_supported_drop == 0.01 else 's'}"
    if allowed == [zero] and len(points) > 1:
        curve = "; ".join(
            f"alpha {point.alpha:g}: {_percent(point.patching)}, {_percent(point.supported)}"
            for point in points
        )
        return Choice(
            alpha=0.0,
            reason=f"only alpha 0 costs no supported task more than {bound}. The curve: {curve}",
        )
    drops = {name: before[name] - best.supported[name] for name in best.supported}
    worst = max(drops, key=lambda name: drops[name]) if drops else None
    if worst is None:
        rest = "; no supported task was given"
    else:
        largest = f"the largest drop is {100 * drops[worst]:.2f} points ({worst})"
        rest = f" of all that cost no supported task more than {bound}; " + (
            largest if drops[worst] > 0 else "none of them lost any"
        )
    return Choice(
        alpha=best.alpha,
        reason=f"alpha {best.alpha:g} has the best mean over patching tasks "
        f"({100 * best.mean_patching:.2f} %; {100 * zero.mean_patching:.2f} % at alpha 0){rest}",
    )


def _percent(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.2f} %" for name, value in values.items())
