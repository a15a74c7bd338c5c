"""The command itself, what its parts share, and where logs go."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

import terralign
from terralign.faults import OneLineFaults

Command = Callable[..., None]

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
device_option = click.option("--device", help="cpu, cuda, cuda:1; default: CUDA where there is.")
data_root_option = click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="TERRALIGN_DATA",
    help="Folder that holds the data sets (or the variable TERRALIGN_DATA).",
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override one value of the recipe, as in patch.lr=2e-5; may be repeated.",
)  # fmt: skip


def example(text: str) -> Callable[[Command], Command]:
    """Append an example to a command's help."""

    def add(function: Command) -> Command:
        function.__doc__ = f"{function.__doc__}\n\n    \b\n    Example:\n      {text}\n    "
        return function

    return add


@click.group(cls=OneLineFaults, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(terralign.__version__, prog_name="terralign")
@click.option("--debug", is_flag=True, help="Show the traceback of a fault.")
@click.option("--quiet", is_flag=True, help="No progress; warnings and results only.")
def main(debug: bool, quiet: bool) -> None:
    """Bring any satellite sensor into a CLIP's embedding space.

    Patch a CLIP on satellite RGB, align other sensors to it, then classify and search
    multispectral and radar imagery by text. Start with: terralign quickstart
    """
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(logging.Formatter("%(message)s"))
    logger = logging.getLogger("terralign")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.INFO)
    logger.propagate = False
    # Other libraries' words about what terralign tells itself, in one line.
    logging.getLogger().addHandler(logging.NullHandler())
    for name in ("huggingface_hub", "httpx", "matplotlib", "rasterio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)


def threads() -> None:
    """Torch's threads for commands that only compute: few, see `train/threads.py`."""
    from terralign.train.threads import choose_threads, set_threads

    set_threads(choose_threads())


def print_run(result: Any, as_json: bool) -> None:
    """What `run_recipe` did, as a table or as JSON."""
    from terralign.evaluate.table import format_table

    if as_json:
        click.echo(
            json.dumps(
                {
                    "folder": str(result.folder),
                    "complete_before": result.complete_before,
                    "rows": list(result.rows),
                }
            )
        )
        return
    if result.rows:
        click.echo(format_table(result.rows))
    if result.complete_before:
        click.echo(f"{result.folder} is complete; nothing was to do.")
    click.echo(f"model:  {result.folder / 'model'}")
    if (result.folder / "report.html").is_file():
        click.echo(f"report: {result.folder / 'report.html'}")
