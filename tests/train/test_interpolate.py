"""Weights between weights."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from terralign.errors import ModelError
from terralign.train.interpolate import interpolate, merge, merge_ties

SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 3.4e38, 1e-45, 1.0, -2.5]


def _state(dtype: torch.dtype, seed: int) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    special = torch.tensor(SPECIAL)
    return {
        "weight": torch.randn(4, 3, generator=generator).to(dtype),
        "special": special[torch.randperm(len(SPECIAL), generator=generator)].to(dtype),
        "norm.num_batches_tracked": torch.tensor(seed * 10),
    }


def _same_bits(a: Tensor, b: Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    kind = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return torch.equal(a.contiguous().view(kind), b.contiguous().view(kind))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("alpha", [0, 0.0, 1, 1.0])
def test_the_endpoints_come_back_bit_for_bit(dtype: torch.dtype, alpha: float) -> None:
    theta_0, theta_1 = _state(dtype, 1), _state(dtype, 2)
    found = interpolate(theta_0, theta_1, alpha)
    expected = theta_1 if alpha else theta_0
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert _same_bits(found[key], value), key
        assert found[key].data_ptr() != value.data_ptr()


@settings(max_examples=50, deadline=None)
@given(a=st.floats(-1e6, 1e6, width=32), b=st.floats(-1e6, 1e6, width=32), alpha=st.floats(0, 1))
def test_between_the_endpoints_it_is_the_weighted_mean(a: float, b: float, alpha: float) -> None:
    found = interpolate({"w": torch.tensor([a])}, {"w": torch.tensor([b])}, alpha)["w"]
    expected = (1 - alpha) * a + alpha * b
    assert float(found) == pytest.approx(expected, rel=1e-5, abs=1e-6 * (abs(a) + abs(b)) + 1e-12)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_is_computed_in_float32(dtype: torch.dtype) -> None:
    """0.1 * 1 + 0.9 * 1.0078125 and the like: rounding once, at the end."""
    generator = torch.Generator().manual_seed(0)
    a = torch.randn(1000, generator=generator).to(dtype)
    b = torch.randn(1000, generator=generator).to(dtype)
    found = interpolate({"w": a}, {"w": b}, 0.3)["w"]
    once = ((1 - 0.3) * a.float() + 0.3 * b.float()).to(dtype)
    every_time = (1 - 0.3) * a + 0.3 * b
    assert found.dtype == dtype
    assert torch.equal(found, once)
    assert not torch.equal(once, every_time)


def test_batch_counters_are_carried_over() -> None:
    counter = "norm.num_batches_tracked"
    theta_0, theta_1 = _state(torch.float32, 1), _state(torch.float32, 2)
    assert int(interpolate(theta_0, theta_1, 0.5)[counter]) == 20
    assert int(interpolate(theta_0, theta_1, 0)[counter]) == 10
    assert interpolate(theta_0, theta_1, 0.5)[counter].dtype == torch.int64


def test_alpha_beyond_one_extrapolates() -> None:
    found = interpolate({"w": torch.tensor([1.0])}, {"w": torch.tensor([3.0])}, 1.5)
    assert float(found["w"]) == pytest.approx(4.0)


@pytest.mark.parametrize(
    ("other", "said"),
    [
        ({}, "a is in theta_0 only"),
        ({"a": torch.zeros(2), "b": torch.zeros(1)}, "b is in theta_1 only"),
        ({"a": torch.zeros(3)}, r"a is \(2,\) torch.float32 in theta_0, \(3,\)"),
        ({"a": torch.zeros(2, dtype=torch.float16)}, "torch.float16 in theta_1"),
    ],
)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_weights_that_do_not_match_are_refused(
    other: dict[str, Tensor], said: str, alpha: float
) -> None:
    with pytest.raises(ModelError, match=said):
        interpolate({"a": torch.zeros(2)}, other, alpha)


@pytest.mark.parametrize("alpha", [0.0, 0.25, 1.0])
def test_a_merge_of_one_is_an_interpolation(alpha: float) -> None:
    theta_0, theta_1 = _state(torch.float32, 1), _state(torch.float32, 2)
    merged, between = merge(theta_0, [theta_1], [alpha]), interpolate(theta_0, theta_1, alpha)
    assert all(_same_bits(merged[key], between[key]) for key in theta_0)


def test_a_merge_sums_the_differences() -> None:
    start = {"w": torch.tensor([1.0, 2.0])}
    thetas = [{"w": torch.tensor([3.0, 2.0])}, {"w": torch.tensor([1.0, 6.0])}]
    torch.testing.assert_close(
        merge(start, thetas, [0.5, 0.25])["w"], torch.tensor([1 + 0.5 * 2, 2 + 0.25 * 4])
    )
    assert torch.equal(merge(start, thetas, [0.0, 0.0])["w"], start["w"])
    assert torch.equal(merge(start, thetas, [0.0, 1.0])["w"], thetas[1]["w"])


def test_a_merge_names_the_theta_that_does_not_match() -> None:
    start = {"w": torch.zeros(2)}
    with pytest.raises(ModelError, match="theta_2"):
        merge(start, [start, {"w": torch.zeros(3)}], [0.5, 0.5])


def test_ties_trims_elects_and_takes_the_mean_of_those_that_agree() -> None:
    """Changes of w by one and two: 4 3 -3 0.5 and 2 -5 4 0.25; of v: 0.25 and -6. Four are kept of
    each tower's eight. The statistics s take no part."""
    start = {
        "w": torch.full((4,), 10.0), "v": torch.zeros(4), "n": torch.tensor(1), "s": torch.ones(9),
    }  # fmt: skip
    one = {
        **start, "w": torch.tensor([14, 13, 7, 10.5]), "v": torch.tensor([0.25, 0, 0, 0]),
        "s": torch.full((9,), 101.0),
    }  # fmt: skip
    two = {
        "w": torch.tensor([12, 5, 14, 10.25]), "v": torch.tensor([0, 0, 0, -6.0]),
        "n": torch.tensor(2), "s": torch.ones(9),
    }  # fmt: skip
    merged = merge_ties(start, [one, two], density=0.5, trained={"w", "v"})
    assert merged["w"].tolist() == [13, 5, 14, 10.5]
    assert merged["v"].tolist() == [0, 0, 0, -6]
    assert merged["s"].tolist() == [51] * 9
    assert int(merged["n"]) == 2


def test_ties_of_one_tower_is_that_tower_trimmed() -> None:
    start, one = {"w": torch.zeros(4)}, {"w": torch.tensor([1.0, -4.0, 3.0, -2.0])}
    assert merge_ties(start, [one], density=1.0, trained={"w"})["w"].tolist() == [1, -4, 3, -2]
    assert merge_ties(start, [one], density=0.25, trained={"w"})["w"].tolist() == [0, -4, 0, 0]
    with pytest.raises(ModelError, match="theta_2"):
        merge_ties(start, [one, {"w": torch.zeros(3)}], density=0.5, trained={"w"})
