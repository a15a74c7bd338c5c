"""The commands that take a model and imagery: classify, embed, search."""

from __future__ import annotations

import functools
import itertools
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from terralign.cli.app import (
    EXISTING,
    EXISTING_FILE,
    Command,
    device_option,
    example,
    json_option,
    main,
    option_group,
    say_loading,
    threads,
)
from terralign.cli.class_names import read_class_names, split_list
from terralign.cli.faults import name_options, report
from terralign.errors import TerralignError, counted, printable, shown
from terralign.files import find_missing
from terralign.precision import PRECISIONS
from terralign.progress import beside_bars

if TYPE_CHECKING:
    from terralign.encoders.answers import Classified
    from terralign.encoders.space import EmbeddingSpace
    from terralign.encoders.vectors import Fault
    from terralign.scenes.scene import Scene
    from terralign.sensors import Sensor

MAX_ALIKE = 3
"""Faults of one cause that are reported one by one."""

MAX_LINES = 20
"""Windows of one scene that are printed; --json and --geojson have all."""


def _window(context: click.Context, option: click.Parameter, value: str | None) -> int | str | None:
    """A number of pixels, or "whole"."""
    if value is None or value == "whole":
        return value
    if not value.isdecimal() or not int(value):
        raise click.BadParameter(f"{value!r} is neither a number of pixels, 1 or more, nor whole")
    return int(value)


_READING = [
    click.option(
        "--sensor",
        help="Sensor of the rasters: a name, one of the model's, or a TOML. May be left out where "
        "a product's name states it.",
    ),
    click.option(
        "--bands",
        help="Band names in the files' order, - for one to leave out: B02,B03,-,B08; or some of "
        "those that the files name.",
    ),
    click.option(
        "--dn-offset",
        type=float,
        help="Added to Sentinel-2 DN: 0 or -1000. Needed where name and metadata do not state it.",
    ),
    click.option(
        "--units",
        type=click.Choice(["dn", "physical", "linear"]),
        help="What the files' numbers are; linear: power of radar, read in dB.",
    ),
    click.option("--composite", help="RGB recipe of the sensor, for the RGB tower."),
    click.option("--tower", help="Default: the sensor's own, else RGB."),
    click.option(
        "--window",
        callback=_window,
        metavar="PIXELS|whole",
        help="Side of the windows that larger rasters are cut into; default: the tower's input "
        "size. whole: resize instead.",
    ),
]


def _reading_options(function: Command) -> Command:
    """The options that say how imagery is read; passed on as one mapping, `reading`."""
    names = ("sensor", "bands", "dn_offset", "units", "composite", "tower", "window")

    @functools.wraps(function)
    def call(**arguments: Any) -> None:
        reading = {name: arguments.pop(name) for name in names}
        if reading["bands"] is not None:
            reading["bands"] = split_list(reading["bands"], "--bands")
        function(reading=reading, **arguments)

    wrapped: Command = call
    for option in reversed(_READING):
        wrapped = option(wrapped)
    return wrapped


def _label_options(function: Command) -> Command:
    """The options that name classes."""
    for option in (
        click.option(
            "--labels-file",
            type=EXISTING_FILE,
            help="A text file of class names, one a line.",
        ),
        click.option(
            "--label", "names", multiple=True, help="One class name as it is; may be repeated."
        ),
        click.option(
            "--labels",
            "lists",
            multiple=True,
            help='Class names: "forest,river,industrial area"; a name with a comma in quotes, as '
            "in CSV.",
        ),
    ):
        function = option(function)
    return function


geojson_option = click.option(
    "--geojson",
    type=click.Path(path_type=Path, dir_okay=False),
    help="Also write a map for QGIS: one feature per file, window or hit.",
)


def _check_geojson(path: Path | None) -> None:
    if path is None:
        return
    if path.suffix.lower() not in (".geojson", ".json"):
        raise click.UsageError(f"--geojson {path}: choose a name that ends in .geojson")
    _check_folder(path, "--geojson")
    from terralign.encoders.answers import check_geojson

    check_geojson(path)


def _check_folder(path: Path, option: str) -> None:
    if not path.absolute().parent.is_dir():
        missing = find_missing(path)
        why = str(missing) or "its folder cannot be listed"
        todo = "; make it first" if missing.folder and not missing.near else ""
        raise click.UsageError(f"{option} {shown(path)}: {why}{todo}")


def _check(
    model: str | None, files: Sequence[str], reading: Mapping[str, Any], prompts: str | None = None
) -> Sensor | None:
    """Find slips in names and paths before torch is imported; returns the sensor named."""
    from terralign.cli.checks import check_paths, check_prompts, check_sensor
    from terralign.encoders.sources import check_source

    if not all(path.strip() for path in files):  # as of an unset variable
        raise click.UsageError("a path is empty; name a file or folder")
    if model is not None:
        check_source(model)
    check_paths(files)
    check_prompts(prompts)
    return check_sensor(reading["sensor"], model)


def _opened(
    files: Sequence[str], sensor: Sensor | None, reading: dict[str, Any], *, skip: bool = False
) -> tuple[Sequence[str] | Scene, dict[str, Any]]:
    """Inputs and how they are read: a single one is opened before torch is imported, so that what
    its declaration lacks is reported at once. `skip`: it is left to the command to report."""
    from terralign.cli.checks import open_alone

    try:
        scene = open_alone(files, sensor, reading)
    except TerralignError:
        if not skip:
            raise
        scene = None
    if scene is None:
        return files, reading
    return scene, {"tower": reading["tower"], "window": reading["window"]}


def _load(model: str, device: str | None) -> EmbeddingSpace:
    say_loading(model)
    from terralign.compute import choose_device
    from terralign.encoders.space import EmbeddingSpace

    chosen = choose_device(device)
    space = EmbeddingSpace.load(model).to(chosen)
    threads()
    return space


@main.command()
@click.argument("model")
@click.argument("files", nargs=-1, required=True, type=click.Path())
@_label_options
@_reading_options
@click.option("--prompts", help="A prompt set's name, or a TOML with templates.")
@click.option(
    "--top",
    type=click.IntRange(1),
    default=3,
    show_default=True,
    help="How many classes a line shows; --json has all.",
)
@geojson_option
@device_option
@json_option
@example(
    'terralign classify runs/m/model scene.tif --labels "forest,river" --sensor sentinel2-l2a '
    "--dn-offset -1000"
)
def classify(
    model: str,
    files: tuple[str, ...],
    lists: tuple[str, ...],
    names: tuple[str, ...],
    labels_file: Path | None,
    prompts: str | None,
    top: int,
    geojson: Path | None,
    device: str | None,
    as_json: bool,
    reading: dict[str, Any],
) -> None:
    """Classify FILES by the names of classes.

    FILES are pictures, GeoTIFFs, products with one file per band (also ESA's zips), folders of
    these, and STAC: items, item collections and stac-geoparquet as files or addresses, and searches
    of an API (stac:https://HOST/v1?collections=...&bbox=W,S,E,N&datetime=FROM/TO&max_items=9). A
    raster larger than the model's input is cut into windows, which are reported one by one.
    An input that cannot be read is reported, the others are classified, and the exit code is 1.
    """
    labels = read_class_names(lists, names, labels_file)
    _check_geojson(geojson)
    sensor = _check(model, files, reading, prompts)
    inputs, reading = _opened(files, sensor, reading, skip=as_json)
    space = _load(model, device)
    from terralign.encoders.answers import feature_collection, geojson_row, write_geojson
    from terralign.encoders.vectors import Fault

    rows = space.classify_each(inputs, labels, prompts=prompts, errors="skip", **reading)
    prompt_set = space.choose_prompts(prompts).name
    values: list[dict[str, Any]] = []
    features, num_read, alike = [], 0, Counter[str]()
    for _, found in itertools.groupby(rows, _source_of):
        group = list(found)
        failed = [one for one in group if isinstance(one, Fault)]
        with beside_bars():
            _report(failed, alike)
        values += [{"file": one.key, "error": one.error} for one in failed]
        read = [one for one in group if not isinstance(one, Fault)]
        if not read:
            continue
        num_read += 1
        values.append(_as_json(read, prompt_set))
        if geojson is not None:
            features += [geojson_row(one) for one in read]
        if not as_json:
            with beside_bars():
                _print(read, top)
    if as_json:
        click.echo(json.dumps(values))
    if geojson is not None and features:
        write_geojson(geojson, feature_collection(features))
        click.echo(f"{counted(len(features), 'feature')} written to {geojson}", err=True)
    _end(alike, num_read)


def _source_of(row: Classified | Fault) -> int:
    """The number of a row's source; of a fault -1."""
    return getattr(row, "source_number", -1)


def _report(faults: Sequence[Fault], alike: Counter[str]) -> None:
    """Report faults, of those that differ in the input's name alone the first few; `alike` counts
    them by what they have in common."""
    for fault in faults:
        cause = fault.error.replace(shown(Path(fault.key)), "...")
        alike[cause] += 1
        if alike[cause] <= MAX_ALIKE:
            report(name_options(fault.error, click.get_current_context().command.params))


def _end(alike: Counter[str], num_read: int) -> None:
    """Count the faults that were not reported, and exit where some inputs failed."""
    for cause, number in alike.items():
        if number > MAX_ALIKE:
            more = counted(number - MAX_ALIKE, "more input")
            named = name_options(cause, click.get_current_context().command.params)
            report(f"{more} failed for this reason: {named}")
    num_failed = alike.total()
    if num_failed and num_failed + num_read > 1:
        click.echo(f"terralign: {num_failed} of {num_failed + num_read} inputs failed", err=True)
    if num_failed:
        raise SystemExit(1)


def _as_json(rows: list[Classified], prompts: str) -> dict[str, Any]:
    """One source; its probabilities are the mean of its windows'."""
    first = rows[0]
    names = list(first.probabilities)
    mean = {name: sum(row.probabilities[name] for row in rows) / len(rows) for name in names}
    label = max(mean, key=lambda name: mean[name])
    value: dict[str, Any] = {
        "file": first.source_key,
        "label": label,
        "probability": mean[label],
        "probabilities": mean,
        "tower": first.tower,
        "prompts": prompts,
        "valid_share": sum(row.valid_share for row in rows) / len(rows),
    }
    if first.place.window is not None:
        value["windows"] = [{**row.to_json(), **row.place.describe()} for row in rows]
    return value


def _print(rows: list[Classified], top: int) -> None:
    first = rows[0]
    window, name = first.place.window, shown(Path(first.source_key))
    if window is None:
        click.echo(
            f"{shown(Path(first.key))}  {_likeliest(first.probabilities, top)}  ({_seen(first)})"
        )
        return
    counts = {name: sum(row.label == name for row in rows) for name in first.probabilities}
    shares = [
        f"{printable(name)} {number} ({100 * number / len(rows):.1f} %)"
        for name, number in sorted(counts.items(), key=lambda item: -item[1])
        if number
    ]
    plural = "" if len(rows) == 1 else "s"
    click.echo(
        f"{name}: {len(rows)} window{plural} of {window.height}x{window.width} pixels "
        f"({first.tower}): {', '.join(shares)}"
    )
    click.echo(f"  {'row':>6} {'column':>6}  classes")
    for row in rows[:MAX_LINES]:
        place = row.place.window
        assert place is not None
        valid = "" if row.valid_share == 1 else f"  ({100 * row.valid_share:.1f} % valid)"
        click.echo(
            f"  {place.row:>6} {place.column:>6}  {_likeliest(row.probabilities, top)}{valid}"
        )
    if len(rows) > MAX_LINES:
        click.echo(f"  ... and {len(rows) - MAX_LINES} more windows; --json and --geojson have all")


def _seen(row: Classified) -> str:
    if row.valid_share == 1:
        return row.tower
    return f"{row.tower}, {100 * row.valid_share:.1f} % of the numbers valid"


def _likeliest(probabilities: dict[str, float], top: int) -> str:
    """The likeliest classes, and what is left for the others."""
    best = sorted(probabilities.items(), key=lambda item: -item[1])
    shown = [f"{printable(name)} {100 * value:.1f} %" for name, value in best[:top]]
    if len(best) > top:
        rest = sum(value for _, value in best[top:])
        shown.append(f"{len(best) - top} more {100 * rest:.1f} %")
    return ", ".join(shown)


def _share(
    context: click.Context, option: click.Parameter, value: str | None
) -> tuple[int, int] | None:
    """I/N: the I-th of N shares."""
    if value is None:
        return None
    first, slash, last = value.partition("/")
    if not (slash and first.isdecimal() and last.isdecimal() and 1 <= int(first) <= int(last)):
        raise click.BadParameter(f"{value!r}: expected I/N, from 1/N to N/N, as in 3/8")
    return int(first), int(last)


_LEFT_OUT = [
    click.option(
        "--min-valid", type=click.FloatRange(0, 1), metavar="SHARE",
        help="Leave out windows with a smaller share of valid pixels; default: those without any.",
    ),
    click.option(
        "--max-cloud", type=click.FloatRange(0, 1), metavar="SHARE",
        help="Leave out windows with more cloud and shadow.",
    ),
]  # fmt: skip
_FOLDER_OPTIONS = [
    click.option(
        "--stride", type=click.IntRange(1), metavar="PIXELS",
        help="From one window to the next; default: the window's side. In pixels as --window: "
        "those of the tower's GSD.",
    ),
    click.option(
        "--gsd", "gsd_m", type=click.FloatRange(0, min_open=True), metavar="METRES",
        help="GSD that the tower was trained at; default: as it records, else that of the sensor's "
        "bands. Scenes at another are resampled.",
    ),
    *_LEFT_OUT,
    click.option(
        "--vectors", type=click.Choice(["float16", "float32", "int8"]),
        help="How vectors are stored; default: float16.",
    ),
    click.option(
        "--precision", type=click.Choice(PRECISIONS),
        help="What the tower computes in; default: fp32. tf32 and bf16 are faster on CUDA.",
    ),
    click.option(
        "--part", callback=_share, metavar="I/N",
        help="Embed only the I-th of N shares of the scenes, as for job arrays.",
    ),
    click.option(
        "--engine", type=click.Choice(["local", "ray"]),
        help="ray: spread the scenes over a Ray cluster (extra ray); default: local.",
    ),
    click.option(
        "--format", "layer", type=click.Choice(["gpkg", "geojson"]),
        help="Also write a map of all windows into the folder: windows.gpkg or windows.geojson.",
    ),
    click.option(
        "--workers", "num_workers", type=click.IntRange(1), help="Actors of --engine ray."
    ),
    click.option(
        "--stac", is_flag=True, default=None,
        help="Also write a STAC collection of all parts, and an item beside each (extra stac).",
    ),
]  # fmt: skip
_FLAGS_OF = {"gsd_m": "--gsd", "num_workers": "--workers", "layer": "--format"}


@main.command()
@click.argument("files", nargs=-1, required=True, type=click.Path())
@click.option("--model", required=True, help="A space, or any model that `classify` takes.")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path),
    help="The folder of GeoParquet parts to fill; or, ending in .parquet, the one file to write.",
)
@_reading_options
@option_group(_FOLDER_OPTIONS, "parting")
@device_option
@json_option
@example("terralign embed S2A_MSIL2A_*.SAFE --model runs/m/model --out scenes --stride 32")
def embed(
    files: tuple[str, ...],
    model: str,
    out: Path,
    device: str | None,
    as_json: bool,
    reading: dict[str, Any],
    parting: dict[str, Any],
) -> None:
    """Embed imagery into a folder of GeoParquet parts, or one file.

    FILES as for `classify`. Into a folder, scenes are cut into windows, and each becomes a part of
    its own: run the same again to resume, or in several processes at once. A file has one row per
    input or window. `terralign search`, geopandas and DuckDB read both.
    """
    if out.suffix == ".parquet":
        if parting:
            flags = [_FLAGS_OF.get(name, f"--{name.replace('_', '-')}") for name in parting]
            raise click.UsageError(
                f"{', '.join(flags)}: no effect on one file; give a folder (--out FOLDER)"
            )
        _embed_into_file(files, model, out, device, as_json, reading)
    else:
        _embed_into_folder(files, model, out, device, as_json, reading, parting)


def _embed_into_file(
    files: Sequence[str],
    model: str,
    out: Path,
    device: str | None,
    as_json: bool,
    reading: dict[str, Any],
) -> None:
    _check_folder(out, "--out")
    sensor = _check(model, files, reading)
    from terralign.encoders.vectors import check_parquet

    check_parquet(out)
    inputs, reading = _opened(files, sensor, reading)
    found = _load(model, device).embed(inputs, errors="skip", **reading)
    alike = Counter[str]()
    _report(found.faults, alike)
    found.save(out)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "out": str(out),
                    "vectors": len(found),
                    "dimensions": found.dim,
                    "space_id": found.space_id,
                    "tower_ids": dict(found.tower_ids),
                    "faults": [{"file": one.key, "error": one.error} for one in found.faults],
                }
            )
        )
    else:
        click.echo(
            f"{out}: {counted(len(found), 'vector')} of {found.dim} dimensions, towers: "
            f"{', '.join(found.tower_ids)}"
        )
    _end(alike, len({one.source for one in found.places}))


def _embed_into_folder(
    files: Sequence[str],
    model: str,
    out: Path,
    device: str | None,
    as_json: bool,
    reading: dict[str, Any],
    parting: dict[str, Any],
) -> None:
    if not out.is_dir() and (out.exists() or out.suffix):
        raise click.UsageError(
            f"--out {out}: give a folder, or for one file a name that ends in .parquet"
        )
    if reading["window"] == "whole":
        raise click.UsageError("--window whole: scenes are cut into windows; give a number")
    towers, layer = reading.pop("tower"), parting.pop("layer", None)
    sensor = _check(model, files, reading)
    if sensor is not None:
        reading["sensor"] = sensor
    space = _load(model, device)
    from terralign.index.embed import embed_scenes

    found = embed_scenes(
        space,
        list(files),
        out,
        tower=None if towers is None else split_list(towers, "--tower"),
        **reading,
        **parting,
    )
    alike = Counter[str]()
    _report(found.faults, alike)
    if layer is not None and found.scenes:
        from terralign.index.results import save_hits
        from terralign.index.search import open_index

        written = save_hits(open_index(out).places(), out / f"windows.{layer}")
        click.echo(f"all windows written to {written}", err=True)
    if parting.get("stac") and found.scenes:
        click.echo(f"all parts described by {out / 'collection.json'}", err=True)
    if as_json:
        click.echo(json.dumps(found.to_json()))
    elif found.scenes:
        click.echo(f'{found}\nsearch it: terralign search {shown(out)} "a river"')
    _end(alike, len(found.scenes))


def read_bbox(
    context: click.Context, option: click.Parameter, value: str | None
) -> list[float] | None:
    """WEST,SOUTH,EAST,NORTH."""
    if value is None:
        return None
    try:
        west, south, east, north = (float(one) for one in value.split(","))
    except ValueError:
        raise click.BadParameter(f"{value!r}: expected WEST,SOUTH,EAST,NORTH in degrees") from None
    return [west, south, east, north]


_SEARCH_OPTIONS = [
    click.option(
        "--for", "also", multiple=True, metavar="[WEIGHT*]TEXT",
        help="Another text to search for; repeatable.",
    ),
    click.option(
        "--against", multiple=True, metavar="[WEIGHT*]TEXT",
        help="A text to stay away from; repeatable.",
    ),
    click.option(
        "--like", multiple=True, metavar="ID", help="A window to search for, by its id; repeatable."
    ),
    click.option(
        "--unlike", multiple=True, metavar="ID", help="A window to stay away from; repeatable."
    ),
    click.option(
        "--image", "images", multiple=True, type=EXISTING,
        help="A picture or chip to search for, of any sensor (--sensor, --bands ...); repeatable.",
    ),
    click.option(
        "--bbox", callback=read_bbox, metavar="W,S,E,N",
        help="Only windows that touch this box, in degrees; W above E crosses the antimeridian.",
    ),
    click.option(
        "--polygon", type=EXISTING_FILE,
        help="Only windows that touch the polygons of a GeoJSON file, in degrees.",
    ),
    click.option("--start", metavar="DAY", help="The first day or time, as 2022-07-06."),
    click.option("--end", metavar="DAY", help="The last day, included, or a time."),
    click.option(
        "--max-cloud", type=click.FloatRange(0, 1), metavar="SHARE",
        help="Only windows with at most this share of cloud and shadow.",
    ),
    click.option(
        "--min-valid", type=click.FloatRange(0, 1), metavar="SHARE",
        help="Only windows with at least this share of valid pixels.",
    ),
    click.option("--sensors", help="Only windows of these sensors: NAME,NAME."),
    click.option("--towers", help="Only vectors of these towers: NAME,NAME."),
    click.option(
        "--compare", nargs=2, metavar="DATE DATE",
        help="Where the score rose most from the first date to the second; a date is a day, or a "
        "first and a last one as 2022-07-01/2022-07-31.",
    ),
    click.option(
        "--collapse", is_flag=True, help="Of windows that overlap, keep the best alone.",
        default=None,
    ),
    click.option(
        "--cut", type=click.FloatRange(0, 1), metavar="PROBABILITY",
        help="Keep hits for which the query is at least so probable among background texts.",
    ),
    click.option(
        "--centre/--no-centre", default=None,
        help="Rank by how far the cosine is above the usual one of its tower, in standard "
        "deviations; default: where several towers are compared.",
    ),
    click.option(
        "--exact", is_flag=True, default=None,
        help="Compare every window, also where the folder has an index (terralign index).",
    ),
    click.option(
        "--explain", is_flag=True, default=None,
        help="Also report how it was searched, and what share of the best hits to expect; with "
        "--json the value has the keys hits and how.",
    ),
    click.option(
        "--page", type=click.IntRange(1), metavar="N",
        help="Print the N-th page of the hits; default: all of them.",
    ),
    click.option(
        "--page-size", type=click.IntRange(1), default=50, show_default=True,
        help="Hits of a page.",
    ),
    click.option(
        "--out", type=click.Path(path_type=Path, dir_okay=False),
        help="Also write all hits: .geojson, .gpkg or .parquet.",
    ),
    click.option(
        "--report", "page_path", type=click.Path(path_type=Path, dir_okay=False),
        help="Also write an offline page of the first 50 hits, with pictures and a map: .html.",
    ),
]  # fmt: skip
_SEARCH_FLAGS = {"also": "--for", "images": "--image", "page_path": "--report"}


def _flags_given(reading: dict[str, Any]) -> list[str]:
    """The flags of the options that say how imagery is read, of those that were given."""
    return [f"--{name.replace('_', '-')}" for name, one in reading.items() if one is not None]


@main.command()
@click.argument("imagery", type=click.Path())
@click.argument("query", required=False, default="")
@click.option("--model", help="A space; default: the one that the vectors were made with.")
@click.option(
    "-k", "k", type=click.IntRange(1, 100_000), default=10, show_default=True, help="Hits."
)
@click.option("--prompts", help="Templates to put the query in; default: the query as it is.")
@option_group(_SEARCH_OPTIONS, "asked", apart=["page_size"])
@_reading_options
@geojson_option
@device_option
@json_option
@example('terralign search scenes "flooded fields beside a river" --against forest --out hits.gpkg')
def search(
    imagery: str,
    query: str,
    model: str | None,
    k: int,
    prompts: str | None,
    page_size: int,
    geojson: Path | None,
    device: str | None,
    as_json: bool,
    reading: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    """Search imagery by words.

    IMAGERY is a folder or a file that `terralign embed` wrote; or a file, product or folder, which
    is embedded first. Prints the places that are nearest to QUERY, best first. Everything from
    --for to --out is for folders of parts.
    """
    _check_geojson(geojson)
    from terralign.cli.checks import check_paths
    from terralign.index.names import is_folder_of_parts

    if is_folder_of_parts(Path(imagery)):
        _search_folder(
            Path(imagery), query, model, k, prompts, page_size, geojson, device, as_json, reading,
            asked,
        )  # fmt: skip
        return
    if not Path(imagery).exists() and Path(query).exists() and query:
        raise click.UsageError(
            f"{shown(imagery)} not found; the imagery comes first: terralign search "
            f'{shown(query)} "{shown(imagery)}"'
        )
    check_paths([imagery])
    if asked:
        flags = [_SEARCH_FLAGS.get(name, f"--{name.replace('_', '-')}") for name in asked]
        raise click.UsageError(
            f"{', '.join(flags)}: only for a folder of parts (terralign embed ... --out FOLDER); "
            f"{shown(imagery)} is another kind"
        )
    if not query.strip():
        raise click.UsageError("the query is empty; say what to search for")
    is_vectors, alike = imagery.endswith(".parquet"), Counter[str]()
    if is_vectors:
        given = _flags_given(reading)
        if given:
            raise click.UsageError(f"{', '.join(given)}: no effect on vectors; leave it out")
    sensor = _check(model, [imagery], reading, prompts)
    if model is None and not is_vectors:
        below = [one for one in sorted(Path(imagery).glob("*/")) if is_folder_of_parts(one)]
        near = f"; did you mean {shown(below[0])}?" if below else ""
        raise click.UsageError(
            "--model is needed to embed imagery; only what `terralign embed` wrote records its "
            f"model{near}"
        )
    if is_vectors:
        from terralign.encoders.vectors import Embeddings

        embeddings = Embeddings.load(imagery)
        if not (model or embeddings.model):
            raise click.UsageError(f"{imagery} does not name its model; give --model")
        space = _load(model or embeddings.model, device)
    else:
        inputs, reading = _opened([imagery], sensor, reading)
        space = _load(str(model), device)
        embeddings = space.embed(inputs, errors="skip", **reading)
        _report(embeddings.faults, alike)
    hits = space.search(embeddings, query, k=k, prompts=prompts)
    if as_json:
        click.echo(json.dumps([hit.to_json() for hit in hits]))
    else:
        click.echo(hits.table(max_rows=k).text())
    if geojson is not None:
        hits.save_geojson(geojson)
        click.echo(f"{counted(len(hits), 'feature')} written to {geojson}", err=True)
    _end(alike, len({one.source for one in embeddings.places}))


def _search_folder(
    folder: Path,
    query: str,
    model: str | None,
    k: int,
    prompts: str | None,
    page_size: int,
    geojson: Path | None,
    device: str | None,
    as_json: bool,
    reading: dict[str, Any],
    asked: dict[str, Any],
) -> None:
    images, out, page = asked.pop("images", ()), asked.pop("out", None), asked.pop("page", None)
    page_path = asked.pop("page_path", None)
    given = _flags_given(reading)
    if given and not images:
        raise click.UsageError(f"{', '.join(given)}: no effect without --image; leave it out")
    if not (query.strip() or images or {"also", "against", "like", "unlike"} & asked.keys()):
        raise click.UsageError("the query is empty; say what to search for")
    if out is not None:
        _check_folder(out, "--out")
        if out.suffix == ".parquet" and out.parent.resolve() == folder.resolve():
            raise click.UsageError(
                f"--out {out}: {folder} holds parts, as which hits would be read; choose another "
                "folder"
            )
    dates = asked.pop("compare", None)
    explained = asked.pop("explain", False)
    useless = [f"--{name}" for name in ("start", "end", "cut", "exact") if name in asked]
    useless += ["--explain"] if explained else []
    if dates is not None and useless:
        raise click.UsageError(f"{', '.join(useless)}: no effect with --compare; leave it out")
    if page_path is not None:
        _check_folder(page_path, "--report")
        from terralign.report.hits import check_page

        check_page(page_path)
    from terralign.index.filters import make_filters, period_of, read_polygon
    from terralign.index.results import check_output, save_hits, weighted

    if out is not None:
        check_output(out)
    terms = {name: [weighted(one) for one in asked.pop(name, ())] for name in ("also", "against")}
    for name in {"sensors", "towers"} & asked.keys():
        asked[name] = split_list(asked[name], f"--{name}")
    if "polygon" in asked:
        asked["polygon"] = read_polygon(asked["polygon"])
    filters = ("bbox", "start", "end")
    make_filters(**{name: asked[name] for name in filters if name in asked})
    for date in dates or ():
        first, last = period_of(date, "a date of --compare")
        make_filters(start=first, end=last)
    sensor = _check(model, images, reading, prompts)
    from terralign.index.search import open_index

    index = open_index(folder)
    space = _load(model or index.model, device)
    positive: list[Any] = [query] if query.strip() else []
    positive += terms["also"]
    if images:
        reading["sensor"] = reading["sensor"] if sensor is None else sensor
        positive.append(space.embed(list(images), **reading))
    asked |= {"against": terms["against"], "prompts": prompts}
    hits = (
        space.search(index, positive, k, **asked)
        if dates is None
        else index.compare(space, positive, dates[0], dates[1], k, **asked)
    )
    shown_hits = hits if page is None else hits[(page - 1) * page_size : page * page_size]
    if as_json:
        values = [hit.to_json() for hit in shown_hits]
        click.echo(json.dumps({"hits": values, "how": dict(hits.how)} if explained else values))
    else:
        click.echo(shown_hits.table(max_rows=len(shown_hits)).text())
        if explained:
            from terralign.index.planner import explain

            click.echo("\n".join(explain(hits.how)))
        if page is not None:
            click.echo(
                f"page {page} of {max(1, -(-len(hits) // page_size))}, "
                f"{counted(len(hits), 'hit')} of {counted(len(index), 'window')}"
            )
    for path in (geojson, out):
        if path is not None:
            save_hits(hits, path)
            click.echo(f"{counted(len(hits), 'feature')} written to {path}", err=True)
    if not hits:
        why = name_options(hits.how["nothing"], click.get_current_context().command.params)
        report(f"nothing found: {why}")
    if page_path is not None:
        from terralign.searching.report import save_report

        click.echo(f"report: {save_report(space, index, hits, page_path)}", err=True)


_MAP_OPTIONS = [
    click.option("--scene", help="Which scene of a folder, by its name or that of its part."),
    click.option(
        "--pixel", "pixel_m", type=click.FloatRange(0, min_open=True), metavar="METRES",
        help="Size of the map's pixels; default: an eighth of a window.",
    ),
    *_LEFT_OUT,
    click.option(
        "--stride", type=click.IntRange(1), metavar="PIXELS",
        help="Of a scene that is embedded first: from one window to the next; default: half a "
        "window.",
    ),
    click.option(
        "--gsd", "gsd_m", type=click.FloatRange(0, min_open=True), metavar="METRES",
        help="Of a scene that is embedded first: the GSD that the tower was trained at.",
    ),
]  # fmt: skip


@main.command()
@click.argument("imagery", type=click.Path())
@click.argument("query", required=False, default="")
@click.option(
    "--out",
    required=True,
    type=click.Path(path_type=Path, dir_okay=False),
    help="The GeoTIFF to write: .tif.",
)
@click.option("--model", help="A space; default: the one that the vectors were made with.")
@click.option(
    "--against",
    multiple=True,
    metavar="[WEIGHT*]TEXT",
    help="A text to stay away from; repeatable.",
)
@click.option("--prompts", help="Templates to put the query or the class names in.")
@_label_options
@option_group(_MAP_OPTIONS, "mapping")
@_reading_options
@device_option
@json_option
@example('terralign score scenes "a river or a lake" --out map.tif')
def score(
    imagery: str,
    query: str,
    out: Path,
    model: str | None,
    against: tuple[str, ...],
    prompts: str | None,
    lists: tuple[str, ...],
    names: tuple[str, ...],
    labels_file: Path | None,
    device: str | None,
    as_json: bool,
    reading: dict[str, Any],
    mapping: dict[str, Any],
) -> None:
    """Map a scene by words, as a GeoTIFF for QGIS.

    IMAGERY is a folder of parts that `terralign embed` wrote, or one scene, which is embedded first
    (--model). With QUERY, the map holds the cosine of each place to it; with --labels, the
    likeliest of these classes, and a second map its probability.
    """
    labels = read_class_names(lists, names, labels_file) if lists or names or labels_file else ()
    if labels and (query.strip() or against):
        raise click.UsageError("give a query, or class names (--labels), not both")
    if not labels and not query.strip():
        raise click.UsageError("the query is empty; say what to map, or name classes (--labels)")
    if reading["window"] == "whole":
        raise click.UsageError("--window whole: scenes are cut into windows; give a number")
    _check_folder(out, "--out")
    from terralign.index.cog import check_map
    from terralign.index.results import weighted

    check_map(out)
    terms = [weighted(one) for one in against]
    source, model = _source_of_map(imagery, model, reading, mapping, prompts)
    space = _load(model, device)
    from terralign.index.score import class_map, score_map

    found = (
        class_map(space, source, labels, out, prompts=prompts, **reading, **mapping)
        if labels
        else score_map(
            space, source, query, out, against=terms, prompts=prompts, **reading, **mapping
        )
    )
    click.echo(json.dumps(found.to_json()) if as_json else str(found))


def _source_of_map(
    imagery: str,
    model: str | None,
    reading: dict[str, Any],
    mapping: Mapping[str, Any],
    prompts: str | None,
) -> tuple[Any, str]:
    """What a map is made of, an index or the path of a scene, and the model's name; `reading` is
    left with what is to be passed on."""
    from terralign.index.names import is_folder_of_parts

    tower = reading["tower"]
    if not is_folder_of_parts(Path(imagery)):
        if imagery.endswith(".parquet"):
            raise click.UsageError(
                f"{shown(imagery)} is one file of vectors; maps are made of a folder of parts "
                "(terralign embed ... --out FOLDER) or of a scene"
            )
        if "scene" in mapping:
            raise click.UsageError("--scene: no effect on a scene, only on a folder of parts")
        sensor = _check(model, [imagery], reading, prompts)
        if model is None:
            raise click.UsageError(
                "--model is needed to embed imagery; only a folder of parts records its model"
            )
        if sensor is not None:
            reading["sensor"] = sensor
        return imagery, model
    given = [one for one in _flags_given(reading) if one != "--tower"]
    given += [
        flag for name, flag in (("stride", "--stride"), ("gsd_m", "--gsd")) if name in mapping
    ]
    if given:
        raise click.UsageError(
            f"{', '.join(given)}: no effect on a folder of parts, whose scenes are embedded "
            "already; leave it out"
        )
    _check(model, [], reading, prompts)
    from terralign.index.score import choose_part
    from terralign.index.search import open_index

    index = open_index(imagery)
    choose_part(index, scene=mapping.get("scene"), tower=tower)
    reading.clear()
    reading["tower"] = tower
    return index, model or index.model
