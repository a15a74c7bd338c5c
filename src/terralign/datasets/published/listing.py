"""What lies in the folders of a large archive, by name: no file is opened or asked for its size."""

from __future__ import annotations

import os
from collections.abc import Collection, Iterable
from pathlib import Path
from typing import Literal

from terralign.errors import DataError


def list_names(folder: Path, kind: Literal["files", "folders"]) -> list[str]:
    """Names of the files or of the folders in a folder, unsorted; none where it is not there."""
    try:
        with os.scandir(folder) as entries:
            if kind == "files":
                return [entry.name for entry in entries if entry.is_file()]
            return [entry.name for entry in entries if entry.is_dir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    except OSError as error:
        raise DataError(f"cannot list {folder}: {error.strerror}") from error


def require_all(
    wanted: Iterable[str], there: Collection[str], *, said: str, what: str, todo: str
) -> None:
    """Raise `DataError` where some of `wanted` are not there: how many, the first, what to do.

    `said`: who wants them ("val.csv names"); `what`: what they are; `todo`: the remedy.
    """
    names = list(wanted)
    missing = [name for name in names if name not in there]
    if missing:
        raise DataError(
            f"{said} {len(names):,} {what}, of which {len(missing):,} are not there, "
            f"{missing[0]} first; {todo}"
        )
