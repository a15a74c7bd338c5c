"""Hostile files made by hand, each in the place of a valid one."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import rasterio
import shapely
import torch
from PIL import Image
from rasterio import Affine

from fake_world.pictures import CAPTIONED
from fuzz.corpus import members, npy, sample_members, write_tar
from fuzz.mutations import deep
from imagery import S2


@dataclass(frozen=True)
class Hostile:
    """`make` changes the valid files of `entry` in a folder; returns the paths that it changed."""

    entry: str
    make: Callable[[Path], Sequence[str]]


Content = bytes | str | Callable[[], bytes | str]
"""What a file holds; a call where it is large, so that it is made when it is wanted."""


def _put(path: str, content: Content) -> Callable[[Path], Sequence[str]]:
    """The file `path` with other content."""

    def make(folder: Path) -> Sequence[str]:
        data = content() if callable(content) else content
        if isinstance(data, str):
            data = data.encode("utf-8", errors="surrogatepass")
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(data)
        return [path]

    return make


def _change(path: str, old: str, new: str) -> Callable[[Path], Sequence[str]]:
    """A text file with one passage replaced."""

    def make(folder: Path) -> Sequence[str]:
        text = (folder / path).read_text()
        if old not in text:
            raise ValueError(f"{path} lacks {old!r}")
        (folder / path).write_text(text.replace(old, new, 1), errors="surrogatepass")
        return [path]

    return make


def _json(path: str, change: Callable[[Any], None]) -> Callable[[Path], Sequence[str]]:
    """A JSON file with its value changed."""

    def make(folder: Path) -> Sequence[str]:
        value = json.loads((folder / path).read_text())
        change(value)
        (folder / path).write_text(json.dumps(value))
        return [path]

    return make


def _special(path: str, kind: str, target: str = "") -> Callable[[Path], Sequence[str]]:
    """A FIFO or a link in the place of a file."""

    def make(folder: Path) -> Sequence[str]:
        (folder / path).unlink(missing_ok=True)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        if kind == "fifo":
            os.mkfifo(folder / path)
        else:
            (folder / path).symlink_to(target)
        return [path]

    return make


# Pickles


class _Payload:
    def __init__(self, call: Callable[..., Any], *given: Any) -> None:
        self.call, self.given = call, given

    def __reduce__(self) -> tuple[Any, ...]:
        return self.call, self.given


def _zipped(data: bytes, name: str = "archive") -> bytes:
    """A pickle in the place of torch's own, in a zip file as `torch.save` writes them."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr(f"{name}/data.pkl", data)
        archive.writestr(f"{name}/version", "3\n")
        archive.writestr(f"{name}/byteorder", "little")
    return file.getvalue()


def _bytearray(size: int) -> bytes:
    return b"\x80\x02cbuiltins\nbytearray\n\x8a\x06" + size.to_bytes(6, "little") + b"\x85R."


def _tuple_keys(levels: int) -> bytes:
    """A dict whose key is a tuple of one tuple twice, and so on: hashing doubles with each level."""
    return b"\x80\x02})" + b"2\x86" * levels + b"K\x01s."


def _growing(levels: int) -> bytes:
    """Lists of lists: each holds the one before ten times."""
    item = b"\x80\x02]q\x00"
    for level in range(levels):
        get = b"h" + bytes([level])
        item += b"]" + b"q" + bytes([level + 1]) + b"(" + get * 10 + b"e"
    return item + b"."


_RUN = partial(_Payload, os.system, "touch executed")
_PICKLES: dict[str, bytes] = {
    "system": pickle.dumps(_RUN()),
    "eval": pickle.dumps(_Payload(eval, "open('executed', 'w')")),
    "bytearray-3-gb": _bytearray(3 * 10**9),
    "bytearray-200-tb": _bytearray(2 * 10**14),
    "tuple-keys": _tuple_keys(60),
    "references": _growing(30),
    "deep-tuples": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
    "long-integer": b"\x80\x02\x8b" + struct.pack("<i", 2**31 - 1) + b"\xff",
    "memo-put": b"\x80\x02}r\xff\xff\xff\xff.",
    "protocol-5-frame": b"\x80\x05\x95" + struct.pack("<Q", 2**62) + b"}.",
    "string-of-2-gb": b"\x80\x02X" + struct.pack("<I", 2**31 - 1) + b"abc",
    "many-strings": b"\x80\x02(" + b"X\x04\0\0\0abcd" * 300_000 + b"l.",
    "sets-of-numbers": b"\x80\x02c__builtin__\nset\n](" + b"K\x01" * 100 + b"e\x85R.",
    "ordered-dict-of-itself": b"\x80\x02ccollections\nOrderedDict\nq\0)Rq\1h\1h\1s.",
    "tensor-of-huge-shape": b"\x80\x02ctorch._utils\n_rebuild_tensor_v2\n(((ctorch\nFloatStorage\nX\1\0\0\x000X\3\0\0\0cpuK\1tQ"
                            b"K\0\x8a\x08\0\0\0\0\0\0\0\x40\x85K\1\x85\x89N tR.",
}  # fmt: skip


def _huge_storage(path: str) -> Callable[[Path], Sequence[str]]:
    """A tensor of 2**40 numbers over a storage of one, by a stride of 0."""

    def make(folder: Path) -> Sequence[str]:
        torch.save({"state_dict": {"a": torch.zeros(1).expand(2**40)}}, folder / path)
        return [path]

    return make


def _zip_bomb(
    path: str, name: str, size: int, start: bytes = b""
) -> Callable[[Path], Sequence[str]]:
    """A zip file whose one member begins with `start`, and has `size` zeros then."""

    def make(folder: Path) -> Sequence[str]:
        with (
            zipfile.ZipFile(folder / path, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as archive,
            archive.open(name, "w", force_zip64=True) as file,
        ):
            file.write(start)
            for _ in range(size // 2**24):
                file.write(bytes(2**24))
        return [path]

    return make


# Arrays and tensors


def _npy_header(header: str, data: bytes = b"") -> bytes:
    text = header.encode("latin-1")
    return b"\x93NUMPY\x02\0" + struct.pack("<I", len(text)) + text + data


def _npz(
    path: str, member: str, data: bytes | Callable[[], bytes]
) -> Callable[[Path], Sequence[str]]:
    def make(folder: Path) -> Sequence[str]:
        with zipfile.ZipFile(folder / path, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, data() if callable(data) else data)
        return [path]

    return make


def _shape(shape: str, dtype: str = "'<u2'") -> str:
    return f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}\n"


_ARRAYS: dict[str, bytes | Callable[[], bytes]] = {
    "brackets": _npy_header(deep(9_000) + "\n"),
    "minus-signs": _npy_header("-" * 9_000 + "1\n"),
    "huge-shape": _npy_header(_shape("(4294967296, 12, 64, 64)")),
    "overflowing-shape": _npy_header(_shape(f"({2**62}, 12, 8, 8)")),
    "negative-shape": _npy_header(_shape("(-1, 12, 8, 8)")),
    "boolean-shape": _npy_header(_shape("(True, 12, 8, 8)"), bytes(2 * 768)),
    "wide-texts": _npy_header(_shape("(1,)", "'<U500000000'")),
    "objects": _npy_header(_shape("(1,)", "'|O'"), pickle.dumps(_RUN())),
    "header-of-64-mb": lambda: _npy_header(" " * 2**26 + _shape("(1,)")),
}


def _tensors(header: str, data: bytes = b"") -> bytes:
    text = header.encode()
    return struct.pack("<Q", len(text)) + text + data


_TENSORS: dict[str, Content] = {
    "shape-0-2**63": _tensors('{"a":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'),
    "shape-0-2**62-8": _tensors('{"a":{"dtype":"F32","shape":[0,4611686018427387904,8],"data_offsets":[0,0]}}'),
    "header-length": struct.pack("<Q", 2**63) + b"{}",
    "header-of-90-mb": lambda: _tensors('{"__metadata__":{"a":"' + "x" * 90_000_000 + '"}}'),
    "deep-header": lambda: _tensors(deep(1_000_000)),
    "name-of-10-mb": lambda: _tensors('{"' + "n" * 10_000_000 + '":{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}'),
    "million-tensors": lambda: _tensors(
        "{" + ",".join(f'"{n}":{{"dtype":"U8","shape":[0],"data_offsets":[0,0]}}' for n in range(200_000)) + "}"
    ),
}  # fmt: skip


# Pictures


def _png(
    width: int, height: int, *, bits: int = 8, colour: int = 2, rows: int | None = None
) -> bytes:
    """A PNG that declares a size; its pixels are zeros, of `rows` rows."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
        )

    channels = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}[colour]
    row = 1 + (width * channels * bits + 7) // 8
    packer, data = zlib.compressobj(9), bytearray()
    for _ in range(height if rows is None else rows):
        for start in range(0, row, 2**24):
            data += packer.compress(bytes(min(2**24, row - start)))
    data += packer.flush()
    header = struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", bytes(data))
        + chunk(b"IEND", b"")
    )  # fmt: skip


def _jpeg(width: int, height: int, *, scans: int = 0, progressive: bool = True) -> bytes:
    """A JPEG that declares a size, with empty progressive scans."""
    file = io.BytesIO()
    Image.new("L", (16, 16), 90).save(file, format="JPEG", progressive=progressive)
    data = bytearray(file.getvalue())
    at = data.find(b"\xff\xc2" if progressive else b"\xff\xc0")
    data[at + 5 : at + 9] = struct.pack(">HH", height, width)
    scan = b"\xff\xda\0\x08\x01\x01\0\x01\x3f\x00\0"
    end = data.rfind(b"\xff\xd9")
    return bytes(data[:end] + scan * scans + data[end:])


def _text_bomb(kind: bytes) -> bytes:
    data = _png(40, 36)
    packed = zlib.compress(bytes(200_000_000), 1)
    content = b"a\0\0" + packed if kind != b"iTXt" else b"a\0\1\0\0\0" + packed
    chunk = (
        struct.pack(">I", len(content))
        + kind
        + content
        + struct.pack(">I", zlib.crc32(kind + content))
    )
    return data[:33] + chunk * 3 + data[33:]


def _animation(kind: str, frames: int) -> bytes:
    file = io.BytesIO()
    first = Image.new("RGB", (40, 36), "red")
    others = [Image.new("RGB", (40, 36), (n % 256, 9, 9)) for n in range(frames)]
    first.save(file, format=kind, save_all=True, append_images=others)
    return file.getvalue()


def _bmp(width: int, height: int, compression: int = 0) -> bytes:
    header = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, compression, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + header


def _gif(width: int, height: int) -> bytes:
    return (b"GIF89a" + struct.pack("<HH", width, height) + b"\x80\0\0\0\0\0\xff\xff\xff,\0\0\0\0"
            + struct.pack("<HH", width, height) + b"\0\x02\x02\x44\x01\0;")  # fmt: skip


_HUGE_PICTURES: dict[str, tuple[str, Callable[[], bytes]]] = {
    "png-thin": ("png", lambda: _png(1, 400_000, colour=0)),
    "png-wide": ("png", lambda: _png(400_000, 1)),
    "png-thinnest": ("png", lambda: _png(1, 80_000_000, colour=0, rows=10)),
    "png-declared-89-mpx": ("png", lambda: _png(9_400, 9_400, rows=10)),
    "png-declared-4-gpx": ("png", lambda: _png(65_000, 65_000, rows=10)),
    "png-zeros-of-9000": ("png", lambda: _png(9_000, 9_000)),
    "png-zeros-16-bit-rgba": ("png-alpha", lambda: _png(6_000, 6_000, bits=16, colour=6)),
    "png-zero-size": ("png", lambda: _png(0, 0)),
    "png-iccp-bomb": ("png", lambda: _text_bomb(b"iCCP")),
    "png-ztxt-bomb": ("png", lambda: _text_bomb(b"zTXt")),
    "png-itxt-bomb": ("png", lambda: _text_bomb(b"iTXt")),
    "jpeg-declared-9400": ("jpeg", lambda: _jpeg(9_400, 9_400)),
    "jpeg-declared-65500": ("jpeg", lambda: _jpeg(65_500, 65_500)),
    "jpeg-scans": ("jpeg-progressive", lambda: _jpeg(8_000, 8_000, scans=3_000)),
    "jpeg-many-scans": ("jpeg-progressive", lambda: _jpeg(8_000, 8_000, scans=40_000)),
    "jpeg-markers": ("jpeg", lambda: b"\xff\xd8" + b"\xff\xfe\xff\xffa" + b"b" * 65_532 + b"\xff\xe1\0\x08Exif\0\0" * 100_000 + b"\xff\xd9"),
    "jpeg-thin": ("jpeg", lambda: _jpeg(1, 65_500, progressive=False)),
    "bmp-declared": ("bmp", lambda: _bmp(2**31 - 1, 2**31 - 1)),
    "bmp-rle": ("bmp", lambda: _bmp(9_000, 9_000, 1)),
    "gif-declared": ("gif", lambda: _gif(65_535, 65_535)),
    "gif-frames": ("gif", lambda: _animation("GIF", 500)),
    "webp-frames": ("webp", lambda: _animation("WEBP", 50)),
}  # fmt: skip


def _picture(kind: str, data: Callable[[], bytes]) -> Callable[[Path], Sequence[str]]:
    ending = {"png": "png", "jpeg": "jpg", "jpeg-progressive": "jpeg", "png-alpha": "png"}
    return _put(f"photo.{ending.get(kind, kind)}", data)


def _raster(**options: Any) -> Callable[[Path], Sequence[str]]:
    """A sparse GeoTIFF of any size, in the place of the scene."""
    options = {"count": 12, "dtype": "uint16", "width": 64, "height": 64} | options

    def make(folder: Path) -> Sequence[str]:
        (folder / "scene.tif").unlink()
        with rasterio.open(
            folder / "scene.tif", "w", driver="GTiff", crs="EPSG:32633", SPARSE_OK="TRUE",
            transform=Affine(10, 0, 500_000, 0, -10, 5_000_000), **options,
        ) as file:  # fmt: skip
            if options["count"] == 12:
                file.descriptions = S2.band_names
        return ["scene.tif"]

    return make


def _tagged(tags: Sequence[tuple[int, int, int, bytes]], *, loop: bool = False) -> bytes:
    """A little TIFF of 64 x 64 bytes from tags (number, type, count, 4 bytes)."""
    entries = b"".join(struct.pack("<HHI", *one[:3]) + one[3] for one in tags)
    following = struct.pack("<I", 8 if loop else 0)
    return b"II*\0\x08\0\0\0" + struct.pack("<H", len(tags)) + entries + following


def _tags(**changed: tuple[int, int]) -> list[tuple[int, int, int, bytes]]:
    """`w`, `h`, tile width and height: (tag type 4 values)."""
    values = {
        "w": (256, 64), "h": (257, 64), "bits": (258, 16), "compression": (259, 1),
        "photometric": (262, 1), "samples": (277, 1), "tw": (322, 64), "th": (323, 64),
        "offsets": (324, 8), "counts": (325, 8192), **changed,
    }  # fmt: skip
    return [(tag, 4, 1, struct.pack("<I", value)) for tag, value in sorted(values.values())]


# Tables


def _table(**columns: Any) -> Callable[[Path], Sequence[str]]:
    """`samples.parquet` with some columns replaced."""

    def make(folder: Path) -> Sequence[str]:
        path = folder / "samples.parquet"
        table = pq.read_table(path)
        for name, column in columns.items():
            made = column(len(table)) if callable(column) else column
            table = table.set_column(table.schema.get_field_index(name), name, made)
        pq.write_table(table, path, compression="zstd")
        return ["samples.parquet"]

    return make


def _rows(number: int) -> Callable[[Path], Sequence[str]]:
    """`samples.parquet` of very many equal rows."""

    def make(folder: Path) -> Sequence[str]:
        path = folder / "samples.parquet"
        row = pq.read_table(path).slice(0, 1)
        columns = [
            pa.DictionaryArray.from_arrays(
                pa.array(np.zeros(number, np.int8)), one.combine_chunks()
            )
            for one in row.columns
        ]
        pq.write_table(pa.table(columns, row.column_names), path, compression="zstd")
        return ["samples.parquet"]

    return make


def _nested(levels: int, *, kind: int = 7) -> bytes:
    """A WKB collection of a collection and so on."""
    return (b"\x01" + struct.pack("<II", kind, 1)) * levels + b"\x01" + struct.pack("<Idd", 1, 0, 0)


def _places(wkb: bytes) -> Callable[[Path], Sequence[str]]:
    return _table(geometry=lambda rows: pa.array([wkb] * rows, pa.binary()))


def _geo(value: str) -> Callable[[Path], Sequence[str]]:
    def make(folder: Path) -> Sequence[str]:
        path = folder / "samples.parquet"
        table = pq.read_table(path).replace_schema_metadata({"geo": value})
        pq.write_table(table, path)
        return ["samples.parquet"]

    return make


_CRS = '{"version":"1.1.0","primary_column":"geometry","columns":{"geometry":{"encoding":"WKB","geometry_types":[],"crs":%s}}}'


# Tars


def _tar(**content: bytes | Callable[[], bytes]) -> Callable[[Path], Sequence[str]]:
    """`train-09.tar` with other members of its sample."""

    def make(folder: Path) -> Sequence[str]:
        made = {name: data() if callable(data) else data for name, data in content.items()}
        found = {**members(3), **{name.replace("_", "."): data for name, data in made.items()}}
        write_tar(
            folder / "shards/train-09.tar", {f"k3.{name}": data for name, data in found.items()}
        )
        return ["shards/train-09.tar"]

    return make


def _tar_of(content: Callable[[], dict[str, bytes]]) -> Callable[[Path], Sequence[str]]:
    def make(folder: Path) -> Sequence[str]:
        write_tar(folder / "shards/train-09.tar", content())
        return ["shards/train-09.tar"]

    return make


def _tar_header(
    *, name: bytes = b"k3.txt", size: bytes = b"0", kind: bytes = b"0", data: bytes = b""
) -> bytes:
    block = bytearray(512)
    block[: len(name[:100])] = name[:100]
    block[100:108], block[108:116], block[116:124] = b"0000644\0", b"0000000\0", b"0000000\0"
    block[124:136] = size.rjust(11, b"0") + b"\0" if len(size) < 12 else size
    block[136:148], block[156:157], block[257:265] = b"00000000000\0", kind, b"ustar\x0000"
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block) + data + bytes(-len(data) % 512)


def _pax(size: int) -> bytes:
    data = b"%d path=" % (size + 6 + len(str(size))) + b"x" * size
    return _tar_header(kind=b"x", size=b"%o" % len(data), data=data) + _tar_header() + bytes(1024)


# Folders


def _store_row(column: str, value: Any) -> Callable[[Path], Sequence[str]]:
    def make(folder: Path) -> Sequence[str]:
        path = folder / "store/samples.parquet"
        table = pq.read_table(path)
        column_values = value(len(table))
        table = table.set_column(table.schema.get_field_index(column), column, column_values)
        pq.write_table(table, path)
        return ["store/samples.parquet"]

    return make


def _every_json(root: str, text: str, name: str) -> Callable[[Path], Sequence[str]]:
    """All JSON files of one name, or below a folder, of another form."""

    def make(folder: Path) -> Sequence[str]:
        found = sorted((folder / root).rglob(name))
        for file in found:
            file.write_text(text)
        return [str(file.relative_to(folder)) for file in found]

    return make


def _split_list(lines: int) -> str:
    return "".join(f"Dock/{n}.jpg\n" for n in range(lines)) + f"Dock/{lines - 1}.jpg\n"


def _hollow_folders(levels: int) -> Callable[[Path], Sequence[str]]:
    def make(folder: Path) -> Sequence[str]:
        here = os.open(folder / "harbours/images/Dock", os.O_RDONLY)
        for _ in range(levels):
            os.mkdir("d" * 100, dir_fd=here)
            below = os.open("d" * 100, os.O_RDONLY, dir_fd=here)
            os.close(here)
            here = below
        os.close(here)
        return ["harbours/images/Dock"]

    return make


def _linked_folder(target: str) -> Callable[[Path], Sequence[str]]:
    return _special("harbours/images/Dock/again", "link", target)


def _xml(folder: Path, text: str) -> list[str]:
    (path,) = folder.glob("*.SAFE/MTD_MSIL2A.xml")
    path.write_text(text)
    return [str(path.relative_to(folder))]


def _many_members(folder: Path) -> Sequence[str]:
    with zipfile.ZipFile(folder / "s2_l2a/patches.npz", "w") as archive:
        for number in range(60_000):
            archive.writestr(f"{number}.npy", b"")
    return ["s2_l2a/patches.npz"]


def _flag(folder: Path, path: str, flag: int) -> Sequence[str]:
    """A zip file whose members claim to be encrypted."""
    data = bytearray((folder / path).read_bytes())
    data[6] |= flag
    data[data.rfind(b"PK\x01\x02") + 8] |= flag
    (folder / path).write_bytes(data)
    return [path]


def _many_columns(folder: Path) -> Sequence[str]:
    pq.write_table(pa.table({f"c{n}": [1] for n in range(20_000)}), folder / "samples.parquet")
    return ["samples.parquet"]


def _patch_id(folder: Path) -> Sequence[str]:
    path = folder / "bigearthnet_v2/metadata.parquet"
    table = pq.read_table(path)
    names = pa.array([f"S2A_MSIL2A_99999999T999999_N9999_R022_T33UUP_{n:02}_05" for n in range(3)])
    pq.write_table(table.set_column(0, "patch_id", names), path)
    for file in sorted((folder / "bigearthnet_v2").rglob("*20170613T101031*"), reverse=True):
        file.rename(file.with_name(file.name.replace("20170613T101031", "99999999T999999")))
    return ["bigearthnet_v2/metadata.parquet"]


def _torn(folder: Path) -> Sequence[str]:
    found = sorted((folder / "run").rglob("metrics.jsonl"))
    for file in found:
        file.write_bytes(file.read_bytes()[:-20])
    return [str(file.relative_to(folder)) for file in found]


TOML_BOMBS: dict[str, Content] = {
    "dotted-key": "a." * 60_000 + "a = 1\n",
    "dotted-table": "[" + "a." * 60_000 + "a]\n",
    "brackets": "x = " + "[" * 100_000,
    "inline-tables": "x = " + "{a=" * 50_000,
    "integer": "x = " + "9" * 5_000,
    "of-30-mb": lambda: "# " + "x" * 30_000_000,
    "many-keys": lambda: "".join(f"k{n} = 1\n" for n in range(100_000)),
    "many-tables": lambda: "".join(f"[t{n}]\n" for n in range(60_000)),
    "long-key": lambda: '"' + "k" * 500_000 + '" = 1\n',
    "control": '"a\\u001b[2Jb" = 1\n',
}
_TOMLS = {"recipe": "tiny.toml", "study": "study.toml", "suite": "suite.toml",
          "sensor": "camera.toml", "prompts": "mine.toml", "class-folders": "harbours.toml"}  # fmt: skip

_NAN = float("nan")


def _with_nan(folder: Path) -> Sequence[str]:
    from fuzz.corpus import shared

    state = {key: value.clone() for key, value in shared().clip.model.state_dict().items()}
    state["visual.conv1.weight"].fill_(_NAN)
    torch.save({"state_dict": state}, folder / "weights.pt")
    return ["weights.pt"]


HOSTILE: dict[str, Hostile] = {
    **{
        f"{where}-{name}": Hostile(entry, _put(path, wrap(data)))
        for name, data in _PICKLES.items()
        for where, entry, path, wrap in (
            ("pickle", "checkpoint-legacy", "weights.pth", bytes),
            ("zip", "checkpoint-zip", "weights.pt", _zipped),
        )
    },
    "tar-pickle": Hostile("webdataset", _tar(s2_npy=_PICKLES["system"])),
    "last-checkpoint": Hostile("run-resumed", _put("run/patch/checkpoints/last.pt", _zipped(_bytearray(3 * 10**9)))),
    "cifar-pickle": Hostile("cifar", _put("cifar100/cifar-100-python/test", _PICKLES["system"])),
    "expanded-tensor": Hostile("state-dict", _huge_storage("some.pt")),
    "checkpoint-zip-bomb": Hostile("checkpoint-zip", _zip_bomb("weights.pt", "archive/data.pkl", 3 * 2**30)),
    "nan-weights": Hostile("checkpoint-zip", _with_nan),
    **{f"tensors-{name}": Hostile("checkpoint-safetensors", _put("weights.safetensors", data))
       for name, data in _TENSORS.items()},
    "tar-tensors": Hostile("webdataset", _tar(safetensors=_tensors(
        '{"s1":{"dtype":"F32","shape":[0,9223372036854775808],"data_offsets":[0,0]}}'))),
    "model-of-layers": Hostile("open-clip-folder", _json(
        "open_clip_config.json", lambda value: value["model_cfg"]["vision_cfg"].update(layers=64_851))),
    "model-of-width": Hostile("open-clip-folder", _json(
        "open_clip_config.json", lambda value: value["model_cfg"]["vision_cfg"].update(width=2**30))),
    "model-of-image-size": Hostile("open-clip-folder", _json(
        "open_clip_config.json", lambda value: value["model_cfg"]["vision_cfg"].update(image_size=2**20))),
    "model-of-vocabulary": Hostile("open-clip-folder", _json(
        "open_clip_config.json", lambda value: value["model_cfg"]["text_cfg"].update(vocab_size=2**40))),
    "space-of-layers": Hostile("space-sealed", _json(
        "model/open_clip_config.json", lambda value: value["model_cfg"]["vision_cfg"].update(layers=20_000))),
    "space-names-above": Hostile("space-sealed", _json(
        "model/space.json", lambda value: value["files"].update({"../../victim": {"sha256": "0", "bytes": 1}}))),
    "vectors-dictionary": Hostile("vectors", _put("tiles.parquet", b"PAR1" + b"\xff" * 64 + b"PAR1")),
    **{name: Hostile(kind, _picture(kind, data)) for name, (kind, data) in _HUGE_PICTURES.items()},
    "classify-thin": Hostile("classify-command", _put("photo.png", lambda: _png(1, 400_000, colour=0))),
    "classify-16-bit": Hostile("classify-command", _put("photo.png", lambda: _png(900, 900, bits=16))),
    "geotiff-sparse-8800": Hostile("geotiff-none", _raster(width=8_800, height=8_800, tiled=True)),
    "geotiff-sparse-30000": Hostile("geotiff-none", _raster(width=30_000, height=30_000, tiled=True)),
    "geotiff-sparse-wide": Hostile("geotiff-none", _raster(width=2**27, height=1)),
    "geotiff-sparse-float": Hostile("geotiff-zstd-float", _raster(
        width=9_000, height=9_000, dtype="float64", tiled=True, compress="zstd")),
    "geotiff-bands": Hostile("geotiff-none", _raster(count=60_000, width=1, height=1)),
    "geotiff-rgb-sparse": Hostile("geotiff-jpeg", _raster(
        count=3, dtype="uint8", width=2_000, height=2_000, tiled=True, compress="deflate")),
    "geotiff-huge-tile": Hostile("geotiff-none", _put("scene.tif", _tagged(_tags(tw=(322, 32_768), th=(323, 32_768))))),
    "geotiff-hugest-tile": Hostile("geotiff-none", _put("scene.tif", _tagged(_tags(tw=(322, 2**31 - 16), th=(323, 2**31 - 16))))),
    "geotiff-of-2-gpx": Hostile("geotiff-none", _put("scene.tif", _tagged(_tags(w=(256, 2**31 - 1), h=(257, 2**31 - 1))))),
    "geotiff-loop": Hostile("geotiff-none", _put("scene.tif", _tagged(_tags(), loop=True))),
    "geotiff-samples": Hostile("geotiff-none", _put("scene.tif", _tagged(_tags(samples=(277, 65_535))))),
    "geotiff-vrt": Hostile("geotiff-none", _put(
        "scene.tif", '<VRTDataset rasterXSize="4" rasterYSize="4"><VRTRasterBand dataType="Byte" band="1">'
        "<SimpleSource><SourceFilename>/etc/passwd</SourceFilename></SimpleSource></VRTRasterBand></VRTDataset>")),
    "tiff-picture-tile": Hostile("tiff-picture", _put("photo.tif", _tagged(_tags(tw=(322, 32_768), th=(323, 32_768))))),
    "geotiff-fifo": Hostile("geotiff-none", _special("scene.tif", "fifo")),
    "geotiff-dev-zero": Hostile("geotiff-none", _special("scene.tif", "link", "/dev/zero")),
    "picture-fifo": Hostile("png", _special("photo.png", "fifo")),
    "picture-dev-zero": Hostile("png", _special("photo.png", "link", "/dev/zero")),
    "xml-nested": Hostile("safe", lambda folder: _xml(folder, "<a>" * 300_000)),
    "xml-entities": Hostile("safe", lambda folder: _xml(
        folder, '<!DOCTYPE a [<!ENTITY a "xxxxxxxxxx">' + "".join(
            f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 12)) + "]><a>&a11;</a>")),
    "xml-attributes": Hostile("safe", lambda folder: _xml(
        folder, "<a " + " ".join(f'b{n}=""' for n in range(150_000)) + "/>")),
    "xml-fifo": Hostile("safe", lambda folder: _special(_xml(folder, "")[0], "fifo")(folder)),
    "metadata-deep": Hostile("bands", lambda folder: _put(
        "20200604T054639_20200604T054831_T43RCP/metadata.json", deep(100_000))(folder)),
    **{f"npz-{name}": Hostile("s2-l2a", _npz("s2_l2a/patches.npz", "pixels.npy", data))
       for name, data in _ARRAYS.items()},
    **{f"tar-{name}": Hostile("webdataset", _tar(s2_npy=data)) for name, data in _ARRAYS.items()
       if "64-mb" not in name},
    "npz-without-npy": Hostile("s2-l2a", _npz("s2_l2a/patches.npz", "pixels", npy(np.zeros(3)))),
    "npz-bomb": Hostile("s2-l2a", _zip_bomb(
        "s2_l2a/patches.npz", "pixels.npy", 4 * 2**30, _npy_header(_shape("(43690, 12, 64, 64)")))),
    "npz-members": Hostile("s2-l2a", lambda folder: _many_members(folder)),
    "npz-encrypted": Hostile("s2-l2a", lambda folder: _flag(folder, "s2_l2a/patches.npz", 1)),
    "npz-fifo": Hostile("s2-l2a", _special("s2_l2a/patches.npz", "fifo")),
    "npz-fifo-mini": Hostile("bigearthnet-mini", _special("bigearthnet_mini/patches.npz", "fifo")),
    **{f"{entry}-{name}": Hostile(entry, _put(path, text))
       for name, text in TOML_BOMBS.items() for entry, path in _TOMLS.items()},
    "toml-fifo": Hostile("recipe", _special("tiny.toml", "fifo")),
    "toml-dev-zero": Hostile("recipe", _special("tiny.toml", "link", "/dev/zero")),
    "recipe-name-above": Hostile("run-complete", _change("tiny.toml", 'name = "tiny"', 'name = "../../victim"')),
    "study-name-absolute": Hostile("study", _change("study.toml", '"tiny-study"', '"/tmp/x"')),
    "study-of-many": Hostile("study", _change(
        "study.toml", "[1e-3, 2e-3]", "[" + ",".join(f"{n}e-9" for n in range(1, 30_000)) + "]")),
    "study-of-products": Hostile("study", _change(
        "study.toml", "vary = {", "vary = {" + "".join(
            f'"align.s2.losses.x{n}" = [1, 2, 3, 4, 5, 6, 7, 8], ' for n in range(9)))),
    "study-recipe-itself": Hostile("study", _change("study.toml", "tiny.toml", "study.toml")),
    "sensor-of-bands": Hostile("sensor", _put(
        "camera.toml", 'name = "a"\nunit = "reflectance"\ndn_scale = 1.0\n' + "".join(
            f'[[bands]]\nname = "b{n}"\ncenter_nm = 500\n' for n in range(25_000)))),
    "prompts-of-many": Hostile("prompts", _put(
        "mine.toml", "templates = [" + '"{} x",' * 100_000 + "]")),
    "prompts-format": Hostile("prompts", _put("mine.toml", 'templates = ["{:>999999999}", "{0.__class__}"]')),
    "labels-of-many": Hostile("labels", _put("labels.txt", lambda: "".join(f"class {n}\n" for n in range(300_000)))),
    "labels-long": Hostile("labels", _put("labels.txt", lambda: "x" * 15_000_000 + "\nforest\n")),
    "labels-fifo": Hostile("labels", _special("labels.txt", "fifo")),
    "split-list-quadratic": Hostile("class-folders", _put("harbours/images/train.txt", lambda: _split_list(200_000))),
    "split-list-all-alike": Hostile("class-folders", _put("harbours/images/train.txt", lambda: "Dock/1.jpg\n" * 500_000)),
    "split-list-long-name": Hostile("class-folders", _put("harbours/images/train.txt", lambda: "x" * 10_000_000)),
    "split-list-above": Hostile("class-folders", _put("harbours/images/train.txt", "../../../victim\nDock/1.jpg\n")),
    "split-list-nul": Hostile("class-folders", _put("harbours/images/train.txt", "Dock/1.jpg\0\n")),
    "split-list-fifo": Hostile("class-folders", _special("harbours/images/train.txt", "fifo")),
    "eurosat-list": Hostile("eurosat-rgb", _put("eurosat_rgb/eurosat-spatial-test.txt", lambda: _split_list(200_000))),
    "class-folders-deep": Hostile("from-folder", _hollow_folders(400)),
    "class-folders-loop": Hostile("from-folder", _linked_folder("../..")),
    "class-folders-root": Hostile("from-folder", _linked_folder("/proc/self")),
    "class-folders-fifo": Hostile("from-folder", _special("harbours/images/Dock/9.jpg", "fifo")),
    "files-fifo": Hostile("folder-of-files", _special("harbours/images/Dock/9.jpg", "fifo")),
    "files-loop": Hostile("folder-of-files", _linked_folder("../..")),
    "csv-nul": Hostile("csv", _change("samples.csv", "s2/1.tif", "s2/1\0.tif")),
    "csv-quote": Hostile("csv", _change("samples.csv", "f1,", '"f1,')),
    "csv-wide": Hostile("csv", _put("samples.csv", lambda: ",".join(f"c{n}" for n in range(300_000)) + "\n")),
    "csv-long-field": Hostile("csv", _change("samples.csv", "two", "x" * 20_000_000)),
    "csv-rows": Hostile("csv", _put("samples.csv", lambda: "id,s2,crop,fold,day,text\n" + "a,b,2,a,,x\n" * 2_000_000)),
    "csv-above": Hostile("csv", _change("samples.csv", "s2/1.tif", "../../victim")),
    "csv-date": Hostile("csv", _change("samples.csv", "2024-05-31,", "0001-01-01T00:00+23:59,")),
    "csv-fifo": Hostile("csv", _special("samples.csv", "fifo")),
    "parquet-rows": Hostile("geoparquet", _rows(15_000_000)),
    "parquet-long-text": Hostile("geoparquet", _table(
        text=lambda rows: pa.array(["x" * 300_000_000, *["y"] * (rows - 1)]))),
    "parquet-not-utf-8": Hostile("geoparquet", _table(
        id=lambda rows: pa.array([b"\xff\xfe%d" % n for n in range(rows)], pa.binary()))),
    "parquet-labels-not-utf-8": Hostile("geoparquet", _table(
        crop=lambda rows: pa.Array.from_buffers(pa.string(), rows, pa.array([b"\xff\xfe"] * rows).buffers()))),
    "parquet-nul": Hostile("geoparquet", _table(s2=lambda rows: pa.array(["s2/1\0.tif"] * rows))),
    "parquet-far-date": Hostile("geoparquet", _table(
        day=lambda rows: pa.array([2**62] * rows, pa.timestamp("us")))),
    "parquet-many-columns": Hostile("parquet", lambda folder: _many_columns(folder)),
    "wkb-nested": Hostile("geoparquet", _places(_nested(20_000))),
    "wkb-multi": Hostile("geoparquet", _places(_nested(20_000, kind=6))),
    "wkb-count": Hostile("geoparquet", _places(b"\x01" + struct.pack("<II", 3, 2**32 - 1))),
    "wkb-nan": Hostile("geoparquet", _places(shapely.to_wkb(shapely.Point(_NAN, _NAN)))),
    "wkb-infinite": Hostile("geoparquet", _places(shapely.to_wkb(shapely.box(float("-inf"), 0, 1, 1)))),
    "wkb-empty": Hostile("geoparquet", _places(shapely.to_wkb(shapely.Polygon()))),
    "wkb-points": Hostile("geoparquet", _places(shapely.to_wkb(shapely.Point(1, 1).buffer(1, 20_000)))),
    "geo-brackets": Hostile("geoparquet", _geo(deep(100_000))),
    "geo-crs-list": Hostile("geoparquet", _geo(_CRS % "[1]")),
    "geo-crs-deep": Hostile("geoparquet", _geo(_CRS % ('{"a":' * 5_000 + "1" + "}" * 5_000))),
    "geo-columns": Hostile("geoparquet", _geo('{"primary_column":"geometry","columns":[1]}')),
    "tar-surrogate-json": Hostile("webdataset", _tar(json=b'{"day":"2024-05-03","tags":["\\ud800"]}')),
    "tar-surrogate-name": Hostile("webdataset", _tar_of(lambda: sample_members(("k\udcff3", 3)))),
    "tar-deep-json": Hostile("webdataset", _tar(json=deep(100_000).encode())),
    "tar-json-numbers": Hostile("webdataset", _tar(json=b'{"day":"2024-05-03","tags":[' + b"9" * 5_000 + b"]}")),
    "tar-long-text": Hostile("webdataset", _tar(txt=lambda: b"x" * 60_000_000)),
    "tar-huge-picture": Hostile("webdataset", _tar(png=lambda: _png(9_400, 9_400, rows=10))),
    "tar-thin-picture": Hostile("webdataset", _tar(png=lambda: _png(1, 400_000, colour=0))),
    "tar-many-members": Hostile("webdataset", _tar_of(lambda: {f"k{n}.x": b"" for n in range(30_000)})),
    "tar-many-of-one-key": Hostile("webdataset", _tar_of(lambda: {f"k.{n}": b"" for n in range(30_000)})),
    "tar-name-above": Hostile("webdataset", _tar_of(lambda: sample_members(("../../../victim", 3)))),
    "tar-date": Hostile("webdataset", _tar(json=b'{"day":"0001-01-01T00:00+23:59","tags":[0]}')),
    "tar-huge-size": Hostile("webdataset", _put("shards/train-09.tar", _tar_header(size=b"77777777777") + bytes(1024))),
    "tar-negative-size": Hostile("webdataset", _put("shards/train-09.tar", _tar_header(size=b"\xff" * 12) + bytes(1024))),
    "tar-pax-name": Hostile("webdataset", _put("shards/train-09.tar", lambda: _pax(50_000_000))),
    "tar-pax-chain": Hostile("webdataset", _put(
        "shards/train-09.tar", lambda: _tar_header(kind=b"x", size=b"13", data=b"11 path=ab\n") * 200_000)),
    "tar-gnu-name": Hostile("webdataset", _put(
        "shards/train-09.tar", _tar_header(kind=b"L", size=b"77777777777"))),
    "tar-fifo": Hostile("webdataset", _special("shards/train-09.tar", "fifo")),
    "shards-pattern": Hostile("webdataset", _change("fields.toml", "train-{08..09}.tar", "a**b")),
    "shards-digits": Hostile("webdataset", _change("fields.toml", "{08..09}", "{" + "0" * 5_000 + "..1}")),
    "shards-count": Hostile("webdataset", _change("fields.toml", "{08..09}", "{0..999999999}")),
    "shards-above": Hostile("webdataset", _change("fields.toml", "train-{08..09}.tar", "../../victim*")),
    "store-path-above": Hostile("store", _json(
        "store/manifest.json", lambda value: value["shards"][0].update(path="../../victim"))),
    "store-name-above": Hostile("store", _json(
        "store/manifest.json", lambda value: value.update(name="../../../victim"))),
    "store-count": Hostile("store", _json(
        "store/manifest.json", lambda value: value["splits"].update(train=2**60))),
    "store-deep": Hostile("store", _put("store/manifest.json", deep(100_000))),
    "store-of-another-form": Hostile("store", _put("store/manifest.json", "[]")),
    "store-lock": Hostile("store", _special("store/.lock", "link", "../../victim")),
    "store-keys": Hostile("store", _store_row("key", lambda rows: pa.Array.from_buffers(
        pa.string(), rows, pa.array([b"\xff\xfe"] * rows).buffers()))),
    "store-dates": Hostile("store", _store_row("datetime", lambda rows: pa.array([2**62] * rows, pa.timestamp("us")))),
    "parquet-fifo": Hostile("parquet", _special("samples.parquet", "fifo")),
    "majortom-fifo": Hostile("majortom", _special("Core-S2L2A/images/part_00001.parquet", "fifo")),
    "vectors-fifo": Hostile("vectors", _special("tiles.parquet", "fifo")),
    "checkpoint-fifo": Hostile("checkpoint-zip", _special("weights.pt", "fifo")),
    "safetensors-fifo": Hostile("checkpoint-safetensors", _special("weights.safetensors", "fifo")),
    "space-fifo": Hostile("space", _special("model/space.json", "fifo")),
    "store-fifo": Hostile("store", _special("store/samples.parquet", "fifo")),
    "store-shard-fifo": Hostile("store", _special("store/shards/00000.safetensors", "fifo")),
    "store-shard-dev-zero": Hostile("store", _special("store/shards/00000.safetensors", "link", "/dev/zero")),
    **{f"captions-{name}": Hostile("rsicd", _put(CAPTIONED["rsicd"][0], text)) for name, text in {
        "deep": deep(200_000), "null": "null", "images-number": '{"images": 1}',
        "digits": '{"images": [{"imgid": ' + "9" * 5_000 + "}]}",
        "many": lambda: '{"images": [' + ",".join(["{}"] * 500_000) + "]}"}.items()},
    "captions-nul": Hostile("rsicd", _change(CAPTIONED["rsicd"][0], "river_0.jpg", "river\\u0000.jpg")),
    "captions-surrogate": Hostile("rsicd", _change(CAPTIONED["rsicd"][0], "river 0 .", "\\ud800")),
    "captions-above": Hostile("rsicd", _change(CAPTIONED["rsicd"][0], "river_0.jpg", "../../../victim")),
    "captions-fifo": Hostile("rsicd", _special(CAPTIONED["rsicd"][0], "fifo")),
    "bigearthnet-date": Hostile("bigearthnet-v2", lambda folder: _patch_id(folder)),
    "bigearthnet-csv": Hostile("bigearthnet-v1", _put("train.csv", lambda: "a" * 30_000_000)),
    "bigearthnet-csv-many": Hostile("bigearthnet-v1", _put("train.csv", lambda: "".join(
        f"S2A_MSIL2A_20170613T101031_{n}_9\n" for n in range(400_000)))),
    "bigearthnet-json": Hostile("bigearthnet-v1", lambda folder: _every_json(
        "BigEarthNet-v1.0", deep(100_000), "*.json")(folder)),
    **{f"run-{form}-{name.split('.')[0].replace('*', 'all')}": Hostile("run-resumed", _every_json("run", text, name))
       for form, text in (("list", "[]"), ("null", "null"), ("object", "{}"), ("deep", deep(100_000)))
       for name in ("versions.json", "sweep.json", "*.json")},
    **{f"run-results-{form}": Hostile("run-complete", _put("run/results.json", text))
       for form, text in (("list", "[]"), ("null", "null"), ("object", "{}"), ("deep", deep(100_000)))},
    "run-torn-log": Hostile("run-resumed", lambda folder: _torn(folder)),
    "run-lock": Hostile("run-complete", _special("run/.lock", "link", "../../victim")),
    "run-recipe-fifo": Hostile("run-complete", _special("run/recipe.toml", "fifo")),
    **{f"bench-{form}-{name.split('.')[0].replace('*', 'all')}": Hostile("bench", _every_json("bench", text, name))
       for form, text in (("list", "[]"), ("null", "null"), ("object", "{}"))
       for name in ("models.json", "versions.json", "*.json")},
    "bench-lock": Hostile("bench", _special("bench/.lock", "link", "../../victim")),
    "bench-results": Hostile("bench", _put("bench/results.parquet", b"PAR1")),
}  # fmt: skip
