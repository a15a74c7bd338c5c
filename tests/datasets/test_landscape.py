"""The large scene of the synthetic world: its covers, its pixels and its file."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from terralign.datasets.synthetic.landscape import REGION_SIZE, SENSOR, Landscape, draw_landscape
from terralign.datasets.synthetic.scenes import CLASS_NAMES
from terralign.scenes.scene import open_scene
from terralign.sensors import SENSORS


@pytest.fixture(scope="module")
def landscape() -> Landscape:
    return draw_landscape(6)


def test_every_cover_dominates_as_many_regions(landscape: Landscape) -> None:
    side = 6 * REGION_SIZE
    assert (landscape.pixels.shape, landscape.covers.shape) == ((12, side, side), (side, side))
    blocks = landscape.covers.reshape(6, REGION_SIZE, 6, REGION_SIZE).transpose(0, 2, 1, 3)
    counts = [np.bincount(one.ravel(), minlength=12) for one in blocks.reshape(36, -1)]
    assert np.bincount([one.argmax() for one in counts], minlength=12).tolist() == [3] * 12
    assert all(one.max() > REGION_SIZE**2 / 2 for one in counts)


def test_pixels_are_those_of_their_cover(landscape: Landscape) -> None:
    """Each pixel where its cover lies: snow is bright in the visible, dark in the SWIR."""
    bands = SENSORS[SENSOR].band_names
    blue, swir = (landscape.pixels[bands.index(name)] / 1e4 for name in ("B02", "B11"))
    snow = landscape.covers == CLASS_NAMES.index("snow")
    water = landscape.covers == CLASS_NAMES.index("deep water")
    assert np.percentile(blue[snow], 10) > 0.5 > 0.2 > np.percentile(blue[water], 90)
    assert np.median(swir[snow]) < 0.2


def test_its_file_is_a_scene_with_a_place_and_the_same_each_time(
    landscape: Landscape, tmp_path: Path
) -> None:
    for name in ("one.tif", "two.tif"):
        landscape.save(tmp_path / name)
    first, second = (tmp_path / name for name in ("one.tif", "two.tif"))
    assert first.read_bytes() == second.read_bytes()
    assert first.stat().st_mtime_ns == second.stat().st_mtime_ns
    chip = open_scene(first, sensor=SENSOR).read()
    assert np.array_equal(chip.pixels, landscape.pixels)
    assert chip.valid.all()
    assert chip.layout.dn_offset == 0
    assert chip.grid is not None
    assert chip.grid.transform[0] == 10
