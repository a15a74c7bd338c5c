"""Figures of a bench: bars of classes and confusion matrices; chips as pictures."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.colors import to_hex
from PIL import Image

from figure_labels import texts_apart
from terralign.bench.report.figures import (
    MAX_BARS,
    MAX_CONFUSION_CLASSES,
    MAX_SERIES,
    class_bar_figure,
    confusion_figure,
    top_confusions,
)
from terralign.bench.report.sections import entry_pictures
from terralign.chips import PixelLayout
from terralign.errors import DataError
from terralign.evaluation.canvas import DARK, LIGHT, MAX_PNG_BYTES, png_bytes
from terralign.evaluation.chip_views import MAX_SIDE, chip_views, jpeg_bytes, near_infrared
from terralign.evaluation.rows import Row
from terralign.sensors import SENSORS

LONG = "a class whose name is rather long and goes on $x$"


def _values(num_series: int, num_classes: int) -> dict[str, dict[str, float | None]]:
    generator = np.random.default_rng(0)
    return {
        f"{LONG} {s}": {
            f"{LONG[: 5 + c % 40]} {c}": float(generator.random()) for c in range(num_classes)
        }
        for s in range(num_series)
    }


def test_labels_keep_apart() -> None:
    generator = np.random.default_rng(1)
    for figure in (
        class_bar_figure(_values(1, 3)),
        class_bar_figure(_values(6, 43), theme=DARK),
        *(
            confusion_figure(generator.integers(0, 99, (k, k)), [LONG] * k, theme=DARK)
            for k in (2, 12, 14, 24, MAX_CONFUSION_CLASSES)
        ),
    ):
        assert texts_apart(figure)


def test_every_class_has_a_bar_per_series_of_its_value() -> None:
    values = {"a": {"forest": 0.5, "river": None}, "b": {"forest": 0.25, "river": 1.0}}
    axes = class_bar_figure(values).axes[0]
    assert [bar.get_width() for bar in axes.patches] == pytest.approx([50, 25, 100])
    assert [label.get_text() for label in axes.get_yticklabels()] == ["forest", "river"]
    middles = [bar.get_y() + bar.get_height() / 2 for bar in axes.patches]
    assert middles[0] < 0 < middles[1] < 0.5 < middles[2] < 1.5  # a above b, both at their class


def test_of_too_many_classes_those_that_differ_most_have_bars_and_it_is_said() -> None:
    names = [f"c{number}" for number in range(MAX_BARS)]
    same, differ = names[: MAX_BARS // 2], names[MAX_BARS // 2 :]
    values = {"a": dict.fromkeys(names, 0.5), "b": dict.fromkeys(same, 0.5)}
    values["b"] |= dict.fromkeys(differ, 0.6)
    axes = class_bar_figure(values).axes[0]
    assert [label.get_text() for label in axes.get_yticklabels()] == differ
    assert f"{len(same)} classes" in axes.get_xlabel()
    assert len(class_bar_figure(_values(MAX_SERIES + 2, 2)).axes[0].patches) == 2 * MAX_SERIES


def test_lines_of_retrieval_have_the_colour_of_their_tower_among_the_classes() -> None:
    def row(**keys: object) -> Row:
        return Row.model_validate(
            {"model": "m", "entry": "e", "value": 0.5, "measurement": "a" * 16} | keys
        )

    towers = ("rgb", "s2", "s1")
    rows = [
        *(row(task="zero-shot", metric="top1", tower=tower) for tower in towers),
        *(
            row(task="retrieval", metric="recall@1", query_tower=query, gallery_tower=gallery)
            for query, gallery in (
                ("text", "s1"), ("text", "s2"), ("s1", "text"), ("rgb", "s1"), ("s1", "rgb"),
            )
        ),
    ]  # fmt: skip
    pictures, _ = entry_pictures(rows, {"a" * 16: {"per_class": {"forest": {"value": 0.5}}}})
    assert pictures[0].name == "classes"
    bars = pictures[0].draw(LIGHT).axes[0].patches
    own = {tower: to_hex(bar.get_facecolor()) for tower, bar in zip(towers, bars, strict=True)}
    drawn = {picture.name: picture.draw(LIGHT).axes[0].lines for picture in pictures[1:]}
    colors = {name: [line.get_color() for line in lines][:-1] for name, lines in drawn.items()}
    assert colors == {
        "retrieval-1": [own["s1"], own["s2"]],
        "retrieval-2": [own["s1"]],
        "retrieval-3": [own["s1"]],
        "retrieval-4": [own["s1"]],
    }


def test_pairs_with_classes_alone_have_curves_beside_pairs_of_the_same_sample() -> None:
    def row(query: str, gallery: str, metric: str, value: float) -> Row:
        keys = {"query_tower": query, "gallery_tower": gallery, "metric": metric, "value": value,
                "prompts": "plain" if "text" in (query, gallery) else None}  # fmt: skip
        return Row.model_validate({"model": "m", "entry": "e", "task": "retrieval"} | keys)

    rows = [
        *(row("text", "rgb", f"map@{k}", k / 100) for k in (1, 5, 10)),
        *(row("rgb", "text", f"map@{k}", k / 50) for k in (1, 5, 10)),
        *(row("rgb", "s2", f"{name}@{k}", k / 20) for name in ("map", "recall") for k in (1, 5)),
    ]
    pictures, _ = entry_pictures(rows, {})
    assert [picture.caption.partition(" against")[0] for picture in pictures] == [
        "Retrieval from text: mAP@k (the same class)",
        "Retrieval to text: mAP@k (the same class)",
        "Retrieval from rgb: recall@k (the same sample)",
    ]
    figures = [picture.draw(LIGHT) for picture in pictures]
    drawn = [figure.axes[0] for figure in figures]
    told = [text.get_text() for text in figures[0].legends[0].get_texts()]
    assert told[0] == "m, text → rgb"  # one prompt set needs no name
    assert [axes.get_ylabel() for axes in drawn] == ["mAP@k, %", "mAP@k, %", "recall@k, %"]
    assert list(drawn[0].lines[0].get_ydata()) == pytest.approx([1, 5, 10])
    assert list(drawn[2].lines[0].get_ydata()) == pytest.approx([5, 25])


def test_curves_end_before_the_whole_gallery_is_found() -> None:
    def row(query: str, k: int, chance: float) -> Row:
        keys = {"query_tower": query, "gallery_tower": "rgb", "metric": f"recall@{k}",
                "value": 0.5, "num_samples": 48, "chance": chance}  # fmt: skip
        return Row.model_validate({"model": "m", "entry": "e", "task": "retrieval"} | keys)

    between = [row("s2", k, min(1, k / 48)) for k in (1, 10, 48, 50)]
    captions = [row("text", k, k / 500) for k in (1, 50, 500)]  # five to an image
    pictures, _ = entry_pictures([*between, *captions], {})
    drawn = {one.caption.split(":")[0]: one.draw(LIGHT).axes[0].lines[0] for one in pictures}
    assert list(drawn["Retrieval to rgb"].get_xdata()) == [1, 10]
    assert list(drawn["Retrieval from text"].get_xdata()) == [1, 50]


def test_a_confusion_matrix_shows_the_share_of_each_right_class() -> None:
    counts = np.array([[3, 1, 0], [0, 0, 0], [0, 5, 5]])
    axes = confusion_figure(counts, ["a", "b", "c"]).axes[0]
    assert np.asarray(axes.images[0].get_array()).tolist() == [[75, 25, 0], [0, 0, 0], [0, 50, 50]]
    written = {(t.get_position(), t.get_text()) for t in axes.texts}
    assert written == {((0, 0), "75"), ((1, 0), "25"), ((1, 2), "50"), ((2, 2), "50")}
    for wrong in (np.zeros((2, 3), np.int64), np.zeros((2, 2), np.int64)):
        with pytest.raises(DataError, match="3 classes"):
            confusion_figure(wrong, ["a", "b", "c"])


def test_frequent_errors_come_first_and_are_shares_of_the_right_class() -> None:
    counts = np.array([[9, 1, 0], [6, 4, 0], [0, 3, 97]])
    assert top_confusions(counts, ["a", "b", "c"]) == [
        ("b", "a", 6, 0.6), ("c", "b", 3, 0.03), ("a", "b", 1, 0.1),
    ]  # fmt: skip
    assert len(top_confusions(counts, ["a", "b", "c"], limit=1)) == 1


def test_figures_stay_small_files() -> None:
    counts = np.random.default_rng(2).integers(0, 99, (30, 30))
    for figure in (class_bar_figure(_values(6, 43)), confusion_figure(counts, [LONG] * 30)):
        assert len(png_bytes(figure)) < MAX_PNG_BYTES


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
