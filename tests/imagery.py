"""Small imagery for tests: GeoTIFFs, products with a file per band, pictures."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import torch
from numpy.typing import NDArray
from PIL import Image
from rasterio import Affine

from fakes import input_spec
from terralign.chips import Chip
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.sensor import TowerConfig, build_tower
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.scenes.scene import open_scene
from terralign.sensors import SENSORS

S2 = SENSORS["sentinel2-l2a"]
NEW_PRODUCT = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419"
"""Its name says that an offset of -1000 must be added."""
ORIGIN = (500_000, 5_000_000)


def write_geotiff(
    path: Path,
    pixels: NDArray[Any],
    names: Sequence[str] = (),
    *,
    gsd_m: float = 10,
    nodata: float | None = None,
    tags: Mapping[str, str] | None = None,
) -> Path:
    """Bands (C, H, W) in UTM 33N, described by `names`; `tags`: metadata items of the file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with (
        warnings.catch_warnings(),
        rasterio.open(
            path, "w", driver="GTiff", dtype=pixels.dtype, count=len(pixels), nodata=nodata,
            height=pixels.shape[1], width=pixels.shape[2], crs="EPSG:32633",
            transform=Affine(gsd_m, 0, ORIGIN[0], 0, -gsd_m, ORIGIN[1]),
        ) as file,
    ):  # fmt: skip
        file.write(pixels)
        file.update_tags(**(tags or {}))
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)
    return path


def read_chip(path: Path | str, **declared: Any) -> Chip:
    """The whole of a file or product."""
    return open_scene(path, **declared).read()


NO_OFFSET = {"BOA_ADD_OFFSET": "0"}
"""How a Sentinel-2 file states that nothing is to be added to its numbers."""


def dn(size: int, *, seed: int = 0, offset: int = 0) -> NDArray[np.uint16]:
    """(12, size, size) Sentinel-2 L2A numbers of land: some below 1000 where `offset` is 0."""
    rng = np.random.default_rng(seed)
    return (rng.integers(200, 3500, (12, size, size)) + offset).astype(np.uint16)


def write_product(folder: Path, pixels: NDArray[np.uint16]) -> Path:
    """A folder with one file per band at its own GSD, as Major-TOM has it."""
    for band, channel in zip(S2.bands, pixels, strict=True):
        factor = int(band.gsd_m or 10) // 10
        coarse = channel[::factor, ::factor]
        write_geotiff(folder / f"{band.name}.tif", coarse[None], (band.name,), gsd_m=10.0 * factor)
    return folder


def write_picture(path: Path, *, size: int = 48, seed: int = 0) -> Path:
    """An RGB picture."""
    path.parent.mkdir(parents=True, exist_ok=True)
    numbers = np.random.default_rng(seed).integers(0, 256, (size, size, 3), dtype=np.uint8)
    Image.fromarray(numbers).save(path)
    return path


def space_of(clip: ClipModel) -> EmbeddingSpace:
    """A space with a Sentinel-2 tower over four bands, with random weights."""
    spec = input_spec(S2.name, ("B02", "B03", "B04", "B08"), (0.0, 0.4), std=0.25)
    config = TowerConfig(name="s2", backbone="test_convnext3", input=spec, embed_dim=clip.dim)
    return EmbeddingSpace(
        clip,
        towers={"s2": build_tower(config, clip)},
        prompts=PromptSet(name="plain", templates=("{}",)),
    )


class KnownSpace(EmbeddingSpace):
    """A space whose cosine of a window and any text is the mean of B02 in it, as a share of 0.4."""

    def encode_ready(self, ready: torch.Tensor, *, tower: str) -> torch.Tensor:
        share = (ready[:, 0] * 0.25 + 0.5).mean((1, 2)).clip(0, 1)
        found = torch.zeros(len(ready), self.dim)
        found[:, 0], found[:, 1] = share, (1 - share**2).sqrt()
        return found

    def text_vector(self, query: Any, prompts: Any = None) -> NDArray[np.float32]:
        return np.eye(self.dim, dtype=np.float32)[0]

    def zero_shot_weights(self, labels: Any, prompts: Any = None, **others: Any) -> torch.Tensor:
        return torch.eye(self.dim)[: len(labels)]


def known_space(clip: ClipModel) -> KnownSpace:
    """The space of `space_of`, with towers that are a known function of the pixels."""
    plain = space_of(clip)
    return KnownSpace(clip, towers=plain.towers, prompts=plain.prompts)
