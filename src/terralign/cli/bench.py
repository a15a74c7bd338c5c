"""The command that compares models: bench."""

from __future__ import annotations

import json
import logging
from pathlib import Path

import click

from terralign.cli.app import (
    FOLDER,
    data_root_option,
    device_option,
    example,
    json_option,
    main,
    threads,
)

logger = logging.getLogger(__name__)


@main.command()
@click.argument("suite")
@click.argument("more", nargs=-1, metavar="")
@click.option(
    "--models", multiple=True, required=True, metavar="[NAME=]MODEL...",
    help="The models; the others are compared with the first.",
)  # fmt: skip
@click.option("--out", required=True, type=FOLDER, help="Bench folder.")
@data_root_option
@click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override one value of the suite, as in num_bootstrap=200; repeatable.",
)  # fmt: skip
@click.option("--prompts", multiple=True, help="A prompt set in place of the suite's; repeatable.")
@click.option("--reference", help="The model to compare with; default: the first.")
@click.option(
    "--shared", type=FOLDER,
    help="Folder for common results, so that benches share them.",
)  # fmt: skip
@click.option(
    "--report/--no-report", default=True,
    help="Write report.html, report.md and tables.tex (default), or the rows alone.",
)  # fmt: skip
@device_option
@json_option
@example("terralign bench micro --models data/micro-clip runs/m/model --data-root data --out b")
def bench(
    suite: str,
    more: tuple[str, ...],
    models: tuple[str, ...],
    out: Path,
    data_root: Path | None,
    overrides: tuple[str, ...],
    prompts: tuple[str, ...],
    reference: str | None,
    shared: Path | None,
    report: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Compare models on a SUITE of data sets.

    SUITE is a name (`terralign info suites` lists them) or a TOML file. MODEL is a space, any model
    of open_clip, ms-clip:FILE, or timm:NAME for probes alone. What is measured already is not
    measured again; other models and prompts add rows.
    """
    from terralign.cli.checks import check_prompts
    from terralign.datasets.facts import check_data_root
    from terralign.toml_values import read_named

    read_named("suite", suite)
    check_data_root(data_root)
    for name in prompts:
        check_prompts(name)
    from terralign.bench.suite import load_suite

    loaded = load_suite(suite, overrides=overrides, data_root=data_root)
    from terralign.bench.report import report_bench
    from terralign.bench.run import run_bench
    from terralign.compute import choose_device
    from terralign.report.comparison import format_table

    chosen_device = choose_device(device)
    threads()
    result = run_bench(
        loaded, (*models, *more), out, data_root,
        prompts=prompts, reference=reference, device=chosen_device, cache=shared,
    )  # fmt: skip
    page = None
    if report:
        logger.info("writing the report of %s", out)
        page = report_bench(out, data_root)
    if as_json:
        click.echo(
            json.dumps(
                {
                    "folder": str(result.folder),
                    "num_measured": result.num_measured,
                    "num_failed": result.num_failed,
                    "report": None if page is None else str(page),
                    "rows": [row.model_dump(mode="json") for row in result.rows],
                }
            )
        )
    else:
        click.echo(format_table(result.rows))
        number = result.num_measured
        click.echo(
            f"{number} new measurement{'' if number == 1 else 's'}; rows: {out / 'results.json'}"
        )
        if page is not None:
            click.echo(f"report: {page}")
    if result.num_failed:
        raise SystemExit(1)
