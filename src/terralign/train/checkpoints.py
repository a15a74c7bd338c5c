"""What a stage keeps in its folder while it trains: checkpoints and `metrics.jsonl`."""

from __future__ import annotations

import json
import logging
import os
import time
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import IO, Any

import torch
from torch import Tensor, nn

from terralign import ranks
from terralign.encoders.clip.pickles import read_pickled
from terralign.errors import (
    ModelError,
    RecipeError,
    StorageError,
    TrainingError,
    counted,
    first_line,
)
from terralign.files import atomic_path, write_text
from terralign.limits import limit, require

logger = logging.getLogger(__name__)

_MOST_THREADS = 4096
"""More than any machine has."""


class Checkpoints:
    """The checkpoints of one stage in one folder: `last.pt` and `best.pt`, written and renamed.

    They are written by a background thread, one at a time, from a copy of what they hold.
    """

    def __init__(self, folder: Path, *, identity: str) -> None:
        self.folder = folder
        self.identity = identity
        self._last_time = time.monotonic()
        self._cost = 0.0
        self._writer = ThreadPoolExecutor(1, thread_name_prefix="checkpoint")
        self._writing: Future[None] | None = None

    @property
    def last(self) -> Path:
        return self.folder / "last.pt"

    @property
    def best(self) -> Path:
        return self.folder / "best.pt"

    def due(self) -> bool:
        """True every 15 seconds, less often where writing takes more than a twentieth of that."""
        return time.monotonic() - self._last_time >= max(15.0, 20 * self._cost)

    def write(self, path: Path, values: dict[str, Any]) -> None:
        """Begin to write a checkpoint; raises what went wrong with the one before."""
        self.finish()
        self._writing = self._writer.submit(self._write, path, _copied(values))
        self._last_time = time.monotonic()

    def _write(self, path: Path, values: dict[str, Any]) -> None:
        start = time.monotonic()
        with atomic_path(path) as partial:
            torch.save({"identity": self.identity, **values}, partial)
        self._cost = time.monotonic() - start

    def finish(self) -> None:
        """Wait until everything is written; raises what went wrong."""
        writing, self._writing = self._writing, None
        if writing is not None:
            writing.result()

    def close(self) -> None:
        """`finish`, and end the thread."""
        try:
            self.finish()
        finally:
            self._writer.shutdown()

    def read(self, path: Path) -> dict[str, Any] | None:
        """The checkpoint, None without one; another stage's is refused."""
        self.finish()
        if not path.is_file():
            return None
        try:
            values = dict(read_pickled(path))
            given = values["identity"]
            if not isinstance(given, str):
                raise TypeError("its identity is no text")
        except (ModelError, LookupError, TypeError, ValueError) as error:
            raise _damaged(path, error) from error
        if given != self.identity:
            raise RecipeError(
                f"checkpoint {path} is of other settings or data; "
                "choose another output folder or delete it"
            )
        return values


def _damaged(path: Path, error: Exception) -> StorageError:
    return StorageError(
        f"checkpoint {path} is damaged ({first_line(error)}); delete it to start this stage again"
    )


def _copied(value: Any) -> Any:
    """A value with copies of its tensors, on the CPU."""
    if isinstance(value, Tensor):
        return value.detach().to("cpu", copy=True)
    if isinstance(value, Mapping):
        return {key: _copied(one) for key, one in value.items()}
    if isinstance(value, list):
        return [_copied(one) for one in value]
    return value


def training_state(
    step: int, best: float | None, module: nn.Module, optimizer: torch.optim.Optimizer
) -> dict[str, Any]:
    """Everything that the next step depends on."""
    state: dict[str, Any] = {
        "step": step,
        "best": best,
        **({"ranks": ranks.world_size()} if ranks.world_size() > 1 else {}),
        "threads": torch.get_num_threads(),
        "model": module.state_dict(),
        "optimizer": optimizer.state_dict(),
        "rng": torch.get_rng_state(),
    }
    device = next(module.parameters()).device
    if device.type == "cuda":
        state["cuda_rng"] = torch.cuda.get_rng_state(device)
    return state


def restore(
    checkpoints: Checkpoints, module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float | None]:
    """Resume from the last checkpoint: (steps done, best validation value); (0, None) without."""
    state = checkpoints.read(checkpoints.last)
    if state is None:
        return 0, None
    try:
        step, best = _resume(state, module, optimizer)
    except torch.OutOfMemoryError as error:
        raise TrainingError(
            f"the device has too little memory to resume ({first_line(error)}); free some, or set "
            "accumulate or gradient_checkpointing"
        ) from error
    except _OF_OTHER_FORM as error:
        raise _damaged(checkpoints.last, error) from error
    logger.info("resuming after step %d (%s)", step, checkpoints.last)
    return step, best


def restore_best(checkpoints: Checkpoints, module: nn.Module) -> None:
    """The weights of the best step so far, where any was kept."""
    state = checkpoints.read(checkpoints.best)
    if state is None:
        return
    try:
        module.load_state_dict(state["model"])
    except _OF_OTHER_FORM as error:
        raise _damaged(checkpoints.best, error) from error


_OF_OTHER_FORM = (LookupError, TypeError, ValueError, AttributeError, RuntimeError)
"""What a checkpoint whose values are not those that were written raises."""


def _resume(
    state: dict[str, Any], module: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[int, float | None]:
    if not 0 < state["threads"] <= _MOST_THREADS:
        raise ValueError("an impossible number of threads")
    num_ranks = state.get("ranks", 1)
    if num_ranks != ranks.world_size():
        logger.info(
            "resuming with %s, not %s: the same data in the same order; the last bits may differ",
            counted(ranks.world_size(), "rank"), num_ranks,
        )  # fmt: skip
    elif state["threads"] != torch.get_num_threads():
        logger.warning(
            "resuming with as many threads as before: %d, not %d", state["threads"],
            torch.get_num_threads(),
        )  # fmt: skip
        torch.set_num_threads(state["threads"])
    module.load_state_dict(state["model"])
    fused = [group.get("fused") for group in optimizer.param_groups]
    optimizer.load_state_dict(state["optimizer"])
    for group, own in zip(optimizer.param_groups, fused, strict=True):
        group["fused"] = own  # that of this device, which may be another one now
    for value, kept in optimizer.state.items():
        for name, one in kept.items():
            if isinstance(one, Tensor) and one.shape == value.shape:
                kept[name] = torch.empty_like(value).copy_(one)  # in the layout of the weights
    torch.set_rng_state(state["rng"])
    device = next(module.parameters()).device
    if "cuda_rng" in state and device.type == "cuda":
        torch.cuda.set_rng_state(state["cuda_rng"], device)
    return int(state["step"]), state["best"]


class MetricsLog:
    """`metrics.jsonl`, one object per line; lines after the checkpoint resumed from are dropped.

    `path` None: nothing is kept, as by all ranks but the first.
    """

    def __init__(self, path: Path | None, *, keep_steps: int, tensorboard: bool = False) -> None:
        self._writer: Any = None
        self._file: IO[str] | None = None
        if path is None:
            return
        lines = _lines(path) if path.is_file() else []
        kept = [line for line, row in lines if row is not None and row["step"] <= keep_steps]
        write_text(path, "".join(f"{line}\n" for line in kept))
        if tensorboard:
            try:
                from torch.utils.tensorboard import SummaryWriter
            except ImportError as error:
                raise RecipeError(
                    "tensorboard = true needs TensorBoard: pip install 'terralign[tensorboard]'"
                ) from error
            self._writer = SummaryWriter(os.fspath(path.parent), purge_step=keep_steps + 1)
        self._file = open(path, "a", encoding="utf-8", buffering=1)  # noqa: SIM115

    def write(self, step: int, figures: dict[str, float], *, source: str = "") -> None:
        """Add a line. `source`: the data set that the step's batch is of, where several are."""
        if self._file is None:
            return
        rounded = {key: float(f"{value:.6g}") for key, value in figures.items()}
        of_source = {"source": source} if source else {}
        self._file.write(json.dumps({"step": step, **of_source, **rounded}) + "\n")
        if self._writer is not None:
            for key, value in figures.items():
                self._writer.add_scalar(key, value, step)

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
        if self._writer is not None:
            self._writer.close()


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """The lines of a `metrics.jsonl`; damaged ones, as of a power cut, are skipped with a warning.

    `StorageError` for a file that cannot be read, or that is too large.
    """
    lines = _lines(path)
    rows = [row for _, row in lines if row is not None]
    if len(rows) < len(lines):
        logger.warning("%s: %s damaged; skipped", path, counted(len(lines) - len(rows), "line"))
    return rows


def read_losses(path: Path) -> list[float]:
    """The loss of every step in a `metrics.jsonl`, in order; of no file, none."""
    if not path.is_file():
        return []
    return [float(row["loss"]) for row in read_metrics(path) if "loss" in row]


def _lines(path: Path) -> list[tuple[str, dict[str, Any] | None]]:
    """Each line with its values, None where it is damaged."""
    most = limit("json_bytes")
    try:
        with open(path, "rb") as file:
            data = file.read(most + 1)
    except OSError as error:
        raise StorageError(f"cannot read {path}: {error.strerror}") from error
    require("json_bytes", len(data), f"{path} has", fault=StorageError, todo="delete it")
    text = data.decode(errors="replace")
    return [(line, _row_of(line)) for line in text.split("\n") if line]


def _row_of(line: str) -> dict[str, Any] | None:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError):
        return None
    if not isinstance(row, dict) or not all(
        isinstance(one, int | float | str) for one in row.values()
    ):
        return None
    texts = [key for key, one in row.items() if isinstance(one, str)]
    is_step = isinstance(row.get("step"), int) and 0 <= row["step"] < 2**62
    return row if is_step and texts in ([], ["source"]) else None
