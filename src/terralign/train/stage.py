"""Done, resumed or made: the one protocol by which finished work is kept.

A stage is a note, a JSON file that is written last, and the files that it vouches for. The note
holds the hash of all that they depend on. Running a stage reads what is complete and makes what is
not; work that was interrupted resumes from what it keeps in the folder itself. With a cache,
folders that hold the same stage compute it once.
"""

from __future__ import annotations

import dataclasses
import logging
import os
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

from pydantic import BaseModel, ValidationError

from terralign import ranks
from terralign.errors import RecipeError, StorageError
from terralign.files import (
    atomic_path,
    claimed,
    hash_json,
    read_json,
    read_kept_json,
    set_aside,
    write_json,
)
from terralign.toml_values import explain

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """A piece of work in a folder.

    `what` names it in messages ("a tower"). `depends`: all that its result depends on, as JSON.
    `note`: the path of the note. `files`: the result, as paths of files or folders relative to the
    note's folder; `form`: what the note holds beside its identity; `logs`: what goes with the files
    where it exists. `cache`: a folder that several runs share, which holds each stage under its
    identity.
    """

    what: str
    depends: Mapping[str, Any]
    note: Path
    files: tuple[str, ...] = ()
    form: type[BaseModel] | None = None
    logs: tuple[str, ...] = ()
    cache: Path | None = None

    @classmethod
    def named_by_identity(
        cls,
        what: str,
        depends: Mapping[str, Any],
        folder: Path,
        *,
        prefix: str = "",
        suffixes: tuple[str, ...] = (),
        form: type[BaseModel] | None = None,
        cache: Path | None = None,
    ) -> Self:
        """The note `<prefix><identity>.json`, and files of the same name with other suffixes: such
        stages share a folder, and none is ever of other data."""
        name = f"{prefix}{hash_json(depends)}"
        files = tuple(f"{name}{suffix}" for suffix in suffixes)
        note = folder / f"{name}.json"
        return cls(what=what, depends=depends, note=note, files=files, form=form, cache=cache)

    @property
    def identity(self) -> str:
        """The hash of all that the result depends on."""
        return hash_json(self.depends)

    @property
    def shared(self) -> Path | None:
        """Its folder in the cache; None without one."""
        return None if self.cache is None else self.cache / self.identity

    def read(self) -> dict[str, Any] | None:
        """The note of a complete stage, else None; `RecipeError` for one of another identity,
        `StorageError` for a damaged note."""
        folder = self.note.parent
        if not (self.note.is_file() and all((folder / one).exists() for one in self.files)):
            return None
        note = read_kept_json(self.note, todo="delete it to make it again")
        if not isinstance(note, dict) or not isinstance(note.get("identity"), str):
            raise StorageError(
                f"{self.note} is damaged: it does not name what {self.what} was made of; delete it "
                "to make it again"
            )
        if note["identity"] != self.identity:
            raise RecipeError(
                f"{folder} holds {self.what} of other settings, data or weights; choose another "
                "folder"
            )
        if self.form is not None:
            try:
                self.form.model_validate(note)
            except ValidationError as error:
                fault = explain(error, self.form)
                raise StorageError(
                    f"{self.note} is damaged: {fault}; delete it to make it again"
                ) from error
        return note


def run_stage(
    stage: Stage,
    make: Callable[[], Mapping[str, Any]],
    *,
    renew: bool = False,
    together: bool = False,
) -> dict[str, Any]:
    """The note of a stage: read where it is complete, linked from the cache, or made.

    `make` leaves the files, resuming where it was interrupted, and returns what the note holds
    beside `identity`. `renew`: a damaged note is set aside and made again instead of refused.

    Of several ranks the first does all this and the others wait for it; `together`: all call
    `make`, in which the first writes the files.
    """
    if not together:
        return ranks.by_first(lambda: _run_stage(stage, make, renew=renew))
    if ranks.is_first():

        def begin() -> Mapping[str, Any]:
            ranks.post(None)
            return make()

        note = _run_stage(stage, begin, renew=renew)
        ranks.post(note)
        return note
    while (told := ranks.awaited()) is None:
        make()
    return dict(told)


def _run_stage(
    stage: Stage, make: Callable[[], Mapping[str, Any]], *, renew: bool
) -> dict[str, Any]:
    shared = stage.shared
    try:
        note = stage.read()
    except StorageError as error:
        if not renew:
            raise
        set_aside(stage.note, error)
        note = None
    if note is None and shared is not None and _is_cached(stage, shared):
        note = _take(stage, shared)
    if note is None and shared is not None:
        with claimed(shared, wait=True):  # what another run makes now is not made twice
            if _is_cached(stage, shared):
                note = _take(stage, shared)
            if note is None:
                note = _make(stage, make)
            _link_all(stage, stage.note.parent, shared)
    elif note is None:
        note = _make(stage, make)
    elif shared is not None and not (shared / stage.note.name).exists():
        with claimed(shared, wait=True):
            _link_all(stage, stage.note.parent, shared)
    return dict(note)


def _make(stage: Stage, make: Callable[[], Mapping[str, Any]]) -> dict[str, Any]:
    write_json(stage.note, {"identity": stage.identity, **make()})
    note: dict[str, Any] = read_json(stage.note)
    return note


def _take(stage: Stage, shared: Path) -> dict[str, Any] | None:
    _link_all(stage, shared, stage.note.parent, replace=True)  # what is left of another stage
    return stage.read()


def _is_cached(stage: Stage, shared: Path) -> bool:
    """Whether the cache holds the stage; a damaged copy is left alone, with a warning."""
    try:
        return dataclasses.replace(stage, note=shared / stage.note.name).read() is not None
    except (RecipeError, StorageError) as error:
        logger.warning("not used from the cache: %s", error)
        return False


def _link_all(stage: Stage, source: Path, target: Path, *, replace: bool = False) -> None:
    """Link a complete stage into another folder, its note last; `replace`: over what exists."""
    if (source / stage.note.name).is_file():
        for name in (*stage.logs, *stage.files, stage.note.name):
            for path in _files(source / name):
                place = target / path.relative_to(source)
                if replace:
                    place.unlink(missing_ok=True)
                _link(path, place)


def _files(path: Path) -> Iterator[Path]:
    yield from sorted(one for one in (path, *path.rglob("*")) if one.is_file())


def _link(source: Path, target: Path) -> None:
    """A hard link where the disk has them, else a copy. Notes and logs, to which a run may write,
    are copied. What exists stays."""
    if target.exists():
        return
    target.parent.mkdir(parents=True, exist_ok=True)
    if source.suffix not in (".json", ".jsonl"):
        with suppress(OSError):  # another disk, or one without hard links
            os.link(source, target)
            return
    with atomic_path(target) as partial:
        shutil.copyfile(source, partial)
