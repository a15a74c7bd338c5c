"""Batches worked through in parts: the same numbers as sample by sample, and inputs left alone."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from terralign.chips import PixelLayout
from terralign.preprocess import (
    InputSpec,
    ViewSpec,
    apply_views,
    augment,
    draw_views,
    make_ready,
    scale_bands,
    scale_composite,
    to_physical,
)
from terralign.preprocess.parts import PART_BYTES, new_pixels, parts_of
from terralign.sensors import SENSORS

L2A = SENSORS["sentinel2-l2a"]
BANDS = L2A.band_names
SIZE = 48
LAYOUT = PixelLayout(
    sensor=L2A, bands=BANDS, units="dn", dn_offset=-1000.0, composite=L2A.composite()
)
SPEC = InputSpec(
    sensors=(L2A.name,),
    bands=BANDS[::-1],
    ranges={L2A.name: tuple((0.01 * i, 0.4 + 0.05 * i) for i in range(len(BANDS)))},
    mean=tuple(0.05 * i for i in range(len(BANDS))),
    std=tuple(0.1 + 0.01 * i for i in range(len(BANDS))),
    size=SIZE,
)


def samples(dtype: type[np.generic] = np.uint16) -> Tensor:
    """Enough of them that a batch takes several parts; some pixels are no-data."""
    shape = (24, len(BANDS), SIZE, SIZE)
    assert 4 * np.prod(shape) > 2 * PART_BYTES
    numbers = np.random.default_rng(0).integers(0, 6000, shape)
    numbers[:, :, :2] = 0
    return torch.from_numpy(numbers.astype(dtype))


@given(num_samples=st.integers(0, 300), side=st.integers(1, 400), bands=st.integers(1, 13))
def test_parts_hold_every_sample_once_in_order_and_within_the_size(
    num_samples: int, side: int, bands: int
) -> None:
    parts = list(parts_of(num_samples, (bands, side, side), device=torch.device("cpu")))
    rows = [row for part in parts for row in range(num_samples)[part]]
    assert rows == list(range(num_samples))
    for part in parts:
        count = part.stop - part.start
        assert count == 1 or count * bands * side * side * 4 <= PART_BYTES


def assert_same(a: torch.Tensor, b: torch.Tensor) -> None:
    """Bit for bit; NaN, where there is no data, equals NaN."""
    torch.testing.assert_close(a, b, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_scaling_by_parts_equals_the_formula_on_the_whole_batch(dtype: type[np.generic]) -> None:
    raw = samples(dtype)
    numbers = raw.to(torch.float32)
    physical = (numbers - 1000.0) * L2A.dn_scale + L2A.add
    physical = torch.where(numbers != 0, physical, torch.nan)
    low, high = torch.tensor(SPEC.ranges[L2A.name])[:, :, None, None].unbind(1)
    expected = ((physical[:, list(range(len(BANDS)))[::-1]] - low) / (high - low)).clamp(0, 1)
    assert_same(scale_bands(raw, LAYOUT, SPEC), expected)
    rgb = physical[:, [BANDS.index(name) for name in ("B04", "B03", "B02")]]
    rgb = torch.where(rgb.isnan().any(1, keepdim=True), torch.nan, rgb)
    composite = (rgb / L2A.composite().stretch).clamp(0, 1)
    assert_same(scale_composite(raw, LAYOUT), composite)


@pytest.mark.parametrize(
    "views", [ViewSpec(), ViewSpec(crop_scale=(0.3, 0.9)), ViewSpec(flips=False, turns=False)]
)
@pytest.mark.parametrize("size", [SIZE, 32])
def test_views_of_a_batch_equal_those_of_each_sample_alone(
    views: ViewSpec, size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(augment, "HEAP_BYTES", PART_BYTES)  # several parts of crops, too
    scaled = scale_bands(samples(), LAYOUT, SPEC)
    together = apply_views(scaled, draw_views(views, seed=3, view=1, indices=np.arange(24)), size)
    for row in range(24):
        drawn = draw_views(views, seed=3, view=1, indices=np.array([row]))
        alone = apply_views(scaled[row : row + 1], drawn, size)[0]
        if views.crops:  # a matrix product on the way may depend on the number of rows
            torch.testing.assert_close(together[row], alone, rtol=0, atol=1e-5, equal_nan=True)
        else:
            assert_same(together[row], alone)


def test_every_orientation_equals_numpys() -> None:
    scaled = torch.rand(24, 12, SIZE, SIZE)
    drawn = draw_views(ViewSpec(), seed=0, view=0, indices=np.arange(24))
    turned = apply_views(scaled, drawn, SIZE).numpy()
    for row, chip in enumerate(scaled.numpy()):
        if drawn.transpose[row]:
            chip = chip.transpose(0, 2, 1)
        if drawn.flip_x[row]:
            chip = chip[:, :, ::-1]
        if drawn.flip_y[row]:
            chip = chip[:, ::-1]
        np.testing.assert_array_equal(turned[row], chip)


def test_what_is_given_is_not_changed() -> None:
    raw = samples(np.float32)
    raw[0, 0, 5, 5] = torch.nan
    kept = raw.clone()
    to_physical(raw, LAYOUT)
    scale_composite(raw, LAYOUT)
    scaled = scale_bands(raw, LAYOUT, SPEC)
    torch.testing.assert_close(raw, kept, rtol=0, atol=0, equal_nan=True)
    kept = scaled.clone()
    whole = draw_views(ViewSpec(flips=False, turns=False), seed=0, view=0, indices=np.arange(24))
    apply_views(scaled, whole, SIZE).zero_()
    make_ready(scaled, SPEC)
    assert_same(scaled, kept)


def test_gradients_pass_through_views_and_normalisation() -> None:
    inside = torch.rand(24, 12, SIZE, SIZE) * 0.98 + 0.01  # the limits have no gradient of 1
    scaled = inside.requires_grad_()
    drawn = draw_views(ViewSpec(), seed=0, view=0, indices=np.arange(24))
    make_ready(apply_views(scaled, drawn, SIZE), SPEC).sum().backward()
    std = torch.tensor(SPEC.std)[:, None, None]
    assert scaled.grad is not None
    torch.testing.assert_close(scaled.grad, (1 / std).expand_as(scaled))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
@pytest.mark.parametrize("side", [8, 1200])
def test_new_pixels_have_the_shape_and_dtype_asked_for(dtype: torch.dtype, side: int) -> None:
    pixels = new_pixels((2, side, side), torch.zeros(1), dtype)
    assert pixels.shape == (2, side, side)
    assert pixels.dtype == dtype
    pixels[1] = 1.0
    pixels[0] = 0.0
    assert pixels.sum(dtype=torch.float64).item() == side * side
