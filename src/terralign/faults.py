"""How the command line ends: one line for every fault and every stop, and its exit code.

0; 1 a fault; 2 usage; 130 and 143 stopped by SIGINT and SIGTERM, ready to go on.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import click

from terralign.errors import Interrupted, TerralignError


class _Terminated(BaseException):
    """SIGTERM came; like KeyboardInterrupt no fault, and nothing catches it on the way."""


@contextmanager
def _terminable() -> Iterator[None]:
    """Within the block SIGTERM unwinds the stack, so that parts of files are cleared away.

    Training has its own way, which saves first. Outside the main thread nothing is installed.
    """

    def stop(number: int, frame: FrameType | None) -> None:
        raise _Terminated

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, previous)


class OneLineFaults(click.Group):
    """Tells every fault in one line and exits with its code."""

    def invoke(self, context: click.Context) -> Any:
        try:
            with _terminable():
                return super().invoke(context)
        except Interrupted as stop:
            _tell(str(stop))
            sys.exit(128 + stop.signal_number)
        except _Terminated:
            _tell("stopped; run the same command again to go on")
            sys.exit(128 + signal.SIGTERM)
        except KeyboardInterrupt:
            _tell("interrupted; run the same command again to go on")
            sys.exit(130)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(1)
        except (click.exceptions.Exit, click.ClickException, click.Abort):
            raise
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
            text = f"unexpected {kind}: {error}; please report it with the output of --debug"
        if context.params.get("debug"):
            traceback.print_exception(fault)
        _tell(text)
        sys.exit(1)


def _tell(text: str) -> None:
    click.echo(f"terralign: {' '.join(text.split())}", err=True)
