"""Embeddings computed once, kept by what they are made of.

Vectors depend on the tower, the pixels, their layout and the tower's input. Pixels have a name of
their own (`datasets.sample.pixels_id`), so that sets which differ in labels share embeddings: a new
metric, prompt set or label set needs no forward pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from pydantic import BaseModel

from terralign.bench.folder import set_damaged_aside
from terralign.datasets.batches import keep_in_memory
from terralign.datasets.fingerprint import describe_layout
from terralign.datasets.sample import SampleSet, pixels_id
from terralign.encoders.clip.weights import read_state_dict, write_state_dict
from terralign.encoders.protocols import ImageEncoder
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import ModelError, StorageError
from terralign.evaluation.bootstrap import Floats
from terralign.evaluation.embed import Embedded, Route, embed_samples
from terralign.evaluation.retrieval import embed_captions
from terralign.files import check_free_space
from terralign.train.stage import Stage, run_stage

VERSION = 3
"""Raised with every change of what the vectors of the same pixels are."""

BYTES_PER_SAMPLE = 4 * 1024
"""What a vector takes on disk, at most: 1,024 numbers of float32."""


class _Note(BaseModel):
    """Of kept embeddings."""

    valid_share: float
    num_empty: int


class Embeddings:
    """Vectors of images and captions, kept in `folder`; `cache`: see `run_bench`."""

    def __init__(self, folder: Path, cache: Path | None = None) -> None:
        self.folder, self.cache = folder, cache
        self._samples: dict[str, SampleSet] = {}
        self._embedded: dict[Path, Embedded] = {}

    def forget(self) -> None:
        """Drop the pixels and vectors held in memory."""
        self._samples.clear()
        self._embedded.clear()

    def images(self, encoder: ImageEncoder, samples: SampleSet, route: Route) -> Embedded:
        """(N, D) float32 embeddings of all samples, not normalised, and how much was valid. Raises
        `ModelError` where a tower gives values that are not finite."""
        depends = {
            "version": VERSION,
            "tower": encoder.tower_id(route.tower),
            "pixels": pixels_id(samples),
            "layout": describe_layout(route.layout),
            "spec": encoder.input_spec(route.tower).model_dump(mode="json"),
        }
        found = self._kept(
            depends, len(samples), lambda: embed_samples(encoder, self._held(samples), route)
        )
        if not bool(found.vectors.isfinite().all()):
            raise ModelError(f"tower {route.tower!r} gives values that are not finite")
        return found

    def captions(self, space: EmbeddingSpace, samples: SampleSet) -> Floats:
        """(T, D) float32 embeddings of all captions, one sample after another."""
        texts = samples.captions or ()
        depends = {"text": space.clip.text_id(), "captions": [list(own) for own in texts]}
        num_texts = sum(len(own) for own in texts)

        def embed() -> Embedded:
            return Embedded(vectors=torch.from_numpy(embed_captions(space, texts)))

        return np.asarray(self._kept(depends, num_texts, embed).vectors.numpy())

    def _kept(
        self, depends: Mapping[str, Any], num: int, embed: Callable[[], Embedded]
    ) -> Embedded:
        """`num` vectors: held, read, or computed and kept."""
        stage = Stage.named_by_identity(
            "embeddings", depends, self.folder, suffixes=(".safetensors",), form=_Note,
            cache=self.cache,
        )  # fmt: skip
        path = stage.note.with_suffix(".safetensors")

        def make() -> dict[str, Any]:
            check_free_space(self.folder, num * BYTES_PER_SAMPLE + 2**20)
            found = embed()
            write_state_dict(path, {"embeddings": found.vectors})
            return {"valid_share": found.valid_share, "num_empty": found.num_empty}

        if path not in self._embedded:
            set_damaged_aside(stage)
            note = run_stage(stage, make, renew=True)
            vectors = read_state_dict(path).get("embeddings")
            if vectors is None or vectors.ndim != 2 or len(vectors) != num:
                raise StorageError(
                    f"{path} is damaged: it does not hold {num} embeddings; delete it to make it "
                    "again"
                )
            self._embedded[path] = Embedded(
                vectors=vectors,
                valid_share=note["valid_share"],
                num_empty=note["num_empty"],
            )
        return self._embedded[path]

    def _held(self, samples: SampleSet) -> SampleSet:
        """The samples, held in memory where they fit: several towers read them."""
        if samples.fingerprint not in self._samples:
            self._samples[samples.fingerprint] = keep_in_memory(samples)
        return self._samples[samples.fingerprint]
