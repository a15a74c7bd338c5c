"""Inputs through the towers of a space, in batches, in order, faults in their place."""

from __future__ import annotations

import logging
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import closing, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from terralign.chips import PixelLayout, Window
from terralign.encoders.inputs import (
    Inputs,
    Source,
    Windowing,
    list_inputs,
    open_sources,
)
from terralign.encoders.picture_size import picture_size
from terralign.encoders.pixels import (
    is_array,
    ready_pixels,
    resize_pictures,
    seen_cells,
    seen_shares,
)
from terralign.encoders.vectors import Fault, Footprint, as_fault
from terralign.encoders.zeroshot import finite
from terralign.errors import DataError, SensorError
from terralign.feed import Raw, feed_drawn
from terralign.limits import enough_memory, require
from terralign.preprocess import scale_bands, scale_composite
from terralign.preprocess.spec import ALL_CELLS, layout_composite
from terralign.progress import Progress
from terralign.scenes.declared import Declared
from terralign.scenes.stac import StacItem
from terralign.sensors import RGB, SENSORS

if TYPE_CHECKING:
    from terralign.encoders.space import EmbeddingSpace

logger = logging.getLogger(__name__)

Errors = Literal["raise", "skip"]
"""What happens with an input that cannot be read."""

NUM_SHOWN_PROGRESS = 64
"""A source of so many windows shows its progress."""


_CUT = "cut it into windows (window=)"

MAX_BATCH_BYTES = 128 * 2**20
"""Chips that take more than this together wait for no others, however many a batch may be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EmbeddedChip:
    """One chip or window, and what it is of. `source_key`, `source_number`: which input, counted
    from 0; `vector`: (D,)."""

    key: str
    source_key: str
    source_number: int
    place: Footprint
    tower: str
    valid_share: float
    vector: Tensor


def embed_each(
    space: EmbeddingSpace,
    inputs: Inputs,
    declared: Declared,
    *,
    tower: str | None = None,
    window: Windowing = None,
    errors: Errors = "raise",
    batch_size: int = 32,
    normalize: bool = True,
) -> Iterator[EmbeddedChip | Fault]:
    """Embed inputs one after another; with errors = "skip" what cannot be read is a `Fault`.

    Raises what is wrong with the declaration or the tower before the first input is read.
    """
    is_size = isinstance(window, int | np.integer) and not isinstance(window, bool) and window > 0
    if not (window in (None, "whole") or is_size):
        raise DataError(f'window must be a number of pixels, 1 or more, or "whole", not {window!r}')
    if errors not in ("raise", "skip"):
        raise DataError(f'errors must be "raise" or "skip", not {errors!r}')
    check_count("batch_size", batch_size)
    if tower is not None:
        space.input_spec(tower)
    read = _read_each(space, inputs, declared, tower, window, errors, batch_size)
    return _embed_each(space, read, errors, normalize=normalize)


def check_count(name: str, value: object) -> None:
    """`DataError` unless a value is a whole number, 1 or more."""
    is_whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not is_whole or value < 1:  # type: ignore[operator]
        raise DataError(f"{name} must be a whole number, 1 or more, not {value!r}")


def _embed_each(
    space: EmbeddingSpace, read: Generator[_Read, None, None], errors: Errors, *, normalize: bool
) -> Iterator[EmbeddedChip | Fault]:
    """Embed what a background thread reads, a batch ahead."""
    ready: list[EmbeddedChip] = []  # a source that fails half-way gives its fault alone
    failed: set[int] = set()
    with closing(feed_drawn(_raws(read), _maker(space), device=space.device, depth=1)) as stream:
        for one, pixels in stream:
            if isinstance(one, list):
                kept = [place for place, chip in enumerate(one) if chip.source_number not in failed]
                chips = [one[place] for place in kept]
                try:
                    if isinstance(pixels, DataError):
                        raise pixels
                    left = pixels if len(kept) == len(one) else pixels[kept]
                    ready += list(_embed_batch(space, chips, left, normalize=normalize))
                except DataError as error:
                    if errors == "raise":
                        raise
                    sources = {chip.source_number: chip.of["source_key"] for chip in chips}
                    failed |= sources.keys()
                    ready = [chip for chip in ready if chip.source_number not in sources]
                    yield from (as_fault(key, error) for key in sources.values())
                continue
            if one.source_number in failed:
                continue
            if one.fault is not None:
                ready = [chip for chip in ready if chip.source_number != one.source_number]
            yield from ready
            ready = []
            if one.fault is not None:
                yield one.fault
    yield from ready


def _raws(read: Generator[_Read, None, None]) -> Generator[Raw[_Read], None, None]:
    """What was read, batches with their pixels (B, C, H, W) in one tensor."""
    with closing(read):
        for one in read:
            if isinstance(one, list):
                alone = len(one) == 1
                pixels = one[0].pixels[None] if alone else torch.stack([c.pixels for c in one])
                yield Raw(one, {"pixels": pixels})
            else:
                yield Raw(one, {})


def _maker(space: EmbeddingSpace) -> Callable[[Raw[_Read]], tuple[_Read, Any]]:
    """What makes the pixels of batches ready; a `DataError` where memory does not suffice."""

    def make(raw: Raw[_Read]) -> tuple[_Read, Any]:
        chips = raw.known
        if not isinstance(chips, list):
            return chips, None
        tower = chips[0].tower
        try:
            with enough_memory(chips[0].of["source_key"], todo=_CUT):
                return chips, ready_pixels(
                    raw.tensors["pixels"], chips[0].layout, space.input_spec(tower), tower=tower
                )
        except DataError as error:
            return chips, error

    return make


def _embed_batch(
    space: EmbeddingSpace, chips: list[_Waiting], ready: Tensor, *, normalize: bool
) -> Iterator[EmbeddedChip]:
    if not chips:
        return
    tower = chips[0].tower
    with enough_memory(chips[0].of["source_key"], todo=_CUT):
        vectors = finite(
            space.encode_ready(ready, tower=tower), what=f"tower {tower!r}", source=space.source
        )
    if normalize:
        vectors = F.normalize(vectors, dim=-1)
    for chip, vector in zip(chips, vectors, strict=True):
        yield EmbeddedChip(tower=tower, source_number=chip.source_number, vector=vector, **chip.of)


@dataclass(frozen=True, slots=True)
class _Ended:
    """No more chips of a source come; with `fault`, those that came are not to be used."""

    source_number: int
    fault: Fault | None = None


def _read_each(
    space: EmbeddingSpace,
    inputs: Inputs,
    declared: Declared,
    tower: str | None,
    window: Windowing,
    errors: Errors,
    batch_size: int,
) -> Generator[_Read, None, None]:
    """The chips of all inputs in batches of one kind, and where each source ends."""
    batch = _Batch(batch_size)
    warned = False
    listed = list_inputs(inputs, declared)
    sources = open_sources(listed, declared, alone=is_array(inputs))
    for number, source in enumerate(_counted(sources, listed)):
        if isinstance(source, Fault):
            if errors == "raise":
                raise source.as_error()
            yield from batch.flush()
            yield _Ended(-1, source)
            continue
        try:
            name = tower or space.tower_for(source.layout)
            check_fit(space, name, source.layout)
            size = space.input_spec(name).size
            windows = source.windows(size, window)
            if not warned and window is None and source.is_numbers:
                warned = _warn_of_shrinking(source, size)
            with enough_memory(source.key, todo=_CUT):
                for chip in _chips(space, source, number, windows, name):
                    yield from batch.add(chip)
        except (DataError, SensorError, OSError) as error:
            if source.is_numbers or source.path is None:
                raise
            found = as_fault(source.key, error)
            if errors == "raise":
                raise found.as_error() from error
            batch.drop(number)
            yield from batch.flush()
            yield _Ended(number, found)
            continue
        yield _Ended(number)
    yield from batch.flush()


def _counted(
    sources: Iterator[Source | Fault], listed: Iterable[tuple[int, Any]]
) -> Iterator[Source | Fault]:
    """The sources, with a counter where several files are known beforehand."""
    paths = isinstance(listed, list) and all(
        isinstance(one, Path | StacItem | Fault) for _, one in listed
    )
    if not (isinstance(listed, list) and paths and len(listed) > 1):
        yield from sources
        return
    with Progress("embed", total=len(listed), unit="input") as progress:
        for source in sources:
            yield source
            progress.advance()


@dataclass(frozen=True, kw_only=True, slots=True)
class _Waiting:
    """Pixels (C, H, W) that wait for their batch; `of`: the fields of `EmbeddedChip`."""

    pixels: Tensor
    layout: PixelLayout
    tower: str
    source_number: int
    of: Mapping[str, Any]

    @property
    def kind(self) -> tuple[Any, ...]:
        """What all chips of a batch share."""
        return (self.tower, self.layout, self.pixels.shape, self.pixels.dtype)


def _chips(
    space: EmbeddingSpace, source: Source, number: int, windows: list[Window | None], tower: str
) -> Iterator[_Waiting]:
    """The chips of a source that have a valid pixel."""
    num_empty = 0
    label = f"embed {source.key} with {tower}"
    shown = len(windows) >= NUM_SHOWN_PROGRESS
    counter = Progress(label, total=len(windows), unit="window") if shown else nullcontext()
    with counter as progress:
        for window, chip, layout, share, _ in read_chips(space, source, windows, tower):
            if progress is not None:
                progress.advance()
            if share == 0:
                num_empty += 1
                continue
            if window is None and not source.is_numbers:
                # Beside the numbers: the tower's, which are float32, and masks of both.
                require(
                    "chip_bytes",
                    chip.numel() * (chip.element_size() + 7),
                    f"{source.key} as a whole needs",
                    todo=_CUT,
                )
            of = {
                "key": source.name_of(window),
                "source_key": source.key,
                "place": source.place(window),
                "valid_share": share,
            }
            yield _Waiting(pixels=chip, layout=layout, tower=tower, source_number=number, of=of)
    if num_empty == len(windows):
        raise DataError(
            f"{source.key if source.path else f'chip {source.key}'} has no valid pixel: there is "
            "nothing to embed; leave it out"
        )
    if num_empty:
        logger.warning(
            "%s: %d of %d windows have no valid pixel and are left out",
            source.key, num_empty, len(windows),
        )  # fmt: skip


def read_chips(
    space: EmbeddingSpace, source: Source, windows: Sequence[Window | None], tower: str
) -> Iterator[tuple[Window | None, Tensor, PixelLayout, float, int]]:
    """Each window, its raw pixels (C, H, W) in the bands that a tower looks at, what they mean, the
    share (0-1) of valid numbers in what the tower sees, and its cells that have one (see
    `seen_cells`); pictures at the size it takes."""
    spec = space.input_spec(tower)
    bands = bands_seen(space, tower, source.layout)
    for window, (chip, layout) in zip(windows, source.read(windows, bands), strict=True):
        share = float(seen_shares(spec, chip[None], layout, tower=tower)[0])
        cells = ALL_CELLS if share == 1 else seen_cells(spec, chip, layout, tower=tower)
        if share > 0 and layout.sensor == SENSORS["rgb"] and layout.units == "dn":
            chip = resize_pictures(chip[None], picture_size(spec))[0]
        yield window, chip, layout, share, cells


def bands_seen(space: EmbeddingSpace, tower: str, layout: PixelLayout) -> tuple[str, ...]:
    """The bands of a layout that a tower looks at."""
    wanted = layout_composite(layout).bands if tower == RGB else space.input_spec(tower).bands
    return tuple(name for name in wanted if name in layout.bands)


def check_fit(space: EmbeddingSpace, tower: str, layout: PixelLayout) -> None:
    """Raise where a tower does not take pixels of this layout, before they are read."""
    one = torch.zeros(1, len(layout.bands), 1, 1)
    if tower == RGB:
        scale_composite(one, layout)
    else:
        scale_bands(one, layout, space.input_spec(tower))


def _warn_of_shrinking(source: Source, size: int) -> bool:
    if max(source.height, source.width) <= size:
        return False
    logger.warning(
        "pixels of %dx%d are resized to the tower's %d; to cut them into windows instead, give "
        "window=%d",
        source.height, source.width, size, size,
    )  # fmt: skip
    return True


class _Batch:
    """Chips of one tower, layout and shape that go through it together."""

    def __init__(self, size: int) -> None:
        self._size = size
        self._chips: list[_Waiting] = []
        self._num_bytes = 0

    def add(self, chip: _Waiting) -> Iterator[list[_Waiting]]:
        if self._chips and self._chips[0].kind != chip.kind:
            yield from self.flush()
        self._chips.append(chip)
        self._num_bytes += chip.pixels.nbytes
        if len(self._chips) == self._size or self._num_bytes > MAX_BATCH_BYTES:
            yield from self.flush()

    def drop(self, source_number: int) -> None:
        """Forget the chips of a source that wait."""
        self._chips = [chip for chip in self._chips if chip.source_number != source_number]

    def flush(self) -> Iterator[list[_Waiting]]:
        chips, self._chips, self._num_bytes = self._chips, [], 0
        if chips:
            yield chips


_Read = list[_Waiting] | _Ended
