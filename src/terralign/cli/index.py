"""The command that makes the index of a folder of embedded scenes."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import TYPE_CHECKING

import click

from terralign.cli.app import device_option, example, json_option, main, threads
from terralign.errors import TerralignError, counted, shown
from terralign.files import as_bytes

if TYPE_CHECKING:
    from terralign.encoders.space import EmbeddingSpace
    from terralign.index.indexing import Indexed

logger = logging.getLogger(__name__)


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option(
    "--recall",
    type=click.FloatRange(0, 1, min_open=True, max_open=True),
    metavar="SHARE",
    help="Of the best hits of a text, the share that a search is to find; default: 0.95.",
)
@click.option(
    "--pq/--flat",
    "codes",
    default=None,
    help="Store codes of a 16th of the vectors' size in the index; its candidates are compared "
    "exactly. Default: the vectors.",
)
@click.option("--force", is_flag=True, help="Index towers with less than 200,000 windows too.")
@click.option(
    "--at",
    "place",
    metavar="FOLDER|URI",
    help="Where the index is kept: a folder, or object storage as s3://BUCKET/FOLDER. Default: "
    "beside the parts.",
)
@click.option("--drop", is_flag=True, help="Remove the index; the parts stay.")
@click.option(
    "--model",
    help="The space whose text tower makes the queries that the index is measured with; default: "
    "the one that the vectors were made with.",
)
@device_option
@json_option
@example("terralign index scenes --recall 0.98")
def index(
    folder: Path,
    recall: float | None,
    codes: bool | None,
    force: bool,
    place: str | None,
    drop: bool,
    model: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Index a folder of embedded scenes, for millions of windows.

    FOLDER is what `terralign embed --out` wrote. Searches then find the share --recall of the best
    hits, which is measured on texts; with search --exact they compare every window. Run it again
    after new scenes: until then, these are compared one by one. Needs the extra index.
    """
    if drop:
        given = [recall, codes, place, model, force or None]
        if any(one is not None for one in given):
            raise click.UsageError("--drop removes the index; no other option has an effect")
        from terralign.index.indexing import drop_index

        num_bytes = drop_index(folder)
        click.echo(
            json.dumps({"folder": str(folder), "freed": num_bytes})
            if as_json
            else f"the index of {shown(folder)} is removed ({as_bytes(num_bytes)})"
        )
        return
    if place is not None and not place.strip():
        raise click.UsageError("--at is empty; name a folder, or leave it out")
    if model is not None:
        from terralign.encoders.sources import check_source

        check_source(model)
    from terralign.index.indexing import index_folder

    found = index_folder(
        folder,
        space=lambda name, space_id: _space(model, name, space_id, device),
        recall=recall,
        kind=None if codes is None else "pq" if codes else "flat",
        force=force,
        place=place,
    )
    if as_json:
        click.echo(json.dumps(found.describe()))
    else:
        _print(found)


def _space(
    model: str | None, name: str, space_id: str, device: str | None
) -> EmbeddingSpace | None:
    """The space that the user names, else that of the vectors, where it can be loaded."""
    from terralign.compute import choose_device
    from terralign.encoders.space import EmbeddingSpace
    from terralign.encoders.vectors import check_same_space

    threads()
    try:
        space = EmbeddingSpace.load(model or name, skip_custom=True).to(choose_device(device))
        check_same_space(space.space_id, space_id, "the folder's vectors")
        return space
    except TerralignError as error:
        if model is not None:
            raise
        logger.warning(
            "%s; without the model of the vectors, the queries that recall is measured with are "
            "made of the vectors (--model names a model)", error,
        )  # fmt: skip
        return None


def _print(found: Indexed) -> None:
    from terralign.index.approximate import FOLDER
    from terralign.index.planner import EXACT_ROWS

    towers = {one.tower: one for one in found.state.towers}
    for name, done in found.done.items():
        one = towers.get(name)
        if one is None:
            click.echo(f"{name}: not indexed, {done}")
            continue
        click.echo(
            f"{name}: {done}, {counted(one.num_rows, 'window')} in "
            f"{counted(one.partitions, 'cluster')} ({one.kind}), measured on {one.texts}"
        )
        for probes in one.measured:
            click.echo(
                f"  the best {probes.depth:,}: {counted(probes.probes, 'probe')}, recall "
                f"{probes.recall:.3f} of texts (at least {probes.low:.3f}), "
                f"{probes.recall_like:.3f} of windows, {probes.milliseconds:.1f} ms"
            )
        if one.num_rows <= EXACT_ROWS:
            click.echo("  searches compare so few windows one by one, as without an index")
    if towers:
        place = found.state.place or shown(found.folder / FOLDER)
        click.echo(f"{as_bytes(found.num_bytes)} at {place}, {found.seconds:.0f} s")
    else:
        click.echo("no index is needed; --force makes one")
