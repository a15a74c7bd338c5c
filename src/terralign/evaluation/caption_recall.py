"""Recall between images and their captions, of which an image may have several.

N images, T captions, D embedding dimensions, B a block's rows.

The usual protocol of image-text retrieval (CLIP_benchmark, RemoteCLIP and others): every caption is
a query for its one image; an image finds text as soon as one of its captions is among the first k.
A caption that stands with several images, as many do in RSICD and UCM-Captions, is right only for
the image it is a query for: word for word equal captions tie, so that each of their images counts
at its expected rank. Intervals resample images with all their captions, since the captions of one
image are no independent queries.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from terralign.errors import DataError
from terralign.evaluation.bootstrap import Floats, percentile_interval, resamples
from terralign.evaluation.metrics import Metric, MetricResult, Outcomes
from terralign.evaluation.ranking import DEFAULT_KS, by_column, recall_per_query
from terralign.evaluation.similarity import BLOCK, GalleryPenalty, Similarities

Counts = NDArray[np.int64]


def captions_find_images(
    captions: Floats,
    images: Floats,
    num_captions: Counts,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    penalty: GalleryPenalty | None = None,
    block: int = BLOCK,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> MetricResult:
    """`recall@k` of T caption queries (T, D) over N images (N, D), ranked by cosine.

    `num_captions`: (N,) how many captions each image has, at least one; they lie one image after
    another. `penalty`: rank by penalised cosines instead, see `hubness.py`. Chance: min(1, k / N).
    Memory as in `retrieval_metrics`. Raises `DataError`.
    """
    _check_counts(num_captions, len(captions), len(images))
    owners = np.repeat(np.arange(len(images), dtype=np.int64), num_captions)
    hits = recall_per_query(captions, images, owners, ks=ks, penalty=penalty, block=block)
    ks = sorted(set(ks))
    chances = [min(1.0, k / len(images)) for k in ks]
    return _mean_over_images(
        ks, hits, num_captions, chances, num_bootstrap=num_bootstrap, seed=seed
    )


def images_find_captions(
    images: Floats,
    captions: Floats,
    num_captions: Counts,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    penalty: GalleryPenalty | None = None,
    block: int = BLOCK,
    num_bootstrap: int = 1000,
    seed: int = 0,
) -> MetricResult:
    """`recall@k` of N image queries (N, D) over T captions (T, D): the best-ranked own one counts.

    `num_captions`, `penalty` as in `captions_find_images`. Where `a` captions outrank the best own
    one and it ties with others, `t` in all and `n` of them own, every order of the `t` is equally
    likely: one of the n is among the first k with probability 1 - C(t - n, m) / C(t, m), m = k - a
    held to 0 to t. Chance: the same over all T captions, averaged over images.
    """
    hits = image_recall_per_query(
        images, captions, num_captions, ks=ks, penalty=penalty, block=block
    )
    ks = sorted(set(ks))
    nothing = np.zeros(len(images), dtype=np.int64)
    everything = np.full(len(images), len(captions), dtype=np.int64)
    chances = [float(_one_found(nothing, everything, num_captions, k).mean()) for k in ks]
    ones = np.ones(len(images), dtype=np.int64)
    return _mean_over_images(ks, hits, ones, chances, num_bootstrap=num_bootstrap, seed=seed)


def image_recall_per_query(
    images: Floats,
    captions: Floats,
    num_captions: Counts,
    *,
    ks: Sequence[int] = DEFAULT_KS,
    penalty: GalleryPenalty | None = None,
    block: int = BLOCK,
) -> Floats:
    """Each image's share in `recall@k` of `images_find_captions`: (N, M), a column per rising k.

    That of captions as queries is `ranking.recall_per_query`. Raises `DataError`.
    """
    _check_counts(num_captions, len(captions), len(images))
    if not ks or min(ks) < 1:
        raise DataError(f"ks is {tuple(ks)}; expected at least one k, each 1 or more")
    tiles = Similarities(images, captions, block=block, penalty=penalty)
    starts = np.cumsum(num_captions) - num_captions
    above, tied, own = (np.empty(len(images), dtype=np.int64) for _ in range(3))
    for rows in tiles.query_slices():
        units = tiles.unit_queries(rows)
        best, own[rows] = _best_own(tiles, rows, units, starts[rows], num_captions[rows])
        above[rows], tied[rows] = tiles.count(rows, units, best[:, 0])
    return np.stack([_one_found(above, tied, own, k) for k in sorted(set(ks))], axis=1)


def share_per_image(values: Floats, num_captions: Counts) -> Floats:
    """What each image adds to a mean over captions: (N, M), whose mean is that of `values` (T, M).

    For comparing two models by resampling images with all their captions.
    """
    firsts = np.cumsum(num_captions) - num_captions
    sums = np.add.reduceat(values, firsts, axis=0)
    return np.asarray(sums * (len(num_captions) / len(values)))


def outcomes_per_image(outcomes: Outcomes, num_captions: Counts) -> Outcomes:
    """`share_per_image` of what every caption (T,) adds to each metric."""
    return {
        name: share_per_image(values[:, None], num_captions)[:, 0]
        for name, values in outcomes.items()
    }


def _best_own(
    tiles: Similarities, rows: slice, units: Floats, starts: Counts, num_captions: Counts
) -> tuple[Floats, Counts]:
    """Each image's highest similarity to a caption of its own (B, 1), and how many have it (B,)."""
    best = np.full((len(units), 1), -np.inf)
    num_best = np.zeros(len(units), dtype=np.int64)
    for place in range(int(num_captions.max())):
        has = place < num_captions
        similarity = tiles.pairs(rows, units, np.where(has, starts + place, starts))
        higher = has & (similarity > best)[:, 0]
        num_best[has & (similarity == best)[:, 0]] += 1
        num_best[higher] = 1
        best[higher] = similarity[higher]
    return best, num_best


def _one_found(above: Counts, tied: Counts, own: Counts, k: int) -> Floats:
    """Probability that one of `own` among `tied` items is among the first k, `above` outranking."""
    places = np.clip(k - above, 0, tied)
    missed = np.ones(len(above))
    for item in range(int(own.max())):
        share = np.maximum(tied - places - item, 0) / np.maximum(tied - item, 1)
        missed *= np.where(item < own, share, 1.0)
    return np.asarray(1 - missed)


def _mean_over_images(
    ks: Sequence[int],
    hits: Floats,
    num_queries: Counts,
    chances: Sequence[float],
    *,
    num_bootstrap: int,
    seed: int,
) -> MetricResult:
    """Means of `hits` (Q, M) over queries; `num_queries` (N,) of each image, which are resampled.

    An image's queries are drawn together.
    """
    firsts = np.cumsum(num_queries) - num_queries
    sums = np.add.reduceat(hits, firsts, axis=0)
    values = sums.sum(axis=0) / len(hits)
    draws = resamples(len(num_queries), num_bootstrap=num_bootstrap, seed=seed)
    resampled = np.concatenate(
        [counts @ sums / (counts @ num_queries)[:, None] for counts in draws]
    )
    metrics = []
    for column, (k, chance) in enumerate(zip(ks, chances, strict=True)):
        value = float(values[column])
        low, high = percentile_interval(value, resampled[:, column])
        metrics.append(
            Metric(
                name=f"recall@{k}",
                value=value,
                low=low,
                high=high,
                num_samples=len(hits),
                chance=chance,
            )
        )
    names = [metric.name for metric in metrics]
    outcomes = by_column(names, share_per_image(hits, num_queries))
    return MetricResult(metrics=tuple(metrics), outcomes=outcomes)


def _check_counts(num_captions: Counts, num_given: int, num_images: int) -> None:
    if num_captions.shape != (num_images,) or num_captions.dtype.kind != "i":
        raise DataError(
            f"num_captions is {num_captions.shape} {num_captions.dtype}; expected "
            f"({num_images},) integers, one per image"
        )
    if num_images == 0 or num_captions.min() < 1:
        raise DataError("every image needs at least one caption to be found by, or to find")
    if num_captions.sum() != num_given:
        raise DataError(
            f"num_captions sums to {num_captions.sum()}; there are {num_given} captions"
        )
