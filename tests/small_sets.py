"""Fixtures of the tests of training and baselines: small synthetic sets, and one thread."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch

from terralign.datasets.synthetic import SyntheticSet, open_synthetic_photos, open_synthetic_scenes
from terralign.encoders.zeroshot import PromptSet
from terralign.train.finetune import PatchingTask

PLAIN = PromptSet(name="plain", templates=("{}",))


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    """Bit-exact comparisons need the same number of threads everywhere."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def scenes() -> SyntheticSet:
    return open_synthetic_scenes("train", num_samples=40)


@pytest.fixture(scope="session")
def scenes_val() -> SyntheticSet:
    return open_synthetic_scenes("val", num_samples=24)


@pytest.fixture(scope="session")
def many_labels() -> SyntheticSet:
    return open_synthetic_scenes("train", num_samples=40, multi_label=True)


@pytest.fixture(scope="session")
def photos() -> SyntheticSet:
    return open_synthetic_photos("val", num_samples=24)


def as_task(samples: SyntheticSet) -> PatchingTask:
    return PatchingTask(samples=samples, prompts=PLAIN, class_names=samples.labels.class_names)


@pytest.fixture(scope="session")
def task(scenes: SyntheticSet) -> PatchingTask:
    return as_task(scenes)


@pytest.fixture(scope="session")
def validation(scenes_val: SyntheticSet) -> PatchingTask:
    return as_task(scenes_val)


@pytest.fixture(scope="session")
def supported(photos: SyntheticSet) -> PatchingTask:
    return as_task(photos)


@pytest.fixture(scope="session")
def many_label_task(many_labels: SyntheticSet) -> PatchingTask:
    return as_task(many_labels)


@pytest.fixture(scope="session")
def many_label_val() -> PatchingTask:
    return as_task(open_synthetic_scenes("val", num_samples=24, multi_label=True))
