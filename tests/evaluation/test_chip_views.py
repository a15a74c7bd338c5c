"""Chips as pictures: true and false colour, radar, small JPEGs."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image

from terralign.chips import PixelLayout
from terralign.evaluation.chip_views import MAX_SIDE, chip_views, jpeg_bytes
from terralign.preprocess.views import near_infrared
from terralign.sensors import SENSORS


def _layout(name: str, **more: object) -> PixelLayout:
    sensor = SENSORS[name]
    return PixelLayout(sensor=sensor, bands=sensor.band_names, **({"units": "dn"} | more))  # type: ignore[arg-type]


def test_multispectral_chips_have_true_and_false_colour() -> None:
    layout = _layout("sentinel2-l2a")
    bands = layout.bands
    pixels = np.full((len(bands), 4, 5), 9999, dtype=np.uint16)
    for name, number in (("B04", 400), ("B03", 800), ("B02", 2000), ("B08", 1000)):
        pixels[bands.index(name)] = number
    pixels[:, 0, 0] = 0  # no data
    views = chip_views(pixels, layout)
    assert list(views) == ["true colour", "false colour"]
    # The composite of L2A is reflectance / 0.2; the near infrared goes to twice that.
    assert views["true colour"][1, 1].tolist() == [51, 102, 255]
    assert views["false colour"][1, 1].tolist() == [64, 51, 102]
    assert views["true colour"].shape == (4, 5, 3)
    assert not views["true colour"][0, 0].any()


def test_pictures_and_radar_have_one_view_each() -> None:
    picture = np.arange(48, dtype=np.uint8).reshape(3, 4, 4)
    views = chip_views(picture, _layout("rgb"))
    assert list(views) == ["picture"]
    assert (views["picture"] == picture.transpose(1, 2, 0)).all()
    radar = np.stack([np.full((3, 3), -10.0), np.full((3, 3), -17.0)]).astype(np.float32)
    radar[:, 0, 0] = np.nan
    views = chip_views(radar, _layout("sentinel1-grd", units="physical"))
    assert list(views) == ["radar"]
    assert views["radar"][1, 1].tolist() == [128, 128, round(255 * 5 / 12)]
    assert views["radar"][0, 0].tolist() == [0, 0, 0]


def test_the_near_infrared_is_found_by_wavelength_of_the_bands_there_are() -> None:
    assert near_infrared(_layout("sentinel2-l2a")) == "B08"
    assert near_infrared(_layout("landsat-oli-l2")) == "B5"
    assert near_infrared(_layout("rgb")) is None
    without = PixelLayout(sensor=SENSORS["sentinel2-l2a"], bands=("B04", "B8A"), units="dn")
    assert near_infrared(without) == "B8A"
    assert chip_views(np.ones((2, 3, 3), np.uint16), without) == {}  # no composite without blue


def test_pictures_are_small_jpegs() -> None:
    data = jpeg_bytes(np.random.default_rng(3).integers(0, 255, (500, 250, 3)).astype(np.uint8))
    with Image.open(io.BytesIO(data)) as image:
        assert (image.format, image.size) == ("JPEG", (MAX_SIDE // 2, MAX_SIDE))
