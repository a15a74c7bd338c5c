"""The frozen teacher's embeddings of seeded views: computed once, stored, memory-mapped.

The teacher is 85 % of the work of stage 2 with a large CLIP, and it never changes: the embedding
of (sample, view) depends on the teacher, its preprocessing, the data and the view seed alone, and
the file is named by the hash of these. float16: 414 MB for 270,000 samples of 768 dimensions.

Letters: V views, N samples, B batch, D embedding.
"""

from __future__ import annotations

import os
import time
from collections.abc import Generator, Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel
from torch import Tensor

from terralign import ranks
from terralign.chips import PixelLayout
from terralign.compute import inference_depends, inferring
from terralign.datasets.feeding import block_of, raw_pixels, starts_of
from terralign.datasets.sample import SampleSet, only_sensors, optical_layout
from terralign.encoders.clip.load import ClipModel
from terralign.errors import StorageError, TrainingError
from terralign.feed import Raw, feed
from terralign.files import check_free_space, hash_file, read_json, write_json
from terralign.preprocess import (
    Views,
    ViewSpec,
    apply_views,
    draw_views,
    make_ready,
    scale_composite,
)
from terralign.progress import Progress
from terralign.train.stage import Stage, run_stage

SECONDS_BETWEEN_FLUSHES = 15.0


@dataclass(frozen=True, kw_only=True, slots=True)
class ViewPlan:
    """Which views of a sample the teacher sees: `num_views` of them, seeded, of geometry `spec`.

    Where a sample is seen for the n-th time (0-based), it is in view n modulo `num_views`.
    """

    spec: ViewSpec
    num_views: int
    seed: int

    def stored(self, view: int) -> int:
        """Which of the views view number `view` of a batch is."""
        return view % self.num_views


def teacher_pictures(clip: ClipModel, raw: Tensor, layout: PixelLayout, views: Views) -> Tensor:
    """Ready pixels (B, 3, H, W) of views, as the teacher takes them, from raw ones (B, C, H, W).

    `layout`: of the samples' optical sensor. A sensor that cannot make RGB has its teacher look at
    the paired optical chip of the sample.
    """
    spec = clip.input_spec
    return make_ready(apply_views(scale_composite(raw, layout), views, spec.size), spec)


def teacher_features(clip: ClipModel, pictures: Tensor) -> Tensor:
    """(B, D) float32 embeddings, not normalised, of ready pixels on the device of the teacher.

    Computed as `compute.inferring` says whatever the precision of the training around it, as stored
    views are.
    """
    with inferring(pictures.device):
        features: Tensor = clip.visual(pictures)
    return features.float().clone()


class _Note(BaseModel):
    """Of stored views."""

    sha256: str


def view_features(
    clip: ClipModel,
    samples: SampleSet,
    plan: ViewPlan,
    blocks: Sequence[tuple[int, int]],
    size: int,
) -> Generator[Tensor, None, None]:
    """Features (B, D) float32, on the CPU, of each of the blocks (view, start) of `size` samples.

    Shared out among ranks, of which the first gets them, and the others none.
    """
    layout = optical_layout(samples)
    samples = only_sensors(samples, [layout.sensor.name])

    def read(block: tuple[int, int]) -> Raw[tuple[int, int]]:
        return Raw(
            block, {"pixels": raw_pixels(samples, layout, block_of(samples, block[1], size))}
        )

    def make(raw: Raw[tuple[int, int]]) -> Tensor:
        view, start = raw.known
        indices = block_of(samples, start, size)
        views = draw_views(plan.spec, seed=plan.seed, view=view, indices=indices)
        return teacher_pictures(clip, raw.tensors["pixels"], layout, views)

    device = next(clip.model.parameters()).device

    def embed(own: Sequence[tuple[int, int]]) -> Generator[ranks.Found, None, None]:
        with closing(feed(read, make, own, device=device)) as stream:
            for pictures in stream:
                yield (teacher_features(clip, pictures).cpu(),)

    with closing(ranks.share_out(blocks, embed)) as stream:
        for (features,) in stream:
            yield features


def views_stage(
    clip: ClipModel,
    samples: SampleSet,
    plan: ViewPlan,
    folder: Path,
    *,
    cache: Path | None = None,
) -> Stage:
    """What keeps the stored views of one teacher, data set and plan."""
    depends = {
        "teacher": clip.anchor_id(),
        "data": samples.fingerprint,
        "views": plan.spec.model_dump(mode="json"),
        "num_views": plan.num_views,
        "seed": plan.seed,
        "format": 2,
        **inference_depends(),
    }
    return Stage.named_by_identity(
        "the teacher's views",
        depends,
        folder,
        prefix="views-",
        suffixes=(".npy",),
        form=_Note,
        cache=cache,
    )


def stored_views(
    clip: ClipModel,
    samples: SampleSet,
    plan: ViewPlan,
    folder: Path,
    *,
    batch_size: int = 128,
    cache: Path | None = None,
) -> NDArray[np.float16]:
    """(V, N, D) float16 embeddings of the views, memory-mapped from `folder`.

    Computed where they do not exist yet, or linked from `cache`; an interrupted call is resumed.
    The checksum is verified at every opening; a damaged file is a `StorageError`.
    """
    stage = views_stage(clip, samples, plan, folder, cache=cache)
    note, path = stage.note, stage.note.with_suffix(".npy")
    kept = run_stage(stage, lambda: _compute(clip, samples, plan, path, batch_size), together=True)
    if hash_file(path) != kept["sha256"]:
        raise StorageError(f"{path} is damaged; delete it and {note.name} to compute it again")
    shape = (plan.num_views, len(samples), clip.dim)
    views: NDArray[np.float16] = np.load(path, mmap_mode="r", allow_pickle=False)
    if views.shape != shape or views.dtype != np.float16:
        raise StorageError(f"{path} holds {views.shape} {views.dtype}, expected {shape} float16")
    return views


def _compute(
    clip: ClipModel, samples: SampleSet, plan: ViewPlan, path: Path, batch_size: int
) -> dict[str, Any]:
    """What the note holds of the views in `path`, which are computed unless they are complete."""
    shape = (plan.num_views, len(samples), clip.dim)
    if not ranks.by_first(path.is_file):
        _compute_blocks(clip, samples, plan, path, shape, batch_size)
    if not ranks.is_first():
        return {}
    return {"sha256": hash_file(path), "shape": list(shape), "samples": samples.name}


def _compute_blocks(
    clip: ClipModel,
    samples: SampleSet,
    plan: ViewPlan,
    path: Path,
    shape: tuple[int, ...],
    batch_size: int,
) -> None:
    """Of several ranks the first writes."""
    partial = path.with_suffix(".partial.npy")
    state = path.with_suffix(".partial.json")
    blocks = [
        (view, start) for view in range(plan.num_views) for start in starts_of(samples, batch_size)
    ]
    views, begun = None, 0
    if ranks.is_first():
        views, begun = _begin(partial, state, shape, batch_size, len(blocks))
    done = ranks.by_first(lambda: begun)
    flushed = time.monotonic()
    label = f"teacher views of {samples.name} {samples.split}"
    with Progress(label, total=len(blocks), done=done, unit="batch") as progress:
        stream = view_features(clip, samples, plan, blocks[done:], batch_size)
        for number, found in enumerate(stream, start=done):
            assert views is not None
            view, start = blocks[number]
            features = found.half().numpy()
            if not np.isfinite(features).all():
                raise TrainingError(
                    f"the teacher's embeddings of {samples.name}, samples {start} and following, "
                    "do not fit float16; use live_teacher = true"
                )
            views[view, start : start + len(features)] = features
            progress.advance()
            if time.monotonic() - flushed > SECONDS_BETWEEN_FLUSHES:
                views.flush()
                write_json(state, {"blocks": number + 1, "batch_size": batch_size})
                flushed = time.monotonic()
    if views is None:
        return
    views.flush()
    del views
    os.replace(partial, path)
    state.unlink(missing_ok=True)


def _begin(
    partial: Path, state: Path, shape: tuple[int, ...], batch_size: int, num_blocks: int
) -> tuple[np.memmap[Any, Any], int]:
    """The views of an interrupted call and how many blocks they hold, else a file for new ones."""
    views = _begun(partial, shape)
    done = 0 if views is None else _blocks_done(state, batch_size, num_blocks)
    if views is None or not done:
        partial.parent.mkdir(parents=True, exist_ok=True)
        for old in (state, partial):  # of another file than the one that is begun here
            old.unlink(missing_ok=True)
        check_free_space(partial.parent, int(np.prod(shape)) * 2)
        views = np.lib.format.open_memmap(partial, mode="w+", dtype=np.float16, shape=shape)
        _take_space(partial)
    return views, done


def _begun(partial: Path, shape: tuple[int, ...]) -> np.memmap[Any, Any] | None:
    """The views of an interrupted call; None without any, or where they are damaged."""
    if partial.is_symlink() or not partial.is_file():
        return None
    try:
        views = np.lib.format.open_memmap(partial, mode="r+")
    except (ValueError, OSError):
        return None
    return views if views.shape == shape and views.dtype == np.float16 else None


def _blocks_done(state: Path, batch_size: int, num_blocks: int) -> int:
    """How many blocks of views were flushed to the disk; of no state, or a damaged one, none."""
    try:
        kept = read_json(state)
        done = kept["blocks"] if kept["batch_size"] == batch_size else 0
        return done if isinstance(done, int) and 0 <= done <= num_blocks else 0
    except (StorageError, LookupError, TypeError):
        return 0


def _take_space(path: Path) -> None:
    """Have the disk promise every byte of a new file now: a disk that fills up later would kill
    the process that writes to its memory map."""
    if not hasattr(os, "posix_fallocate"):
        return
    try:
        with open(path, "r+b") as file:
            os.posix_fallocate(file.fileno(), 0, path.stat().st_size)
    except OSError as error:
        path.unlink(missing_ok=True)
        raise StorageError(
            f"no space for {path} ({error.strerror}); free some and run the same command again"
        ) from error
