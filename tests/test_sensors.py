"""Bands by any spelling, DN offsets by declaration or product name, sensors from TOML."""

from __future__ import annotations

import copy
import pickle
import tomllib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from terralign.errors import SensorError, UnknownSensorError
from terralign.sensors import (
    SENSORS,
    Band,
    Composite,
    Sensor,
    describe_sensor,
    find_sensor,
    load_sensor,
    parse_sensor,
    sentinel2_dn_offset,
)

L1C, L2A = SENSORS["sentinel2-l1c"], SENSORS["sentinel2-l2a"]


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("B1", "B01"),
        ("B01", "B01"),
        ("b1", "B01"),
        ("band 1", "B01"),
        ("SR_B4", "B04"),
        ("B8a", "B8A"),
        ("B8A", "B8A"),
        ("B08A", "B8A"),
        ("B8", "B08"),
        ("B08", "B08"),
        ("B10", "B10"),
        ("blue", "B02"),
        ("Red", "B04"),
        ("nir", "B08"),
        ("swir_1", "B11"),
    ],
)
def test_spellings_of_a_sentinel2_band_resolve(spelling: str, name: str) -> None:
    assert L1C.band(spelling).name == name


def test_landsat_and_sentinel1_have_their_own_names() -> None:
    assert SENSORS["landsat-oli-l2"].resolve(["SR_B4", "blue"]) == ("B4", "B2")
    assert SENSORS["sentinel1-grd"].resolve(["vh", "vv"]) == ("VH", "VV")


def test_product_levels_have_their_bands() -> None:
    assert len(L1C.bands) == 13
    assert len(L2A.bands) == 12
    assert "B10" not in L2A.band_names
    assert L1C.band_names.index("B8A") == L1C.band_names.index("B08") + 1


def test_an_unknown_band_names_the_known_ones() -> None:
    with pytest.raises(SensorError, match=r"unknown band 'B13'.*known bands: B01, B02"):
        L2A.band("B13")
    with pytest.raises(SensorError, match="unknown band 'B10'"):
        L2A.band("B10")


def test_a_band_named_twice_is_an_error() -> None:
    with pytest.raises(SensorError, match="B04 named twice"):
        L2A.resolve(["B4", "red"])


def test_composites_have_the_published_stretch() -> None:
    assert L2A.composite().stretch == pytest.approx(2000 * L2A.dn_scale)
    assert L1C.composite("paper-l1c").stretch == pytest.approx(3558 * L1C.dn_scale)
    assert L1C.composite("eurosat").stretch == pytest.approx(2750 * L1C.dn_scale)
    assert L1C.composite().bands == ("B04", "B03", "B02")


def test_a_sensor_without_rgb_and_an_unknown_composite_are_errors() -> None:
    with pytest.raises(SensorError, match="makes no RGB"):
        SENSORS["sentinel1-grd"].composite()
    with pytest.raises(SensorError, match="did you mean 'paper-l2a'"):
        L2A.composite("paper-l2")


OLD = "S2A_MSIL1C_20170613T101031_N0205_R022_T33UUP_20170613T101608.SAFE"
EVE = "S2A_MSIL2A_20220124T101031_N0399_R022_T33UUP_20220124T153419"
NEW = "S2A_MSIL2A_20220126T085611_N0400_R007_T33NZA_20220126T153419"
LATER = "S2B_MSIL1C_20240706T085611_N0510_R007_T33NZA_20240706T153419"
REPROCESSED = "S2A_MSIL2A_20170613T101031_N9999_R022_T33UUP"


@pytest.mark.parametrize(
    ("product", "offset"), [(OLD, 0.0), (EVE, 0.0), (NEW, -1000.0), (LATER, -1000.0)]
)
def test_the_baseline_in_a_product_name_decides_the_offset(product: str, offset: float) -> None:
    assert sentinel2_dn_offset(product_name=product) == offset


def test_a_reprocessed_name_says_nothing() -> None:
    with pytest.raises(SensorError, match=r"N9999.*declare it"):
        sentinel2_dn_offset(product_name=REPROCESSED)


@pytest.mark.parametrize(
    "name", ["S2A_MSIL2A_20230706T085611_87_48", "20230706", "scene_N0400", ""]
)
def test_a_date_or_a_name_of_another_kind_never_decides(name: str) -> None:
    with pytest.raises(SensorError, match="offset unknown"):
        sentinel2_dn_offset(product_name=name)


def test_metadata_goes_before_declaration_before_name() -> None:
    both = {"product_name": NEW, "declared": 0.0}
    assert sentinel2_dn_offset(**both) == 0.0
    assert sentinel2_dn_offset(**both, metadata_add_offset=-500.0) == -500.0
    assert sentinel2_dn_offset(product_name=REPROCESSED, declared=-1000.0) == -1000.0


@pytest.mark.parametrize("name", sorted(SENSORS))
def test_a_described_sensor_parses_to_itself(name: str) -> None:
    assert parse_sensor(describe_sensor(SENSORS[name])) == SENSORS[name]


SENSOR_TOML = """
name = "hyper"
unit = "reflectance"
dn_scale = 0.0005
nodata = 65535

[[bands]]
name = "G"
center_nm = 560
gsd_m = 5
aliases = ["green"]

[[bands]]
name = "R"
center_nm = 660

[[composites]]
name = "false"
bands = ["R", "green", "G1"]
stretch = 0.3

[[bands]]
name = "G1"
"""


def test_a_sensor_from_toml_has_the_fields_of_the_file(tmp_path: Path) -> None:
    path = tmp_path / "hyper.toml"
    path.write_text(SENSOR_TOML)
    sensor = find_sensor(str(path))
    assert sensor == load_sensor(path)
    assert sensor.band_names == ("G", "R", "G1")
    assert (sensor.dn_scale, sensor.nodata) == (0.0005, 65535)
    assert sensor.composite("false").bands == ("R", "G", "G1")
    assert parse_sensor(describe_sensor(sensor)) == sensor


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("nodata", "no_data", r"hyper.toml: unknown key 'no_data'; did you mean 'nodata'"),
        ('"reflectance"', '"watts"', "unit"),
        ('"hyper"', '"rgb"', "built-in sensor"),
        ('["green"]', '["r"]', "two bands answer to 'r'"),
        ('"G1"]', '"B9"]', "unknown band 'B9'"),
        ("[[bands]]", "[[bands", "not valid TOML"),
    ],
)
def test_a_wrong_sensor_file_is_one_clear_error(
    tmp_path: Path, old: str, new: str, message: str
) -> None:
    path = tmp_path / "hyper.toml"
    path.write_text(SENSOR_TOML.replace(old, new, 1))
    with pytest.raises(SensorError, match=message) as caught:
        load_sensor(path)
    assert "\n" not in str(caught.value).strip()


def test_a_sensor_of_very_many_bands_is_refused_by_its_limit(tmp_path: Path) -> None:
    path = tmp_path / "hyper.toml"
    bands = "".join(f'[[bands]]\nname = "b{number}"\n' for number in range(2_001))
    path.write_text('name = "hyper"\nunit = "reflectance"\n' + bands)
    with pytest.raises(
        SensorError, match=r"hyper.toml: sensor 'hyper' has 2,001 bands.*sensor_bands=2100"
    ):
        load_sensor(path)


def test_a_sensor_made_in_python_is_held_to_the_same_rules() -> None:
    bands = [Band(name=name) for name in ("G", "R", "NIR")]
    composite = Composite(name="false", bands=["nir", "r", "g"], stretch=1)  # type: ignore[arg-type]
    sensor = Sensor(name="mine", bands=bands, unit="dB", composites=[composite])  # type: ignore[arg-type]
    assert sensor.composites[0].bands == ("NIR", "R", "G")
    assert sensor == parse_sensor(describe_sensor(sensor)) == pickle.loads(pickle.dumps(sensor))  # noqa: S301
    assert hash(sensor) == hash(copy.deepcopy(sensor))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bands": ("G", "R")}, "Sensor 'mine': bands.0: .*an instance of Band"),
        ({"bands": ()}, "Sensor 'mine': bands: .*at least 1 item"),
        ({"unit": "watts"}, "Sensor 'mine': unit: .*'watts'"),
        ({"dn_scale": -1}, "dn_scale: .*greater than 0"),
        ({"name": 3}, "Sensor: name: .*valid string"),
        ({"bands": (Band(name="G"), Band(name="g"))}, "'mine': two bands answer to 'g'"),
        ({"possible": (1, 0)}, "expected \\[least, greatest\\]"),
    ],
)
def test_a_wrong_sensor_made_in_python_is_one_clear_error(
    values: dict[str, Any], message: str
) -> None:
    given = {"name": "mine", "bands": (Band(name="G"),), "unit": "dB", **values}
    with pytest.raises(SensorError, match=message) as caught:
        Sensor(**given)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "make",
    [
        lambda: Band(name="G", center_nm=-4),
        lambda: Band(name="G", aliases="green"),  # type: ignore[arg-type]
        lambda: Composite(name="false", bands=("R", "G"), stretch=1),  # type: ignore[arg-type]
    ],
)
def test_a_wrong_band_or_composite_made_in_python_is_an_error(make: Callable[[], object]) -> None:
    with pytest.raises(SensorError, match=r"^(Band 'G'|Composite 'false'): "):
        make()


def test_a_long_key_is_shown_without_its_middle(tmp_path: Path) -> None:
    path = tmp_path / "hyper.toml"
    path.write_text(f'"{"k" * 10_000}" = 1\n' + SENSOR_TOML)
    with pytest.raises(SensorError, match=r"unknown key 'k+\.\.\.k+'") as caught:
        load_sensor(path)
    assert len(str(caught.value)) < 1000


def test_an_unknown_sensor_names_the_nearest() -> None:
    with pytest.raises(SensorError, match="did you mean 'sentinel2-l2a'"):
        find_sensor("sentinel-2-l2a")
    with pytest.raises(SensorError, match="cannot read sensor file"):
        find_sensor("missing.toml")


names = st.text(alphabet="abcdefgh", min_size=1, max_size=8)


@given(
    bands=st.lists(names, min_size=1, max_size=6, unique=True),
    scale=st.floats(1e-6, 1.0),
    nodata=st.none() | st.integers(0, 65535),
)
def test_any_sensor_survives_the_round_trip(
    bands: list[str], scale: float, nodata: int | None
) -> None:
    values = {
        "name": "mine",
        "unit": "other",
        "dn_scale": scale,
        "bands": [{"name": f"x{name}"} for name in bands],
    } | ({} if nodata is None else {"nodata": nodata})
    toml = "\n".join(
        f"{key} = {value!r}" for key, value in values.items() if key != "bands"
    ) + "".join(f'\n[[bands]]\nname = "x{name}"' for name in bands)
    sensor = parse_sensor(tomllib.loads(toml))
    assert sensor.band_names == tuple(f"x{name}" for name in bands)
    assert (sensor.dn_scale, sensor.nodata) == (scale, nodata)
    assert parse_sensor(describe_sensor(sensor)) == sensor


@pytest.mark.parametrize(
    ("name", "nearest"),
    [
        ("sentinel2", "sentinel2-l2a"),
        ("sentinel2-L2A", "sentinel2-l2a"),
        ("SENTINEL2-L1C", "sentinel2-l1c"),
        ("landsat-l2", "landsat-oli-l2"),
    ],
)
def test_an_unknown_sensor_is_answered_with_the_nearest(name: str, nearest: str) -> None:
    for find in (SENSORS.__getitem__, find_sensor):
        with pytest.raises(UnknownSensorError, match=f"unknown sensor '{name}'; did you mean"):
            find(name)
        with pytest.raises(KeyError, match=f"'{nearest}'"):
            find(name)
    assert name not in SENSORS
    assert SENSORS.get(name) is None


def test_the_name_of_a_built_in_sensor_is_no_file() -> None:
    with pytest.raises(SensorError, match=r"built-in sensor.*write SENSORS\['sentinel2-l2a'\]"):
        load_sensor("sentinel2-l2a")  # type: ignore[arg-type]
