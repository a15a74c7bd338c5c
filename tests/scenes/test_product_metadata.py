"""The DN offset that metadata state: each source, which goes first, and what is refused."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import pytest
import rasterio
from rasterio import Affine

from imagery import read_chip
from terralign.errors import DataError, SensorError
from terralign.limits import LIMITS
from terralign.scenes.declared import Declared
from terralign.scenes.scene import read_geotiff
from terralign.sensors import SENSORS, Sensor

L1C, L2A = SENSORS["sentinel2-l1c"], SENSORS["sentinel2-l2a"]
OLD_NAME = "S2A_MSIL2A_20170706T085611_N0205_R007_T33NZA_20170706T153419"
NEW_NAME = "S2A_MSIL2A_20220706T085611_N0400_R007_T33NZA_20220706T153419"
REPROCESSED = NEW_NAME.replace("N0400", "N9999")


def write_geotiff(
    path: Path,
    num_bands: int = 1,
    *,
    items: Mapping[str, str] | None = None,
    band_items: Sequence[Mapping[str, str]] = (),
    scales: Sequence[float] | None = None,
    offsets: Sequence[float] | None = None,
) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with rasterio.open(
        path,
        "w",
        driver="GTiff",
        count=num_bands,
        height=4,
        width=4,
        dtype="uint16",
        crs="EPSG:32633",
        transform=Affine(10, 0, 500_000, 0, -10, 5_000_000),
    ) as file:
        file.write(np.full((num_bands, 4, 4), 1200, np.uint16))
        file.update_tags(**(items or {}))
        for position, values in enumerate(band_items, start=1):
            file.update_tags(position, **values)
        if scales is not None:
            file.scales = tuple(scales)
        if offsets is not None:
            file.offsets = tuple(offsets)
    return path


def l2a_xml(offsets: Mapping[int, object] | None, baseline: str = "04.00") -> str:
    rows = "".join(
        f'<BOA_ADD_OFFSET band_id="{band}">{value}</BOA_ADD_OFFSET>'
        for band, value in (offsets or {}).items()
    )
    listed = f"<BOA_ADD_OFFSET_VALUES_LIST>{rows}</BOA_ADD_OFFSET_VALUES_LIST>" if offsets else ""
    return (
        '<?xml version="1.0" encoding="UTF-8" standalone="no"?>'
        '<n1:Level-2A_User_Product xmlns:n1="https://example.org/PSD/User_Product_Level-2A.xsd">'
        f"<n1:General_Info><Product_Info><PROCESSING_BASELINE>{baseline}</PROCESSING_BASELINE>"
        f"</Product_Info><Product_Image_Characteristics>{listed}</Product_Image_Characteristics>"
        "</n1:General_Info></n1:Level-2A_User_Product>"
    )


def l1c_xml(value: int) -> str:
    rows = "".join(
        f'<RADIO_ADD_OFFSET band_id="{band}">{value}</RADIO_ADD_OFFSET>' for band in range(13)
    )
    return f"<a><Radiometric_Offset_List>{rows}</Radiometric_Offset_List></a>"


def offset(path: Path, *bands: str, sensor: Sensor = L2A, declared: float | None = None) -> float:
    chip = read_chip(path, sensor=sensor, bands=bands or ("B04",), dn_offset=declared)
    return chip.layout.dn_offset


ALL = dict.fromkeys(range(13), -1000)


def test_the_metadata_beside_a_file_go_before_its_name(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / OLD_NAME / "B04.tif")
    assert offset(path) == 0
    (path.parent / "MTD_MSIL2A.xml").write_text(l2a_xml(ALL))
    assert offset(path) == -1000


def test_a_reprocessed_product_is_read_by_its_metadata(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / REPROCESSED / "B04.tif")
    with pytest.raises(SensorError, match="N9999"):
        offset(path)
    (path.parent / "MTD_MSIL2A.xml").write_text(l2a_xml(ALL, baseline="99.99"))
    assert offset(path) == -1000


@pytest.mark.parametrize("inside", ["GRANULE/L2A_T33/IMG_DATA/R10m", "GRANULE/L2A_T33/IMG_DATA"])
def test_a_band_in_a_products_granule_finds_its_metadata(tmp_path: Path, inside: str) -> None:
    path = write_geotiff(tmp_path / "mine.SAFE" / inside / "B04_10m.tif")
    (tmp_path / "mine.SAFE" / "MTD_MSIL2A.xml").write_text(l2a_xml(ALL))
    assert offset(path) == -1000


def test_metadata_of_a_folder_above_are_not_taken(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "product" / "cut" / "B04.tif")
    (tmp_path / "product" / "MTD_MSIL2A.xml").write_text(l2a_xml(ALL))
    with pytest.raises(SensorError, match="offset unknown"):
        offset(path)


def test_each_level_is_read_by_its_own_metadata(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif")
    (tmp_path / "MTD_MSIL1C.xml").write_text(l1c_xml(-1000))
    assert offset(path, sensor=L1C) == -1000
    with pytest.raises(SensorError, match="offset unknown"):
        offset(path, sensor=L2A)


def test_products_from_before_baseline_4_list_no_offset(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif")
    metadata = tmp_path / "MTD_MSIL2A.xml"
    metadata.write_text(l2a_xml(None, baseline="03.01"))
    assert offset(path) == 0
    metadata.write_text(l2a_xml(None, baseline="05.10"))
    with pytest.raises(SensorError, match="offset unknown"):
        offset(path)


def test_only_the_offsets_of_the_files_bands_must_agree(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif", 2)
    (tmp_path / "MTD_MSIL2A.xml").write_text(l2a_xml(ALL | {8: -900}))
    assert offset(path, "B04", "B08") == -1000
    with pytest.raises(DataError, match=r"differ \(B04 -1000, B8A -900\)"):
        offset(path, "B04", "B8A")
    (tmp_path / "MTD_MSIL2A.xml").write_text(l2a_xml({3: -1000}))
    with pytest.raises(DataError, match=r"differ \(B04 -1000, B12 none\)"):
        offset(path, "B04", "B12")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'<!DOCTYPE a [<!ENTITY x "y">]><a>&x;</a>', "<!DOCTYPE"),
        ('<?xml version="1.0" encoding="UTF-16"?><!DOCTYPE a><a/>'.encode("utf-16"), "<!DOCTYPE"),
        (b"<a><b></a>", "is damaged"),
        (b"", "is damaged"),
        (b"<a>" + b" " * LIMITS["xml_bytes"] + b"</a>", "more than the limit"),
        (l2a_xml({3: "many"}).encode(), "'many'; expected a number"),
        (l2a_xml({3: "nan"}).encode(), "'nan'; expected a number"),
        (l2a_xml({13: -1000}).encode(), "band_id '13'"),
    ],
)
def test_hostile_and_damaged_metadata_are_one_line(
    tmp_path: Path, content: bytes, said: str
) -> None:
    path = write_geotiff(tmp_path / "a.tif")
    (tmp_path / "MTD_MSIL2A.xml").write_bytes(content)
    with pytest.raises(DataError, match=r"MTD_MSIL2A.xml") as fault:
        offset(path)
    assert said in str(fault.value)
    assert "\n" not in str(fault.value)


def test_items_of_bands_and_of_the_file(tmp_path: Path) -> None:
    of_bands = [{"BOA_ADD_OFFSET": "-1000"}] * 2
    path = write_geotiff(tmp_path / "bands.tif", 2, band_items=of_bands)
    assert offset(path, "B04", "B8A") == -1000
    path = write_geotiff(tmp_path / "file.tif", items={"RADIO_ADD_OFFSET": "-1000"})
    assert offset(path, sensor=L1C) == -1000
    with pytest.raises(SensorError, match="offset unknown"):
        offset(path, sensor=L2A)
    path = write_geotiff(tmp_path / "half.tif", 2, band_items=of_bands[:1])
    with pytest.raises(DataError, match=r"differ \(B04 -1000, B8A none\)"):
        offset(path, "B04", "B8A")


def test_scale_and_offset_of_the_bands(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "new.tif", 2, scales=[1e-4] * 2, offsets=[-0.1] * 2)
    assert offset(path, "B04", "B08") == -1000
    path = write_geotiff(tmp_path / "removed.tif", scales=[1e-4], offsets=[0.0])
    assert offset(path) == 0
    path = write_geotiff(tmp_path / "two.tif", 2, scales=[1e-4] * 2, offsets=[-0.1, 0.0])
    with pytest.raises(DataError, match=r"0.0001 and -0.1, 0.0001 and 0; .*share one pair"):
        offset(path, "B04", "B08")
    path = write_geotiff(tmp_path / "other.tif", scales=[1e-3], offsets=[-0.1])
    layout = read_chip(path, sensor=L2A, bands=["B04"]).layout
    assert (layout.stated_scale, layout.dn_offset) == ((1e-3, -0.1), 0)


def test_earth_engines_properties_are_not_believed(tmp_path: Path) -> None:
    items = {f"BOA_ADD_OFFSET_B{band}": "-1000" for band in (3, 4)}
    path = write_geotiff(tmp_path / f"{NEW_NAME}.tif", items=items)
    with pytest.raises(SensorError, match="HARMONIZED"):
        offset(path)
    assert offset(path, declared=0) == 0
    assert offset(path, declared=-1000) == -1000


def test_a_declaration_that_contradicts_the_metadata_is_refused(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif")
    (tmp_path / "MTD_MSIL2A.xml").write_text(l2a_xml(ALL))
    assert offset(path, declared=-1000) == -1000
    with pytest.raises(SensorError, match=r"dn_offset=0 was declared, but it is -1000 after .*MTD"):
        offset(path, declared=0)


def test_metadata_that_contradict_each_other_are_refused(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif", scales=[1e-4], offsets=[0.0])
    (tmp_path / "MTD_MSIL2A.xml").write_text(l2a_xml(ALL))
    with pytest.raises(DataError, match=r"-1000 after .*MTD_MSIL2A.xml, 0 after the offset 0 of"):
        offset(path)


def test_metadata_that_change_are_read_again(tmp_path: Path) -> None:
    path = write_geotiff(tmp_path / "a.tif")
    metadata = tmp_path / "MTD_MSIL2A.xml"
    metadata.write_text(l2a_xml(ALL))
    assert offset(path) == -1000
    metadata.write_text(l2a_xml(dict.fromkeys(range(13), -500)))
    assert offset(path) == -500


def test_other_sensors_and_physical_numbers_are_not_asked(tmp_path: Path) -> None:
    (tmp_path / "MTD_MSIL2A.xml").write_text("no XML at all")
    path = write_geotiff(tmp_path / "a.tif")
    landsat = SENSORS["landsat-oli-l2"]
    chip = read_geotiff(path, Declared(sensor=landsat, bands=["B4"]))
    assert chip.layout.dn_offset == 0
    chip = read_geotiff(path, Declared(sensor=L2A, bands=["B04"], units="physical"))
    assert chip.layout.dn_offset == 0
