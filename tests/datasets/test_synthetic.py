"""The synthetic world: what a sample depends on, and what its pixels and words say."""

from __future__ import annotations

import threading
from collections.abc import Callable

import numpy as np
import pytest
from numpy.typing import NDArray

from terralign.datasets.sample import SampleSet
from terralign.datasets.synthetic import (
    SyntheticSet,
    open_synthetic_photos,
    open_synthetic_scenes,
)
from terralign.datasets.synthetic import photos as synthetic_photos
from terralign.datasets.synthetic import scenes as synthetic_scenes
from terralign.datasets.synthetic.draws import speckle, uniforms
from terralign.datasets.synthetic.sets import RENDER_BATCH
from terralign.errors import DataError

Opener = Callable[..., SyntheticSet]
OPENERS = pytest.mark.parametrize("open_set", [open_synthetic_photos, open_synthetic_scenes])


def reflectance(pixels: dict[str, NDArray[np.generic]], band: str) -> NDArray[np.float64]:
    """(B, H, W) surface reflectance of one band."""
    layout = open_synthetic_scenes("val", num_samples=1).layouts["sentinel2-l2a"]
    dn = pixels["sentinel2-l2a"][:, layout.bands.index(band)].astype(np.float64)
    return dn * layout.sensor.dn_scale


def scenes_of(class_name: str, count: int = 60) -> dict[str, NDArray[np.generic]]:
    """Pixels of scenes that one land cover dominates."""
    scenes = open_synthetic_scenes("train", num_samples=count * 40)
    label = scenes.labels.class_names.index(class_name)
    return scenes.read(np.flatnonzero(scenes.labels.values == label)[:count])


def middle(values: NDArray[np.generic]) -> float:
    """The median over the pixels of all chips: the dominant cover's value."""
    return float(np.median(values))


@OPENERS
def test_a_set_keeps_the_protocol_and_its_layouts(open_set: Opener) -> None:
    samples: SampleSet = open_set("val", num_samples=70, size=24)
    assert len(samples) == len(samples.keys) == len(set(samples.keys)) == 70
    pixels = samples.read(np.arange(70))
    assert set(pixels) == set(samples.layouts)
    for sensor, layout in samples.layouts.items():
        assert pixels[sensor].shape == (70, len(layout.bands), 24, 24)
    kinds = {"rgb": np.uint8, "sentinel2-l2a": np.uint16, "sentinel1-grd": np.float32}
    assert all(pixels[sensor].dtype == kinds[sensor] for sensor in pixels)
    assert samples.labels is not None
    assert len(samples.labels.values) == 70
    assert all(prompt.count("{}") == 1 for prompt in samples.prompts or ())


@OPENERS
def test_pixels_depend_on_the_index_alone_not_on_the_batch(open_set: Opener) -> None:
    samples = open_set("train", num_samples=300)
    order = np.random.default_rng(0).permutation(300)[: 2 * RENDER_BATCH + 5]
    together = samples.read(order)
    for sensor, pixels in together.items():
        alone = np.concatenate([samples.read(order[[n]])[sensor] for n in range(len(order))])
        np.testing.assert_array_equal(pixels, alone)


@OPENERS
def test_a_longer_set_begins_with_the_same_samples(open_set: Opener) -> None:
    short, long = (open_set("val", num_samples=count) for count in (20, 50))
    assert short.keys == long.keys[:20]
    assert short.captions == (long.captions and long.captions[:20])
    np.testing.assert_array_equal(short.labels.values, long.labels.values[:20])
    for sensor, pixels in short.read(np.arange(20)).items():
        np.testing.assert_array_equal(pixels, long.read(np.arange(20))[sensor])


@OPENERS
def test_threads_read_the_same_pixels(open_set: Opener) -> None:
    samples = open_set("test", num_samples=64)
    expected = samples.read(np.arange(64))
    results: dict[int, dict[str, NDArray[np.generic]]] = {}

    def read(number: int) -> None:
        results[number] = samples.read(np.arange(64)[:: 1 if number % 2 else -1])

    threads = [threading.Thread(target=read, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for number in range(4):
        for sensor, pixels in expected.items():
            np.testing.assert_array_equal(
                results[number][sensor][:: 1 if number % 2 else -1], pixels
            )


@OPENERS
def test_splits_and_seeds_share_no_sample(open_set: Opener) -> None:
    sets = [open_set(split, num_samples=400) for split in ("train", "val", "test")]
    sets.append(open_set("train", num_samples=400, seed=1))
    chips = [
        pixels.tobytes()
        for samples in sets
        for pixels in next(iter(samples.read(np.arange(400)).values()))
    ]
    assert len(set(chips)) == len(chips) == 1600
    assert len({samples.fingerprint for samples in sets}) == 4


def test_the_fingerprint_changes_with_every_parameter() -> None:
    variants: list[dict[str, int]] = [{}, {"num_samples": 9}, {"seed": 3}, {"size": 48}]
    names = {open_synthetic_scenes("val", **one).fingerprint for one in variants}
    names.add(open_synthetic_scenes("val", multi_label=True).fingerprint)
    names.add(open_synthetic_photos("val").fingerprint)
    assert len(names) == 6
    assert open_synthetic_scenes("val").fingerprint == open_synthetic_scenes("val").fingerprint


@OPENERS
@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"split": "tset"}, "splits: train, val, test"),
        ({"split": "val", "size": 8}, "size is 8; expected 16 to 256"),
        ({"split": "val", "size": 512}, "size is 512"),
        ({"split": "val", "num_samples": 0}, "num_samples is 0; expected 1 to"),
        ({"split": "val", "seed": -1}, "seed is -1; expected 0 to"),
    ],
)
def test_wrong_parameters_are_told(open_set: Opener, given: dict[str, object], said: str) -> None:
    with pytest.raises(DataError, match=said):
        open_set(**given)


@OPENERS
def test_no_indices_give_no_pixels(open_set: Opener) -> None:
    samples = open_set("val", num_samples=10)
    pixels = samples.read(np.array([], dtype=np.int64))
    assert {sensor: len(layout.bands) for sensor, layout in samples.layouts.items()} == {
        sensor: chips.shape[1] for sensor, chips in pixels.items()
    }
    assert all(len(chips) == 0 for chips in pixels.values())


@OPENERS
@pytest.mark.parametrize("size", [16, 33, 256])
def test_every_size_is_drawn(open_set: Opener, size: int) -> None:
    pixels = open_set("val", num_samples=4, size=size).read(np.arange(4))
    for chips in pixels.values():
        assert chips.shape[2:] == (size, size)
        assert np.isfinite(chips.astype(np.float64)).all()
        assert (chips.astype(np.float64).std(axis=(2, 3)) > 0).all()


def test_every_class_occurs_about_as_often() -> None:
    counts = np.bincount(open_synthetic_scenes("train", num_samples=6000).labels.values)
    assert len(counts) == len(synthetic_scenes.MATERIALS) >= 10
    assert counts.min() > 400
    assert counts.max() < 600
    photos = np.bincount(open_synthetic_photos("train", num_samples=9000).labels.values)
    assert len(photos) == len(synthetic_photos.CLASS_NAMES)
    assert photos.min() > 120


# Captions


def test_captions_say_the_label() -> None:
    photos = open_synthetic_photos("train", num_samples=2000)
    assert photos.captions is not None
    for (caption,), label in zip(photos.captions, photos.labels.values, strict=True):
        assert set(photos.labels.class_names[label].split()) <= set(
            caption.replace(",", "").split()
        )
        others = {name for name in synthetic_photos.COLOURS if name in caption.split()}
        if label < len(synthetic_photos.SHAPES) * len(synthetic_photos.COLOURS):
            assert others == {photos.labels.class_names[label].split()[0]}
    assert len(set(photos.captions)) > 600


@pytest.mark.parametrize("palette", [synthetic_photos.BACKGROUNDS, synthetic_photos.COLOURS])
def test_captions_say_the_colours_in_the_picture(
    palette: dict[str, synthetic_photos.Rgb],
) -> None:
    photos = open_synthetic_photos("train", num_samples=1500)
    num_shape_classes = len(synthetic_photos.SHAPES) * len(synthetic_photos.COLOURS)
    names = list(palette)
    said = [
        (index, names.index(word))
        for index, (caption,) in enumerate(photos.captions or ())
        for word in caption.split()
        if word in palette and photos.labels.values[index] < num_shape_classes
    ]
    chosen, words = np.array(said).T
    pixels = photos.read(chosen)["rgb"].astype(np.float64)
    flat = pixels.reshape(len(chosen), 3, -1)
    if palette is synthetic_photos.BACKGROUNDS:
        found = np.median(flat[:, :, : 2 * 32], axis=2)
    else:
        # The shape is the most saturated thing in the picture.
        saturated = (flat.max(axis=1) - flat.min(axis=1)).argmax(axis=1)
        found = flat[np.arange(len(chosen)), :, saturated]
    table = np.array(list(palette.values()))
    nearest = np.linalg.norm(found[:, None] - table[None], axis=2).argmin(axis=1)
    assert (nearest == words).mean() > 0.9


def test_the_scenes_class_names_are_words_that_photos_teach() -> None:
    captions = open_synthetic_photos("train", num_samples=2000).captions or ()
    taught = {word for (caption,) in captions for word in caption.replace(",", "").split()}
    for name in synthetic_scenes.CLASS_NAMES:
        assert set(name.split()) <= taught


# Scenes


def test_single_and_multi_label_views_show_the_same_scenes() -> None:
    single = open_synthetic_scenes("val", num_samples=500)
    multi = open_synthetic_scenes("val", num_samples=500, multi_label=True)
    assert multi.labels.multi_label
    assert not single.labels.multi_label
    assert multi.labels.values[np.arange(500), single.labels.values].all()
    counts = multi.labels.values.sum(axis=1)
    assert set(counts.tolist()) == {2, 3}
    for sensor, pixels in single.read(np.arange(40)).items():
        np.testing.assert_array_equal(pixels, multi.read(np.arange(40))[sensor])


@pytest.mark.parametrize("size", [16, 32, 45])
def test_labels_agree_with_the_area_covered(size: int) -> None:
    keys = open_synthetic_scenes("val", num_samples=300).sample_keys
    materials, shares = synthetic_scenes.draw_materials(keys)
    cover = synthetic_scenes.draw_cover(keys, shares, size)
    np.testing.assert_array_equal(cover.sum(axis=1), 1)
    areas = cover.mean(axis=(2, 3))
    np.testing.assert_allclose(areas, shares, atol=3 / size**2)
    assert (areas[:, 0] > 0.5).all()
    np.testing.assert_array_equal(synthetic_scenes.single_labels(keys), materials[:, 0])
    labels = synthetic_scenes.multi_labels(keys)
    present = np.take_along_axis(labels, materials, axis=1)
    clear = np.abs(shares - synthetic_scenes.PRESENCE) > 3 / size**2
    np.testing.assert_array_equal(present[clear], areas[clear] >= synthetic_scenes.PRESENCE)


def test_vegetation_index_orders_crop_soil_and_water() -> None:
    def ndvi(class_name: str) -> float:
        pixels = scenes_of(class_name)
        red, nir = reflectance(pixels, "B04"), reflectance(pixels, "B08")
        return middle((nir - red) / (nir + red))

    assert ndvi("green crop field") > 0.6
    assert ndvi("evergreen forest") > 0.5
    assert 0.1 < ndvi("bare soil") < 0.35
    assert ndvi("deep water") < -0.1


def test_reflectances_and_backscatter_are_plausible() -> None:
    pixels = open_synthetic_scenes("val", num_samples=256).read(np.arange(256))
    dn = pixels["sentinel2-l2a"]
    assert dn.min() >= 1
    assert np.quantile(dn, 0.999) < 13_000
    sigma0 = pixels["sentinel1-grd"]
    assert sigma0.min() >= -35
    assert sigma0.max() <= 10
    assert (sigma0[:, 0] > sigma0[:, 1]).mean() > 0.85


@pytest.mark.parametrize("pair", synthetic_scenes.LOOK_ALIKES)
def test_look_alikes_are_near_in_the_composite_and_apart_elsewhere(pair: tuple[str, str]) -> None:
    composite = open_synthetic_scenes("val").layouts["sentinel2-l2a"].composite
    assert composite is not None
    one, other = scenes_of(pair[0]), scenes_of(pair[1])

    def gap(band: str, stretch: float) -> float:
        values = [np.clip(reflectance(p, band) / stretch, 0, 1) for p in (one, other)]
        return abs(middle(values[0]) - middle(values[1]))

    assert max(gap(band, composite.stretch) for band in composite.bands) < 0.12
    by_band = [
        abs(np.log(middle(reflectance(one, band)) / middle(reflectance(other, band))))
        for band in ("B08", "B11", "B12")
    ]
    assert max(by_band) > np.log(1.35)


def test_classes_that_are_no_look_alikes_differ_in_the_composite() -> None:
    singles = [*(pair[0] for pair in synthetic_scenes.LOOK_ALIKES), "sand dunes", "shallow water"]
    colours = []
    for name in singles:
        pixels = scenes_of(name, count=30)
        bands = [np.clip(reflectance(pixels, band) / 0.2, 0, 1) for band in ("B04", "B03", "B02")]
        colours.append([middle(band) for band in bands])
    table = np.array(colours)
    distance = np.linalg.norm(table[:, None] - table[None], axis=2) + np.eye(len(table))
    assert distance.min() > 0.05


def test_bands_have_their_own_resolution() -> None:
    samples = open_synthetic_scenes("val", num_samples=64, size=36)
    pixels = samples.read(np.arange(64))

    def inner(band: str, block: int) -> float:
        """Share of the variation between neighbours that lies inside blocks of `block` pixels."""
        steps = np.abs(np.diff(reflectance(pixels, band), axis=2))
        inside = np.arange(1, 36) % block != 0
        return float(steps[:, :, inside].mean() / steps[:, :, ~inside].mean())

    assert inner("B08", 2) > 0.8
    assert inner("B8A", 2) < 0.6
    assert inner("B09", 6) < 0.6


def test_radar_is_bright_over_buildings_and_dark_over_water() -> None:
    roofs, water, forest = (
        scenes_of(name)["sentinel1-grd"]
        for name in ("brick roofs", "deep water", "evergreen forest")
    )
    assert middle(roofs[:, 0]) > middle(forest[:, 0]) + 3 > middle(water[:, 0]) + 6
    assert middle(forest[:, 1]) > middle(water[:, 1]) + 6


# Draws


def test_speckle_is_multi_look() -> None:
    keys = open_synthetic_scenes("val", num_samples=200).sample_keys
    power = speckle(keys, "speckle", (32, 32)).astype(np.float64)
    assert power.mean() == pytest.approx(1.0, abs=0.01)
    assert power.var() == pytest.approx(1 / 4.4, rel=0.03)


def test_draws_are_uniform_and_independent_of_one_another() -> None:
    keys = open_synthetic_scenes("train", num_samples=20_000).sample_keys
    table = np.concatenate([uniforms(keys, "one", 3), uniforms(keys, "two", 3)], axis=1)
    assert table.min() >= 0
    assert table.max() < 1
    for column in table.T:
        counts, _ = np.histogram(column, bins=10, range=(0, 1))
        assert np.abs(counts - 2000).max() < 250
    off_diagonal = np.corrcoef(table.T) - np.eye(6)
    assert np.abs(off_diagonal).max() < 0.03
    assert abs(np.corrcoef(table[:-1, 0], table[1:, 0])[0, 1]) < 0.03
