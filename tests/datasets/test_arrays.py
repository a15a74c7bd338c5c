"""Arrays from .npz: nothing unpickled, their size bounded, shape and type checked."""

from __future__ import annotations

import io
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import rasterio

from terralign.datasets.array_set import ArraySet
from terralign.datasets.published.arrays import choose_rows, open_s2_l2a, read_array
from terralign.errors import DataError
from terralign.sensors import SENSORS

ANY4 = (None, None, None, None)


@pytest.fixture
def patches(tmp_path: Path) -> Path:
    pixels = np.arange(20 * 12 * 4, dtype=np.uint16).reshape(20, 12, 2, 2)
    (tmp_path / "s2_l2a").mkdir()
    np.savez_compressed(tmp_path / "s2_l2a" / "patches.npz", pixels=pixels)
    return tmp_path


def test_every_tenth_patch_is_validation(patches: Path) -> None:
    train, val = open_s2_l2a(patches, "train"), open_s2_l2a(patches, "val")
    assert val.rows.tolist() == [9, 19]
    assert val.keys == ("patch-000009", "patch-000019")
    assert sorted([*train.rows, *val.rows]) == list(range(20))
    assert open_s2_l2a(patches, "all").rows.tolist() == list(range(20))
    assert train.fingerprint != val.fingerprint
    with pytest.raises(DataError, match=r"'s2-l2a' has no split 'test'; splits: train, val, all"):
        open_s2_l2a(patches, "test")


def test_rows_bands_and_meaning_of_the_patches(patches: Path) -> None:
    val = open_s2_l2a(patches, "val")
    layout = val.layouts["sentinel2-l2a"]
    assert layout.bands == SENSORS["sentinel2-l2a"].band_names
    assert layout.bands.index("B8A") == layout.bands.index("B09") - 1
    assert (layout.dn_offset, layout.composite) == (0, SENSORS["sentinel2-l2a"].composite())
    assert val.labels is None
    pixels = val.read(np.array([1]))["sentinel2-l2a"]
    assert pixels.shape == (1, 12, 2, 2)
    assert pixels[0, 0, 0, 0] == 19 * 48


def test_the_fingerprint_follows_the_content(patches: Path) -> None:
    before = open_s2_l2a(patches, "val").fingerprint
    other = np.ones((20, 12, 2, 2), np.uint16)
    np.savez_compressed(patches / "s2_l2a" / "patches.npz", pixels=other)
    after = open_s2_l2a(patches, "val")
    assert after.fingerprint != before
    assert (after.read(np.array([0]))["sentinel2-l2a"] == 1).all()


@pytest.mark.parametrize(
    ("array", "message"),
    [
        (np.ones((3, 2, 2), np.uint16), r"has shape \(3, 2, 2\).*expected shape \(any, 12"),
        (np.ones((3, 11, 2, 2), np.uint16), r"has shape \(3, 11, 2, 2\)"),
        (np.ones((3, 12, 2, 2), np.float32), r"type float32; expected .* kind u"),
    ],
)
def test_another_shape_or_type_is_an_error(patches: Path, array: np.ndarray, message: str) -> None:
    np.savez_compressed(patches / "s2_l2a" / "patches.npz", pixels=array)
    with pytest.raises(DataError, match=message):
        open_s2_l2a(patches, "val")


class Bomb:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return (open, ("bomb-went-off", "w"))  # type: ignore[return-value]


def test_a_pickle_is_never_loaded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    np.savez(tmp_path / "a.npz", pixels=np.array([[[[Bomb()]]]], dtype=object))
    (tmp_path / "b.npz").write_bytes(pickle.dumps(Bomb()))
    for path, told in (("a.npz", "type object; expected numbers"), ("b.npz", "no NumPy file")):
        with pytest.raises(DataError, match=told):
            read_array(tmp_path / path, "pixels", shape=ANY4, kind="O")
    assert not (tmp_path / "bomb-went-off").exists()


def test_missing_files_and_members_are_named(patches: Path) -> None:
    path = patches / "s2_l2a" / "patches.npz"
    with pytest.raises(DataError, match=r"has no array 'labels'; it has pixels"):
        read_array(path, "labels", shape=ANY4, kind="u")
    with pytest.raises(DataError, match=r"nope.npz not found"):
        read_array(patches / "nope.npz", "pixels", shape=ANY4, kind="u")


@pytest.mark.parametrize("num_bytes", [0, 30, 300])
def test_a_truncated_file_is_named(patches: Path, num_bytes: int) -> None:
    path = patches / "s2_l2a" / "patches.npz"
    path.write_bytes(path.read_bytes()[:num_bytes])
    with pytest.raises(DataError, match=r"patches.npz.* is damaged"):
        open_s2_l2a(patches, "val")


def header(shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    fields = {"descr": "<u2", "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, fields)
    return buffer.getvalue()


def test_a_header_that_promises_too_much_takes_no_memory(tmp_path: Path) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pixels.npy", header((10**6, 12, 10**3, 10**3)) + b"\0" * 48)
        archive.writestr("few.npy", header((1, 12, 4, 4)) + b"\0" * 48)
    for member, told in (
        ("pixels", "more than the limit of 1 GiB"),
        ("few", "it has 48 bytes of 384"),
    ):
        with pytest.raises(DataError, match=told):
            read_array(path, member, shape=ANY4, kind="u")


def with_header(text: str) -> bytes:
    return b"\x93NUMPY\1\0" + len(text).to_bytes(2, "little") + text.encode() + bytes(384)


@pytest.mark.parametrize(
    ("header", "told"),
    [
        ("[" * 9000, "no NumPy file"),
        ("-" * 9000 + "1", "no NumPy file"),
        ("{'descr': '<u2', 'fortran_order': False, 'shape': (True, 12, 4, 4)}", "expected numbers"),
        ("{'descr': '<u2', 'fortran_order': False, 'shape': (-1, 12, 4, 4)}", "expected numbers"),
        ("{'descr': '<u2', 'fortran_order': False, 'shape': (0, 12, 4, 2**63)}", "no NumPy file"),
        (
            f"{{'descr': '<u2', 'fortran_order': False, 'shape': (0, 12, 4, {2**63})}}",
            "no NumPy file",
        ),
        (
            "{'descr': [('a', '<u2')], 'fortran_order': False, 'shape': (1, 12, 4, 4)}",
            "expected numbers",
        ),
        ("{'descr': '|S0', 'fortran_order': False, 'shape': (9, 12, 4, 4)}", "expected numbers"),
    ],
)
def test_a_damaged_header_is_told(tmp_path: Path, header: str, told: str) -> None:
    path = tmp_path / "a.npz"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("pixels.npy", with_header(header))
    with pytest.raises(DataError, match=told):
        read_array(path, "pixels", shape=ANY4, kind="u")


def test_an_array_by_columns_is_read_as_it_was_saved(tmp_path: Path) -> None:
    array = np.arange(2 * 3 * 4 * 5, dtype=np.uint16).reshape(2, 3, 4, 5)
    np.savez(tmp_path / "a.npz", pixels=np.asfortranarray(array))
    read = read_array(tmp_path / "a.npz", "pixels", shape=ANY4, kind="u")
    np.testing.assert_array_equal(read, array)


def test_a_member_without_an_ending_is_read(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as archive:
        archive.writestr("pixels", header((1, 12, 4, 4)) + bytes(384))
    assert read_array(tmp_path / "a.npz", "pixels", shape=ANY4, kind="u").shape == (1, 12, 4, 4)


@pytest.mark.parametrize("method", [zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA])
def test_a_compression_without_bound_is_refused(tmp_path: Path, method: int) -> None:
    with zipfile.ZipFile(tmp_path / "a.npz", "w", method) as archive:
        archive.writestr("pixels.npy", header((1, 12, 4, 4)) + bytes(384))
    with pytest.raises(DataError, match="compressed as NumPy does not; save it with NumPy"):
        read_array(tmp_path / "a.npz", "pixels", shape=ANY4, kind="u")


def test_flipped_bytes_are_told_or_read(tmp_path: Path) -> None:
    rng = np.random.default_rng(5)
    np.savez_compressed(tmp_path / "a.npz", pixels=rng.integers(0, 50, (2, 3, 8, 8), np.uint16))
    whole = (tmp_path / "a.npz").read_bytes()
    num_told = 0
    for _ in range(200):
        damaged = np.frombuffer(whole, np.uint8).copy()
        damaged[rng.integers(0, len(whole), 3)] = rng.integers(0, 256, 3)
        (tmp_path / "a.npz").write_bytes(damaged.tobytes())
        try:
            read_array(tmp_path / "a.npz", "pixels", shape=ANY4, kind="u")
        except DataError:
            num_told += 1
    assert num_told > 100


def test_the_limit_is_on_bytes(patches: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", f"array_bytes={128 + 20 * 12 * 4 * 2 - 1}")
    with pytest.raises(DataError, match="more than the limit"):
        open_s2_l2a(patches, "val")
    monkeypatch.setenv("TERRALIGN_LIMITS", f"array_bytes={128 + 20 * 12 * 4 * 2}")
    assert len(open_s2_l2a(patches, "val")) == 2


def test_float16_comes_as_float32() -> None:
    half = np.full((3, 2, 4, 4), -12.5, np.float16)
    samples = ArraySet(
        name="x",
        split="all",
        layouts={},
        keys=("a", "b", "c"),
        arrays={"sentinel1-grd": half},
        rows=choose_rows("x", "all", 3, {}, 1),
        content=(),
    )
    got = samples.read(np.array([2, 0]))["sentinel1-grd"]
    assert got.dtype == np.float32
    assert (got == -12.5).all()


@pytest.mark.realdata
def test_real_patches_carry_no_offset_and_have_their_bands_in_order(real_data: Path) -> None:
    samples = open_s2_l2a(real_data, "all")
    assert len(samples) == 1200
    dn = samples.arrays["sentinel2-l2a"]
    assert dn.min() == 1  # with the offset of +1000 nothing could be this dark
    assert np.quantile(dn[::10], 0.01) < 200
    bands = samples.layouts["sentinel2-l2a"].bands
    # A band of 60 m changes least from one pixel of 10 m to the next, one of 10 m most.
    some = dn[::20].astype(float)
    step = np.abs(np.diff(some, axis=3)).mean((0, 2, 3)) / some.std((2, 3)).mean(0)
    gsd = {band.name: band.gsd_m for band in SENSORS["sentinel2-l2a"].bands}
    by_gsd = [
        [value for value, band in zip(step, bands, strict=True) if gsd[band] == metres]
        for metres in (60, 20, 10)
    ]
    assert max(by_gsd[0]) < min(by_gsd[1])
    assert max(by_gsd[1]) < min(by_gsd[2])


@pytest.mark.realdata
def test_a_real_scene_with_the_offset_could_not_be_mistaken(real_data: Path) -> None:
    folder = next((real_data / "scenes").glob("S2A_MSIL2A_*_N0400_*"))
    with rasterio.open(folder / "B04.tif") as source:
        dn = source.read(1)
    assert np.quantile(dn[dn > 0], 0.001) > 900
