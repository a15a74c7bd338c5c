"""Custom encoders: modules that their users build, in a space that only keeps their weights.

A space imports nothing by name. It keeps the class's name for people, the shapes of the weights,
and the first numbers of one embedding, by which a wrong encoder is found when it is loaded.

Letters: B batch, C bands, H W pixels, D embedding, F features.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from terralign.encoders.sensor import SensorTower, TowerConfig
from terralign.errors import ModelError, first_line

logger = logging.getLogger(__name__)

Encoder = nn.Module | Callable[[], nn.Module]
"""A module, of which a copy is taken, or a function (or class) without arguments that builds it."""

NUM_PROBED = 16
PROBE_TOLERANCE = 0.02
"""Greatest difference of probed numbers, as a share of the largest of them: devices differ by less,
other architectures by more."""


def make_encoder(encoder: Encoder, *, what: str) -> nn.Module:
    """A new module from what a user gave; `ModelError` calls it `what`."""
    if isinstance(encoder, nn.Module):
        return _copied(encoder, what=what)
    if not callable(encoder):
        raise ModelError(
            f"{what} is a {type(encoder).__name__}; give an nn.Module, or a function that builds it"
        )
    try:
        module = cast(Any, encoder)()
    except Exception as error:  # a user's own function
        raise ModelError(
            f"{what} cannot be built by calling it without arguments ({_describe(error)})"
        ) from error
    if not isinstance(module, nn.Module):
        raise ModelError(f"{what} gave a {type(module).__name__}, not an nn.Module")
    return module


def measure_width(
    module: nn.Module, *, num_bands: int, size: int, what: str, trained: bool = True
) -> int:
    """F: how many features per sample an encoder gives. A copy is tried on batches of two and three
    pictures, in eval mode and, where it is to be `trained`, in train mode.

    `ModelError` where it does not take (B, C, H, W) float32 and give (B, F) float32, at least one
    feature and the same number each time; where eval mode gives other features for the same
    pixels, or pixels are changed in place; and, where it is to be trained, where no gradient
    reaches a parameter. The module is left as it is, but for the weights of lazy layers, which are
    made; torch's random numbers are too.
    """
    trial = _Trial(what=what, num_bands=num_bands, size=size)
    device = next((value.device for value in module.parameters()), torch.device("cpu"))
    cuda = [device] if device.type == "cuda" else []
    pictures = [_pictures(number, num_bands, size).to(device) for number in (2, 3)]
    apart = torch.random.fork_rng(devices=cuda), torch.inference_mode(False)
    with apart[0], apart[1], _keeping(module), torch.no_grad():  # makes lazy layers
        width = trial.run(module.eval(), pictures[0]).shape[1]
    apart = torch.random.fork_rng(devices=cuda), torch.inference_mode(False)
    with apart[0], apart[1], _keeping(module, weights=True):
        with torch.no_grad():
            module.eval()
            first, again = (trial.run(module, pictures[1], width=width) for _ in range(2))
        if not _are_alike(first, again, share=1e-4):
            raise ModelError(
                f"{what} gives other features for the same pixels each time, even in eval mode; "
                "use self.training, or nn.Dropout, for what is random, and keep no count of calls"
            )
        if trained:
            _try_training(trial, module, pictures, width)
            if _are_alike(first, first[:1].expand_as(first), share=1e-6):
                logger.warning(
                    "%s gives the same features for different pixels; check that it uses them", what
                )
    return int(width)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Trial:
    """What an encoder must give, and what errors call it."""

    what: str
    num_bands: int
    size: int

    def run(self, module: nn.Module, pictures: Tensor, *, width: int | None = None) -> Tensor:
        """(B, F) float32, with F = `width` where it is given; else `ModelError`."""
        where = f"pixels of shape {tuple(pictures.shape)} in {_mode(module)} mode"
        given = pictures.clone()
        try:
            found = module(given)
        except Exception as error:  # a user's own module
            raise self.fault(f"fails on {where} ({_describe(error)})") from error
        if not isinstance(found, Tensor):
            raise self.fault(f"gives a {type(found).__name__}, not a tensor, for {where}")
        shape = tuple(found.shape)
        if found.ndim != 2 or len(found) != len(given) or found.dtype != torch.float32:
            raise self.fault(f"gives {shape} of {found.dtype} for {where}")
        if not shape[1]:
            raise self.fault(f"gives {shape}, no feature, for {where}")
        if width is not None and shape[1] != width:
            raise self.fault(f"gives {shape[1]} features for {where}, but {width} before")
        if not torch.equal(given, pictures):
            raise ModelError(
                f"{self.what} changes its input in place ({where}); let it work on a copy, "
                "pixels.clone(), and give its first layers no inplace=True"
            )
        return found

    def fault(self, found: str) -> ModelError:
        """What it did, and what it must do."""
        shape = f"(B, {self.num_bands}, {self.size}, {self.size})"
        return ModelError(
            f"{self.what} {found}; it must take {shape} float32 and give (B, features) float32"
        )


def _try_training(trial: _Trial, module: nn.Module, pictures: Sequence[Tensor], width: int) -> None:
    """One forward pass in train mode for each batch, and one backward pass."""
    module.train()
    module.zero_grad(set_to_none=True)
    for name, value in module.named_parameters():
        if not (value.is_floating_point() or value.is_complex()):
            raise ModelError(
                f"{trial.what} cannot be trained: its parameter {name} is {value.dtype}; give it "
                "parameters of floating-point numbers"
            )
        value.requires_grad_(True)
    with torch.enable_grad():
        *_, found = (trial.run(module, one, width=width) for one in pictures)
        if found.requires_grad:
            try:
                found.square().sum().backward()  # type: ignore[no-untyped-call]
            except Exception as error:  # a user's own module
                raise trial.fault(f"fails in the backward pass ({_describe(error)})") from error
    if all(value.grad is None for value in module.parameters()):
        raise ModelError(
            f"{trial.what} cannot be trained: no gradient reaches any of its parameters; it needs "
            "at least one, and no detach(), no_grad() or NumPy between it and the features"
        )


def _pictures(number: int, num_bands: int, size: int) -> Tensor:
    """(B, C, H, W) float32 from -1.5 to 1.5, all samples different, on the CPU."""
    shape = (number, num_bands, size, size)
    values = torch.sin(torch.arange(math.prod(shape), dtype=torch.float64) * 0.37).reshape(shape)
    return (values + torch.linspace(-0.5, 0.5, number).reshape(-1, 1, 1, 1)).float()


def _are_alike(one: Tensor, other: Tensor, *, share: float) -> bool:
    """Whether numbers differ by no more than a share of the largest."""
    largest = float(one.detach().abs().nan_to_num(0, 0, 0).max())
    return torch.allclose(one, other, rtol=0, atol=share * largest, equal_nan=True)


@contextmanager
def _keeping(module: nn.Module, *, weights: bool = False) -> Iterator[None]:
    """Each layer's mode, and with `weights` all numbers and gradients, as before afterwards."""
    modes = {one: one.training for one in module.modules()}
    numbers = {key: one.clone() for key, one in module.state_dict().items()} if weights else {}
    trained = {one: (one.requires_grad, one.grad) for one in module.parameters()}
    try:
        yield
    finally:
        for part, mode in modes.items():
            part.training = mode
        if weights:
            module.load_state_dict(numbers)
            for value, (requires_grad, grad) in trained.items():
                value.requires_grad_(requires_grad)
                value.grad = grad


def _copied(module: nn.Module, *, what: str) -> nn.Module:
    try:
        with torch.no_grad():  # else the weights of a scripted module's copy are computed ones
            return copy.deepcopy(module)
    except Exception as error:  # a user's own module
        raise ModelError(
            f"{what} cannot be copied ({_describe(error)}); give a function that builds it"
        ) from error


def _mode(module: nn.Module) -> str:
    return "train" if module.training else "eval"


def _describe(error: Exception) -> str:
    return f"{type(error).__name__}: {first_line(error)}"


def fit_encoder(encoder: Encoder, config: TowerConfig, *, what: str) -> nn.Module:
    """The module for a tower of `config`; `ModelError` where it gives other features."""
    module = make_encoder(encoder, what=what)
    bands = config.input.bands
    width = measure_width(
        module, num_bands=len(bands), size=config.input.size, what=what, trained=False
    )
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
