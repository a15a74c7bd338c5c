"""`python -m terralign` is the command `terralign`."""

import atexit
import os
import signal
import sys


def main() -> None:
    """Run the command. Until it works on something, and when it has ended, Ctrl-C ends the process
    at once, without a word: this begins before the imports, which take longest."""
    _open_streams()
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored by `nohup`
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # runs last
    from terralign.cli import main as command

    command(prog_name="terralign")


def _open_streams() -> None:
    """Streams that the caller closed (`2>&-`) lead nowhere: Python has None for them, and the next
    file that is opened would take their number, and what libraries print."""
    for number, name in enumerate(("stdin", "stdout", "stderr")):
        if getattr(sys, name) is None:
            nowhere = os.open(os.devnull, os.O_RDWR)  # of the lowest number that is free
            setattr(sys, name, os.fdopen(nowhere, "w" if number else "r", encoding="utf-8"))


if __name__ == "__main__":
    main()
