"""A small CLIP from nothing."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from fakes import assert_resumes_exactly, losses_of
from terralign.datasets.synthetic import SyntheticSet
from terralign.errors import DataError, RecipeError
from terralign.train.pretrain import PretrainSettings, pretrain


@pytest.fixture
def settings(tiny_clip_config: dict[str, Any]) -> PretrainSettings:
    return PretrainSettings(architecture=tiny_clip_config, epochs=4, batch_size=8, lr=2e-3)


def test_pretraining_learns_captions(
    photos: SyntheticSet, settings: PretrainSettings, tmp_path: Path
) -> None:
    clip = pretrain(photos, settings, tmp_path)
    curve = losses_of(tmp_path)
    assert len(curve) == 12
    assert sum(curve[-3:]) < sum(curve[:3])
    assert not clip.model.training
    assert not any(value.requires_grad for value in clip.model.parameters())
    assert clip.logit_scale <= 100


def test_pretraining_resumes_exactly(
    photos: SyntheticSet, settings: PretrainSettings, tmp_path: Path
) -> None:
    assert_resumes_exactly(
        lambda folder: pretrain(photos, settings, folder).anchor_id(), tmp_path, step=4
    )


def test_frozen_parameters_keep_their_start(
    photos: SyntheticSet, settings: PretrainSettings, tmp_path: Path
) -> None:
    short = settings.model_copy(update={"epochs": 1, "freeze": ("token_embedding.*",)})
    frozen = pretrain(photos, short, tmp_path / "a").model.state_dict()
    other = short.model_copy(update={"epochs": 2})
    longer = pretrain(photos, other, tmp_path / "b").model.state_dict()
    assert torch.equal(frozen["token_embedding.weight"], longer["token_embedding.weight"])
    assert not torch.equal(frozen["visual.proj"], longer["visual.proj"])


def test_what_pretraining_cannot_use_is_refused(
    photos: SyntheticSet, scenes: SyntheticSet, settings: PretrainSettings, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="set accumulate = 1"):
        pretrain(photos, settings.model_copy(update={"accumulate": 2}), tmp_path)
    with pytest.raises(DataError, match="has no captions to pretrain on"):
        pretrain(scenes, settings, tmp_path)
