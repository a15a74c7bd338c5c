"""`search.py --index`: what an index gives, against exact search of the same folder.

Vectors as real embeddings lie (`lifelike.py`), 25,000 to a scene, in places that have nothing to do
with what they show, which is the worst case for filters. Queries by text are texts that the index
was not measured with; queries by image are vectors that the folder does not hold.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch

from lifelike import Lifelike
from terralign.encoders.answers import Hits
from terralign.encoders.vectors import Embeddings, Footprint
from terralign.index.indexing import index_folder
from terralign.index.search import Index, open_index

TEXTS = tuple(
    template.format(name)
    for template in ("{}", "an aerial photo of {}")
    for name in (
        *("a winding river", "boats at anchor", "fields on terraces", "a football pitch"),
        *(
            "a bus station",
            "a water tower",
            "dense blocks of houses",
            "a fjord",
            "an air base",
            "a botanical garden",
        ),
        *("circular irrigation", "a chalk pit", "a windmill", "a monastery", "houses by a lake"),
        *("snowy fields", "a mountain pass", "a peninsula", "a quay with cranes", "a railway"),
        *("an avenue of trees", "sparse trees", "a palm grove", "ploughed soil", "a meadow"),
        *("an oil field", "barracks", "a town square", "a water park", "rapids"),
        *("a bay", "a spit of sand", "ash fields", "sea ice", "a tea plantation", "cotton fields"),
        *("a dried-out pond", "a radio mast", "a theme park", "a delta", "an estuary"),
    )
)
DEGREES = 1.0
"""Side of a scene, which is 159 windows wide."""


def filters(num: int) -> dict[str, dict[str, Any]]:
    """Conditions that leave 4,000, 700 and 25 windows, half of them, and a tenth."""
    step = DEGREES / 159

    def box(across: int, down: int) -> dict[str, Any]:
        low = 0.1 * step
        return {"bbox": (low, low, (across - 0.1) * step, (down - 0.1) * step)}

    return {
        "none": {},
        "half": {"start": "2022-01-01"},
        "tenth": {"bbox": (0.0, 0.0, max(1, num // 250_000) * DEGREES - 0.5 * step, 1.0)},
        "4000": box(64, 63),
        "700": box(28, 25),
        "25": box(5, 5),
    }


def measure_index(folder: Path, world: Lifelike, num: int, recall: float, kind: Any) -> Any:
    """Everything of an index of one kind."""
    start = time.perf_counter()
    open_index(folder)
    opened = time.perf_counter() - start
    space: Any = SimpleNamespace(space_id="0" * 16, dim=world.dim, device="cpu",
                                 encode_text=world.encode_text)  # fmt: skip
    start, used = time.perf_counter(), time.process_time()
    made = index_folder(folder, space=lambda *_: space, recall=recall, kind=kind, force=True)
    build = {"build_s": time.perf_counter() - start, "build_cpu_s": time.process_time() - used}
    index = open_index(folder)
    sets = {
        "texts": world.encode_text(TEXTS).numpy(),
        "images": world.vectors(len(TEXTS), 10**6),
    }
    found: dict[str, Any] = {
        "open_s": round(opened, 1),
        **{name: round(one, 1) for name, one in build.items()},
        "parts_mb": _megabytes(folder.glob("*.parquet")),
        "cache_mb": _megabytes((folder / ".cache").iterdir()),
        "index_mb": round(made.num_bytes / 1e6),
        "clusters": made.state.towers[0].partitions,
        "stated": [one.model_dump() for one in made.state.towers[0].measured],
        "world": world.describe(*sets.values(), index.store.vectors[:50_000].astype(np.float32)),
        "queries": len(TEXTS),
        "searches": {},
    }
    for name, conditions in filters(num).items():
        for kind_of_query, vectors in sets.items():
            found["searches"][f"{name}, {kind_of_query}"] = compared(
                index, space, vectors, conditions
            )
    return found


def compared(index: Index, space: Any, vectors: Any, conditions: dict[str, Any]) -> dict[str, Any]:
    """Recall@10 of searches against exact ones, and the times of both."""
    queries = [_as_query(one) for one in vectors]
    index.search(space, queries[0], 10, **conditions)  # which reads what is read once
    times: dict[str, list[list[float]]] = {"index": [], "exact": []}
    found: dict[str, list[Hits]] = {"index": [], "exact": []}
    for way, exact in (("index", None), ("exact", True)):
        for query in queries if way == "index" else queries[: max(20, len(queries) // 4)]:
            used = time.process_time()
            hits = index.search(space, query, 10, exact=exact, **conditions)
            cpu = 1e3 * (time.process_time() - used)
            how = hits.how
            ranking = how["filter_ms"] + how["search_ms"]
            times[way].append([ranking, ranking + how["read_ms"], cpu])
            found[way].append(hits)
    best = _exact_keys(index, vectors, conditions)
    shares = [
        len(keys & {one.key for one in hits}) / 10
        for keys, hits in zip(best, found["index"], strict=True)
    ]
    steps = [one.how["steps"][0] for one in found["index"]]
    return {
        "rows": steps[0]["rows"],
        "ways": sorted({one["way"] for one in steps}),
        "probes": sorted({one["probes"] for one in steps}),
        "recall_at_10": round(statistics.mean(shares), 4),
        "worst_query": min(shares),
        **{way: _summary(times[way]) for way in times},
    }


def _exact_keys(index: Index, vectors: Any, conditions: dict[str, Any]) -> list[set[str]]:
    """The ids of the ten best of all queries, compared in one pass."""
    from terralign.index.filters import make_filters, rows_meeting

    rows = rows_meeting(index.store, make_filters(**conditions))
    every = np.arange(len(index)) if rows is None else rows
    scores = torch.full((len(vectors), 0), 0.0)
    places = torch.zeros((len(vectors), 0), dtype=torch.int64)
    asked = torch.from_numpy(np.ascontiguousarray(vectors))
    for first in range(0, len(every), 32_768):
        some = every[first : first + 32_768]
        products = asked @ torch.from_numpy(index.store.vectors[some].astype(np.float32)).T
        top = torch.topk(products, min(10, len(some)), dim=1)
        scores = torch.cat([scores, top.values], 1)
        places = torch.cat([places, top.indices + first], 1)
    chosen = torch.gather(places, 1, torch.topk(scores, 10, dim=1).indices).numpy()
    return [{_key(index, int(every[one])) for one in row} for row in chosen]


def _key(index: Index, row: int) -> str:
    one = index.store.rows[row]
    return f"{index.facts[one['part']].identity}-{one['window'][0]}-{one['window'][1]}"


def _as_query(vector: Any) -> Embeddings:
    return Embeddings(
        keys=("query",), vectors=vector[None], space_id="0" * 16, towers=("s2",),
        tower_ids={"s2": "1" * 16}, places=(Footprint(),), valid_shares=np.ones(1, np.float32),
    )  # fmt: skip


def _summary(times: Sequence[Sequence[float]]) -> dict[str, float]:
    """p50 and p95 of the ranking and of the whole search, and the CPU's p50, milliseconds."""
    ranking, whole, cpu = np.array(times).T
    return {
        "ranking_p50": round(float(np.percentile(ranking, 50)), 1),
        "ranking_p95": round(float(np.percentile(ranking, 95)), 1),
        "whole_p50": round(float(np.percentile(whole, 50)), 1),
        "whole_p95": round(float(np.percentile(whole, 95)), 1),
        "cpu_p50": round(float(np.percentile(cpu, 50)), 1),
    }


def _megabytes(paths: Any) -> int:
    return round(sum(one.stat().st_size for one in paths) / 1e6)
