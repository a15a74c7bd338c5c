"""Warnings of training that cannot get far."""

from __future__ import annotations

import logging

import pytest
from torch import nn

from terralign.train.ineffective import warn_of_mixed_norms


@pytest.mark.parametrize(
    ("layer", "sensors", "said"),
    [
        (nn.BatchNorm2d(3), {"sentinel2-l2a", "sentinel2-l1c"}, True),
        (nn.BatchNorm2d(3), {"sentinel2-l2a"}, False),
        (nn.LayerNorm(3), {"sentinel2-l2a", "sentinel2-l1c"}, False),
    ],
)
def test_norms_that_would_be_trained_on_two_sensors_are_told(
    layer: nn.Module, sensors: set[str], said: bool, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        warn_of_mixed_norms(nn.Sequential(layer), sensors, name="mine")
    assert (
        "tower 'mine': every batch is of one sensor (sentinel2-l1c, sentinel2-l2a)" in caplog.text
    ) == said
