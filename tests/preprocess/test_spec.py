"""Raw numbers to what a tower takes: masking, scaling by name, resizing as PIL and open_clip do."""

from __future__ import annotations

import numpy as np
import open_clip
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pydantic import ValidationError
from torch import Tensor

from terralign.chips import PixelLayout
from terralign.encoders.clip.load import ClipModel
from terralign.errors import DataError, SensorError
from terralign.preprocess import (
    InputSpec,
    make_ready,
    resize,
    rgb_spec,
    scale_bands,
    scale_composite,
    to_physical,
)
from terralign.sensors import SENSORS

L2A = SENSORS["sentinel2-l2a"]
BANDS = ("B02", "B03", "B04", "B08")


def layout(bands: tuple[str, ...] = BANDS, dn_offset: float = 0.0) -> PixelLayout:
    return PixelLayout(
        sensor=L2A, bands=bands, units="dn", dn_offset=dn_offset, composite=L2A.composite()
    )


def spec(bands: tuple[str, ...] = BANDS, **changes: object) -> InputSpec:
    values = {
        "sensors": ("sentinel2-l2a",),
        "bands": bands,
        "ranges": {"sentinel2-l2a": tuple((0.01 * i, 0.5 + 0.1 * i) for i in range(len(bands)))},
        "mean": (0.5,) * len(bands),
        "std": (0.25,) * len(bands),
        "size": 8,
    }
    return InputSpec.model_validate({**values, **changes})


def digital_numbers(num_bands: int = 4, size: int = 8) -> Tensor:
    numbers = np.random.default_rng(0).integers(1000, 6000, (2, num_bands, size, size))
    return torch.from_numpy(numbers.astype(np.uint16))


def test_no_data_is_masked_before_the_offset_is_added() -> None:
    pixels = torch.tensor([0, 1, 1000, 3000], dtype=torch.int32).reshape(1, 1, 2, 2)
    physical, valid = to_physical(pixels, layout(("B02",), dn_offset=-1000.0))
    assert valid.flatten().tolist() == [False, True, True, True]
    assert physical.dtype == torch.float32
    torch.testing.assert_close(physical.flatten(), torch.tensor([0.0, -0.0999, 0.0, 0.2]))


def test_numbers_that_are_not_finite_take_the_fill_of_the_sensor() -> None:
    sensor = SENSORS["sentinel1-grd"]
    radar = PixelLayout(sensor=sensor, bands=("VV",), units="physical")
    pixels = torch.tensor([-12.0, float("nan"), float("-inf"), 0.0]).reshape(1, 1, 2, 2)
    physical, valid = to_physical(pixels, radar)
    assert physical.flatten().tolist() == [-12.0, -35.0, -35.0, 0.0]
    assert valid.flatten().tolist() == [True, False, False, True]


def test_pixels_that_do_not_match_their_bands_are_refused() -> None:
    with pytest.raises(DataError, match=r"\(2, 3, 8, 8\) for 4 bands .*expected \(B, 4, H, W\)"):
        to_physical(digital_numbers(3), layout())


def test_composite_equals_the_hand_computation() -> None:
    pixels = digital_numbers()
    by_hand = ((pixels.numpy()[:, [2, 1, 0]].astype(np.float64) - 1000) / 2000).clip(0, 1)
    composite = scale_composite(pixels, layout(dn_offset=-1000.0))
    np.testing.assert_allclose(composite.numpy(), by_hand, atol=1e-6)


def test_composite_without_its_bands_says_which_are_missing() -> None:
    with pytest.raises(SensorError, match="missing B04"):
        scale_composite(torch.zeros(1, 2, 4, 4), layout(("B02", "B03")))
    radar = PixelLayout(sensor=SENSORS["sentinel1-grd"], bands=("VV", "VH"), units="physical")
    with pytest.raises(SensorError, match="makes no RGB"):
        scale_composite(torch.zeros(1, 2, 4, 4), radar)


@given(order=st.permutations(range(4)))
@settings(max_examples=24, deadline=None)
def test_bands_are_matched_by_name_in_any_order(order: list[int]) -> None:
    pixels = digital_numbers()
    expected = scale_bands(pixels, layout(), spec())
    shuffled = scale_bands(
        torch.from_numpy(pixels.numpy()[:, order]), layout(tuple(BANDS[i] for i in order)), spec()
    )
    assert torch.equal(shuffled, expected)


def test_each_band_is_scaled_by_its_own_range() -> None:
    pixels = digital_numbers()
    scaled = scale_bands(pixels, layout(), spec())
    low, high = spec().ranges["sentinel2-l2a"][3]
    by_hand = ((pixels.numpy()[:, 3] * 1e-4 - low) / (high - low)).clip(0, 1)
    np.testing.assert_allclose(scaled[:, 3].numpy(), by_hand, atol=1e-6)


def test_extra_bands_are_left_out() -> None:
    scaled = scale_bands(digital_numbers(), layout(), spec(("B08", "B02")))
    other = scale_bands(digital_numbers()[:, [0, 3]], layout(("B02", "B08")), spec(("B08", "B02")))
    assert torch.equal(scaled, other)


def test_a_sensor_the_tower_does_not_take_is_refused() -> None:
    with pytest.raises(SensorError, match=r"tower takes sentinel2-l1c; .* 'sentinel2-l2a'"):
        scale_bands(
            digital_numbers(),
            layout(),
            spec(sensors=("sentinel2-l1c",), ranges={"sentinel2-l1c": ((0.0, 1.0),) * 4}),
        )


def test_a_missing_band_is_an_error_unless_the_tower_fills_it_with_zero() -> None:
    pixels = digital_numbers(3)
    without_nir = layout(BANDS[:3])
    with pytest.raises(SensorError, match="tower needs B08 too"):
        scale_bands(pixels, without_nir, spec())
    filled = scale_bands(pixels, without_nir, spec(missing="zero"))
    ready = make_ready(filled, spec(missing="zero"))
    assert spec().mean[3] != 0
    assert torch.equal(ready[:, 3], torch.zeros(2, 8, 8))
    assert torch.equal(filled[:, :3], scale_bands(pixels, without_nir, spec(BANDS[:3])))


def test_pixels_with_none_of_the_bands_are_refused_even_with_zero_fill() -> None:
    with pytest.raises(SensorError, match="none of the tower's bands"):
        scale_bands(digital_numbers(1), layout(("B11",)), spec(missing="zero"))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"mean": (0.5,)}, "4 bands, but 1 means"),
        ({"std": (0.25, 0.25, 0.0, 0.25)}, "std must be positive"),
        ({"ranges": {"sentinel2-l2a": ((0.0, 1.0),)}}, "must give 4"),
        ({"ranges": {"sentinel2-l2a": ((0.0, 1.0),) * 3 + ((1.0, 1.0),)}}, "high must be above"),
        ({"bands": ("B02", "B02", "B03", "B04")}, "repeat a name"),
        ({"size": 100_000}, "less than or equal"),
        ({"sizes": 8}, "Extra inputs"),
    ],
)
def test_a_specification_that_contradicts_itself_is_refused(
    changes: dict[str, object], said: str
) -> None:
    with pytest.raises(ValidationError, match=said):
        spec(**changes)


def test_resize_gives_the_same_tensor_where_the_size_is_right() -> None:
    pixels = torch.rand(1, 4, 8, 8)
    assert resize(pixels, spec()) is pixels


def test_resize_is_close_to_pils_antialiased_bicubic() -> None:
    smooth = np.random.default_rng(1).integers(0, 256, (10, 10, 3), dtype=np.uint8)
    image = Image.fromarray(smooth).resize((150, 150), Image.Resampling.BICUBIC)
    oracle = np.asarray(image.resize((64, 64), Image.Resampling.BICUBIC)).astype(np.float32)
    ours = resize(_picture(image), rgb_spec(size=64, mean=(0.0,) * 3, std=(1.0,) * 3))
    levels = ours[0].permute(1, 2, 0).numpy().clip(0, 1) * 255
    assert np.abs(levels - oracle).max() <= 1.5  # PIL rounds to levels after each axis


def test_shortest_crops_the_centre_and_squash_keeps_all() -> None:
    wide = torch.zeros(1, 4, 8, 24)
    wide[..., :8] = 1.0
    assert resize(wide, spec()).max() < 0.01
    squashed = resize(wide, spec(resize_mode="squash"))
    assert squashed.shape == (1, 4, 8, 8)
    assert squashed[..., 0].min() > 0.9
    assert squashed[..., -1].max() < 0.1


def _picture(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.array(image).transpose(2, 0, 1))[None].float() / 255


@pytest.mark.parametrize(
    ("width", "height", "tolerance"),
    [(32, 32, 1e-6), (150, 150, 2 / 255), (97, 61, 2 / 255), (41, 90, 2 / 255)],
)
def test_the_way_of_a_picture_equals_open_clips_own_preprocessing(
    tiny_clip: ClipModel, width: int, height: int, tolerance: float
) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (12, 12, 3), dtype=np.uint8)
    image = Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)
    tower = tiny_clip.input_spec
    transform = open_clip.image_transform(32, is_train=False, mean=tower.mean, std=tower.std)
    rgb = SENSORS["rgb"]
    as_read = PixelLayout(sensor=rgb, bands=rgb.band_names, units="dn", composite=rgb.composite())
    pixels = torch.from_numpy(np.array(image).transpose(2, 0, 1))[None]
    ours = make_ready(resize(scale_composite(pixels, as_read), tower), tower)
    difference = (ours[0] - transform(image)).abs().max().item()
    assert difference <= tolerance / min(tower.std)


def test_ready_pixels_are_clipped_and_normalised() -> None:
    ready = make_ready(torch.tensor([-0.5, 0.5, 2.0, 1.0]).reshape(1, 4, 1, 1), spec())
    assert ready.flatten().tolist() == [-2.0, 0.0, 2.0, 2.0]
