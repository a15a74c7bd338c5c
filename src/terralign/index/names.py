"""How the files of a folder of parts are named."""

from __future__ import annotations

import os
import re
from pathlib import Path
from typing import TYPE_CHECKING

from terralign.errors import DataError, shown
from terralign.limits import require

if TYPE_CHECKING:
    from terralign.index.parts import PartFacts

SUFFIX = ".parquet"

CLAIMS = ".claims"
"""The folder, beside the parts, of the locks on what processes work on."""

_MAX_STEM = 80
"""Characters of a scene's name in a part's."""


def part_name(facts: PartFacts) -> str:
    """SCENE.KEY.IDENTITY.parquet."""
    plain = "".join(one if one.isascii() and (one.isalnum() or one in "-_") else "_" for one in
                    Path(facts.scene).name[:_MAX_STEM])  # fmt: skip
    return f"{plain}.{facts.key}.{facts.identity}{SUFFIX}"


def part_paths(folder: Path) -> list[Path]:
    """The parts of a folder by their names, sorted; `DataError` where there are too many."""
    try:
        with os.scandir(folder) as entries:
            found = [
                Path(one.path)
                for one in entries
                if one.name.endswith(SUFFIX) and not one.name.startswith(".")
            ]
    except FileNotFoundError:
        return []
    except OSError as error:
        raise DataError(f"{shown(folder)} cannot be listed: {error.strerror}") from error
    require("index_parts", len(found), f"{shown(folder)} holds")
    return sorted(found)


_PART = re.compile(r".*\.[0-9a-f]{16}\.[0-9a-f]{16}\.parquet")


def is_part_name(name: str) -> bool:
    """Whether a file is called as `part_name` calls parts."""
    return _PART.fullmatch(name) is not None


def is_folder_of_parts(path: Path) -> bool:
    """Whether a path is a folder of parts, by the name or the footer of its first Parquet file."""
    if not path.is_dir():
        return False
    found = part_paths(path)
    if not found or any(is_part_name(one.name) for one in found):
        return bool(found)
    from terralign.index.parts import facts_of  # which takes torch

    try:
        facts_of(found[0])
    except DataError:
        return False
    return True
