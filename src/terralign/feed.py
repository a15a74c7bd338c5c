"""Feeding a model: batches are read, moved to its device and made ready ahead of their use.

Reading (files, stores, decoding) gives raw numbers as a data set has them, whole ones mostly.
Making them ready (scaling, geometry, augmentation, normalisation) is tensor work, the same on every
device. On the CPU one background thread does both. For a CUDA device several threads read into
pinned memory; one more copies each batch and makes it ready on a stream of its own, while the
device computes on the batch before.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from contextlib import closing
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from terralign.compute import compute_alone, num_readers
from terralign.read_ahead import drawn_ahead, read_ahead

Item = TypeVar("Item")
Known = TypeVar("Known")
Made = TypeVar("Made")

NUM_READY = 2
"""Batches that lie ready on a CUDA device ahead of the one in use."""


@dataclass(frozen=True, slots=True)
class Raw(Generic[Known]):
    """A batch as read. `known`: what stays as it is; `tensors`: what goes to the device."""

    known: Known
    tensors: Mapping[str, Tensor]

    def mapped(self, function: Callable[[Tensor], Tensor]) -> Raw[Known]:
        """The batch with each tensor replaced."""
        return Raw(self.known, {name: function(one) for name, one in self.tensors.items()})


def feed(
    read: Callable[[Item], Raw[Known]],
    make: Callable[[Raw[Known]], Made],
    items: Iterable[Item],
    *,
    device: torch.device | str,
) -> Generator[Made, None, None]:
    """`make(read(item))` for each item, in order, made ahead of use, on `device`.

    `make` gets the batch with its tensors on the device. On a CUDA device it may wait for its own
    results, since it runs in a background thread on its own stream; what it returns is a tensor, or
    tensors in dataclasses, tuples, lists or dicts. An exception of either is raised where its item
    is due.
    """
    device = torch.device(device)
    readers = num_readers(device)
    depth = max(3, readers)
    if device.type != "cuda":

        def read_and_make(item: Item) -> Made:
            return make(read(item).mapped(lambda one: one.to(device)))

        yield from read_ahead(
            read_and_make, items, depth=depth, num_threads=readers, initializer=compute_alone
        )
        return

    def read_pinned(item: Item) -> Raw[Known]:
        return read(item).mapped(Tensor.pin_memory)

    with closing(
        read_ahead(read_pinned, items, depth=depth, num_threads=readers, initializer=compute_alone)
    ) as raws:
        yield from _made_on_cuda(raws, make, device)


def feed_drawn(
    batches: Generator[Raw[Known], None, None],
    make: Callable[[Raw[Known]], Made],
    *,
    device: torch.device | str,
    depth: int,
) -> Generator[Made, None, None]:
    """The same of batches that can only be read one after another, such as windows of a scene.

    A background thread draws them, up to `depth` ahead. They are closed at the end.
    """
    device = torch.device(device)
    on_cuda = device.type == "cuda"

    def drawn() -> Generator[Any, None, None]:
        with closing(batches):
            for raw in batches:
                if on_cuda:
                    yield raw.mapped(Tensor.pin_memory)
                else:
                    yield make(raw.mapped(lambda one: one.to(device)))

    with closing(drawn_ahead(drawn(), depth=depth, initializer=compute_alone)) as stream:
        yield from _made_on_cuda(stream, make, device) if on_cuda else stream


def _made_on_cuda(
    raws: Generator[Raw[Known], None, None],
    make: Callable[[Raw[Known]], Made],
    device: torch.device,
) -> Generator[Made, None, None]:
    """Batches in pinned memory, copied and made ready on a stream of their own."""
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))  # what `make` uses may be made there

    def made() -> Generator[tuple[Made, Any], None, None]:
        for raw in raws:
            with torch.cuda.device(device), torch.cuda.stream(stream):
                batch = make(raw.mapped(lambda one: one.to(device, non_blocking=True)))
                done = stream.record_event()
            yield batch, done

    with closing(drawn_ahead(made(), depth=NUM_READY)) as ready:
        for batch, done in ready:
            current = torch.cuda.current_stream(device)
            current.wait_event(done)
            for tensor in tensors_in(batch):
                tensor.record_stream(current)  # its memory is free when this stream is past it
            yield batch


def tensors_in(value: Any) -> Iterator[Tensor]:
    """The tensors of a value: itself, or those in dataclasses, tuples, lists and dicts."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from tensors_in(one)
    elif isinstance(value, tuple | list):
        for one in value:
            yield from tensors_in(one)
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield from tensors_in(getattr(value, field.name))
