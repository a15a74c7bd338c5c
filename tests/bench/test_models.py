"""Which samples go through which tower of a bench model, and what is told of it."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import timm
import torch

from terralign.bench.models import BenchModel, find_routes, load_model
from terralign.chips import PixelLayout
from terralign.sensors import SENSORS

L1C, L2A = "sentinel2-l1c", "sentinel2-l2a"


def encoder(folder: Path, sensor: str) -> BenchModel:
    """A small ResNet of random weights over all bands of a sensor."""
    num_bands = len(SENSORS[sensor].bands)
    model = timm.create_model("test_resnet", num_classes=0, in_chans=num_bands)
    torch.save(model.state_dict(), folder / "w.pth")
    return load_model("m", f"timm:test_resnet@{sensor}:{folder / 'w.pth'}", device="cpu")


def samples(sensor: str, *, without: tuple[str, ...] = ()) -> Any:
    """All that routes depend on of a set of one sensor."""
    found = SENSORS[sensor]
    bands = tuple(band for band in found.band_names if band not in without)
    layout = PixelLayout(sensor=found, bands=bands, units="physical")
    return SimpleNamespace(name="set", layouts={sensor: layout})


@pytest.mark.parametrize(
    ("over", "data", "without", "filled"),
    [
        (L1C, L1C, (), ""),
        (L1C, L2A, (), " (B10 missing, filled with zero)"),
        (L2A, L2A, (), ""),
        (L2A, L1C, (), ""),
        (L1C, L2A, ("B01", "B12"), " (B01, B10, B12 missing, filled with zero)"),
    ],
)
def test_an_encoder_over_one_level_takes_both_and_the_route_names_what_is_filled(
    tmp_path: Path, over: str, data: str, without: tuple[str, ...], filled: str
) -> None:
    routes, reasons = find_routes(encoder(tmp_path, over), samples(data, without=without), ())
    assert not reasons
    (route,) = routes
    assert (route.tower, route.layout.sensor.name) == (over, data)
    assert route.note == f"the {over} tower on {data}{filled}"


def test_radar_alone_has_no_route_through_an_optical_encoder(tmp_path: Path) -> None:
    routes, reasons = find_routes(encoder(tmp_path, L1C), samples("sentinel1-grd"), ())
    assert not routes
    assert reasons == {L1C: "takes none of the sensors sentinel1-grd"}
