"""Recall between images and several captions each: by hand, by brute force, in every tie."""

from __future__ import annotations

from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from terralign.datasets.sample import Captions
from terralign.datasets.synthetic import SyntheticSet, open_synthetic_photos
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.evaluation.embed import Embedded, choose_route, embed_samples
from terralign.evaluation.metrics import MetricResult
from terralign.evaluation.ranking import recall_metrics
from terralign.evaluation.retrieval import evaluate_retrieval
from terralign.evaluation.similarity import GalleryPenalty

FAST: dict[str, Any] = {"num_bootstrap": 20}


def draw(seed: int, counts: list[int], dim: int = 6) -> tuple[Any, Any, Any]:
    """Images (N, D), captions (T, D) near them, and the counts."""
    generator = np.random.default_rng(seed)
    images = generator.normal(size=(len(counts), dim))
    near = np.repeat(images, counts, axis=0)
    return images, near + generator.normal(size=near.shape), np.array(counts)


def captions_find_images(captions: Any, images: Any, counts: Any, **settings: Any) -> MetricResult:
    owners = np.repeat(np.arange(len(counts)), counts)
    return recall_metrics(captions, images, query_owners=owners, **settings)


def images_find_captions(images: Any, captions: Any, counts: Any, **settings: Any) -> MetricResult:
    owners = np.repeat(np.arange(len(counts)), counts)
    return recall_metrics(images, captions, gallery_owners=owners, **settings)


def dense_recall(scores: Any, right: Any, k: int) -> float:
    """The share of rows with at least one right column among the k highest: the usual protocol."""
    top = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float(np.take_along_axis(right, top, axis=1).any(axis=1).mean())


@given(
    counts=st.lists(st.integers(1, 4), min_size=2, max_size=12),
    seed=st.integers(0, 1000),
)
@settings(max_examples=40, deadline=None)
def test_both_directions_are_the_usual_protocol(counts: list[int], seed: int) -> None:
    images, captions, numbers = draw(seed, counts)
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (captions, images)]
    scores = unit[0] @ unit[1].T
    right = np.repeat(np.arange(len(counts)), counts)[:, None] == np.arange(len(counts))
    by_text = captions_find_images(captions, images, numbers, ks=(1, 3), **FAST)
    by_image = images_find_captions(images, captions, numbers, ks=(1, 3), **FAST)
    for k in (1, 3):
        assert by_text.value(f"recall@{k}") == pytest.approx(dense_recall(scores, right, k))
        assert by_image.value(f"recall@{k}") == pytest.approx(dense_recall(scores.T, right.T, k))
    assert {metric.num_samples for metric in by_text.metrics} == {len(captions)}
    assert {metric.num_samples for metric in by_image.metrics} == {len(images)}
    assert by_text.metric("recall@3").chance == pytest.approx(min(1, 3 / len(images)))


def test_ties_count_at_their_mean_over_all_orders() -> None:
    """Captions 0 to 2 are of image 0; 0, 1 and the other image's 3 are one and the same text."""
    images = np.array([[1.0, 0.0], [0.8, 0.6]])
    captions = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 1.0], [1.0, 0.0], [0.8, -0.6]])
    numbers = np.array([3, 2])
    owners = np.repeat([0, 1], numbers)
    found = images_find_captions(images, captions, numbers, ks=(1, 2, 3, 4), **FAST)
    scores = np.round(images @ captions.T, 9)
    for k in (1, 2, 3, 4):
        hits = [
            dense_recall(scores[:, order], (owners[None, :] == np.arange(2)[:, None])[:, order], k)
            for order in map(list, permutations(range(5)))
        ]
        assert found.value(f"recall@{k}") == pytest.approx(np.mean(hits))
    # By hand at k = 1: image 0 finds one of its two among three equals, image 1 its one of three.
    assert found.value("recall@1") == pytest.approx((2 / 3 + 1 / 3) / 2)


def test_chance_is_what_equal_vectors_score() -> None:
    counts = np.array([1, 5, 3])
    images, captions = np.ones((3, 4)), np.ones((9, 4))
    for found in (
        captions_find_images(captions, images, counts, **FAST),
        images_find_captions(images, captions, counts, **FAST),
    ):
        for metric in found.metrics:
            assert metric.value == pytest.approx(metric.chance)
    # C(8, 5) / C(9, 5) of the draws of five miss one caption, and so on.
    by_image = images_find_captions(images, captions, counts, ks=(5,), **FAST)
    assert by_image.metrics[0].chance == pytest.approx((5 / 9 + 1 + (1 - 6 / 126)) / 3)


def test_with_one_caption_each_it_is_plain_retrieval() -> None:
    images, captions, ones = draw(3, [1] * 40)
    plain = recall_metrics(captions, images)
    assert captions_find_images(captions, images, ones).metrics == plain.metrics
    assert images_find_captions(images, captions, ones) == recall_metrics(images, captions)


def test_repeating_captions_makes_the_interval_no_narrower() -> None:
    """Five copies of every caption are five times the queries, and no new knowledge."""
    images, captions, ones = draw(5, [1] * 30)
    once = captions_find_images(captions, images, ones)
    often = captions_find_images(np.repeat(captions, 5, axis=0), images, ones * 5)
    for single, many in zip(once.metrics, often.metrics, strict=True):
        assert (many.value, many.low, many.high) == pytest.approx(
            (single.value, single.low, single.high)
        )
        assert many.num_samples == 5 * single.num_samples


def test_outcomes_of_images_add_up_and_penalties_are_subtracted_from_the_cosine() -> None:
    images, captions, numbers = draw(7, [1, 4, 2, 3, 1, 2])
    owners = np.repeat(np.arange(6), numbers)
    generator = np.random.default_rng(0)
    unit = [one / np.linalg.norm(one, axis=1, keepdims=True) for one in (captions, images)]
    right = owners[:, None] == np.arange(6)
    for query, gallery, own, find in (
        (captions, images, right, captions_find_images),
        (images, captions, right.T, images_find_captions),
    ):
        loss = GalleryPenalty(values=generator.uniform(0, 0.5, size=len(gallery)))
        cosines = unit[0] @ unit[1].T if query is captions else unit[1] @ unit[0].T
        wanted = [dense_recall(cosines - loss.values, own, k) for k in (1, 3)]
        assert wanted != [dense_recall(cosines, own, k) for k in (1, 3)]
        found = find(query, gallery, numbers, ks=(1, 3), penalty=loss, **FAST)
        assert [metric.value for metric in found.metrics] == pytest.approx(wanted)
        for k, value in zip((1, 3), wanted, strict=True):
            assert found.outcomes[f"recall@{k}"].shape == (6,)
            assert found.outcomes[f"recall@{k}"].mean() == pytest.approx(value)


def test_a_set_with_several_captions_is_ranked_by_all_of_them(tiny_clip: ClipModel) -> None:
    space = EmbeddingSpace(tiny_clip, prompts=PromptSet(name="plain", templates=("{}",)))
    photos = open_synthetic_photos("val", size=32)
    texts = [f"{text}, number {index}" for index, (text,) in enumerate(photos.captions[:20])]
    captions = tuple(
        (text, f"a picture: {text}", f"{text} again")[: 1 + index % 3]
        for index, text in enumerate(texts)
    )
    samples = _Set.of(photos, captions)
    by_text = evaluate_retrieval(space, samples, query="text", gallery="rgb")
    by_image = evaluate_retrieval(space, samples, query="rgb", gallery="text")
    owners = np.repeat(np.arange(20), [len(one) for one in captions])
    vectors = space.encode_text([text for one in captions for text in one])
    images = F.normalize(
        embed_samples(space, samples, choose_route(space, samples)).vectors, dim=-1
    )
    scores = (vectors @ images.T).numpy()
    right = owners[:, None] == np.arange(20)
    for k in (1, 5, 10):
        name = f"recall@{k}"
        assert by_text.result.value(name) == pytest.approx(dense_recall(scores, right, k))
        assert by_image.result.value(name) == pytest.approx(dense_recall(scores.T, right.T, k))
    assert by_text.to_json()["num_samples"] == len(owners) == 39
    assert by_image.to_json()["num_samples"] == 20
    assert by_text.result.notes == ()
    shared = _Set.of(photos, (*captions[:18], ("a shape", "a shape"), ("a shape", "a star")))
    (note,) = evaluate_retrieval(space, shared, query="text", gallery="rgb").result.notes
    assert note.startswith("3 of 40 captions belong to several images")


class _Set(SimpleNamespace):
    """Twenty of the photos, with captions of their own and no labels."""

    labels = None

    @classmethod
    def of(cls, photos: SyntheticSet, captions: Captions) -> Any:
        names = ("name", "split", "layouts", "prompts", "fingerprint", "read")
        return cls(**{name: getattr(photos, name) for name in names}, captions=captions)

    def __len__(self) -> int:
        return 20


def test_equal_texts_tie_whatever_batch_they_are_embedded_in(tiny_clip: ClipModel) -> None:
    """All captions alike: every figure is its chance, exactly, in both directions."""
    space = EmbeddingSpace(tiny_clip, prompts=PromptSet(name="plain", templates=("{}",)))
    photos = open_synthetic_photos("val", size=32)
    samples = _Set.of(photos, (("a shape",) * 15,) * 20)
    vectors = torch.randn(20, 32, generator=torch.Generator().manual_seed(0))
    found = evaluate_retrieval(
        space, samples, query="rgb", gallery="text", embed=lambda route: Embedded(vectors=vectors)
    )
    for metric in found.result.metrics:
        assert metric.value == pytest.approx(metric.chance)
