"""Views and augmentation: draws that depend on (seed, view, sample) alone, and what they do."""

from __future__ import annotations

from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import Tensor

from terralign.chips import PixelLayout
from terralign.preprocess import (
    Photometric,
    Spectral,
    Views,
    ViewSpec,
    apply_views,
    augment_photometric,
    augment_spectral,
    draw_views,
    scale_bands,
    scale_composite,
)
from terralign.preprocess.augment import uniform
from terralign.preprocess.spec import InputSpec
from terralign.sensors import SENSORS

CROPS = ViewSpec(crop_scale=(0.3, 0.9), crop_ratio=(0.75, 1.33))


def numbers(*values: int) -> NDArray[np.int64]:
    return np.array(values, dtype=np.int64)


def rows(views: Views, chosen: NDArray[np.int64]) -> Views:
    picked = {
        field.name: getattr(views, field.name)[chosen]
        for field in fields(views)
        if field.name != "min_scale"
    }
    return replace(views, **picked)


def assert_same_views(first: Views, second: Views) -> None:
    for field in fields(first):
        np.testing.assert_array_equal(getattr(first, field.name), getattr(second, field.name))


@given(
    indices=st.lists(st.integers(0, 10**6), min_size=1, max_size=8, unique=True),
    seed=st.integers(0, 2**32),
    view=st.integers(0, 100),
)
@settings(max_examples=30, deadline=None)
def test_a_view_does_not_depend_on_the_batch(indices: list[int], seed: int, view: int) -> None:
    together = draw_views(CROPS, seed=seed, view=view, indices=numbers(*indices))
    for row, index in enumerate(indices):
        alone = draw_views(CROPS, seed=seed, view=view, indices=numbers(index))
        assert_same_views(rows(together, numbers(row)), alone)


def test_draws_are_uniform() -> None:
    draws = uniform(0, 1, 0, np.arange(20_000), 4)
    assert draws.shape == (20_000, 4)
    assert draws.min() >= 0
    assert draws.max() < 1
    counts = np.stack([np.histogram(column, bins=20, range=(0, 1))[0] for column in draws.T])
    assert counts.min() > 850  # 1000 expected, standard deviation 31
    assert counts.max() < 1150
    correlation = np.corrcoef(draws.T) - np.eye(4)
    assert np.abs(correlation).max() < 0.03
    following = np.corrcoef(draws[:-1, 0], draws[1:, 0])[0, 1]
    assert abs(following) < 0.03


@pytest.mark.parametrize("other", [(1, 1, 0), (0, 2, 0), (0, 1, 1)])
def test_seeds_streams_and_views_draw_unrelated_numbers(other: tuple[int, int, int]) -> None:
    indices = np.arange(5000)
    first = uniform(0, 1, 0, indices, 1)[:, 0]
    second = uniform(*other, indices, 1)[:, 0]
    assert not np.any(first == second)
    assert abs(np.corrcoef(first, second)[0, 1]) < 0.06


def test_all_eight_orientations_occur_equally_often() -> None:
    views = draw_views(ViewSpec(), seed=3, view=0, indices=np.arange(4000))
    codes = views.transpose * 4 + views.flip_x * 2 + views.flip_y
    counts = np.bincount(codes.astype(int), minlength=8)
    assert counts.min() > 400  # 500 expected, standard deviation 21
    chip = torch.arange(16.0).reshape(1, 1, 4, 4).expand(4000, -1, -1, -1)
    pictures = apply_views(chip, views, 4)
    assert len(torch.unique(pictures.reshape(4000, 16), dim=0)) == 8


def test_no_flips_and_no_turns_leave_the_sample_as_it_is() -> None:
    chips = torch.rand(5, 2, 8, 8)
    spec = ViewSpec(flips=False, turns=False)
    views = draw_views(spec, seed=0, view=0, indices=np.arange(5))
    assert torch.equal(apply_views(chips, views, 8), chips)


def test_turns_alone_are_the_four_quarter_turns() -> None:
    chip = torch.rand(1, 1, 5, 5)
    views = draw_views(ViewSpec(flips=False), seed=0, view=0, indices=np.arange(64))
    turned = apply_views(chip.expand(64, -1, -1, -1), views, 5)
    quarter = [torch.rot90(chip[0], k, (-2, -1)) for k in range(4)]
    found = {k for one in turned for k in range(4) if torch.equal(one, quarter[k])}
    assert found == {0, 1, 2, 3}
    assert all(any(torch.equal(one, turn) for turn in quarter) for one in turned)


def test_flips_and_turns_by_resampling_equal_the_exact_ones() -> None:
    chips = torch.rand(64, 3, 16, 16)
    views = draw_views(ViewSpec(), seed=1, view=0, indices=np.arange(64))
    exact = apply_views(chips, views, 16)
    # The least crop there is: the affine path is taken, by less than a thousandth of a pixel.
    almost = replace(views, width=views.width * (1 - 1e-7))
    resampled = apply_views(chips, almost, 16)
    assert not torch.equal(resampled, exact)
    torch.testing.assert_close(resampled, exact, atol=1e-4, rtol=0)


def test_a_crop_shows_the_part_that_its_view_says() -> None:
    ramp = torch.arange(64.0).repeat(64, 1) / 63  # brightness grows from left to right
    chips = torch.stack([ramp, ramp.T])[None].expand(200, -1, -1, -1)
    views = draw_views(
        ViewSpec(crop_scale=(0.2, 0.6), flips=False, turns=False),
        seed=0,
        view=0,
        indices=np.arange(200),
    )
    crops = apply_views(chips, views, 16)
    center_x = (views.left + views.width / 2) * 64 / 63 - 0.5 / 63
    center_y = (views.top + views.height / 2) * 64 / 63 - 0.5 / 63
    np.testing.assert_allclose(crops[:, 0].mean((1, 2)), center_x, atol=0.01)
    np.testing.assert_allclose(crops[:, 1].mean((1, 2)), center_y, atol=0.01)
    area = views.width * views.height
    assert area.min() >= 0.2 - 1e-9
    assert area.max() <= 0.6 + 1e-9
    assert np.all((views.left >= 0) & (views.left + views.width <= 1 + 1e-12))


@pytest.mark.parametrize("spec", [ViewSpec(), CROPS])
def test_one_view_keeps_two_sensors_of_a_sample_registered(spec: ViewSpec) -> None:
    sensor = SENSORS["sentinel2-l2a"]
    bands = ("B02", "B03", "B04", "B08")
    layout = PixelLayout(
        sensor=sensor, bands=bands, units="dn", dn_offset=0.0, composite=sensor.composite()
    )
    student = InputSpec(
        sensors=(sensor.name,),
        bands=("B08", "B04", "B03", "B02"),
        ranges={sensor.name: ((0.0, 1.0),) + ((0.0, 0.2),) * 3},
        mean=(0.0,) * 4,
        std=(1.0,) * 4,
        size=24,
    )
    raw = torch.randint(1, 4000, (16, 4, 48, 48), dtype=torch.int32)
    views = draw_views(spec, seed=5, view=2, indices=np.arange(16))
    pictures = apply_views(scale_composite(raw, layout), views, 24)
    chips = apply_views(scale_bands(raw, layout, student), views, 24)
    torch.testing.assert_close(chips[:, 1:], pictures, atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    "wrong",
    [
        {"crop_scale": (0.9, 0.3)},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 1.5)},
        {"crop_ratio": (0.0, 1.0)},
        {"crop": (0.5, 1.0)},
    ],
)
def test_view_settings_that_mean_nothing_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValidationError):
        ViewSpec.model_validate(wrong)


def photometric(pictures: Tensor, indices: NDArray[np.int64], **changes: float) -> Tensor:
    spec = Photometric.model_validate(changes)
    return augment_photometric(pictures, spec, seed=0, view=1, indices=indices)


def test_colour_augmentation_stays_between_0_and_1_and_differs_between_samples() -> None:
    picture = torch.rand(1, 3, 16, 16).expand(64, -1, -1, -1)
    augmented = photometric(picture, np.arange(64), jitter=0.9)
    assert augmented.min() >= 0
    assert augmented.max() <= 1
    assert augmented.std(0).max() > 0.1
    assert torch.isfinite(augmented).all()


def test_colour_augmentation_does_not_depend_on_the_batch() -> None:
    pictures = torch.rand(12, 3, 16, 16)
    together = photometric(pictures, np.arange(12))
    for row in range(12):
        alone = photometric(pictures[row : row + 1], numbers(row))
        torch.testing.assert_close(alone[0], together[row], atol=1e-6, rtol=0)


def test_without_any_probability_a_picture_stays_as_it_is() -> None:
    pictures = torch.rand(6, 3, 8, 8)
    still = photometric(
        pictures, np.arange(6), jitter_probability=0, grey_probability=0, blur_probability=0
    )
    torch.testing.assert_close(still, pictures, atol=1e-6, rtol=0)


def test_grey_pictures_have_equal_channels_and_the_luma_of_bt601() -> None:
    pictures = torch.rand(6, 3, 8, 8)
    grey = photometric(
        pictures, np.arange(6), jitter_probability=0, grey_probability=1, blur_probability=0
    )
    luma = 0.299 * pictures[:, 0] + 0.587 * pictures[:, 1] + 0.114 * pictures[:, 2]
    for channel in range(3):
        torch.testing.assert_close(grey[:, channel], luma, atol=1e-6, rtol=0)


def test_blur_smooths_and_keeps_the_mean() -> None:
    pictures = torch.rand(32, 3, 64, 64)
    blurred = photometric(
        pictures, np.arange(32), jitter_probability=0, grey_probability=0, blur_probability=1
    )
    contrast = blurred.std((1, 2, 3)) / pictures.std((1, 2, 3))
    assert contrast.max() <= 1 + 1e-5
    assert contrast.min() < 0.9
    torch.testing.assert_close(blurred.mean((1, 2, 3)), pictures.mean((1, 2, 3)), atol=5e-3, rtol=0)


def test_the_share_of_grey_pictures_is_the_probability_asked_for() -> None:
    pictures = torch.rand(1, 3, 2, 2).expand(2000, -1, -1, -1)
    greyed = photometric(
        pictures, np.arange(2000), jitter_probability=0, grey_probability=0.2, blur_probability=0
    )
    share = (greyed.std(1).amax((1, 2)) < 1e-6).float().mean().item()
    assert abs(share - 0.2) < 0.04


def spectral(scaled: Tensor, indices: NDArray[np.int64], **changes: float) -> Tensor:
    spec = Spectral.model_validate(changes)
    return augment_spectral(scaled, spec, seed=0, view=1, indices=indices)


def test_band_dropout_leaves_at_least_one_band() -> None:
    dropped = spectral(torch.ones(500, 4, 2, 2), np.arange(500), band_dropout=0.9)
    assert set(dropped.nan_to_num(nan=-1).unique().tolist()) == {-1.0, 1.0}
    kept = 1.0 * ~dropped[:, :, 0, 0].isnan()  # a dropped band is as a missing one
    assert kept.sum(1).min() == 1
    assert kept.sum(1).max() > 1
    mild = spectral(torch.ones(2000, 4, 1, 1), np.arange(2000), band_dropout=0.25)
    assert abs((~mild.isnan()).float().mean().item() - 0.75) < 0.03


def test_gain_keeps_to_its_bounds_and_is_one_factor_per_band() -> None:
    gained = spectral(torch.ones(500, 4, 3, 3), np.arange(500), gain=0.2)
    assert gained.min() >= 0.8 - 1e-6
    assert gained.max() <= 1.2 + 1e-6
    assert gained.min() < 0.82
    assert gained.max() > 1.18
    assert torch.equal(gained, gained[:, :, :1, :1].expand_as(gained))
    assert gained[:, :, 0, 0].std(1).min() > 0


def test_spectral_augmentation_does_not_depend_on_the_batch() -> None:
    scaled = torch.rand(8, 5, 4, 4)
    together = spectral(scaled, np.arange(8), gain=0.3, band_dropout=0.4)
    for row in range(8):
        alone = spectral(scaled[row : row + 1], numbers(row), gain=0.3, band_dropout=0.4)
        torch.testing.assert_close(alone[0], together[row], rtol=0, atol=0, equal_nan=True)


def test_no_spectral_augmentation_is_the_same_tensor() -> None:
    scaled = torch.rand(2, 5, 4, 4)
    assert spectral(scaled, np.arange(2)) is scaled
