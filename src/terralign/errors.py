"""Every fault that terralign reports.

    TerralignError                 one clear line: given, expected, what to do
    ├── SensorError                unknown sensor, unknown or missing band, undeclared offset
    │   ├── UnknownSensorError     a sensor that is not known by this name; a `KeyError` too
    │   └── UnknownOffsetError     a radiometric offset that is stated nowhere
    ├── DataError                  a data set, image or scene that is missing or damaged
    │   ├── SplitError             a split that the data set, or this copy of it, does not have
    │   └── NumbersError           numbers that cannot be what is declared
    ├── ModelError                 a checkpoint, tower or space that cannot be used as asked
    │   └── SpaceMismatchError     vectors of different embedding spaces
    ├── RecipeError                a recipe or setting that is wrong or without effect
    ├── TrainingError              training that cannot continue (a loss that is not finite)
    │   └── RankLostError          another process of the same run has failed
    └── StorageError               the disk: read-only, an existing file that must stay
        └── DiskFullError          a disk or quota that is full

`Interrupted` is no fault: work stopped on request, saved, ready to be resumed.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Sequence


class TerralignError(Exception):
    """Root of all faults; each is reported in one line, and ends the command line with status 1."""


class SensorError(TerralignError):
    """An unknown sensor, an unknown or missing band, or an undeclared radiometric offset."""


class UnknownSensorError(SensorError, KeyError):
    """A sensor that is not known by the name given; a `KeyError` too, as mappings raise."""

    def __str__(self) -> str:
        return str(self.args[0]) if self.args else ""  # not quoted, as a KeyError's is


class UnknownOffsetError(SensorError):
    """A radiometric offset that neither the caller, nor metadata, nor a product name states."""


class DataError(TerralignError):
    """A data set, split, image or scene that is missing, damaged or not as declared."""


class SplitError(DataError):
    """A split that the data set does not have, or that this copy of it lacks."""


class NumbersError(DataError):
    """Numbers that cannot be what is declared of them, by their type, range or offset."""


class ModelError(TerralignError):
    """A checkpoint, tower or embedding space that cannot be used as asked."""


class SpaceMismatchError(ModelError):
    """Vectors or towers of different embedding spaces were brought together."""


class RecipeError(TerralignError):
    """A recipe or a setting that is wrong, or that would have no effect."""


class TrainingError(TerralignError):
    """Training that cannot continue."""


class RankLostError(TrainingError):
    """Another process of the same run has failed. `reported`: it has reported why itself."""

    def __init__(self, message: str, *, reported: bool = False) -> None:
        super().__init__(message)
        self.reported = reported


class StorageError(TerralignError):
    """A disk that is full or read-only, or a file that would be overwritten."""


class DiskFullError(StorageError):
    """A disk or quota that is full, or has less space than is needed."""


class Interrupted(Exception):
    """Work stopped on request (SIGINT, SIGTERM) after its state was saved.

    `signal_number` is the signal that asked for it.
    """

    def __init__(self, message: str, signal_number: int = 2) -> None:
        super().__init__(message)
        self.signal_number = signal_number


def nearest(given: str, known: Iterable[str]) -> str:
    """How an error about an unknown name ends: with the nearest right one, or the few that begin
    with what was given, or have it in them; else with all.

    Of more names, or longer ones, than anyone lists, the nearest is not looked for.
    """
    names = sorted(set(known))
    folded = {name.casefold(): name for name in names}
    plain = given.casefold()
    if plain in folded:
        return _did_you_mean([folded[plain]])
    begun = [name for name in names if name.casefold().startswith(plain)]
    if len(given) >= _MIN_PART and 1 <= len(begun) <= _MAX_MEANT:
        return _did_you_mean(begun)
    if len(given) <= MAX_SHOWN and len(names) <= _MAX_COMPARED:
        short = [name for name in names if len(name) <= MAX_SHOWN]
        close = difflib.get_close_matches(given, short, n=1, cutoff=0.6) or [
            folded[name]
            for name in difflib.get_close_matches(
                given.casefold(), [name.casefold() for name in short], n=1, cutoff=0.6
            )
        ]
        if close:
            return _did_you_mean(close)
    holding = [name for name in names if plain in name.casefold()]
    if len(given) >= _MIN_PART and 1 <= len(holding) <= _MAX_MEANT:
        return _did_you_mean(holding)
    return "known: " + (some(names, num_shown=_MAX_LISTED) if names else "none")


def _did_you_mean(names: Sequence[str]) -> str:
    *others, last = map(quoted, names)
    before = f"{', '.join(others)} or " if others else ""
    return f"did you mean {before}{last}?"


_MIN_PART, _MAX_MEANT = 3, 3
"""The shortest beginning, or part, of names that is looked for, and how many names may have it."""

MAX_SHOWN = 120
"""Characters of a name from a file that an error shows."""

_MAX_COMPARED = 1000
_MAX_LISTED = 60
_MAX_LENGTH = 1000
"""Names among which the nearest is looked for, those that are listed, and the characters of a
list after which it ends."""


def quoted(name: str) -> str:
    """A name from a file, as errors quote it: one printable line, a long one without its middle."""
    return repr(_cut(name))


def some(names: Sequence[str], *, num_shown: int = 5) -> str:
    """The first of some names, as errors list them, and how many more there are."""
    listed: list[str] = []
    for name in names[:num_shown]:
        if sum(map(len, listed)) > _MAX_LENGTH:
            break
        listed.append(printable(_cut(name)))
    more = len(names) - len(listed)
    return ", ".join(listed) + (f" and {more:,} more" if more else "")


def _cut(text: str) -> str:
    """A text without its middle where it is long."""
    half = MAX_SHOWN // 2
    return text if len(text) <= MAX_SHOWN else f"{text[:half]}...{text[-half:]}"


def counted(number: int, unit: str) -> str:
    """A number with its unit: "1 input", "2 inputs"."""
    return f"{number:,} {unit}{'' if number == 1 else 's'}"


def first_line(error: BaseException) -> str:
    """The first line of another library's error, cut to a length fit for one line.

    GDAL's errors that only point to an earlier one give that one's text.
    """
    text = _reason(error).strip() or type(error).__name__
    return printable(text[:1000].splitlines()[0].replace("\t", " "))[:200]


_POINTERS = ("See previous exception for details", "Reprojection failed, err =")
"""What rasterio says where the reason is in the exception that caused its own."""


def _reason(error: BaseException) -> str:
    text = str(error)
    if type(error).__name__ == "ValidationError" and (faults := getattr(error, "errors", None)):
        fault = faults()[0]  # pydantic's text begins with how many there are
        where = "".join(f"{part}: " for part in fault["loc"])
        return where + str(fault["msg"]).removeprefix("Value error, ")
    if not any(pointer in text for pointer in _POINTERS):
        return text
    causes: list[BaseException] = [error]
    while (cause := causes[-1].__cause__ or causes[-1].__context__) and cause not in causes:
        if not type(cause).__module__.startswith("rasterio"):
            break
        causes.append(cause)
    for cause in reversed(causes):
        found = str(cause).strip()
        if found and not any(pointer in found for pointer in _POINTERS):
            return found
    return "a part of it cannot be read; copy it again"


def printable(text: str) -> str:
    """`text` with its control characters, and bytes that are no text, written as escapes."""
    if text.isprintable():
        return text
    return "".join(one if one.isprintable() else ascii(one)[1:-1] for one in text)


def is_blank(text: str) -> bool:
    """Whether a text shows nothing: spaces, control and zero-width characters alone."""
    return not any(one.isprintable() and not one.isspace() for one in text)


def shown(path: object) -> str:
    """A path as one line of printable characters, as errors show those that may hold any.

    One of more than `_MAX_LENGTH` is shown without its middle.
    """
    text = str(path)
    half = _MAX_LENGTH // 2
    return printable(text if len(text) <= 2 * half else f"{text[:half]}...{text[-half:]}")
