"""Stage 1: fine-tune, then choose alpha on validation data of patching and supported tasks.

The chosen alpha has the best mean over the patching tasks among those whose drop on *every*
supported task is within the bound. PAINT's three ways of patching several tasks: jointly, one
after another, or each alone and merged.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor, nn

from terralign.datasets.loader import read_ahead
from terralign.datasets.sample import SampleSet
from terralign.encoders.clip import ClipModel
from terralign.encoders.weights import StateDict, hash_state, read_state_dict, write_state_dict
from terralign.errors import RecipeError
from terralign.evaluate.classification import require_labels, score_classes
from terralign.evaluate.embed import optical_layout
from terralign.files import hash_json, read_json, write_json
from terralign.preprocess import InputSpec, make_ready, resize, scale_composite
from terralign.progress import Progress
from terralign.train.finetune import (
    FinetuneSettings,
    PatchingTask,
    finetune,
    is_batch_norm,
    reestimate_batch_norm,
    training_pictures,
)
from terralign.train.interpolate import check_same_weights, interpolate, merge, on_cpu

logger = logging.getLogger(__name__)

READY_LIMIT_BYTES = 1024**3
"""Ready tensors of the sweep held in memory at a time; larger sets go through in pieces."""

DEFAULT_ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))


class PatchSettings(FinetuneSettings):
    """Stage 1: the gradients' settings, and those of the sweep."""

    mode: Literal["joint", "sequential", "parallel"] = "joint"
    """How several tasks are patched (PAINT)."""
    alphas: tuple[float, ...] = Field(default=DEFAULT_ALPHAS, min_length=1)
    """Interpolation coefficients to try; 0 is always tried."""
    max_supported_drop: float = Field(default=0.01, ge=0, le=1)
    """Greatest drop of any supported task, as a fraction of 1 (0.01: one point)."""


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


@dataclass(frozen=True, kw_only=True, slots=True)
class PatchResult:
    """Stage 1's weights and curve. `finetuned`: theta_1; `patched`: theta at the chosen alpha."""

    finetuned: StateDict
    patched: StateDict
    choice: Choice
    points: tuple[SweepPoint, ...]


def patch(
    clip: ClipModel,
    tasks: Sequence[PatchingTask],
    settings: PatchSettings,
    folder: Path,
    *,
    validation: Sequence[PatchingTask],
    supported: Sequence[PatchingTask],
    preserve_on: SampleSet | None = None,
    seed: int = 0,
    tensorboard: bool = False,
) -> PatchResult:
    """Patch the RGB tower of `clip` on `tasks`; alpha is chosen on `validation` and `supported`.

    `folder` takes checkpoints, `finetuned.safetensors`, `patched.safetensors` and `sweep.json`.
    Calling again resumes, or reads what is complete. `clip` is left as it is.
    """
    if not tasks or len(validation) != len(tasks):
        raise RecipeError("patching needs at least one task, each with its validation data")
    run = _Patching(clip, settings, folder, supported, preserve_on, seed, tensorboard)
    if settings.mode == "joint" or len(tasks) == 1:
        if settings.mode != "joint":
            raise RecipeError(f'mode = "{settings.mode}" has no effect on a single patching task')
        return run.jointly(clip, tasks, validation, folder)
    if settings.mode == "sequential":
        return run.sequentially(tasks, validation)
    return run.in_parallel(tasks, validation)


class _Patching:
    """What the three ways of patching have in common."""

    def __init__(
        self,
        clip: ClipModel,
        settings: PatchSettings,
        folder: Path,
        supported: Sequence[PatchingTask],
        preserve_on: SampleSet | None,
        seed: int,
        tensorboard: bool,
    ) -> None:
        self.clip, self.settings, self.folder = clip, settings, folder
        self.supported, self.seed, self.tensorboard = supported, seed, tensorboard
        self.preserve_on = preserve_on
        self.baseline: dict[str, float] | None = None
        self.finetune_settings = FinetuneSettings.model_validate(
            {name: getattr(settings, name) for name in FinetuneSettings.model_fields}
        )

    def train(self, start: ClipModel, tasks: Sequence[PatchingTask], folder: Path) -> StateDict:
        path = folder / "finetuned.safetensors"
        identity = hash_json(
            {
                "theta_0": start.anchor_id(),
                "settings": self.finetune_settings.model_dump(mode="json"),
                "tasks": [task.identity() for task in tasks],
                "preserve_on": self.preserve_on.fingerprint if self.preserve_on else None,
                "seed": self.seed,
            }
        )
        marker = folder / "finetuned.json"
        if path.is_file() and marker.is_file():
            found = read_json(marker)
            if found["identity"] != identity:
                raise RecipeError(f"{folder} holds stage 1 of other settings; choose another --out")
            return read_state_dict(path)
        theta_1 = finetune(
            start, tasks, self.finetune_settings, folder / "checkpoints",
            preserve_on=self.preserve_on, seed=self.seed, tensorboard=self.tensorboard,
        )  # fmt: skip
        write_state_dict(path, theta_1)
        write_json(marker, {"identity": identity, "sha": hash_state(theta_1)})
        return theta_1

    def finish(
        self,
        make: Callable[[float], StateDict],
        tasks: Sequence[PatchingTask],
        validation: Sequence[PatchingTask],
        folder: Path,
    ) -> tuple[StateDict, StateDict, Choice, tuple[SweepPoint, ...]]:
        points = self.curve(make, tasks, validation, folder)
        if self.baseline is None:
            self.baseline = next(point.supported for point in points if point.alpha == 0)
        choice = choose_alpha(
            points,
            max_supported_drop=self.settings.max_supported_drop,
            baseline=self.baseline,
        )
        logger.info("alpha: %s", choice.reason)
        write_json(
            folder / "sweep.json",
            {
                "identity": self.curve_identity(make, validation),
                "chosen": asdict(choice),
                "max_supported_drop": self.settings.max_supported_drop,
                "points": [asdict(point) for point in points],
            },
        )
        patched = self.with_statistics(make(choice.alpha), choice.alpha, tasks)
        write_state_dict(folder / "patched.safetensors", patched)
        return make(1.0), patched, choice, points

    def curve_identity(
        self, make: Callable[[float], StateDict], validation: Sequence[PatchingTask]
    ) -> str:
        return hash_json(
            {
                "theta_0": hash_state(make(0.0)),
                "theta_1": hash_state(make(1.0)),
                "alphas": list(self.settings.alphas),
                "validation": [task.identity() for task in validation],
                "supported": [task.identity() for task in self.supported],
            }
        )

    def curve(
        self,
        make: Callable[[float], StateDict],
        tasks: Sequence[PatchingTask],
        validation: Sequence[PatchingTask],
        folder: Path,
    ) -> tuple[SweepPoint, ...]:
        path = folder / "sweep.json"
        if path.is_file():
            kept = read_json(path)
            if kept["identity"] == self.curve_identity(make, validation):
                return tuple(SweepPoint(**point) for point in kept["points"])
        return sweep(
            self.clip,
            lambda alpha: self.with_statistics(make(alpha), alpha, tasks),
            sorted({0.0, *self.settings.alphas}),
            validation=validation,
            supported=self.supported,
            memory=SweepMemory(
                path=folder / "sweep-partial.json",
                identity=self.curve_identity(make, validation),
            ),
        )

    def with_statistics(
        self, theta: StateDict, alpha: float, tasks: Sequence[PatchingTask]
    ) -> StateDict:
        """theta, its batch-norm statistics re-estimated where training moved them."""
        trained = self.settings.batch_norm == "train"
        if not trained or alpha == 0 or not any(map(is_batch_norm, self.clip.visual.modules())):
            return theta
        visual = self.clip.with_visual(theta, source="theta").visual
        pictures = training_pictures(
            self.clip, tasks, self.finetune_settings, num_batches=16, seed=self.seed
        )
        reestimate_batch_norm(visual, pictures)
        return on_cpu(visual.state_dict())

    def jointly(
        self,
        start: ClipModel,
        tasks: Sequence[PatchingTask],
        validation: Sequence[PatchingTask],
        folder: Path,
        done: Sequence[PatchingTask] = (),
    ) -> PatchResult:
        theta_0 = on_cpu(start.visual.state_dict())
        theta_1 = self.train(start, tasks, folder)
        check_same_weights(theta_0, theta_1)
        finetuned, patched, choice, points = self.finish(
            lambda alpha: interpolate(theta_0, theta_1, alpha),
            tasks, [*done, *validation], folder,
        )  # fmt: skip
        return PatchResult(finetuned=finetuned, patched=patched, choice=choice, points=points)

    def sequentially(
        self, tasks: Sequence[PatchingTask], validation: Sequence[PatchingTask]
    ) -> PatchResult:
        """Each task from where the last one ended; tasks done before count as patching tasks."""
        start = self.clip
        for number, task in enumerate(tasks):
            folder = self.folder / f"task-{number + 1}-{task.samples.name}"
            result = self.jointly(
                start, [task], [validation[number]], folder, done=validation[:number]
            )
            start = self.clip.with_visual(result.patched, source=str(folder))
        write_state_dict(self.folder / "finetuned.safetensors", result.finetuned)
        write_state_dict(self.folder / "patched.safetensors", result.patched)
        return result

    def in_parallel(
        self, tasks: Sequence[PatchingTask], validation: Sequence[PatchingTask]
    ) -> PatchResult:
        """Each task alone from theta_0; then theta_0 + alpha times the sum of the differences."""
        thetas = [
            self.train(self.clip, [task], self.folder / f"task-{number + 1}-{task.samples.name}")
            for number, task in enumerate(tasks)
        ]
        theta_0 = on_cpu(self.clip.visual.state_dict())
        finetuned, patched, choice, points = self.finish(
            lambda alpha: merge(theta_0, thetas, [alpha] * len(thetas)),
            tasks, validation, self.folder,
        )  # fmt: skip
        return PatchResult(finetuned=finetuned, patched=patched, choice=choice, points=points)


@dataclass(frozen=True, kw_only=True, slots=True)
class SweepMemory:
    """Where a sweep keeps the tasks it has finished, for another call that is the same."""

    path: Path
    identity: str

    def read(self) -> dict[str, dict[str, float]]:
        """Task name -> alpha -> value; empty where there is nothing of the same sweep."""
        if not self.path.is_file():
            return {}
        kept = read_json(self.path)
        return dict(kept["values"]) if kept.get("identity") == self.identity else {}

    def write(self, values: Mapping[str, Mapping[str, float]]) -> None:
        """Keep what is known so far."""
        write_json(self.path, {"identity": self.identity, "values": values})


def sweep(
    clip: ClipModel,
    make: Callable[[float], StateDict],
    alphas: Sequence[float],
    *,
    validation: Sequence[PatchingTask],
    supported: Sequence[PatchingTask],
    batch_size: int = 128,
    limit_bytes: int = READY_LIMIT_BYTES,
    memory: SweepMemory | None = None,
) -> tuple[SweepPoint, ...]:
    """Validation accuracy of every alpha; each image is decoded and preprocessed once for all.

    `make(alpha)`: the RGB tower's weights there. Ready tensors are held up to `limit_bytes`; a
    larger set goes through in pieces, each of them through all alphas. With `memory`, tasks that
    an interrupted call finished are not done again.
    """
    device = next(clip.model.parameters()).device
    visual = copy.deepcopy(clip.visual).to(device)
    all_tasks = [*validation, *supported]
    names = _unique_names(all_tasks)
    values = memory.read() if memory is not None else {}
    left = [number for number, name in enumerate(names) if name not in values]
    total = sum(len(all_tasks[number].samples) for number in left) * len(alphas)
    with Progress(f"sweep over {len(alphas)} alphas", total=total, unit="sample") as progress:
        for number in left:
            task = all_tasks[number]
            features: dict[float, list[Tensor]] = {alpha: [] for alpha in alphas}
            for piece in _ready_pieces(task, clip.input_spec, batch_size, limit_bytes):
                for alpha in alphas:
                    visual.load_state_dict(make(alpha))
                    for batch in piece:
                        features[alpha].append(_forward(visual, batch.to(device)))
                        progress.advance(len(batch))
            values[names[number]] = {
                str(alpha): _primary(torch.cat(rows), task, clip)
                for alpha, rows in features.items()
            }
            if memory is not None:
                memory.write(values)
    split = len(validation)
    return tuple(
        SweepPoint(
            alpha=alpha,
            patching={name: values[name][str(alpha)] for name in names[:split]},
            supported={name: values[name][str(alpha)] for name in names[split:]},
        )
        for alpha in alphas
    )


def _unique_names(tasks: Sequence[PatchingTask]) -> list[str]:
    names: list[str] = []
    for task in tasks:
        name = f"{task.samples.name}/{task.samples.split}"
        names.append(name if name not in names else f"{name}#{len(names)}")
    return names


def _ready_pieces(
    task: PatchingTask, spec: InputSpec, batch_size: int, limit_bytes: int
) -> Iterator[list[Tensor]]:
    """The samples of a task as batches ready for the tower, in pieces of at most `limit_bytes`."""
    layout = optical_layout(task.samples)

    def read(start: int) -> Tensor:
        stop = min(start + batch_size, len(task.samples))
        raw = task.samples.read(np.arange(start, stop, dtype=np.int64))[layout.sensor.name]
        return make_ready(resize(scale_composite(torch.from_numpy(raw), layout), spec), spec)

    piece: list[Tensor] = []
    num_bytes = 0
    for batch in read_ahead(read, range(0, len(task.samples), batch_size)):
        size = batch.numel() * batch.element_size()
        if piece and num_bytes + size > limit_bytes:
            yield piece
            piece, num_bytes = [], 0
        piece.append(batch)
        num_bytes += size
    if piece:
        yield piece


def _forward(visual: nn.Module, batch: Tensor) -> Tensor:
    visual.eval()
    with torch.inference_mode():
        features: Tensor = visual(batch)
    return features.float().cpu()


def primary_metric(task: PatchingTask) -> str:
    """The figure a task is judged by: top1, or macro_map where it is multi-label."""
    return "macro_map" if require_labels(task.samples).multi_label else "top1"


def _primary(embedded: Tensor, task: PatchingTask, clip: ClipModel) -> float:
    labels = require_labels(task.samples)
    result = score_classes(embedded, task.weights(clip), labels, num_bootstrap=1)
    return result.value(primary_metric(task))


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
        point
        for point in points
        if all(
            before[name] - value <= max_supported_drop + 1e-9
            for name, value in point.supported.items()
        )
    ] or [zero]
    best = max(allowed, key=lambda point: (point.mean_patching, -abs(point.alpha)))
    bound = f"{100 * max_supported_drop:g} points"
    if allowed == [zero] and len(points) > 1:
        curve = "; ".join(
            f"alpha {point.alpha:g}: {_percent(point.patching)}, {_percent(point.supported)}"
            for point in points
        )
        return Choice(
            alpha=0.0,
            reason=f"only alpha 0 keeps every supported task within {bound}. The curve: {curve}",
        )
    drops = {name: before[name] - best.supported[name] for name in best.supported}
    worst = max(drops, key=lambda name: drops[name]) if drops else None
    said = (
        f"; the largest drop of a supported task is {100 * drops[worst]:.2f} points ({worst})"
        if worst
        else "; no supported task was given"
    )
    return Choice(
        alpha=best.alpha,
        reason=f"alpha {best.alpha:g} has the best mean over patching tasks "
        f"({100 * best.mean_patching:.2f} %, at alpha 0 {100 * zero.mean_patching:.2f} %) within "
        f"{bound}{said}",
    )


def _percent(values: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {100 * value:.2f} %" for name, value in values.items())
