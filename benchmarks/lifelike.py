"""Millions of vectors that lie as real embeddings do, made at run time from some thousands of them.

Real: windows of Sentinel-2, aerial tiles, and prompts, embedded by the starter model (256 numbers).
A vector is a real one, turned by a random rotation into a space of D dimensions (which keeps every
cosine), plus noise with the covariance that differences of real nearest neighbours have, half of it
outside of the space of the real ones. Text queries are real texts in the same rotation, so that
they keep their cosines to the real images, and with them the gap between texts and images.

With TERRALIGN_DATA the windows are those of EuroSAT, AID and a Sentinel-2 cut; without, those of
the scene that comes with terralign.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from terralign.demo import scene_path
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.vectors import as_unit
from terralign.index.probes import real_texts

_NEIGHBOURS = 20
SCENE = "S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543"


def real_vectors(space: EmbeddingSpace) -> NDArray[np.float32]:
    """(n, d) embeddings of real imagery by the RGB tower."""
    root = os.environ.get("TERRALIGN_DATA")
    scene = Path(root, "scenes", SCENE) if root else scene_path()
    found = [space.embed(scene, tower="rgb", window=64, stride=24, dn_offset=0).vectors]
    if root:
        tiles = Path(root, "eurosat_rgb")
        names = (tiles / "eurosat-spatial-train.txt").read_text().split()
        files = [str(tiles / "2750" / one.rsplit("_", 1)[0] / one) for one in names]
        files += sorted(map(str, Path(root, "aid").glob("*/*.jpg")))
        found.append(space.embed(files).vectors)
    return np.concatenate(found)


class Lifelike:
    """`vectors(num, seed)`: (num, D) of unit length. `texts`, `held_out`: (q, D) real texts."""

    def __init__(self, dim: int, kept: Path | None = None) -> None:
        space = EmbeddingSpace.load("starter")
        if kept is not None and kept.exists():
            real = np.load(kept)
        else:
            real = real_vectors(space)
            if kept is not None:
                np.save(kept, real)
        rng = np.random.default_rng(0)
        self.dim, self.num_real = dim, len(real)
        self._turn = np.linalg.qr(rng.normal(size=(dim, dim)))[0].astype(np.float32)
        self._real = real.astype(np.float32)
        self._noise = _root(_differences(self._real, rng))
        self.texts = self._turned(space.encode_text(real_texts()).numpy())

    def _turned(self, one: NDArray[np.float32], two: NDArray[np.float32] | None = None):  # type: ignore[no-untyped-def]
        d = one.shape[1]
        found = one @ self._turn[:d]
        if two is not None:
            found = found + two[:, : self.dim - d] @ self._turn[d : d + two.shape[1]]
        return found

    def vectors(self, num: int, seed: int) -> NDArray[np.float32]:
        """(num, D) of unit length."""
        rng = np.random.default_rng((7, seed))
        chosen = self._real[rng.integers(0, len(self._real), num)]
        d = chosen.shape[1]
        share = np.sqrt(0.5 if self.dim > d else 1.0).astype(np.float32)
        inside, outside = (
            rng.normal(size=(num, d)).astype(np.float32) @ self._noise * share for _ in range(2)
        )
        return as_unit(self._turned(chosen + inside, outside if self.dim > d else None))


def _differences(real: NDArray[np.float32], rng: np.random.Generator) -> NDArray[np.float32]:
    """(n, d) from vectors to one of their nearest neighbours, over the root of 2."""
    found = np.empty_like(real)
    for first in range(0, len(real), 1024):
        some = real[first : first + 1024]
        near = np.argpartition(-(some @ real.T), _NEIGHBOURS, axis=1)[:, : _NEIGHBOURS + 1]
        chosen = near[np.arange(len(some)), rng.integers(0, _NEIGHBOURS + 1, len(some))]
        found[first : first + 1024] = (real[chosen] - some) / np.sqrt(2)
    return found


def _root(differences: NDArray[np.float32]) -> NDArray[np.float32]:
    """(d, d) that turns white noise into noise of their covariance."""
    covariance = differences.T @ differences / len(differences)
    values, vectors = np.linalg.eigh(covariance)
    return (np.sqrt(values.clip(0))[:, None] * vectors.T).astype(np.float32)
