"""A new student tower: bands, ranges, first weights."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from pydantic import ValidationError

from terralign.chips import PixelLayout
from terralign.datasets.synthetic import SyntheticSet
from terralign.encoders.clip import ClipModel
from terralign.errors import ModelError, RecipeError, SensorError
from terralign.preprocess import ViewSpec
from terralign.train.student import StudentSettings, new_student, student_layout
from terralign.train.student_validation import student_features
from terralign.train.teacher import ViewPlan, teacher_features, teacher_pictures

S2, S1 = "sentinel2-l2a", "sentinel1-grd"


class _OtherLayout:
    """A set whose Sentinel-2 layout says something else."""

    def __init__(self, samples: SyntheticSet, layout: PixelLayout) -> None:
        self._samples, self._layout = samples, layout

    def __getattr__(self, name: str) -> Any:
        return getattr(self._samples, name)

    def __len__(self) -> int:
        return len(self._samples)

    @property
    def layouts(self) -> dict[str, PixelLayout]:
        return {**self._samples.layouts, S2: self._layout}

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        pixels = self._samples.read(indices)
        have = self._samples.layouts[S2].bands
        order = [have.index(band) for band in self._layout.bands]
        return {**pixels, S2: pixels[S2][:, order]}


def test_an_inflated_student_starts_as_its_teacher(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    student, not_loaded = new_student("s2", tiny_clip, StudentSettings(), [S2], [scenes], seed=0)
    plain = ViewPlan(spec=ViewSpec(flips=False, turns=False), num_views=1, seed=0)
    indices = np.arange(len(scenes), dtype=np.int64)
    expected = teacher_features(tiny_clip, teacher_pictures(tiny_clip, scenes, plain, 0, indices))
    torch.testing.assert_close(
        student_features(student.eval(), scenes), expected, rtol=1e-3, atol=1e-3
    )
    assert student.config.input.bands == scenes.layouts[S2].sensor.band_names
    assert not_loaded == {}


def test_bands_are_named_in_any_spelling_and_kept_in_order(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    settings = StudentSettings(bands=("b8a", "B2", "nir"))
    student, _ = new_student("s2", tiny_clip, settings, [S2], [scenes], seed=0)
    assert student.config.input.bands == ("B8A", "B02", "B08")


def test_a_timm_student_takes_reflectance_and_the_datas_statistics(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    settings = StudentSettings(backbone="test_vit", bands=("B04", "B08"))
    student, _ = new_student("s2", tiny_clip, settings, [S2], [scenes], seed=0)
    spec = student.config.input
    assert spec.ranges == {S2: ((0.0, 1.0), (0.0, 1.0))}
    dn = scenes.read(np.arange(len(scenes)))[S2].astype(np.float64)
    red = dn[:, scenes.layouts[S2].bands.index("B04")] / 10_000
    assert spec.mean[0] == pytest.approx(red.mean(), rel=1e-3)
    assert spec.std[0] == pytest.approx(red.std(), rel=1e-2)


def test_radar_is_scaled_by_its_range(tiny_clip: ClipModel, scenes: SyntheticSet) -> None:
    settings = StudentSettings(backbone="test_vit")
    student, _ = new_student("s1", tiny_clip, settings, [S1], [scenes], seed=0)
    decibel = scenes.read(np.arange(len(scenes)))[S1]
    for channel, (low, high) in enumerate(student.config.input.ranges[S1]):
        inside = (decibel[:, channel] >= low) & (decibel[:, channel] <= high)
        assert 0.98 < inside.mean() < 1.0


def test_the_same_seed_gives_the_same_student(tiny_clip: ClipModel, scenes: SyntheticSet) -> None:
    def tower(seed: int) -> str:
        settings = StudentSettings(backbone="test_vit")
        student, _ = new_student("s1", tiny_clip, settings, [S1], [scenes], seed=seed)
        return student.tower_id()

    assert tower(0) == tower(0)
    assert tower(0) != tower(1)


def test_a_band_that_the_data_lack_is_an_error_or_zero(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    layout = scenes.layouts[S2]
    bands = tuple(band for band in layout.bands if band != "B12")
    fewer = _OtherLayout(scenes, replace(layout, bands=bands))
    data: Any = [scenes, fewer]
    with pytest.raises(SensorError, match="lack B12; name the bands"):
        new_student("s2", tiny_clip, StudentSettings(), [S2], data, seed=0)
    student, _ = new_student("s2", tiny_clip, StudentSettings(missing="zero"), [S2], data, seed=0)
    assert "B12" in student.config.input.bands
    assert student.config.input.missing == "zero"


def test_data_of_two_stretches_are_refused(tiny_clip: ClipModel, scenes: SyntheticSet) -> None:
    layout = scenes.layouts[S2]
    composite = next(one for one in layout.sensor.composites if one != layout.composite)
    data: Any = [scenes, _OtherLayout(scenes, replace(layout, composite=composite))]
    with pytest.raises(RecipeError, match="one tower keeps one stretch per sensor"):
        new_student("s2", tiny_clip, StudentSettings(), [S2], data, seed=0)


def test_a_sensor_without_data_is_refused(tiny_clip: ClipModel, scenes: SyntheticSet) -> None:
    with pytest.raises(RecipeError, match="no training data of sensor 'sentinel2-l1c'"):
        new_student("s2", tiny_clip, StudentSettings(), [S2, "sentinel2-l1c"], [scenes], seed=0)
    with pytest.raises(SensorError, match="the student takes rgb; data set 'synthetic-scenes'"):
        student_layout(scenes, ["rgb"])


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"drop_path": 0.2}, "drop_path has no effect on an inflated tower"),
        ({"initial": "moco.pth"}, "an inflated tower starts from the RGB tower"),
        ({"backbone": "test_vit", "others": "mean"}, "others = 'mean' has no effect on a timm"),
        ({"backbone": "test_vit", "initial_bands": ("B02",)}, "no effect without initial"),
    ],
)
def test_settings_without_effect_are_refused(settings: dict[str, Any], said: str) -> None:
    with pytest.raises(ValidationError, match=said):
        StudentSettings(**settings)


def test_an_unknown_backbone_is_told(tiny_clip: ClipModel, scenes: SyntheticSet) -> None:
    with pytest.raises(ModelError, match="unknown timm model 'vit_smal_patch16_224'"):
        new_student(
            "s2", tiny_clip, StudentSettings(backbone="vit_smal_patch16_224"), [S2], [scenes],
            seed=0,
        )  # fmt: skip
