"""Checkpoints of strangers: what torch writes is read as torch reads it, anything else is refused
without taking memory or time."""

from __future__ import annotations

import argparse
import io
import resource
import struct
import time
import zipfile
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from terralign.encoders.clip.pickles import read_pickled
from terralign.errors import ModelError


def trained(kinds: list[torch.dtype]) -> dict[str, Any]:
    """What training programs keep: weights with their metadata, optimiser, schedule, arguments."""
    module = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    moments = {"step": torch.tensor(1.0), "exp_avg": torch.ones(4, 3)}
    group = {"lr": 0.1, "betas": (0.9, 0.999), "foreach": None, "params": [0, 1]}
    base = torch.randn(6, 6)
    return {
        "state_dict": module.state_dict(),
        "optimizer": {"state": {0: moments}, "param_groups": [group]},
        "schedule": {"milestones": Counter({1: 1, 2: 1}), "last_epoch": 1},
        "args": argparse.Namespace(lr=1e-4, items=3, sizes=[1, 2], keep=None),
        "parameter": torch.nn.Parameter(torch.ones(2, 2)),
        "views": [base, base[2:, ::2], base.T, base[0, 0], torch.arange(77).expand(1, -1)],
        "kinds": [torch.ones(2, dtype=kind) for kind in kinds],
        "empty": torch.zeros(0, 3),
        "words": {"a": "ä" * 300, "big": 2**70, "low": -5, "share": 0.25, ("x", "y"): (1, (2, 3))},
        "others": [torch.float16, torch.Size([1, 2]), torch.device("cpu"), {1, 2}, 1 + 2j, b"\xff"],
        "counted": Counter("abca"),
        "ordered": OrderedDict(b=1, a=2),
        "rng": torch.get_rng_state(),
    }


KINDS = [
    *(torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.complex64, torch.bool),
    *(torch.int64, torch.int32, torch.int16, torch.int8, torch.uint8),
]
NEW_KINDS = [torch.uint16, torch.float8_e4m3fn]
"""Those that only an archive can hold."""


def equal(one: Any, other: Any) -> bool:
    if isinstance(one, torch.Tensor):
        same = one.dtype == other.dtype and one.shape == other.shape
        return same and one.stride() == other.stride() and bool((one == other).all())
    if type(one) is not type(other):
        return False
    if isinstance(one, argparse.Namespace):
        return equal(vars(one), vars(other))
    if isinstance(one, dict):
        return list(one) == list(other) and all(equal(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(equal, one, other))
    return bool(one == other)


@pytest.mark.parametrize("archive", [True, False])
def test_a_checkpoint_of_training_is_read_as_torch_reads_it(tmp_path: Path, archive: bool) -> None:
    path = tmp_path / "a.pt"
    torch.save(trained(KINDS + NEW_KINDS * archive), path, _use_new_zipfile_serialization=archive)
    found = read_pickled(path)
    expected = torch.load(path, weights_only=False)
    assert equal(found, expected)
    assert found["state_dict"]._metadata == expected["state_dict"]._metadata
    assert isinstance(found["parameter"], torch.nn.Parameter)
    shared = {one.untyped_storage().data_ptr() for one in found["views"][:4]}
    assert len(shared) == 1
    read_pickled(path, only_check=True)


def text(value: str) -> bytes:
    return b"X" + struct.pack("<I", len(value.encode())) + value.encode()


def whole(value: int) -> bytes:
    return b"\x8a\x09" + value.to_bytes(9, "little", signed=True)


def name(full: str) -> bytes:
    module, _, one = full.rpartition(".")
    return f"c{module}\n{one}\n".encode()


STORAGE = b"(" + text("storage") + name("torch.FloatStorage") + text("0") + text("cpu")
REBUILD = name("torch._utils._rebuild_tensor_v2") + b"("


def tensor(numel: int, size: list[int], stride: list[int], *, offset: int = 0) -> bytes:
    """A tensor over storage 0, as a pickle says it."""
    shape = b"(" + b"".join(map(whole, size)) + b"t(" + b"".join(map(whole, stride)) + b"t"
    of = STORAGE + whole(numel) + b"tQ" + whole(offset)
    return REBUILD + of + shape + b"\x89" + name("collections.OrderedDict") + b")RtR"


def nested(depth: int) -> bytes:
    """A tuple of itself twice, so many times: its hash takes 2**depth steps."""
    return b")" + b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(depth))


HOSTILE = {
    "bytearray": name("builtins.bytearray") + whole(3 * 10**9) + b"\x85R",
    "storage of a size": name("torch.UntypedStorage") + whole(10**10) + b"\x85\x81",
    "tensor of a size": name("torch.FloatTensor") + whole(10**10) + b"\x85R",
    "key of tuples": b"}" + nested(60) + b"K\x00s",
    "set of tuples": name("builtins.set") + b"]" + nested(60) + b"a\x85R",
    "pairs of tuples": name("collections.OrderedDict") + b"](" + nested(60) + b"K\x00ta\x85R",
    "key of a large number": b"}" + whole(2**61 - 1) + b"K\x00s",
    "storage that is not there": tensor(10**12, [1], [1]),
    "storage beyond what is there": tensor(5, [5], [1]),
    "view beyond its storage": tensor(4, [5], [1]),
    "view far beyond": tensor(4, [2], [2**62]),
    "view of an offset beyond": tensor(4, [1], [1], offset=2**62),
    "expanded to any size": tensor(4, [10**12], [0]),
    "expanded in many dimensions": tensor(4, [2**60] * 60, [0] * 60),
    "dimensions without number": tensor(4, [2**60] * 5000, [0] * 5000),
    "negative size": tensor(4, [-1], [1]),
    "text of a codec": name("_codecs.encode") + text("a" * 10**5) + text("idna") + b"\x86R",
    "sparse": name("torch._utils._rebuild_sparse_tensor") + b")R",
    "on no device": name("torch._utils._rebuild_meta_tensor_no_storage") + b")R",
    "a method's name": name("collections.OrderedDict") + b")R}" + text("items") + b"K\x00sb",
    "another package": name("scipy.sparse.csr_matrix") + b")R",
    "values without end": b"](" + b"}" * 300_000 + b"e",
    "objects without end": name("builtins.set") + b"q\x00" + b"h\x00)R" * 50_000,
    "empty stack": b"0",
    "call of a number": b"K\x00)R",
    "unknown memo": b"h\x07",
    "storage of what is none": REBUILD + b"K\x00K\x00))\x89NtR",
}
"""Pickles of few bytes that ask for memory, time or another's methods."""


def write_archive(path: Path, pickled: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02" + pickled + b".")
        archive.writestr("a/data/0", b"\0" * 16)
        archive.writestr("a/version", b"3")


def write_stream(path: Path, pickled: bytes) -> None:
    plain = io.BytesIO()
    torch.save({}, plain, _use_new_zipfile_serialization=False)
    magic = plain.getvalue()
    begin = magic.index(b"\x80\x02}q\x00.")  # the checkpoint itself, an empty table
    numbers = b"\x80\x02]" + text("0") + b"a." + struct.pack("<q", 4) + b"\0" * 16
    path.write_bytes(magic[:begin] + b"\x80\x02" + pickled + b"." + numbers)


@pytest.mark.parametrize("write", [write_archive, write_stream])
@pytest.mark.parametrize("kind", HOSTILE)
def test_a_hostile_pickle_takes_neither_memory_nor_time(
    tmp_path: Path,
    kind: str,
    write: Callable[[Path, bytes], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "checkpoint_values=200000")
    path = tmp_path / "a.pt"
    write(path, HOSTILE[kind])
    memory, begun = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.process_time()
    with pytest.raises(ModelError, match=r"a\.pt ") as told:
        read_pickled(path)
    assert "\n" not in str(told.value)
    assert len(str(told.value)) < 600 + len(str(path))
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory < 500_000  # KiB
    assert time.process_time() - begun < 10


@pytest.mark.parametrize("write", [write_archive, write_stream])
def test_the_forms_of_these_pickles_are_read_where_they_are_right(
    tmp_path: Path, write: Callable[[Path, bytes], None]
) -> None:
    path = tmp_path / "a.pt"
    write(path, tensor(4, [2, 2], [2, 1]))
    assert read_pickled(path).tolist() == [[0, 0], [0, 0]]
    write(path, tensor(4, [0, 2**62, 2**62], [1, 1, 1]))
    assert read_pickled(path).shape == (0, 2**62, 2**62)


def test_a_list_of_any_depth_is_read(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    write_archive(path, b"]" * 10**5 + b"a" * (10**5 - 1))
    assert isinstance(read_pickled(path)[0][0][0], list)


def test_a_damaged_archive_is_told(tmp_path: Path) -> None:
    path = tmp_path / "a.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/weights.txt", b"x")
    with pytest.raises(ModelError, match="an archive, but not of torch"):
        read_pickled(path)
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a/data.pkl", b"\x80\x02c__torch__.x\nA\n)\x81.")
        archive.writestr("a/constants.pkl", b"\x80\x02).")
    with pytest.raises(ModelError, match="a program of TorchScript"):
        read_pickled(path)


def test_a_list_of_members_without_end_is_not_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "checkpoint_records=3")
    path = tmp_path / "a.pt"
    torch.save({str(i): torch.zeros(1) for i in range(20)}, path)
    with pytest.raises(ModelError, match=r"more than the limit of 3 records; set TERRALIGN_LIMITS"):
        read_pickled(path)


def test_objects_of_well_known_packages_beside_the_weights_are_passed_over(tmp_path: Path) -> None:
    weights = {"w": torch.arange(3.0)}
    training = {
        "best": np.float64(0.5), "order": np.arange(3), "folder": Path("a") / "b",
        "losses": defaultdict(list, {"train": [1.0]}),
    }  # fmt: skip
    for archive in (True, False):
        path = tmp_path / f"{archive}.pt"
        torch.save(
            {"state_dict": weights, **training}, path, _use_new_zipfile_serialization=archive
        )
        loaded = read_pickled(path)
        assert torch.equal(loaded["state_dict"]["w"], weights["w"])
        assert loaded.keys() == {"state_dict", *training}
        assert type(loaded["losses"]) is type(loaded["best"]), "an object was made"
