"""Spaces in few bytes: `save_compact` needs a third to a half of those of `EmbeddingSpace.save`.

A space and its unpatched base share one folder and the file of their text tower. `space.json`
describes the space, `base.json` the base; `EmbeddingSpace.load` reads the folder as any other.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from terralign.encoders.clip.compact import compact_state, expand_state
from terralign.encoders.clip.load import save_clip_config
from terralign.encoders.clip.weights import StateDict, write_state_dict
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import ModelError, StorageError
from terralign.files import atomic_folder, write_json

_RGB = "visual."
TEXT_FILE = "text.safetensors"


def as_compact(space: EmbeddingSpace) -> EmbeddingSpace:
    """The space with every weight rounded as `save_compact` stores it.

    Its `space_id` differs, since its vectors do; `provenance["compact_of"]` is that of `space`.
    """
    model = copy.deepcopy(space.clip.model)
    model.load_state_dict(_rounded(model.state_dict()))
    clip = replace(space.clip, model=model)
    compact = EmbeddingSpace(
        clip,
        prompts=space.prompts,
        provenance={**space.provenance, "compact_of": space.space_id},
        source=space.source,
    )
    for tower in space.towers.values():
        rounded = copy.deepcopy(tower)
        rounded.load_state_dict(_rounded(rounded.state_dict()))
        rounded.space_id = None
        compact.add(rounded, list(space.sensors.values()))
    return compact


def save_compact(space: EmbeddingSpace, folder: str | Path, *, base: EmbeddingSpace) -> Path:
    """Write a space and its unpatched `base` into a new `folder`: whole, or not at all.

    What is written are the spaces of `as_compact`, with their ids. `StorageError` where the folder
    exists, `ModelError` where the two differ in more than their RGB towers.
    """
    folder = Path(folder)
    if folder.exists():
        raise StorageError(f"{folder} exists; choose another folder")
    space, base = as_compact(space), as_compact(base)
    if space.clip.text_id() != base.clip.text_id() or space.input_spec() != base.input_spec():
        raise ModelError(
            f"{base.source} is not the unpatched base of {space.source}: its text tower or its "
            "input differs"
        )
    with atomic_folder(folder) as partial:
        shared = save_clip_config(space.clip, partial)
        state = space.clip.model.state_dict()
        _write(partial / TEXT_FILE, {k: v for k, v in state.items() if not k.startswith(_RGB)})
        for one, name, rgb in ((space, "space", "rgb"), (base, "base", "base-rgb")):
            _write_one(one, partial, name, shared, f"{rgb}.safetensors")
    return folder


def _write_one(
    space: EmbeddingSpace, folder: Path, name: str, shared: Sequence[str], rgb: str
) -> None:
    state = space.clip.model.state_dict()
    _write(folder / rgb, {key: value for key, value in state.items() if key.startswith(_RGB)})
    towers = [f"towers/{name}.safetensors" for name in space.towers]
    for file, tower in zip(towers, space.towers.values(), strict=True):
        _write(folder / file, tower.state_dict())
    anchor = [TEXT_FILE, rgb]
    described = space.describe(folder, [*shared, *anchor, *towers])
    write_json(folder / f"{name}.json", {**described, "anchor": anchor})


def _rounded(state: StateDict) -> StateDict:
    return expand_state(compact_state(state), what="weights")


def _write(path: Path, state: StateDict) -> None:
    write_state_dict(path, compact_state(state))
