"""Chips: one channel per named band, chosen by name only."""

from __future__ import annotations

import base64
import io
import re

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from terralign.chips import Chip, Grid, PixelLayout, make_layout
from terralign.errors import SensorError
from terralign.sensors import SENSORS

L2A = SENSORS["sentinel2-l2a"]


def chip_of(bands: tuple[str, ...]) -> Chip:
    """A chip whose every pixel is its band's place in the sensor, from 1, and valid where that is
    even."""
    places = np.array([1 + L2A.band_names.index(name) for name in bands], dtype=np.uint16)
    pixels = np.broadcast_to(places[:, None, None], (len(bands), 2, 3)).copy()
    layout = PixelLayout(sensor=L2A, bands=bands, units="dn", dn_offset=0.0)
    return Chip(pixels=pixels, valid=pixels % 2 == 0, layout=layout)


@given(
    permutation=st.permutations(L2A.band_names),
    wanted=st.lists(st.sampled_from(L2A.band_names), min_size=1, unique=True),
)
def test_select_bands_commutes_with_permutation(permutation: list[str], wanted: list[str]) -> None:
    permuted, straight = chip_of(tuple(permutation)), chip_of(L2A.band_names)
    ours, theirs = permuted.select_bands(wanted), straight.select_bands(wanted)
    assert ours.bands == theirs.bands == tuple(wanted)
    np.testing.assert_array_equal(ours.pixels, theirs.pixels)
    np.testing.assert_array_equal(ours.valid, theirs.valid)
    places = [1 + L2A.band_names.index(name) for name in wanted]
    assert ours.pixels[:, 0, 0].tolist() == [0 if place % 2 else place for place in places]


def test_select_bands_takes_any_spelling() -> None:
    assert chip_of(("B02", "B8A", "B04")).select_bands(["red", "b8a"]).bands == ("B04", "B8A")


def test_a_missing_band_is_named() -> None:
    with pytest.raises(SensorError, match=r"chip has bands B02, B03; missing B8A"):
        chip_of(("B02", "B03")).select_bands(["B8A", "B02"])


def test_pixels_and_bands_must_agree() -> None:
    layout = PixelLayout(sensor=L2A, bands=("B02", "B03"), units="dn")
    with pytest.raises(SensorError, match=r"shape \(3, 2, 2\) for 2 bands"):
        Chip(pixels=np.zeros((3, 2, 2)), valid=np.ones((3, 2, 2), bool), layout=layout)
    with pytest.raises(SensorError, match=r"valid is \(1, 2, 2\)"):
        Chip(pixels=np.zeros((2, 2, 2)), valid=np.ones((1, 2, 2), bool), layout=layout)


def test_a_layout_takes_canonical_names_only() -> None:
    with pytest.raises(SensorError, match=r"not canonical names"):
        PixelLayout(sensor=L2A, bands=("B2", "B3"), units="dn")


def test_bounds_of_a_north_up_and_of_a_south_up_grid() -> None:
    north_up = Grid(crs="EPSG:32633", transform=(10, 0, 500, 0, -10, 900), height=20, width=30)
    south_up = Grid(crs="EPSG:32633", transform=(10, 0, 500, 0, 10, 700), height=20, width=30)
    assert north_up.bounds == south_up.bounds == (500, 700, 800, 900)


def test_channels_last_are_named() -> None:
    layout = PixelLayout(sensor=L2A, bands=("B02", "B03"), units="dn")
    with pytest.raises(SensorError, match=r"channels first; of channels last, pixels.transpose"):
        Chip(pixels=np.ones((8, 9, 2)), valid=np.ones((8, 9, 2), dtype=bool), layout=layout)


def test_chips_and_layouts_say_what_they_are() -> None:
    layout = make_layout(L2A, ("B04", "B03", "B02"), units="dn", dn_offset=-1000.0)
    pixels = np.full((3, 4, 5), 1500, dtype=np.uint16)
    chip = Chip(pixels=pixels, valid=np.ones(pixels.shape, dtype=bool), layout=layout)
    assert repr(layout) == (
        "PixelLayout(sentinel2-l2a: B04, B03, B02; DN, offset -1000; composite paper-l2a)"
    )
    assert repr(chip) == "Chip(sentinel2-l2a: B04, B03, B02; 4x5 uint16, 100 % valid)"
    assert repr(L2A) == "Sensor('sentinel2-l2a': B01, B02, B03, ..., B12 (12); reflectance)"


def test_a_chip_shows_its_composite() -> None:
    layout = make_layout(L2A, ("B04", "B03", "B02"), units="dn", dn_offset=-1000.0)
    pixels = np.full((3, 4, 5), 2000, dtype=np.uint16)
    pixels[0, 0, 0] = 4000
    valid = np.ones(pixels.shape, dtype=bool)
    valid[:, 1, 1] = False
    shown = Chip(pixels=pixels, valid=valid, layout=layout)._repr_html_()
    data = re.search(r"base64,([^\"]+)", shown)
    assert data is not None
    picture = np.asarray(Image.open(io.BytesIO(base64.b64decode(data[1]))))
    # A reflectance of 0.1 is half of the stretch of 0.2; the first red one is above it.
    assert picture.shape == (4, 5, 4)
    assert picture[0, 0].tolist() == [255, 128, 128, 255]
    assert picture[1, 1].tolist() == [0, 0, 0, 0]
    radar = make_layout(SENSORS["sentinel1-grd"], ("VV",), units="physical")
    numbers = np.full((1, 2, 2), -12.0)
    alone = Chip(pixels=numbers, valid=np.ones(numbers.shape, dtype=bool), layout=radar)
    assert alone._repr_html_() == f"<code>{alone!r}</code>"
