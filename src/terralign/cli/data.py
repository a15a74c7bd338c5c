"""The commands about data and what is available: fetch, pack, info."""

from __future__ import annotations

import json
import sys
import textwrap
from pathlib import Path
from typing import Any

import click

from terralign.cli.app import data_root_option, example, json_option, main


@main.command()
@click.argument("dataset")
@data_root_option
@click.option("--yes", is_flag=True, help="Do not ask before downloading.")
@json_option
@example("terralign fetch eurosat-rgb --data-root data")
def fetch(dataset: str, data_root: Path | None, yes: bool, as_json: bool) -> None:
    """Download and unpack a DATASET into the data root.

    Shows size, licence and source, and asks first. Run the same command again to resume. Hashes
    are checked, and nothing that is there is replaced.
    """
    from terralign.datasets.facts import read_facts, size_of
    from terralign.datasets.fetch import fetch as fetch_planned
    from terralign.datasets.fetch import plan_fetch
    from terralign.errors import counted

    if data_root is None:
        raise click.UsageError("fetch needs a folder to write into: --data-root, or TERRALIGN_DATA")
    planned = plan_fetch(dataset, data_root)
    left = [one for one in planned if not one.done]
    facts = read_facts(dataset)
    if left:
        click.echo(f"{facts.description}, {facts.size}", err=True)
        click.echo(f"download: {size_of([one.file for one in left])}", err=True)
        click.echo(f"licence:  {facts.licence}", err=True)
        click.echo(f"source:   {facts.source}", err=True)
        if not yes:
            _ask_before(f"download into {data_root}?")
    fetch_planned(planned)
    places = [str(one.place) for one in planned]
    if as_json:
        value = {"dataset": dataset, "fetched": [str(one.place) for one in left], "places": places}
        click.echo(json.dumps(value))
    elif left:
        click.echo(f"{dataset}: {counted(len(left), 'file')} fetched into {data_root}")
    else:
        click.echo(f"{dataset} is complete in {data_root}; nothing to do.")


def _ask_before(question: str) -> None:
    if not sys.stdin.isatty():
        raise click.UsageError("fetch asks before it downloads; without a terminal give --yes")
    if not click.confirm(question, err=True):
        raise click.Abort


@main.command()
@click.argument("dataset", required=False)
@click.argument("store", required=False, type=click.Path(path_type=Path))
@data_root_option
@click.option("--split", "splits", multiple=True, help="A split to pack; repeatable; default: all.")
@click.option(
    "--size",
    help="Pictures: resize and crop to this side, as CLIP does; also 384-squash, "
    "224-shortest-bilinear.",
)
@click.option(
    "--images", type=click.Choice(["pixels", "encoded"]), default="pixels", show_default=True,
    help="Pictures: store them decoded, or as the bytes of their files.",
)  # fmt: skip
@click.option(
    "--shard-mb", type=click.IntRange(1), default=256, show_default=True, help="Size of a shard."
)
@click.option("--workers", type=click.IntRange(1), help="Reading threads; default: one per CPU.")
@click.option("--skip-damaged", is_flag=True, help="Skip and count what cannot be read.")
@click.option(
    "--verify", "verified", type=click.Path(path_type=Path), metavar="STORE",
    help="Check a store against its checksums instead of packing.",
)  # fmt: skip
@json_option
@example("terralign pack eurosat-ms stores/eurosat-ms --data-root data")
def pack(
    dataset: str | None,
    store: Path | None,
    data_root: Path | None,
    splits: tuple[str, ...],
    size: str | None,
    images: Any,
    shard_mb: int,
    workers: int | None,
    skip_damaged: bool,
    verified: Path | None,
    as_json: bool,
) -> None:
    """Pack a DATASET into a STORE, a folder that is fast to read.

    DATASET is a name or a TOML file. Each sample is decoded once. Run the same command again to
    resume; the bytes are the same. A store is used as a data set: --data STORE.
    """
    if verified is not None:
        if dataset or store:
            raise click.UsageError("--verify takes the store; leave out DATASET and STORE")
        _verify(verified, as_json)
        return
    if dataset is None or store is None:
        raise click.UsageError("pack needs a DATASET and a STORE, or --verify STORE")
    from terralign.cli.checks import check_data

    check_data(dataset, data_root)
    from terralign.datasets.packing import pack_dataset
    from terralign.datasets.store import PackSettings
    from terralign.scenes.pictures import describe_size

    packed = pack_dataset(
        dataset,
        store,
        data_root=data_root,
        splits=splits,
        settings=PackSettings(
            shard_bytes=shard_mb * 2**20,
            images=images,
            size=describe_size(size),
            skip_damaged=skip_damaged,
        ),
        num_workers=workers,
    )
    manifest = packed.manifest
    num_bytes = sum(one.num_bytes for one in (manifest.table, *manifest.shards))
    value = {
        "store": str(store),
        "dataset": manifest.name,
        "splits": manifest.splits,
        "sensors": list(manifest.sensors),
        "num_shards": len(manifest.shards),
        "num_bytes": num_bytes,
        "num_skipped": manifest.num_skipped,
        "complete_before": packed.complete_before,
    }
    if as_json:
        click.echo(json.dumps(value))
        return
    counts = ", ".join(f"{split} {number:,}" for split, number in manifest.splits.items())
    skipped = f", {manifest.num_skipped} left out" if manifest.num_skipped else ""
    click.echo(f"{manifest.name}: {counts} samples{skipped}")
    num_shards = len(manifest.shards)
    shards = f"{num_shards} shard{'' if num_shards == 1 else 's'}"
    click.echo(f"{store}: {num_bytes / 1e6:,.1f} MB in {shards}")
    if packed.complete_before:
        click.echo("already complete; nothing to do.")


def _verify(store: Path, as_json: bool) -> None:
    from terralign.datasets.store import verify_store

    faults = verify_store(store)
    if as_json:
        click.echo(json.dumps({"store": str(store), "faults": faults}))
    for fault in [] if as_json else faults:
        click.echo(fault)
    if faults:
        raise SystemExit(1)
    if not as_json:
        click.echo(f"{store} is whole")


@main.command()
@click.argument("what", required=False)
@json_option
@example("terralign info runs/m/model")
def info(what: str | None, as_json: bool) -> None:
    """Describe a data set, sensor, recipe or model; list what exists.

    WHAT is a list (datasets, models, sensors, recipes, suites, studies, prompts), a name of one of
    them, a packed store, a folder of embedded scenes and its index, a TOML file, or a model.
    Without it: the versions of terralign and what it uses.
    """
    from terralign.cli.info import about, dataset_table, model_table, recipe_table

    tables = {"datasets": dataset_table, "models": model_table, "recipes": recipe_table}
    if what in tables and not as_json:
        click.echo(tables[what]())
        return
    value = about(what)
    click.echo(json.dumps(value) if as_json else _outline(value))


_SHORT = 40
"""Items of a list that are longer than this have a line each, as templates have."""

_EACH = ("templates", "prompts")
"""Lists of which every item has a line."""

_WIDE = 100
"""Characters of a line of other items."""


def _outline(value: Any, indent: str = "") -> str:
    """Nested plain values as indented lines."""
    if not isinstance(value, dict):
        return f"{indent}{value}"
    lines = []
    width = max((len(str(key)) for key in value), default=0)
    for key, one in value.items():
        if isinstance(one, dict) and one:
            lines += [f"{indent}{key}", _outline(one, indent + "  ")]
        else:
            items = [str(item) for item in one] if isinstance(one, list | tuple) else [str(one)]
            if key not in _EACH and all(len(item) <= _SHORT for item in items):
                items = textwrap.wrap(
                    ", ".join(items), _WIDE, break_long_words=False, break_on_hyphens=False
                ) or [""]
            for number, item in enumerate(items):
                lines.append(f"{indent}{'' if number else key:<{width}}  {item}")
    return "\n".join(lines)
