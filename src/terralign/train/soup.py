"""Soups: the mean of several fine-tuned towers' weights (Wortsman et al. 2022).

They need one start: towers fine-tuned from the same weights lie in one basin, where a mean of
weights is a good tower; of towers from different starts it is not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from terralign.encoders.clip.weights import StateDict
from terralign.errors import ModelError
from terralign.train.interpolate import check_same_weights


def uniform_soup(thetas: Sequence[Mapping[str, Tensor]]) -> StateDict:
    """The mean of all weights, computed in float64, stored in each one's dtype.

    Integers (batch counters) are those of the first. Running statistics of batch norms are averaged
    like weights; where training moved them, estimate them anew (`reestimate_batch_norm`).
    `ModelError` without a tower, and where keys, shapes or dtypes differ.
    """
    if not thetas:
        raise ModelError("a soup needs at least one set of weights")
    for number, theta in enumerate(thetas[1:], 2):
        check_same_weights(thetas[0], theta, first="model 1", what=f"model {number}")
    mixed: StateDict = {}
    for key, value in thetas[0].items():
        if not value.is_floating_point():
            mixed[key] = value.clone()
            continue
        total = torch.zeros_like(value, dtype=torch.float64)
        for theta in thetas:
            total += theta[key]
        mixed[key] = (total / len(thetas)).to(value.dtype)
    return mixed


@dataclass(frozen=True, kw_only=True, slots=True)
class GreedySoup:
    """`weights`: the soup; `members`: positions of the models in it, best first; `value`: its
    figure, and `single_values` that of each model alone, in the order given."""

    weights: StateDict
    members: tuple[int, ...]
    value: float
    single_values: tuple[float, ...]


def greedy_soup(
    thetas: Sequence[Mapping[str, Tensor]], judge: Callable[[StateDict], float]
) -> GreedySoup:
    """The soup to which each model was added, best first, if it did not make it worse.

    `judge`: weights -> a figure on *validation* data, higher is better; minus infinity for weights
    that are not allowed (a supported task that drops too far). It sees every model once, and every
    soup that is tried. The soup is never worse than the best single model by that figure.
    """
    if not thetas:
        raise ModelError("a soup needs at least one set of weights")
    single = [judge(uniform_soup([theta])) for theta in thetas]
    order = sorted(range(len(thetas)), key=lambda number: -single[number])
    members, value = [order[0]], single[order[0]]
    weights = uniform_soup([thetas[order[0]]])
    for number in order[1:]:
        tried = uniform_soup([thetas[member] for member in (*members, number)])
        found = judge(tried)
        if found >= value:
            members, value, weights = [*members, number], found, tried
    return GreedySoup(
        weights=weights, members=tuple(members), value=value, single_values=tuple(single)
    )
