"""Another composite for a set's RGB pictures."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from fakes import Changed
from terralign.chips import PixelLayout
from terralign.datasets.composited import with_composite
from terralign.datasets.sample import optical_layout
from terralign.datasets.synthetic import (
    SyntheticSet,
    open_synthetic_photos,
    open_synthetic_scenes,
)
from terralign.errors import SensorError
from terralign.preprocess import scale_composite

S2, S1 = "sentinel2-l2a", "sentinel1-grd"


@pytest.fixture(scope="module")
def scenes() -> SyntheticSet:
    return open_synthetic_scenes("test", num_samples=12)


def test_pictures_and_fingerprint_follow_the_composite(scenes: SyntheticSet) -> None:
    other = with_composite(scenes, "eurosat")
    indices = np.arange(len(scenes), dtype=np.int64)
    dn = scenes.read(indices)[S2].astype(np.float32)
    bands = scenes.layouts[S2].bands
    rgb = [bands.index(band) for band in ("B04", "B03", "B02")]
    picture = scale_composite(torch.from_numpy(other.read(indices)[S2]), optical_layout(other))
    np.testing.assert_allclose(picture, (dn[:, rgb] / 2750).clip(0, 1), rtol=1e-6, atol=1e-7)
    assert other.fingerprint != scenes.fingerprint
    assert (other.name, other.split, other.keys) == (scenes.name, scenes.split, scenes.keys)
    assert other.labels is scenes.labels
    assert other.prompts == scenes.prompts
    assert len(other) == len(scenes)
    assert scenes.layouts[S2].composite != other.layouts[S2].composite
    assert other.layouts[S1] == scenes.layouts[S1]


def test_the_composite_that_a_set_declares_changes_nothing(scenes: SyntheticSet) -> None:
    assert with_composite(scenes, None) is scenes
    assert with_composite(scenes, "paper-l2a") is scenes


def test_the_same_composite_has_one_fingerprint(scenes: SyntheticSet) -> None:
    again = open_synthetic_scenes("test", num_samples=12)
    names = [with_composite(one, "eurosat").fingerprint for one in (scenes, again)]
    assert names[0] == names[1]


def test_a_composite_that_the_data_do_not_have_is_refused(scenes: SyntheticSet) -> None:
    said = "unknown composite 'paper-l1c' of sensor 'sentinel2-l2a'; did you mean 'paper-l2a'"
    with pytest.raises(SensorError, match=said):
        with_composite(scenes, "paper-l1c")
    photos = open_synthetic_photos("test", num_samples=4)
    with pytest.raises(SensorError, match="synthetic-photos, which holds RGB pictures"):
        with_composite(photos, "eurosat")
    radar = Changed(scenes, layouts={S1: scenes.layouts[S1]})
    with pytest.raises(SensorError, match="has sentinel1-grd, and none makes an RGB picture"):
        with_composite(radar, "eurosat")
    layout = scenes.layouts[S2]
    bands = tuple(band for band in layout.bands if band != "B03")
    fewer = Changed(scenes, layouts={S2: replace(layout, bands=bands, composite=None)})
    with pytest.raises(SensorError, match="composite 'eurosat' needs B03; synthetic-scenes has"):
        with_composite(fewer, "eurosat")


def test_it_is_the_composite_of_the_sensor_that_makes_the_pictures(scenes: SyntheticSet) -> None:
    """Not of another sensor of the set, whose recipe no tower would see."""
    from terralign.sensors import SENSORS

    l1c = SENSORS["sentinel2-l1c"]
    layouts = {
        **scenes.layouts,
        l1c.name: PixelLayout(
            sensor=l1c, bands=l1c.band_names, units="dn", composite=l1c.composite()
        ),
    }
    both = Changed(scenes, layouts=layouts)
    with pytest.raises(SensorError, match="unknown composite 'paper-l1c' of sensor 'sentinel2-l2a"):
        with_composite(both, "paper-l1c")
