"""`Samples`: the sample sets of Python, from arrays, folders, other libraries, or by name.

N samples, C bands, H W pixels, K classes.
"""

from __future__ import annotations

import logging
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence, Set
from functools import partial
from numbers import Integral
from pathlib import Path, PurePath
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from terralign.chips import PixelLayout, Units
from terralign.datasets.array_set import ArraySet
from terralign.datasets.catalog import open_dataset
from terralign.datasets.checked import check_samples
from terralign.datasets.class_folders import open_folder
from terralign.datasets.fetch import fetch, plan_fetch
from terralign.datasets.fingerprint import hash_numbers
from terralign.datasets.image_files import RASTER_SUFFIXES, list_images
from terralign.datasets.item_set import (
    ItemSet,
    describe_items,
    item_classes,
    item_labels,
    picture_of,
    tensor_of,
    whole_of,
)
from terralign.datasets.pixels import Pixels
from terralign.datasets.sample import (
    Captions,
    Labels,
    SampleSet,
    Wrapped,
    as_numbers,
    counted_keys,
    is_sample_set,
    warn_unused,
)
from terralign.errors import DataError, SensorError, first_line, nearest
from terralign.files import not_found
from terralign.scenes.declared import Declared, declare_layout, has_dn, units_of
from terralign.scenes.pictures import Size
from terralign.scenes.plausible import check_sample
from terralign.scenes.products import is_product
from terralign.sensors import SENSORS, Sensor, as_sensor

logger = logging.getLogger(__name__)

ArrayLike = Any
"""A NumPy array or a torch tensor."""


class Samples(Wrapped):
    """Samples with named bands, and labels or captions where they have them. A `SampleSet`.

    Made by `from_arrays`, `from_folder`, `from_torchgeo`, `from_torchvision` or `open`. RGB
    pictures keep their own size here, and are resized as their files would be to what a tower
    takes where they are trained on or evaluated, unless `size` is given.

    >>> data = Samples.from_arrays(
    ...     np.zeros((2, 3, 8, 8), np.uint8), sensor="rgb", labels=["a field", "a lake"]
    ... )
    >>> sorted(data[0])
    ['key', 'label', 'rgb']
    """

    def __init__(
        self, samples: SampleSet, *, resize: Callable[..., SampleSet] | None = None
    ) -> None:
        """`resize(size=)`: the same samples with RGB pictures of another size; None: they keep
        theirs."""
        if not is_sample_set(samples):
            raise DataError(
                f"Samples() wraps an open sample set, not a {type(samples).__name__}; use "
                "Samples.from_arrays, from_folder, from_torchgeo, from_torchvision or open"
            )
        super().__init__(samples)
        self._resize = resize

    def at_size(self, size: Size) -> SampleSet:
        """The same samples with RGB pictures of `size`."""
        return self if self._resize is None else Samples(self._resize(size=size))

    @classmethod
    def from_arrays(
        cls,
        pixels: ArrayLike | Mapping[str, ArrayLike],
        *,
        sensor: str | Sensor | Mapping[str, Sensor] | None = None,
        bands: Sequence[str] | Mapping[str, Sequence[str]] | None = None,
        units: Units | Mapping[str, Units] | None = None,
        dn_offset: float | Mapping[str, float] | None = None,
        composite: str | Mapping[str, str] | None = None,
        labels: ArrayLike | Sequence[str] | None = None,
        class_names: Sequence[str] | None = None,
        keys: Sequence[str] | None = None,
        captions: Sequence[str | Sequence[str]] | None = None,
        prompts: Sequence[str] | None = None,
        name: str = "arrays",
        split: str = "all",
    ) -> Samples:
        """Samples in memory, or in a memory map.

        `pixels`: (N, C, H, W) of one `sensor`; or, for several sensors of the same places, sensor
        name -> (N, C, H, W), with `bands`, `units`, `dn_offset` and `composite` given by sensor,
        or one value for all. `sensor`: a built-in name, a TOML file or a `Sensor`; for a mapping,
        the definitions of those that are not built in. `bands`: the channels' names in order; may
        be left out where they are all of the sensor's, in its order. `units`: "dn" or "physical";
        left out, integers are DN. `dn_offset`: what is added to DN; Sentinel-2 needs it. NaN, and
        the sensor's no-data DN, have no data.

        `labels`: (N,) class numbers with `class_names`, (N,) class names, or (N, K) bool, several
        to a sample, with `class_names`. `captions`: of each sample one text or several. `prompts`:
        templates with `{}`. `keys`: the samples' names, each once.

        Raises `DataError` and `SensorError`: another shape (channels come first), undeclared units
        or offset, numbers that cannot be what is declared of them (see `scenes.plausible`).
        """
        _checked_name(name)
        arrays, layouts = _declared_arrays(pixels, sensor, bands, units, dn_offset, composite)
        num_samples = len(next(iter(arrays.values())))
        found = _labels_of(labels, class_names, num_samples, name=name, split=split)
        known = _keys_of(keys, num_samples)
        rows = np.arange(num_samples, dtype=np.int64)
        samples = ArraySet(
            name=name,
            split=split,
            layouts=layouts,
            keys=known,
            arrays=arrays,
            rows=rows,
            content=[
                *(hash_numbers(array) for array in arrays.values()),
                *([] if found is None else [hash_numbers(found.values), *found.class_names]),
            ],
            labels=found,
            captions=_captions_of(captions, num_samples),
            prompts=_templates(prompts),
        )
        check_samples(samples)
        _check_each(samples)
        return cls(samples, resize=samples.at_size)

    @classmethod
    def from_folder(
        cls,
        folder: str | Path,
        *,
        sensor: str | Sensor | None = None,
        bands: Sequence[str] | None = None,
        units: Units | None = None,
        dn_offset: float | None = None,
        composite: str | None = None,
        labels: Literal["auto", "folders"] | None = "auto",
        class_names: Mapping[str, str] | Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        size: Size | None = None,
        name: str | None = None,
        split: str = "all",
    ) -> Samples:
        """The pictures or GeoTIFFs of a folder, one sample a file, at any depth.

        `sensor`: of GeoTIFFs, as `bands`, `units`, `dn_offset` and `composite`, where the files do
        not state it themselves (see `open_scene`); pictures are "rgb". `labels`: "folders" takes
        the folders at the top as classes, None takes no labels, "auto" takes the folders where
        there are any. `class_names`: folder -> class name, or names in the order of the sorted
        folders; left out, the folders' names as words ("SeaLake" is "sea lake"). `size`: to what
        pictures are resized and cropped. Equal, number for number, to a data set that a TOML file
        declares (`reader = "folder"`).
        """
        root = Path(folder)
        if not root.is_dir():
            raise DataError(f"folder {not_found(root)}; from_folder reads a folder of image files")
        found = None if sensor is None else as_sensor(sensor)
        Declared(sensor=found, bands=bands, units=units)  # checks them
        if is_product(root, sensor=found):
            raise DataError(
                f"{root} is a product with one file per band, not a folder of samples; use "
                "space.embed(...) or open_scene(...)"
            )
        pixels = Pixels(
            sensor=_folder_sensor(root, found),
            size=size,
            bands=None if bands is None else tuple(bands),
            dn_offset=dn_offset,
            units=units,
            composite=composite,
        )
        if pixels.sensor == SENSORS["rgb"]:
            meaning = {"bands": bands, "units": units, "dn_offset": dn_offset}
            _refuse({**meaning, "composite": composite}, "has no effect on pictures")
        folders = sorted(one.name for one in root.iterdir() if one.is_dir() and one.name[0] != ".")
        if labels not in ("auto", "folders", None):
            raise DataError(f'labels = {labels!r}; expected "folders", "auto" or None')
        labelled = bool(folders) if labels == "auto" else labels == "folders"
        if not labelled:
            texts = {"class_names": class_names, "prompts": prompts}
            _refuse(texts, "has no effect on samples without labels")
        open_at = partial(
            _open_folder,
            root,
            name=_checked_name(name or root.resolve().name),
            split=split,
            classes=_folder_classes(folders, class_names) if labelled else None,
            pixels=pixels,
            prompts=_templates(prompts),
        )
        samples = open_at(size=size)
        check_samples(samples)
        return cls(samples, resize=open_at if size is None and "rgb" in samples.layouts else None)

    @classmethod
    def from_torchgeo(
        cls,
        dataset: Any,
        *,
        sensor: str | Sensor,
        bands: Sequence[str] | None = None,
        units: Units | None = None,
        dn_offset: float | None = None,
        composite: str | None = None,
        image_key: str = "image",
        label_key: str | None = "label",
        class_names: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        name: str | None = None,
        split: str | None = None,
    ) -> Samples:
        """The samples of a torchgeo `NonGeoDataset`, or of a data set like one.

        It must provide `len(dataset)` and `dataset[i]`, a dictionary with a (C, H, W) tensor under
        `image_key` and, for labels, a class number or a (K,) vector of zeros and ones under
        `label_key`; a torch `Subset` of one will do. Class names are its `classes`, unless
        `class_names` are given. `bands`: of its channels in order; left out, those that it names
        itself in `bands`, `all_bands` or `all_band_names`. More than three channels need either.
        `units`: left out, the numbers are DN, as torchgeo reads files, or the units of a sensor
        without DN. Samples are read one at a time, as the data set's `transforms` give them: these
        must not be random. Where it has no `targets`, all samples are read once for their labels.
        """
        found = as_sensor(sensor)
        image = partial(tensor_of, image_key=image_key)
        first = describe_items(dataset, image, needs=f"dictionaries with a tensor {image_key!r}")
        layout = declare_layout(
            found,
            _item_bands(dataset, found, len(first)) if bands is None else bands,
            units=units or ("dn" if has_dn(found) else "physical"),
            dn_offset=dn_offset,
            composite=composite,
            shape=first.shape,
        )
        values = None
        if label_key is not None and label_key in dataset[0]:
            values = item_labels(dataset, lambda item: item[label_key])
        return cls._from_items(
            dataset,
            image,
            layout,
            values,
            class_names,
            prompts,
            name=name or type(whole_of(dataset)).__name__.lower(),
            split=split or str(getattr(whole_of(dataset), "split", "all")),
        )

    @classmethod
    def from_torchvision(
        cls,
        dataset: Any,
        *,
        class_names: Sequence[str] | None = None,
        prompts: Sequence[str] | None = None,
        size: Size | None = None,
        name: str | None = None,
        split: str = "all",
    ) -> Samples:
        """The pictures of a torchvision data set: `dataset[i]` is a pair (Pillow image, class).

        It must not have a `transform` that makes tensors: pictures are resized as their files
        would be. Class names are its `classes`, unless `class_names` are given. A torch `Subset`
        of one will do. Where it has no `targets`, all samples are read once for their labels.
        """
        describe_items(dataset, picture_of, needs="pairs (Pillow image, class)")
        rgb = SENSORS["rgb"]
        samples = cls._from_items(
            dataset,
            picture_of,
            declare_layout(rgb, None, units="dn"),
            item_labels(dataset, lambda item: item[1]),
            class_names,
            prompts,
            name=name or type(whole_of(dataset)).__name__.lower(),
            split=split,
        )
        whole = samples._samples
        assert isinstance(whole, ItemSet)
        return samples if size is None else Samples(whole.at_size(size))

    @classmethod
    def _from_items(
        cls,
        dataset: Any,
        image: Callable[[Any], NDArray[Any]],
        layout: PixelLayout,
        values: list[Any] | None,
        class_names: Sequence[str] | None,
        prompts: Sequence[str] | None,
        *,
        name: str,
        split: str,
    ) -> Samples:
        name = _checked_name(name)
        if values is not None and class_names is None:
            classes = item_classes(dataset)
            class_names = None if classes is None else tuple(map(as_words, classes))
        samples = ItemSet.open(
            dataset,
            image,
            layout,
            labels=_labels_of(values, class_names, len(dataset), name=name, split=split),
            prompts=_templates(prompts),
            name=name,
            split=split,
        )
        check_samples(samples)
        return cls(samples, resize=samples.at_size if layout.sensor == SENSORS["rgb"] else None)

    @classmethod
    def open(
        cls,
        name_or_toml: str | Path,
        *,
        data_root: str | Path | None = None,
        split: str = "test",
        size: Size | None = None,
    ) -> Samples:
        """A data set by name, from the TOML file that declares it, or from its packed store.

        What `terralign evaluate --data` opens. `data_root`: the folder that holds the data sets'
        own folders. `size`: to what RGB pictures are resized and cropped.
        """
        root = None if data_root is None else Path(data_root)
        open_at = partial(open_dataset, str(name_or_toml), data_root=root, split=split)
        samples = open_at(size=size)
        return cls(samples, resize=open_at if size is None and "rgb" in samples.layouts else None)

    @staticmethod
    def fetch(name: str, *, data_root: str | Path) -> None:
        """Download a data set of the catalog into the data root, as `terralign fetch` does, without
        asking: its licence is the caller's to know (`terralign info NAME`). Resumes, and does
        nothing for what is there.

        `DataError` for a set without an open address and for files that are not the published ones.
        """
        fetch(plan_fetch(name, Path(data_root)))


def _refuse(given: Mapping[str, Any], reason: str) -> None:
    for key, value in given.items():
        if value is not None:
            raise DataError(f"{key} {reason}; leave it out")


def _item_bands(dataset: Any, sensor: Sensor, num_channels: int) -> Sequence[str] | None:
    """The channels of another library's data set, as it names them; None: as its sensor has them.

    `DataError` where more than three channels are not named.
    """
    whole = whole_of(dataset)
    for attribute in ("bands", "all_bands", "all_band_names"):
        named = getattr(whole, attribute, None)
        if not isinstance(named, list | tuple) or len(named) != num_channels:
            continue
        if not all(isinstance(one, str) for one in named):
            continue
        try:
            bands = sensor.resolve(named)
        except SensorError:
            break  # another order than the one it names is not to be guessed
        logger.info("%s: the bands are its %s", type(whole).__name__, attribute)
        return bands
    if num_channels > 3:
        raise DataError(
            f"{type(whole).__name__} has {num_channels} channels and does not name them as bands "
            f"of {sensor.name!r} ({', '.join(sensor.band_names)}); name them in the data "
            "set's order (bands=)"
        )
    return None


# Names and labels


def as_words(name: str) -> str:
    """A folder's or class's name as words for a prompt: "SeaLake" and "sea_lake" are "sea lake".

    A word in capitals alone stays as it is.
    """
    words = re.sub(r"(?<=[a-z])(?=[A-Z])|[_-]+", " ", name).split()
    return " ".join(one if one.isupper() else one.lower() for one in words) or name


def _checked_name(name: str) -> str:
    if not isinstance(name, str) or not re.fullmatch(r"[\w][\w .-]*", name):
        raise DataError(
            f"name = {name!r}: results and folders are named by it; use letters, digits, - _ . "
            "and spaces"
        )
    return name


def _templates(prompts: Sequence[str] | None) -> tuple[str, ...] | None:
    if prompts is None:
        return None
    found = (prompts,) if isinstance(prompts, str) else _texts(prompts, what="prompts")
    for template in found:
        if template.count("{}") != 1:
            raise DataError(f"the template {template!r} needs {{}} once, for the class")
    if not found:
        raise DataError("prompts has no template; leave it out to use the space's")
    return found


def _texts(given: Any, *, what: str, wanted: str = "a list of texts") -> tuple[str, ...]:
    """Texts that are not empty, in their order; `DataError` calls them `what`."""
    texts = _listed(given, what=what, wanted=wanted)
    for number, text in enumerate(texts):
        if not isinstance(text, str) or not text.strip():
            raise DataError(f"{what}[{number}] is {_described(text)}; expected a text")
    return tuple(map(str, texts))


def _listed(given: Any, *, what: str, wanted: str) -> tuple[Any, ...]:
    """What a list, an array or another ordered series holds; `DataError` for anything else."""
    unordered = isinstance(given, str | bytes | Mapping | Set)
    if unordered or not hasattr(given, "__iter__") or getattr(given, "shape", None) == ():
        raise DataError(f"{what} is {_described(given)}; expected {wanted}")
    return tuple(given)


def _described(value: Any) -> str:
    """A value as errors show it: "None", "an empty text", "3 (int)"."""
    if value is None:
        return "None"
    if isinstance(value, str):
        return f"{value!r:.100} (one text)" if value.strip() else "an empty text"
    return f"{value!r:.100} ({type(value).__name__})".replace("\n", " ")


def _twice(names: Sequence[str]) -> str | None:
    """The first name that occurs more than once."""
    return next((name for name, count in Counter(names).items() if count > 1), None)


def _keys_of(keys: Sequence[str] | None, num_samples: int) -> tuple[str, ...]:
    if keys is None:
        return counted_keys(num_samples)
    given = _listed(keys, what="keys", wanted="a list of names, one per sample")
    found = _texts(
        [str(one) if isinstance(one, PurePath | Integral) else one for one in given], what="keys"
    )
    if len(found) != num_samples:
        raise DataError(f"{len(found)} keys for {num_samples} samples")
    twice = _twice(found)
    if twice is not None:
        raise DataError(f"keys name {twice!r} twice; every sample needs its own")
    return found


def _captions_of(
    captions: Sequence[str | Sequence[str]] | None, num_samples: int
) -> Captions | None:
    if captions is None:
        return None
    given = _listed(captions, what="captions", wanted="a list: of each sample a text or several")
    if len(given) != num_samples:
        raise DataError(f"{len(given)} captions for {num_samples} samples")
    found = tuple(
        _texts(
            [one] if isinstance(one, str) else one,
            what=f"captions[{number}]",
            wanted="a text or a list of texts",
        )
        for number, one in enumerate(given)
    )
    if not all(found):
        raise DataError("a sample has no caption; give every sample at least one, or none any")
    return found


def _labels_of(
    labels: Any, class_names: Sequence[str] | None, num_samples: int, *, name: str, split: str
) -> Labels | None:
    """Labels from class numbers (N,), class names (N,) or (N, K) bool."""
    if labels is None:
        _refuse({"class_names": class_names}, "has no effect without labels")
        return None
    names = None if class_names is None else _texts(class_names, what="class_names")
    values = _label_values(labels)
    if len(values) != num_samples:
        raise DataError(f"{len(values)} labels for {num_samples} samples")
    if values.dtype.kind == "U" and values.ndim == 1:
        values, names = _numbered(values.tolist(), names)
    if names is None:
        raise DataError(
            "labels are numbers, and class_names is missing: give one name per class, in order"
        )
    twice = _twice(names)
    if twice is not None:
        raise DataError(f"class_names has {twice!r} twice; every class needs its own")
    checked = _checked_values(values, len(names))
    found = Labels(values=checked, class_names=names, class_list=name)
    warn_unused(found, name=name, split=split)
    return found


def _label_values(labels: Any) -> NDArray[Any]:
    """(N,) or (N, K) numbers, or (N,) texts: all labels of one kind."""
    if hasattr(labels, "__array__") and labels.shape:
        values = as_numbers(labels)
        if values.dtype.kind not in "UOT":  # neither texts nor objects of any kind
            return values
        labels = values.tolist()
    wanted = "a list or an array, one label per sample"
    listed = _listed(labels, what="labels", wanted=wanted)
    if any(isinstance(one, str) for one in listed):
        return np.array(_texts(listed, what="labels"))
    missing = next((number for number, one in enumerate(listed) if one is None), None)
    if missing is not None:
        raise DataError(
            f"labels[{missing}] is None; every sample needs a label: leave out those without"
        )
    try:
        return np.array([as_numbers(one) if hasattr(one, "shape") else one for one in listed])
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError("labels differ in length; give one class number or K bools each") from error


def _numbered(
    labels: list[str], names: tuple[str, ...] | None
) -> tuple[NDArray[np.int64], tuple[str, ...]]:
    known = tuple(sorted(set(labels))) if names is None else names
    numbers = {name: number for number, name in enumerate(known)}
    unknown = next((one for one in labels if one not in numbers), None)
    if unknown is not None:
        raise DataError(f"label {unknown!r} is not one of class_names; {nearest(unknown, known)}")
    return np.array([numbers[one] for one in labels], dtype=np.int64), known


def _checked_values(
    values: NDArray[Any], num_classes: int
) -> NDArray[np.int64] | NDArray[np.bool_]:
    if values.ndim == 2:
        if values.shape[1] != num_classes:
            raise DataError(
                f"labels of shape {values.shape} for {num_classes} class names; expected "
                f"({len(values)}, {num_classes}), one column per class"
            )
        if not np.isin(values, (0, 1)).all():
            raise DataError("labels of several classes to a sample are True and False, or 0 and 1")
        return values.astype(np.bool_)
    if values.ndim != 1 or values.dtype.kind not in "iub":
        raise DataError(
            f"labels have shape {values.shape} and type {values.dtype}; expected (N,) class "
            "numbers or names, or (N, K) bools"
        )
    numbers = values.astype(np.int64)
    if len(numbers) and not 0 <= numbers.min() <= numbers.max() < num_classes:
        raise DataError(
            f"labels go from {numbers.min()} to {numbers.max()}, but there are {num_classes} "
            f"class names: expected 0 to {num_classes - 1}"
        )
    return numbers


# Arrays


def _declared_arrays(
    pixels: ArrayLike | Mapping[str, ArrayLike],
    sensor: str | Sensor | Mapping[str, Sensor] | None,
    bands: Any,
    units: Any,
    dn_offset: Any,
    composite: Any,
) -> tuple[dict[str, NDArray[Any]], dict[str, PixelLayout]]:
    """Sensor name -> numbers (N, C, H, W), and what they mean."""
    arrays: dict[str, NDArray[Any]] = {}
    layouts: dict[str, PixelLayout] = {}
    given = _by_sensor(pixels, sensor)
    for key, one, array in given:
        numbers = _pixel_numbers(array)
        layouts[one.name] = declare_layout(
            one,
            _of(key, bands),
            units=units_of(one, numbers.dtype, _of(key, units)),
            dn_offset=_of(key, dn_offset),
            composite=_of(key, composite),
            shape=numbers.shape,
        )
        arrays[one.name] = numbers
    sizes = {name: len(array) for name, array in arrays.items()}
    if len(arrays) < len(given) or len(set(sizes.values())) > 1:
        shown = ", ".join(f"{name} {size:,}" for name, size in sizes.items())
        raise DataError(
            f"pixels of several sensors are of the same samples, in one order; found {shown}"
        )
    return arrays, layouts


def _by_sensor(
    pixels: ArrayLike | Mapping[str, ArrayLike],
    sensor: str | Sensor | Mapping[str, Sensor] | None,
) -> list[tuple[str, Sensor, ArrayLike]]:
    """(key of keywords that are given by sensor, the sensor, its pixels)."""
    if not isinstance(pixels, Mapping):
        if sensor is None or isinstance(sensor, Mapping):
            raise DataError("sensor is missing: name the one that made the pixels (sensor=)")
        one = as_sensor(sensor)
        if not isinstance(one, Sensor):
            raise DataError(
                f"sensor = {_described(one)}; expected a sensor's name, its .toml file or a Sensor"
            )
        return [(one.name, one, pixels)]
    if sensor is not None and not isinstance(sensor, Mapping):
        raise DataError("pixels are given by sensor; leave sensor out")
    if not pixels:
        raise DataError("pixels name no sensor")
    for key in pixels:
        if not isinstance(key, str):
            raise DataError(f"pixels name {key!r:.100} for a sensor; expected a sensor's name")
    custom = sensor or {}
    return [(key, custom.get(key) or as_sensor(key), one) for key, one in pixels.items()]


def _pixel_numbers(array: ArrayLike) -> NDArray[Any]:
    """(N, C, H, W) numbers; `DataError` for anything else."""
    try:
        numbers = as_numbers(array)
    except (ValueError, TypeError) as error:  # ragged lists, sparse tensors
        raise DataError(
            f"pixels are no array ({first_line(error)}); expected numbers (N, C, H, W), all "
            "samples of one size"
        ) from error
    if numbers.ndim != 4 or numbers.dtype.kind not in "iuf" or not numbers.size:
        raise DataError(
            f"pixels have shape {numbers.shape} and type {numbers.dtype}; expected numbers "
            "(N, C, H, W) of at least one sample, channels first, and one pixel"
        )
    return numbers


def _of(sensor: str, value: Any) -> Any:
    """One sensor's value of a keyword that may be given by sensor."""
    return value.get(sensor) if isinstance(value, Mapping) else value


def _check_each(samples: ArraySet) -> None:
    """Some samples, evenly spaced, one by one: a few of another kind hide among many."""
    for sensor, layout in samples.layouts.items():
        if sensor == "rgb" and samples.arrays[sensor].dtype == np.uint8:
            continue
        for row in np.unique(np.linspace(0, len(samples) - 1, 256).astype(np.int64)):
            origin = f"data set {samples.name!r}, {samples.keys[row]}, {sensor}"
            check_sample(np.asarray(samples.arrays[sensor][row]), layout, origin=origin)


# Folders


_SYNSET = re.compile(r"n\d{8}")
"""A class folder of ImageNet."""


def _folder_sensor(root: Path, sensor: Sensor | None) -> Sensor:
    if sensor is not None:
        return sensor
    files = list_images(root)
    rasters = [one for one in files if one.suffix.lower() in RASTER_SUFFIXES]
    if rasters and len(rasters) == len(files):
        raise DataError(
            f"{root} holds GeoTIFFs, such as {rasters[0].name}; name the sensor that made them "
            '(sensor=; "rgb" for plain pictures)'
        )
    return SENSORS["rgb"]


def _folder_classes(
    folders: Sequence[str], class_names: Mapping[str, str] | Sequence[str] | None
) -> dict[str, str]:
    """Folder -> class name."""
    if isinstance(class_names, Mapping):
        return dict(class_names)
    if class_names is None and folders and all(map(_SYNSET.fullmatch, folders)):
        logger.warning(
            "the class folders have numbers of WordNet for names, such as %s, which no text "
            "describes; give class_names=: folder -> name, or names in this order",
            folders[0],
        )
    names = class_names if class_names is not None else [as_words(one) for one in folders]
    if isinstance(names, str) or len(names) != len(folders):
        raise DataError(
            f"{len(names)} class names for {len(folders)} class folders ({', '.join(folders[:5])}"
            f"{', ...' * (len(folders) > 5)}); give one each, in this order, or folder -> name"
        )
    if len(set(names)) < len(names):
        raise DataError("two class folders have one class name; give class_names by folder")
    return dict(zip(folders, names, strict=True))


def _open_folder(
    root: Path,
    *,
    size: Size | None,
    name: str,
    split: str,
    classes: Mapping[str, str] | None,
    pixels: Pixels,
    prompts: tuple[str, ...] | None,
) -> SampleSet:
    read = pixels.at_size(size)
    return open_folder(
        root, name=name, split=split, classes=classes, class_list=name,
        pixels=read, prompts=prompts,
    )  # fmt: skip
