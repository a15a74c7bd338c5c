"""RSICD, RSITMD and UCM-Captions in their published JSON form."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from fake_world.files import write_picture
from fake_world.pictures import CAPTIONED, caption_entry, caption_sentence, write_captions
from terralign.datasets.batches import KeptInMemory
from terralign.datasets.catalog import open_dataset
from terralign.datasets.facts import read_facts
from terralign.datasets.published.captioned import ARCHIVES, open_captioned
from terralign.datasets.subset import limit_samples
from terralign.errors import DataError


def write(root: Path, name: str, num_images: int = 6) -> dict[str, Any]:
    """Images i of red 40 * i; two train, then val and test by turns; 1 + i % 3 captions."""
    _, images, ending, side = CAPTIONED[name]
    entries = []
    for number in range(num_images):
        filename = f"airport_{number}{ending}"
        red = np.full((1, side, side), 40 * number, np.uint8)
        picture = np.concatenate([red, np.zeros((2, side, side), np.uint8)])
        write_picture(root / images / filename, picture)
        texts = [f"image {number} , caption {one} ." for one in range(1 + number % 3)]
        split = "train" if number < 2 else ("val", "test")[number % 2]
        entries.append(caption_entry(filename, number, split, texts))
    value = {"images": entries, "dataset": name}
    write_captions(root, name, value)
    return value


@pytest.mark.parametrize("name", ARCHIVES)
def test_every_image_comes_with_all_its_captions(tmp_path: Path, name: str) -> None:
    write(tmp_path, name)
    samples = open_dataset(name, data_root=tmp_path, split="test", size=16)
    assert [key.split(".")[0] for key in samples.keys] == ["airport_3", "airport_5"]
    assert samples.captions == (
        ("image 3 , caption 0 .",),
        ("image 5 , caption 0 .", "image 5 , caption 1 .", "image 5 , caption 2 ."),
    )
    assert samples.labels is None
    assert read_facts(name).labels == "captions"
    pixels = samples.read(np.array([1, 0]))["rgb"]
    assert pixels.shape == (2, 3, 16, 16)
    assert pixels[:, 0, 8, 8].tolist() == pytest.approx([200, 120], abs=2)
    side = CAPTIONED[name][3]
    whole = open_captioned(name, tmp_path, "all")
    assert len(whole) == 6
    assert whole.read(np.array([0]))["rgb"].shape == (1, 3, side, side)
    assert len({open_captioned(name, tmp_path, one).fingerprint for one in ("val", "test")}) == 2


def test_captions_are_part_of_the_fingerprint(tmp_path: Path) -> None:
    value = write(tmp_path, "rsitmd")
    before = open_captioned("rsitmd", tmp_path, "train").fingerprint
    value["images"][0]["sentences"][0]["raw"] = "something else"
    write_captions(tmp_path, "rsitmd", value)
    assert open_captioned("rsitmd", tmp_path, "train").fingerprint != before


def test_parts_and_kept_sets_keep_their_captions(tmp_path: Path) -> None:
    write(tmp_path, "rsitmd")
    samples = open_captioned("rsitmd", tmp_path, "all", size=8)
    part = limit_samples(samples, 3)
    assert part.captions is not None
    for key, captions in zip(part.keys, part.captions, strict=True):
        number = int(key.removeprefix("airport_").removesuffix(".tif"))
        assert captions == samples.captions[number]
        assert len(captions) == 1 + number % 3
    kept = KeptInMemory(part)
    assert kept.captions == part.captions
    np.testing.assert_array_equal(
        kept.read(np.array([2, 0]))["rgb"], part.read(np.array([2, 0]))["rgb"]
    )


def test_empty_captions_are_left_out_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    value = write(tmp_path, "rsitmd")
    value["images"][1]["sentences"] += [
        caption_sentence("  ", 1),
        caption_sentence(" a port . ", 1),
    ]
    write_captions(tmp_path, "rsitmd", value)
    with caplog.at_level(logging.WARNING):
        samples = open_captioned("rsitmd", tmp_path, "train")
    assert samples.captions is not None
    assert samples.captions[1][2:] == ("a port .",)
    assert "1 empty captions were left out" in caplog.text
    value["images"][0]["sentences"] = [caption_sentence(" ", 0)]
    write_captions(tmp_path, "rsitmd", value)
    with pytest.raises(DataError, match=r"image 'airport_0\.tif' has no caption"):
        open_captioned("rsitmd", tmp_path, "train")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("{", "is not valid JSON"),
        ([1, 2], "is no caption file"),
        ({"annotations": []}, "is no caption file .*'images' is missing"),
        ({"images": []}, "is no caption file"),
        ({"images": [{"filename": "a.tif", "split": "train"}]}, "images.0.sentences' is missing"),
        (
            {"images": [{"filename": "a.tif", "split": "test", "sentences": ["a port"]}]},
            "images.0.sentences.0",
        ),
        (
            {"images": [{"filename": "../a.tif", "split": "test", "sentences": []}]},
            "leads outside the data set",
        ),
        (
            {"images": [{"filename": "a.tif", "split": "test", "sentences": []}] * 2},
            "names image 'a.tif' twice",
        ),
    ],
)
def test_a_json_of_another_form_is_told(tmp_path: Path, value: Any, message: str) -> None:
    write(tmp_path, "rsitmd")
    write_captions(tmp_path, "rsitmd", value)
    with pytest.raises(DataError, match=message) as told:
        open_captioned("rsitmd", tmp_path, "test")
    assert "dataset_RSITMD.json" in str(told.value)
    assert "\n" not in str(told.value)


def test_what_is_missing_is_named(tmp_path: Path) -> None:
    with pytest.raises(
        DataError, match=r"'rsicd' not found: .*with dataset_rsicd.json beside RSICD_images"
    ):
        open_captioned("rsicd", tmp_path, "test")
    write(tmp_path, "rsicd")
    with pytest.raises(
        DataError, match=r"no split 'restval' in dataset_rsicd.json; splits: test, train, val, all"
    ):
        open_captioned("rsicd", tmp_path, "restval")
    (tmp_path / "rsicd/RSICD_images/airport_3.jpg").unlink()
    with pytest.raises(DataError, match=r"airport_3.jpg not found, though dataset_rsicd.json"):
        open_captioned("rsicd", tmp_path, "test")
    assert len(open_captioned("rsicd", tmp_path, "train")) == 2
    (tmp_path / "rsicd/RSICD_images").rename(tmp_path / "rsicd/elsewhere")
    with pytest.raises(DataError, match=r"RSICD_images/airport_0.jpg not found"):
        open_captioned("rsicd", tmp_path, "train")


def test_the_json_may_lie_beside_the_images(tmp_path: Path) -> None:
    write(tmp_path, "rsicd")
    old = open_captioned("rsicd", tmp_path, "val").keys
    (tmp_path / CAPTIONED["rsicd"][0]).rename(tmp_path / "rsicd/dataset_rsicd.json")
    assert open_captioned("rsicd", tmp_path, "val").keys == old
    assert open_captioned("rsicd", tmp_path / "rsicd", "val").keys == old


@pytest.mark.parametrize("name", ["a\0.jpg", "x" * 5000 + ".jpg"])
def test_a_name_that_no_file_has_is_told(tmp_path: Path, name: str) -> None:
    value = write(tmp_path, "rsicd")
    value["images"][1]["filename"] = name
    write_captions(tmp_path, "rsicd", value)
    with pytest.raises(DataError, match=r"leads outside|not found, though") as caught:
        open_captioned("rsicd", tmp_path, "all")
    assert len(str(caught.value)) < 1000


def test_a_file_of_wrong_images_is_refused_at_the_first(tmp_path: Path) -> None:
    write(tmp_path, "rsicd")
    write_captions(tmp_path, "rsicd", {"images": [1] * 500_000})
    with pytest.raises(DataError, match=r"is no caption file .*: images.0"):
        open_captioned("rsicd", tmp_path, "all")
