"""Work done by several ranks, each a fork of the test's process."""

from __future__ import annotations

import os
import pickle
import socket
import tempfile
import traceback
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

from terralign import ranks
from terralign.errors import RankLostError


def in_ranks(size: int, work: Callable[[], Any]) -> list[Any]:
    """What `work` returns, or the exception that it raises, at each of `size` ranks.

    `RankLostError` too of one that was ended because another one had failed.
    """
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        port = one.getsockname()[1]
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder, str(rank)) for rank in range(size)]
        children = [_start(rank, size, port, work, path) for rank, path in enumerate(paths)]
        for child in children:
            os.waitpid(child, 0)
        return [
            pickle.loads(path.read_bytes()) if path.exists() else RankLostError("ended")  # noqa: S301
            for path in paths
        ]


def _start(rank: int, size: int, port: int, work: Callable[[], Any], path: Path) -> int:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of a fork beside threads
        child = os.fork()
    if child:
        return child
    place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "MASTER_PORT": port}
    os.environ.update({name: str(value) for name, value in place.items()}, MASTER_ADDR="127.0.0.1")
    try:
        try:
            with ranks.joined("cpu"):
                found = work()
        except Exception as error:
            found = error
        path.write_bytes(pickle.dumps(found))
    except BaseException:
        traceback.print_exc()
    finally:
        os._exit(0)
