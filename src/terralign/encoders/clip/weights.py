"""Weights on disk and as values: safe reading, hashing, comparing.

Files from strangers are hostile: pickles are read by `pickles` alone, and neither a checkpoint nor
a safetensors file may take more memory than it has bytes.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import math
import os
import re
import weakref
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from terralign.encoders.clip.pickles import read_pickled
from terralign.errors import ModelError, first_line, quoted, some
from terralign.files import HASH_LENGTH, atomic_path
from terralign.limits import require

logger = logging.getLogger(__name__)

StateDict = dict[str, Tensor]


def read_checkpoint(path: Path) -> Any:
    """What a checkpoint file holds, read without ever executing it.

    A safetensors file: the state dict. Anything else: what `torch.save` wrote, by `read_pickled`
    (training arguments in an `argparse.Namespace` are let through, they are plain values). Its
    first bytes tell which, since many files of the one kind have the ending of the other.
    `ModelError` names what is wrong with a missing, truncated or unsafe file.
    """
    path = Path(path)
    if not path.is_file():
        raise ModelError(f"no checkpoint at {path}")
    with open(path, "rb") as file:
        start = file.read(_NUM_FIRST)
    pickled = start.startswith((b"PK", b"\x80")) or path.suffix != ".safetensors"
    if pickled and start[8:9] != b"{":  # where the header of a safetensors file begins
        _refuse_no_weights(path, start)
        return read_pickled(path)
    with _reading_safetensors(path):
        return load_file(path)


_NO_WEIGHTS = (
    (b"version https://git-lfs", "is a pointer of Git LFS, not the file; run `git lfs pull`"),
    (b"<!doctype html", "is a web page, not weights; download the file itself"),
    (b"<html", "is a web page, not weights; download the file itself"),
)  # fmt: skip
"""How files begin that are saved in the place of weights, and what to do."""


_NUM_FIRST = 64
"""Bytes of a file that show of what kind it is."""


def _refuse_no_weights(path: Path, start: bytes) -> None:
    """`ModelError` where the first bytes of a file show that it holds no weights."""
    for beginning, text in _NO_WEIGHTS:
        if start.lstrip().lower().startswith(beginning):
            raise ModelError(f"{path} {text}")


@contextmanager
def _reading_safetensors(path: Path) -> Iterator[None]:
    """`ModelError` where the header is too long, or damaged in one of many ways."""
    try:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            start = os.read(descriptor, _NUM_FIRST)
            num_bytes = os.fstat(descriptor).st_size
        finally:
            os.close(descriptor)
        _refuse_no_weights(path, start)
        length = int.from_bytes(start[:8], "little")
        if length <= num_bytes:
            what = f"{path} has a header of"
            require("safetensors_header_bytes", length, what, fault=ModelError)
        yield
    except ModelError:
        raise
    except Exception as error:  # shapes beyond what torch holds make it raise nearly anything
        raise ModelError(
            f"{path} is not a whole safetensors file ({first_line(error)}); fetch it again"
        ) from error


_WRAPPINGS = ("state_dict", "model_state_dict", "model", "module", "net", "teacher", "student")
"""Under what training programs keep the weights, beside the state of their optimisers."""

_AVERAGED = re.compile(r"(^|_)(ema|swa|averaged?)(_|$)", re.IGNORECASE)
"""Keys of weights that were averaged over training, beside those of its last step."""

_WRAPPERS = (
    "_orig_mod",
    "_fsdp_wrapped_module",
    "_checkpoint_wrapped_module",
    "_forward_module",
)
"""What torch.compile, FSDP, checkpointed blocks and Lightning put into the names of weights,
before any part of a model that they wrap."""

_WRAPPER = re.compile(rf"\b({'|'.join(_WRAPPERS)})\.")


def read_state_dict(path: Path) -> StateDict:
    """The state dict in a checkpoint file, taken out of its usual wrappings.

    Unwraps `state_dict` and the like, and drops what wrappers of training (distributed, compiled)
    put before all names. `fit_names` does the same for prefixes of any name.
    """
    loaded = read_checkpoint(path)
    for _ in range(3):
        if not isinstance(loaded, Mapping):
            break
        found = [key for key in _WRAPPINGS if isinstance(loaded.get(key), Mapping)]
        if not found:
            break
        others = [key for key in loaded if key != found[0] and _AVERAGED.search(str(key))]
        if others:
            logger.warning(
                "%s holds %r and %s; %r is used: save the averaged weights alone to use those",
                path, found[0], ", ".join(quoted(str(one)) for one in others[:5]), found[0],
            )  # fmt: skip
        loaded = loaded[found[0]]
    if not isinstance(loaded, Mapping) or not loaded:
        raise ModelError(f"{path} holds no state dict but {type(loaded).__name__}")
    wrong = [
        key
        for key, value in loaded.items()
        if not isinstance(key, str) or not isinstance(value, Tensor)
    ]
    if wrong:
        inside = [
            quoted(str(key))
            for key, value in loaded.items()
            if isinstance(value, Mapping) and any(isinstance(one, Tensor) for one in value.values())
        ]
        which = f"; tensors lie under {some(inside)}" if inside else ""
        raise ModelError(
            f"{path} is no state dict: {wrong[0]!r:.120} is not a tensor{which}. Save the state "
            "dict alone"
        )
    state = dict(loaded)
    _check_names(state, path)
    names = "\n".join(state)
    wrapped = any(one in names for one in _WRAPPERS)  # most have none
    plain = {key: without_wrappers(key) if wrapped else key for key in state}
    while all(key.startswith("module.") for key in plain.values()):
        plain = {key: name.removeprefix("module.") for key, name in plain.items()}
    return _renamed(state, plain, str(path))


def _check_names(names: Iterable[str], path: Path) -> None:
    """What names are searched for takes time that grows with the square of their length."""
    longest = max(map(len, names), default=0)
    require("weight_name_characters", longest, f"{path} has a name of", fault=ModelError)


def without_wrappers(key: str) -> str:
    """A weight's name without what compiling and sharding put into it."""
    return _WRAPPER.sub("", key)


def _renamed(state: StateDict, names: Mapping[str, str], what: str) -> StateDict:
    """The weights under new names, which the log shows; as they were where two would be one."""
    changed = [(key, name) for key, name in names.items() if key != name]
    if not changed or len(set(names.values())) < len(names):
        return state
    key, name = changed[0]
    logger.info(
        "%s: %d names of weights are changed, such as %s to %s", what, len(changed), key, name
    )
    return {names[key]: value for key, value in state.items()}


def fit_names(state: StateDict, expected: Mapping[str, tuple[int, ...]], *, what: str) -> StateDict:
    """The weights under the names that are expected, where a prefix makes the difference.

    Either one that all names share, or `text.` before those of the text tower, which open_clip has
    with `--force-custom-text` alone. What is changed is logged. Any other state comes back as it
    is, for `check_shapes` to refuse.
    """
    if state.keys() == expected.keys():
        return state
    prefix = shared_prefix(state)
    while True:
        plain = {key: key.removeprefix(prefix) for key in state}
        for change in (str, _without_text, _with_text):
            names = {key: change(name) for key, name in plain.items()}
            if set(names.values()) == expected.keys():
                return _renamed(state, names, what)
        if not prefix:
            return state
        prefix = prefix[: prefix.rstrip(".").rfind(".") + 1]


def _without_text(name: str) -> str:
    return name.removeprefix("text.")


def _with_text(name: str) -> str:
    return name if name.startswith(("visual.", "logit_")) else f"text.{name}"


def fit_scalars(state: StateDict, expected: Mapping[str, tuple[int, ...]]) -> StateDict:
    """The weights with a single number in the shape that is expected: of shape (1,) in files of
    FSDP, and of some programs, where others have ()."""
    return {
        key: value.reshape(expected[key])
        if value.numel() == 1 and math.prod(expected.get(key, (0,))) == 1
        else value
        for key, value in state.items()
    }


def shared_prefix(keys: Iterable[str]) -> str:
    """The longest beginning of all names that ends with a dot; "" without one."""
    names = sorted(keys)
    if not names:
        return ""
    parts = zip(names[0].split(".")[:-1], names[-1].split(".")[:-1], strict=False)
    shared = itertools.takewhile(lambda pair: pair[0] == pair[1], parts)
    return "".join(f"{part}." for part, _ in shared)


def read_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Names and shapes of a safetensors file, from its header alone."""
    with _reading_safetensors(path), safe_open(path, framework="pt") as file:
        keys = file.keys()
        _check_names(keys, path)
        return {key: tuple(file.get_slice(key).get_shape()) for key in keys}


def load_weights(module: nn.Module, state: StateDict, *, what: str, strict: bool = True) -> None:
    """`module.load_state_dict`, after `check_numbers_of` the weights."""
    check_numbers_of(state, module.state_dict(), what=what)
    module.load_state_dict(state, strict=strict)


def check_numbers_of(state: StateDict, own: Mapping[str, Tensor], *, what: str) -> None:
    """Raise `ModelError` where weights are whole numbers (quantised) or not finite.

    `own`: the weights of the module that they are for. Both would load without an error and give
    wrong embeddings.
    """
    for key, value in state.items():
        if key not in own or not own[key].is_floating_point():
            continue
        if not value.is_floating_point():
            raise ModelError(
                f"{what}: {key} holds whole numbers ({value.dtype}), as quantised weights do; give "
                "the weights as floating-point numbers"
            )
        if not bool(torch.isfinite(value.float()).all()):
            raise ModelError(
                f"{what}: {key} holds numbers that are not finite, as weights of training that "
                "diverged do; take an earlier checkpoint"
            )


def write_state_dict(path: Path, state: Mapping[str, Tensor]) -> None:
    """Write tensors as safetensors, atomically."""
    ready = {
        key: value.detach().cpu().clone(memory_format=torch.contiguous_format)
        for key, value in state.items()
    }
    with atomic_path(path, alone=True) as partial:
        save_file(ready, partial)


def hash_state(state: Mapping[str, Tensor], *, extra: str = "") -> str:
    """Name of a set of weights: SHA-256 over names, shapes and values, in the order of names.

    Floating-point values are hashed as float32, so that the same values stored in another
    precision and loaded have the same name. `extra` is hashed too (a configuration).
    """
    digest = hashlib.sha256(extra.encode())
    for key in sorted(state):
        value = state[key].detach().cpu()
        if value.is_floating_point():
            value = value.to(torch.float32)
        digest.update(f"|{key}|{tuple(value.shape)}|{value.dtype}|".encode())
        digest.update(value.contiguous().numpy().data if value.numel() else b"")
    return digest.hexdigest()[:HASH_LENGTH]


_Stamp = list[tuple[weakref.ref[Tensor], int, int]]
_hashed: weakref.WeakKeyDictionary[nn.Module, dict[tuple[str, str], tuple[_Stamp, str]]] = (
    weakref.WeakKeyDictionary()
)


def hash_module(module: nn.Module, *, extra: str = "", without: str = "\0") -> str:
    """`hash_state` of a module's weights, those that start with `without` left out.

    Remembered while every weight stays as it is: a large CLIP takes seconds to hash, and is asked
    for its name at every turn. Weights that are replaced, moved or changed in place are hashed
    anew: torch counts changes in place, save those through `.data` or by a fused optimiser.
    """
    named = itertools.chain(module.named_parameters(), module.named_buffers())
    stamp = [
        (weakref.ref(value), value.data_ptr(), -1 if value.is_inference() else value._version)
        for _, value in named
    ]
    known = _hashed.setdefault(module, {})
    before, name = known.get((extra, without), ([], ""))
    if not name or not _same_stamp(before, stamp):
        state = {k: v for k, v in module.state_dict().items() if not k.startswith(without)}
        name = hash_state(state, extra=extra)
        known[extra, without] = (stamp, name)
    return name


def _same_stamp(a: _Stamp, b: _Stamp) -> bool:
    """Whether both are of the same tensors (by identity), unchanged."""
    return len(a) == len(b) and all(
        x[0] is y[0] and x[1:] == y[1:] for x, y in zip(a, b, strict=True)
    )


def check_shapes(
    expected: Mapping[str, tuple[int, ...]], given: Mapping[str, tuple[int, ...]], *, what: str
) -> None:
    """Raise `ModelError` where a key is missing, left over or of another shape.

    It names what the weights are instead, where their names show it.
    """
    missing = sorted(expected.keys() - given.keys())
    left_over = sorted(given.keys() - expected.keys())
    if missing or left_over:
        raise ModelError(
            _what_they_are(expected, given, what)
            or f"{what} does not fit its architecture: {len(missing)} missing keys"
            f"{_example(missing)}, {len(left_over)} unexpected{_example(left_over)}"
        )
    for key in sorted(expected):
        if expected[key] != given[key]:
            raise ModelError(
                f"{what} does not fit its architecture: {key} is {given[key]!s:.200}, "
                f"expected {expected[key]!s:.200}"
            )


_LAYOUTS = (
    (r"(^|\.)lora_(A|B|up|down|embedding)|\.lora\.|\bhada_|(^|\.)adapters?\.",
     "holds an adapter (LoRA and the like), not a whole model; merge it into its base model first"),
    (r"^(model\.|module\.|clip\.)?(vision_model|text_model)\.(embeddings|encoder|head)\b",
     "is in the layout of Hugging Face's transformers; give the same model in open_clip's layout, "
     "from its own hub page or converted"),
    (r"^(patch_embed\.proj|blocks\.0\.attn\.qkv)\.weight$",
     "is an image encoder of timm without a text tower; use it as timm:NAME:FILE"),
)  # fmt: skip
"""What names of weights show, and what to do with such a file."""


def _what_they_are(expected: Mapping[str, Any], given: Mapping[str, Any], what: str) -> str | None:
    """What weights are, as their names show, that are not those of the architecture."""
    for pattern, text in _LAYOUTS:
        if any(re.search(pattern, key) for key in given) and not any(
            re.search(pattern, key) for key in expected
        ):
            return f"{what} does not fit its architecture: the file {text}"
    prefix = _likely_prefix(expected, given)
    if prefix:
        names = {key.removeprefix(prefix) for key in given if key.startswith(prefix)}
        missing, others = (
            sorted(expected.keys() - names),
            sorted(
                [key for key in given if not key.startswith(prefix)]
                + [prefix + name for name in names - expected.keys()]
            ),
        )
        rest = (
            f"without it {len(missing)} keys are missing{_example(missing)}, and {len(others)} are "
            f"unexpected{_example(others)}"
        )
        return (
            f"{what} does not fit its architecture: its names have the prefix {prefix!r}; {rest}. "
            "Save the weights of this architecture alone"
        )
    towers = {"image": {key for key in expected if key.startswith("visual.")}}
    towers["text"] = set(expected) - towers["image"] - {"logit_scale", "logit_bias"}
    for name, keys in towers.items():
        bare = {key.removeprefix("visual.") for key in keys}
        if keys and given.keys() - {"logit_scale", "logit_bias"} in (keys, bare):
            return f"{what} holds the {name} tower of its architecture alone; give a whole CLIP"
    return None


def _likely_prefix(expected: Iterable[str], given: Iterable[str]) -> str:
    """The prefix that makes most of the given names expected ones, "" where few are."""
    wanted = set(expected)
    counts: Counter[str] = Counter()
    for key in given:
        parts = key.split(".")
        for depth in range(1, min(len(parts), 6)):
            if ".".join(parts[depth:]) in wanted:
                counts[".".join(parts[:depth]) + "."] += 1
                break
    if not counts:
        return ""
    prefix, hits = counts.most_common(1)[0]
    return prefix if hits >= max(2, len(wanted) // 2) else ""


def _example(keys: Sequence[str]) -> str:
    return f" (such as {some(keys[:1])})" if keys else ""
