"""How the command line ends: one line for every fault and every stop, and its exit code.

0; 1 a fault; 2 usage; 75 another process of the same run failed; 130 and 143 stopped by SIGINT and
SIGTERM, ready to be resumed. Of several processes the first reports a stop, and the one that fails
its fault.
"""

from __future__ import annotations

import io
import os
import re
import signal
import sys
import threading
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, NoReturn

import click

from terralign.errors import Interrupted, RankLostError, TerralignError, first_line, printable
from terralign.launch import LOST, Place, place

MAX_SHOWN = 1000
"""Characters of a message."""

_NO_MEMORY = re.compile("failed to map segment|Cannot allocate memory|DefaultCPUAllocator")
"""What the loader of libraries and torch say where memory is exhausted."""

MAX_READ = 10_000
"""Characters of a message that are looked at, from each end."""


class _Terminated(BaseException):
    """SIGTERM came; like KeyboardInterrupt no fault, and nothing catches it on the way."""


@contextmanager
def _stoppable() -> Iterator[None]:
    """Within the block SIGINT and SIGTERM unwind the stack, so that parts of files are cleared
    away; but not through an import, which catches what it likes: there they end the process.

    Training has its own way, which saves first. Outside the main thread nothing is installed.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        if _is_importing(frame):
            if _place().rank == 0:
                os.write(2, f"terralign: {_STOPPED[number]}\n".encode())
            os._exit(128 + number)
        raise KeyboardInterrupt if number == signal.SIGINT else _Terminated

    previous: dict[signal.Signals, Any] = {}
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            if signal.getsignal(number) is not signal.SIG_IGN:
                previous[number] = signal.signal(number, stop)
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


_STOPPED: dict[int, str] = {signal.SIGINT: "interrupted", signal.SIGTERM: "stopped"}

_RESUMED = frozenset(
    {"ablate", "align", "bench", "embed", "fetch", "index", "pack", "patch", "quickstart", "run"}
)
"""Commands that keep what they have done."""


def _is_importing(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


def _place() -> Place:
    """The place of this process among several; alone where its variables name none."""
    try:
        return place()
    except TerralignError:
        return Place()


def _end(code: int) -> NoReturn:
    """Exit. One of several processes does so at once: what torch shares with others that are gone
    may hang or abort where the interpreter takes it down."""
    distributed = sys.modules.get("torch.distributed")
    if distributed is not None and distributed.is_available() and distributed.is_initialized():
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)
    sys.exit(code)


class OneLineFaults(click.Group):
    """Reports every fault in one line and exits with its code; writes UTF-8 wherever it writes."""

    def main(self, *args: Any, **options: Any) -> Any:
        for stream in (sys.stdout, sys.stderr):
            if isinstance(stream, io.TextIOWrapper):  # a name that is no text is shown escaped
                stream.reconfigure(encoding="utf-8", errors="backslashreplace")
        return super().main(*args, **options)

    def invoke(self, context: click.Context) -> Any:
        try:
            with _stoppable():
                return super().invoke(context)
        except Interrupted as stop:
            if _place().rank == 0:
                self._report(context, str(stop))
            _end(128 + stop.signal_number)
        except (_Terminated, KeyboardInterrupt) as stop:
            number = signal.SIGTERM if isinstance(stop, _Terminated) else signal.SIGINT
            if _place().rank == 0:
                resumed = context.invoked_subcommand in _RESUMED
                remedy = "; run the same command again to resume" if resumed else ""
                self._report(context, _STOPPED[number] + remedy)
            _end(128 + number)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (click.exceptions.Exit, click.ClickException, click.Abort) as stop:
            if isinstance(stop, click.UsageError) and "unexpected extra arg" in stop.message:
                quotes = '; put words that belong together in quotes: "a river"'
                raise click.UsageError(stop.message + quotes, stop.ctx) from None
            raise
        except RankLostError as error:
            if context.params.get("debug"):
                traceback.print_exception(error)
            if not error.reported:
                self._report(context, str(error))
            _end(LOST)
        except TerralignError as error:
            fault: Exception = error
            text = str(error)
        except OSError as error:
            where = f" ({error.filename})" if error.filename else ""
            fault = error
            text = f"{error.strerror or error}{where}"
        except Exception as error:
            kind = type(error).__name__
            fault = error
            out_of_memory = isinstance(error, MemoryError) or _NO_MEMORY.search(str(error))
            text = (
                f"memory is exhausted ({first_line(error)}); free some, or raise the limit of the "
                "process (ulimit -v, or its container's)"
                if out_of_memory
                else f"unexpected {kind}: {error}; please report it with the output of --debug"
            )
        if context.params.get("debug"):
            traceback.print_exception(fault)
        here = _place()
        self._report(context, f"rank {here.rank} of {here.size}: {text}" if here.size > 1 else text)
        _end(1)

    def _report(self, context: click.Context, text: str) -> None:
        command = self.commands.get(context.invoked_subcommand or "")
        report(name_options(text, command.params if command else ()))


def report(text: str) -> None:
    """One line on stderr."""
    click.echo(f"terralign: {one_line(text)}", err=True)


def one_line(text: str) -> str:
    """A message as one line that a terminal can show: what is too long is left out of its middle,
    so that what it is about and what to do stay."""
    line = printable(" ".join(text[:MAX_READ].split()))
    if len(line) <= MAX_SHOWN:
        return line
    end = printable(" ".join(text[-MAX_READ:].split()))[-MAX_SHOWN // 2 :]
    return f"{line[: MAX_SHOWN // 2]} ... {end}"


def name_options(text: str, parameters: Iterable[click.Parameter]) -> str:
    """A library's message with the command's options in place of keywords of Python.

    `bands=` becomes `--bands`, `units='physical'` becomes `--units physical`; keywords that are no
    options of the command stay.
    """
    options = {
        name: max(one.opts, key=len)
        for one in parameters
        if isinstance(one, click.Option)
        for name in {str(one.name), max(one.opts, key=len).lstrip("-").replace("-", "_")}
    }

    def translate(match: re.Match[str]) -> str:
        keyword, quoted, plain = match.groups()
        if keyword not in options:
            return match[0]
        value = quoted or plain or ""
        return f"{options[keyword]} {value}" if value else options[keyword]

    named = re.sub(r"(?<![\w.-])([a-z_]+)=(?:'([^']*)'|(-?\w[\w.-]*\w|\w)|(?!=))", translate, text)
    return re.sub(r"(--[\w-]+) \(\1\)", r"\1", named)  # a message that named both
