"""Embedding whole data sets: which tower sees which sensor of a sample, and the vectors (N, D)."""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import closing
from dataclasses import dataclass

import torch
from torch import Tensor

from terralign import ranks
from terralign.chips import PixelLayout
from terralign.datasets.feeding import feed_samples, starts_of
from terralign.datasets.sample import SampleSet, optical_layout
from terralign.encoders.pixels import ready_pixels, seen_shares
from terralign.encoders.protocols import ImageEncoder
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.errors import RecipeError, SensorError
from terralign.progress import Progress


@dataclass(frozen=True, kw_only=True, slots=True)
class Route:
    """A way from samples to vectors: pixels of `layout` through `tower`; `note` says why."""

    tower: str
    layout: PixelLayout
    note: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Embedded:
    """Vectors (N, D) of a route, and how much of the pixels they rest on was valid.

    `valid_share`: mean share (0-1) of valid numbers; `num_empty`: samples without any.
    """

    vectors: Tensor
    valid_share: float = 1.0
    num_empty: int = 0

    @property
    def notes(self) -> list[str]:
        """What a reader should know of no-data; empty where all is valid."""
        if self.valid_share == 1:
            return []
        empty = f", {self.num_empty} samples have none" if self.num_empty else ""
        return [f"{100 * self.valid_share:.2f} % of the numbers are valid{empty}"]


Embed = Callable[[Route], Embedded]
"""How to get the vectors of a route: computed, or kept from before."""


def choose_route(space: EmbeddingSpace, samples: SampleSet, tower: str | None = None) -> Route:
    """How to embed samples: through `tower` (a tower's or a sensor's name), else by default.

    The default is the aligned tower of the data's own sensor (the first one it has), else the RGB
    tower on its composite, which is the paper's baseline.
    """
    layouts = samples.layouts
    if tower is not None and (tower not in layouts or tower in space.tower_names):
        return route_through(space, samples, tower)
    layout = next(iter(layouts.values())) if tower is None else layouts[tower]
    name = space.tower_for(layout)
    if name != RGB:
        return _tower_route(space, samples, name, layout)
    if tower is not None:
        raise SensorError(
            f"no tower of the space takes {tower!r}; its towers: {', '.join(space.tower_names)}"
        )
    return _rgb_route(samples)


def route_through(encoder: ImageEncoder, samples: SampleSet, tower: str) -> Route:
    """How to embed samples through the tower of this name. Raises `SensorError`."""
    if tower == RGB:
        return _rgb_route(samples)
    layouts, spec = samples.layouts, encoder.input_spec(tower)
    for sensor, layout in layouts.items():
        if sensor in spec.sensors:
            return _tower_route(encoder, samples, tower, layout)
    raise SensorError(
        f"tower {tower!r} takes {', '.join(spec.sensors)}; data set {samples.name!r} has "
        f"{', '.join(layouts)}"
    )


def require_rgb(space: EmbeddingSpace, samples: SampleSet, towers: Sequence[str | None]) -> None:
    """Raise `RecipeError` where a composite was asked for and no RGB tower sees the samples.

    `towers`: as `choose_route` takes them; "text" is not a tower.
    """
    names = [choose_route(space, samples, one).tower for one in towers if one != "text"]
    if RGB not in names:
        raise RecipeError(
            f"composite has no effect on {' and '.join(names) or 'text'}, which "
            "takes bands and no RGB picture; leave it out, or measure the rgb tower"
        )


def _tower_route(
    encoder: ImageEncoder, samples: SampleSet, tower: str, layout: PixelLayout
) -> Route:
    spec = encoder.input_spec(tower)
    absent = [band for band in spec.bands if band not in layout.bands]
    if absent and (spec.missing == "error" or len(absent) == len(spec.bands)):
        raise SensorError(
            f"tower {tower!r} needs {', '.join(absent)}; {samples.name} has "
            f"{', '.join(layout.bands)}"
        )
    note = f"the {tower} tower on {layout.sensor.name}"
    if absent:
        note += f" ({', '.join(absent)} missing, filled with zero)"
    return Route(tower=tower, layout=layout, note=note)


def _rgb_route(samples: SampleSet) -> Route:
    layout = optical_layout(samples)
    if layout.sensor.name == RGB:
        return Route(tower=RGB, layout=layout, note="the RGB tower")
    composite = layout.composite or layout.sensor.composite()
    note = f"the RGB tower on the {composite.name} composite of {layout.sensor.name}"
    return Route(tower=RGB, layout=layout, note=note)


def embed_samples(
    encoder: ImageEncoder, samples: SampleSet, route: Route, *, batch_size: int = 128
) -> Embedded:
    """(N, D) float32 embeddings of all samples, in their order, not normalised, on the CPU.

    Shared out among ranks, of which the first gets them, and the others none.
    """
    spec, layout, tower = encoder.input_spec(route.tower), route.layout, route.tower

    def make(pixels: Tensor) -> tuple[Tensor, Tensor]:
        ready = ready_pixels(pixels, layout, spec, tower=tower)
        return ready, seen_shares(spec, pixels, layout, tower=tower)

    def embed(starts: Sequence[int]) -> Generator[ranks.Found, None, None]:
        stream = feed_samples(
            samples, layout, make, batch_size=batch_size, device=encoder.device, starts=starts
        )
        with closing(stream):
            for ready, share in stream:
                yield encoder.encode_ready(ready, tower=tower), share.cpu()

    rows, shares = [], []
    stream = ranks.share_out(starts_of(samples, batch_size), embed)
    with (
        Progress(
            f"embed {samples.name} {samples.split} with {tower}", total=len(samples), unit="sample"
        ) as progress,
        closing(stream),
    ):
        for vectors, share in stream:
            rows.append(vectors)
            shares.append(share)
            progress.advance(len(vectors))
    if not rows:
        return Embedded(vectors=torch.zeros(0, encoder.dim, dtype=torch.float32))
    share = torch.cat(shares).double()
    return Embedded(
        vectors=torch.cat(rows),
        valid_share=float(share.mean()),
        num_empty=int((share == 0).sum()),
    )
