"""The one training loop of both stages: optimiser, schedule, precision, checkpoints, exact resume.

A step is a pure function of (weights, optimiser state, RNG state, step number): the batches come
from `Batches.prepare(step)`, whose order and augmentation depend on seeds and the step number
alone. So a run that is stopped anywhere and started again computes what an uninterrupted one does,
bit for bit, on the same machine with the same number of threads.
"""

from __future__ import annotations

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from terralign.compute import num_readers
from terralign.datasets.batches import read_ahead
from terralign.errors import Interrupted, RecipeError, TrainingError
from terralign.files import hash_json
from terralign.progress import Progress
from terralign.train.checkpoints import (
    Checkpoints,
    MetricsLog,
    detached,
    restore,
    training_state,
)
from terralign.train.settings import LoopSettings as LoopSettings


class Batches(Protocol):
    """The batches of a stage, by step number."""

    @property
    def steps_per_epoch(self) -> int: ...

    def prepare(self, step: int) -> Prepared:
        """The batch of this step, decoded and augmented; called by a background thread."""
        ...


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """A batch ready for its step: `inputs` is what the loss function takes.

    `source`: what to call the data set it is of, where batches of several alternate.
    """

    keys: Sequence[str]
    inputs: Any
    source: str = ""


class LossFunction(Protocol):
    """The mean loss per sample of part `part` of `num_parts` of a batch, and figures to log."""

    def __call__(
        self, inputs: Any, part: int, num_parts: int
    ) -> tuple[Tensor, dict[str, float], int]: ...


@dataclass(frozen=True, kw_only=True, slots=True)
class FitResult:
    """`module` holds the weights to go on with; `best` is the validation value, if any."""

    num_steps: int
    resumed_at: int
    best: float | None


@contextmanager
def stop_on_signals() -> Iterator[Callable[[], int | None]]:
    """Within the block SIGINT and SIGTERM are remembered; the function says which one came.

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
    module: nn.Module,
    loss_function: LossFunction,
    batches: Batches,
    settings: LoopSettings,
    folder: Path,
    *,
    identity: dict[str, Any],
    seed: int,
    label: str,
    set_mode: Callable[[nn.Module], object] = nn.Module.train,
    validate: Callable[[], float] | None = None,
    tensorboard: bool = False,
) -> FitResult:
    """Train `module` in place, or go on where an earlier call stopped.

    `folder` takes `last.pt`, `best.pt` and `metrics.jsonl`. `identity`: everything that the result
    depends on (settings, data, initial weights); a checkpoint of another one is refused.
    `set_mode` puts the module into training mode (and keeps batch norms frozen, say).
    `validate`: higher is better. Raises `Interrupted` after saving, on SIGINT and SIGTERM, and
    `TrainingError` for a loss that is not finite.
    """
    num_steps = settings.epochs * batches.steps_per_epoch
    _check_settings(settings, num_steps, validate is not None)
    checkpoints = Checkpoints(
        folder,
        identity=hash_json({"seed": seed, "loop": settings.values_of(LoopSettings), **identity}),
    )
    device = next(module.parameters()).device
    optimizer = torch.optim.AdamW(
        parameter_groups(module, settings.weight_decay, settings.decay),
        lr=settings.lr,
        betas=settings.betas,
    )
    torch.manual_seed(seed)
    first, best = restore(checkpoints, module, optimizer)
    validate_every = settings.validate_every or batches.steps_per_epoch

    def save(step: int) -> None:
        checkpoints.write(checkpoints.last, training_state(step, best, module, optimizer))

    set_mode(module)
    with (
        closing(
            MetricsLog(folder / "metrics.jsonl", keep_steps=first, tensorboard=tensorboard)
        ) as log,
        stop_on_signals() as stopped,
        Progress(label, total=num_steps, done=first, samples=settings.batch_size) as progress,
        closing(
            read_ahead(batches.prepare, range(first, num_steps), num_threads=num_readers(device))
        ) as stream,
    ):
        for step in range(first, num_steps):
            asked = time.monotonic()
            prepared = next(stream)
            start = time.monotonic()
            rate = learning_rate(step, num_steps=num_steps, settings=settings)
            figures = _train_step(
                module, loss_function, optimizer, prepared, settings, rate, device=device,
                where=f"{label}: step {step + 1} of {num_steps}", checkpoints=checkpoints,
            )  # fmt: skip
            figures["samples_per_second"] = len(prepared.keys) / (time.monotonic() - start)
            figures["seconds_waiting"] = start - asked
            log.write(step + 1, {"lr": rate, **figures}, source=prepared.source)
            of_source = f" ({prepared.source})" if prepared.source else ""
            progress.advance(note=f"loss {figures['loss']:.4g}{of_source}")
            done = step + 1
            if validate and settings.keep == "best" and done % validate_every == 0:
                value = validate()
                set_mode(module)
                log.write(done, {"validation": value})
                if best is None or value > best:
                    best = value
                    checkpoints.write(checkpoints.best, {"model": detached(module)})
            number = stopped()
            if done == num_steps or number is not None or checkpoints.due():
                save(done)
            if number is not None:
                raise Interrupted(
                    f"{label}: stopped after step {done} of {num_steps} and saved; "
                    "run the same command again to resume",
                    number,
                )
    if settings.keep == "best":
        kept = checkpoints.read(checkpoints.best)
        if kept is not None:
            module.load_state_dict(kept["model"])
    return FitResult(num_steps=num_steps, resumed_at=first, best=best)


def _check_settings(settings: LoopSettings, num_steps: int, has_validation: bool) -> None:
    if settings.decay == "all" and settings.weight_decay == 0:
        raise RecipeError('decay = "all" has no effect with weight_decay = 0; leave it out')
    if settings.warmup_steps >= num_steps:
        raise RecipeError(
            f"warmup_steps = {settings.warmup_steps}, but the run has only {num_steps} steps; "
            "lower it or train longer"
        )
    if settings.keep == "best" and not has_validation:
        raise RecipeError('keep = "best" needs validation data; name some, or keep = "last"')
    if settings.keep == "last" and settings.validate_every is not None:
        raise RecipeError('validate_every has no effect with keep = "last"; leave it out')


def _train_step(
    module: nn.Module,
    loss_function: LossFunction,
    optimizer: torch.optim.Optimizer,
    prepared: Prepared,
    settings: LoopSettings,
    rate: float,
    *,
    device: torch.device,
    where: str,
    checkpoints: Checkpoints,
) -> dict[str, float]:
    for group in optimizer.param_groups:
        group["lr"] = rate
    optimizer.zero_grad(set_to_none=True)
    total = 0.0
    figures: dict[str, float] = {}
    num_parts = min(settings.accumulate, len(prepared.keys))
    for part in range(num_parts):
        with torch.autocast(
            device.type, dtype=torch.bfloat16, enabled=settings.precision == "bf16"
        ):
            loss, parts, count = loss_function(prepared.inputs, part, num_parts)
        share = count / len(prepared.keys)
        (loss * share).backward()  # type: ignore[no-untyped-call]
        total += float(loss.detach()) * share
        for name, value in parts.items():
            figures[name] = figures.get(name, 0.0) + value * share
    trainable = [value for value in module.parameters() if value.requires_grad]
    limit = settings.clip_norm if settings.clip_norm is not None else math.inf
    norm = float(nn.utils.clip_grad_norm_(trainable, limit))
    if not (math.isfinite(total) and math.isfinite(norm)):
        last = checkpoints.last if checkpoints.last.is_file() else "none yet"
        keys = ", ".join(list(prepared.keys)[:8])
        raise TrainingError(
            f"{where}: the loss is {total} and the gradient's norm {norm}; batch: {keys}"
            f"{', ...' if len(prepared.keys) > 8 else ''}; last good checkpoint: {last}. "
            "Lower the learning rate, or look at these samples"
        )
    optimizer.step()
    return {"loss": total, **figures, "gradient_norm": norm}
