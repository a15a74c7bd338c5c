"""Data sets in tars: read in order and packed, and faults named."""

from __future__ import annotations

import datetime as dt
import gzip
import io
import json
import logging
import os
import tarfile
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from rasterio import Affine
from rasterio.io import MemoryFile
from safetensors.numpy import save as save_tensors

from terralign.datasets.catalog import find_dataset, open_dataset
from terralign.datasets.declared import webdataset
from terralign.datasets.declared.webdataset import find_tars, split_name
from terralign.datasets.packing import pack_dataset
from terralign.datasets.sample import Located
from terralign.datasets.store import StoreSet
from terralign.datasets.tars import MAX_HEADER_BYTES
from terralign.errors import DataError, TerralignError

TOML = """
name = "fields"
reader = "shards"
root = "shards"
prompts = ["a satellite image of {}."]

[sensors.sentinel2-l2a]
member = "s2.npy"
bands = ["B04", "B03", "B02"]
dn_offset = -1000

[sensors.rgb]
member = "PNG"

[labels]
form = "single"
member = "cls"

[classes]
0 = "a wheat field"
7 = "a maize field"

[captions]
member = "json"
field = "texts"

[date]
member = "json"
field = "day"

[splits]
train = "train-{08..09}.tar"
test = ["te*.tar"]
"""

Members = dict[str, bytes]


def pixels(number: int, num_bands: int = 3) -> np.ndarray[Any, Any]:
    shape = (num_bands, 4, 6)
    return np.random.default_rng(number).integers(1001, 9000, shape).astype(np.uint16)


def picture(number: int) -> np.ndarray[Any, Any]:
    return np.random.default_rng(number).integers(0, 256, (5, 7, 3)).astype(np.uint8)


def npy(array: np.ndarray[Any, Any]) -> bytes:
    file = io.BytesIO()
    np.save(file, array)
    return file.getvalue()


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(picture(number)).save(file, format="PNG")
    return file.getvalue()


def sample(number: int) -> Members:
    """The members of sample `number`, by ending."""
    text = {"texts": [f"caption {number}", ""], "day": f"2024-05-0{number}", "tags": [0, 7]}
    return {
        "s2.npy": npy(pixels(number)),
        "png": png(number),
        "cls": b"7\n" if number % 2 else b"0",
        "json": json.dumps(text).encode(),
    }


def write_tar(path: Path, samples: Mapping[str, Members], format: int = tarfile.PAX_FORMAT) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, "w", format=format) as archive:
        for key, members in samples.items():
            for ending, content in members.items():
                info = tarfile.TarInfo(f"{key}.{ending}")
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


LONG = "x" * 150
"""A key that needs an extended header."""


@pytest.fixture
def root(tmp_path: Path) -> Path:
    write_tar(tmp_path / "shards/train-08.tar", {"a/k1": sample(1), f"a/{LONG}": sample(2)})
    write_tar(tmp_path / "shards/train-09.tar", {"k3": sample(3)}, tarfile.GNU_FORMAT)
    write_tar(tmp_path / "shards/test-0.tar", {LONG: sample(4)}, tarfile.GNU_FORMAT)
    return tmp_path


def opened(root: Path, text: str = TOML, split: str = "train", size: int | None = None) -> Any:
    path = root / "fields.toml"
    path.write_text(text)
    return open_dataset(str(path), data_root=root, split=split, size=size, to_pack=True)


def test_samples_are_what_their_members_say(root: Path) -> None:
    samples = opened(root)
    assert samples.keys == ("a/k1", f"a/{LONG}", "k3")
    assert samples.labels.values.tolist() == [1, 0, 1]
    assert samples.labels.class_names == ("a wheat field", "a maize field")
    assert samples.captions == (("caption 1",), ("caption 2",), ("caption 3",))
    assert isinstance(samples, Located)
    assert samples.place(2).datetime == dt.datetime(2024, 5, 3, tzinfo=dt.UTC)
    assert samples.layouts["sentinel2-l2a"].bands == ("B04", "B03", "B02")
    assert samples.layouts["sentinel2-l2a"].dn_offset == -1000
    got = samples.read(np.array([2, 0, 1, 0]))
    np.testing.assert_array_equal(got["sentinel2-l2a"], [pixels(n) for n in (3, 1, 2, 1)])
    np.testing.assert_array_equal(got["rgb"], [picture(n).transpose(2, 0, 1) for n in (3, 1, 2, 1)])
    facts = find_dataset(str(root / "fields.toml")).facts
    assert facts.sensors == ("sentinel2-l2a", "rgb")
    assert (facts.labels, list(facts.splits)) == ("single", ["train", "test"])


def test_splits_name_their_shards(root: Path) -> None:
    assert opened(root, split="test").keys == (LONG,)
    assert len(opened(root, split="all")) == 4
    text = TOML[: TOML.index("[splits]")].replace("root =", 'shards = "*.tar"\nroot =')
    assert opened(root, text, "val").keys == (LONG, "a/k1", f"a/{LONG}", "k3")
    assert not find_dataset(str(root / "fields.toml")).facts.has_splits


def test_reading_from_many_threads_gives_the_same(root: Path) -> None:
    samples = opened(root)
    expected = samples.read(np.arange(3))["sentinel2-l2a"]
    with ThreadPoolExecutor(4) as pool:
        for got in pool.map(lambda _: samples.read(np.arange(3))["sentinel2-l2a"], range(20)):
            np.testing.assert_array_equal(got, expected)


def test_keys_of_two_shards_that_are_alike_carry_their_shards_name(root: Path) -> None:
    write_tar(root / "shards/train-09.tar", {"a/k1": sample(3)})
    assert opened(root).keys == ("train-08/a/k1", f"train-08/a/{LONG}", "train-09/a/k1")


def test_pictures_are_resized(root: Path) -> None:
    got = opened(root, size=4).read(np.array([0]))
    assert got["rgb"].shape == (1, 3, 4, 4)
    assert got["sentinel2-l2a"].shape == (1, 3, 4, 6)


def test_several_labels(root: Path) -> None:
    listed = TOML.replace('"single"\nmember = "cls"', '"list"\nmember = "json"\nfield = "tags"')
    assert opened(root, listed).labels.values.tolist() == [[True, True]] * 3
    members = {**sample(1), "cls": b"7, 0"}
    write_tar(root / "shards/test-0.tar", {"k": members, "l": {**members, "cls": b""}})
    separated = TOML.replace('"single"\n', '"separated"\nseparator = ","\n')
    samples = opened(root, separated, "test")
    assert samples.labels.values.tolist() == [[True, True], [False, False]]
    assert find_dataset(str(root / "fields.toml")).facts.labels == "multi"


def geotiff(array: np.ndarray[Any, Any], nodata: float | None = None) -> bytes:
    with MemoryFile() as memory:
        count, height, width = array.shape
        with memory.open(
            driver="GTiff", dtype=array.dtype, count=count, height=height, width=width,
            nodata=nodata, crs="EPSG:32633", transform=Affine(10, 0, 500_000, 0, -10, 5_000_000),
        ) as file:  # fmt: skip
            file.write(array)
        return bytes(memory.read())


def tensors(**named: np.ndarray[Any, Any]) -> bytes:
    return bytes(save_tensors(named))


FORMATS: list[tuple[str, str, Callable[[np.ndarray[Any, Any]], bytes]]] = [
    ("npy", "", npy),
    ("npy", "", lambda array: npy(np.asfortranarray(array))),
    ("npy", "", lambda array: npy(array.astype(">u2"))),
    ("tif", "", geotiff),
    ("safetensors", "", lambda array: tensors(only=array)),
    ("safetensors", 'tensor = "x"', lambda array: tensors(x=array, y=array[:1])),
]


def text_of(ending: str, extra: str = "") -> str:
    """A declaration of Sentinel-2 alone."""
    text = TOML[: TOML.index("[sensors.rgb]")].replace('prompts = ["a satellite', '# ["')
    return (
        text.replace("s2.npy", f"s2.{ending}").replace("dn_offset", f"{extra}\ndn_offset")
        + '[splits]\ntest = "one.tar"\n'
    )


@pytest.mark.parametrize(("ending", "extra", "encode"), FORMATS)
def test_every_format_gives_the_same_pixels(
    tmp_path: Path, ending: str, extra: str, encode: Callable[[Any], bytes]
) -> None:
    write_tar(tmp_path / "shards/one.tar", {"k": {f"S2.{ending}": encode(pixels(1))}})
    samples = opened(tmp_path, text_of(ending, extra), "test")
    got = samples.read(np.array([0]))["sentinel2-l2a"]
    assert got.dtype == np.uint16
    np.testing.assert_array_equal(got, [pixels(1)])


def test_invalid_numbers_are_marked(tmp_path: Path) -> None:
    array = pixels(1)
    array[0, 0, 0] = 65535
    write_tar(tmp_path / "shards/one.tar", {"k": {"s2.tif": geotiff(array, nodata=65535)}})
    got = opened(tmp_path, text_of("tif"), "test").read(np.array([0]))["sentinel2-l2a"]
    assert got[0, 0, 0, 0] == 0
    radar = np.full((2, 3, 3), -12.5, np.float16)
    radar[1, 2, 2] = np.nan
    write_tar(tmp_path / "shards/one.tar", {"k": {"vv.npy": npy(radar)}})
    text = (
        'name = "r"\nreader = "shards"\nroot = "shards"\nshards = "one.tar"\n'
        '[sensors.sentinel1-grd]\nmember = "vv.npy"\nbands = ["VV", "VH"]\n'
    )
    samples = opened(tmp_path, text, "all")
    got = samples.read(np.array([0]))["sentinel1-grd"]
    assert (got.dtype, got[0, 0, 0, 0]) == (np.float32, -12.5)
    assert np.argwhere(np.isnan(got)).tolist() == [[0, 1, 2, 2]]
    assert samples.layouts["sentinel1-grd"].units == "physical"
    assert samples.labels is None


class Evil:
    """Unpickling it would run code."""

    def __reduce__(self) -> tuple[Any, ...]:
        return (print, ("run",))


def forged_npy() -> bytes:
    """A header that promises more than there is."""
    return npy(pixels(1)).replace(b"(3, 4, 6), ", b"(3, 4, 600000), ", 1)


def npy_header(text: str) -> bytes:
    return b"\x93NUMPY\x02\x00" + len(text).to_bytes(4, "little") + text.encode()


def empty_tensor(shape: list[int]) -> bytes:
    entry = {"dtype": "U16", "shape": shape, "data_offsets": [0, 0]}
    text = json.dumps({"a": entry}).encode()
    return len(text).to_bytes(8, "little") + text


def many_tensors() -> bytes:
    """Each of them empty: 60 bytes that take a thousand."""
    text = b"{%s}" % b",".join(
        b'"%d":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}' % number
        for number in range(200_000)
    )
    return len(text).to_bytes(8, "little") + text


@pytest.mark.parametrize(
    ("ending", "content", "message"),
    [
        ("npy", npy(pixels(1))[:-4], r"one.tar: k is damaged"),
        ("npy", forged_npy(), r"k is damaged"),
        ("npy", b"x", r"k is damaged or no NumPy file"),
        ("npy", npy_header("-" * 9000 + "1"), r"k is damaged or no NumPy file"),
        ("npy", npy_header("[" * 9000), r"k is damaged or no NumPy file"),
        (
            "npy",
            npy(pixels(1)).replace(b"(3, 4, 6)", b"(3,-4,-6)"),
            r"k is of shape \(3, -4, -6\) and type uint16; expected numbers",
        ),
        ("npy", npy(np.array([Evil()])), r"k is of shape \(1,\) and type object; expected numbers"),
        ("npy", npy(pixels(1, 2)), r"k: pixels have 2 channels, but 3 bands of"),
        ("npy", npy(pixels(1)[0]), r"k holds uint16 \(4, 6\); expected numbers \(C, H, W\)"),
        ("npy", npy(pixels(1) / 1.0), r"k: pixels are float64: digital numbers or reflectance"),
        ("tif", geotiff(pixels(1))[:-20], r"one.tar: k is (damaged|not a readable GeoTIFF)"),
        ("tif", geotiff(pixels(1, 2)), r"one.tar: k has 2 band\(s\), but 3 were declared"),
        ("safetensors", tensors(a=pixels(1), b=pixels(2)), r"k has the tensors a, b; declare whi"),
        ("safetensors", tensors(a=pixels(1))[:-8], r"k is damaged or no safetensors"),
        ("safetensors", empty_tensor([0, 2**63]), r"k is damaged or no safetensors"),
        ("safetensors", empty_tensor([0, 2**62, 8]), r"k is damaged or no safetensors"),
        ("safetensors", empty_tensor([1] * 100), r"k is damaged or no safetensors"),
        (
            "safetensors",
            many_tensors(),
            r"k has a header of [\d.]+ MiB, more than the limit of 8 MiB",
        ),
    ],
)
def test_a_damaged_or_unsafe_member_is_one_clear_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], ending: str, content: bytes, message: str
) -> None:
    write_tar(tmp_path / "shards/one.tar", {"k": {f"s2.{ending}": content}})
    with pytest.raises(TerralignError, match=message) as caught:
        opened(tmp_path, text_of(ending), "test")
    assert "\n" not in str(caught.value)
    assert capsys.readouterr().out == ""


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ('member = "s2.npy"', 'membr = "s2.npy"', r"sensors.sentinel2-l2a: unknown key 'membr'"),
        (
            'member = "s2.npy"',
            'member = "s2.npz"',
            r"no pixels are read from .npz; did you mean 'n",
        ),
        (
            'member = "s2.npy"',
            'member = "s2.pth"',
            r"no pixels are read from .pth, a pickle; write",
        ),
        ('member = "s2.npy"', 'member = "s3.npy"', r"sample 'a/k1' has no member .s3.npy; it"),
        ("dn_offset = -1000", 'tensor = "x"', r"tensor has no effect on .npy"),
        ("dn_offset = -1000", "", r"train-08.tar: a/k1: DN of 'sentinel2-l2a' need dn_offset"),
        ('bands = ["B04", "B03", "B02"]', "", r"a/k1 does not name its bands; declare bands"),
        ('member = "PNG"', 'member = "PNG"\nunits = "dn"', r"sensors.rgb: units has no effect"),
        ('member = "s2.npy"', 'member = "png"', r"'png' is a picture, which is sensor 'rgb'"),
        ('member = "cls"', 'member = "cls"\nfield = "x"', r"field has no effect on member 'cls'"),
        ('field = "day"', "", r"date: member 'json' needs field"),
        ('field = "day"', 'field = "days"', r"'a/k1', .json has no key 'days'; did you mean 'day'"),
        (
            'field = "day"',
            'field = "texts"',
            r"column 'json:texts' is of type list.*; expected texts",
        ),
        ('form = "single"', 'form = "list"', r'form "list" needs a member of JSON'),
        ('form = "single"', 'form = "separated"', r"separator and form"),
        ("7 = ", "8 = ", r"train-08.tar: a/k1 has label '7', which is not one of"),
        ("{08..09}", "{08..10}", r"train-10.tar not found; .* names 'train-{08..10}.tar'"),
        ("{08..09}", "{09..08}", r"shards 'train-{09..08}.tar' names no tar"),
        ("{08..09}", "{0..999999999}", r"names 1,000,000,000 tars, more than the limit of"),
        ("{08..09}", f"{{{'0' * 900}..1}}", r"tar not found; .* names 'train-\{00"),
        ("{08..09}", "0" * 5000, r"shards 'train-00.*' is no pattern of tars"),
        ("{08..09}", "**b", r"shards 'train-\*\*b.tar' is no pattern of tars"),
        ("train-{08..09}", "**/**/*", r"is no pattern of tars; .* and \*\* once"),
        ("train-{08..09}.tar", "none-*.tar", r"no shard in .*shards matches 'none-\*.tar'"),
        ("train-{08..09}.tar", "../*.tar", r"shards: '../\*.tar' leads outside"),
        ('root = "shards"', 'root = "../x"', r"root: '../x' leads outside"),
        ('root = "shards"', 'root = "y"', r"root: y not found; looked in"),
        ('root = "shards"', 'root = "shards"\nshards = "a"', r"give either shards or \[splits\]"),
        ("train =", "training =", r"has no split 'train' in .*toml; splits: all, training, test"),
    ],
)
def test_every_mistake_is_one_clear_line(root: Path, old: str, new: str, message: str) -> None:
    assert old in TOML
    with pytest.raises(TerralignError, match=message) as caught:
        opened(root, TOML.replace(old, new, 1))
    assert "\n" not in str(caught.value)


def test_a_sample_that_lacks_a_member_is_named(root: Path) -> None:
    members = sample(3)
    del members["png"]
    write_tar(root / "shards/train-09.tar", {"k2": sample(2), "k3": members})
    with pytest.raises(DataError, match=r"train-09.tar: sample 'k3' has no member .png; it has "):
        opened(root)


@pytest.mark.parametrize("num_bytes", [0, 1, 511, 512, 700, 1024])
@pytest.mark.parametrize("from_end", [False, True])
def test_a_tar_that_is_cut_short_is_named(root: Path, num_bytes: int, from_end: bool) -> None:
    path = root / "shards/train-09.tar"
    whole = path.read_bytes()
    with tarfile.open(path) as archive:
        archive.getmembers()
        end = archive.offset + 511  # a byte less than the first block of the mark of its end
    path.write_bytes(whole[: end - num_bytes if from_end else num_bytes])
    with pytest.raises(DataError, match=r"shard .*train-09.tar is cut short \(.*download it again"):
        opened(root)


def test_a_header_that_is_damaged_is_named(root: Path) -> None:
    path = root / "shards/train-09.tar"
    content = bytearray(path.read_bytes())
    with tarfile.open(path) as archive:
        second = archive.getmembers()[1].offset
    content[second + 148] ^= 1  # its checksum
    path.write_bytes(content)
    with pytest.raises(DataError, match=rf"is damaged: no header at byte {second}"):
        opened(root)
    path.write_text("no tar" * 1000)
    with pytest.raises(DataError, match=r"is damaged, compressed or no tar \("):
        opened(root)


def test_compressed_tars_are_refused_with_the_remedy(root: Path) -> None:
    path = root / "shards/train-09.tar"
    path.write_bytes(gzip.compress(path.read_bytes()))
    with pytest.raises(DataError, match=r"train-09.tar is compressed; unpack it to a plain .tar"):
        opened(root)


def test_a_tar_that_begins_like_a_compressed_file_is_never_decompressed(root: Path) -> None:
    """`webdataset` would: what it read then was never checked."""
    write_tar(root / "shards/train-09.tar", {"BZh91AY&SY": sample(3)})
    with pytest.raises(DataError, match=r"train-09.tar is compressed; unpack it"):
        opened(root)


def test_a_pipe_is_no_shard(root: Path) -> None:
    os.mkfifo(root / "shards/test2.tar")
    with pytest.raises(DataError, match=r"shard .*test2.tar is no file; .* names 'te\*.tar'"):
        opened(root, split="test")


def test_names_and_texts_that_are_no_utf8_are_named(root: Path) -> None:
    write_tar(root / "shards/train-09.tar", {"k\udc80": sample(3)})
    with pytest.raises(DataError, match=r"a member named 'k\\udc80.s2.npy', which is not UTF-8"):
        opened(root)
    texts = b'{"texts": ["\\ud800"], "day": null}'
    write_tar(root / "shards/train-09.tar", {"k3": {**sample(3), "json": texts}})
    with pytest.raises(DataError, match=r"sample 'k3', .json is not valid JSON: .*surrogates"):
        opened(root)


def test_values_for_all_members_are_bounded(root: Path) -> None:
    values = {f"key{number}": "x" for number in range(2000)}
    path = root / "shards/train-09.tar"
    with tarfile.open(path, "w", format=tarfile.PAX_FORMAT, pax_headers=values) as archive:
        archive.addfile(tarfile.TarInfo("k9.png"))
    with pytest.raises(DataError, match=r"train-09.tar is damaged.*too many values that hold for"):
        opened(root)


@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.CHRTYPE])
def test_links_and_devices_are_refused(root: Path, kind: bytes) -> None:
    with tarfile.open(root / "shards/train-09.tar", "a") as archive:
        info = tarfile.TarInfo("k9.png")
        info.type, info.linkname = kind, "/etc/passwd"
        archive.addfile(info)
    with pytest.raises(DataError, match=r"train-09.tar holds 'k9.png', which is a link, a device"):
        opened(root)


def test_sizes_are_checked_before_memory_is_taken(root: Path) -> None:
    path = root / "shards/train-09.tar"
    info = tarfile.TarInfo("k9.png")
    info.size = 2**60
    path.write_bytes(info.tobuf(tarfile.GNU_FORMAT) + b"\0" * 1024)
    with pytest.raises(DataError, match=r"cut short \(its member 'k9.png' is not whole"):
        opened(root)
    header = tarfile.TarInfo("x")
    header.type, header.size = tarfile.XHDTYPE, MAX_HEADER_BYTES * 2
    path.write_bytes(header.tobuf() + b"\0" * (header.size + 1024))
    with pytest.raises(DataError, match=r"no tar \(a header of 2097152 bytes"):
        opened(root)
    name = tarfile.TarInfo("x")
    name.type, name.size = tarfile.GNUTYPE_LONGNAME, 2
    path.write_bytes((name.tobuf(tarfile.GNU_FORMAT) + b"y".ljust(512, b"\0")) * 3000)
    with pytest.raises(DataError, match=r"no tar \(maximum recursion"):
        opened(root)


def test_a_member_twice_is_named_and_others_are_passed_over(root: Path) -> None:
    write_tar(root / "shards/train-09.tar", {"k3": sample(3), ".hidden": {"png": b""}, "READ": {}})
    with tarfile.open(root / "shards/train-09.tar", "a") as archive:
        folder = tarfile.TarInfo("folder.d")
        folder.type = tarfile.DIRTYPE
        archive.addfile(folder)
        archive.addfile(tarfile.TarInfo("README"))
    assert opened(root).keys[-1] == "k3"
    with tarfile.open(root / "shards/train-09.tar", "a") as archive:
        archive.addfile(tarfile.TarInfo("./k3.PNG"))
    with pytest.raises(DataError, match=r"train-09.tar has two members 'k3.png'"):
        opened(root)


def test_members_of_a_sample_that_lie_apart_are_refused(root: Path) -> None:
    first, *others = sample(3).items()
    write_tar(root / "shards/train-09.tar", {"k3": dict([first]), "k4": sample(1)})
    with tarfile.open(root / "shards/train-09.tar", "a") as archive:
        for ending, _ in others:
            archive.addfile(tarfile.TarInfo(f"k3.{ending}"))
    with pytest.raises(DataError, match=r"train-09.tar: .* 'k3' do not lie side by side; .*--sort"):
        opened(root)


def test_members_without_an_ending_are_named(root: Path, caplog: pytest.LogCaptureFixture) -> None:
    write_tar(root / "shards/train-09.tar", {"k3": sample(3)})
    with tarfile.open(root / "shards/train-09.tar", "a") as archive:
        for name in ("README", ".hidden", "./k4", "deep/k5"):
            archive.addfile(tarfile.TarInfo(name))
    with caplog.at_level(logging.WARNING):
        assert opened(root).keys[-1] == "k3"
    assert "train-09.tar: 2 members that belong to no sample, such as k4" in caplog.text


@pytest.mark.parametrize("ending", ["webp", "bmp"])
def test_pictures_of_other_formats_are_members_too(tmp_path: Path, ending: str) -> None:
    content = io.BytesIO()
    Image.new("RGB", (4, 4), (20, 80, 20)).save(content, format=ending.upper())
    (tmp_path / "shards").mkdir()
    write_tar(tmp_path / "shards/a.tar", {"k0": {ending: content.getvalue()}})
    text = (
        'name = "x"\nreader = "shards"\nroot = "shards"\nshards = "a.tar"\n'
        f'[sensors.rgb]\nmember = "{ending}"\n'
    )
    found = opened(tmp_path, text, split="all").read(np.array([0]))["rgb"][0]
    np.testing.assert_allclose(found.mean(axis=(1, 2)), (20, 80, 20), atol=3)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("a/b.c.NPY", ("a/b", "c.npy")),
        ("./a.cls", ("a", "cls")),
        ("a.b/c.d", ("a.b/c", "d")),
        ("a", (None, None)),
        (".a.b", (None, None)),
        ("a/.b.c", (None, None)),
        ("a.", (None, None)),
        ("a.__key__", (None, None)),
        ("__meta__/a.npy", (None, None)),
    ],
)
def test_a_key_ends_at_the_first_dot_of_the_file_name(name: str, expected: Any) -> None:
    assert split_name(name) == expected


def test_a_tar_that_changes_while_it_is_used_is_named(root: Path) -> None:
    samples = opened(root)
    write_tar(root / "shards/train-09.tar", {"other": sample(3)})
    with pytest.raises(DataError, match=r"train-09.tar has changed while it was in use"):
        samples.read(np.array([2]))


def test_tars_are_packed_and_used_from_the_store(root: Path) -> None:
    path = root / "fields.toml"
    path.write_text(TOML)
    with pytest.raises(
        DataError, match=r"fields.toml consists of tars, .*`terralign pack .*STORE`. and give STORE"
    ):
        open_dataset(str(path), data_root=root, split="train")
    packed = pack_dataset(str(path), root / "store", data_root=root)
    assert packed.manifest.splits == {"train": 3, "test": 1}
    stored, source = StoreSet(root / "store", "train"), opened(root)
    assert (stored.keys, stored.captions) == (source.keys, source.captions)
    assert [stored.place(index) for index in range(3)] == [
        source.place(index) for index in range(3)
    ]
    everything = np.arange(3)
    for sensor, expected in source.read(everything).items():
        np.testing.assert_array_equal(stored.read(everything)[sensor], expected)


def test_each_tar_is_read_once_by_ascending_indices(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    samples = opened(root)
    read: list[str] = []
    stream = webdataset.stream_samples

    def counted(path: Path) -> Any:
        read.append(path.name)
        return stream(path)

    monkeypatch.setattr(webdataset, "stream_samples", counted)
    for index in (0, 1, 2):
        samples.read(np.array([index]))
    assert read == ["train-08.tar", "train-09.tar"]
    samples.read(np.array([0]))
    assert read[2:] == ["train-08.tar"]


def test_a_file_name_is_neither_a_command_nor_an_address(tmp_path: Path) -> None:
    write_tar(tmp_path / "shards" / "pipe:touch ran; .tar", {"k1": sample(1)})
    text = TOML[: TOML.index("[splits]")].replace("root =", 'shards = "*.tar"\nroot =')
    samples = opened(tmp_path, text, "all")
    np.testing.assert_array_equal(samples.read(np.array([0]))["sentinel2-l2a"], [pixels(1)])
    assert not list(Path().glob("ran"))


def test_ranges_and_patterns_name_each_shard_once(tmp_path: Path) -> None:
    for name in ("a-8-x", "a-9-x", "a-10-x", "a-10-y"):
        (tmp_path / f"{name}.tar").write_bytes(b"")
    found = find_tars(tmp_path, ("a-{8..10}-x.tar", "a-1*.tar"), Path("d.toml"))
    assert [path.stem for path in found] == ["a-8-x", "a-9-x", "a-10-x", "a-10-y"]


def test_the_fingerprint_follows_shards_members_and_meaning(root: Path) -> None:
    first = opened(root).fingerprint
    assert opened(root).fingerprint == first
    prints = {first, opened(root, split="test").fingerprint, opened(root, size=3).fingerprint}
    prints.add(opened(root, TOML.replace("-1000", "0")).fingerprint)
    write_tar(root / "shards/train-09.tar", {"k3": {**sample(3), "png": png(3) + b"\0"}})
    prints.add(opened(root).fingerprint)
    assert len(prints) == 5
    write_tar(root / "shards/train-09.tar", {"k3": {**sample(3), "cls": b"0\n"}})
    one = opened(root).fingerprint
    write_tar(root / "shards/train-09.tar", {"k3": {**sample(3), "cls": b"7\n"}})
    assert opened(root).fingerprint != one  # a label of the same size


def test_bands_sizes_and_layouts_must_agree(root: Path) -> None:
    write_tar(root / "shards/train-09.tar", {"k3": {**sample(3), "s2.npy": npy(pixels(3)[:, :3])}})
    samples = opened(root)
    samples.read(np.array([0, 1]))
    with pytest.raises(DataError, match=r"train-09.tar: k3 has 6x3 pixels, .*train-08.tar: a/k1 "):
        samples.read(np.array([0, 2]))
