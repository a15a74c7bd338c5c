"""Weights in few bytes: float16, and token embeddings as int8 with a scale for each row.

A CLIP in this form is several files of weights that hold different tensors, so that two CLIPs with
the same text tower can share the file that holds it. V tokens, W width of the text tower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from terralign.encoders.clip.weights import StateDict, read_shapes, read_state_dict
from terralign.errors import ModelError

_TOKENS = "token_embedding.weight"
_SCALE = ".row_scale"
"""What the name of a row's scales ends with, after the name of the weight."""

_MOST_INT8 = 127


def compact_state(state: Mapping[str, Tensor]) -> StateDict:
    """The weights as they are stored; whole numbers (counters) stay as they are.

    `ModelError` for a weight that is too large for float16.
    """
    compact: StateDict = {}
    for key, value in state.items():
        if key.endswith(_TOKENS):
            compact[key], compact[key + _SCALE] = _as_int8(value.float())
        elif value.is_floating_point():
            compact[key] = value.half()
            if not bool(torch.isfinite(compact[key]).all()):
                raise ModelError(
                    f"{key} holds numbers beyond {torch.finfo(torch.float16).max:g}, which float16 "
                    "cannot store; save the space as it is"
                )
        else:
            compact[key] = value
    return compact


def _as_int8(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Rows (V, W) as int8, and their scales (V,) as bfloat16: few enough bits that the products are
    exact in float32, so that weights which were rounded once are not changed by rounding again."""
    scale = (rows.abs().amax(1) / _MOST_INT8).clamp_min(torch.finfo(torch.bfloat16).tiny)
    scale = scale.to(torch.bfloat16)
    whole = (rows / scale.float()[:, None]).round().clamp(-_MOST_INT8, _MOST_INT8)
    return whole.to(torch.int8), scale


def expand_state(compact: Mapping[str, Tensor], *, what: str) -> StateDict:
    """The weights that a compact state stands for: int8 (V, W) with scales (V,) become float32.

    `ModelError` for scales without their weight, or of another length.
    """
    state = {key: value for key, value in compact.items() if not key.endswith(_SCALE)}
    for name in compact.keys() - state.keys():
        key, scale = name.removesuffix(_SCALE), compact[name]
        rows = state.get(key)
        if rows is None or rows.dtype != torch.int8 or scale.shape != rows.shape[:1]:
            given = "none" if rows is None else f"{rows.dtype} of shape {tuple(rows.shape)}"
            raise ModelError(
                f"{what}: {name} has the shape {tuple(scale.shape)}; expected {key} as torch.int8 "
                f"with as many rows, found {given}"
            )
        state[key] = rows.float() * scale.float()[:, None]
    return state


def compact_shapes(paths: Sequence[Path]) -> dict[str, tuple[int, ...]]:
    """Names and shapes of the weights that files hold together, from their headers alone."""
    shapes: dict[str, tuple[int, ...]] = {}
    for path in paths:
        found = read_shapes(path)
        _check_apart(shapes, found, path)
        shapes |= found
    return {key: shape for key, shape in shapes.items() if not key.endswith(_SCALE)}


def read_compact(paths: Sequence[Path]) -> StateDict:
    """The weights that files hold together, expanded."""
    compact: StateDict = {}
    for path in paths:
        found = read_state_dict(path)
        _check_apart(compact, found, path)
        compact |= found
    return expand_state(compact, what=str(paths[0].parent))


def _check_apart(before: Mapping[str, object], found: Mapping[str, object], path: Path) -> None:
    twice = sorted(before.keys() & found.keys())
    if twice:
        raise ModelError(f"{path} holds {twice[0]}, which another file of the same model holds too")
