"""Evaluating whole sets: towers by default, zero-shot classification, retrieval, plain values."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from fakes import Changed, input_spec
from terralign.datasets.sample import optical_layout, require_labels
from terralign.datasets.samples import Samples
from terralign.datasets.synthetic import (
    SyntheticSet,
    open_synthetic_photos,
    open_synthetic_scenes,
)
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.sensor import TowerConfig, build_tower
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet, load_prompts
from terralign.errors import DataError, ModelError, SensorError
from terralign.evaluation.classification import choose_prompts, evaluate_zero_shot, score_classes
from terralign.evaluation.embed import Embedded, choose_route, embed_samples
from terralign.evaluation.retrieval import evaluate_retrieval

S2, S1 = "sentinel2-l2a", "sentinel1-grd"
PLAIN = PromptSet(name="plain", templates=("{}", "a view of {}"))


def _tower(clip: ClipModel, name: str, sensor: str, bands: tuple[str, ...], span: Any) -> Any:
    config = TowerConfig(
        name=name, backbone="test_vit", input=input_spec(sensor, bands, span), embed_dim=clip.dim
    )
    return build_tower(config, clip, seed=1).eval().requires_grad_(False)


@pytest.fixture(scope="module")
def base(tiny_clip: ClipModel) -> EmbeddingSpace:
    return EmbeddingSpace(tiny_clip, prompts=PLAIN)


@pytest.fixture(scope="module")
def aligned(tiny_clip: ClipModel) -> EmbeddingSpace:
    towers = {
        "s2": _tower(tiny_clip, "s2", S2, ("B04", "B08", "B11"), (0.0, 1.0)),
        "s1": _tower(tiny_clip, "s1", S1, ("VV", "VH"), (-30.0, 5.0)),
    }
    return EmbeddingSpace(tiny_clip, towers=towers, prompts=PLAIN)


@pytest.fixture(scope="module")
def scenes() -> SyntheticSet:
    return open_synthetic_scenes("test", num_samples=30)


@pytest.fixture(scope="module")
def photos() -> SyntheticSet:
    return open_synthetic_photos("test", num_samples=30)


# Towers


def test_the_datas_own_tower_is_the_default(aligned: EmbeddingSpace, scenes: SyntheticSet) -> None:
    route = choose_route(aligned, scenes)
    assert (route.tower, route.layout.sensor.name) == ("s2", S2)
    assert route.note == "the s2 tower on sentinel2-l2a"


def test_bands_filled_with_zero_are_told(tiny_clip: ClipModel, scenes: SyntheticSet) -> None:
    tower = _tower(tiny_clip, "s2", S2, ("B04", "B08"), (0.0, 1.0))
    spec = tower.config.input.model_copy(
        update={
            "bands": ("B04", "B08", "B10"), "ranges": {S2: ((0.0, 1.0),) * 3},
            "mean": (0.5,) * 3, "std": (0.5,) * 3, "missing": "zero",
        }
    )  # fmt: skip
    config = tower.config.model_copy(update={"input": spec})
    space = EmbeddingSpace(tiny_clip, towers={"s2": build_tower(config, tiny_clip)}, prompts=PLAIN)
    for asked in (None, "s2", S2):
        note = choose_route(space, scenes, asked).note
        assert note == "the s2 tower on sentinel2-l2a (B10 missing, filled with zero)"


def test_without_one_the_rgb_tower_sees_the_composite_and_that_is_said(
    base: EmbeddingSpace, scenes: SyntheticSet, photos: SyntheticSet
) -> None:
    route = choose_route(base, scenes)
    assert route.tower == "rgb"
    assert route.note == "the RGB tower on the paper-l2a composite of sentinel2-l2a"
    assert choose_route(base, photos).note == "the RGB tower"


@pytest.mark.parametrize(
    ("tower", "expected"),
    [("s1", ("s1", S1)), (S1, ("s1", S1)), (S2, ("s2", S2)), ("rgb", ("rgb", S2))],
)
def test_a_tower_is_chosen_by_its_name_or_its_sensor(
    aligned: EmbeddingSpace, scenes: SyntheticSet, tower: str, expected: tuple[str, str]
) -> None:
    route = choose_route(aligned, scenes, tower)
    assert (route.tower, route.layout.sensor.name) == expected


def test_towers_that_do_not_fit_are_told(
    base: EmbeddingSpace, aligned: EmbeddingSpace, scenes: SyntheticSet, photos: SyntheticSet
) -> None:
    with pytest.raises(SensorError, match="no tower of the space takes 'sentinel1-grd'"):
        choose_route(base, scenes, S1)
    with pytest.raises(SensorError, match="tower 's1' takes sentinel1-grd; data set"):
        choose_route(aligned, photos, "s1")
    with pytest.raises(ModelError, match="the space has no tower 's3'"):
        choose_route(aligned, scenes, "s3")


def test_data_without_a_picture_are_told(scenes: SyntheticSet) -> None:
    radar = Changed(scenes, layouts={S1: scenes.layouts[S1]})
    with pytest.raises(SensorError, match="none makes an RGB picture"):
        optical_layout(radar)


def test_embeddings_come_in_the_order_of_the_samples(
    aligned: EmbeddingSpace, scenes: SyntheticSet
) -> None:
    route = choose_route(aligned, scenes)
    embedded = embed_samples(aligned, scenes, route, batch_size=7).vectors
    assert embedded.shape == (30, 32)
    pixels = torch.from_numpy(scenes.read(np.array([29, 3]))[S2])
    one_by_one = aligned.encode_layout(pixels, route.layout, tower="s2")
    torch.testing.assert_close(embedded[[29, 3]], one_by_one, rtol=1e-4, atol=1e-5)


# Zero-shot


def test_zero_shot_agrees_with_a_computation_by_hand(
    tiny_clip: ClipModel, base: EmbeddingSpace, photos: SyntheticSet
) -> None:
    found = evaluate_zero_shot(base, photos, prompts=PLAIN)
    mean = torch.tensor(tiny_clip.input_spec.mean)[:, None, None]
    std = torch.tensor(tiny_clip.input_spec.std)[:, None, None]
    pixels = torch.from_numpy(photos.read(np.arange(30))["rgb"]).float() / 255
    model: Any = tiny_clip.model
    with torch.no_grad():
        images = F.normalize(model.encode_image((pixels - mean) / std), dim=-1)
        rows = []
        for name in photos.labels.class_names:
            texts = tiny_clip.tokenizer([name, f"a view of {name}"])
            one = F.normalize(model.encode_text(texts), dim=-1).mean(0)
            rows.append(F.normalize(one, dim=0))
    guesses = (images @ torch.stack(rows).T).argmax(-1).numpy()
    assert found.result.value("top1") == pytest.approx(
        float(np.mean(guesses == photos.labels.values))
    )
    assert found.task == "zero-shot"
    assert found.tower == "rgb"


def test_one_class_alone_is_warned_of(
    base: EmbeddingSpace, photos: SyntheticSet, caplog: pytest.LogCaptureFixture
) -> None:
    pixels = photos.read(np.arange(3))["rgb"]
    samples = Samples.from_arrays({"rgb": pixels}, labels=[0, 0, 0], class_names=["a river"])
    assert evaluate_zero_shot(base, samples, prompts=PLAIN).result.value("top1") == 1
    assert "has one class, 'a river': accuracy is 100 %" in caplog.text


def test_multi_label_sets_are_judged_by_average_precision(base: EmbeddingSpace) -> None:
    samples = open_synthetic_scenes("test", num_samples=30, multi_label=True)
    found = evaluate_zero_shot(base, samples)
    assert found.task == "multi-label"
    assert {metric.name for metric in found.result.metrics} == {"macro_map", "micro_map"}


def test_perfect_vectors_score_one(base: EmbeddingSpace, photos: SyntheticSet) -> None:
    weights = base.zero_shot_weights(photos.labels.class_names, PLAIN)
    perfect = 3 * weights[torch.from_numpy(photos.labels.values)]
    found = evaluate_zero_shot(
        base, photos, prompts=PLAIN, embed=lambda route: Embedded(vectors=perfect)
    )
    assert found.result.value("top1") == 1
    assert score_classes(perfect, weights, photos.labels).value("macro_accuracy") == 1


def test_class_names_may_be_replaced_one_for_one(
    base: EmbeddingSpace, photos: SyntheticSet
) -> None:
    names = [f"class {number}" for number in range(len(photos.labels.class_names))]
    assert evaluate_zero_shot(base, photos, class_names=names).class_names == tuple(names)
    with pytest.raises(DataError, match=f"2 class names for the {len(names)} classes"):
        evaluate_zero_shot(base, photos, class_names=["a", "b"])


def test_data_without_labels_are_not_classified(base: EmbeddingSpace, photos: SyntheticSet) -> None:
    bare = Changed(photos, labels=None)
    with pytest.raises(DataError, match="has no labels; it can be retrieved"):
        require_labels(bare)
    with pytest.raises(DataError, match="has no labels"):
        evaluate_zero_shot(base, bare)


def test_prompts_named_come_before_the_sets_own(photos: SyntheticSet) -> None:
    assert choose_prompts(photos, PLAIN) is PLAIN
    assert choose_prompts(photos, "satellite") == load_prompts("satellite")
    own = choose_prompts(photos)
    assert (own.name, own.templates) == ("synthetic-photos", photos.prompts)
    assert choose_prompts(Changed(photos, prompts=None)).name == "photo"


# Retrieval


def _names(found: Any) -> set[str]:
    return {metric.name for metric in found.result.metrics}


RECALLS = {f"recall@{k}" for k in (1, 5, 10, 20)}


def test_between_image_modalities_the_sample_itself_is_the_answer(
    aligned: EmbeddingSpace, scenes: SyntheticSet
) -> None:
    found = evaluate_retrieval(aligned, scenes, query="s1", gallery="s2")
    assert found.tower == "s1 -> s2"
    assert _names(found) > RECALLS
    query = embed_samples(aligned, scenes, choose_route(aligned, scenes, "s1")).vectors
    gallery = embed_samples(aligned, scenes, choose_route(aligned, scenes, "s2")).vectors
    near = F.normalize(query, dim=-1) @ F.normalize(gallery, dim=-1).T
    right = (near.argmax(-1) == torch.arange(30)).float().mean()
    assert found.result.value("recall@1") == pytest.approx(float(right), abs=1e-6)
    other = near.fill_diagonal_(-torch.inf).argmax(-1).numpy()  # by class, itself left out
    labels = scenes.labels.values
    judged = np.bincount(labels)[labels] > 1
    hits = labels[other] == labels
    assert found.result.value("map@1") == pytest.approx(hits[judged].mean())


def test_equal_vectors_find_themselves(aligned: EmbeddingSpace, scenes: SyntheticSet) -> None:
    same = torch.randn(30, 32, generator=torch.Generator().manual_seed(0))
    found = evaluate_retrieval(
        aligned, scenes, query="s2", gallery="rgb", embed=lambda route: Embedded(vectors=same)
    )
    assert found.result.value("recall@1") == 1


def test_the_query_is_the_datas_own_sensor_by_default(
    aligned: EmbeddingSpace, scenes: SyntheticSet
) -> None:
    assert evaluate_retrieval(aligned, scenes).tower == "s2 -> rgb"


def test_captions_find_their_pictures(base: EmbeddingSpace, photos: SyntheticSet) -> None:
    found = evaluate_retrieval(base, photos, query="text", gallery="rgb")
    assert found.tower == "text -> rgb"
    assert found.note == "captions finds the RGB tower"
    assert _names(found) > RECALLS
    assert found.prompts is None
    texts = base.encode_text([text for (text,) in photos.captions or ()])
    images = F.normalize(embed_samples(base, photos, choose_route(base, photos)).vectors, dim=-1)
    own = (texts * images).sum(-1, keepdim=True)
    above = ((texts @ images.T) > own + 1e-7).sum(-1)
    value = found.result.value("recall@5")
    assert value == pytest.approx(float((above < 5).float().mean()), abs=0.035)
    back = evaluate_retrieval(base, photos, query="rgb", gallery="text")
    assert _names(back) > RECALLS


def test_class_names_find_their_class(base: EmbeddingSpace, scenes: SyntheticSet) -> None:
    """Without captions there is one query per class, judged by class."""
    found = evaluate_retrieval(base, scenes, query="text", gallery="rgb", prompts=PLAIN)
    assert not any(name.startswith("recall@") for name in _names(found))
    num_classes = len(scenes.labels.class_names)
    absent = num_classes - len(set(scenes.labels.values.tolist()))
    left_out = f"{absent} of {num_classes} queries have no relevant gallery item"
    assert absent == 0 or left_out in found.result.notes[0]
    weights = base.zero_shot_weights(scenes.labels.class_names, PLAIN)
    perfect = weights[torch.from_numpy(scenes.labels.values)]
    ideal = evaluate_retrieval(
        base, scenes, query="text", prompts=PLAIN, embed=lambda route: Embedded(vectors=perfect)
    )
    assert ideal.result.metrics[0].value == 1


def test_one_modality_twice_leaves_the_query_out(
    base: EmbeddingSpace, scenes: SyntheticSet
) -> None:
    found = evaluate_retrieval(base, scenes, query="rgb", gallery="rgb")
    assert found.tower == "rgb -> rgb"
    assert not any(name.startswith("recall@") for name in _names(found))


def test_retrieval_that_has_no_answer_is_told(
    base: EmbeddingSpace, scenes: SyntheticSet, photos: SyntheticSet
) -> None:
    with pytest.raises(DataError, match="text finds text"):
        evaluate_retrieval(base, scenes, query="text", gallery="text")
    bare = Changed(scenes, labels=None)
    with pytest.raises(DataError, match="neither captions nor class names"):
        evaluate_retrieval(base, bare, query="text", gallery="rgb")
    with pytest.raises(DataError, match="no labels to judge rgb by"):
        evaluate_retrieval(base, bare, query="rgb", gallery="rgb")


def test_without_labels_pairs_are_still_found(
    aligned: EmbeddingSpace, scenes: SyntheticSet
) -> None:
    bare = Changed(scenes, labels=None)
    names = _names(evaluate_retrieval(aligned, bare, query="s2", gallery="s1"))
    assert names >= RECALLS
    assert all(name.startswith("recall@") for name in names)


# Plain values

DOCUMENTED = {
    "metrics", "intervals", "num_samples", "space_id", "tower", "prompts", "dataset", "split",
    "task",
}  # fmt: skip


def test_an_evaluation_as_json(aligned: EmbeddingSpace, scenes: SyntheticSet) -> None:
    found = evaluate_zero_shot(aligned, scenes, prompts=PLAIN)
    value = json.loads(json.dumps(found.to_json(), allow_nan=False))
    assert value.keys() >= DOCUMENTED
    assert value["metrics"]["top1"] == found.result.value("top1")
    low, high = value["intervals"]["top1"]
    assert 0 <= low <= value["metrics"]["top1"] <= high <= 1
    assert value["num_samples"] == 30
    assert value["space_id"] == aligned.space_id
    assert (value["tower"], value["dataset"], value["split"]) == ("s2", "synthetic-scenes", "test")
    assert value["prompts"]["templates"] == list(PLAIN.templates)
    assert value["prompts"]["class_list"] == "synthetic-scenes"
    assert set(value["per_class"]) == set(scenes.labels.class_names)


def test_rows_of_classification_and_of_retrieval(
    aligned: EmbeddingSpace, scenes: SyntheticSet
) -> None:
    (row, *_) = evaluate_zero_shot(aligned, scenes).to_rows(model="aligned", role="alignment")
    keys = {
        "model", "role", "dataset", "split", "task", "metric", "value", "low", "high",
        "num_samples", "chance", "valid_share", "sensor",
    }  # fmt: skip
    assert set(row.to_json()) == {*keys, "tower"}
    assert (row.tower, row.sensor) == ("s2", "sentinel2-l2a")
    assert row.chance == pytest.approx(1 / len(scenes.labels.class_names))
    (row, *_) = evaluate_retrieval(aligned, scenes).to_rows(model="aligned", role="alignment")
    assert set(row.to_json()) == {*keys, "query_tower", "gallery_tower"}
    assert (row.query_tower, row.gallery_tower) == ("s2", "rgb")
