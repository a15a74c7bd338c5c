"""How it is noticed that the files of a scene changed: by their names, sizes and times."""

from __future__ import annotations

import os
from pathlib import Path

from terralign.errors import DataError, shown
from terralign.files import hash_json, not_found
from terralign.scenes.scene import Scene
from terralign.scenes.stac import StacItem

_MAX_FILES = 20_000
"""A folder with more files than this is no single scene."""

_BESIDE = (".msk", ".aux.xml", ".ovr")
"""Endings that GDAL adds to the name of a file for those that belong to it."""


def source_name(scene: Path | Scene | StacItem) -> str:
    """The absolute path, the address, or the collection and id of an item, that names a scene in
    parts."""
    if isinstance(scene, StacItem):
        return f"{scene.collection}/{scene.id}"
    path = scene.path if isinstance(scene, Scene) else scene
    return os.path.abspath(path) if os.path.lexists(path) else str(path)


def stamps_of(scene: Path | Scene | StacItem) -> str:
    """A hash of the name, size and time of change of every file of a scene.

    Of an item, of what it states; of a scene that is not on this machine, of what its opening
    found. `DataError` where a path cannot be listed.
    """
    if isinstance(scene, StacItem):
        return scene.stamp()
    path = scene.path if isinstance(scene, Scene) else scene
    try:
        if path.is_dir():
            return hash_json(sorted(_below(path)))
        if path.exists():
            beside = [Path(f"{path}{ending}") for ending in _BESIDE]
            return hash_json([_stamp(one, path.parent) for one in (path, *beside) if one.exists()])
    except OSError as error:
        raise DataError(f"{shown(path)} cannot be read: {error.strerror}") from error
    if isinstance(scene, Scene):
        return hash_json([repr(scene.layout), repr(scene.grid), str(scene.datetime)])
    raise DataError(not_found(path))


def _below(folder: Path) -> list[list[object]]:
    found = []
    for parent, _, names in os.walk(folder):
        found += [_stamp(Path(parent, name), folder) for name in names if name[:1] != "."]
        if len(found) > _MAX_FILES:
            raise DataError(
                f"{shown(folder)} holds more than {_MAX_FILES} files; give the folder of one scene"
            )
    return found


def _stamp(path: Path, root: Path) -> list[object]:
    status = path.stat()
    return [os.path.relpath(path, root), status.st_size, status.st_mtime_ns]
