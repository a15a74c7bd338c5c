"""Progress of long work: a bar with rate and time left on a terminal, else a line now and then.

Both go to stderr; results go to stdout.
"""

from __future__ import annotations

import logging
import sys
import time
from types import TracebackType
from typing import Any, Self

from tqdm import tqdm

logger = logging.getLogger(__name__)

SECONDS_BETWEEN_LINES = 15.0


class Progress:
    """Counts `total` units of work from `done`; a context manager."""

    def __init__(self, label: str, *, total: int, done: int = 0, unit: str = "step") -> None:
        self.label, self.total, self.count, self.unit = label, total, done, unit
        self._first = done
        self._start = self._last_line = time.monotonic()
        self._bar: Any = None
        if sys.stderr.isatty():
            self._bar = tqdm(total=total, initial=done, desc=label, unit=unit, leave=False)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._bar is not None:
            self._bar.close()

    def advance(self, count: int = 1, note: str = "") -> None:
        """`count` more units are done; `note` is shown beside them (a loss)."""
        self.count += count
        if self._bar is not None:
            self._bar.set_postfix_str(note, refresh=False)
            self._bar.update(count)
            return
        now = time.monotonic()
        if now - self._last_line >= SECONDS_BETWEEN_LINES:
            self._last_line = now
            rate = (self.count - self._first) / (now - self._start)
            left = (self.total - self.count) / rate if rate else 0.0
            units = _plural(self.unit)
            logger.info(
                "%s: %d of %d %s, %.3g %s/s, %d:%02d left%s",
                self.label, self.count, self.total, units, rate, units,
                left // 60, left % 60, f", {note}" if note else "",
            )  # fmt: skip


def _plural(unit: str) -> str:
    """Several of a unit: steps, entries, batches."""
    if unit.endswith("y"):
        return f"{unit[:-1]}ies"
    return f"{unit}es" if unit.endswith(("ch", "s", "x")) else f"{unit}s"
