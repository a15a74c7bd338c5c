"""How many clusters of an index a search must look into, for the recall that is asked for.

Measured when an index is built, on queries like texts: these lie away from all images, and need
about three times the probes of queries by image. What is to be expected of a search is measured on
other texts than those that the number was chosen with. Q queries, N rows, D dimensions.
"""

from __future__ import annotations

import bisect
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.vectors import as_unit
from terralign.index.ann import Kind
from terralign.index.approximate import REFINE
from terralign.index.planner import DEPTHS, Probes
from terralign.progress import Progress

NAMES = (
    *("river", "lake", "reservoir", "sea coast", "beach", "island", "wetland", "mangroves"),
    *("rice paddies", "irrigated fields", "vineyard", "orchard", "greenhouses", "pasture"),
    *("deciduous forest", "pine forest", "rainforest", "oil palm plantation", "clear-cut"),
    *("burnt forest", "shrubland", "savanna", "desert dunes", "salt flat", "bare rock"),
    *("glacier", "snow-covered mountains", "volcano", "canyon", "landslide", "flooded fields"),
    *("village", "city centre", "suburb with gardens", "slum", "skyscrapers", "stadium"),
    *("golf course", "park", "cemetery", "school", "hospital", "factory", "warehouses"),
    *("power plant", "solar panels", "wind turbines", "oil tanks", "quarry", "open-pit mine"),
    *("landfill", "harbour with ships", "shipyard", "airport runway", "parked aeroplanes"),
    *("motorway junction", "railway station", "bridge", "dam", "canal", "fish ponds"),
    *("sewage plant", "tennis courts", "car park", "construction site", "refugee camp"),
    *("haze over land", "scattered clouds", "cloud shadow", "smoke plume", "algal bloom"),
    *("maize", "wheat", "sugar cane", "olive trees", "banana plantation", "sunflowers"),
    *("fallow land", "hay meadow", "hedgerows", "peat bog", "heath", "tundra", "steppe"),
    *("sand bank", "coral reef", "lagoon", "tidal flats", "cliffs", "waterfall", "oxbow lake"),
    *("dry river bed", "melting snow", "iceberg", "crevasses", "crater", "lava field", "mud"),
    *("farmhouse", "barns", "cattle feedlot", "grain silos", "sawmill", "brick kilns", "castle"),
    *("church", "mosque", "temple", "university campus", "prison", "military base", "bunkers"),
    *("apartment blocks", "terraced houses", "villas with pools", "tents", "market", "ruins"),
    *("cooling towers", "substation", "pipeline", "refinery", "mine tailings", "cement works"),
    *("container terminal", "ferry", "marina", "lighthouse", "breakwater", "lock", "helipad"),
    *("roundabout", "dirt road", "mountain road", "freight yard", "tram depot", "toll station"),
    *("baseball field", "running track", "race course", "ski slope", "swimming pool", "zoo"),
)
"""What people look for in imagery from above. Of three, two choose the probes, one is held out."""

TEMPLATES = ("{}", "a satellite image of {}")

_GROUPS = 40
"""Of made queries, and of windows as queries."""

_BLOCK_ROWS = 32_768

_Z_CHOOSING, _Z_STATED = 1.64, 1.96
"""Standard errors below the mean that must reach the recall asked for, and that are stated: 95 %
on one side, and on both. Texts differ much, and few are found badly."""


@dataclass(frozen=True, kw_only=True, slots=True, eq=False)
class Queries:
    """`chosen_with`, `held_out`, `like`: (groups, q, D), the q of a group alike. `name`: what they
    are, for people."""

    chosen_with: NDArray[np.float32]
    held_out: NDArray[np.float32]
    like: NDArray[np.float32]
    name: str


def text_queries(space: EmbeddingSpace, like: NDArray[np.float32]) -> Queries:
    """Names in templates, by the text tower; `like`: (n, D) windows."""
    texts = [one.format(name) for name in NAMES for one in TEMPLATES]
    vectors = space.encode_text(texts).numpy().reshape(len(NAMES), len(TEMPLATES), -1)
    held_out = np.arange(len(NAMES)) % 3 == 2
    return Queries(
        chosen_with=vectors[~held_out],
        held_out=vectors[held_out],
        like=like[:_GROUPS, None],
        name=f"{len(NAMES)} names in {len(TEMPLATES)} templates by the text tower",
    )


NO_TOWER = "since no text tower was at hand"


def made_queries(sample: NDArray[np.float32]) -> Queries:
    """Queries like texts, made of windows alone: (n, D), at least 4.

    As texts lie to images: a direction that no image has, and to it a part of the difference
    between a few windows and the mean of all.
    """
    rng = np.random.default_rng(0)
    mean = sample.mean(0)
    values, axes = np.linalg.eigh(np.cov((sample - mean).T) + 1e-12 * np.eye(sample.shape[1]))
    num = 2 * _GROUPS
    chosen = sample[rng.integers(0, len(sample), (num, _WINDOWS_A_TEXT))].mean(1) - mean
    chosen = as_unit(chosen)
    noise = as_unit((rng.normal(size=(num, len(values))) * np.sqrt(values.clip(0))) @ axes.T)
    gap = as_unit(rng.normal(size=(1, len(values))) @ axes.T)
    found = as_unit(_OF_WINDOWS * chosen + _OF_NOISE * noise + _OF_GAP * gap)
    return Queries(
        chosen_with=found[:_GROUPS, None],
        held_out=found[_GROUPS:, None],
        like=sample[rng.integers(0, len(sample), _GROUPS)][:, None],
        name=f"{_GROUPS} directions made of the windows, {NO_TOWER}",
    )


_WINDOWS_A_TEXT = 3
_OF_WINDOWS, _OF_NOISE, _OF_GAP = 0.3, 0.3, 0.9


def exact_best(
    vectors: NDArray[Any], spans: Sequence[range], queries: NDArray[np.float32], depth: int
) -> NDArray[np.int64]:
    """(Q, depth) the rows with the greatest products, greatest first, of some spans of rows."""
    asked = torch.from_numpy(np.ascontiguousarray(queries))
    scores = torch.zeros(len(queries), 0, dtype=torch.float32)
    rows = torch.zeros((len(queries), 0), dtype=torch.int64)
    total = sum(map(len, spans))
    with torch.inference_mode(), Progress("compare all rows", total=total, unit="row") as progress:
        for span in spans:
            for first in range(span.start, span.stop, _BLOCK_ROWS):
                block = vectors[first : min(span.stop, first + _BLOCK_ROWS)]
                products = asked @ torch.from_numpy(block).float().T
                found = torch.topk(products, min(depth, len(block)), dim=1)
                scores = torch.cat([scores, found.values], dim=1)
                rows = torch.cat([rows, found.indices + first], dim=1)
                if scores.shape[1] > depth:
                    best = torch.topk(scores, depth, dim=1)
                    scores, rows = best.values, torch.gather(rows, 1, best.indices)
                progress.advance(len(block))
        order = torch.argsort(scores, dim=1, descending=True, stable=True)
        found_rows: NDArray[np.int64] = torch.gather(rows, 1, order).numpy()
    return found_rows


Ask = Callable[[NDArray[np.float32], int, int], NDArray[np.int64]]
"""Rows near to a query (D,), nearest first by the index: how many, in how many clusters."""


def choose_probes(
    ask: Ask,
    queries: Queries,
    vectors: NDArray[Any],
    spans: Sequence[range],
    *,
    partitions: int,
    kind: Kind,
    recall: float,
) -> tuple[Probes, ...]:
    """For each depth the fewest probes that find the share `recall` of its best rows, and what
    they find for the texts that are held out."""
    num_rows = sum(map(len, spans))
    depths = [one for one in DEPTHS if one <= num_rows // 10] or [max(1, min(10, num_rows // 2))]
    sets = [queries.chosen_with, queries.held_out, queries.like]
    every = np.concatenate([one.reshape(-1, one.shape[-1]) for one in sets])
    ends = np.cumsum([len(one) * one.shape[1] for one in sets])
    truth = exact_best(vectors, spans, every, depths[-1])
    first, second, third = (
        _Measured(ask, one, mine.reshape(*one.shape[:2], -1), vectors, REFINE[kind])
        for one, mine in zip(sets, np.split(truth, ends[:-1]), strict=True)
    )
    ladder = _ladder(partitions)
    known: dict[int, list[NDArray[np.float64]]] = {}
    found: list[Probes] = []
    with Progress("measure probes", total=len(depths), unit="depth") as progress:
        for number, depth in enumerate(depths):

            def reaches(probes: int, number: int = number) -> bool:
                if probes not in known:
                    known[probes] = first.recalls(probes, depths)
                return _low(known[probes][number], _Z_CHOOSING) >= recall

            least = found[-1].probes if found else 1  # deeper ones need as many, or more
            tried = [one for one in ladder if one >= least][:-1]
            place = bisect.bisect_left(tried, True, key=reaches)
            probes = [*tried, partitions][place]
            start = time.perf_counter()
            (held_out,) = second.recalls(probes, [depth])
            seconds = (time.perf_counter() - start) / second.num
            (like,) = third.recalls(probes, [depth])
            found.append(
                Probes(
                    depth=depth,
                    probes=probes,
                    recall=float(held_out.mean()),
                    low=_low(held_out, _Z_STATED),
                    recall_like=float(like.mean()),
                    milliseconds=round(1e3 * seconds, 2),
                )
            )
            progress.advance()
    return tuple(found)


@dataclass(frozen=True, slots=True, eq=False)
class _Measured:
    """Queries (groups, q, D) and their exact best rows (groups, q, depth)."""

    ask: Ask
    queries: NDArray[np.float32]
    best: NDArray[np.int64]
    vectors: NDArray[Any]
    refine: int

    @property
    def num(self) -> int:
        return int(np.prod(self.queries.shape[:2]))

    def recalls(self, probes: int, depths: Sequence[int]) -> list[NDArray[np.float64]]:
        """For each depth (groups,) the share of the best rows that the index finds."""
        shares = np.zeros((len(depths), *self.queries.shape[:2]))
        for place in np.ndindex(*self.queries.shape[:2]):
            query = self.queries[place]
            rows = self.ask(query, max(depths) * self.refine, probes)
            for number, depth in enumerate(depths):
                mine = rows[: depth * self.refine]
                if self.refine > 1 and len(mine) > depth:
                    scores = self.vectors[mine].astype(np.float32) @ query
                    mine = mine[np.argpartition(-scores, depth - 1)[:depth]]
                shares[(number, *place)] = np.isin(self.best[place][:depth], mine).mean()
        return [one.mean(1) for one in shares]


def _low(groups: NDArray[np.float64], errors: float) -> float:
    """The mean less some standard errors, at least 0."""
    spread = groups.std(ddof=1) / np.sqrt(len(groups)) if len(groups) > 1 else 0.0
    return max(0.0, float(groups.mean() - errors * spread))


def _ladder(partitions: int) -> list[int]:
    """Numbers of probes to try, each about a quarter more than the one before."""
    found, one = [], 1.0
    while one < partitions:
        if round(one) not in found:
            found.append(round(one))
        one *= 1.25
    return [*found, partitions]
