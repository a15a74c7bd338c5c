"""The one training loop of all stages: optimiser, schedule, precision, checkpoints, exact resume.

A step is a pure function of (weights, optimiser state, RNG state, step number): the batches come
from `Batches`, whose order and augmentation depend on seeds and the step number alone. So a run
that is stopped anywhere and started again computes what an uninterrupted one does: bit for bit on
the CPU of one machine with the same number of threads, and on CUDA with `deterministic`; elsewhere
to the same step and data order.

Several processes (`ranks`) share each batch: its size, the learning rate and the number of steps
are the same however many there are, and so are losses but for rounding. Each resumes to the same
bits with as many processes as before. Batch norms that are trained see the samples of their process
alone; their running statistics are averaged in every step.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import numpy as np
import torch
from torch import Tensor, nn

from terralign import ranks
from terralign.compute import in_precision, products_in
from terralign.errors import Interrupted, RecipeError, StorageError, TrainingError
from terralign.feed import Raw, feed
from terralign.files import hash_json
from terralign.progress import Progress
from terralign.train.checkpoints import (
    Checkpoints,
    MetricsLog,
    restore,
    restore_best,
    training_state,
)
from terralign.train.settings import LoopSettings as LoopSettings
from terralign.train.settings import check_loop

STEPS_BETWEEN_READS = 20
"""Steps after which losses are read from a device other than the CPU; each reading waits for it."""


class Batches(Protocol):
    """The batches of a stage, by step number."""

    @property
    def steps_per_epoch(self) -> int: ...

    def read(self, step: int) -> Raw[Any]:
        """The batch of this step as it is stored; called by background threads."""
        ...

    def make(self, raw: Raw[Any]) -> Batch:
        """It, augmented and ready, from tensors on the device; called by a background thread."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Batch:
    """Samples ready for a step, or a part of them. B samples, C bands, D embedding, K classes.

    `pixels`: (B, C, H, W), for the tower that is trained. `labels`: (B,) int64 or (B, K) bool.
    `targets`: what the tower's embeddings are compared with: embeddings (B, D), pictures of the
    same samples (B, 3, H, W), or tokens of their captions (B, L). `unlabelled`: (U, 3, H, W) other
    pictures. `source`: the number of the data set; `title` names it where batches of several
    alternate. `whole`: the samples of the whole batch where this is a part of it, or a process's
    share. `unlabelled_share`: what a mean over `unlabelled` weighs in the loss of this part, so
    that all parts together give the mean over the whole batch's.
    """

    keys: Sequence[str]
    pixels: Tensor
    labels: Tensor | None = None
    targets: Tensor | None = None
    unlabelled: Tensor | None = None
    source: int = 0
    title: str = ""
    whole: int | None = None
    unlabelled_share: float = 1.0

    def __len__(self) -> int:
        return len(self.keys)

    @property
    def num_whole(self) -> int:
        """The samples of the whole batch."""
        return len(self) if self.whole is None else self.whole

    @property
    def share(self) -> float:
        """What a mean over this part weighs in the mean over the whole batch."""
        return len(self) / self.num_whole

    def split(self, num_parts: int) -> list[Batch]:
        """The batch in parts of nearly equal size, each of samples that follow one another."""

        def rows(part: int, length: int) -> slice:
            size, larger = divmod(length, num_parts)
            start = part * size + min(part, larger)
            return slice(start, start + size + (part < larger))

        return [self._part(partial(rows, part)) for part in range(num_parts)]

    def deal(self, num_parts: int) -> list[Batch]:
        """The batch in parts of every `num_parts`-th sample, as ranks share it."""

        def rows(part: int, length: int) -> slice:
            return slice(part, length, num_parts)

        return [self._part(partial(rows, part)) for part in range(num_parts)]

    def _part(self, rows: Callable[[int], slice]) -> Batch:
        """The samples in `rows` of their number, and the other pictures in `rows` of theirs."""
        keys = self.keys[rows(len(self))]
        values: dict[str, Any] = {
            name: one[rows(len(one))].contiguous() for name, one in self._tensors().items()
        }
        if self.unlabelled is not None:
            others = len(self) * len(values["unlabelled"]) / len(self.unlabelled) / len(keys)
            values["unlabelled_share"] = self.unlabelled_share * others
        return replace(self, keys=keys, whole=self.num_whole, **values)

    def _tensors(self) -> dict[str, Tensor]:
        values = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: one for name, one in values.items() if isinstance(one, Tensor)}


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """The learner holds the weights to use; `best` is the validation value, if any."""

    num_steps: int
    resumed_at: int
    best: float | None


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """Within the block SIGINT and SIGTERM are remembered; the function returns which came, if any.

    A second SIGINT interrupts at once. Outside the main thread nothing is installed.
    """
    received: list[int] = []

    def handle(number: int, frame: FrameType | None) -> None:
        if received and number == signal.SIGINT:
            raise KeyboardInterrupt
        received.append(number)

    installed: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            installed[number] = signal.signal(number, handle)
    try:
        yield lambda: received[0] if received else None
    finally:
        for number, previous in installed.items():
            signal.signal(number, previous)


def learning_rate(step: int, *, num_steps: int, settings: LoopSettings) -> float:
    """The rate of step `step` (0-based): linear warm-up, then a cosine that ends with the run."""
    if step < settings.warmup_steps:
        return settings.lr * (step + 1) / settings.warmup_steps
    done = (step - settings.warmup_steps) / max(1, num_steps - settings.warmup_steps)
    return settings.lr * 0.5 * (1 + math.cos(math.pi * done))


def parameter_groups(
    module: nn.Module, weight_decay: float, decay: Literal["matrices", "all"] = "matrices"
) -> list[dict[str, Any]]:
    """Trainable parameters; with "matrices" norms, biases and other vectors are not decayed.

    Scalars never are: those of a calibration are no part of the tower.
    """
    trainable = [value for value in module.parameters() if value.requires_grad]
    least = 1 if decay == "all" else 2
    return [
        {"params": [p for p in trainable if p.ndim >= least], "weight_decay": weight_decay},
        {"params": [p for p in trainable if p.ndim < least], "weight_decay": 0.0},
    ]


def fit(
    learner: nn.Module,
    batches: Batches,
    settings: LoopSettings,
    folder: Path,
    *,
    identity: dict[str, Any],
    seed: int,
    label: str,
    set_mode: Callable[[nn.Module], object] = nn.Module.train,
    validate: Callable[[], float] | None = None,
    tower: nn.Module | None = None,
    tensorboard: bool = False,
) -> FitResult:
    """Train `learner` in place, or resume where an earlier call stopped.

    Called with a `Batch`, the learner returns the mean loss over its samples, and metrics to log,
    as tensors of one number (reading them would have the device wait).
    Its parameters are trained and kept. `folder` takes `last.pt`, `best.pt` and `metrics.jsonl`.
    `identity`: everything that the result depends on (settings, data, initial weights); a
    checkpoint of another one is refused. `set_mode` puts the learner into training mode (and keeps
    batch norms frozen, say). `validate`: higher is better. `tower`: the part of the learner that is
    compiled, or checkpoints its gradients, where the settings ask for it. Raises `Interrupted`
    after saving, on SIGINT and SIGTERM, and `TrainingError` for a loss that is not finite.

    Called by all ranks, each with its own share of the batches, and `validate`, which returns the
    same at all, by them; the first writes.
    """
    num_steps = settings.epochs * batches.steps_per_epoch
    check_loop(settings, num_steps, validated=validate is not None)
    checkpoints = Checkpoints(
        folder,
        identity=hash_json({"seed": seed, "loop": settings.values_of(LoopSettings), **identity}),
    )
    device = next(learner.parameters()).device
    optimizer = torch.optim.AdamW(
        parameter_groups(learner, settings.weight_decay, settings.decay),
        lr=settings.lr,
        betas=settings.betas,
        fused=device.type == "cuda",
    )
    torch.manual_seed(seed)
    first, best = restore(checkpoints, learner, optimizer)
    if ranks.by_first(lambda: first) != first:
        raise StorageError(f"{checkpoints.last} is not the same file at all ranks; share its disk")
    ranks.take_first([*learner.parameters(), *learner.buffers()])
    validate_every = settings.validate_every or batches.steps_per_epoch

    def save(step: int) -> None:
        if ranks.is_first():
            checkpoints.write(checkpoints.last, training_state(step, best, learner, optimizer))

    set_mode(learner)
    num_parts = _num_parts(learner, settings)
    with (
        _arranged(tower, settings, device),
        closing(checkpoints),
        closing(
            MetricsLog(
                folder / "metrics.jsonl" if ranks.is_first() else None,
                keep_steps=first,
                tensorboard=tensorboard,
            )
        ) as log,
        stop_on_signals() as stopped,
        Progress(label, total=num_steps, done=first, samples=settings.batch_size) as progress,
        closing(feed(batches.read, batches.make, range(first, num_steps), device=device)) as stream,
    ):
        journal = _Journal(log, progress, f"{label}: step {{}} of {num_steps}", checkpoints.last)
        read_every = 1 if device.type == "cpu" else STEPS_BETWEEN_READS
        for step in range(first, num_steps):
            asked = time.monotonic()
            batch = next(stream)
            waited = time.monotonic() - asked
            rate = learning_rate(step, num_steps=num_steps, settings=settings)
            for group in optimizer.param_groups:
                group["lr"] = rate
            optimizer.zero_grad(set_to_none=True)
            if num_parts == 1:
                figures = _backward(learner, batch, settings)
            else:
                figures = _backward_parts(learner, batch, settings, num_parts, seeds=(seed, step))
            figures.append(_clip(learner, settings))
            optimizer.step()
            done = step + 1
            journal.add(_Taken(step=done, batch=batch, rate=rate, waited=waited, figures=figures))
            due = validate and settings.keep == "best" and done % validate_every == 0
            number, outdated = ranks.greatest(stopped() or 0, checkpoints.due())
            saving = done == num_steps or number > 0 or outdated > 0
            if due or saving or len(journal) >= read_every:
                journal.write()
            if validate and due:
                value = validate()
                set_mode(learner)
                log.write(done, {"validation": value})
                if best is None or value > best:
                    best = value
                    if ranks.is_first():
                        checkpoints.write(checkpoints.best, {"model": learner.state_dict()})
            if saving:
                save(done)
            if due or saving:
                journal.restart()
            if number:
                ranks.by_first(checkpoints.finish)  # a launcher ends what is left of a run
                raise Interrupted(
                    f"{label}: stopped after step {done} of {num_steps} and saved; "
                    "run the same command again to resume",
                    number,
                )
    if settings.keep == "best":
        ranks.by_first(checkpoints.finish)  # written, before any rank reads it
        restore_best(checkpoints, learner)
    return FitResult(num_steps=num_steps, resumed_at=first, best=best)


@contextmanager
def _arranged(
    tower: nn.Module | None, settings: LoopSettings, device: torch.device
) -> Iterator[None]:
    """The tower as `compile` and `gradient_checkpointing` ask for it, within the block."""
    backbone = getattr(tower, "backbone", tower)
    set_checkpointing = getattr(backbone, "set_grad_checkpointing", None)
    if settings.gradient_checkpointing and set_checkpointing is None:
        raise RecipeError(
            f"gradient_checkpointing has no effect on {type(backbone).__name__}, which has no such "
            "mode; leave it out"
        )
    if settings.compile and tower is None:
        raise RecipeError("compile has no effect where no tower is trained; leave it out")
    if tower is not None and device.type == "cuda" and max(v.ndim for v in tower.parameters()) < 5:
        tower.to(memory_format=torch.channels_last)
    try:
        if settings.gradient_checkpointing and set_checkpointing is not None:
            set_checkpointing(True)
        if settings.compile and tower is not None:
            tower.compile()
        yield
    finally:
        if settings.gradient_checkpointing and set_checkpointing is not None:
            set_checkpointing(False)
        if settings.compile and tower is not None:
            tower._compiled_call_impl = None


_Figures = list[tuple[str, Tensor, float]]
"""Metrics of a step by name, each with the share of the batch that it is a mean over."""


def _num_parts(learner: nn.Module, settings: LoopSettings) -> int:
    """The parts whose gradients are summed; `RecipeError` where the ranks cannot share them."""
    size = ranks.world_size()
    if settings.shards is None:
        return size
    if settings.shards % size:
        raise RecipeError(
            f"shards = {settings.shards} cannot be shared by {size} processes alike; "
            "choose a multiple of their number"
        )
    if settings.shards > 1 and any(layer.training for layer in _batch_norms(learner)):
        raise RecipeError(
            'shards has no exact sum of batch norms\' statistics; set batch_norm = "frozen", or '
            "leave shards out"
        )
    return settings.shards


def _batch_norms(learner: nn.Module) -> list[nn.Module]:
    """Layers with running statistics."""
    kinds = nn.modules.batchnorm._BatchNorm
    return [one for one in learner.modules() if isinstance(one, kinds) and one.track_running_stats]


def _backward(
    learner: nn.Module, batch: Batch, settings: LoopSettings, *, num_parts: int = 1
) -> _Figures:
    """Add the gradients of a batch, or of one of `num_parts` parts of it; its metrics."""
    figures: _Figures = []
    pieces = -(-settings.accumulate // num_parts)
    for piece in batch.split(min(pieces, len(batch))):
        with products_in(settings.precision):
            with in_precision(settings.precision, piece.pixels.device):
                loss, found = learner(piece)
            (loss * piece.share).backward()
        figures.append(("loss", loss.detach(), piece.share))
        figures += [(name, value.detach(), piece.share) for name, value in found.items()]
    return figures


def _backward_parts(
    learner: nn.Module,
    batch: Batch,
    settings: LoopSettings,
    num_parts: int,
    *,
    seeds: tuple[int, int],
) -> _Figures:
    """The gradients of the whole batch, of which all ranks have `num_parts` parts; its metrics.

    A part draws its random numbers (dropout) by its own number and the step, whoever computes it.
    Gradients, metrics and running statistics are summed as one flat buffer.
    """
    size = ranks.world_size()
    num_own = num_parts // size
    if len(batch) < num_own:
        raise RecipeError(
            f"a batch of {batch.num_whole} samples cannot be split into {num_parts} parts; "
            "lower shards, or take a larger batch_size"
        )
    trainable = [value for value in learner.parameters() if value.requires_grad]
    norms = [layer for layer in _batch_norms(learner) if layer.training]
    statistics = [
        getattr(layer, name) for layer in norms for name in ("running_mean", "running_var")
    ]
    flats: list[Tensor] = []
    for number, part in enumerate(batch.deal(num_own)):
        key = np.random.SeedSequence([*seeds, ranks.rank() + number * size])
        torch.manual_seed(int(key.generate_state(1)[0]))
        metrics = _sums(_backward(learner, part, settings, num_parts=num_parts))
        trained = [value for value in trainable if value.grad is not None]
        gradients = [value.grad for value in trained]
        terms = [*gradients, *metrics.values(), *(one / num_parts for one in statistics)]
        flats.append(torch.cat([one.reshape(-1) for one in terms if one is not None]))
        for value in trained:
            value.grad = None
    sizes = [one.numel() for one in (*trained, *metrics.values(), *statistics)]
    summed = ranks.sum_parts(flats, in_order=settings.shards is not None)
    total = iter(torch.split(summed, sizes))
    for value in trained:
        value.grad = torch.empty_like(value).copy_(next(total).view(value.shape))
    figures = [(name, next(total)[0], 1.0) for name in metrics]
    for one in statistics:
        one.copy_(next(total))
    return figures


def _sums(figures: _Figures) -> dict[str, Tensor]:
    """Each metric summed over the pieces of a part, weighted by their shares of the batch."""
    found: dict[str, Tensor] = {}
    for name, value, share in figures:
        weighted = value.float() * share
        found[name] = found[name] + weighted if name in found else weighted
    return found


def _clip(learner: nn.Module, settings: LoopSettings) -> tuple[str, Tensor, float]:
    """Bound the gradient's norm; the norm, as a metric of the whole batch."""
    trainable = [value for value in learner.parameters() if value.requires_grad]
    limit = settings.clip_norm if settings.clip_norm is not None else math.inf
    return "gradient_norm", nn.utils.clip_grad_norm_(trainable, limit), 1.0


@dataclass(frozen=True, kw_only=True, slots=True)
class _Taken:
    """A step that was taken (from 1), whose metrics are not read yet."""

    step: int
    batch: Batch
    rate: float
    waited: float
    figures: _Figures


class _Journal:
    """Steps whose metrics are still on the device, and where they go once they are read."""

    def __init__(self, log: MetricsLog, progress: Progress, where: str, last: Path) -> None:
        self._log, self._progress, self._where, self._last = log, progress, where, last
        self._taken: list[_Taken] = []
        self.restart()

    def __len__(self) -> int:
        return len(self._taken)

    def add(self, taken: _Taken) -> None:
        """Another step. Its batch's tensors are let go, its keys kept."""
        kept = Batch(
            keys=taken.batch.keys, pixels=_NOTHING, title=taken.batch.title, whole=taken.batch.whole
        )
        self._taken.append(replace(taken, batch=kept))

    def restart(self) -> None:
        """Count time from now on: what was done since the last step is not training."""
        self._since, self._cpu_since = time.monotonic(), time.process_time()

    def write(self) -> None:
        """Read and log all; `TrainingError` for the first step that was not finite."""
        taken, self._taken = self._taken, []
        numbers = iter(_read([value for one in taken for _, value, _ in one.figures]))
        waited = sum(one.waited for one in taken)
        training = max(time.monotonic() - self._since - waited, 1e-9)
        cpu = (time.process_time() - self._cpu_since) / max(len(taken), 1)
        self.restart()
        rate = sum(one.batch.num_whole for one in taken) / training
        for one in taken:
            figures: dict[str, float] = {}
            for name, _, share in one.figures:
                figures[name] = figures.get(name, 0.0) + next(numbers) * share
            self._check(one, figures)
            of_source = f" ({one.batch.title})" if one.batch.title else ""
            values = {
                "lr": one.rate, **figures,
                "samples_per_second": rate, "seconds_waiting": one.waited, "cpu_seconds": cpu,
            }  # fmt: skip
            self._log.write(one.step, values, source=one.batch.title)
            self._progress.advance(note=f"loss {figures['loss']:.4g}{of_source}")

    def _check(self, taken: _Taken, figures: dict[str, float]) -> None:
        loss, norm = figures["loss"], figures["gradient_norm"]
        if math.isfinite(loss) and math.isfinite(norm):
            return
        keys = [key for of_rank in ranks.gather(list(taken.batch.keys)) for key in of_rank]
        raise TrainingError(
            f"{self._where.format(taken.step)}: the loss is {loss} and the gradient's norm {norm}; "
            f"batch: {', '.join(keys[:8])}{', ...' if len(keys) > 8 else ''}; last good "
            f"checkpoint: {self._last if self._last.is_file() else 'none yet'}. "
            "Lower the learning rate, or look at these samples"
        )


_NOTHING = torch.empty(0)


def _read(values: Sequence[Tensor]) -> list[float]:
    """Single numbers, in one transfer from the device where they are not on the CPU."""
    if not values or values[0].device.type == "cpu":
        return [float(value) for value in values]
    numbers: list[float] = torch.stack([value.double() for value in values]).tolist()
    return numbers
