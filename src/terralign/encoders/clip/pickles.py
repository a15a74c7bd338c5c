"""Checkpoints that `torch.save` wrote, read without running anything and within their own size.

`torch.load(weights_only=True)` runs no code, but a file of some bytes can make it take any memory
(`bytearray(N)`, a storage or a view of any size) or time (the hash of nested tuples). This reader
takes what `torch.save` writes of state dicts and training checkpoints, and of that no more than the
file has: tensors, numbers, texts, lists and tables. What training programs keep beside them in
objects of well-known packages (settings, paths, NumPy's random state) is passed over, unmade.
"""

from __future__ import annotations

import argparse
import math
import re
import struct
import zipfile
from collections import Counter, OrderedDict
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terralign.errors import ModelError, first_line, printable
from terralign.files import zip_index_bytes
from terralign.limits import beyond, limit, require

_MAGIC = 0x1950A86A20F9469CFC6C
"""What files from before torch 1.6 begin with: pickles, then the numbers of all storages."""

_MOST_SHARED = 64
"""Tensors may share numbers (tied weights, expanded ones): together at most so many times the file,
or so many MiB."""

_USUAL_BYTES = 2**20
"""The pickles of most files are smaller; only for larger ones is more read than that."""

_ASK = "Ask its author for a state dict or a safetensors file"
_AGAIN = "fetch it again"


_DAMAGES = (LookupError, ValueError, TypeError, AttributeError, ArithmeticError, struct.error)
"""What the bytes of a damaged pickle raise where they are followed."""


class _Refused(Exception):
    """What torch does not write; the text completes "FILE holds "."""


def read_pickled(path: Path, *, only_check: bool = False) -> Any:
    """What a file of `torch.save` holds; `ModelError` where it is damaged, or holds more than that.

    `only_check`: before another program loads it; numbers of tensors are not read.
    """
    size = path.stat().st_size
    try:
        with open(path, "rb") as file:
            start = file.read(2)
            if start == b"PK":
                return _read_archive(path, file, size, only_check)
            if start[:1] == b"\x80":
                return _read_stream(path, file, size, only_check)
    except _Refused as error:
        raise ModelError(f"{path} holds {error}") from None
    except (zipfile.BadZipFile, RuntimeError, OSError) as error:
        raise ModelError(f"{path} is not a whole checkpoint ({first_line(error)})") from error
    except _DAMAGES as error:
        raise ModelError(
            f"{path} is not a whole checkpoint (its pickle is cut short or damaged)"
        ) from error
    raise ModelError(f"{path} is no checkpoint: neither an archive of torch nor a pickle")


def _read_archive(path: Path, file: BufferedReader, size: int, only_check: bool) -> Any:
    """The archive of torch 1.6 and later: `data.pkl`, and `data/KEY` for each storage."""
    # The list of members is bounded before it is read; torch takes about so many bytes for each.
    require("checkpoint_records", zip_index_bytes(file) // 128, f"{path} has", fault=ModelError)
    with zipfile.ZipFile(file) as archive:
        members = archive.infolist()
    stored = all(one.compress_type == zipfile.ZIP_STORED for one in members)
    if not stored or sum(one.file_size for one in members) > size:
        raise ModelError(
            f"{path} unpacks to more than its own size, which no checkpoint of torch does; "
            "if it is an archive of checkpoints, unpack it and name one of its files"
        )
    records = {one.filename.partition("/")[2]: one for one in members}
    if "constants.pkl" in records:
        raise _Refused(f"a program of TorchScript, so it was not loaded. {_ASK}")
    if "data.pkl" not in records:
        raise ModelError(f"{path} is no checkpoint: an archive, but not of torch")
    require(
        "pickle_bytes", records["data.pkl"].file_size, f"{path} has, beside tensors,",
        fault=ModelError,
    )  # fmt: skip
    reader = _Reader(path, size)
    loaded, _ = reader.follow(_member(file, records["data.pkl"]))
    big = "byteorder" in records and _member(file, records["byteorder"]) == b"big"
    for key, (storage, dtype) in reader.storages.items():
        record = records.get(f"data/{key}")
        if record is None or record.file_size < storage.nbytes():
            raise _Refused(f"fewer numbers than it lists; {_AGAIN}")
        if not only_check:
            _seek(file, record)
            _fill(storage, file)
            if big:
                storage.byteswap(dtype)  # type: ignore[no-untyped-call]
    return loaded


def _seek(file: BufferedReader, record: zipfile.ZipInfo) -> None:
    """To the bytes of a member that is stored as it is."""
    file.seek(record.header_offset + 26)
    name, extra = struct.unpack("<HH", file.read(4))
    file.seek(name + extra, 1)


def _member(file: BufferedReader, record: zipfile.ZipInfo) -> bytes:
    _seek(file, record)
    return file.read(record.file_size)


def _read_stream(path: Path, file: BufferedReader, size: int, only_check: bool) -> Any:
    """The form before: pickles of a magic number, a version, the machine, the checkpoint and the
    keys of its storages, then of each its length and numbers."""
    most = limit("pickle_bytes")
    for num_bytes in (min(_USUAL_BYTES, most), most):
        file.seek(0)
        data = file.read(num_bytes)
        reader = _Reader(path, size)
        try:
            loaded, keys, at = _follow_stream(reader, data)
            break
        except (IndexError, struct.error):
            if len(data) == size:
                raise
    else:
        raise ModelError(beyond("pickle_bytes", None, f"{path} has, beside tensors,"))
    if type(keys) is not list or sorted(keys) != sorted(reader.storages):
        raise _Refused(f"fewer numbers than it lists; {_AGAIN}")
    file.seek(at)
    for key in [] if only_check else keys:
        storage, dtype = reader.storages[key]
        if int.from_bytes(file.read(8), "little") * dtype.itemsize != storage.nbytes():
            raise _Refused(f"other numbers than it lists; {_AGAIN}")
        _fill(storage, file)
    return loaded


def _follow_stream(reader: _Reader, data: bytes) -> tuple[Any, Any, int]:
    """The checkpoint, the keys of its storages, and where their numbers begin."""
    magic, at = reader.follow(data)
    if magic != _MAGIC:
        raise _Refused(f"a pickle, but not one of torch. {_ASK}")
    for _ in range(2):
        _, at = reader.follow(data, at)
    loaded, at = reader.follow(data, at)
    keys, at = reader.follow(data, at)
    return loaded, keys, at


def _fill(storage: torch.UntypedStorage, file: BufferedReader) -> None:
    numbers = torch.empty(0, dtype=torch.uint8).set_(storage)
    if storage.nbytes() and file.readinto(numbers.numpy().data) < storage.nbytes():
        raise _Refused(f"fewer numbers than it lists; {_AGAIN}")


@dataclass(frozen=True, slots=True)
class _Named:
    """A name of Python's that a pickle asks for."""

    name: str


class _PassedOver:
    """In the place of an object that is not made."""


_WELL_KNOWN = re.compile(
    r"(numpy|pathlib|typing|omegaconf|pytorch_lightning|lightning|lightning_fabric|mmengine|mmcv"
    r"|yacs|easydict|addict|ml_collections)\."
    r"|collections\.defaultdict$|builtins\.(dict|list|tuple|str|int|float|bool|object)$"
)
"""Names of objects beside the weights that are passed over; any other refuses the file."""


class _Reader:
    """Follows the pickles of one file as torch's restricted loader does, by fewer names."""

    def __init__(self, path: Path, size: int) -> None:
        self.path = path
        self.size = size
        self.storages: dict[str, tuple[torch.UntypedStorage, torch.dtype]] = {}
        self.num_values = 0
        self.most_values = limit("checkpoint_values")
        self.num_stored = 0
        self.num_shown = 0

    def follow(self, data: bytes, at: int = 0) -> tuple[Any, int]:
        """What the pickle from byte `at` makes, and where it ends."""
        memo: dict[int, Any] = {}
        marked: list[list[Any]] = []
        stack: list[Any] = []
        begun = at
        while True:
            op = data[at]
            at += 1
            if op == 0x71:  # BINPUT
                memo[data[at]] = stack[-1]
                at += 1
                continue  # the most frequent, and no value
            if op == 0x72:  # LONG_BINPUT
                memo[_UINT.unpack_from(data, at)[0]] = stack[-1]
                at += 4
                continue
            if op == 0x58:  # BINUNICODE
                length = _UINT.unpack_from(data, at)[0]
                at += 4 + length
                stack.append(str(data[at - length : at], "utf-8", "surrogatepass"))
            elif op == 0x28:  # MARK
                marked.append(stack)
                stack = []
            elif op == 0x68:  # BINGET
                stack.append(memo[data[at]])
                at += 1
            elif op == 0x6A:  # LONG_BINGET
                stack.append(memo[_UINT.unpack_from(data, at)[0]])
                at += 4
            elif op == 0x4B:  # BININT1
                stack.append(data[at])
                at += 1
            elif op in _NUMBERS:
                form, length = _NUMBERS[op]
                stack.append(form.unpack_from(data, at)[0])
                at += length
            elif op in _PLAIN:
                stack.append(_PLAIN[op])
            elif op == 0x74:  # TUPLE
                items, stack = stack, marked.pop()
                stack.append(tuple(items))
            elif op == 0x51:  # BINPERSID
                stack.append(self._storage(*stack.pop()))
            elif op == 0x52:  # REDUCE
                args = stack.pop()
                stack[-1] = self._call(stack[-1], args)
            elif op == 0x75:  # SETITEMS
                items, stack = stack, marked.pop()
                _set(stack[-1], zip(items[::2], items[1::2], strict=True))
            elif op == 0x73:  # SETITEM
                value, key = stack.pop(), stack.pop()
                _set(stack[-1], [(key, value)])
            elif op == 0x7D:  # EMPTY_DICT
                stack.append({})
            elif op == 0x5D:  # EMPTY_LIST
                stack.append([])
            elif 0x85 <= op <= 0x87:  # TUPLE1, TUPLE2, TUPLE3
                length = op - 0x84
                stack[-length:] = [tuple(stack[-length:])]
            elif op == 0x65:  # APPENDS
                items, stack = stack, marked.pop()
                _extend(stack[-1], items)
            elif op == 0x61:  # APPEND
                item = stack.pop()
                _extend(stack[-1], [item])
            elif op == 0x63:  # GLOBAL
                middle = data.index(b"\n", at)
                end = data.index(b"\n", middle + 1)
                stack.append(
                    _named(str(data[at:middle], "utf-8"), str(data[middle + 1 : end], "utf-8"))
                )
                at = end + 1
            elif op == 0x62:  # BUILD
                state = stack.pop()
                _build(stack[-1], state)
            elif op == 0x81:  # NEWOBJ
                args = stack.pop()
                if _is_well_known(stack[-1]):
                    stack[-1] = _PassedOver()
                elif stack[-1] == _Named("argparse.Namespace") and args == ():
                    stack[-1] = argparse.Namespace()
                else:
                    raise _foreign("objects of Python")
            elif op == 0x8A:  # LONG1
                length = data[at]
                at += 1 + length
                stack.append(int.from_bytes(data[at - length : at], "little", signed=True))
            elif op == 0x55:  # SHORT_BINSTRING
                length = data[at]
                at += 1 + length
                stack.append(str(data[at - length : at], "utf-8"))
            elif op == 0x80:  # PROTO
                at += 1
            elif op == 0x2E:  # STOP
                return stack.pop(), at
            elif op in _OF_OBJECTS or data[begun + 1] > 2:
                raise _foreign(f"objects, in a pickle of protocol {data[begun + 1]}")
            else:
                raise ValueError(f"unknown opcode {op:#x}")
            self.num_values += 1
            if self.num_values > self.most_values:
                raise ModelError(beyond("checkpoint_values", None, f"{self.path} holds"))

    def _storage(
        self, kind: Any, of: Any, key: Any, _: Any, numel: Any, view: Any = None
    ) -> tuple[torch.UntypedStorage, torch.dtype]:
        """Room for the numbers of a storage, which are read once it is known to have them."""
        dtype = _STORAGES.get(of.name) if type(of) is _Named else None
        if kind != "storage" or dtype is None or not _is_count(numel) or type(key) is not str:
            raise _Refused(f"a storage in a form that torch does not write; {_AGAIN}")
        if key not in self.storages:
            self.num_stored += numel * dtype.itemsize
            if self.num_stored > self.size:
                raise _Refused(f"fewer numbers than it lists; {_AGAIN}")
            storage = torch.UntypedStorage(numel * dtype.itemsize)  # type: ignore[no-untyped-call]
            self.storages[key] = storage, dtype
        storage, dtype = self.storages[key]
        if view is None:
            return storage, dtype
        _, first, length = view
        if not (_is_count(first) and _is_count(length)):
            raise _Refused(f"a part of a storage in a form that torch does not write; {_AGAIN}")
        begin = first * dtype.itemsize
        return storage[begin : begin + length * dtype.itemsize], dtype

    def _call(self, function: Any, args: Any) -> Any:
        self.num_values += 9  # a tensor or an object takes as much as ten plain values
        if _is_well_known(function):
            return _PassedOver()
        call = _CALLS.get(function.name) if type(function) is _Named else None
        if call is None or type(args) is not tuple:
            raise _foreign(function.name if type(function) is _Named else "objects of Python")
        return call(self, *args)

    def _tensor(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any = False,
        hooks: object = None, metadata: Any = None,
    ) -> Tensor:  # fmt: skip
        """torch's `_rebuild_tensor_v2`; hooks are left out."""
        return self._tensor_of_dtype(
            storage, offset, size, stride, grad, hooks, storage[1], metadata
        )

    def _tensor_of_dtype(
        self, storage: Any, offset: Any, size: Any, stride: Any, grad: Any, _: object, dtype: Any,
        metadata: Any = None,
    ) -> Tensor:  # fmt: skip
        """torch's `_rebuild_tensor_v3`."""
        untyped, _ = storage
        if (
            len(size) != len(stride)
            or not all(map(_is_count, (offset, *size, *stride)))
            or metadata
        ):
            raise _Refused(f"a tensor in a form that torch does not write; {_AGAIN}")
        num = math.prod(size)
        last = offset + sum((n - 1) * step for n, step in zip(size, stride, strict=True))
        if num and (last + 1) * dtype.itemsize > untyped.nbytes():
            raise _Refused(f"a tensor {size!s:.100} of fewer numbers; {_AGAIN}")
        self.num_shown += num * dtype.itemsize
        if self.num_shown > _MOST_SHARED * max(self.size, 2**20):
            raise _Refused(
                f"tensors that repeat the same numbers to over {_MOST_SHARED} times its size, such "
                f"as one of {size!s:.100}; save them as contiguous copies"
            )
        made = torch.empty(0, dtype=dtype).set_(untyped, offset, size, stride)
        return made.requires_grad_() if grad is True else made

    def _parameter(self, data: Any, grad: Any, _: object) -> Tensor:
        return torch.nn.Parameter(data, requires_grad=grad is True)

    def _ordered(self, pairs: Any = ()) -> Any:
        made: OrderedDict[Any, Any] = OrderedDict()
        _set(made, ((key, value) for key, value in pairs))
        return made

    def _counter(self, counts: Any = ()) -> Any:
        made: Counter[Any] = Counter()
        _set(made, counts.items() if type(counts) is dict else counts)
        return made

    def _set_of(self, items: Any = ()) -> set[Any]:
        return {_key(one) for one in items}

    def _size(self, items: Any) -> torch.Size:
        return torch.Size(items)

    def _device(self, *parts: Any) -> torch.device:
        return torch.device(*parts)

    def _complex(self, real: float, imaginary: float) -> complex:
        return complex(real, imaginary)

    def _bytes(self, text: str, coding: str) -> bytes:
        if coding != "latin1":
            raise _foreign(f"text in {coding:.20}")
        return text.encode("latin1")


_UINT = struct.Struct("<I")
_NUMBERS = {
    0x4A: (struct.Struct("<i"), 4),
    0x4D: (struct.Struct("<H"), 2),
    0x47: (struct.Struct(">d"), 8),
}
_PLAIN: dict[int, Any] = {0x4E: None, 0x88: True, 0x89: False, 0x29: ()}
_OF_OBJECTS = b"\x93io\x82\x83\x84\x92P"
"""Opcodes by which objects of any class are made."""

_STORAGES = {
    f"{module}.{name}Storage": dtype
    for module in ("torch", "torch.cuda", "torch.storage")
    for name, dtype in {
        "Double": torch.float64, "Float": torch.float32, "Half": torch.float16,
        "BFloat16": torch.bfloat16, "Long": torch.int64, "Int": torch.int32, "Short": torch.int16,
        "Char": torch.int8, "Byte": torch.uint8, "Bool": torch.bool, "Untyped": torch.uint8,
        "ComplexDouble": torch.complex128, "ComplexFloat": torch.complex64,
    }.items()
}  # fmt: skip

_CALLS: dict[str, Callable[..., Any]] = {
    "torch._utils._rebuild_tensor": _Reader._tensor,
    "torch._utils._rebuild_tensor_v2": _Reader._tensor,
    "torch._utils._rebuild_tensor_v3": _Reader._tensor_of_dtype,
    "torch._utils._rebuild_parameter": _Reader._parameter,
    "torch.Size": _Reader._size,
    "torch.device": _Reader._device,
    "collections.OrderedDict": _Reader._ordered,
    "collections.Counter": _Reader._counter,
    "builtins.set": _Reader._set_of,
    "builtins.complex": _Reader._complex,
    "_codecs.encode": _Reader._bytes,
}


def _named(module: str, name: str) -> Any:
    """What a pickle asks for by name: one of torch's types of numbers, or what may be called."""
    if module == "torch" and isinstance(getattr(torch, name, None), torch.dtype):
        return getattr(torch, name)
    full = f"{'builtins' if module == '__builtin__' else module}.{name}"
    if full in _CALLS or full in _STORAGES or full == "argparse.Namespace":
        return _Named(full)
    if _WELL_KNOWN.match(full):
        return _Named(full)
    raise _foreign(full)


def _is_well_known(value: Any) -> bool:
    return type(value) is _Named and _WELL_KNOWN.match(value.name) is not None


def _foreign(name: str) -> _Refused:
    shown = printable(name[:100])
    if re.match(r"torch\.(_utils\._rebuild_|_tensor\.|\w*Tensor$|sparse|nested)", name):
        return _Refused(
            f"{shown}, which no state dict has, so it was not loaded; save the state dict alone "
            "(model.state_dict()), or a safetensors file"
        )
    return _Refused(
        f"more than tensors and plain values ({shown}), so it was not loaded: it could run code. "
        f"{_ASK}"
    )


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _key(key: Any) -> Any:
    """A key of a table whose hash takes no time, and which no other was made to be like."""
    kind = type(key)
    if kind is str or (kind is int and -(2**60) < key < 2**60):
        return key
    if kind in (float, bool, bytes, type(None)):
        return key
    if kind is tuple and len(key) < 10 and all(type(one) is str for one in key):
        return key
    raise _Refused(f"a table with keys that are no texts or numbers, so it was not loaded. {_ASK}")


def _set(target: Any, items: Iterable[tuple[Any, Any]]) -> None:
    if type(target) is _PassedOver:
        return
    if type(target) not in (dict, OrderedDict, Counter):
        raise ValueError("values are set in what is no table")
    for key, value in items:
        target[key if type(key) is str else _key(key)] = value


def _extend(target: Any, items: list[Any]) -> None:
    if type(target) is _PassedOver:
        return
    if type(target) is not list:
        raise ValueError("values are appended to what is no list")
    target.extend(items)


def _build(target: Any, state: Any) -> None:
    """Attributes of an `OrderedDict` (a state dict's `_metadata`) or of a `Namespace`."""
    if type(target) is _PassedOver:
        return
    if type(target) not in (OrderedDict, argparse.Namespace) or type(state) is not dict:
        raise _foreign("objects of Python")
    # An attribute of the name of a method would take its place.
    if type(target) is OrderedDict and any(hasattr(target, str(key)) for key in state):
        raise _foreign("attributes that torch does not write")
    target.__dict__.update(state)
