"""What files claim, and what lies beside them, is bounded before GDAL reads it."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rasterio
from PIL import Image
from rasterio import Affine

from imagery import dn, read_chip, write_geotiff
from terralign.errors import DataError
from terralign.scenes.pictures import decode_rgb
from terralign.scenes.tiff_pages import read_pages

SENTINEL2: Any = {"sensor": "sentinel2-l2a", "bands": ["B04"], "dn_offset": 0}


def tiff(entries: list[tuple[int, int, int, int]] = [], *, pages: int = 1) -> bytes:  # noqa: B006
    """A picture of 8x8 pixels; `entries`: tag, type, count and value of further tags."""
    usual = [
        *((256, 4, 1, 8), (257, 4, 1, 8), (258, 3, 1, 8), (259, 3, 1, 1), (262, 3, 1, 1)),
        *((273, 4, 1, 8), (277, 3, 1, 1), (278, 4, 1, 8), (279, 4, 1, 64), (254, 4, 1, 1)),
    ]
    tags = b"".join(struct.pack("<HHII", *one) for one in sorted([*usual, *entries]))
    size = 2 + len(tags) + 4
    ends = [8 + 64 + size * (page + 1) for page in range(pages - 1)]
    body = b"".join(
        struct.pack("<H", len(tags) // 12) + tags + struct.pack("<I", following)
        for following in [*ends, 0]
    )
    return b"II*\0" + struct.pack("<I", 72) + bytes(64) + body + bytes(4096)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (tiff([(700, 1, 2**31, 8)]), "has tags of 2 GiB, more than the limit of 64 MiB"),
        (tiff([(43000 + n, 1, 5000, 8) for n in range(20_000)]), "has tags of 95.37 MiB"),
        (tiff([(33922, 12, 2**24, 8)]), "has tags of 128 MiB"),
        (tiff([(42112, 2, 2**22, 8)]), "has metadata of 4 MiB, more than the limit of 2 MiB"),
        (tiff(pages=2100), "has at least 2,001 pages"),
    ],
    ids=["one count", "many tags of the same bytes", "tie points", "metadata", "pages"],
)
@pytest.mark.parametrize("read", [decode_rgb, lambda path: read_chip(path, **SENTINEL2)])
def test_what_a_tiff_claims_is_bounded(
    tmp_path: Path, content: bytes, reason: str, read: Callable[[Path], object]
) -> None:
    path = tmp_path / "a.tif"
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"a.tif {reason}"):
        read(path)


@pytest.mark.parametrize("options", [{}, {"BIGTIFF": "YES"}, {"ENDIANNESS": "BIG"}])
@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_pages_are_read_as_they_are_written(tmp_path: Path, options: dict[str, str]) -> None:
    path = tmp_path / "a.tif"
    form = {"driver": "GTiff", "count": 3, "height": 40, "width": 30, "dtype": "uint16"}
    with rasterio.open(path, "w", **form, **options) as file:
        file.write(np.ones((3, 40, 30), np.uint16))
    with rasterio.open(path, "r+") as file:
        file.build_overviews([2, 4])
    with open(path, "rb") as file:
        pages = read_pages(file, "a.tif", (256, 257, 258))
    assert [page[256] for page in pages] == [(30,), (15,), (8,)]
    assert pages[0][257] == (40,)
    assert pages[0][258] == (16, 16, 16)


def test_a_chain_of_pages_that_bites_its_tail_ends(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    content = bytearray(tiff(pages=2))
    content[-4100:-4096] = struct.pack("<I", 72)
    path.write_bytes(content)
    with open(path, "rb") as file:
        assert len(read_pages(file, "a.tif")) == 2


def vrt(source: Path) -> bytes:
    return (
        '<VRTDataset rasterXSize="8" rasterYSize="8"><VRTRasterBand dataType="Byte" band="1">'
        f"<SimpleSource><SourceFilename>{source}</SourceFilename></SimpleSource>"
        "</VRTRasterBand></VRTDataset>"
    ).encode()


@pytest.mark.parametrize("ending", [".msk", ".ovr"])
def test_a_mask_or_overview_beside_a_file_cannot_make_gdal_open_another(
    tmp_path: Path, ending: str
) -> None:
    path = write_geotiff(tmp_path / "a.tif", dn(1))
    Path(f"{path}{ending}").write_bytes(vrt(path))
    with pytest.raises(DataError, match=rf"a.tif{ending} is no GeoTIFF, .* remove it"):
        read_chip(path, **SENTINEL2)


@pytest.mark.parametrize("beside", [True, False], ids=["beside", "inside"])
def test_overviews_that_are_named_elsewhere_are_refused(tmp_path: Path, beside: bool) -> None:
    path, other = write_geotiff(tmp_path / "a.tif", dn(1)), tmp_path / "other.vrt"
    other.write_bytes(vrt(path))
    if beside:
        item = f'<MDI key="OVERVIEW_FILE">{other}</MDI>'
        Path(f"{path}.aux.xml").write_text(
            f'<PAMDataset><Metadata domain="OVERVIEWS">{item}</Metadata></PAMDataset>'
        )
    else:
        with rasterio.open(path, "r+") as file:
            file.update_tags(ns="OVERVIEWS", OVERVIEW_FILE=str(other))
    with pytest.raises(DataError, match=r"a.tif names another file for its overviews"):
        read_chip(path, **SENTINEL2)


@pytest.mark.parametrize("name", ["a.tif.aux.xml", "a.tif.msk", "a.tfw", "a.TAB", "a.IMD"])
def test_what_lies_beside_a_file_must_be_a_file_of_sensible_size(tmp_path: Path, name: str) -> None:
    path = write_geotiff(tmp_path / "a.tif", dn(1))
    os.mkfifo(tmp_path / name)
    with pytest.raises(DataError, match=rf"{name} is not a file"):
        read_chip(path, **SENTINEL2)
    (tmp_path / name).unlink()
    if not name.endswith("msk"):
        (tmp_path / name).touch()
        os.truncate(tmp_path / name, 2**30)
        with pytest.raises(DataError, match=rf"{name} has 1 GiB, more than the limit of 16 MiB"):
            read_chip(path, **SENTINEL2)


@pytest.mark.parametrize(
    ("count", "side", "reason"), [(1, 32768, "2 GiB"), (13, 4096, "416 MiB"), (5001, 16, "")]
)
def test_blocks_and_bands_are_bounded(tmp_path: Path, count: int, side: int, reason: str) -> None:
    path = tmp_path / "a.tif"
    with rasterio.open(
        path, "w", driver="GTiff", count=count, width=8, height=8, dtype="uint16", tiled=True,
        blockxsize=side, blockysize=side, SPARSE_OK=True, crs="EPSG:32632", interleave="pixel",
        transform=Affine(10, 0, 500_000, 0, -10, 5_000_000),
    ):  # fmt: skip
        pass
    expected = rf"in blocks of {reason}, more than" if reason else "has 5,001 bands, more than"
    with pytest.raises(DataError, match=expected):
        read_chip(path, **SENTINEL2)


def test_too_little_memory_is_a_fault_of_the_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none_left(*given: object) -> None:
        raise MemoryError("Unable to allocate 3 GiB")

    path = write_geotiff(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint16))
    monkeypatch.setattr("terralign.scenes.read.GeotiffSource._read", none_left)
    with pytest.raises(DataError, match=r"a.tif needs more memory than there is \(Unable .*; cut"):
        read_chip(path, **SENTINEL2)


@pytest.mark.parametrize(
    "name", ["B04, central wavelength 6.6.5 nm", "B" * 100_000, "1" * 100_000, "B\x1b[31m\n" * 90]
)
def test_what_a_file_calls_its_bands_ends_in_one_line(tmp_path: Path, name: str) -> None:
    path = write_geotiff(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint16))
    Path(f"{path}.aux.xml").write_text(
        '<PAMDataset><PAMRasterBand band="1"><Description>'
        f"{name.replace(chr(27), ' ')}</Description></PAMRasterBand></PAMDataset>"
    )
    with pytest.raises(DataError) as caught:
        read_chip(path, sensor="sentinel2-l2a", dn_offset=0)
    assert len(str(caught.value)) < 1000
    assert str(caught.value).isprintable()


def test_a_picture_that_pillow_would_call_a_bomb_is_refused_in_our_words(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    chunks = [(b"IHDR", struct.pack(">IIBBBBB", 20_000, 20_000, 8, 2, 0, 0, 0)), (b"IDAT", b"")]
    parts = [
        struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        for kind, data in chunks
    ]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    with pytest.raises(DataError, match=r"400,000,000 pixels, more than the limit .*; cut it"):
        decode_rgb(path)


@pytest.mark.parametrize("system", ['COMPD_CS["a",' * 5_000, "/dev/zero"], ids=["nested", "a file"])
def test_a_hostile_reference_system_is_a_fault_of_the_file(tmp_path: Path, system: str) -> None:
    path = write_geotiff(tmp_path / "a.tif", np.ones((1, 8, 8), np.uint16))
    Path(f"{path}.aux.xml").write_text(f"<PAMDataset><SRS>{system}</SRS></PAMDataset>")
    with pytest.raises(DataError, match=r"a.tif is damaged"):
        read_chip(path, **SENTINEL2)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_the_mask_beside_a_picture_is_not_read_unless_it_has_its_shape(tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    Image.new("RGB", (8, 8)).save(path)
    form = {"driver": "GTiff", "count": 1, "dtype": "uint8", "SPARSE_OK": True, "tiled": True}
    with rasterio.open(f"{path}.msk", "w", height=30_000, width=30_000, **form):
        pass
    with pytest.raises(DataError, match=r"a.png.msk has 30000x30000 pixels, its picture 8x8"):
        decode_rgb(path)


@pytest.mark.filterwarnings("ignore::rasterio.errors.NotGeoreferencedWarning")
def test_tiles_of_pictures_are_bounded(tmp_path: Path) -> None:
    path = tmp_path / "a.tif"
    form = {"driver": "GTiff", "count": 3, "dtype": "uint8", "SPARSE_OK": True, "tiled": True}
    tiles = {"blockxsize": 16384, "blockysize": 16384, "interleave": "pixel", "photometric": "rgb"}
    with rasterio.open(path, "w", height=8, width=8, **form, **tiles):
        pass
    with pytest.raises(DataError, match=r"a.tif has tiles of 768 MiB, more than"):
        decode_rgb(path)
