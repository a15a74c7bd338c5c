"""Learning rates that a pretrained transformer does not bear are warned of."""

from __future__ import annotations

import logging

import open_clip
import pytest
import timm
from torch import nn

from terralign.encoders.clip.load import ClipModel
from terralign.train.rates import is_transformer, warn_of_align_rate, warn_of_patch_rate


def test_transformers_are_told_from_convolutional_networks(
    tiny_clip: ClipModel, norm_clip: ClipModel
) -> None:
    assert is_transformer(tiny_clip.visual)
    assert not is_transformer(norm_clip.visual)  # a ResNet with attention pooling
    for name, expected in (("test_vit", True), ("test_convnext3", False), ("resnet10t", False)):
        assert is_transformer(timm.create_model(name)) == expected, name
    trunk = open_clip.timm_model.TimmModel("test_vit", 16, image_size=160, pool="", proj="linear")
    assert is_transformer(trunk)


@pytest.mark.parametrize(("lr", "num_warnings"), [(1e-5, 0), (5e-5, 0), (3e-4, 1)])
def test_a_rate_unfit_for_the_tower_is_warned_of_once(
    tiny_clip: ClipModel,
    norm_clip: ClipModel,
    caplog: pytest.LogCaptureFixture,
    lr: float,
    num_warnings: int,
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_patch_rate(norm_clip.visual, lr, source="a ResNet")
        assert not caplog.messages
        warn_of_patch_rate(tiny_clip.visual, lr, source="ViT-B-32:openai")
    assert len(caplog.messages) == num_warnings
    for said in caplog.messages:
        assert "lr = 0.0003" in said
        assert "ViT-B-32:openai" in said
        assert "--set patch.lr=1e-5" in said


def test_stage_two_names_its_tower(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_align_rate(timm.create_model("test_vit"), 1e-4, name="s2")
        warn_of_align_rate(nn.Conv2d(3, 4, 1), 1e-2, name="s2")
        assert not caplog.messages
        warn_of_align_rate(timm.create_model("test_vit"), 3e-4, name="s2")
    (said,) = caplog.messages
    assert "--set align.s2.lr=1e-4" in said
