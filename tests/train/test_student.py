"""A new student tower: bands, ranges, first weights."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from pydantic import ValidationError
from torch import nn

from fakes import Changed
from terralign.chips import PixelLayout
from terralign.datasets.sample import SampleSet, Wrapped
from terralign.datasets.synthetic import SyntheticSet
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import hash_module
from terralign.encoders.sensor import SensorTower
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import ModelError, RecipeError, SensorError
from terralign.files import hash_json
from terralign.preprocess import ViewSpec, make_ready, scale_bands, scale_composite
from terralign.sensors import SENSORS
from terralign.train.student import StudentSettings, new_student, student_layout
from terralign.train.student_validation import student_features
from terralign.train.teacher import ViewPlan, view_features

S2, S1, L1C = "sentinel2-l2a", "sentinel1-grd", "sentinel2-l1c"


class _OtherLayout(Changed):
    """A set with another Sentinel-2 layout, and the bands of that."""

    def __init__(self, samples: SampleSet, layout: PixelLayout) -> None:
        super().__init__(samples, layouts={**samples.layouts, S2: layout})
        have = samples.layouts[S2].bands
        self._order = [have.index(band) for band in layout.bands]

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        pixels = super().read(indices)
        return {**pixels, S2: pixels[S2][:, self._order]}


def test_an_inflated_student_starts_as_its_teacher(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    student, not_loaded = new_student("s2", tiny_clip, StudentSettings(), [S2], [scenes], seed=0)
    plain = ViewPlan(spec=ViewSpec(flips=False, turns=False), num_views=1, seed=0)
    [expected] = view_features(tiny_clip, scenes, plain, [(0, 0)], len(scenes))
    torch.testing.assert_close(
        student_features(student.eval(), scenes), expected, rtol=1e-3, atol=1e-3
    )
    assert student.config.input.bands == scenes.layouts[S2].sensor.band_names
    assert not_loaded == {}


INVISIBLE = ("B05", "B06", "B07", "B08", "B8A", "B11", "B12")


@pytest.mark.parametrize("holed", [False, True], ids=["whole", "holed"])
def test_a_fitted_student_starts_at_the_best_estimate_of_the_picture(
    tiny_clip: ClipModel, scenes: SyntheticSet, holed: bool
) -> None:
    samples = _Holed(scenes) if holed else scenes
    settings = StudentSettings(bands=INVISIBLE, others="fitted")
    student, _ = new_student("s2", tiny_clip, settings, [S2], [samples], seed=0)
    layout, spec = samples.layouts[S2], student.config.input
    raw = torch.from_numpy(samples.read(np.arange(len(samples)))[S2])
    composed = scale_composite(raw, layout)
    valid = ~composed.isnan().any(1)
    assert bool(valid.all()) is not holed
    flat = [
        make_ready(one, own).movedim(1, -1)[valid].numpy()
        for one, own in (
            (scale_bands(raw, layout, spec), spec),
            (composed, tiny_clip.input_spec),
        )
    ]
    colours = torch.from_numpy(np.linalg.lstsq(*flat, rcond=None)[0]).float()
    source, found = (
        next(one for one in module.modules() if isinstance(one, nn.Conv2d)).weight
        for module in (tiny_clip.visual, student)
    )
    expected = torch.einsum("ochw,bc->obhw", source, colours)
    torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-3)


class _Holed(Wrapped):
    """A set whose first rows have no data in red."""

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        pixels = super().read(indices)
        holed = pixels[S2].copy()
        holed[:, self.layouts[S2].bands.index("B04"), :9] = 0
        return {**pixels, S2: holed}


def test_a_fitted_student_sees_no_visible_band_and_pixels_beside_the_pictures(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    visible = StudentSettings(bands=("B04", "B08"), others="fitted")
    with pytest.raises(RecipeError, match="towers without visible bands; this one has B04"):
        new_student("s2", tiny_clip, visible, [S2], [scenes], seed=0)
    radar = StudentSettings(others="fitted")
    new_student("s1", tiny_clip, radar, [S1], [scenes], seed=0)
    with pytest.raises(RecipeError, match="needs pixels of sentinel1-grd on those of sentinel2"):
        new_student("s1", tiny_clip, radar, [S1], [_Smaller(scenes)], seed=0)


def test_a_fitted_student_gives_no_weight_to_a_band_without_pixels(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    settings = StudentSettings(bands=INVISIBLE, others="fitted", missing="zero")
    masked = _Masked(scenes, S2, ("B12",))
    student, _ = new_student("s2", tiny_clip, settings, [S2], [masked], seed=0)
    filters = next(one for one in student.modules() if isinstance(one, nn.Conv2d)).weight
    assert bool(filters.isfinite().all())
    assert bool((filters[:, -1] == 0).all())
    assert bool((filters[:, :-1] != 0).any())


class _Smaller(Wrapped):
    """A set whose radar has fewer pixels."""

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        pixels = super().read(indices)
        return {**pixels, S1: pixels[S1][:, :, ::2, ::2]}


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
    data: list[SampleSet] = [scenes, _OtherLayout(scenes, replace(layout, composite=composite))]
    with pytest.raises(RecipeError, match="one tower keeps one stretch per sensor"):
        new_student("s2", tiny_clip, StudentSettings(), [S2], data, seed=0)


# Bands and sensors are those that the tower declares


def test_bands_belong_to_the_towers_sensors_not_to_the_datas(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    """B10 is no band of L2A, which is all that there is to train on."""
    settings = StudentSettings(backbone="test_vit", bands=("B04", "b10"), missing="zero")
    student, _ = new_student("s2", tiny_clip, settings, [S2, L1C], [scenes], seed=0)
    spec = student.config.input
    assert spec.bands == ("B04", "B10")
    assert spec.sensors == (S2, L1C)
    assert spec.ranges[S2] == spec.ranges[L1C] == ((0.0, 1.0), (0.0, 1.0))
    assert (spec.mean[1], spec.std[1]) == (0.0, 1.0)
    assert spec.mean[0] != 0.0


def test_an_unknown_band_names_all_sensors_of_the_tower(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    settings = StudentSettings(bands=("B04", "B13"))
    with pytest.raises(SensorError, match=r"unknown band 'B13'.*\(sentinel2-l2a, sentinel2-l1c\)"):
        new_student("s2", tiny_clip, settings, [S2, L1C], [scenes], seed=0)
    twice = StudentSettings(bands=("B10", "B04", "red"), missing="zero")
    with pytest.raises(SensorError, match="name B04 twice"):
        new_student("s2", tiny_clip, twice, [S2, L1C], [scenes], seed=0)


@pytest.mark.parametrize("backbone", ["test_vit", "inflate"])
def test_a_tower_takes_a_sensor_that_it_has_no_training_data_of(
    tiny_clip: ClipModel, scenes: SyntheticSet, backbone: str
) -> None:
    settings = StudentSettings(backbone=backbone)
    student, _ = new_student("s2", tiny_clip, settings, [S2, L1C], [scenes], seed=0)
    spec = student.config.input
    red = spec.bands.index("B04")
    if backbone == "inflate":
        assert spec.ranges[S2][red] == (0.0, SENSORS[S2].composite().stretch)
        assert spec.ranges[L1C][red] == (0.0, SENSORS[L1C].composite().stretch)
    others = [number for number, band in enumerate(spec.bands) if band not in ("B04", "B03", "B02")]
    assert [spec.ranges[L1C][i] for i in others] == [spec.ranges[S2][i] for i in others]


@pytest.mark.parametrize(
    ("sensors", "settings", "said"),
    [
        ([S2, S1], {}, "'sentinel1-grd' has none of the student's bands"),
        ([S2, L1C], {"bands": ("B04", "B10")}, 'has no band B10; .*set missing = "zero"'),
        (
            [S2, "landsat-oli-l2"],
            {"bands": ("B04", "B5"), "missing": "zero"},
            "'landsat-oli-l2' has none of the student's bands",
        ),
    ],
)
def test_a_sensor_that_cannot_serve_the_tower_is_refused(
    tiny_clip: ClipModel,
    scenes: SyntheticSet,
    sensors: list[str],
    settings: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(SensorError, match=said):
        new_student("s2", tiny_clip, StudentSettings(**settings), sensors, [scenes], seed=0)


def test_data_of_no_sensor_of_the_tower_are_refused(scenes: SyntheticSet) -> None:
    with pytest.raises(SensorError, match="the student takes rgb; data set 'synthetic-scenes'"):
        student_layout(scenes, ["rgb"])


def test_a_sensor_without_data_in_another_unit_is_refused(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    linear = replace(SENSORS[S1], name="my-linear-radar", unit="intensity")
    with pytest.raises(RecipeError, match=r"'my-linear-radar', and its unit \(intensity\)"):
        new_student("s1", tiny_clip, StudentSettings(), [SENSORS[S1], linear], [scenes], seed=0)


class _Masked(Wrapped):
    """A set in which bands of one sensor have no valid pixel."""

    def __init__(self, samples: SampleSet, sensor: str, bands: tuple[str, ...]) -> None:
        super().__init__(samples)
        self._sensor, self._bands = sensor, bands

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        pixels = super().read(indices)
        changed: Any = pixels[self._sensor].copy()
        layout = self.layouts[self._sensor]
        for band in self._bands:
            empty = 0 if layout.units == "dn" else np.nan
            changed[:, layout.bands.index(band)] = empty
        return {**pixels, self._sensor: changed}


@pytest.mark.parametrize("backbone", ["test_vit", "inflate"])
def test_a_band_without_a_valid_pixel_is_an_error_or_not_measured(
    tiny_clip: ClipModel, scenes: SyntheticSet, backbone: str
) -> None:
    data = [_Masked(scenes, S2, ("B09",))]
    settings = StudentSettings(backbone=backbone)
    with pytest.raises(SensorError, match=r'B09 has no valid pixel .* or set missing = "zero"'):
        new_student("s2", tiny_clip, settings, [S2], data, seed=0)
    settings = StudentSettings(backbone=backbone, missing="zero")
    student, _ = new_student("s2", tiny_clip, settings, [S2], data, seed=0)
    spec = student.config.input
    place = spec.bands.index("B09")
    assert (spec.ranges[S2][place], spec.mean[place], spec.std[place]) == ((0.0, 1.0), 0.0, 1.0)


def test_the_range_of_a_radar_band_is_never_guessed(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    data = [_Masked(scenes, S1, ("VH",))]
    settings = StudentSettings(backbone="test_vit", missing="zero")
    with pytest.raises(SensorError, match=r"VH has no valid pixel .* its range is not known"):
        new_student("s1", tiny_clip, settings, [S1], data, seed=0)


# Scaling and size


def _moco(path: Path, bands: int, *, size: int = 32) -> dict[str, torch.Tensor]:
    """A small ViT with random weights in the keys of SSL4EO-S12's MoCo-v3 checkpoints."""
    torch.manual_seed(0)
    model = timm.create_model(VIT, img_size=size, in_chans=bands, num_classes=0)
    state = {key: torch.randn_like(value) * 0.1 for key, value in model.state_dict().items()}
    keys = {
        **{f"module.base_encoder.{key}": value for key, value in state.items()},
        **{f"module.momentum_encoder.{key}": value for key, value in state.items()},
        "module.base_encoder.head.0.weight": torch.zeros(2, 2),
        "module.predictor.0.weight": torch.zeros(2, 2),
    }
    torch.save({"epoch": 100, "arch": "vit_small", "state_dict": keys}, path)
    return state


VIT = "vit_tiny_patch16_224"


@pytest.mark.parametrize("sensor", [S2, L1C])
@pytest.mark.parametrize("scaling", [None, "reflectance"])
def test_a_moco_student_sees_dn_over_ten_thousand(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path, sensor: str, scaling: Any
) -> None:
    """As in plain torch with the same weights; B10, which L2A lacks, is zero."""
    bands = SENSORS[L1C].band_names
    state = _moco(tmp_path / "moco.pth", len(bands))
    settings = StudentSettings(
        backbone=VIT, bands=bands, missing="zero", initial="moco.pth", scaling=scaling
    )
    tower, _ = new_student("s2", tiny_clip, settings, [S2, L1C], [scenes], seed=0, root=tmp_path)
    assert tower.config.scaling == "reflectance"
    assert tower.config.input.size == 32
    have = SENSORS[sensor].band_names
    dn = np.random.default_rng(0).integers(1, 12_000, (3, len(have), 32, 32)).astype(np.uint16)

    plain = timm.create_model(VIT, img_size=32, in_chans=len(bands), num_classes=0).eval()
    plain.load_state_dict(state)
    numbers = np.zeros((3, len(bands), 32, 32), dtype=np.float32)
    for channel, band in enumerate(bands):
        if band in have:
            numbers[:, channel] = (dn[:, have.index(band)] / 10_000).clip(0, 1)
    weight = tower.projection.weight
    assert isinstance(weight, torch.Tensor)
    with torch.inference_mode():
        expected = plain(torch.from_numpy(numbers)) @ weight.T

    space = EmbeddingSpace(tiny_clip, towers={"s2": tower})
    got = space.encode_image(dn, sensor, have, units="dn", dn_offset=0, tower="s2", normalize=False)
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def test_radar_weights_are_fed_the_stretch_they_were_trained_with(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    """SSL4EO-S12's pretraining: (dB - (mean - 2 std)) / (4 std), clipped to 0-1."""
    state = _moco(tmp_path / "moco.pth", 2)
    settings = StudentSettings(backbone=VIT, bands=("VV", "VH"), initial="moco.pth")
    tower, _ = new_student("s1", tiny_clip, settings, [S1], [scenes], seed=0, root=tmp_path)
    assert tower.config.scaling == "ssl4eo-s1"
    decibel = scenes.read(np.arange(4))[S1].astype(np.float32)
    mean = np.array([-12.54847273, -20.19237134], np.float32)[:, None, None]
    std = np.array([5.25697717, 5.91150917], np.float32)[:, None, None]
    numbers = ((decibel - (mean - 2 * std)) / (4 * std)).clip(0, 1)
    plain = timm.create_model(VIT, img_size=32, in_chans=2, num_classes=0).eval()
    plain.load_state_dict(state)
    weight = tower.projection.weight
    assert isinstance(weight, torch.Tensor)
    with torch.inference_mode():
        expected = plain(torch.from_numpy(numbers)) @ weight.T
    torch.testing.assert_close(student_features(tower.eval(), scenes)[:4], expected,
                               atol=1e-5, rtol=1e-5)  # fmt: skip


def test_the_scaling_is_that_of_the_first_weights_unless_it_is_set(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    _moco(tmp_path / "moco.pth", 12)

    def made(**settings: Any) -> SensorTower:
        chosen = StudentSettings(backbone=VIT, **settings)
        return new_student("s2", tiny_clip, chosen, [S2], [scenes], seed=0, root=tmp_path)[0]

    plain, pretrained = made(), made(initial="moco.pth")
    assert plain.config.scaling == "standardised"
    assert max(plain.config.input.mean) > 0
    assert pretrained.config.scaling == "reflectance"
    assert set(pretrained.config.input.mean) == {0.0}
    assert set(pretrained.config.input.std) == {1.0}
    asked = made(initial="moco.pth", scaling="standardised")
    assert asked.config.input.mean == plain.config.input.mean
    assert made(scaling="reflectance").config.input.std == pretrained.config.input.std
    inflated, _ = new_student("s2", tiny_clip, StudentSettings(), [S2], [scenes], seed=0)
    assert inflated.config.scaling is None


@pytest.mark.parametrize(
    ("sensor", "scaling", "said"),
    [
        (S1, "reflectance", 'is for reflectance; sentinel1-grd is in dB: set scaling = "standa'),
        (S2, "ssl4eo-s1", "is for dB of VV and VH of Sentinel-1; sentinel2-l2a is in reflectance"),
    ],
)
def test_a_scaling_of_another_unit_is_refused(
    tiny_clip: ClipModel, scenes: SyntheticSet, sensor: str, scaling: Any, said: str
) -> None:
    settings = StudentSettings(backbone="test_vit", scaling=scaling)
    with pytest.raises(RecipeError, match=said) as told:
        new_student("s", tiny_clip, settings, [sensor], [scenes], seed=0)
    assert "\n" not in str(told.value)


def test_the_scaling_travels_with_the_space_and_may_be_missing_in_older_ones(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    tower, _ = new_student(
        "s2", tiny_clip, StudentSettings(backbone="test_vit"), [S2], [scenes], seed=0
    )
    inflated, _ = new_student("old", tiny_clip, StudentSettings(), [S2], [scenes], seed=0)
    space = EmbeddingSpace(tiny_clip, towers={"s2": tower, "old": inflated})
    space.save(tmp_path / "space")
    path = tmp_path / "space" / "space.json"
    values = json.loads(path.read_text())
    assert values["towers"][0]["scaling"] == "standardised"
    del values["towers"][1]["scaling"]  # as before the key was recorded
    path.write_text(json.dumps(values))
    loaded = EmbeddingSpace.load(tmp_path / "space")
    assert loaded.towers["s2"].config.scaling == "standardised"
    assert loaded.towers["old"].config.scaling is None
    # The name of a tower from before the key: the hash of its configuration without it.
    config = inflated.config.model_dump(mode="json", exclude={"scaling", "encoder", "width"})
    assert loaded.tower_id("old") == hash_module(inflated, extra=hash_json(config))


def test_the_size_is_the_checkpoints_unless_it_is_set(
    tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    _moco(tmp_path / "moco.pth", 12, size=64)

    def size(**settings: Any) -> int:
        chosen = StudentSettings(backbone=VIT, **settings)
        tower, _ = new_student("s2", tiny_clip, chosen, [S2], [scenes], seed=0, root=tmp_path)
        assert tower(torch.zeros(1, 12, *(2 * (tower.config.input.size,)))).shape == (1, 32)
        return tower.config.input.size

    assert size() == tiny_clip.input_spec.size == 32
    assert size(initial="moco.pth") == 64
    assert size(initial="moco.pth", size=48) == 48
    assert size(size=16) == 16


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"drop_path": 0.2}, "drop_path has no effect on an inflated tower"),
        ({"initial": "moco.pth"}, "an inflated tower starts from the RGB tower"),
        ({"scaling": "reflectance"}, "scaling has no effect on an inflated tower"),
        ({"size": 224}, "size has no effect on an inflated tower"),
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


class _Empty(_OtherLayout):
    """A set whose Sentinel-2 pixels are no data throughout."""

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        pixels = super().read(indices)
        return {**pixels, S2: np.zeros_like(pixels[S2])}


def test_a_composite_without_a_valid_pixel_has_no_brightness(
    tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    empty = _Empty(scenes, scenes.layouts[S2])
    settings = StudentSettings(missing="zero")
    with pytest.raises(SensorError, match=r"composite of 'synthetic-scenes' has no valid pixel"):
        new_student("s2", tiny_clip, settings, [S2], [scenes, empty], seed=0)
