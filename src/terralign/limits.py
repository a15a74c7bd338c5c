"""What readers take of one file at most, so that no file takes all memory or time.

A machine with 4 GB of memory survives each limit. The environment variable `TERRALIGN_LIMITS`
changes them: `TERRALIGN_LIMITS=picture_pixels=4e8,array_bytes=8GiB`.
"""

from __future__ import annotations

import functools
import math
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from terralign.errors import DataError, RecipeError, TerralignError, nearest, printable

VARIABLE = "TERRALIGN_LIMITS"
"""The environment variable that changes limits: NAME=NUMBER, separated by commas."""

_UNITS = {"": 1, "k": 10**3, "m": 10**6, "g": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}

LIMITS: dict[str, int] = {
    "array_bytes": 2**30,  # of the arrays in one NumPy file
    "block_bytes": 384 * 2**20,  # of one tile or strip of a raster, with all bands that it holds
    "bmp_rle_bytes": 16 * 2**20,  # of a BMP that is compressed, which Pillow decodes in Python
    "captions_bytes": 40 * 2**20,  # of the JSON file that names images and their captions
    "checkpoint_records": 100_000,  # members of an archive that torch wrote: one for each tensor
    "checkpoint_values": 2_000_000,  # texts, numbers and the like in its pickle; a tensor is ten
    "chip_bytes": 1280 * 2**20,  # of pixels that are read at once, with their masks and copies
    "class_names": 100_000,  # in one file, each of which the text tower embeds
    "folder_depth": 32,  # of folders within folders; deeper ones are skipped
    "folder_entries": 2_000_000,  # files and folders below one folder
    "folder_inputs": 1_000_000,  # inputs below one folder
    "geometry_points": 100_000,  # of one footprint
    "index_parts": 1_000_000,  # of one folder of embedded scenes
    "index_rows": 2_000_000_000,  # windows of one folder of embedded scenes
    "jpeg_scans": 200,  # of one JPEG; progressive ones have some ten
    "jpeg_segments": 5_000,  # of one JPEG before its pixels; an ICC profile has up to 255
    "json_bytes": 256 * 2**20,  # of one JSON file
    "json_values": 10_000_000,  # numbers, texts, lists and tables in it
    "label_values": 400_000_000,  # samples times classes of one data set with several labels each
    "manifest_bytes": 32 * 2**20,  # of a packed store's: some 300 a shard
    "map_pixels": 1_000_000_000,  # of one map of scores
    "model_layers": 1000,  # of one tower, by its configuration
    "model_numbers": 2**24,  # of any other size in a configuration; beside the weights of a model
    "model_patches": 2**18,  # of one picture: its size over that of a patch, squared
    "model_tokens": 8192,  # of a text tower's context
    "parquet_footer_bytes": 32 * 2**20,  # names, types and places of columns in one Parquet file
    "part_rows": 20_000_000,  # windows of one part
    "pickle_bytes": 16 * 2**20,  # of a checkpoint, beside the numbers of its tensors
    "picture_pixels": 89_478_485,  # of one picture: where Pillow begins to warn
    "picture_rows": 500_000,  # of one picture, each of which takes memory of its own
    "png_chunks": 200_000,  # of one PNG
    "product_files": 5_000,  # in a product's folder; real ones have some dozens
    "prompt_templates": 10_000,  # of one prompt set
    "raster_bands": 5_000,  # of one raster
    "raster_rows": 4_000_000,  # of one raster; the whole globe has as many of 5 m
    "safetensors_header_bytes": 8 * 2**20,  # names, types and shapes of a file of tensors
    "scene_windows": 4_000_000,  # that one scene is cut into
    "sensor_bands": 2_000,  # of one sensor, with its composites
    "stac_assets": 1_000,  # of one STAC item
    "stac_items": 100_000,  # of one item collection
    "study_runs": 2_000,  # variants times seeds, each of which is checked before the first runs
    "table_bytes": 512 * 2**20,  # of the columns that are read of one table, decoded
    "table_rows": 10_000_000,  # of one table
    "table_values": 10_000_000,  # texts, and values in lists, in the columns that are read of it
    "tars": 100_000,  # that the patterns of one split name
    "text_bytes": 16 * 2**20,  # of any other text file
    "tiff_pages": 2_000,  # of one TIFF, with its overviews and masks
    "tiff_tag_bytes": 64 * 2**20,  # of what the tags of one TIFF point to
    "tiff_tags": 65_535,  # of one page of a TIFF
    "toml_bytes": 2**20,  # of one TOML file
    "toml_key_parts": 64,  # of a dotted key
    "toml_levels": 80,  # of tables and lists within each other
    "training_steps": 1_000_000_000,  # of one stage
    "unpacked_bytes": 256 * 2**30,  # of the files of an archive that `fetch` unpacks
    "vector_bytes": 2**29,  # of the vectors in one file, with their keys and places
    "webp_alpha_pixels": 78_000_000,  # of one WebP with alpha, whose decoder holds four copies
    "weight_name_characters": 1000,  # of the name of one tensor in a file of weights
    "word_characters": 1000,  # without a space, in a class name, prompt or caption
    "xml_bytes": 2 * 2**20,  # of one metadata file of a product
    "zip_file_bytes": 4 * 2**30,  # of one raster in an archive
    "zip_index_bytes": 16 * 2**20,  # names and sizes of the files in an archive
}
"""The limits by name. Those in bytes end with `_bytes`; all others are counts."""


def limit(name: str) -> int:
    """A limit, as `TERRALIGN_LIMITS` sets it; `RecipeError` where that is not understood."""
    return _changed(os.environ.get(VARIABLE, "")).get(name, LIMITS[name])


def require(
    name: str, given: int, what: str, *, fault: type[TerralignError] = DataError, todo: str = ""
) -> None:
    """Raise `fault` where `given` is more than the limit `name`.

    `what` begins the message ("FILE has 12x8 pixels:"); `todo`: the remedy.
    """
    if given > limit(name):
        raise fault(beyond(name, given, what, todo=todo))


def beyond(name: str, given: int | None, what: str, *, todo: str = "") -> str:
    """The message of a limit that is exceeded. `given`: None where it was not counted further."""
    most = limit(name)
    found = f"{what}{'' if given is None else ' ' + _shown(name, given) + ','}"
    setting = f"{VARIABLE}={name}={_round(given or most)}"
    return (
        f"{found} more than the limit of {_shown(name, most)}; "
        f"{todo + ', or ' if todo else ''}set {setting} if you trust the file"
    )


@contextmanager
def enough_memory(
    what: str, *, fault: type[TerralignError] = DataError, todo: str = "cut it into smaller files"
) -> Iterator[None]:
    """Raise `fault` where the block, which works on the file `what`, finds too little memory."""
    try:
        yield
    except (MemoryError, RuntimeError) as error:
        of_device = type(error).__name__ == "OutOfMemoryError"  # torch's; it is not imported here
        if isinstance(error, RuntimeError) and not (
            of_device or "DefaultCPUAllocator" in str(error)
        ):
            raise
        reason = f" ({printable(str(error))[:100]})" if isinstance(error, MemoryError) else ""
        reason = "" if reason == " ()" else reason
        raise fault(f"{what} needs more memory than there is{reason}; {todo}") from error


def _shown(name: str, number: int) -> str:
    if not name.endswith("_bytes"):
        return f"{number:,} {name.rpartition('_')[2]}"
    for unit, size in (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10)):
        if number >= size:
            return f"{number / size:.4g} {unit}"
    return f"{number} bytes"


def _round(number: int) -> str:
    """A setting that is at least the number, with two digits."""
    size = 10 ** max(0, len(str(number)) - 2)
    return f"{math.ceil((number + 1) / size) * size:.15g}"


@functools.lru_cache(maxsize=1)
def _changed(text: str) -> dict[str, int]:
    changed = {}
    for part in filter(None, (one.strip() for one in text.split(","))):
        name, _, value = (one.strip() for one in part.partition("="))
        if name not in LIMITS:
            raise RecipeError(f"{VARIABLE}: no limit {printable(name)!r}; {nearest(name, LIMITS)}")
        found = re.fullmatch(r"(\d+(?:\.\d+)?(?:e\d{1,2})?)\s*([a-z]*)", value.lower())
        if found is None or found[2] not in _UNITS:
            raise RecipeError(
                f"{VARIABLE}: {name} is {printable(value)!r}; expected a number, as in 4e8 or 2GiB"
            )
        changed[name] = int(float(found[1]) * _UNITS[found[2]])
    return changed
