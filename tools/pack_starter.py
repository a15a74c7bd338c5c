"""Make the model that ships with terralign, `src/terralign/models/starter`, and its card.

    python tools/pack_starter.py RUN BASE --data-root DATA

RUN is the folder of a finished `terralign run starter`, BASE its base model. What is left out of
the weights by rounding is measured on the validation data in DATA. The card, `starter_card.md` with
the run's rows and these measurements, becomes `README.md` beside the weights and `docs/starter.md`.
Weights in the repository change at most once a version.
"""

from __future__ import annotations

import argparse
import shutil
from collections.abc import Sequence
from pathlib import Path

import torch.nn.functional as F
from torch import Tensor

from terralign.datasets.catalog import open_dataset
from terralign.datasets.sample import SampleSet
from terralign.encoders.compact import save_compact
from terralign.encoders.sources import STARTER
from terralign.encoders.space import EmbeddingSpace
from terralign.evaluation.embed import embed_samples, route_through
from terralign.evaluation.rows import Row, read_rows
from terralign.files import read_toml, write_text
from terralign.training import evaluate

ROOT = Path(__file__).resolve().parents[1]
MOST_BYTES = 50_000_000
SHOWN = ("top1", "recall@1", "macro_map")
MODELS = ("base", "patched", "aligned")


def main() -> None:
    """Pack, measure, write the card."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("run", type=Path)
    parser.add_argument("base", type=Path)
    parser.add_argument("--data-root", type=Path, required=True)
    arguments = parser.parse_args()
    space = EmbeddingSpace.load(arguments.run / "model")
    shutil.rmtree(STARTER, ignore_errors=True)
    save_compact(space, STARTER, base=EmbeddingSpace.load(arguments.base))
    num_bytes = sum(one.stat().st_size for one in STARTER.rglob("*") if one.is_file())
    if num_bytes > MOST_BYTES:
        raise SystemExit(f"{STARTER} has {num_bytes:,} bytes, more than {MOST_BYTES:,}")
    card = (Path(__file__).parent / "starter_card.md").read_text(encoding="utf-8")
    recipe = read_toml(arguments.run / "recipe.toml")
    filled = {
        "MEGABYTES": f"{num_bytes / 1e6:.1f}",
        "SPACE_ID": EmbeddingSpace.load("starter").space_id,
        "ALPHA": f"{space.provenance['alpha']:g}",
        "SEED": str(recipe["seed"]),
        "ROWS": row_table(read_rows(arguments.run / "results.json")),
        "ROUNDING": rounding_table(space, arguments.data_root),
    }
    for name, text in filled.items():
        card = card.replace(f"@{name}@", text)
    for path in (STARTER / "README.md", ROOT / "docs" / "starter.md"):
        write_text(path, card)


def row_table(rows: Sequence[Row]) -> str:
    """The main metrics of the models that ship, as Markdown."""
    lines = ["| data, split | model, tower | metric | value | 95 % interval | n | chance |",
             "|---|---|---|---:|---:|---:|---:|"]  # fmt: skip
    for row in rows:
        if row.metric in SHOWN and row.model in MODELS and row.value is not None:
            low, high = (100 * (one or 0) for one in (row.low, row.high))
            name = "starter:base" if row.model == "base" else "starter"
            lines.append(
                f"| {row.dataset}, {row.split} | {name}, {row.towers} | {row.metric} | "
                f"{100 * row.value:.1f} | {low:.1f} to {high:.1f} | {row.num_samples:,} | "
                f"{100 * (row.chance or 0):.1f} |"
            )
    return "\n".join(lines)


def rounding_table(space: EmbeddingSpace, data_root: Path) -> str:
    """What rounding changes: the largest cosine distance of a vector, and the accuracy."""
    rounded = EmbeddingSpace.load("starter")
    texts = [f"a satellite image of {name}" for name in words(data_root)]
    distance = largest(space.encode_text(texts), rounded.encode_text(texts))
    lines = ["| vectors of | n | largest cosine distance | accuracy before | after |",
             "|---|---:|---:|---:|---:|",
             f"| texts | {len(texts):,} | {distance:.1e} | | |"]  # fmt: skip
    for name, tower in (("eurosat-rgb", "rgb"), ("eurosat-ms", "sentinel2")):
        samples = open_dataset(name, split="val", data_root=data_root)
        pair = [
            embed_samples(one, samples, route_through(one, samples, tower)).vectors
            for one in (space, rounded)
        ]
        before, after = (accuracy(one, samples, tower) for one in (space, rounded))
        lines.append(
            f"| {name}, val, {tower} tower | {len(samples):,} | {largest(*pair):.1e} | "
            f"{before:.2f} | {after:.2f} |"
        )
    return "\n".join(lines)


def accuracy(space: EmbeddingSpace, samples: SampleSet, tower: str) -> float:
    """Zero-shot top-1 in per cent."""
    metrics = evaluate(space, samples, tower=tower).result.metrics
    return 100 * next(one.value for one in metrics if one.name == "top1")


def words(data_root: Path) -> list[str]:
    """The class names of photos and aerial scenes."""
    sets = [open_dataset(one, split=split, data_root=data_root)
            for one, split in (("tiny-imagenet", "val"), ("aid", "all"))]  # fmt: skip
    return [name for one in sets if one.labels is not None for name in one.labels.class_names]


def largest(a: Tensor, b: Tensor) -> float:
    """The largest cosine distance of vectors in the same row of (N, D) and (N, D)."""
    return float((1 - F.cosine_similarity(a.double(), b.double())).max())


if __name__ == "__main__":
    main()
