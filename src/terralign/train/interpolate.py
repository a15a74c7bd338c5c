"""Weights between weights: theta_alpha, and merges of several fine-tuned towers (PAINT, TIES)."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence

import torch
from torch import Tensor

from terralign.encoders.clip.weights import StateDict
from terralign.errors import ModelError


def on_cpu(state: Mapping[str, Tensor]) -> StateDict:
    """The tensors of a state dict, detached and on the CPU."""
    return on_device(state, torch.device("cpu"))


def on_device(state: Mapping[str, Tensor], device: torch.device) -> StateDict:
    """The tensors of a state dict, detached and on a device."""
    return {key: value.detach().to(device) for key, value in state.items()}


def check_same_weights(
    theta_0: Mapping[str, Tensor],
    theta_1: Mapping[str, Tensor],
    *,
    what: str = "theta_1",
    first: str = "theta_0",
) -> None:
    """Raise `ModelError` unless both have the same keys, shapes and dtypes.

    `first` and `what` are what the error calls them.
    """
    for key in sorted(theta_0.keys() ^ theta_1.keys()):
        where = f"{first} only" if key in theta_0 else f"{what} only"
        raise ModelError(f"cannot interpolate: {key} is in {where}")
    for key, value in theta_0.items():
        other = theta_1[key]
        if value.shape != other.shape or value.dtype != other.dtype:
            raise ModelError(
                f"cannot interpolate: {key} is {tuple(value.shape)} {value.dtype} in {first}, "
                f"{tuple(other.shape)} {other.dtype} in {what}"
            )


def interpolate(
    theta_0: Mapping[str, Tensor], theta_1: Mapping[str, Tensor], alpha: float
) -> StateDict:
    """(1 - alpha) * theta_0 + alpha * theta_1, computed in float32, stored in each one's dtype.

    Exact at 0 and 1: the endpoints bit for bit. Integers (batch counters) are carried over from
    theta_1, at alpha 0 from theta_0. alpha may lie outside 0-1. Source: WiSE-FT (Wortsman et al.
    2021), PAINT (Ilharco et al. 2022).
    """
    check_same_weights(theta_0, theta_1)
    return merge(theta_0, [theta_1], [alpha])


def merge(
    theta_0: Mapping[str, Tensor],
    thetas: Sequence[Mapping[str, Tensor]],
    alphas: Sequence[float],
) -> StateDict:
    """theta_0 + sum of alpha_i * (theta_i - theta_0); with one theta it interpolates.

    With several it is PAINT's parallel patching. Computed in float32; exact where all alphas are
    0, or one is 1 and the rest 0.
    """
    assert len(thetas) == len(alphas), "one alpha for each theta"
    for number, theta in enumerate(thetas, 1):
        check_same_weights(theta_0, theta, what=f"theta_{number}")
    used = [(theta, alpha) for theta, alpha in zip(thetas, alphas, strict=True) if alpha != 0]
    if not used:
        return {key: value.clone() for key, value in theta_0.items()}
    if len(used) == 1 and used[0][1] == 1:
        return {key: value.clone() for key, value in used[0][0].items()}
    merged: StateDict = {}
    rest = 1.0 - sum(alpha for _, alpha in used)
    for key, value in theta_0.items():
        if not value.is_floating_point():
            merged[key] = used[-1][0][key].clone()
            continue
        total = value.to(torch.float32) * rest
        for theta, alpha in used:
            total += alpha * theta[key].to(torch.float32)
        merged[key] = total.to(value.dtype)
    return merged


def merge_ties(
    theta_0: Mapping[str, Tensor],
    thetas: Sequence[Mapping[str, Tensor]],
    *,
    density: float,
    trained: Collection[str],
) -> StateDict:
    """theta_0 plus one change of weights, made of those of several towers by TIES.

    Of each tower's change theta_i - theta_0 the share `density` (0-1) with the largest magnitudes
    is kept, over all weights that are `trained` (their keys) together. Each of them takes the sign
    of the sum of what is kept, and the mean of those that have this sign. Others, such as the
    statistics of batch norms, are the mean of the towers. Computed in float32, stored in each one's
    dtype; integers are those of the last tower. Source: TIES-Merging (Yadav et al. 2023), where
    `density` is 0.2.
    """
    assert 0 < density <= 1, "a share"
    for number, theta in enumerate(thetas, 1):
        check_same_weights(theta_0, theta, what=f"theta_{number}")
    least = [_least_kept(theta_0, theta, density, trained) for theta in thetas]
    merged: StateDict = {}
    for key, value in theta_0.items():
        if not value.is_floating_point():
            merged[key] = thetas[-1][key].clone()
            continue
        start = value.to(torch.float32)
        changes = torch.stack([theta[key].to(torch.float32) - start for theta in thetas])
        if key not in trained:
            merged[key] = (start + changes.mean(0)).to(value.dtype)
            continue
        for change, magnitude in zip(changes, least, strict=True):
            change[change.abs() < magnitude] = 0
        elected = changes.sum(0).sign()
        agreeing = (changes != 0) & (changes.sign() == elected)
        mean = (changes * agreeing).sum(0) / agreeing.sum(0).clamp(min=1)
        merged[key] = (start + mean).to(value.dtype)
    return merged


def _least_kept(
    theta_0: Mapping[str, Tensor],
    theta: Mapping[str, Tensor],
    density: float,
    trained: Collection[str],
) -> float:
    """The smallest magnitude among the share `density` of the largest changes of weights."""
    changes = [
        (theta[key].to(torch.float32) - theta_0[key].to(torch.float32)).abs().flatten().cpu()
        for key in trained
    ]
    magnitudes = torch.cat(changes).numpy()
    place = len(magnitudes) - max(1, round(density * len(magnitudes)))
    magnitudes.partition(place)
    return float(magnitudes[place])
