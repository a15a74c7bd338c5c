"""What a space carries to data that it was not trained on: captions, and another camera.

    python benchmarks/transfer.py MODEL --base BASE --data-root DATA

Captions: each of the captions of AID's pictures (`aid_captions.json`, five a picture) ranks the
pictures; a hit is any picture that has the caption. Intervals resample pictures with their
captions.

HLS: chips of 30 m in windows of 64 pixels, those of which half is one class of WorldCover, are
classified by text among these classes; the share of each class that is found, and their mean.
Intervals resample places. The Sentinel-2 tower gets 7 of its bands.

`patched less base` and `TOWER less patched` are differences on the same resamples.
"""

from __future__ import annotations

import argparse
import itertools
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from search_truth import WORLDCOVER, chip_windows, embed_windows, percent
from terralign.datasets.catalog import open_dataset
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.encoders.zeroshot import embed_text
from terralign.evaluation.bootstrap import Statistic, observe, percentile_interval, resample
from terralign.evaluation.embed import choose_route, embed_samples

KS = (1, 5, 10)
NUM_BOOTSTRAP = 1000


def main() -> None:
    """Measure, print one JSON line a value."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--base", required=True, help="the CLIP that it was patched from")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument("--tower", default="sentinel2", help="of Sentinel-2")
    arguments = parser.parse_args()
    base, space = map(EmbeddingSpace.load, (arguments.base, arguments.model))
    measure_captions({"base": base, "patched": space}, arguments.data_root)
    measure_covers(base, space, arguments.tower, arguments.data_root / "hls" / "chips.npz")


def measure_captions(spaces: Mapping[str, EmbeddingSpace], data_root: Path) -> None:
    """Recall@k of text to image."""
    samples = open_dataset("aid", data_root=data_root, split="all", size=64)
    texts, pictures_of, queries = read_captions(data_root / "aid_captions.json", samples.keys)
    owner, text_of = queries.T
    hits = {}
    for name, space in spaces.items():
        pictures = embed_samples(space, samples, choose_route(space, samples, RGB)).vectors.numpy()
        scores = embed_text(space.clip, texts).numpy() @ pictures.T
        ranked = np.argsort(-scores, axis=1, kind="stable")
        right = np.array([np.isin(one, own) for one, own in zip(ranked, pictures_of, strict=True)])
        found = np.stack([right[:, :k].any(1) for k in KS], axis=1)
        hits[name] = found[text_of].astype(np.float64)
    chances = 1 - np.array(
        [[(1 - len(own) / len(samples)) ** k for k in KS] for own in pictures_of]
    )
    report(
        "captions of AID, text to image", [f"recall@{k}" for k in KS],
        {name: mean_of_groups(values, owner) for name, values in hits.items()}, len(samples),
        num=len(queries), chance=list(chances[text_of].mean(0)),
    )  # fmt: skip


def read_captions(
    path: Path, keys: Sequence[str]
) -> tuple[list[str], list[list[int]], NDArray[np.int64]]:
    """The distinct captions (T,), the pictures that have each, and (Q, 2) the picture and the
    caption of every query. `keys`: those of the pictures, in order."""
    row_of = {key: row for row, key in enumerate(keys)}
    pictures_of: dict[str, list[int]] = {}
    queries = []
    for image in json.loads(path.read_text())["images"]:
        row = row_of[image["filename"].removesuffix(".jpg")]
        for sentence in image["sentences"]:
            pictures_of.setdefault(sentence["raw"], []).append(row)
            queries.append((row, list(pictures_of).index(sentence["raw"])))
    return (
        list(pictures_of),
        [sorted(set(rows)) for rows in pictures_of.values()],
        np.array(queries),
    )


def measure_covers(base: EmbeddingSpace, space: EmbeddingSpace, tower: str, path: Path) -> None:
    """Zero-shot classification of the HLS windows."""
    pixels, shares, places = chip_windows(path, side=64)
    kept = np.flatnonzero(shares.max(1) >= 0.5)
    pixels = [pixels[row] for row in kept]
    labels = shares[kept].argmax(1)
    _, members = np.unique(places[kept], return_inverse=True)
    names = list(WORLDCOVER.values())
    statistics = {}
    for name, one, by in (("base", base, RGB), ("patched", space, RGB), (tower, space, tower)):
        vectors = embed_windows(one, pixels, by)
        predicted = (vectors @ one.zero_shot_weights(names).numpy().T).argmax(1)
        statistics[name] = recall_of_classes(predicted == labels, labels, members, len(names))
    own = [labels == number for number in range(len(names))]
    report(
        "HLS, zero-shot", [*names, "mean of classes"], statistics, int(members.max()) + 1,
        num=len(kept), windows_of_class=[int(one.sum()) for one in own],
        places_of_class=[len(np.unique(members[one])) for one in own], chance=1 / len(names),
    )  # fmt: skip


def mean_of_groups(values: NDArray[np.float64], groups: NDArray[np.int64]) -> Statistic:
    """The mean of `values` (Q, M) where whole groups (Q,) are drawn."""
    number = int(groups.max()) + 1
    sums = np.zeros((number, values.shape[1]))
    np.add.at(sums, groups, values)
    sizes = np.bincount(groups, minlength=number)
    return lambda counts: (counts @ sums) / (counts @ sizes)[:, None]


def recall_of_classes(
    right: NDArray[np.bool_], labels: NDArray[np.int64], groups: NDArray[np.int64], num_classes: int
) -> Statistic:
    """The share of each class that is found, and their mean, where whole groups are drawn; NaN
    without a class."""
    size = (int(groups.max()) + 1, num_classes)
    found, all_of = np.zeros(size), np.zeros(size)
    np.add.at(found, (groups, labels), right)
    np.add.at(all_of, (groups, labels), 1)

    def statistic(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        with np.errstate(invalid="ignore"):
            recall = (counts @ found) / (counts @ all_of)
        return np.column_stack([recall, recall.mean(axis=1)])

    return statistic


def report(
    what: str,
    metrics: list[str],
    statistics: Mapping[str, Statistic],
    num_groups: int,
    **facts: Any,
) -> None:
    """One line for each model and for each model less the one before it."""
    observed = {name: observe(one, num_groups) for name, one in statistics.items()}
    drawn = {
        name: resample(one, num_groups, num_bootstrap=NUM_BOOTSTRAP, seed=0)
        for name, one in statistics.items()
    }
    names = list(statistics)
    for before, after in itertools.pairwise(names):
        observed[f"{after} less {before}"] = observed[after] - observed[before]
        drawn[f"{after} less {before}"] = drawn[after] - drawn[before]
    print(json.dumps({"what": what, "resampled": num_groups, **facts}))
    for name, values in observed.items():
        line: dict[str, Any] = {"what": what, "model": name}
        for metric, value, own in zip(metrics, values.tolist(), drawn[name].T, strict=True):
            line[metric] = [percent(one) for one in (value, *percentile_interval(value, own))]
        print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
