"""Samples of another library's data set: torchgeo's dictionaries, torchvision's pairs.

N samples, C bands, H W pixels.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any, TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from terralign.chips import PixelLayout, mark_invalid
from terralign.datasets.content import ArrayContent, Contents
from terralign.datasets.file_set import stack_pixels
from terralign.datasets.fingerprint import hash_numbers
from terralign.datasets.sample import Labels, as_numbers, counted_keys
from terralign.datasets.split import Split
from terralign.errors import DataError, first_line
from terralign.progress import Progress
from terralign.scenes.pictures import Size, image_with_mask, resize_rgb
from terralign.sensors import SENSORS

ImageOf = Callable[[Any], NDArray[Any]]
"""An item of a data set -> its pixels (C, H, W)."""

MAX_ITEMS = 10_000_000
"""Items that a data set may have: a key of each is held in memory, and labels are read once."""

NUM_LOOKED_AT = 32
"""Items, evenly spaced, that a fingerprint holds the pixels of."""


_LOCK = threading.Lock()
"""Items are asked for one at a time: data sets of other libraries need not be thread-safe."""


@dataclass(frozen=True, kw_only=True, slots=True, repr=False)
class ItemSet(Split):
    """A data set of another library as a `SampleSet` of one sensor. Made by `open`.

    `image`: the pixels of an item, in the bands of the layout.
    """

    dataset: Any
    image: ImageOf

    @classmethod
    def open(
        cls,
        dataset: Any,
        image: ImageOf,
        layout: PixelLayout,
        *,
        name: str,
        split: str,
        labels: Labels | None,
        prompts: tuple[str, ...] | None,
    ) -> ItemSet:
        """The samples of `dataset`; `image`: the pixels of an item, in the bands of `layout`.

        The fingerprint holds the number of items, their labels, and the pixels of some of them.
        """
        some = np.unique(np.linspace(0, len(dataset) - 1, NUM_LOOKED_AT).astype(np.int64))
        pixels = [hash_numbers(read_item(dataset, image, index, name)) for index in some.tolist()]
        classes = [] if labels is None else [hash_numbers(labels.values), *labels.class_names]
        return cls(
            dataset=dataset,
            image=image,
            layouts={layout.sensor.name: layout},
            name=name,
            split=split,
            keys=counted_keys(len(dataset)),
            content=[type(dataset).__name__, *pixels, *classes],
            labels=labels,
            prompts=prompts,
        )

    def at_size(self, size: Size) -> ItemSet:
        """The same samples, their pictures resized and cropped to `size`."""
        return replace(self, size=size)

    def contents(self) -> Contents:
        """The samples' pixels, as they are before `size`."""
        return Contents(
            kinds=dict.fromkeys(self.layouts, "pixels"),
            of=lambda sensor, index: ArrayContent(self._pixels(index)),
        )

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[Any]]:
        """The sensor's name -> (B, C, H, W)."""
        [(sensor, layout)] = self.layouts.items()
        pixels = [self._pixels(index) for index in indices.tolist()]
        if self.size is not None and sensor == "rgb" and layout.units == "dn":
            pixels = [resize_rgb(one, self.size) for one in pixels]
        names = [f"data set {self.name!r}: sample {index}" for index in indices.tolist()]
        return {sensor: stack_pixels(names, pixels)}

    def _pixels(self, index: int) -> NDArray[Any]:
        [layout] = self.layouts.values()
        bands = layout.bands
        with _LOCK:
            pixels = read_item(self.dataset, self.image, index, self.name)
        if pixels.ndim != 3 or len(pixels) != len(bands):
            raise DataError(
                f"data set {self.name!r}: sample {index} has pixels of shape {pixels.shape}; "
                f"expected ({len(bands)}, H, W) for {', '.join(bands)}"
            )
        return pixels


Got = TypeVar("Got")


def read_item(dataset: Any, get: Callable[[Any], Got], index: int, name: str) -> Got:
    """What `get` makes of one item; whatever its library raises becomes a `DataError`."""
    try:
        return get(dataset[index])
    except DataError:
        raise
    except Exception as error:  # another library's, of any kind
        raise DataError(
            f"data set {name!r}: sample {index} cannot be read ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error


def describe_items(dataset: Any, image: ImageOf, *, needs: str) -> NDArray[Any]:
    """The pixels of the first item; `DataError` with what a data set must provide."""
    name = type(dataset).__name__
    wanted = f"a data set must provide len(dataset), and dataset[i] that gives {needs}"
    streams = any(one.__name__ == "IterableDataset" for one in type(dataset).__mro__)
    if streams or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        hint = " (of an IterableDataset, give a list of its items)" if streams else ""
        raise DataError(f"{name} cannot be indexed: {wanted}{hint}")
    try:
        num_items = len(dataset)
    except Exception as error:  # another library's, of any kind
        raise DataError(
            f"len({name}) fails ({type(error).__name__}: {first_line(error)}); {wanted}"
        ) from error
    if not num_items:
        raise DataError(f"{name} has no sample")
    if num_items > MAX_ITEMS:
        raise DataError(
            f"len({name}) is {num_items:,}, and at most {MAX_ITEMS:,} samples are taken; give a "
            "part of it (torch.utils.data.Subset)"
        )
    try:
        return read_item(dataset, image, 0, name)
    except DataError as error:
        raise DataError(f"{error}; {wanted}") from error


def tensor_of(item: Any, image_key: str) -> NDArray[Any]:
    """The (C, H, W) tensor of a dictionary, as an array."""
    if not isinstance(item, Mapping):
        raise DataError(f"an item is a {type(item).__name__}, not a dictionary")
    if image_key not in item:
        raise DataError(
            f"an item has no {image_key!r}, but {', '.join(map(repr, item))} (image_key=)"
        )
    array = as_numbers(item[image_key])
    if array.ndim != 3 or array.dtype.kind not in "iuf":
        raise DataError(
            f"{image_key!r} has shape {array.shape} and type {array.dtype}; expected numbers "
            "(C, H, W)"
        )
    return array


def picture_of(item: Any) -> NDArray[Any]:
    """The pixels (3, H, W) of a pair (Pillow image, class)."""
    if not isinstance(item, tuple | list) or len(item) != 2:
        raise DataError(f"an item is a {type(item).__name__}, not a pair (Pillow image, class)")
    if not isinstance(item[0], Image.Image):
        raise DataError(
            f"an item's picture is a {type(item[0]).__name__}, not a Pillow image; leave out the "
            "transform that converts it"
        )
    pixels, valid = image_with_mask(item[0])
    rgb = SENSORS["rgb"]
    layout = PixelLayout(sensor=rgb, bands=rgb.band_names, units="dn")
    return mark_invalid(pixels, np.broadcast_to(valid, pixels.shape), layout)


def whole_of(dataset: Any) -> Any:
    """The data set that a torch `Subset` is a part of; any other itself."""
    while hasattr(dataset, "indices") and hasattr(dataset, "dataset"):
        dataset = dataset.dataset
    return dataset


def item_classes(dataset: Any) -> list[str] | None:
    """The class names that a data set, or the one it is a part of, has; None where it has none."""
    whole = whole_of(dataset)
    classes = getattr(whole, "classes", None)
    if classes is None:
        return None
    if isinstance(classes, str) or not isinstance(classes, Iterable):
        raise DataError(
            f"{type(whole).__name__}.classes is {classes!r:.100}, not a list of class names; give "
            "class_names"
        )
    return [str(one[0]) if isinstance(one, tuple) else str(one) for one in classes]


def item_labels(dataset: Any, label_of: Callable[[Any], Any]) -> list[Any]:
    """Each item's label: the data set's `targets` where they are what its items say, else each
    item's own, for which all are read once."""
    name = type(whole_of(dataset)).__name__

    def read(index: int) -> Any:
        return _plain(read_item(dataset, label_of, index, name))

    targets = _targets(dataset)
    if targets is not None:
        some = np.unique(np.linspace(0, len(dataset) - 1, 8).astype(np.int64)).tolist()
        if all(read(index) == targets[index] for index in some):
            return targets
    labels = []
    with Progress(f"labels of {name}", total=len(dataset), unit="sample") as progress:
        for index in range(len(dataset)):
            labels.append(read(index))
            progress.advance(1)
    return labels


def _targets(dataset: Any) -> list[Any] | None:
    """The `targets` of a data set; None where it has none, or others than one for each item."""
    if whole_of(dataset) is not dataset:
        targets = _targets(dataset.dataset)
        return None if targets is None else [targets[index] for index in dataset.indices]
    found = getattr(dataset, "targets", None)
    if not isinstance(found, list | tuple) and not getattr(found, "ndim", 0):
        return None
    found = cast(Any, found)
    return [_plain(one) for one in found] if len(found) == len(dataset) else None


def _plain(label: Any) -> Any:
    """A class number, or a list of K."""
    return label.tolist() if hasattr(label, "tolist") else label
