"""Classifying single files."""

from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from numpy.typing import NDArray
from PIL import Image
from rasterio import Affine

from imagery import read_chip
from terralign.chips import Chip, make_layout
from terralign.encoders.answers import Classified
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.vectors import Fault
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import DataError, ModelError, RecipeError, SensorError
from terralign.sensors import SENSORS

LABELS = ["forest", "river", "town"]
S2 = SENSORS["sentinel2-l2a"]


@pytest.fixture(scope="module")
def space(tiny_clip: ClipModel) -> EmbeddingSpace:
    return EmbeddingSpace(tiny_clip, prompts=PromptSet(name="plain", templates=("{}",)))


def classify_files(
    space: EmbeddingSpace, files: list[Path], labels: Any, **how: Any
) -> list[Classified | Fault]:
    """A row for every file; raises where none can be read, as `classify` does."""
    found = list(space.classify_each(files, labels, errors="skip", **how))
    if len(files) == 1 or all(isinstance(one, Fault) for one in found):
        space.classify(files, labels, errors="skip", **how)
    return found


def _first(found: Any) -> list[float]:
    """The probabilities of the first row."""
    numbers: list[float] = np.asarray(found)[0].tolist()
    return numbers


def _picture() -> NDArray[np.uint8]:
    """(48, 48, 3): a smooth gradient, which JPEG keeps nearly as it is."""
    ramp = np.linspace(0, 255, 48)
    return np.stack(
        [np.tile(ramp, (48, 1)), np.tile(ramp, (48, 1)).T, np.full((48, 48), 90)], -1
    ).astype(np.uint8)


def _write_tif(path: Path, pixels: NDArray[Any], names: tuple[str, ...] = ()) -> None:
    with (
        warnings.catch_warnings(),
        rasterio.open(
            path, "w", driver="GTiff", dtype=pixels.dtype, count=len(pixels),
            height=pixels.shape[1], width=pixels.shape[2], crs="EPSG:32633",
            transform=Affine(10, 0, 500_000, 0, -10, 5_000_000),
        ) as file,
    ):  # fmt: skip
        file.write(pixels)
        for number, name in enumerate(names, 1):
            file.set_band_description(number, name)


def test_pictures_are_classified_as_the_space_does(space: EmbeddingSpace, tmp_path: Path) -> None:
    Image.fromarray(_picture()).save(tmp_path / "a.png")
    Image.fromarray(_picture()).save(tmp_path / "a.jpg", quality=95)
    png, jpg = classify_files(space, [tmp_path / "a.png", tmp_path / "a.jpg"], LABELS)
    pixels = _picture().transpose(2, 0, 1)
    expected = _first(space.classify(pixels, LABELS, sensor="rgb", units="dn"))
    assert list(png.probabilities.values()) == pytest.approx(expected, rel=1e-6)
    assert list(jpg.probabilities.values()) == pytest.approx(expected, abs=0.2)
    assert sum(png.probabilities.values()) == pytest.approx(1)
    assert png.label == LABELS[int(np.argmax(expected))]
    assert png.tower == "rgb"
    assert png.to_json() == {
        "label": png.label,
        "probability": max(png.probabilities.values()),
        "probabilities": png.probabilities,
        "tower": "rgb",
        "valid_share": 1.0,
    }


def test_a_picture_gives_the_same_as_a_chip_and_as_a_file(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    noise = np.random.default_rng(0).integers(0, 256, (70, 90, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / "a.png")
    (found,) = classify_files(space, [tmp_path / "a.png"], LABELS)
    chip = read_chip(tmp_path / "a.png")
    by_chip = _first(space.classify(chip, LABELS))
    assert by_chip == pytest.approx(list(found.probabilities.values()), rel=1e-6)


def test_rgb_of_a_wider_type_is_a_picture_and_one_band_of_it_is_not(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    pixels = _picture().transpose(2, 0, 1)
    colours = SENSORS["rgb"].band_names
    _write_tif(tmp_path / "8.tif", pixels, colours)
    _write_tif(tmp_path / "16.tif", pixels.astype(np.uint16), colours)
    _write_tif(tmp_path / "red.tif", pixels[:1], colours[:1])
    files = [tmp_path / "8.tif", tmp_path / "16.tif", tmp_path / "red.tif"]
    eight, sixteen, red = classify_files(
        space, files, LABELS, sensor=SENSORS["rgb"], window="whole"
    )
    assert isinstance(eight, Classified)
    assert isinstance(sixteen, Classified)
    assert sixteen.probabilities == eight.probabilities
    assert isinstance(red, Fault)
    assert "needs red, green, blue; the pixels have red (missing green, blue)" in red.error


def test_a_chip_of_ones_own_is_held_against_what_it_declares(space: EmbeddingSpace) -> None:
    power = np.full((2, 32, 32), 0.05, dtype=np.float32)
    layout = make_layout(SENSORS["sentinel1-grd"], ("VV", "VH"), units="physical")
    chip = Chip(pixels=power, valid=np.ones(power.shape, bool), layout=layout)
    with pytest.raises(DataError, match="sigma0 in dB is mostly negative"):
        space.encode_image(chip)


def test_a_geotiff_goes_through_its_sensors_composite(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    rng = np.random.default_rng(0)
    pixels = rng.integers(1200, 4000, (12, 32, 32)).astype(np.uint16)
    _write_tif(tmp_path / "a.tif", pixels, S2.band_names)
    (found,) = classify_files(space, [tmp_path / "a.tif"], LABELS, sensor=S2, dn_offset=0)
    expected = np.asarray(space.classify(pixels, LABELS, sensor=S2, units="dn", dn_offset=0))[
        0
    ].tolist()
    assert list(found.probabilities.values()) == pytest.approx(expected, rel=1e-3)
    (moved,) = classify_files(space, [tmp_path / "a.tif"], LABELS, sensor=S2, dn_offset=-1000)
    assert moved.probabilities != found.probabilities
    (other,) = classify_files(
        space, [tmp_path / "a.tif"], LABELS, sensor=S2, dn_offset=0, composite="eurosat"
    )
    assert other.probabilities != found.probabilities


def test_no_data_is_masked_whatever_the_offset(space: EmbeddingSpace, tmp_path: Path) -> None:
    pixels = np.full((12, 32, 32), 1500, dtype=np.uint16)
    pixels[:, :8] = 0
    _write_tif(tmp_path / "a.tif", pixels, S2.band_names)
    (found,) = classify_files(space, [tmp_path / "a.tif"], LABELS, sensor=S2, dn_offset=-1000)
    expected = np.asarray(space.classify(pixels, LABELS, sensor=S2, units="dn", dn_offset=-1000))[
        0
    ].tolist()
    assert list(found.probabilities.values()) == pytest.approx(expected, rel=1e-3)


def test_python_masks_as_the_command_does_whatever_the_mask(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    """The file's no-data value, its internal mask and NaN, by chip, by numbers and by file."""
    rng = np.random.default_rng(0)
    pixels = rng.integers(300, 3000, (12, 32, 32)).astype(np.uint16)
    for garbage in (7, 30000):
        pixels[:, :8] = garbage
        _write_tif(tmp_path / "a.tif", pixels, S2.band_names)
        with rasterio.open(tmp_path / "a.tif", "r+") as file:
            if garbage == 7:
                file.write_mask(np.repeat(np.arange(32) >= 8, 32).reshape(32, 32))
            else:
                file.nodata = garbage
        (found,) = classify_files(space, [tmp_path / "a.tif"], LABELS, sensor=S2, dn_offset=0)
        chances = list(found.probabilities.values())
        assert found.valid_share == 0.75
        chip = read_chip(tmp_path / "a.tif", sensor=S2, dn_offset=0)
        assert _first(space.classify(chip, LABELS)) == pytest.approx(chances, rel=1e-5)
        how = {"units": chip.layout.units, "dn_offset": chip.layout.dn_offset}
        by_numbers = space.classify(
            chip.pixels, LABELS, sensor=chip.sensor, bands=chip.bands, **how
        )
        assert _first(by_numbers) == pytest.approx(chances, rel=1e-5)
        if garbage == 7:
            first = chances
    assert chances == pytest.approx(first, rel=1e-5)


def test_a_file_without_a_valid_pixel_is_refused(space: EmbeddingSpace, tmp_path: Path) -> None:
    _write_tif(tmp_path / "a.tif", np.zeros((12, 32, 32), np.uint16), S2.band_names)
    with pytest.raises(DataError, match=r"a.tif has no valid pixel"):
        classify_files(space, [tmp_path / "a.tif"], LABELS, sensor=S2, dn_offset=0)


def test_physical_chips_are_classified_as_their_file(space: EmbeddingSpace, tmp_path: Path) -> None:
    pixels = np.random.default_rng(0).uniform(0.02, 0.4, (12, 32, 32)).astype(np.float32)
    pixels[:, 3:9] = np.nan
    _write_tif(tmp_path / "a.tif", pixels, S2.band_names)
    (found,) = classify_files(space, [tmp_path / "a.tif"], LABELS, sensor=S2, units="physical")
    chip = read_chip(tmp_path / "a.tif", sensor=S2, units="physical")
    how = {"units": chip.layout.units, "dn_offset": chip.layout.dn_offset}
    for chances in (
        space.classify(chip, LABELS),
        space.classify(chip.pixels, LABELS, sensor=chip.sensor, bands=chip.bands, **how),
        space.classify(pixels, LABELS, sensor=S2, units="physical"),
    ):
        assert _first(chances) == pytest.approx(list(found.probabilities.values()), rel=1e-5)


def test_a_text_file_called_jpg_is_told(space: EmbeddingSpace, tmp_path: Path) -> None:
    (tmp_path / "a.jpg").write_text("I am not a picture")
    with pytest.raises(DataError, match=r"a\.jpg"):
        classify_files(space, [tmp_path / "a.jpg"], LABELS)


def test_a_geotiff_of_another_number_of_bands_is_told(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    _write_tif(tmp_path / "a.tif", np.ones((5, 16, 16), dtype=np.uint16))
    with pytest.raises((DataError, SensorError), match="5"):
        classify_files(space, [tmp_path / "a.tif"], LABELS, sensor=S2, dn_offset=0)


def test_a_label_given_twice_is_refused(space: EmbeddingSpace, tmp_path: Path) -> None:
    Image.fromarray(_picture()).save(tmp_path / "a.png")
    with pytest.raises(DataError, match="label 'river' is given more than once"):
        classify_files(space, [tmp_path / "a.png"], ["river", "town", "river"])


def test_one_broken_file_leaves_the_others_their_classes(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    Image.fromarray(_picture()).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:100])
    files = [tmp_path / name for name in ("a.png", "b.png", "missing.png", "a.png")]
    first, broken, missing, again = classify_files(space, files, LABELS)
    assert isinstance(first, Classified)
    assert first == replace(again, source_number=0)
    assert broken == Fault(key=str(files[1]), error=broken.error)
    assert str(files[1]) in broken.error
    assert missing == Fault(key=str(files[2]), error=f"{files[2]} not found")
    with pytest.raises(DataError, match=r"b\.png.*and 1 more input failed"):
        classify_files(space, files[1:3], LABELS)


def test_a_fault_of_a_file_names_it(space: EmbeddingSpace, tmp_path: Path) -> None:
    _write_tif(tmp_path / "a.tif", np.ones((2, 16, 16), dtype=np.uint16), ("B04", "B03"))
    with pytest.raises(SensorError, match=r"a\.tif: .*composite"):
        classify_files(space, [tmp_path / "a.tif"], LABELS, sensor=S2, dn_offset=0)


def test_what_is_wrong_with_the_question_is_said_before_any_file_is_read(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    nowhere = [tmp_path / "nowhere.png"]
    with pytest.raises(DataError, match="give at least two class names"):
        classify_files(space, nowhere, ["forest"])
    with pytest.raises(DataError, match="labels are one text"):
        classify_files(space, nowhere, "forest,river")
    with pytest.raises(RecipeError, match="class name 2 of 2 is empty"):
        classify_files(space, nowhere, ["forest", " "])
    with pytest.raises(ModelError, match="no tower 's2'"):
        classify_files(space, nowhere, LABELS, tower="s2")


def test_what_is_transparent_is_not_seen(space: EmbeddingSpace, tmp_path: Path) -> None:
    found = []
    for number, colour in enumerate((0, 255)):
        pixels = np.concatenate([_picture(), np.full((48, 48, 1), 255, np.uint8)], -1)
        pixels[:, :20] = (colour, colour, colour, 0)
        Image.fromarray(pixels).save(tmp_path / f"{number}.png")
        found += classify_files(space, [tmp_path / f"{number}.png"], LABELS)
    assert found[0].probabilities == found[1].probabilities


def test_a_chip_of_a_picture_is_classified_as_its_file(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    picture = np.repeat(np.repeat(_picture(), 3, axis=0), 2, axis=1)
    alpha = np.full((*picture.shape[:2], 1), 255, dtype=np.uint8)
    alpha[:40] = 0
    for name, pixels in (("a.png", picture), ("b.png", np.concatenate([picture, alpha], -1))):
        path = tmp_path / name
        Image.fromarray(pixels).save(path)
        (found,) = classify_files(space, [path], LABELS)
        expected = _first(space.classify(read_chip(path), LABELS))
        assert list(found.probabilities.values()) == pytest.approx(expected, abs=1e-6)


def test_a_composite_without_one_of_its_bands_is_no_picture(
    space: EmbeddingSpace, tmp_path: Path
) -> None:
    pixels = np.random.default_rng(0).integers(1, 4000, (3, 48, 48)).astype(np.uint16)
    pixels[2] = 0
    _write_tif(tmp_path / "a.tif", pixels, ("B02", "B03", "B04"))
    with pytest.raises(DataError, match="no valid pixel"):
        classify_files(space, [tmp_path / "a.tif"], LABELS, sensor=S2, dn_offset=0)
