"""A small world in the official layouts of published data, for runs of what ships.

Each data set is written when a test first asks for it. Pixels depend on the class they show, so
that something can be learnt; they say nothing of real imagery.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

from fake_world import pictures, satellites
from fake_world.models import micro_clip, write_checkpoint, write_clip
from terralign.datasets.class_lists import load_class_list
from terralign.datasets.sample import WHOLE_SPLITS


@dataclass(frozen=True, slots=True)
class Source:
    """What one archive holds: how it is written, and split -> number of samples."""

    write: Callable[[Path], None]
    sizes: dict[str, int]


def _per_class(name: str, splits: Iterable[str]) -> dict[str, int]:
    return dict.fromkeys(splits, pictures.PER_CLASS * len(load_class_list(name)))


_EUROSAT = Source(
    satellites.write_eurosat,
    {
        split.removeprefix("spatial-") if split.startswith("spatial") else f"random-{split}": (
            len(numbers) * 10
        )
        for split, numbers in satellites.EUROSAT.items()
    },
)
_V1 = Source(satellites.write_bigearthnet_v1, satellites.BIGEARTHNET)
_V2 = Source(satellites.write_bigearthnet_v2, satellites.BIGEARTHNET)
_MINI = Source(satellites.write_bigearthnet_mini, satellites.MINI)
_TINY = pictures.PER_CLASS * len(pictures.TINY_IMAGENET)
_IMAGENET = pictures.PER_CLASS * 1000

SOURCES: dict[str, Source] = {
    **{f"bigearthnet-{kind}{number}": _V1 for kind in ("", "mm-") for number in (43, 19, 5)},
    **{f"bigearthnet-v2-{kind}{number}": _V2 for kind in ("", "mm-") for number in (19, 5)},
    **dict.fromkeys(("bigearthnet-mini", "bigearthnet-mini-43", "bigearthnet-mini-5"), _MINI),
    "eurosat-ms": _EUROSAT,
    "eurosat-rgb": _EUROSAT,
    "sen12ms": Source(satellites.write_sen12ms, satellites.SEN12MS),
    "s2-l2a": Source(satellites.write_s2_l2a, satellites.S2_L2A),
    **{
        name: Source(
            partial(pictures.write_scene_archive, name=name),
            _per_class(name, pictures.SPLITS if name in pictures.SPLIT_LISTS else WHOLE_SPLITS),
        )
        for name in pictures.SCENES
    },
    "tiny-imagenet": Source(pictures.write_tiny_imagenet, {"train": _TINY, "val": _TINY}),
    "imagenet": Source(
        pictures.write_imagenet_val,
        {"val": _IMAGENET, "val-select": _IMAGENET // 2, "val-report": _IMAGENET // 2},
    ),
    "cifar100": Source(pictures.write_cifar100, {"val": 20, "test": 200}),
    **{
        name: Source(partial(pictures.write_captioned, name=name), pictures.CAPTION_SIZES)
        for name in pictures.CAPTIONED
    },
}
"""By the names of the catalog; those that lie in the same files share one."""

BUILT_IN_SIZES = {"train": 16_000, "val": 2_000, "test": 2_000}
"""Of the synthetic data sets, which lie in no files."""


@dataclass(slots=True)
class FakeWorld:
    """A data root that grows as tests name what they need."""

    root: Path
    _written: list[Callable[[Path], None]] = field(default_factory=list)

    def add_data(self, names: Iterable[str]) -> None:
        """Write the data sets that are not there yet; built-in ones lie in no files."""
        for name in names:
            if name.startswith("synthetic-") or SOURCES[name].write in self._written:
                continue
            SOURCES[name].write(self.root)
            self._written.append(SOURCES[name].write)

    def add_micro_clip(self) -> None:
        """The base model of the micro recipes, where they look for it."""
        if not (self.root / "micro-clip").is_dir():
            write_clip(micro_clip(), self.root / "micro-clip")

    def add_checkpoint(self, path: str, num_bands: int) -> None:
        """A student's self-supervised checkpoint, where a recipe names it."""
        if not (self.root / path).is_file():
            write_checkpoint(self.root / path, num_bands)

    @staticmethod
    def size(name: str, split: str) -> int:
        """The number of samples of a split."""
        sizes = BUILT_IN_SIZES if name.startswith("synthetic-") else SOURCES[name].sizes
        return sizes[split]
