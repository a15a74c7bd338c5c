"""An alpha per group of layers instead of one for all, and its search on validation data.

The groups, by the names of an RGB tower's parameters:

- `stem`: what comes before the blocks (patch embedding, first convolutions, position and class
  embeddings, a norm in front of the blocks);
- `blocks-1` ... `blocks-G`: the transformer or residual blocks in their order, in G parts of as
  equal a number of blocks as possible; what stands between two stages goes with the first block
  after it;
- `projection`: what comes after the blocks (last norm, pooling, projection).

Names of open_clip's ViT and ResNet, and of timm's towers with `blocks`, `stages`, `layers` or
`layer1` ... are known. A name of no group is an error.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from terralign.encoders.clip.weights import StateDict
from terralign.errors import ModelError, RecipeError
from terralign.progress import Progress
from terralign.train.interpolate import check_same_weights, interpolate
from terralign.train.ready_tasks import ReadyTasks
from terralign.train.sweep import SweepMemory, within_bound

STEM, PROJECTION = "stem", "projection"

_STAGE = re.compile(
    r"(?:transformer\.resblocks\.|trunk\.(?:blocks|stages|layers)\.|(?:trunk\.)?layer)(\d+)\."
)
_BLOCK = re.compile(r"(?:blocks\.)?(\d+)\.")
_PARTS = {
    "": {
        STEM: "class_embedding positional_embedding patchnorm_pre_ln ln_pre "
        "conv1 bn1 conv2 bn2 conv3 bn3",
        PROJECTION: "ln_post attn_pool attn_pool_contrastive attnpool proj head",
    },
    "trunk.": {
        STEM: "patch_embed cls_token reg_token dist_token pos_embed norm_pre "
        "stem conv_stem conv1 bn1",
        PROJECTION: "norm fc_norm norm_head attn_pool final_conv conv_head bn2 head fc",
    },
}
"""First parts of names that are in no block: of open_clip's own towers, and of timm's."""


def layer_groups(names: Iterable[str], num_groups: int) -> dict[str, str]:
    """Name -> group, for the names of an RGB tower's state dict, blocks in `num_groups` parts.

    `ModelError` for a name that is in no group, `RecipeError` for more parts than blocks.
    """
    names = list(names)
    places = {name: _place(name) for name in names}
    blocks = sorted({place for place in places.values() if isinstance(place, tuple)})
    if not 1 <= num_groups <= len(blocks):
        raise RecipeError(
            f"{num_groups} groups of blocks, but the tower has {len(blocks)} blocks; "
            f"choose 1 to {len(blocks)}"
        )
    group_of: dict[tuple[int, int] | str, str] = {STEM: STEM, PROJECTION: PROJECTION}
    for number, part in enumerate(np.array_split(np.arange(len(blocks)), num_groups), 1):
        group_of |= {blocks[index]: f"blocks-{number}" for index in part}
    return {name: group_of[place] for name, place in places.items()}


def _place(name: str) -> tuple[int, int] | str:
    """(stage, block) of a name, or the group where it is outside of the blocks."""
    stage = _STAGE.match(name)
    if stage:
        block = _BLOCK.match(name, stage.end())
        return int(stage[1]), int(block[1]) if block else 0
    prefix = "trunk." if name.startswith("trunk.") else ""
    first = name.removeprefix(prefix).split(".")[0]
    for group, known in _PARTS[prefix].items():
        if first in known.split():
            return group
    raise ModelError(
        f"{name} is in no group of layers: neither in a block nor a known part of the stem or the "
        "projection; use one alpha for this tower"
    )


def group_names(groups: Mapping[str, str]) -> tuple[str, ...]:
    """The groups that occur, from the pixels to the embedding."""
    blocks = sorted(
        (name for name in set(groups.values()) if name not in (STEM, PROJECTION)),
        key=lambda name: int(name.removeprefix("blocks-")),
    )
    order = (STEM, *blocks, PROJECTION)
    return tuple(name for name in order if name in set(groups.values()))


def interpolate_layers(
    theta_0: Mapping[str, Tensor],
    theta_1: Mapping[str, Tensor],
    groups: Mapping[str, str],
    alphas: Mapping[str, float],
) -> StateDict:
    """`interpolate` with the alpha of each name's group; with one alpha for all, the same bits.

    `groups`: name -> group (`layer_groups`), for every name; `alphas`: group -> alpha, for every
    group. Raises `ModelError` and `RecipeError` where one is missing or left over.
    """
    check_same_weights(theta_0, theta_1)
    outside = sorted(theta_0.keys() ^ groups.keys())
    if outside:
        raise ModelError(f"groups do not fit the weights: {outside[0]} is in only one of them")
    wrong = sorted(set(groups.values()) ^ alphas.keys())
    if wrong:
        raise RecipeError(
            f"one alpha for each of {', '.join(group_names(groups))}; {wrong[0]!r} "
            + ("is no group" if wrong[0] in alphas else "has none")
        )
    mixed: StateDict = {}
    for group, alpha in alphas.items():
        own = [name for name in theta_0 if groups[name] == group]
        mixed |= interpolate(
            {name: theta_0[name] for name in own}, {name: theta_1[name] for name in own}, alpha
        )
    return {name: mixed[name] for name in theta_0}


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerPoint:
    """Group -> alpha, and what it gives on validation data: task name -> fraction of 1."""

    alphas: dict[str, float]
    patching: dict[str, float]
    supported: dict[str, float]

    @property
    def mean_patching(self) -> float:
        """The mean over the patching tasks."""
        return float(np.mean(list(self.patching.values())))


@dataclass(frozen=True, kw_only=True, slots=True)
class LayerChoice:
    """The best point within the bound, the best one with a single alpha, and all that was tried."""

    best: LayerPoint
    best_single: LayerPoint
    points: tuple[LayerPoint, ...]
    reason: str


def search_layer_alphas(
    make: Callable[[dict[str, float]], StateDict],
    groups: Sequence[str],
    alphas: Sequence[float],
    tasks: ReadyTasks,
    *,
    max_supported_drop: float,
    max_passes: int = 2,
    memory: SweepMemory | None = None,
) -> LayerChoice:
    """Coordinate search: the best single alpha, then one group after another, others held.

    `make(group -> alpha)`: the RGB tower's weights there; `alphas`: what a group may take (0 is
    always tried). A point counts only if every supported task is at most `max_supported_drop` below
    its value at alpha 0, as in `choose_alpha`; of equal means the smaller alphas win. Passes end
    where one changes nothing. The search sees the same validation data many times, so its gain has
    to be confirmed on data of another split. With `memory`, points that an interrupted call
    measured are not measured again.
    """
    grid = sorted({0.0, *alphas})
    most = len(grid) + max_passes * len(groups) * (len(grid) - 1)
    with Progress("search of layer alphas", total=most, unit="point") as progress:
        search = _Search(make, groups, tasks, max_supported_drop, memory, progress)
        single = [search.point([alpha] * len(groups)) for alpha in grid]
        best = best_single = search.best(single)
        for _ in range(max_passes):
            before = best
            for group in groups:
                tried = [
                    search.point([{**best.alphas, group: alpha}[name] for name in groups])
                    for alpha in grid
                ]
                best = search.best([best, *tried])
            if best == before:
                break
    worst = min(
        (best.supported[name] - value for name, value in search.zero.supported.items()), default=0.0
    )
    return LayerChoice(
        best=best,
        best_single=best_single,
        points=tuple(search.points.values()),
        reason=f"of {len(search.points)} points the best mean over patching tasks within "
        f"{100 * max_supported_drop:g} points: {100 * best.mean_patching:.2f} %, with one alpha "
        f"{100 * best_single.mean_patching:.2f} %, at alpha 0 "
        f"{100 * search.zero.mean_patching:.2f} %; the largest drop of a supported task is "
        f"{max(0.0, -100 * worst):.2f} points",
    )


class _Search:
    """The points measured so far, by their alphas in the order of the groups."""

    def __init__(
        self,
        make: Callable[[dict[str, float]], StateDict],
        groups: Sequence[str],
        tasks: ReadyTasks,
        max_supported_drop: float,
        memory: SweepMemory | None,
        progress: Progress,
    ) -> None:
        self._make, self._groups, self._tasks = make, groups, tasks
        self._max_drop, self._memory, self._progress = max_supported_drop, memory, progress
        self._known = memory.read() if memory is not None else {}
        self.points: dict[tuple[float, ...], LayerPoint] = {}

    @property
    def zero(self) -> LayerPoint:
        """What drops are measured against."""
        return self.point([0.0] * len(self._groups))

    def point(self, values: Sequence[float]) -> LayerPoint:
        """The point at these alphas, measured if it was not yet."""
        key = tuple(values)
        if key not in self.points:
            alphas = dict(zip(self._groups, values, strict=True))
            self.points[key] = LayerPoint(alphas=alphas, **self._measure(alphas))
            self._progress.advance(1)
        return self.points[key]

    def _measure(self, alphas: dict[str, float]) -> dict[str, dict[str, float]]:
        label = ", ".join(f"{name} {alpha!r}" for name, alpha in alphas.items())
        found = {role: self._known.get(f"{role} at {label}") for role in ("patching", "supported")}
        if any(value is None for value in found.values()):
            patching, supported = self._tasks.measure(self._make(alphas))
            found = {"patching": patching, "supported": supported}
            for role, values in found.items():
                self._known[f"{role} at {label}"] = dict(values or {})
            if self._memory is not None:
                self._memory.write(self._known)
        return {role: values or {} for role, values in found.items()}

    def best(self, points: Sequence[LayerPoint]) -> LayerPoint:
        """The best mean over patching tasks within the bound; of equal ones the smallest alphas."""
        before = self.zero.supported
        allowed = [
            point for point in points if within_bound(point.supported, before, self._max_drop)
        ]
        return max(
            allowed or [self.zero],
            key=lambda point: (point.mean_patching, -sum(map(abs, point.alphas.values()))),
        )
