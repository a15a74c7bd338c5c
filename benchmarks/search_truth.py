"""What a search by words finds in real imagery: precision@20 and recall@20, interval and chance.

    python benchmarks/search_truth.py MODEL --data-root DATA

A Sentinel-2 cut (T48QUE, 1068 x 1068 pixels of 10 m) is embedded by Sentinel-2 towers and by the
RGB tower in windows of 64 pixels, a new one every 32, and searched for a river or a lake (relevant:
NDWI above 0 on 30 %, or 10 %, of the window), a town (polygons drawn by hand in `tests/data`,
30 %) and forest (the same, 50 %). Intervals are exact ones of 20 hits; windows overlap, so that
they are too narrow. `best`: the precision if all relevant windows came first.

`--sizes` measures windows of 32 and 64 pixels on the west half of the scene, to choose one, and on
the east half, for what the choice is worth. `mixed` searches the vectors of both towers together,
ranked by standard deviations above each tower's mean and by the cosine; `cut` keeps hits of a
probability of 0.5 among background texts.

HLS chips (30 m, 88 of 36 places) are cut into windows of 64 pixels and searched for the names of
WorldCover classes, relevant where half of the window is of the class; intervals resample places.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import rasterio
import shapely
from numpy.typing import NDArray
from rasterio.features import shapes
from rasterio.warp import transform_bounds, transform_geom

from terralign.chips import Chip, make_layout
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.evaluation.bootstrap import percentile_interval, resample
from terralign.index.embed import embed_scenes
from terralign.index.search import Index, open_index
from terralign.index.truth import Truth, read_truth
from terralign.searching.evaluate import evaluate_search
from terralign.sensors import SENSORS

SCENE = "S2B_MSIL2A_20200223T032739_N9999_R018_T48QUE_20230924T183543"
DRAWN = Path(__file__).parents[1] / "tests" / "data" / "t48que.geojson"
ASKED = (
    ("water", "a river or a lake", 0.3),
    ("water", "a river or a lake", 0.1),
    ("town", "a town with houses", 0.3),
    ("forest", "forest", 0.5),
)
"""Class, text, and the share of a window that makes it relevant. A river of 100 m covers 16 % of a
window that it crosses."""
K = 20
SIZES = (32, 64)

WORLDCOVER = {10: "forest", 20: "shrubland", 30: "grassland", 40: "farmland",
              80: "a river or a lake"}  # fmt: skip
"""Classes that cover half of at least `MIN_WINDOWS` windows -> the text."""
MIN_WINDOWS = 10
HLS_BANDS = {
    "hls-l30": ("B01", "B02", "B03", "B04", "B05", "B06", "B07"),
    "sentinel2-l2a": ("B01", "B02", "B03", "B04", "B8A", "B11", "B12"),
}
"""The chips' bands as the sensors call them: RGB by the composite of HLS; the Sentinel-2 tower
takes the bands that are nearest to its own, and zeros for the others."""


def main() -> None:
    """Measure, print one JSON line a value."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("model")
    parser.add_argument("--data-root", type=Path, required=True)
    parser.add_argument(
        "--tower", action="append", help="of Sentinel-2, repeatable; default: sentinel2"
    )
    parser.add_argument("--sizes", action="store_true", help="compare window sizes")
    arguments = parser.parse_args()
    space = EmbeddingSpace.load(arguments.model)
    towers = (*(arguments.tower or ["sentinel2"]), RGB)
    scene = arguments.data_root / "scenes" / SCENE
    with tempfile.TemporaryDirectory() as folder:
        for line in measure_scene(space, scene, towers, Path(folder), sizes=arguments.sizes):
            print(json.dumps(line), flush=True)
    for line in measure_chips(space, arguments.data_root / "hls" / "chips.npz", towers):
        print(json.dumps(line), flush=True)


def measure_scene(
    space: EmbeddingSpace, scene: Path, towers: Sequence[str], folder: Path, *, sizes: bool
) -> Iterator[dict[str, Any]]:
    """The lines of the scene."""
    truth = truth_of(scene)
    for number, tower in enumerate((*towers, [towers[0], RGB])):
        out = folder / str(number)
        embed_scenes(space, scene, out, tower=tower, dn_offset=0, stride=32)
        index = open_index(out)
        if isinstance(tower, str):
            yield from judged(space, index, truth, what=tower)
            yield from judged(space, index, truth, what=f"{tower}, cut 0.5", cut=0.5)
            continue
        for centre, name in ((True, "standard deviations"), (False, "cosine")):
            yield from judged(space, index, truth, what=f"mixed by {name}", centre=centre)
    for tower in (towers[0], RGB) if sizes else ():
        west, east = halves(scene)
        for size in SIZES:
            out = folder / f"{tower}-{size}"
            embed_scenes(space, scene, out, tower=tower, dn_offset=0, window=size, stride=size // 2)
            index = open_index(out)
            for half, name in ((west, "west"), (east, "east")):
                what = f"{tower}, windows of {size}, {name} half"
                yield from judged(space, index, truth, what=what, polygon=half)


def truth_of(scene: Path) -> Truth:
    """Polygons drawn by hand, and those of the pixels that NDWI takes for water."""
    with rasterio.open(scene / "B03.tif") as green, rasterio.open(scene / "B08.tif") as infrared:
        water = green.read(1) > infrared.read(1)
        found = shapes(water.astype(np.uint8), mask=water, transform=green.transform)
        polygons = [
            shapely.geometry.shape(transform_geom(green.crs, "EPSG:4326", one)) for one, _ in found
        ]
    drawn = read_truth(DRAWN)
    wet = shapely.union_all(shapely.make_valid(polygons))
    return Truth(name=drawn.name, shapes={"water": wet, **drawn.shapes})


def halves(scene: Path) -> tuple[Any, Any]:
    """The west and the east half, without windows that touch the middle."""
    with rasterio.open(scene / "B03.tif") as file:
        west, south, east, north = transform_bounds(file.crs, "EPSG:4326", *file.bounds)
    middle, gap = (west + east) / 2, 0.005
    return shapely.box(west, south, middle - gap, north), shapely.box(
        middle + gap, south, east, north
    )


def judged(
    space: EmbeddingSpace, index: Index, truth: Truth, *, what: str, **search: Any
) -> Iterator[dict[str, Any]]:
    """The lines of the three searches."""
    for label, text, min_cover in ASKED:
        found = evaluate_search(
            space, index, truth, {label: text}, ks=(K,), min_cover=min_cover, **search
        )
        (one,) = found.texts
        line: dict[str, Any] = {
            "what": what, "text": text, "min_cover": min_cover, "windows": found.num_searched,
            "relevant": one.num_relevant, "hits": min(K, one.num_hits),
        }  # fmt: skip
        for metric in one.metrics:
            line[metric.name] = percent(metric.value)
            line[f"{metric.name} interval"] = [percent(metric.low), percent(metric.high)]
        line["best"] = percent(min(one.num_relevant, K) / K)
        yield {**line, "chance": percent(one.num_relevant / found.num_searched)}


def percent(share: float) -> float:
    """A share in per cent, with one digit."""
    return round(100 * share, 1)


def measure_chips(
    space: EmbeddingSpace, path: Path, towers: Sequence[str], *, side: int = 64
) -> Iterator[dict[str, Any]]:
    """The lines of the HLS chips."""
    pixels, shares, groups = chip_windows(path, side)
    relevant = shares >= 0.5
    for tower in towers:
        vectors = embed_windows(space, pixels, tower)
        for column, text in enumerate(WORLDCOVER.values()):
            mine = relevant[:, column]
            if mine.sum() < MIN_WINDOWS:
                continue
            order = np.argsort(-(vectors @ space.text_vector(text)), kind="stable")
            value, low, high = precision_over_places(mine[order], groups[order])
            yield {
                "what": f"HLS, {tower}", "text": text, "windows": len(mine),
                "relevant": int(mine.sum()), "hits": K, f"precision@{K}": percent(value),
                f"precision@{K} interval": [percent(low), percent(high)],
                "best": percent(min(mine.sum(), K) / K), "chance": percent(mine.mean()),
            }  # fmt: skip


def chip_windows(
    path: Path, side: int
) -> tuple[list[NDArray[Any]], NDArray[np.float64], NDArray[np.int64]]:
    """The chips in windows (7, side, side) of DN, each window's shares (N, K) of the classes of
    `WORLDCOVER`, and its place (N,)."""
    values = np.load(path)
    groups, shares = [], []
    pixels: list[NDArray[Any]] = []
    for chip, cover, group in zip(values["sr"], values["worldcover"], values["group"], strict=True):
        for row in range(0, chip.shape[1], side):
            for column in range(0, chip.shape[2], side):
                window = (slice(row, row + side), slice(column, column + side))
                pixels.append(chip[:, *window])
                shares.append([(cover[window] == code).mean() for code in WORLDCOVER])
                groups.append(int(group))
    return pixels, np.array(shares), np.array(groups)


def embed_windows(
    space: EmbeddingSpace, pixels: Sequence[NDArray[Any]], tower: str
) -> NDArray[np.float32]:
    """(N, D) of windows of the chips, by the RGB tower or by one of Sentinel-2."""
    sensor = SENSORS["hls-l30" if tower == RGB else "sentinel2-l2a"]
    how: dict[str, Any] = {} if tower == RGB else {"dn_offset": 0}
    layout = make_layout(sensor, HLS_BANDS[sensor.name], units="dn", **how)
    chips = [
        Chip(pixels=one.astype(np.float32), valid=np.ones(one.shape, dtype=bool), layout=layout)
        for one in pixels
    ]
    return np.asarray(space.embed(chips, tower=tower).vectors)


def precision_over_places(
    relevant: NDArray[np.bool_], groups: NDArray[np.int64]
) -> tuple[float, float, float]:
    """precision@K of windows (N,), best first, with an interval over resampled places."""
    _, members = np.unique(groups, return_inverse=True)

    def statistic(counts: NDArray[np.int64]) -> NDArray[np.float64]:
        taken = np.minimum(counts[:, members].cumsum(1), K)  # a place drawn twice counts twice
        weights = np.diff(taken, axis=1, prepend=0)
        return (weights @ relevant / K)[:, None]

    value = float(relevant[:K].mean())
    resampled = resample(statistic, int(members.max()) + 1, num_bootstrap=1000, seed=0)
    return (value, *percentile_interval(value, resampled[:, 0]))


if __name__ == "__main__":
    main()
