"""The processes that train together: `torch.distributed`, and nothing else here knows of it.

Every rank runs the same program in the same order. A rank takes its rows of each batch, gradients
are summed over all ranks, whole batches that nothing is trained on are dealt out (`share_out`), and
what need not be shared out is done by the first rank while the others wait. A process that is alone
is rank 0 of 1, for which everything here does nothing.

Letters: P parameters, B batch, D embedding.
"""

from __future__ import annotations

import json
import math
import os
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from contextlib import closing, contextmanager, suppress
from contextvars import ContextVar
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from safetensors.torch import load, save
from torch import Tensor
from torch.distributed.distributed_c10d import PrefixStore, Store
from torch.distributed.rendezvous import rendezvous

from terralign.compute import choose_device
from terralign.errors import Interrupted, RankLostError, TrainingError, first_line
from terralign.launch import LAUNCHER, LOST, place

Made = TypeVar("Made")
Piece = TypeVar("Piece")
Found = tuple[Tensor, ...]
"""What is computed of a piece of work: tensors on the CPU."""

LONGEST_STEP = timedelta(minutes=30)
"""After which a rank that waits for the others within a training step takes one to be lost. What
the first rank does alone may take any time."""

SECONDS_AFTER_FAULT = 2.0
"""That the first rank waits for the others, which read whose fault it was."""

SECONDS_AT_END = 60.0
"""That the first rank waits for the others when all is done or saved: they only read by then."""

SECONDS_TO_END = 3.0
"""That a process has to end by itself once another one has failed."""

NUM_AT_ONCE = 1 << 24
"""Numbers of each part that are summed in order at a time (64 MB)."""

_FAULT = "fault"


@dataclass
class _World:
    """`posted`: how many values the first rank has shared so far. `ending`: this process is about
    to leave; `fault_elsewhere`: another one has reported a fault."""

    rank: int
    size: int
    store: Store
    posted: int = 0
    ending: bool = False
    fault_elsewhere: bool = False


_world: _World | None = None
_alone: ContextVar[bool] = ContextVar("alone", default=False)


def _joined() -> _World | None:
    return None if _alone.get() else _world


def rank() -> int:
    """The number of this process among those that train together."""
    world = _joined()
    return 0 if world is None else world.rank


def world_size() -> int:
    """How many processes train together."""
    world = _joined()
    return 1 if world is None else world.size


def is_first() -> bool:
    """Whether this process is the one that writes, and does what is not shared out."""
    return rank() == 0


@contextmanager
def alone() -> Iterator[None]:
    """Within the block this process works as one that has no others."""
    token = _alone.set(True)
    try:
        yield
    finally:
        _alone.reset(token)


@contextmanager
def joined(device: str | None) -> Iterator[None]:
    """Within the block this process is one of those that `torchrun` or `--nproc` started.

    `device`: as for `choose_device`; CUDA devices share by NCCL, the CPU by gloo. An exception ends
    the others: theirs is `RankLostError`. `TrainingError` where they do not meet.
    """
    global _world
    here = place()
    if here.size == 1 or _world is not None:
        yield
        return
    try:
        store, number, size = next(rendezvous("env://"))
    except (RuntimeError, ValueError) as error:
        message = (
            f"the processes of this run did not meet ({first_line(error)}); check that all were "
            "started, and MASTER_ADDR and MASTER_PORT"
        )
        if LAUNCHER in os.environ and here.rank > 0:  # the first one, or its end, is the cause
            raise RankLostError(message, reported=True) from error
        raise TrainingError(message) from error
    _world = _World(number, size, PrefixStore("terralign", store))
    threading.Thread(target=_watch, args=[_world], daemon=True).start()
    try:
        chosen = choose_device(device)  # a fault of all ranks is reported once
        on_cuda = chosen.startswith("cuda")
        if on_cuda:
            torch.cuda.set_device(chosen)
        with _heard(_world):
            dist.init_process_group(
                "cpu:gloo,cuda:nccl" if on_cuda else "gloo",
                store=store, rank=number, world_size=size, timeout=LONGEST_STEP,
            )  # fmt: skip
        yield
    except Interrupted:  # by all, which have agreed on it
        _leave(_world, SECONDS_AT_END)
        raise
    except Exception as error:
        fault = error if isinstance(error, RankLostError) else _first_fault(_world, error)
        _leave(_world, SECONDS_AFTER_FAULT)
        if fault is error:
            raise
        raise fault from error
    else:
        _leave(_world, SECONDS_AT_END)
        dist.destroy_process_group()
    finally:
        _world.ending = True
        _world = None


def _first_fault(world: _World, error: Exception) -> Exception:
    """The exception to raise: this one where no other rank has one that is reported already."""
    try:
        first = world.store.compare_set(_FAULT, "", str(world.rank)).decode()
    except RuntimeError:
        return error
    return error if first == str(world.rank) else _lost(world)


def _leave(world: _World, seconds: float) -> None:
    """Leave the others: the first rank, which holds what they share, is the last to go."""
    latest = time.monotonic() + seconds
    world.ending = True
    with suppress(RuntimeError):
        world.store.set(f"left-{world.rank}", "")
        everyone = [f"left-{number}" for number in range(world.size)]
        while world.rank == 0 and time.monotonic() < latest and not world.store.check(everyone):
            time.sleep(0.02)


def _lost(world: _World, error: Exception | None = None) -> RankLostError:
    reported = world.fault_elsewhere
    with suppress(RuntimeError):
        reported = reported or world.store.check([_FAULT])
    why = "" if error is None else f" ({first_line(error)})"
    return RankLostError(
        f"rank {world.rank} of {world.size} has lost another process of this run{why}; run the "
        "same command again to resume",
        reported=reported or LAUNCHER in os.environ,
    )


def _watch(world: _World) -> None:
    """End this process where another one has failed and it waits for it, and with its launcher.

    What waits within torch cannot be interrupted otherwise.
    """
    launcher = os.environ.get(LAUNCHER)
    while not world.ending:
        if launcher is not None and launcher != str(os.getppid()):
            os._exit(LOST)
        gone = False
        try:
            world.fault_elsewhere = world.store.check([_FAULT])
        except RuntimeError:
            gone = True  # with the first rank
        if (gone or world.fault_elsewhere) and not world.ending:
            with suppress(RuntimeError):
                world.store.set(f"left-{world.rank}", "")  # the first rank need not wait for it
            time.sleep(SECONDS_TO_END)
            if not world.ending:
                os._exit(LOST)
            return
        time.sleep(0.25)


@contextmanager
def _heard(world: _World) -> Iterator[None]:
    """Within the block a failing connection is a lost rank."""
    try:
        yield
    except RuntimeError as error:
        raise _lost(world, error) from error


# What the first rank does alone


def by_first(work: Callable[[], Made]) -> Made:
    """What `work` returns at the first rank, which runs it alone; JSON. The others wait for it."""
    if not is_first():
        return cast(Made, awaited())
    with alone():
        value = work()
    post(value)
    return value


def first_then_others(work: Callable[[], Made]) -> Made:
    """`work` at the first rank and then at the others, which find the files that it left."""
    if not is_first():
        awaited()
    with alone():
        made = work()
    if is_first():
        post(None)
    return made


def post(value: Any) -> None:
    """Share a value (JSON) with the others, of which each calls `awaited`."""
    world = _joined()
    if world is not None:
        world.posted += 1
        _put(world, f"post-{world.posted}", value)


def awaited() -> Any:
    """The next value that the first rank posts; `RankLostError` where another rank has failed."""
    world = _joined()
    assert world is not None
    world.posted += 1
    return _found(world, f"post-{world.posted}")


def _put(world: _World, key: str, value: Any) -> None:
    with _heard(world):
        world.store.set(key, json.dumps(value))


def _found(world: _World, key: str, *, latest: float = math.inf) -> Any:
    """The value of a key, once it is there. Asked for again and again: a store that waits within
    torch would let no other thread of this process use it, such as `_watch`."""
    pause = 0.001
    with _heard(world):
        while not world.store.check([key]):
            if world.store.check([_FAULT]) or time.monotonic() > latest:
                raise _lost(world)
            time.sleep(pause)
            pause = min(2 * pause, 0.2)
        return json.loads(world.store.get(key))


# What all ranks do together


def share_out(
    pieces: Sequence[Piece],
    work: Callable[[Sequence[Piece]], Generator[Found, None, None]],
) -> Generator[Found, None, None]:
    """What `work` finds for each of the pieces, in their order; at the other ranks nothing.

    Called, and iterated to its end, by all. Rank r of W works on the pieces r::W, each of which is
    computed as by one process, and sends what it finds to the first, which takes as many at a time.
    """
    world = _joined()
    if world is None:
        yield from work(pieces)
        return
    with closing(work(pieces[world.rank :: world.size])) as own:
        if world.rank:
            for found in own:
                _send(world, found)
            return
        for number in range(len(pieces)):
            source = number % world.size
            yield next(own) if source == 0 else _receive(world, source)


def _send(world: _World, found: Found) -> None:
    data = save({str(number): one.contiguous() for number, one in enumerate(found)})
    with _heard(world):
        dist.send(torch.tensor([len(data)]), 0)
        dist.send(torch.frombuffer(bytearray(data), dtype=torch.uint8), 0)


def _receive(world: _World, source: int) -> Found:
    size = torch.empty(1, dtype=torch.int64)
    with _heard(world):
        dist.recv(size, source)
        data = torch.empty(int(size), dtype=torch.uint8)
        dist.recv(data, source)
    found = load(data.numpy().tobytes())
    return tuple(found[str(number)] for number in range(len(found)))


def greatest(*numbers: int) -> list[int]:
    """Of each number the greatest that any rank gives."""
    world = _joined()
    if world is None:
        return list(numbers)
    values = torch.tensor(numbers, dtype=torch.int64)
    with _heard(world):
        dist.all_reduce(values, dist.ReduceOp.MAX)
    found: list[int] = values.tolist()
    return found


def gather(value: Any) -> list[Any]:
    """The values (JSON) of all ranks, by rank."""
    world = _joined()
    if world is None:
        return [value]
    world.posted += 1
    _put(world, f"gather-{world.posted}-{world.rank}", value)
    latest = time.monotonic() + LONGEST_STEP.total_seconds()
    return [
        _found(world, f"gather-{world.posted}-{number}", latest=latest)
        for number in range(world.size)
    ]


def take_first(tensors: Iterable[Tensor]) -> None:
    """Give these tensors, in place, the values that they have at the first rank."""
    world = _joined()
    if world is None:
        return
    for tensor in tensors:
        values = tensor.detach().contiguous()
        with _heard(world):
            dist.broadcast(values, src=0)
        tensor.detach().copy_(values)


def sum_parts(parts: Sequence[Tensor], *, in_order: bool) -> Tensor:
    """The sum (P,) of the parts (P,) of all ranks.

    By one all-reduce of this rank's only part; or, `in_order`, one after the other, so that the
    sum has the same bits however many ranks share the parts: number n is the part n // W of rank
    n % W, of W ranks that have as many each.
    """
    world = _joined()
    if not in_order:
        (total,) = parts
        if world is not None:
            with _heard(world):
                dist.all_reduce(total)
        return total
    total = torch.empty_like(parts[0])
    for start in range(0, len(total), NUM_AT_ONCE):
        piece = slice(start, start + NUM_AT_ONCE)
        own = torch.stack([part[piece] for part in parts])
        found = [own]
        if world is not None:
            found = [torch.empty_like(own) for _ in range(world.size)]
            with _heard(world):
                dist.all_gather(found, own)
        first, *others = torch.stack(found, dim=1).flatten(0, 1)
        total[piece] = first
        for one in others:
            total[piece] += one
    return total


def gather_rows(rows: Tensor, num_rows: int) -> Tensor:
    """(num_rows, D) rows of all ranks, in the order of the batch; rank r holds rows r::W of it.

    For losses that compare all samples of a batch: every rank computes such a loss whole. The
    gradient is that of this rank's own rows, times num_rows / len(rows): a rank's losses are
    weighted by its share of the batch.
    """
    if _joined() is None:
        return rows
    gathered: Tensor = _GatheredRows.apply(rows, num_rows)
    return gathered


class _GatheredRows(torch.autograd.Function):
    @staticmethod
    def forward(context: Any, rows: Tensor, num_rows: int) -> Tensor:
        world = _joined()
        assert world is not None
        context.own = slice(world.rank, None, world.size)
        context.weight = num_rows / len(rows)
        longest = -(-num_rows // world.size)
        padded = rows.new_zeros(longest, *rows.shape[1:])
        padded[: len(rows)] = rows
        found = [torch.empty_like(padded) for _ in range(world.size)]
        with _heard(world):
            dist.all_gather(found, padded)
        whole = rows.new_empty(num_rows, *rows.shape[1:])
        for number, one in enumerate(found):
            own = whole[number :: world.size]
            own.copy_(one[: len(own)])
        return whole

    @staticmethod
    def backward(context: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0][context.own] * context.weight, None
