"""Embeddings computed once, kept by what they are made of.

The name of a file of embeddings is the hash of (tower, pixels, layout, preprocessing). Pixels are
known by a hash of the numbers themselves, so that labels, class lists and the name of a set do not
matter: the 43 and the 19 classes of one set share their embeddings, and a new metric, prompt set or
label set costs no forward pass.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from terralign.bench.models import Encoder
from terralign.datasets.batches import keep_in_memory, read_ahead
from terralign.datasets.fingerprint import describe_layout
from terralign.datasets.sample import SampleSet
from terralign.encoders.clip.weights import StateDict, read_state_dict, write_state_dict
from terralign.encoders.pixels import seen_shares
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import ModelError, StorageError
from terralign.evaluation.embed import Embedded, Route, gather_embedded
from terralign.evaluation.retrieval import embed_captions
from terralign.files import (
    HASH_LENGTH,
    check_free_space,
    hash_json,
    read_json,
    set_aside,
    write_json,
)
from terralign.progress import Progress

VERSION = 2
"""Raised with every change of what the vectors of the same pixels are."""

BATCH = 128
BYTES_PER_SAMPLE = 4 * 1024
"""What a vector takes on disk, at most: 1,024 numbers of float32."""


class Embeddings:
    """Vectors (N, D) by route, from `folder/embeddings` or computed into it.

    `folder/pixels` remembers the hash of a set's pixels by the set's fingerprint.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._kept: dict[str, SampleSet] = {}
        self._vectors: dict[str, StateDict] = {}

    def forget(self) -> None:
        """Let go of the pixels and vectors held in memory."""
        self._kept.clear()
        self._vectors.clear()

    def get(self, encoder: Encoder, samples: SampleSet, route: Route) -> Embedded:
        """(N, D) float32 embeddings of all samples, not normalised, and how much was valid."""
        key = self.key(encoder, samples, route)
        tensors = self._get(key, len(samples), lambda: self._embed(encoder, samples, route))
        whole = torch.ones(len(samples))
        return gather_embedded([tensors["embeddings"]], [tensors.get("valid", whole)])

    def captions(self, space: EmbeddingSpace, samples: SampleSet) -> Tensor:
        """(T, D) float32 embeddings of all captions, one sample after another."""
        texts = samples.captions or ()
        key = hash_json({"text": space.clip.text_id(), "captions": [list(own) for own in texts]})
        num_texts = sum(len(own) for own in texts)
        return self._get(
            key, num_texts, lambda: {"embeddings": torch.from_numpy(embed_captions(space, texts))}
        )["embeddings"]

    def _get(self, key: str, num: int, embed: Callable[[], StateDict]) -> StateDict:
        """The `num` vectors by this name, "embeddings" (and "valid", the share of valid numbers
        of each, where some are not): held, read, or computed and kept."""
        if key not in self._vectors:
            path = self.folder / "embeddings" / f"{key}.safetensors"
            vectors = _read_vectors(path, num)
            if vectors is None:
                check_free_space(self.folder, num * BYTES_PER_SAMPLE + 2**20)
                vectors = embed()
                write_state_dict(path, vectors)
            self._vectors[key] = vectors
        return self._vectors[key]

    def key(self, encoder: Encoder, samples: SampleSet, route: Route) -> str:
        """The name of the embeddings of a route."""
        return hash_json(
            {
                "version": VERSION,
                "tower": encoder.tower_id(route.tower),
                "pixels": self._pixels_id(samples, route.layout.sensor.name),
                "layout": describe_layout(route.layout),
                "spec": encoder.input_spec(route.tower).model_dump(mode="json"),
            }
        )

    def _pixels_id(self, samples: SampleSet, sensor: str) -> str:
        path = self.folder / "pixels" / f"{samples.fingerprint}.json"
        known = _read_hashes(path)
        if sensor not in known:
            known[sensor] = self._hash(samples, sensor)
            write_json(path, known)
        return known[sensor]

    def _hash(self, samples: SampleSet, sensor: str) -> str:
        digest = hashlib.sha256(str(len(samples)).encode())
        samples = self._in_memory(samples)
        with Progress(f"look at {samples.name} {samples.split}", total=len(samples)) as progress:
            for pixels in _batches(samples, sensor):
                digest.update(f"|{pixels.dtype}|{pixels.shape[1:]}|".encode())
                digest.update(np.ascontiguousarray(pixels).data)
                progress.advance(len(pixels))
        return digest.hexdigest()[:HASH_LENGTH]

    def _embed(self, encoder: Encoder, samples: SampleSet, route: Route) -> StateDict:
        samples = self._in_memory(samples)
        label = f"embed {samples.name} {samples.split} with {route.tower}"
        spec = encoder.input_spec(route.tower)
        rows, shares = [], []
        with Progress(label, total=len(samples), unit="sample") as progress:
            for pixels in _batches(samples, route.layout.sensor.name):
                batch = torch.from_numpy(np.require(pixels, requirements=["C", "W"]))
                rows.append(encoder.encode_layout(batch, route.layout, tower=route.tower))
                shares.append(seen_shares(spec, batch, route.layout, tower=route.tower))
                progress.advance(len(pixels))
        share = torch.cat(shares)
        valid = {} if bool((share == 1).all()) else {"valid": share}
        return {"embeddings": torch.cat(rows), **valid}

    def _in_memory(self, samples: SampleSet) -> SampleSet:
        if samples.fingerprint not in self._kept:
            self._kept[samples.fingerprint] = keep_in_memory(samples)
        return self._kept[samples.fingerprint]


def _read_vectors(path: Path, num_samples: int) -> StateDict | None:
    """ "embeddings" (N, D) float32 and perhaps "valid" (N,); None where there is no such file, or a
    damaged one, which is set aside."""
    if not path.is_file():
        return None
    try:
        state = read_state_dict(path)
        vectors, valid = state.get("embeddings"), state.get("valid")
    except ModelError as error:
        set_aside(path, error)
        return None
    wrong = valid is not None and valid.shape != (num_samples,)
    if vectors is None or vectors.ndim != 2 or len(vectors) != num_samples or wrong:
        set_aside(path, f"it does not hold the embeddings of {num_samples} samples")
        return None
    return state


def _read_hashes(path: Path) -> dict[str, str]:
    """Sensor -> hash of its pixels; a damaged file is set aside."""
    if not path.is_file():
        return {}
    try:
        known = read_json(path)
    except StorageError as error:
        set_aside(path, error)
        return {}
    if not isinstance(known, dict) or not all(isinstance(one, str) for one in known.values()):
        set_aside(path, "it holds no hashes")
        return {}
    return known


def _batches(samples: SampleSet, sensor: str) -> Iterator[NDArray[np.generic]]:
    def read(start: int) -> NDArray[np.generic]:
        indices = np.arange(start, min(start + BATCH, len(samples)), dtype=np.int64)
        return samples.read(indices)[sensor]

    return read_ahead(read, range(0, len(samples), BATCH))
