"""How a search goes about the rows that meet its conditions: exactly, or through the index.

The rows are counted first, which is exact and quick. Few are compared one by one: an index that is
asked for the best of all rows, and then filtered, would lose most of them, and a scan is faster.
Of many, the index gives the best without regard to the conditions, so many more of them as the
conditions are selective, and with as many probes as were measured to find so many.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from terralign.errors import counted

EXACT_ROWS = 50_000
"""Up to so many rows are compared one by one."""

DEPTHS = (10, 100, 1000)
"""How many hits of the index the probes are measured for; of more, all rows are compared."""

_MARGIN = 1.5
"""More hits than the share of rows that meet the conditions asks for: these are not spread
evenly."""

COLLAPSED = 4
"""Windows of a place of which one is kept, with a stride of half a window."""


class Probes(BaseModel):
    """What was measured of the `depth` best hits of an index."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    depth: int = Field(ge=1)
    probes: int = Field(ge=1)
    """Clusters that are looked into."""
    recall: float = Field(ge=0, le=1)
    """Of the exact `depth` best, for texts that the number of probes was not chosen with."""
    low: float = Field(ge=0, le=1)
    """The lower end of its interval of 95 %, over the texts."""
    recall_like: float = Field(ge=0, le=1)
    """The same for windows as queries."""
    milliseconds: float = Field(ge=0)
    """Median time of a query on the machine that built the index."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Step:
    """What a search does with the rows of one tower that meet its conditions.

    `rows`: how many these are; `compared`: of which the search compares one by one, before it looks
    into the index. `depth`, `probes`: of the index (0: it is not asked). `recall`: what is expected
    of the step.
    """

    tower: str
    way: Literal["exact", "index"]
    why: str
    rows: int
    compared: int
    depth: int = 0
    probes: int = 0
    partitions: int = 0
    recall: float = 1.0

    def describe(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


@dataclass(frozen=True, kw_only=True, slots=True)
class TowerRows:
    """Rows of a tower that meet the conditions. `indexed`: of which the index has so many, among
    `in_index` that it holds in all, in `partitions` clusters; `measured` as it was built."""

    tower: str
    rows: int
    indexed: int
    in_index: int
    partitions: int
    measured: Sequence[Probes]

    @classmethod
    def without_index(cls, tower: str, rows: int) -> TowerRows:
        """Rows of a tower that no index holds."""
        return cls(tower=tower, rows=rows, indexed=0, in_index=0, partitions=0, measured=())


def plan_step(given: TowerRows, wanted: int, *, no_index: str = "") -> Step:
    """The way of one tower for the `wanted` best rows. `no_index`: why no index is asked."""

    def exact(why: str) -> Step:
        return Step(tower=given.tower, way="exact", why=why, rows=given.rows, compared=given.rows)

    if no_index:
        return exact(no_index)
    if not given.indexed:
        return exact("none of these rows is indexed")
    if given.indexed <= EXACT_ROWS:
        return exact(f"{EXACT_ROWS:,} rows or fewer are compared one by one")
    share = min(1.0, given.indexed / max(1, given.in_index))
    depth = wanted if share > 0.999 else math.ceil(_MARGIN * wanted / share) + DEPTHS[0]
    measured = next((one for one in given.measured if one.depth >= depth), None)
    if measured is None:
        return exact(f"{counted(depth, 'hit')} of the index would be needed")
    return Step(
        tower=given.tower,
        way="index",
        why="all rows" if share > 0.999 else f"{100 * share:.3g} % of the rows meet the conditions",
        rows=given.rows,
        compared=given.rows - given.indexed,
        depth=measured.depth if share <= 0.999 else depth,
        probes=measured.probes,
        partitions=given.partitions,
        recall=measured.recall,
    )


def explain(how: Mapping[str, Any]) -> list[str]:
    """What `Hits.how` states, as lines for people."""
    if not how:
        return []
    lines = [
        f"{how['meeting']:,} of {counted(how['windows'], 'window')} meet the conditions "
        f"({how['filter_ms']:.1f} ms); ranked by {how['ranked_by']}"
    ]
    for one in how["steps"]:
        text = f"{one['tower']}: {counted(one['rows'], 'row')}, "
        if one["way"] == "exact":
            text += f"compared one by one ({one['why']})"
        else:
            text += (
                f"the index ({one['why']}): {one['probes']} of {one['partitions']} clusters, "
                f"{counted(one['depth'], 'hit')}, recall {one['recall']:.3f} expected"
            )
            if one["compared"]:
                text += f"; {counted(one['compared'], 'row')} not indexed yet, compared one by one"
        lines.append(text)
    lines += [
        f"recall to expect: {how['recall']:.3f}; {how['search_ms']:.1f} ms for the ranking, "
        f"{how['read_ms']:.1f} ms for places and dates of the hits"
    ]
    return lines
