"""Seeded damage to files: bytes anywhere, and values inside of each format, checksums repaired."""

from __future__ import annotations

import io
import json
import os
import re
import struct
import tarfile
import warnings
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

EXTREMES = (0, 1, -1, 127, 255, 65_535, 2**31 - 1, 2**31, 2**32 - 1, 2**62, 2**63 - 1, 2**63)
"""Numbers that sizes, counts and offsets are set to."""


def deep(levels: int, opening: str = "[", closing: str = "]") -> str:
    return opening * levels + closing * levels


def _texts(rng: Random) -> str:
    return rng.choice(
        (
            "", " ", "x" * rng.choice((300, 5_000, 100_000)), "../../../victim", "/etc/passwd", "..",
            "a\0b", "\x1b[31mred", "one\ntwo", "\u202eabc", "\ufeff", "NaN", "null", "-0", "é" * 200,
            "a/b", "*", "%s%n", "{}", "{0.__class__}", "<b>&amp;", "\U0001f600", "a" * 255 + "/b",
        )
    )  # fmt: skip


def _value(rng: Random) -> Any:
    """A value of JSON that a reader may not expect."""
    return rng.choice(
        (
            lambda: None, lambda: True, list, dict, lambda: [[]], lambda: [None],
            lambda: rng.choice(EXTREMES), lambda: rng.choice((1e308, -1e308, float("nan"), 1e999)),
            lambda: 10 ** rng.choice((20, 400)), lambda: _texts(rng), lambda: {"a": {"b": [1]}},
            lambda: ["x"] * rng.choice((2, 3_000)), lambda: 0.5, lambda: "\ud800", lambda: [[1], "a"],
            lambda: {str(one): one for one in range(rng.choice((1, 2_000)))},
        )
    )()  # fmt: skip


# Bytes


def damage_bytes(rng: Random, data: bytes, donor: bytes = b"") -> bytes:
    """Bits flipped, spans overwritten, cut, inserted, repeated, spliced; integers set."""
    if not data:
        return rng.randbytes(rng.choice((1, 100)))
    content = bytearray(data)
    # Headers hold what matters; half of the damage is done there, and some at the end.
    area = rng.choice(
        ((0, min(len(data), 256)), (0, len(data)), (max(0, len(data) - 256), len(data)))
    )
    at = rng.randrange(*area)
    size = min(len(data) - at, rng.choice((1, 4, 16, 200)))
    way = rng.choice(
        ("flip", "flip", "flips", "overwrite", "cut", "cut", "insert", "repeat", "splice", "integer",
         "integer", "remove", "fill")
    )  # fmt: skip
    if way == "flip":
        content[at] ^= 1 << rng.randrange(8)
    elif way == "flips":
        for _ in range(max(2, len(data) // 100)):
            content[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
    elif way == "overwrite":
        content[at : at + size] = rng.randbytes(size)
    elif way == "fill":
        content[at : at + size] = bytes([rng.choice((0, 255))]) * size
    elif way == "cut":
        del content[at:]
    elif way == "remove":
        del content[at : at + size]
    elif way == "insert":
        content[at:at] = rng.randbytes(size)
    elif way == "repeat":
        content[at:at] = content[at : at + size] * rng.choice((1, 50, 2_000))
    elif way == "splice":
        other = donor or data
        start = rng.randrange(len(other))
        content[at:] = other[start : start + 100_000]
    else:
        form = rng.choice(("<H", ">H", "<I", ">I", "<Q", ">Q"))
        packed = struct.pack(form, rng.choice(EXTREMES) % 2 ** (8 * struct.calcsize(form)))
        content[at : at + len(packed)] = packed
    return bytes(content)


# Texts


def damage_text(rng: Random, data: bytes) -> bytes:
    """A number, a string or a line of a text file in place of another; or its bytes damaged."""
    text = data.decode("utf-8", errors="replace")
    way = rng.choice(("number", "string", "string", "line", "word", "bytes", "structure"))
    if way == "number" and (found := list(re.finditer(r"-?\d+(\.\d+)?(e-?\d+)?", text))):
        one = rng.choice(found)
        new = rng.choice(
            ("1e999", "nan", "-inf", "NaN", "9" * 5_000, "-1", "0", str(2**63), "1e-400", "0x10",
             "true", "[]", "{}", '"a"', "1_000", "٣", "")
        )  # fmt: skip
        text = text[: one.start()] + new + text[one.end() :]
    elif way == "string" and (found := list(re.finditer(r'"[^"\n]*"', text))):
        one = rng.choice(found)
        inner = json.dumps(_texts(rng), ensure_ascii=rng.random() < 0.5)
        new = rng.choice((inner, inner, inner, "1", "[]", "{}", "true", r'"\ud800"', deep(20_000)))
        text = text[: one.start()] + new + text[one.end() :]
    elif way == "line":
        lines = text.split("\n")
        at = rng.randrange(len(lines))
        what = rng.choice(("remove", "repeat", "many", "swap", "join", "end"))
        if what == "remove":
            del lines[at]
        elif what in ("repeat", "many"):
            lines[at:at] = [lines[at]] * (1 if what == "repeat" else 3_000)
        elif what == "swap":
            other = rng.randrange(len(lines))
            lines[at], lines[other] = lines[other], lines[at]
        elif what == "join":
            lines[at : at + 2] = ["".join(lines[at : at + 2])]
        else:
            lines[at] = lines[at][: rng.randrange(len(lines[at]) + 1)]
        text = "\n".join(lines)
    elif way == "word" and (found := list(re.finditer(r"\w+", text))):
        one = rng.choice(found)
        text = text[: one.start()] + _texts(rng) + text[one.end() :]
    elif way == "structure":
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(
            (deep(5_000), deep(5_000, "{a=", "}"), '"""', "'", ",", "\r", "\0", "=", "]", "[[a]]\n",
             "a." * 3_000 + "b = 1\n", "#" * 10_000, "<!DOCTYPE a>", "&x;", "<a>" * 5_000)
        ) + text[at:]  # fmt: skip
    else:
        return damage_bytes(rng, data)
    return text.encode("utf-8", errors="surrogatepass")


def damage_json(rng: Random, data: bytes) -> bytes:
    """A value, anywhere in a JSON text, in place of another; a key removed, renamed or repeated."""
    try:
        whole = json.loads(data)
    except ValueError:
        return damage_text(rng, data)
    if rng.random() < 0.25:
        return damage_text(rng, data)
    if rng.random() < 0.08 or not isinstance(whole, dict | list) or not whole:
        whole = _value(rng)
    else:
        parents: list[Any] = []
        _containers(whole, parents)
        # Each level is as likely as the many values far inside.
        parent = rng.choice(rng.choice((parents[:1], parents[:20], parents)))
        key = rng.choice(list(parent)) if isinstance(parent, dict) else rng.randrange(len(parent))
        way = rng.choice(("value", "value", "value", "remove", "name", "deep", "copy"))
        if way == "value":
            parent[key] = _value(rng)
        elif way == "remove":
            del parent[key]
        elif way == "deep":
            parent[key] = "@deep@"
        elif way == "name" and isinstance(parent, dict):
            parent[_texts(rng)] = parent.pop(key)
        elif isinstance(parent, list):
            parent += [parent[key]] * rng.choice((1, 500))
    text = json.dumps(whole, ensure_ascii=rng.random() < 0.8)
    text = text.replace('"@deep@"', deep(rng.choice((500, 50_000))))
    return text.encode("utf-8", errors="surrogatepass")


def _containers(value: Any, found: list[Any]) -> None:
    if isinstance(value, dict | list) and value:
        found.append(value)
        for one in value.values() if isinstance(value, dict) else value:
            _containers(one, found)


def damage_jsonl(rng: Random, data: bytes) -> bytes:
    lines = data.splitlines()
    if not lines or rng.random() < 0.3:
        return damage_text(rng, data)
    at = rng.randrange(len(lines))
    lines[at] = damage_json(rng, lines[at])
    return b"\n".join(lines) + b"\n" * rng.randrange(2)


# Archives and arrays


def damage_zip(rng: Random, data: bytes) -> bytes:
    """A zip file written anew with one member damaged, renamed, repeated, left out or packed."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    way = rng.choice(
        ("content", "content", "content", "name", "remove", "repeat", "empty", "method")
    )
    if way == "content":
        members[at] = (name, damage(rng, name, content))
    elif way == "name":
        members[at] = (name.rpartition("/")[0] + "/" + _texts(rng)[:60_000], content)
    elif way == "remove":
        del members[at]
    elif way == "repeat":
        members += [members[at]] * rng.choice((1, 300))
    elif way == "empty":
        members[at] = (name, b"")
    method = rng.choice((zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA))
    file = io.BytesIO()
    with warnings.catch_warnings(action="ignore"), zipfile.ZipFile(file, "w") as archive:
        for one, inner in members:
            archive.writestr(one, inner, compress_type=method if way == "method" else None)
    return file.getvalue()


def damage_tar(rng: Random, data: bytes) -> bytes:
    """A tar written anew with one member's content, name, type or size changed."""
    with tarfile.open(fileobj=io.BytesIO(data)) as archive:
        members = [(info, (archive.extractfile(info) or io.BytesIO()).read()) for info in archive]
    at = rng.randrange(len(members))
    info, content = members[at]
    way = rng.choice(("content", "content", "content", "name", "kind", "remove", "repeat", "size"))
    if way == "content":
        content = damage(rng, info.name, content)
        info.size = len(content)
        members[at] = (info, content)
    elif way == "name":
        info.name = _texts(rng) + rng.choice(("", ".json", ".s2.npy"))
        info.pax_headers = {}
    elif way == "kind":
        kinds = (tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE, tarfile.CHRTYPE, tarfile.DIRTYPE,
                 tarfile.GNUTYPE_SPARSE, tarfile.CONTTYPE, b"Z", tarfile.XHDTYPE)  # fmt: skip
        info.type, info.linkname = rng.choice(kinds), "../../victim"
    elif way == "remove":
        del members[at]
    elif way == "repeat":
        members += [members[at]] * rng.choice((1, 200))
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w", format=rng.choice((0, 1, 2))) as archive:
        for number, (one, inner) in enumerate(members):
            header = one.tobuf(tarfile.PAX_FORMAT, errors="surrogateescape")
            if way == "size" and number == at:
                header = _resized(rng, header)
            archive.fileobj.write(header + inner + bytes(-len(inner) % 512))  # type: ignore[union-attr]
        archive.offset = file.tell()
    return file.getvalue()


def _resized(rng: Random, header: bytes) -> bytes:
    """A tar header with another size, and its checksum made right."""
    size = rng.choice((b"77777777777\0", b"\x80" + b"\xff" * 11, b"\xff" * 12, b"00000000000\0",
                       b"-0000000001\0", b"            "))  # fmt: skip
    block = bytearray(header[-512:])
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return header[:-512] + bytes(block)


def damage_npy(rng: Random, data: bytes) -> bytes:
    """An array with another header, its length made right."""
    length = int.from_bytes(data[8:10], "little")
    header = data[10 : 10 + length].decode("latin-1")
    shape = rng.choice(
        ("()", "(0,)", "(-1, 3)", "(True, 2)", f"({2**62}, 8)", f"({2**63}, 0)", "(1e9, 2)", "None",
         "(3,) * 9", "('a',)", "(" + "1," * 40 + ")", "(9999999, 9999)", "[3, 6, 6]")
    )  # fmt: skip
    dtype = rng.choice(("'|O'", "'<f8'", "'<U9999999'", "'|V0'", "'|S0'", "[('a', '<u2')]", "None",
                        "'<M8[ns]'", "'>u2'", "'<c16'", "1", "'" + "x" * 5_000 + "'", "'|b1'"))  # fmt: skip
    header = rng.choice(
        (
            re.sub(r"'shape': .*?\)", lambda _: f"'shape': {shape}", header),
            re.sub(r"'descr': '.*?'", lambda _: f"'descr': {dtype}", header),
            header.replace("False", "True"),
            header.replace("'descr'", "'other'"),
            deep(9_000) + "\n",
            "-" * 9_000 + "1\n",
            damage_text(rng, header.encode()).decode("latin-1"),
        )
    )
    return (
        data[:8]
        + struct.pack("<H", len(header) % 65_536)
        + header.encode("latin-1")
        + data[10 + length :]
    )


def damage_safetensors(rng: Random, data: bytes) -> bytes:
    """Tensors with another header, its length made right."""
    length = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + length])
    name = rng.choice([one for one in header if one != "__metadata__"])
    way = rng.choice(("shape", "shape", "dtype", "offsets", "name", "any", "any"))
    if way == "shape":
        header[name]["shape"] = rng.choice(
            (
                [],
                [0],
                [0, 2**63],
                [0, 2**62, 8],
                [-1],
                [2**32, 2**32],
                [1] * 200,
                ["a"],
                None,
                [1.5],
            )
        )
    elif way == "dtype":
        header[name]["dtype"] = rng.choice(
            ("F64", "U8", "BOOL", "F8_E4M3", "x" * 9_000, None, 1, "F4")
        )
    elif way == "offsets":
        header[name]["data_offsets"] = rng.choice(([0, 0], [0, 2**63], [-1, 4], [8, 0], [], None))
    elif way == "name":
        header[_texts(rng)] = header.pop(name)
    text = json.dumps(header).encode()
    if way == "any":
        text = damage_json(rng, text)
    return struct.pack("<Q", len(text)) + text + data[8 + length :]


# Tables


def damage_parquet(rng: Random, data: bytes) -> bytes:
    """A table written anew: a column of another type or without values, rows repeated, metadata."""
    table = pq.read_table(io.BytesIO(data))
    at = rng.randrange(table.num_columns)
    field = table.schema.field(at)
    rows = len(table)
    way = rng.choice(
        ("type", "type", "type", "null", "drop", "name", "rows", "meta", "meta", "value")
    )
    if way == "type":
        column = rng.choice(
            (
                lambda: pa.array([rng.choice(EXTREMES[:-1]) for _ in range(rows)], pa.int64()),
                lambda: pa.array([rng.choice((float("nan"), float("inf"), 1e308))] * rows),
                lambda: pa.array([b"\xff\xfe\x00" * 9] * rows, pa.binary()),
                lambda: pa.array([_texts(rng)] * rows, pa.string()),
                lambda: pa.array([[_texts(rng)] * 3] * rows),
                lambda: pa.array([None] * rows, pa.null()),
                lambda: pa.array([{"xmin": 1.0, "b": None}] * rows),
                lambda: pa.array([True] * rows),
                lambda: pa.array([2**62] * rows, pa.timestamp("us")),
                lambda: pa.array([-(2**30)] * rows, pa.date32()),
                lambda: pa.array(["x" * 100_000] * rows).dictionary_encode(),
                lambda: pa.array([1] * rows, pa.decimal128(38, 2)),
                lambda: pa.array([[1.0]] * rows, pa.list_(pa.float64(), 1)),
            )
        )()  # fmt: skip
        table = table.set_column(at, field.name, column)
    elif way == "null":
        values = table.column(at).to_pylist()
        values[rng.randrange(rows)] = None
        table = table.set_column(at, field.name, pa.array(values, field.type))
    elif way == "value" and pa.types.is_string(field.type):
        values = table.column(at).to_pylist()
        values[rng.randrange(rows)] = _texts(rng)
        table = table.set_column(at, field.name, pa.array(values, field.type))
    elif way == "drop":
        table = table.remove_column(at)
    elif way == "name":
        names = table.column_names
        names[at] = rng.choice((_texts(rng), names[at - 1]))
        table = table.rename_columns(names)
    elif way == "rows":
        table = pa.concat_tables([table] * 300) if rng.random() < 0.5 else table.slice(0, 0)
    elif table.schema.metadata:
        metadata = dict(table.schema.metadata)
        key = rng.choice(list(metadata))
        metadata[key] = damage_json(rng, metadata[key])
        table = table.replace_schema_metadata(metadata)
    file = io.BytesIO()
    pq.write_table(table, file, compression=rng.choice(("none", "zstd", "snappy", "gzip")))
    return file.getvalue()


# Pictures and rasters


def damage_png(rng: Random, data: bytes) -> bytes:
    """A PNG with one chunk's content, type, place or number changed, its CRC made right."""
    chunks, at = [], 8
    while at + 8 <= len(data):
        length = int.from_bytes(data[at : at + 4], "big")
        chunks.append((data[at + 4 : at + 8], data[at + 8 : at + 8 + length]))
        at += 12 + length
    number = rng.randrange(len(chunks))
    kind, content = chunks[number]
    way = rng.choice(("content", "content", "header", "kind", "repeat", "remove", "text", "move"))
    if way == "content":
        chunks[number] = (kind, damage_bytes(rng, content))
    elif way == "header":
        sizes = [rng.choice((0, 1, 40, 9_000, 100_000, 2**31 - 1)) for _ in range(2)]
        form = (rng.choice((1, 2, 4, 8, 16)), rng.choice((0, 2, 3, 4, 6)), 0, 0, rng.randrange(2))
        chunks[0] = (b"IHDR", struct.pack(">II5B", *sizes, *form))
    elif way == "kind":
        kinds = (b"IDAT", b"PLTE", b"tRNS", b"IEND", b"acTL", b"fdAT", b"eXIf", b"iCCP", b"ABCD")
        chunks[number] = (rng.choice(kinds), content)
    elif way == "repeat":
        chunks[number:number] = [(kind, content)] * rng.choice((1, 3_000))
    elif way == "remove":
        del chunks[number]
    elif way == "move":
        chunks.insert(rng.randrange(len(chunks)), chunks.pop(number))
    else:
        packed = zlib.compress(b"x" * rng.choice((10, 30_000_000)))
        texts = ((b"zTXt", b"a\0\0" + packed), (b"iCCP", b"a\0\0" + packed),
                 (b"iTXt", b"a\0\1\0\0\0" + packed), (b"tEXt", b"a" * 90 + b"\0b"))  # fmt: skip
        chunks.insert(rng.randrange(1, len(chunks)), rng.choice(texts))
    return data[:8] + b"".join(
        struct.pack(">I", len(one)) + name + one + struct.pack(">I", zlib.crc32(name + one))
        for name, one in chunks
    )


def damage_tiff(rng: Random, data: bytes) -> bytes:
    """A TIFF with one tag's type, count, value or number changed."""
    big = data[2:4] == b"\x2b\0"
    start = struct.unpack_from("<Q" if big else "<I", data, 8 if big else 4)[0]
    count = struct.unpack_from("<Q" if big else "<H", data, start)[0]
    size, first = (20, start + 8) if big else (12, start + 2)
    at = first + size * rng.randrange(count)
    content = bytearray(data)
    way = rng.choice(("value", "value", "value", "count", "kind", "number", "loop"))
    word, form = (8, "<Q") if big else (4, "<I")
    extreme = struct.pack(form, rng.choice(EXTREMES) % 2 ** (8 * word))
    if way == "value":
        content[at + size - word : at + size] = extreme
    elif way == "count":
        content[at + 4 : at + 4 + word] = extreme
    elif way == "kind":
        content[at + 2 : at + 4] = struct.pack(
            "<H", rng.choice((0, 1, 2, 3, 4, 5, 7, 12, 13, 16, 99))
        )
    elif way == "number":
        tags = (
            256,
            257,
            258,
            259,
            262,
            277,
            278,
            317,
            322,
            323,
            324,
            330,
            339,
            347,
            33550,
            34735,
            42112,
        )
        content[at : at + 2] = struct.pack("<H", rng.choice(tags))
    else:
        content[first + size * count : first + size * count + word] = struct.pack(form, start)
    return bytes(content)


# One file, and a folder


def damage(rng: Random, name: str, data: bytes, donor: bytes = b"") -> bytes:
    """The content of one file, damaged by its format half of the time."""
    if rng.random() < 0.4:
        return damage_bytes(rng, data, donor)
    way = _way(name, data)
    try:
        return way(rng, data) if way else damage_bytes(rng, data, donor)
    except Exception:  # a member that is damaged already
        return damage_bytes(rng, data, donor)


def _way(name: str, data: bytes) -> Callable[[Random, bytes], bytes] | None:
    ending = os.path.splitext(name)[1].lower()
    if data.startswith(b"PK"):
        return damage_zip
    if data.startswith(b"\x93NUMPY"):
        return damage_npy
    if data.startswith(b"\x89PNG"):
        return damage_png
    if data.startswith((b"II*\0", b"II+\0")):
        return damage_tiff
    if data.startswith(b"PAR1"):
        return damage_parquet
    ways = {".json": damage_json, ".jsonl": damage_jsonl, ".tar": damage_tar,
            ".safetensors": damage_safetensors}  # fmt: skip
    if ending in ways:
        return ways[ending]
    return damage_text if ending in (".toml", ".txt", ".csv", ".xml", ".md", ".cls") else None


def damage_folder(
    folder: Path, rng: Random, kept: Sequence[str], donors: Sequence[Path]
) -> list[str]:
    """Damage one file of a folder, seldom two; returns what was done, each with the file's path."""
    done = []
    for _ in range(rng.choice((1, 1, 1, 1, 2))):
        files = sorted(
            one
            for one in folder.rglob("*")
            if one.is_file() and not one.name.endswith(tuple(kept) or "\0")
        )
        if not files:
            break
        # Kinds of files, not their number, decide which is damaged.
        ending = rng.choice(sorted({one.suffix for one in files}))
        file = rng.choice([one for one in files if one.suffix == ending])
        name = str(file.relative_to(folder))
        if rng.random() < 0.06:
            done.append(f"{name}: {_become(rng, file)}")
            continue
        donor = rng.choice(donors).read_bytes() if donors and rng.random() < 0.3 else b""
        file.write_bytes(damage(rng, file.name, file.read_bytes(), donor))
        done.append(f"{name}: damaged")
    return done


def _become(rng: Random, file: Path) -> str:
    """Put something else in the place of a file."""
    what = rng.choice(("missing", "empty", "folder", "broken link", "link", "loop", "cut", "pipe"))
    content = file.read_bytes()
    file.unlink()
    if what == "empty":
        file.write_bytes(b"")
    elif what == "folder":
        file.mkdir()
    elif what == "broken link":
        file.symlink_to("nowhere")
    elif what == "loop":
        file.symlink_to(file.name)
    elif what == "link":
        file.symlink_to(os.path.relpath(file.parent, file.parent) + "/../" * 9 + "dev/null")
    elif what == "cut":
        file.write_bytes(content[:10])
    elif what == "pipe":
        os.mkfifo(file)
    return what
