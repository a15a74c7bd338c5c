"""The image files below a folder, and what is skipped there: named in one warning."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from pathlib import Path

from terralign.errors import DataError, shown
from terralign.scenes.pictures import PICTURE_SUFFIXES

logger = logging.getLogger(__name__)

RASTER_SUFFIXES = (".tif", ".tiff")
"""Endings of the files of all other sensors, in any case."""

MAX_ENDINGS = 5
"""Endings that a warning names, the most frequent first."""

MAX_DEPTH = 100
"""Folders within folders below which no images are looked for."""

_ACCOMPANYING = frozenset(
    {
        *(".txt", ".md", ".rst", ".csv", ".tsv", ".json", ".geojson", ".toml", ".yaml", ".yml"),
        *(".xml", ".aux", ".msk", ".ovr", ".tfw", ".jgw", ".pgw", ".wld", ".prj"),
        *(".md5", ".sha256"),
    }
)
"""Endings of files that accompany images: lists, metadata, masks and overviews of a raster."""

_NAMES = re.compile(r"(thumbs\.db|desktop\.ini|readme|licen[cs]e|copying|notice)\b", re.IGNORECASE)

_warned: set[tuple[Path, str]] = set()


class LeftOut:
    """Files that were skipped while the folder `root` was listed.

    Hidden files, and those that belong to a layout or to a system, are not noted.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self._endings: Counter[str] = Counter()
        self.example = ""

    def add(self, path: Path) -> None:
        """Note a file that is no sample."""
        ending = path.suffix.lower()
        if path.name[0] == "." or ending in _ACCOMPANYING or _NAMES.match(path.name):
            return
        self._endings[ending or "without ending"] += 1
        if not self.example:
            self.example = path.relative_to(self.root).as_posix()

    def __len__(self) -> int:
        return self._endings.total()

    def __str__(self) -> str:
        """ "8 files (.webp 4, .npy 4), such as Forest/1.npy"."""
        number = len(self)
        counts = self._endings.most_common(MAX_ENDINGS)
        endings = ", ".join(f"{ending} {count:,}" for ending, count in counts)
        more = ", ..." if len(self._endings) > MAX_ENDINGS else ""
        return f"{number:,} file{'s' * (number != 1)} ({endings}{more}), such as {self.example}"

    def warn(self, name: str, place: str, suffixes: tuple[str, ...]) -> None:
        """Name once in a process what the data set `name` leaves out; `place`: where its samples
        lie, `suffixes`: their endings."""
        if self and is_new(self.root, str(self)):
            logger.warning(
                "data set %r: left out: %s. Read from %s are files %s %s; convert the others or "
                "move them",
                name, self, self.root, ", ".join(suffixes), place,
            )  # fmt: skip


def is_new(place: Path, text: str) -> bool:
    """Whether a warning about a file or folder is the first of its text in this process."""
    key = (place, text)
    if key in _warned:
        return False
    _warned.add(key)
    return True


def list_images(
    folder: Path,
    suffixes: tuple[str, ...] = PICTURE_SUFFIXES,
    left_out: LeftOut | None = None,
) -> list[Path]:
    """The image files below `folder`, at any depth, sorted by their paths.

    Hidden files and folders are skipped; links are followed. `left_out` takes what is no image.
    Raises `DataError` for a folder that cannot be listed, a link that leads nowhere, and one to a
    folder that holds it.
    """
    found: list[Path] = []
    _list(folder, suffixes, left_out, found, (folder.resolve(),))
    return sorted(found)


def _list(
    folder: Path,
    suffixes: tuple[str, ...],
    left_out: LeftOut | None,
    found: list[Path],
    above: tuple[Path, ...],
) -> None:
    """`above`: the folder and those that hold it, without links."""
    try:
        with os.scandir(folder) as entries:
            listed = [(entry, entry.is_dir()) for entry in entries if entry.name[0] != "."]
    except OSError as error:
        raise DataError(f"cannot list {shown(folder)}: {error.strerror}") from error
    for entry, is_folder in listed:
        path = folder / entry.name
        if is_folder:
            if len(above) > MAX_DEPTH:
                raise DataError(
                    f"{shown(path)[:300]} lies in more than {MAX_DEPTH} folders; move it"
                )
            real = path.resolve() if entry.is_symlink() else above[-1] / entry.name
            if real in above:
                raise DataError(f"{path} is a link to a folder that holds it; remove the link")
            _list(path, suffixes, left_out, found, (*above, real))
        elif path.suffix.lower() not in suffixes:
            if left_out is not None:
                left_out.add(path)
        elif entry.is_symlink() and not path.exists():
            raise DataError(f"{path} is a link to {os.readlink(path)}, which is missing; remove it")
        elif not entry.is_file():
            raise DataError(f"{path} is neither a file nor a folder; remove it")
        elif not _is_utf8(entry.name):
            raise DataError(f"the name of {shown(path)} is not UTF-8; rename the file")
        else:
            found.append(path)


def _is_utf8(name: str) -> bool:
    """Whether a name can be written to a file; the system keeps other bytes as lone surrogates."""
    return not any("\ud800" <= one <= "\udfff" for one in name)
