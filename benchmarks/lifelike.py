"""Millions of vectors that lie as real embeddings do, made at run time from some thousands of them.

Real are embeddings of imagery by the starter model (256 numbers): windows of a Sentinel-2 cut, and
with TERRALIGN_DATA the tiles of EuroSAT and AID. A made vector is a real one, turned by a random
rotation into D dimensions (which keeps every cosine), plus noise with the covariance that
differences of real nearest neighbours have, half of it outside of the space of the real ones.
Queries by text are real texts in the same rotation: so they keep their cosines to the real images,
and with them the gap between texts and images.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from terralign.demo import scene_path
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.vectors import as_unit

SCENE = "S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543"
STRIDE = 24
NEIGHBOURS = 20
"""Of these nearest ones of a real vector one is drawn for its difference."""

Array = NDArray[np.float32]


class Lifelike:
    """`vectors(num, seed)`: (num, D) of unit length. `encode_text`: texts as the space has them.

    `kept`: a file that keeps the real embeddings for another run.
    """

    def __init__(self, dim: int, kept: Path | None = None) -> None:
        self.space = EmbeddingSpace.load("starter")
        self.dim = dim
        if kept is not None and kept.exists():
            real = np.load(kept)
        else:
            real = real_vectors(self.space)
            if kept is not None:
                np.save(kept, real)
        self.real: Array = real.astype(np.float32)
        rng = np.random.default_rng(0)
        turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0].astype(np.float32)
        self._inside, self._outside = np.split(turn, [self.real.shape[1]])
        self._noise = _root(_differences(self.real, rng))

    def encode_text(self, texts: Sequence[str]) -> torch.Tensor:
        """(q, D) of unit length."""
        return self.space.encode_text(texts) @ torch.from_numpy(self._inside)

    def vectors(self, num: int, seed: int) -> Array:
        """(num, D) of unit length."""
        rng = np.random.default_rng((7, seed))
        chosen = self.real[rng.integers(0, len(self.real), num)]
        side = len(self._outside)
        share = np.float32(np.sqrt(0.5) if side else 1)
        found = (chosen + self._draw(rng, num) * share) @ self._inside
        if side:
            found += (self._draw(rng, num) * share)[:, :side] @ self._outside
        return as_unit(found)

    def _draw(self, rng: np.random.Generator, num: int) -> Array:
        return rng.standard_normal((num, len(self._noise)), dtype=np.float32) @ self._noise

    def describe(self, texts: Array, images: Array, sample: Array) -> dict[str, Any]:
        """Cosines of queries to their best of a sample, and of the sample to its neighbours."""
        best = {name: np.sort(one @ sample.T)[:, -1] for name, one in
                (("texts", texts), ("images", images))}  # fmt: skip
        return {
            "real": len(self.real),
            **{
                f"best_cosine_of_{name}": round(float(np.median(one)), 3)
                for name, one in best.items()
            },
            "mean_cosine": round(float((sample.mean(0) ** 2).sum()), 3),
        }


def real_vectors(space: EmbeddingSpace) -> Array:
    """(n, d) embeddings of real imagery by the RGB tower."""
    root = os.environ.get("TERRALIGN_DATA")
    scene = Path(root, "scenes", SCENE) if root else scene_path()
    found = [space.embed(scene, tower="rgb", window=64, dn_offset=0).vectors]
    if root:
        tiles = Path(root, "eurosat_rgb")
        names = (tiles / "eurosat-spatial-train.txt").read_text().split()
        files = [str(tiles / "2750" / one.split("_")[0] / one) for one in names]
        files += sorted(map(str, Path(root, "aid").glob("*/*.jpg")))
        found.append(space.embed(files).vectors)
    return np.concatenate(found)


def _differences(real: Array, rng: np.random.Generator) -> Array:
    """(n, d) from vectors to one of their nearest neighbours, over the root of 2."""
    found = np.empty_like(real)
    for first in range(0, len(real), 1024):
        some = real[first : first + 1024]
        near = np.argpartition(-(some @ real.T), NEIGHBOURS, axis=1)[:, : NEIGHBOURS + 1]
        chosen = near[np.arange(len(some)), rng.integers(0, NEIGHBOURS + 1, len(some))]
        found[first : first + 1024] = (real[chosen] - some) / np.sqrt(2)
    return found


def _root(differences: Array) -> Array:
    """(d, d) that turns white noise into noise of their covariance."""
    values, vectors = np.linalg.eigh(differences.T @ differences / len(differences))
    return np.asarray(np.sqrt(values.clip(0))[:, None] * vectors.T, dtype=np.float32)
