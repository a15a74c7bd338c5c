"""Vectors in files of strangers, and footprints."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import shapely

from terralign.chips import Window
from terralign.encoders.vectors import Embeddings, Footprint
from terralign.errors import DataError, TerralignError


def _embeddings(num: int = 4, dim: int = 8) -> Embeddings:
    numbers = np.random.default_rng(0).normal(size=(num, dim))
    numbers /= np.linalg.norm(numbers, axis=1, keepdims=True)
    return Embeddings(
        keys=tuple(f"tile-{row}" for row in range(num)),
        vectors=numbers.astype(np.float32),
        space_id="space",
        towers=("rgb",) * num,
        tower_ids={"rgb": "tower"},
        places=tuple(
            Footprint(
                source="scene.tif",
                window=Window(row=row, column=0, height=8, width=8),
                shape=shapely.box(row, 0, row + 1, 1),
            )
            for row in range(num)
        ),
        valid_shares=np.ones(num, dtype=np.float32),
        model="runs/m",
    )


def _rewrite(path: Path, change: Any) -> None:
    """The file with its table, or its footer's values, changed."""
    table = pq.read_table(path)
    metadata = {name: json.loads(value) for name, value in table.schema.metadata.items()}
    table = change(table, metadata) or table
    pq.write_table(
        table.replace_schema_metadata({k: json.dumps(v) for k, v in metadata.items()}), path
    )


def _column(name: str, values: Any) -> Any:
    def change(table: pa.Table, metadata: Any) -> pa.Table:
        return table.set_column(table.column_names.index(name), name, pa.array(values))

    return change


def _footer(key: str, value: Any) -> Any:
    def change(table: pa.Table, metadata: Any) -> None:
        metadata[b"terralign"][key] = value

    return change


@pytest.mark.parametrize(
    "change",
    [
        _footer("tower_ids", ["rgb"]),
        _footer("tower_ids", None),
        _footer("tower_ids", {"s2": "tower"}),
        _column("datetime", [2**62] * 4),
        _column("datetime", ["yesterday"] * 4),
        _column("key", [None, "a", "b", "c"]),
        _column("tower", [1, 2, 3, 4]),
        _column("geometry", [b"no geometry"] * 4),
        lambda table, metadata: table.drop_columns(["window_row"]),
        lambda table, metadata: table.drop_columns(["vector"]),
    ],
)
def test_what_is_no_file_of_vectors_is_one_line(tmp_path: Path, change: Any) -> None:
    path = _embeddings().save(tmp_path / "a.parquet")
    _rewrite(path, change)
    with pytest.raises(DataError, match=r"a\.parquet") as caught:
        Embeddings.load(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("factor", [np.nan, np.inf, 5e30, 0.9])
def test_vectors_that_are_not_of_unit_length_are_refused(tmp_path: Path, factor: float) -> None:
    path = _embeddings().save(tmp_path / "a.parquet")
    wrong = _embeddings().vectors.copy()
    wrong[2] *= factor
    kind = pq.read_schema(path).field("vector").type
    _rewrite(
        path, _column("vector", pa.FixedSizeListArray.from_arrays(wrong.reshape(-1), type=kind))
    )
    with pytest.raises(DataError, match="not of unit length"):
        Embeddings.load(path)


def test_a_changed_byte_is_noticed(tmp_path: Path) -> None:
    path = _embeddings(num=500).save(tmp_path / "a.parquet")
    content = bytearray(path.read_bytes())
    for start in range(len(content) // 4, len(content) * 3 // 4, len(content) // 16):
        changed = content.copy()
        changed[start : start + 20] = bytes(255 - one for one in changed[start : start + 20])
        path.write_bytes(changed)
        with pytest.raises(TerralignError):
            Embeddings.load(path)


def test_memory_is_bounded_before_it_is_taken(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A text of half a megabyte in every row is stored once, and decoded for each."""
    monkeypatch.setenv("TERRALIGN_LIMITS", "vector_bytes=64MiB")
    path = _embeddings(num=2000).save(tmp_path / "a.parquet")
    _rewrite(path, _column("key", ["x" * 2**19] * 2000))
    assert path.stat().st_size < 2**20
    with pytest.raises(DataError, match="limit of 64 MiB; split it, or set TERRALIGN_LIMITS="):
        Embeddings.load(path)


def test_geometries_nested_without_end_are_refused(tmp_path: Path) -> None:
    """GEOS would follow them until the process is killed."""
    nested = b"\x01\x07\0\0\0\x01\0\0\0" * 20_000 + b"\x01\x07\0\0\0\0\0\0\0"
    path = _embeddings().save(tmp_path / "a.parquet")
    _rewrite(path, _column("geometry", [nested] * 4))
    with pytest.raises(DataError, match="geometries of more parts than a place has"):
        Embeddings.load(path)


def test_a_footer_without_end_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "parquet_footer_bytes=1KiB")
    path = _embeddings().save(tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet has a footer of .*limit of 1 KiB"):
        Embeddings.load(path)


def test_a_file_as_large_as_its_vectors_is_read_whatever_the_limit(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TERRALIGN_LIMITS", "vector_bytes=1KiB")
    path = _embeddings(num=50, dim=512).save(tmp_path / "a.parquet")
    assert len(Embeddings.load(path)) == 50


def test_names_that_are_not_utf8_are_kept_escaped(tmp_path: Path) -> None:
    found = _embeddings(num=1)
    odd = b"\xe9.tif".decode("utf-8", "surrogateescape")
    values = {**{name: getattr(found, name) for name in found.__dataclass_fields__}, "keys": (odd,)}
    Embeddings(**values).save(tmp_path / "a.parquet")
    assert Embeddings.load(tmp_path / "a.parquet").keys == (r"\udce9.tif",)


def test_bounds_across_the_antimeridian_and_around_a_pole() -> None:
    across = shapely.MultiPolygon([shapely.box(170, 0, 180, 1), shapely.box(-180, 0, -175, 1)])
    assert Footprint(shape=across).bounds == (170, 0, -175, 1)
    pole = shapely.MultiPolygon([shapely.box(-180, -90, -45, -60), shapely.box(-45, -90, 180, -60)])
    assert Footprint(shape=pole).bounds == (-180, -90, 180, -60)
