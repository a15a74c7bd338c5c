"""`python -m terralign` is the command `terralign`."""

import atexit
import os
import signal


def main() -> None:
    """Run the command. Until it works on something, and when it has ended, Ctrl-C ends the process
    at once, without a word: this begins before the imports, which take longest."""
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # not ignored by `nohup`
        signal.signal(signal.SIGINT, lambda number, frame: os._exit(128 + number))
        atexit.register(signal.signal, signal.SIGINT, signal.SIG_IGN)  # runs last
    from terralign.cli import main as command

    command(prog_name="terralign")


if __name__ == "__main__":
    main()
