"""The command that runs studies: ablate."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from terralign.cli.app import (
    FOLDER,
    data_root_option,
    device_option,
    example,
    json_option,
    main,
    set_option,
)


@main.command()
@click.argument("study")
@click.option(
    "--out", type=FOLDER, help="Study folder; default: studies/NAME."
)  # fmt: skip
@data_root_option
@set_option
@click.option(
    "--seed", "seeds", type=click.IntRange(min=0), multiple=True,
    help="A seed in place of the study's; repeatable.",
)  # fmt: skip
@click.option("--only", multiple=True, metavar="VARIANT", help="Run this variant; repeatable.")
@click.option(
    "--shared", type=FOLDER,
    help="Folder for what runs have in common; default: in the study folder.",
)  # fmt: skip
@click.option(
    "--stores", type=FOLDER,
    help="Where a recipe with pack = true keeps packed data sets; default: in the study folder.",
)  # fmt: skip
@device_option
@json_option
@example("terralign ablate losses --data-root data --out studies/losses --seed 0")
def ablate(
    study: str,
    out: Path | None,
    data_root: Path | None,
    overrides: tuple[str, ...],
    seeds: tuple[int, ...],
    only: tuple[str, ...],
    shared: Path | None,
    stores: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Run a STUDY: one recipe in many variants and seeds.

    STUDY is a name (`terralign info studies` lists them) or a TOML file. Run the same command again
    to resume. A run that fails does not end the study: the table names it, and the exit code is 1.
    """
    from terralign.datasets.facts import check_data_root
    from terralign.toml_values import read_named

    read_named("study", study)
    check_data_root(data_root)
    from terralign.ablate.study import load_study

    loaded = load_study(study, data_root=data_root)
    from terralign.ablate.runs import run_study

    result = run_study(
        loaded,
        out or Path("studies") / loaded.name,
        data_root=data_root,
        device=device,
        overrides=overrides,
        seeds=seeds,
        only=only,
        shared=shared,
        stores=stores,
    )
    if as_json:
        click.echo(
            json.dumps(
                {
                    "folder": str(result.folder),
                    "complete_before": result.complete_before,
                    "rows": [row.to_json() for row in result.rows],
                    "summary": list(result.summary),
                    "failures": list(result.failures),
                }
            )
        )
    else:
        click.echo(result.table)
        if result.complete_before:
            click.echo(f"{result.folder} is already complete; nothing to do.")
        click.echo(f"table: {result.folder / 'table.md'}")
    if result.failures:
        sys.exit(1)
