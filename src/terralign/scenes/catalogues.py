"""Where STAC items come from: files, addresses, stac-geoparquet, searches of an API, pystac.

Everything read is bounded (see `limits`) and untrusted.
"""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl

import pyarrow as pa
import pyarrow.parquet as pq
import shapely
from shapely.errors import ShapelyError

from terralign.errors import DataError, first_line, nearest, printable, shown
from terralign.files import read_json
from terralign.limits import limit, require
from terralign.scenes.declared import Declared
from terralign.scenes.remote import Signer
from terralign.scenes.scene import Scene
from terralign.scenes.stac import StacItem, each_feature, open_item, read_item
from terralign.scenes.web import TIMEOUT_S, fetch_json

SEARCH = "stac:"
"""What a search of an API begins with: `stac:https://HOST/v1?collections=...&bbox=...`."""

_NUMBERS = {"max_items", "limit"}
_LISTS = {"collections", "ids", "sortby", "fields"}
_SEARCH_KEYS = {*_LISTS, *_NUMBERS, "bbox", "datetime", "query", "filter"}


def is_catalogue(source: Path | str) -> bool:
    """Whether a path or address is of STAC items: a search, an address, a `.json` file, or
    stac-geoparquet."""
    text = str(source)
    if is_remote_source(text):
        return True
    path = Path(text)
    if path.suffix.lower() in (".json", ".geojson"):
        return path.is_file()
    return path.suffix.lower() in (".parquet", ".geoparquet") and _is_stac_parquet(path)


def is_remote_source(text: str) -> bool:
    """Whether a source is a search of an API, or an address."""
    return text.startswith((SEARCH, "https://", "http://"))


def read_items(source: Any, *, signer: Signer | None = None) -> Iterator[StacItem]:
    """The items of a source, one after another.

    `source`: a file of an item, an item collection or a list of items; a stac-geoparquet file; the
    http or https address of one of these in JSON; a search,
    `stac:https://HOST/v1?collections=A,B&bbox=W,S,E,N&datetime=FROM/TO&max_items=N`; the values of
    an item; or pystac's objects. `signer`: gives the address to open for that of an asset; by
    default Planetary Computer's are signed.

    Raises `DataError` where a source cannot be read, or holds something else.
    """
    if isinstance(source, str | Path):
        text = str(source)
        if text.startswith(SEARCH):
            yield from _search(text, signer)
        elif is_remote_source(text):
            yield from _fetched(text, signer)
        elif text.lower().endswith((".parquet", ".geoparquet")):
            yield from _of_parquet(Path(text), signer)
        else:
            yield from _of_json(Path(text), signer)
    elif isinstance(source, dict):
        yield from _of_values(source, origin="the STAC values", base="", signer=signer)
    elif is_pystac(source):
        yield from _of_pystac(source, signer)
    else:
        raise DataError(f"a {type(source).__name__} holds no STAC items; give a file or pystac's")


def open_only(source: Any, declared: Declared, *, signer: Signer | None = None) -> Scene:
    """The scene of a source of a single item; `DataError` where it holds several."""
    items = list(itertools.islice(read_items(source, signer=signer), 2))
    if len(items) != 1:
        what = "several items" if items else "no items"
        raise DataError(
            f"{printable(str(source)[:200])} holds {what}; expected one (`read_items` gives each)"
        )
    return open_item(items[0], declared)


def _of_values(value: Any, *, origin: str, base: str, signer: Signer | None) -> Iterator[StacItem]:
    features = list(each_feature(value, origin=origin))
    for number, feature in enumerate(features):
        which = origin if len(features) == 1 else f"{origin}, item {number}"
        yield read_item(feature, origin=which, base=base, signer=signer)


def _of_json(path: Path, signer: Signer | None) -> Iterator[StacItem]:
    value = read_json(path, what="STAC items", fault=DataError)
    whole = isinstance(value, dict) and value.get("type") == "Feature"
    for item in _of_values(value, origin=shown(path), base=str(path), signer=signer):
        yield replace(item, key=str(path) if whole else f"{path}#{item.id}")


def _fetched(url: str, signer: Signer | None) -> Iterator[StacItem]:
    """The items at an address, and on the pages that follow."""
    following: str | None = url
    num_items = 0
    while following is not None:
        value = fetch_json(following)
        base, shown_url = following, printable(url.split("?", 1)[0])
        for item in _of_values(value, origin=shown_url, base=base, signer=signer):
            num_items += 1
            require("stac_items", num_items, f"{shown_url} gives")
            yield item
        following = _next_page(value, following)


def _next_page(value: Any, current: str) -> str | None:
    links = value.get("links") if isinstance(value, dict) else None
    if not isinstance(value, dict) or value.get("type") != "FeatureCollection":
        return None
    for link in links if isinstance(links, list) else []:
        if isinstance(link, dict) and link.get("rel") == "next":
            href, method = link.get("href"), link.get("method", "GET")
            if method != "GET":
                raise DataError(
                    f"{printable(current.split('?', 1)[0])} gives further pages by {method!r}; "
                    f"write the search as {SEARCH}https://HOST?collections=..."
                )
            return href if isinstance(href, str) and href != current else None
    return None


# stac-geoparquet


def _is_stac_parquet(path: Path) -> bool:
    try:
        names = set(pq.read_schema(path).names)
    except (OSError, pa.ArrowException):
        return False
    return {"assets", "id", "geometry"} <= names


def _of_parquet(path: Path, signer: Signer | None) -> Iterator[StacItem]:
    """Rows as items: top-level columns are properties, geometry is WKB (see stac-geoparquet)."""
    try:
        with pq.ParquetFile(path) as file:
            require("stac_items", file.metadata.num_rows, f"{shown(path)} has")
            for batch in file.iter_batches(batch_size=500):
                for row in batch.to_pylist():
                    values = _row_values(row, path)
                    item = read_item(values, origin=shown(path), base=str(path), signer=signer)
                    yield replace(item, key=f"{path}#{item.id}")
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{shown(path)} is no readable Parquet: {first_line(error)}") from error


_OF_THE_ITEM = {"type", "stac_version", "stac_extensions", "id", "bbox", "geometry", "links"}
_OF_THE_ITEM |= {"assets", "collection"}


def _row_values(row: dict[str, Any], path: Path) -> dict[str, Any]:
    geometry = row.get("geometry")
    if isinstance(geometry, bytes):
        require("geometry_points", len(geometry) // 16, f"{shown(path)} has a footprint of")
        try:
            geometry = dict(shapely.geometry.mapping(shapely.from_wkb(geometry)))
        except (ShapelyError, ValueError) as error:
            raise DataError(f"{shown(path)}: a geometry is damaged: {first_line(error)}") from error
    box = row.get("bbox")
    if isinstance(box, dict):
        box = [box.get(key) for key in ("xmin", "ymin", "xmax", "ymax")]
    assets = row.get("assets")
    pairs = assets.items() if isinstance(assets, dict) else assets or []
    return {
        **{key: row.get(key) for key in ("id", "collection")},
        "type": "Feature",
        "geometry": geometry,
        "bbox": box,
        "assets": {key: _without_nulls(asset) for key, asset in pairs if asset is not None},
        "properties": {
            key: value
            for key, value in row.items()
            if key not in _OF_THE_ITEM and value is not None
        },
    }


def _without_nulls(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _without_nulls(one) for key, one in value.items() if one is not None}
    return [_without_nulls(one) for one in value] if isinstance(value, list) else value


# APIs and pystac

_NO_API = (ValueError, TypeError, KeyError, NotImplementedError)
"""What pystac raises of answers that no API gives."""


def _search(text: str, signer: Signer | None) -> Iterator[StacItem]:
    """The items that an API finds; the extra `stac` (pystac-client)."""
    url, _, query = text.removeprefix(SEARCH).partition("?")
    parameters = _parameters(query, text)
    try:
        from pystac_client import Client
        from pystac_client.exceptions import APIError
    except ImportError as error:
        raise DataError(
            f"{SEARCH} needs pystac-client: pip install 'terralign[stac]'; a saved item collection "
            "needs nothing"
        ) from error
    import requests

    if not url.startswith(("https://", "http://")):
        raise DataError(
            f"{printable(text[:200])!r}: expected {SEARCH}https://HOST/...?collections=..."
        )
    most = min(int(parameters.pop("max_items", limit("stac_items"))), limit("stac_items"))
    try:
        client = Client.open(url, timeout=TIMEOUT_S)
        methods = {link.extra_fields.get("method") for link in client.get_links("search")}
        method = "POST" if "POST" in methods else "GET"
        found = client.search(method=method, max_items=most, **parameters)
        for page in found.pages_as_dicts():
            yield from _of_values(page, origin=printable(url), base=url, signer=signer)
    except (APIError, requests.RequestException, *_NO_API) as error:
        raise DataError(f"{printable(url)} does not search: {first_line(error)}") from error


def _parameters(query: str, text: str) -> dict[str, Any]:
    """The parameters of a search, as pystac-client takes them."""
    example = "collections=sentinel-2-l2a&bbox=13,52,13.5,52.5&datetime=2024-06/2024-08"
    parameters: dict[str, Any] = {}
    for key, value in parse_qsl(query, keep_blank_values=True, max_num_fields=100):
        if key not in _SEARCH_KEYS:
            raise DataError(f"{SEARCH}...?{printable(key)}=: {nearest(key, _SEARCH_KEYS)}")
        if key in _NUMBERS:
            if not value.isdecimal() or not int(value):
                raise DataError(f"{SEARCH}...?{key}={printable(value)}: expected a number from 1")
            parameters[key] = int(value)
        elif key == "bbox":
            parameters[key] = _box(value)
        elif key == "query":
            parameters.setdefault(key, []).append(value)
        elif key == "filter":
            parameters |= {"filter": value, "filter_lang": "cql2-text"}
        else:
            parameters[key] = value.split(",") if key in _LISTS else value
    if "collections" not in parameters and "ids" not in parameters:
        raise DataError(f"{printable(text[:200])!r} names no collections; expected ...?{example}")
    return parameters


def _box(value: str) -> list[float]:
    try:
        box = [float(one) for one in value.split(",")]
    except ValueError:
        box = []
    if len(box) != 4 or not (box[1] <= box[3] and max(map(abs, box)) <= 360):
        raise DataError(f"bbox={printable(value[:100])}: expected west,south,east,north in degrees")
    return box


def is_pystac(one: Any) -> bool:
    """Whether a value is an item or an item collection of pystac."""
    module = type(one).__module__
    return re.match(r"pystac(\.|$)", module) is not None and hasattr(one, "to_dict")


def _of_pystac(one: Any, signer: Signer | None) -> Iterator[StacItem]:
    values: Iterable[Any] = [one] if not hasattr(one, "items") else list(one)
    for item in values:
        href = item.get_self_href() or ""
        base = href if "://" in href or Path(href).is_absolute() else ""
        yield from _of_values(
            item.to_dict(include_self_link=False, transform_hrefs=False),
            origin=f"item {printable(str(item.id))}", base=base, signer=signer,
        )  # fmt: skip
