"""The hits of a search of an index as a page, with pictures read from their scenes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np
import shapely

from terralign.chips import Chip, Grid
from terralign.encoders.answers import Changes, Hit, Hits, centre_of
from terralign.encoders.maps import rings_of
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import DataError, TerralignError, counted, shown
from terralign.evaluation.chip_views import VIEWS_LEGEND, chip_views, jpeg_bytes
from terralign.index.parts import PartFacts
from terralign.index.search import Index
from terralign.index.stamps import stamps_of
from terralign.preprocess.views import view_bands
from terralign.progress import Progress
from terralign.report.hits import MAX_CARDS, HitCard, HitPage, check_page, write_hits
from terralign.scenes.places import wgs84_footprint
from terralign.scenes.scene import Scene, open_scene
from terralign.svg_map import Ring

Found = tuple[tuple[str, bytes], ...] | str
"""The pictures of a hit, by what they show, or what keeps from showing it."""

PICTURE_SIDE = 192
"""Pixels of the longer side of a picture."""


def save_report(space: EmbeddingSpace, index: Index, hits: Hits, path: str | Path) -> Path:
    """Write an offline page of the first 50 hits: pictures, scores, dates, scenes, and a map.

    True and false colour (radar: VV, VH) are read from each hit's scene. A scene that is not at
    hand, changed since it was embedded, or cannot be read, is named on the page. `StorageError`
    where another file has the name.
    """
    path = Path(path)
    check_page(path)
    chosen = list(hits[:MAX_CARDS])
    every = {hit.key: hit for one in chosen for hit in (one, one.before) if hit is not None}
    of_hit = {key: index.facts_of(key) for key in every}
    pictures: dict[str, Found] = {}
    with Progress("read pictures", total=len(every), unit="window") as progress:
        for key, found in read_pictures(space, list(every.values()), of_hit):
            pictures[key] = found
            progress.advance(1)
    parts = {of_hit[hit.key].identity: of_hit[hit.key] for hit in chosen}
    content = HitPage(
        query=hits.query,
        lines=_lines(index, hits),
        cards=tuple(_card(hit, of_hit[hit.key], pictures) for hit in chosen),
        num_left_out=len(hits) - len(chosen),
        scenes=tuple((one.scene, _outline(one)) for one in parts.values()),
        legend=_legend(pictures.values()),
    )
    return write_hits(content, path)


def _lines(index: Index, hits: Hits) -> tuple[str, ...]:
    what = "pair" if isinstance(hits, Changes) else "window"
    why = [f"Nothing found: {hits.how['nothing']}."] if "nothing" in hits.how else []
    return (
        f"{counted(len(hits), 'hit')} of {counted(hits.num_searched, what)} searched in "
        f"{shown(index.folder)}; scores are cosines.",
        f"Model {index.model}, space {index.space_id}.",
        *why,
    )


def _legend(found: Iterable[Found]) -> tuple[str, ...]:
    views = {view for one in found if not isinstance(one, str) for view, _ in one}
    return tuple(text for view, text in VIEWS_LEGEND.items() if view in views)


def _card(hit: Hit, facts: PartFacts, pictures: Mapping[str, Found]) -> HitCard:
    found = pictures[hit.key]
    ranked_by = hit.facts.get("ranked_by", hit.score)
    values = {
        "scene": facts.scene,
        "date": None if hit.place.datetime is None else f"{hit.place.datetime:%Y-%m-%d %H:%M} UTC",
        "place": centre_of(hit.place),
        "tower": f"{facts.tower} ({facts.sensor})",
        "cloud": _percent(hit.facts.get("cloud_share")),
        "valid": _percent(hit.facts.get("valid_share")),
        "id": hit.key,
    }
    score = f"score {hit.score:.4f}"
    if hit.before is not None:
        score = _rise(hit, hit.before)
        values["before"] = f"{hit.before.facts['scene']}, {hit.before.key}"
        found = _of_both(pictures[hit.before.key], found)
    elif abs(ranked_by - hit.score) > 1e-5:
        score += f", {ranked_by:.2f} standard deviations above the usual one of its tower"
    return HitCard(
        rank=hit.rank,
        score=score,
        pictures=() if isinstance(found, str) else found,
        missing=found if isinstance(found, str) else "",
        facts=tuple((name, value) for name, value in values.items() if value),
        rings=rings_of(hit.place.shape),
    )


def _rise(hit: Hit, before: Hit) -> str:
    """What a comparison of two dates found."""
    return (
        f"rise {hit.score:.4f}, from {before.score:.4f} on {before.place.datetime:%Y-%m-%d} to "
        f"{before.score + hit.score:.4f}"
    )


def _of_both(before: Found, after: Found) -> Found:
    """The pictures of two dates; where one has none, why."""
    if isinstance(before, str):
        return before
    if isinstance(after, str):
        return after
    earlier = ((f"before, {view}", picture) for view, picture in before)
    return (*earlier, *((f"after, {view}", picture) for view, picture in after))


def _percent(share: float | None) -> str | None:
    return None if share is None else f"{100 * share:.0f} %"


def _outline(facts: PartFacts) -> tuple[Ring, ...]:
    """That of a scene; nothing where its part has no grid."""
    if facts.grid is None:
        return ()
    grid = Grid(**facts.grid.model_dump())
    footprint = wgs84_footprint(grid, origin=facts.scene)
    return () if footprint is None else rings_of(shapely.geometry.shape(footprint))


def read_pictures(
    space: EmbeddingSpace, hits: Sequence[Hit], of_hit: Mapping[str, PartFacts]
) -> Iterator[tuple[str, Found]]:
    """The id of each hit, and its pictures or what keeps from it; every scene is opened once.

    `of_hit`: id -> the facts of its part, as `Index.facts_of` gives them.
    """
    for identity in dict.fromkeys(facts.identity for facts in of_hit.values()):
        own = [hit for hit in hits if of_hit[hit.key].identity == identity and hit.place.window]
        own.sort(key=lambda hit: (hit.place.window.row, hit.place.window.column))  # type: ignore[union-attr]
        done = 0
        try:
            scene = _opened(space, of_hit[own[0].key])
            windows = [hit.place.window for hit in own if hit.place.window is not None]
            chips = scene.read_windows(windows, bands=view_bands(scene.layout))
            for hit, chip in zip(own, chips, strict=True):
                yield hit.key, _views(chip)
                done += 1
        except (TerralignError, OSError) as error:
            for hit in own[done:]:
                yield hit.key, f"No picture: {error}"


def _opened(space: EmbeddingSpace, facts: PartFacts) -> Scene:
    """The scene of a part, read as it was embedded; `DataError` where its files changed since."""
    path = Path(facts.source)
    if path.exists() and stamps_of(path) != facts.stamps:
        raise DataError(f"{shown(path)} changed since it was embedded; embed it again")
    return open_scene(
        facts.source,
        sensor=space.find_sensor(facts.sensor),
        bands=facts.bands,
        dn_offset=facts.dn_offset,
    )


def _views(chip: Chip) -> Found:
    views = chip_views(np.asarray(chip.pixels), chip.layout)
    if not views:
        return f"No picture: {chip.layout.sensor.name} has no composite of its bands."
    return tuple(
        (view, jpeg_bytes(picture, max_side=PICTURE_SIDE)) for view, picture in views.items()
    )
