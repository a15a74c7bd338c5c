"""No-data must neither spread, nor be blended with pixels, nor become a legal number."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fakes import input_spec
from terralign.chips import make_layout
from terralign.preprocess import (
    Photometric,
    ViewSpec,
    apply_views,
    augment_photometric,
    draw_views,
    make_ready,
    resize,
    rgb_spec,
    scale_bands,
    scale_composite,
)
from terralign.preprocess.holes import has_holes, resample
from terralign.preprocess.spec import valid_shares
from terralign.sensors import SENSORS

SPEC = rgb_spec(size=16, mean=(0.48, 0.46, 0.41), std=(0.27, 0.26, 0.28))
FOUR = ("B02", "B03", "B04", "B08")


def half_empty(garbage: float = torch.nan) -> torch.Tensor:
    """Pictures (3, 3, 48, 48) of one value each, the left half without data."""
    pictures = torch.tensor([0.2, 0.5, 0.9])[:, None, None, None].repeat(1, 3, 48, 48)
    pictures[..., :24] = garbage
    return pictures


def test_no_data_is_not_blended_with_its_neighbours_when_resized() -> None:
    resized = resize(half_empty(), SPEC)
    valid = ~resized.isnan()
    assert valid.float().mean().item() == pytest.approx(0.5, abs=0.05)
    for picture, value in zip(resized, (0.2, 0.5, 0.9), strict=True):
        known = picture[~picture.isnan()]
        torch.testing.assert_close(known, torch.full_like(known, value), rtol=0, atol=1e-5)


@pytest.mark.parametrize("views", [ViewSpec(), ViewSpec(crop_scale=(0.4, 0.8))])
def test_views_keep_no_data_and_do_not_spread_it(views: ViewSpec) -> None:
    drawn = draw_views(views, seed=1, view=0, indices=np.arange(3))
    seen = apply_views(half_empty(), drawn, 16)
    for picture, value in zip(seen, (0.2, 0.5, 0.9), strict=True):
        known = picture[~picture.isnan()]
        assert 0 < len(known) < picture.numel()
        torch.testing.assert_close(known, torch.full_like(known, value), rtol=0, atol=1e-5)


def test_colour_augmentation_keeps_no_data_and_takes_no_level_from_it() -> None:
    spec = Photometric(jitter_probability=1, blur_probability=1, grey_probability=0.5)
    draw = {"seed": 0, "view": 0, "indices": np.arange(3)}
    pictures = half_empty()
    augmented = augment_photometric(pictures, spec, **draw)
    assert torch.equal(augmented.isnan(), pictures.isnan())
    whole = augment_photometric(
        pictures.nan_to_num(0).where(~pictures.isnan(), pictures[..., 24:25]), spec, **draw
    )
    torch.testing.assert_close(augmented[..., 30:], whole[..., 30:], rtol=0, atol=1e-5)


def test_no_data_is_exactly_zero_where_it_enters_the_network() -> None:
    ready = make_ready(resize(half_empty(), SPEC), SPEC)
    assert not has_holes(ready)
    assert torch.equal(ready[..., :7], torch.zeros_like(ready[..., :7]))
    assert (ready[..., 9:] != 0).all()


def test_a_band_without_any_data_is_zero_and_leaves_the_others_alone() -> None:
    pixels = torch.rand(2, 3, 40, 40)
    pixels[0, 1] = torch.nan
    resized = resize(pixels, SPEC)
    assert resized[0, 1].isnan().all()
    expected = resize(pixels.nan_to_num(0), SPEC)
    assert torch.equal(resized[0, [0, 2]], expected[0, [0, 2]])
    assert torch.equal(resized[1], expected[1])


def test_samples_without_holes_are_computed_as_if_alone() -> None:
    pixels = torch.rand(4, 3, 40, 40)
    alone = resize(pixels, SPEC)
    pixels[2, :, :5] = torch.nan
    assert torch.equal(resize(pixels, SPEC)[[0, 1, 3]], alone[[0, 1, 3]])


def test_gradients_pass_around_holes() -> None:
    pixels = torch.rand(2, 1, 8, 8)
    pixels[0, 0, :3] = torch.nan
    pixels.requires_grad_(True)
    halved = resample(pixels, lambda part, _: torch.nn.functional.avg_pool2d(part, 2))
    halved.nan_to_num(0).sum().backward()
    assert pixels.grad is not None
    assert pixels.grad.isfinite().all()


@pytest.mark.parametrize("dtype", [np.uint16, np.float32])
def test_what_lies_under_no_data_has_no_influence(dtype: type[np.generic]) -> None:
    sensor = SENSORS["sentinel2-l2a"]
    layout = make_layout(sensor, FOUR, units="dn", dn_offset=-1000.0)
    rng = np.random.default_rng(0)
    raw = rng.integers(1100, 4000, (2, 4, 40, 40)).astype(dtype)
    raw[:, :, :, :20] = 0 if dtype is np.uint16 else np.nan
    pixels = torch.from_numpy(raw)
    spec = input_spec(sensor.name, FOUR, mean=0.1, std=0.2, size=16)
    scaled = scale_bands(pixels, layout, spec)
    assert torch.equal(scaled.isnan()[:, 0], torch.from_numpy(np.arange(40) < 20).expand(2, 40, 40))
    assert make_ready(resize(scaled, spec), spec).isfinite().all()
    assert valid_shares(pixels, layout, FOUR).tolist() == [0.5, 0.5]


def test_shares_are_of_the_bands_that_are_named() -> None:
    layout = make_layout(SENSORS["sentinel2-l2a"], FOUR, units="dn")
    pixels = torch.full((2, 4, 8, 8), 1500.0)
    pixels[0, 0, :4] = torch.nan
    pixels[0, 1, :2] = 0
    pixels[1, 3] = 0
    assert valid_shares(pixels, layout, FOUR[:2]).tolist() == [0.625, 1]
    assert valid_shares(pixels.nan_to_num(0).to(torch.uint16), layout, FOUR[:2]).tolist() == [
        0.625, 1,
    ]  # fmt: skip
    assert valid_shares(pixels, layout, FOUR[3:]).tolist() == [1, 0]
    assert valid_shares(pixels, layout, ["B01"]).tolist() == [1, 1]


def test_a_picture_pixel_needs_all_three_bands() -> None:
    layout = make_layout(SENSORS["sentinel2-l2a"], FOUR, units="dn")
    pixels = torch.full((1, 4, 8, 8), 1500, dtype=torch.int16)
    pixels[0, 2, 3, 3] = 0
    picture = scale_composite(pixels, layout)
    assert picture[0, :, 3, 3].isnan().all()
    assert picture.isnan().sum() == 3
