"""Custom encoders: modules that their users build, in a space that only keeps their weights.

A space imports nothing by name. It keeps the class's name for people, the shapes of the weights,
and the first numbers of one embedding, by which a wrong encoder is found when it is loaded.

Letters: B batch, C bands, H W pixels, D embedding, F features.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralign.encoders.sensor import SensorTower, TowerConfig
from terralign.errors import ModelError, first_line

Encoder = nn.Module | Callable[[], nn.Module]
"""A module, of which a copy is taken, or a function (or class) without arguments that builds it."""

NUM_PROBED = 16
PROBE_TOLERANCE = 0.02
"""Greatest difference of probed numbers, as a share of the largest of them: devices differ by less,
other architectures by more."""


def make_encoder(encoder: Encoder, *, what: str) -> nn.Module:
    """A module of its own from what a user gave; `ModelError` calls it `what`."""
    if isinstance(encoder, nn.Module):
        return copy.deepcopy(encoder)
    if not callable(encoder):
        raise ModelError(
            f"{what} is a {type(encoder).__name__}; give an nn.Module, or a function that builds it"
        )
    try:
        module = cast(Any, encoder)()
    except Exception as error:  # a user's own function
        raise ModelError(
            f"{what} cannot be built by calling it without arguments ({type(error).__name__}: "
            f"{first_line(error)})"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{what} gave a {type(module).__name__}, not an nn.Module")
    return module


def measure_width(module: nn.Module, *, num_bands: int, size: int, what: str) -> int:
    """F: how many features per sample an encoder gives; it is tried on a batch of zeros.

    `ModelError` where it does not take (B, C, H, W) or does not give (B, F).
    """
    shape = (2, num_bands, size, size)
    wanted = f"it must take (B, {num_bands}, {size}, {size}) float32 and give (B, features)"
    training = module.training
    first = next(module.parameters(), None)
    try:
        with torch.no_grad():
            found = module.eval()(
                torch.zeros(shape, device=None if first is None else first.device)
            )
    except Exception as error:  # a user's own module
        raise ModelError(
            f"{what} fails on pixels of shape {shape} ({type(error).__name__}: "
            f"{first_line(error)}); {wanted}"
        ) from error
    finally:
        module.train(training)
    if not isinstance(found, Tensor):
        raise ModelError(f"{what} gives a {type(found).__name__}, not a tensor; {wanted}")
    if found.ndim != 2 or len(found) != 2 or not found.is_floating_point():
        raise ModelError(
            f"{what} gives {tuple(found.shape)} of {found.dtype} for pixels of shape {shape}; "
            f"{wanted}"
        )
    return int(found.shape[1])


def fit_encoder(encoder: Encoder, config: TowerConfig, *, what: str) -> nn.Module:
    """The module for a tower of `config`; `ModelError` where it gives other features."""
    module = make_encoder(encoder, what=what)
    bands = config.input.bands
    width = measure_width(module, num_bands=len(bands), size=config.input.size, what=what)
    expected = config.width or config.embed_dim
    if width != expected:
        raise ModelError(
            f"{what} gives {width} features, the saved encoder ({config.describe_encoder()}) gave "
            f"{expected}; pass the function that built that one"
        )
    return module


def probe(tower: SensorTower) -> list[float]:
    """The first numbers of the normalised embedding of one fixed picture."""
    spec = tower.config.input
    shape = (1, len(spec.bands), spec.size, spec.size)
    num = shape[1] * shape[2] * shape[3]
    picture = torch.sin(torch.arange(num, dtype=torch.float64) * 0.37).float().reshape(shape)
    device = next(tower.parameters()).device
    training = tower.training
    with torch.no_grad():
        found = F.normalize(tower.eval()(picture.to(device)).float(), dim=-1)
    tower.train(training)
    return [round(value, 6) for value in found[0, :NUM_PROBED].tolist()]


def check_probe(tower: SensorTower, expected: Sequence[float], *, what: str) -> None:
    """`ModelError` where a tower does not compute what it did when it was saved."""
    found = probe(tower)
    largest = max(map(abs, expected), default=0.0)
    differs = any(
        not abs(a - b) <= PROBE_TOLERANCE * largest for a, b in zip(found, expected, strict=False)
    )
    if differs or len(found) != len(expected):
        raise ModelError(
            f"{what} takes the saved weights but does not compute what the saved encoder "
            f"({tower.config.describe_encoder()}) did; pass the function that built that one"
        )
