"""Soups of fine-tuned towers."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from terralign.errors import ModelError
from terralign.train.soup import greedy_soup, uniform_soup


def _state(seed: int, dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "weight": torch.randn(4, 3, generator=generator).to(dtype),
        "count": torch.tensor(seed),
    }


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_uniform_soup_is_the_mean(dtype: torch.dtype) -> None:
    thetas = [_state(seed, dtype) for seed in (1, 2, 3)]
    soup = uniform_soup(thetas)
    mean = torch.stack([theta["weight"].double() for theta in thetas]).mean(0)
    assert torch.equal(soup["weight"], mean.to(dtype))
    assert soup["count"] == 1


def test_a_soup_of_the_same_model_is_that_model() -> None:
    theta = _state(1)
    assert torch.equal(uniform_soup([theta] * 3)["weight"], theta["weight"])


def test_a_soup_is_no_view_of_its_parts() -> None:
    theta = _state(1)
    uniform_soup([theta])["weight"].zero_()
    uniform_soup([theta])["count"].zero_()
    assert torch.equal(theta["weight"], _state(1)["weight"])
    assert theta["count"] == 1


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({"weight": torch.zeros(4, 3)}, "count is in model 1 only"),
        ({**_state(2), "more": torch.zeros(1)}, "more is in model 3 only"),
        ({**_state(2), "weight": torch.zeros(3, 4)}, r"torch.float32 in model 1, \(3, 4\)"),
        (_state(2, torch.float16), "torch.float16 in model 3"),
    ],
)
def test_weights_that_do_not_match_are_refused(other: dict[str, Tensor], said: str) -> None:
    thetas = [_state(1), _state(2), other]
    with pytest.raises(ModelError, match=said):
        uniform_soup(thetas)
    with pytest.raises(ModelError, match=said):
        greedy_soup(thetas, lambda theta: 0.0)


def test_a_soup_of_nothing_is_refused() -> None:
    for make in (uniform_soup, lambda thetas: greedy_soup(thetas, lambda theta: 0.0)):
        with pytest.raises(ModelError, match="at least one"):
            make([])


def _judge(target: float) -> Any:
    return lambda theta: -abs(float(theta["w"]) - target)


def test_a_greedy_soup_takes_what_helps_best_first() -> None:
    """Target 2: of 1, 9, 2.5 and 1.6 the order is 1.6, 2.5, 1, 9; by hand: 1.6 (off 0.4), with 2.5
    2.05 (off 0.05), with 1 1.7 (off 0.3: left out), with 9 4.37 (left out)."""
    thetas = [{"w": torch.tensor(value)} for value in (1.0, 9.0, 2.5, 1.6)]
    found = greedy_soup(thetas, _judge(2.0))
    assert found.members == (3, 2)
    assert found.value == pytest.approx(-0.05, abs=1e-6)
    assert found.single_values == pytest.approx((-1.0, -7.0, -0.5, -0.4))
    assert torch.equal(found.weights["w"], uniform_soup([thetas[3], thetas[2]])["w"])


def test_a_greedy_soup_is_never_worse_than_the_best_model() -> None:
    thetas = [{"w": torch.tensor(value)} for value in (2.0, 50.0, -30.0)]
    found = greedy_soup(thetas, _judge(2.0))
    assert found.members == (0,)
    assert found.value == max(found.single_values)
    assert torch.equal(found.weights["w"], thetas[0]["w"])


def test_a_model_as_good_is_added() -> None:
    """As published: a model joins if the figure does not get worse."""
    assert greedy_soup([_state(1), _state(2)], lambda theta: 0.5).members == (0, 1)
