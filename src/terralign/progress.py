"""Progress of long work: a bar with rate and time left on a terminal, else a line now and then.

Both go to stderr; results go to stdout. Within a run they name the stage, and how long the
training that is left will take.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0

SLOW = 0.2
"""Below this many units per second, seconds per unit are shown instead."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One stage of a run. `samples`: how many it trains on, over all epochs; None: unknown."""

    name: str
    samples: int | None = 0


class Stages:
    """The stages of a run in their order; `within` sets the current one."""

    def __init__(self, stages: Sequence[Stage]) -> None:
        self.stages = tuple(stages)
        self.index = 0
        self.trained = 0
        """Samples that this stage has trained on so far, those of finished bars."""

    @contextmanager
    def within(self, name: str) -> Iterator[None]:
        """What is done in this block belongs to the stage `name`."""
        self.index = [stage.name for stage in self.stages].index(name)
        self.trained = 0
        logger.info("%s: %s", self.place, name)
        token = _at_work.set(self)
        try:
            yield
        finally:
            _at_work.reset(token)

    @property
    def place(self) -> str:
        """Which stage it is: "stage 3 of 8"."""
        return f"stage {self.index + 1} of {len(self.stages)}"

    def samples_left(self, trained: int) -> int | None:
        """How many samples this stage and those after it still train on; None: unknown.

        `trained`: what this stage has done.
        """
        here, *later = (stage.samples for stage in self.stages[self.index :])
        if here is None or any(one is None for one in later):
            return None
        return max(0, here - trained) + sum(one or 0 for one in later)


_at_work: ContextVar[Stages | None] = ContextVar("stages", default=None)


class Progress:
    """Counts `total` units of work from `done`; a context manager.

    `samples`: how many samples a unit trains on; 0 for work that is not training.
    """

    def __init__(
        self, label: str, *, total: int, done: int = 0, unit: str = "step", samples: int = 0
    ) -> None:
        self.label, self.total, self.count, self.unit = label, total, done, unit
        self._samples, self._stages = samples, _at_work.get()
        self._first = done
        self._start = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty() and logger.isEnabledFor(logging.WARNING):  # but at other ranks
            self._bar = tqdm(total=total, initial=done, desc=self._title(), unit=unit, leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._stages is not None:
            self._stages.trained += self.count * self._samples
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside them (a loss)."""
        self.count += count
        if self._bar is not None:
            in_all = self._time_in_all()
            self._bar.set_postfix_str(", ".join(filter(None, (note, in_all))), refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            per_unit = self._seconds_per_unit()
            parts = [
                f"{self._title()}: {self.count} of {self.total} {_plural(self.unit)}",
                _speed(per_unit, self.unit),
                f"{_clock((self.total - self.count) * per_unit)} left",
                self._time_in_all(),
                note,
            ]
            logger.info("%s", ", ".join(part for part in parts if part))

    def _title(self) -> str:
        return self.label if self._stages is None else f"{self._stages.place}, {self.label}"

    def _seconds_per_unit(self) -> float:
        done = self.count - self._first
        return (time.monotonic() - self._start) / done if done else 0.0

    def _time_in_all(self) -> str:
        """The time that all training takes that is left in the run, as fast per sample as now.

        "" where this is no training, its speed or the work of a later stage is unknown, or where
        it is what is left of this bar.
        """
        per_unit = self._seconds_per_unit()
        if self._stages is None or not self._samples or not per_unit:
            return ""
        left = self._stages.samples_left(self._stages.trained + self.count * self._samples)
        own = (self.total - self.count) * self._samples
        if left is None or left <= own + self._samples:
            return ""
        return f"about {_clock(left * per_unit / self._samples)} until all stages are trained"


@contextmanager
def beside_bars() -> Iterator[None]:
    """Within the block results can be printed: bars are cleared before, and drawn again after."""
    with tqdm.external_write_mode(file=sys.stdout):
        yield


def _speed(seconds_per_unit: float, unit: str) -> str:
    if not seconds_per_unit:
        return ""
    rate = 1 / seconds_per_unit
    return f"{rate:.3g} {_plural(unit)}/s" if rate >= SLOW else f"{seconds_per_unit:.3g} s/{unit}"


def _clock(seconds: float) -> str:
    """`m:ss`, or `h:mm:ss` from an hour on."""
    minutes, rest = divmod(int(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02d}:{rest:02d}" if hours else f"{minutes}:{rest:02d}"


def _plural(unit: str) -> str:
    """Several of a unit: steps, entries, batches."""
    if unit.endswith("y"):
        return f"{unit[:-1]}ies"
    return f"{unit}es" if unit.endswith(("ch", "s", "x")) else f"{unit}s"
