"""What a path stands for, given what is declared of its pixels."""

from __future__ import annotations

from pathlib import Path

from terralign.encoders.inputs import expand
from terralign.scenes.declared import Declared
from terralign.sensors import Band, Sensor


def test_band_files_of_a_declared_sensor_are_one_input(tmp_path: Path) -> None:
    mine = Sensor(name="mine", bands=(Band(name="pan"), Band(name="swir9")), unit="reflectance")
    for name in ("s_pan.tif", "s_swir9.tif"):
        (tmp_path / name).touch()
    assert expand(tmp_path, Declared(sensor=mine)) == [tmp_path]
    assert len(expand(tmp_path, Declared())) == 2
