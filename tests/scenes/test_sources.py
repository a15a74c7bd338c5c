"""The same scene from a folder, a GeoTIFF, a COG, a SAFE folder, a zip and a STAC item."""

from __future__ import annotations

import datetime as dt
import json
import logging
import zipfile
from pathlib import Path

import numpy as np
import pytest
from sources import (
    Bands,
    copy_bands,
    item_of,
    random_bands,
    write_folder,
    write_item,
    write_safe,
    write_stack,
    zip_folder,
)

from range_server import serve
from terralign.chips import Chip, Window
from terralign.errors import DataError, SensorError, TerralignError
from terralign.scenes import archives, remote
from terralign.scenes.geotiff import open_raster
from terralign.scenes.inputs import find_inputs
from terralign.scenes.remote import RemoteRaster
from terralign.scenes.scene import Scene, open_scene
from terralign.scenes.windows import cut_windows


def same(one: Chip, other: Chip) -> bool:
    order = other.select_bands(one.bands)
    return (
        bool((one.pixels == order.pixels).all() and (one.valid == order.valid).all())
        and one.pixels.dtype == order.pixels.dtype
        and one.grid == order.grid
    )


def check_all(root: Path, bands: Bands) -> None:
    """Every source of these bands gives the same pixels, as a whole and in windows."""
    folder = write_folder(root, bands, tiled=True, blockxsize=32, blockysize=32)
    scene = open_scene(folder)
    whole = scene.read()
    safe = write_safe(root, bands)
    sources: list[tuple[str, Scene]] = [
        ("stack", open_scene(write_stack(root / f"{folder.name}.tif", scene))),
        ("cog", open_scene(write_stack(root / f"{folder.name}_cog.tif", scene, cog=True))),
        ("safe", open_scene(safe)),
        ("zip", open_scene(zip_folder(safe, root / "product.zip"))),
        ("stored", open_scene(zip_folder(safe, root / "stored.zip", deflate=False))),
        ("item", open_scene(write_item(folder, bands))),
    ]
    with serve(root) as served:
        hrefs = {name: f"{served.url}/{folder.name}/{name}.tif" for name in bands}
        (root / "remote.json").write_text(json.dumps(item_of(bands, hrefs)), encoding="utf-8")
        sources += [
            ("item of the web", open_scene(root / "remote.json")),
            ("item on the web", open_scene(f"{served.url}/item.json")),
        ]
        windows = cut_windows(scene.height, scene.width, 40)
        for name, source in sources:
            assert same(whole, source.read()), name
            assert source.layout.dn_offset == 0
            assert source.datetime is not None
            assert source.datetime.date() == dt.date(2020, 7, 6)
            for one, other in zip(
                scene.read_windows(windows), source.read_windows(windows), strict=True
            ):
                assert same(one, other), name
        assert any(how for _, how in served.asked)  # in ranges


def test_every_source_gives_the_same_pixels(tmp_path: Path) -> None:
    check_all(tmp_path, random_bands())


@pytest.mark.realdata
def test_every_source_of_a_real_scene_gives_the_same_pixels(
    tmp_path: Path, real_data: Path
) -> None:
    folder = next((real_data / "scenes").glob("S2B_*_T48QUE_*"))
    check_all(tmp_path, copy_bands(folder, tmp_path / "x", side=120))


def test_clouds_come_with_the_windows(tmp_path: Path) -> None:
    bands = random_bands()
    folder = write_folder(tmp_path, bands)
    expected = np.kron(np.isin(bands["SCL"], (3, 8)), np.ones((2, 2), bool))
    windows = cut_windows(96, 96, 40, stride=25)
    for source in (folder, write_safe(tmp_path, bands), write_item(folder, bands)):
        scene = open_scene(source)
        assert scene.read().clouds is None
        chip = scene.read(clouds=True)
        assert chip.clouds is not None
        np.testing.assert_array_equal(chip.clouds, expected)
        there = chip.valid.any(0)
        assert chip.cloud_share == pytest.approx(expected[there].mean())
        for window, part in zip(windows, scene.read_windows(windows, clouds=True), strict=True):
            rows = slice(window.row, window.row + window.height)
            columns = slice(window.column, window.column + window.width)
            assert part.clouds is not None
            np.testing.assert_array_equal(part.clouds, expected[rows, columns])
    item = open_scene(tmp_path / "item.json")
    assert (item.cloud_cover, item.footprint and item.footprint["type"]) == (12.5, "Polygon")


@pytest.mark.parametrize(
    ("name", "number", "clear"),
    [
        ("Fmask", 0b1010, 0b100),
        ("QA_PIXEL", 1 << 3, 1 << 6),
        ("cloud_mask", 2, 0),
        ("QA60", 1 << 10, 0),
    ],
)
def test_masks_of_other_kinds_are_read(tmp_path: Path, name: str, number: int, clear: int) -> None:
    bands = random_bands()
    classes = np.full((16, 16), clear, np.uint16)
    classes[3, 5] = number
    del bands["SCL"]
    bands[name] = classes
    clouds = open_scene(write_folder(tmp_path, bands)).read(clouds=True).clouds
    assert clouds is not None
    assert clouds.sum() == 36
    assert clouds[18:24, 30:36].all()


def test_a_scene_without_a_mask_has_no_clouds(tmp_path: Path) -> None:
    bands = random_bands()
    del bands["SCL"]
    chip = open_scene(write_folder(tmp_path, bands)).read(clouds=True)
    assert chip.clouds is None
    assert chip.cloud_share is None


def test_zips_named_as_products_are_found_in_folders(tmp_path: Path) -> None:
    safe = write_safe(tmp_path / "whole", random_bands())
    (tmp_path / "many").mkdir()
    archive = zip_folder(safe, tmp_path / "many" / f"{safe.name}.zip")
    zip_folder(safe, tmp_path / "many" / "other.zip")
    assert find_inputs(tmp_path / "many") == [archive]
    assert "sentinel2-l2a" in str(open_scene(archive))


def test_an_offset_is_read_from_the_metadata_in_a_zip(tmp_path: Path) -> None:
    bands = {name: one + 1000 * (one > 0) for name, one in random_bands().items()}
    bands["SCL"] = random_bands()["SCL"]
    safe = write_safe(tmp_path, {name: one.astype("uint16") for name, one in bands.items()})
    offsets = "".join(
        f'<BOA_ADD_OFFSET band_id="{number}">-1000</BOA_ADD_OFFSET>' for number in range(13)
    )
    (safe / "MTD_MSIL2A.xml").write_text(f"<r>{offsets}</r>", encoding="utf-8")
    assert open_scene(zip_folder(safe, tmp_path / "a.zip")).layout.dn_offset == -1000


def refused(path: Path, match: str) -> None:
    with pytest.raises(TerralignError, match=match) as caught:
        open_scene(path)
    assert "\n" not in str(caught.value)


def test_hostile_zips_end_in_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(b"PK\x03\x04 nothing more")
    refused(path, "is no readable zip: it is cut off")
    whole = zip_folder(write_safe(tmp_path, random_bands()), tmp_path / "whole.zip")
    path.write_bytes(whole.read_bytes()[:-200])
    refused(path, "is no readable zip")
    content = bytearray(whole.read_bytes())
    content[2000:6000] = bytes(4000)
    path.write_bytes(bytes(content))
    refused(path, r"a.zip.*B02_10m.jp2 is damaged: Bad CRC-32")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("../../B04.tif", b"x")
        archive.writestr("/etc/B03.tif", b"x")
        archive.writestr("a/{b}/B02.tif", b"x")
    assert dict(archives.members(path)) == {}
    refused(path, "does not say which sensor|holds no GeoTIFF")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("S1A.SAFE/manifest.safe", b"x")
        archive.writestr("S1A.SAFE/annotation/a.xml", b"x")
    refused(path, "is Sentinel-1 as ESA delivers it")
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("x.SAFE/GRANULE/a/MTD_TL.xml", b"x")
    refused(path, "holds no image data")
    monkeypatch.setenv("TERRALIGN_LIMITS", "zip_index_bytes=10")
    zip_folder(tmp_path / write_safe(tmp_path / "b", random_bands()), tmp_path / "c.zip")
    refused(tmp_path / "c.zip", "has an index of .* more than the limit")


def test_a_zip_of_more_than_four_gigabytes_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    safe = write_safe(tmp_path, random_bands())
    with monkeypatch.context() as patch:
        patch.setattr(zipfile, "ZIP64_LIMIT", 1000)  # larger archives are written as such
        path = zip_folder(safe, tmp_path / "a.zip")
    content = path.read_bytes()
    # Beyond 4 GB, the size and place of the index stand in the ZIP64 record alone.
    path.write_bytes(content[:-10] + b"\xff" * 8 + content[-2:])
    assert same(open_scene(path).read(), open_scene(safe).read())
    monkeypatch.setenv("TERRALIGN_LIMITS", "zip_index_bytes=10")
    path.touch()
    refused(path, "has an index of .* more than the limit")


def test_tags_of_a_remote_tiff_are_bounded_by_what_opening_it_fetches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = write_folder(tmp_path, random_bands())
    with serve(folder) as served:
        raster = RemoteRaster(href=f"{served.url}/B04.tif")
        with open_raster(raster):
            assert [how for _, how in served.asked] == ["", "bytes=0-16383"]
        monkeypatch.setenv("TERRALIGN_LIMITS", "tiff_tags=3")
        with (
            pytest.raises(DataError, match=r"B04\.tif has a page of 1\d tags, more than the limit"),
            open_raster(raster),
        ):
            pass
        assert len(served.asked) == 2


def test_an_address_with_a_token_is_opened_and_one_without_is_not(tmp_path: Path) -> None:
    bands = random_bands()
    folder = write_folder(tmp_path, bands)
    with serve(tmp_path) as served:
        served.token = "token=secret"
        hrefs = {name: f"{served.url}/{folder.name}/{name}.tif" for name in bands}
        value = item_of(bands, hrefs)
        signed: list[str] = []

        def signer(href: str) -> str:
            signed.append(href)
            return f"{href}?token=secret"

        scene = open_scene(value, signer=signer)
        assert same(scene.read(), open_scene(folder).read())
        assert set(signed) >= {hrefs[name] for name in scene.bands}
        with pytest.raises(DataError, match=r"access is denied \(403\).*sign the item again") as no:
            open_scene(value)
        assert "secret" not in str(no.value)
        value["assets"]["B04"]["href"] = f"{served.url}/none.tif"
        with pytest.raises(DataError, match=r"none.tif not found \(404\)"):
            open_scene(value, signer=signer)


def test_a_signature_that_has_expired_is_said_to_have(tmp_path: Path) -> None:
    bands = random_bands()
    azure = "https://a.blob.core.windows.net/c/B04.tif?se=2020-01-01T10%3A00%3A00Z&sig=x"
    amazon = (
        "https://bucket.s3.amazonaws.com/B04.tif"
        "?X-Amz-Date=20200101T090000Z&X-Amz-Expires=3600&X-Amz-Signature=x"
    )
    for href in (azure, amazon):
        value = item_of(bands, {"B04": href})
        with pytest.raises(DataError, match="its signature expired on 2020-01-01 at 10:00 UTC"):
            open_scene(value)


def test_planetary_computers_addresses_are_signed_once_a_container(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    asked: list[str] = []
    later = f"{dt.datetime.now(dt.UTC) + dt.timedelta(hours=1):%Y-%m-%dT%H:%M:%SZ}"

    def fetch(url: str) -> object:
        asked.append(url)
        return {"token": f"st=x&se={later}&sig=abc%2F"}

    monkeypatch.setattr(remote, "fetch_json", fetch)
    monkeypatch.setattr(remote, "_tokens", {})
    href = "https://sentinel2l2a01.blob.core.windows.net/sentinel2-l2/06/B04.tif"
    assert remote.sign(href) == f"{href}?st=x&se={later}&sig=abc%2F"
    assert remote.sign(href.replace("B04", "B03")).endswith("sig=abc%2F")
    assert asked == [f"{remote.TOKENS}/sentinel2l2a01/sentinel2-l2"]
    assert remote.sign(f"{href}?sig=own") == f"{href}?sig=own"
    assert remote.sign("https://example.com/B04.tif") == "https://example.com/B04.tif"
    monkeypatch.setattr(remote, "fetch_json", lambda url: {"token": "a b\n"})
    with pytest.raises(DataError, match="gave no token for the storage account 'other0'"):
        remote.sign("https://other0.blob.core.windows.net/c/B04.tif")


def test_buckets_have_their_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(remote, "has_aws_keys", lambda: False)
    monkeypatch.delenv("AWS_REQUEST_PAYER", raising=False)
    monkeypatch.delenv("AWS_S3_ENDPOINT", raising=False)
    open_data = remote.RemoteRaster(href="s3://sentinel-cogs/a/B04.tif", region="us-west-2")
    name, settings = open_data.address()
    assert name == "/vsis3/sentinel-cogs/a/B04.tif"
    assert (settings["AWS_NO_SIGN_REQUEST"], settings["AWS_REGION"]) == ("YES", "us-west-2")
    paid = remote.RemoteRaster(href="s3://usgs-landsat/a/B4.TIF")
    with pytest.raises(
        DataError, match=r"charges whoever reads .* set AWS_REQUEST_PAYER=requester"
    ):
        paid.address()
    monkeypatch.setenv("AWS_REQUEST_PAYER", "requester")
    assert paid.address()[0] == "/vsis3/usgs-landsat/a/B4.TIF"
    copernicus = remote.RemoteRaster(href="s3://eodata/a/B04.jp2")
    with pytest.raises(DataError, match="Copernicus Data Space, which needs keys"):
        copernicus.address()
    monkeypatch.setattr(remote, "has_aws_keys", lambda: True)
    assert copernicus.address()[1]["AWS_S3_ENDPOINT"] == "eodata.dataspace.copernicus.eu"


@pytest.mark.parametrize(
    "href",
    [
        *("file:///etc/passwd", "ftp://host/a.tif", "gs://bucket/a.tif", "https:///a.tif"),
        *("s3://bucket/../a.tif", "https://user:word@host/a.tif", "https://host/a b.tif"),
        *("https://host/a\n.tif", "https://[host/a.tif", "/vsicurl/http://host/a.tif"),
        "/vsizip//a.zip/b.tif",
        "GTIFF_RAW:/etc/passwd",
        "zip+https://host/a.zip!b.tif",
    ],
)
def test_addresses_of_other_kinds_are_refused(tmp_path: Path, href: str) -> None:
    path = tmp_path / "item.json"
    path.write_text(json.dumps(item_of(random_bands(), {"B04": href})), encoding="utf-8")
    refused(path, "is not opened|is no address|not found")


def test_a_catalogue_that_the_pixels_contradict_is_overruled(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    bands = random_bands()
    item = write_item(write_folder(tmp_path, bands), bands, **{"s2:processing_baseline": "05.11"})
    with caplog.at_level(logging.WARNING):
        scene = open_scene(item)
    assert scene.layout.dn_offset == 0
    assert "means a DN offset of -1000, but the pixels rule out -1000" in scene.notes[0]
    assert "processing baseline 05.11 of item S2A_33NZA" in caplog.text
    assert open_scene(item, dn_offset=0).notes == ()


def test_what_a_catalogue_states_of_the_offset_is_reported(tmp_path: Path) -> None:
    bands = random_bands()
    folder = write_folder(tmp_path, bands)
    assert open_scene(write_item(folder, bands)).notes == (
        "DN offset 0 by processing baseline 02.14 of item S2A_33NZA_20200706_0_L2A; the pixels "
        "agree",
    )
    applied = {"s2:processing_baseline": "05.11", "earthsearch:boa_offset_applied": True}
    scene = open_scene(write_item(folder, bands, **applied))
    assert scene.layout.dn_offset == 0
    assert scene.notes[0].startswith("DN offset 0 by earthsearch:boa_offset_applied of item")


def test_radar_in_linear_power_is_read_in_db(tmp_path: Path) -> None:
    power = np.random.default_rng(0).gamma(2.0, 0.03, (32, 32)).astype(np.float32)
    power[0, 0] = 0
    folder = write_folder(tmp_path, {"VV": power, "VH": power / 4}).rename(tmp_path / "rtc")
    scene = open_scene(folder, sensor="sentinel1-grd", units="linear")
    chip = scene.read()
    assert chip.layout.units == "physical"
    assert not chip.valid[:, 0, 0].any()
    there = chip.valid[0]
    np.testing.assert_allclose(chip.pixels[0][there], 10 * np.log10(power[there]), rtol=1e-5)
    window = Window(row=4, column=5, height=8, width=8)
    np.testing.assert_array_equal(scene.read(window).pixels, chip.pixels[:, 4:12, 5:13])
    with pytest.raises(SensorError, match="units='linear' is power of radar"):
        open_scene(write_folder(tmp_path / "b", random_bands()), units="linear")


def test_a_list_of_band_files_is_one_scene(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, random_bands())
    names = ("B04", "B02", "SCL")
    scene = open_scene([folder / f"{name}.tif" for name in names])
    assert scene.bands == ("B02", "B04")
    assert scene.clouds is not None
    assert same(scene.read(), open_scene(folder, bands=["B02", "B04"]).read())
    (folder / "notes.tif").write_bytes((folder / "B02.tif").read_bytes())
    for files, match in [
        ([], "a list of band files is empty"),
        ([folder / "B99.tif"], "B99.tif not found"),
        ([folder / "B02.tif", folder / "notes.tif"], "notes.tif is no band of sensor"),
    ]:
        with pytest.raises(TerralignError, match=match):
            open_scene(files)


def test_what_lies_beside_a_file_in_a_zip_is_not_opened(tmp_path: Path) -> None:
    folder = write_folder(tmp_path, {"B04": random_bands()["B04"]})
    whole = open_scene(folder).read()
    (folder / "B04.tif.msk").write_bytes(b"<VRTDataset/>")
    (folder / "B04.tif.ovr").write_bytes(b"<VRTDataset/>")
    assert same(open_scene(zip_folder(folder, tmp_path / "a.zip")).read(), whole)


def test_a_server_that_stops_while_reading_is_said_to_have() -> None:
    remote_text = remote.explain_reading("https://host/B04.tif", "HTTP response code: 403")
    assert "cannot be read further: HTTP response code: 403; where its signature" in remote_text
    assert remote.explain_reading("B04.tif", "bad tile") == "B04.tif is damaged: bad tile"
