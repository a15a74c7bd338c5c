"""The command itself, what its parts share, and where logs go."""

from __future__ import annotations

import functools
import json
import logging
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import click

import terralign
from terralign.cli.faults import OneLineFaults, one_line
from terralign.errors import StorageError
from terralign.files import not_found, require_folder
from terralign.launch import place

Command = Callable[..., None]


class _Folder(click.Path):
    """A folder to write into, which need not exist; any other is refused before the work."""

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        folder = Path(os.fsdecode(super().convert(value, param, context)))
        require_folder(folder)
        return folder


FOLDER = _Folder(path_type=Path)


class _Existing(click.Path):
    """A file or folder that exists; of any other, the nearest name beside it is named."""

    def convert(
        self, value: Any, param: click.Parameter | None, context: click.Context | None
    ) -> Any:
        if not os.path.lexists(value):
            self.fail(not_found(os.fsdecode(value)), param, context)
        return super().convert(value, param, context)


EXISTING = _Existing(exists=True)
EXISTING_FILE = _Existing(path_type=Path, exists=True, dir_okay=False)

json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
device_option = click.option(
    "--device", help="cpu, cuda or cuda:1; default: cuda if available, else cpu."
)
data_root_option = click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="TERRALIGN_DATA",
    help="Folder that holds the data sets; default: the variable TERRALIGN_DATA.",
)
set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override one value of the recipe, as in patch.lr=2e-5; repeatable.",
)  # fmt: skip

READING_ORDER = (
    "demo", "quickstart", "run", "patch", "align", "evaluate", "classify", "embed", "index",
    "search", "score", "serve", "bench", "ablate", "fetch", "pack", "info",
)  # fmt: skip
"""The commands as help lists them: what a newcomer needs first. Others come last."""


def option_group(
    options: Sequence[Callable[[Command], Command]], into: str, *, apart: Sequence[str] = ()
) -> Callable[[Command], Command]:
    """Options for a command, of which those that are given are passed on as one mapping, `into`.

    `apart`: names of options that are passed on by themselves.
    """

    def wrap(function: Command) -> Command:
        @functools.wraps(function)
        def call(**arguments: Any) -> None:
            given = {name: arguments.pop(name) for name in names}
            asked = {name: one for name, one in given.items() if one not in (None, ())}
            function(**{into: asked}, **arguments)

        wrapped: Any = call
        others = len(getattr(wrapped, "__click_params__", ()))
        for option in reversed(options):
            wrapped = option(wrapped)
        names = [one.name for one in wrapped.__click_params__[others:] if one.name not in apart]
        command: Command = wrapped
        return command

    return wrap


def example(text: str) -> Callable[[Command], Command]:
    """Append an example to a command's help."""

    def add(function: Command) -> Command:
        function.__doc__ = f"{function.__doc__}\n\n    \b\n    Example:\n      {text}\n    "
        return function

    return add


_FLAGS = ("--verbose", "--quiet", "--debug")


class _Terralign(OneLineFaults):
    """Lists its commands in reading order, each with the whole first sentence of its help; its own
    flags may stand behind a command too."""

    def parse_args(self, context: click.Context, args: list[str]) -> list[str]:
        end = args.index("--") if "--" in args else len(args)
        flags = [one for one in args[:end] if one in _FLAGS]
        others = [one for one in args[:end] if one not in _FLAGS]
        return super().parse_args(context, [*flags, *others, *args[end:]])

    def list_commands(self, context: click.Context) -> list[str]:
        place = {name: number for number, name in enumerate(READING_ORDER)}
        return sorted(self.commands, key=lambda name: (place.get(name, len(place)), name))

    def format_commands(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(
                [
                    (name, self.commands[name].get_short_help_str(limit=1000))
                    for name in self.list_commands(context)
                ]
            )


class _OneLine(logging.Formatter):
    """A message as one line; tracebacks, which --debug asks for, keep theirs."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        return one_line(super().formatMessage(record))


@click.group(cls=_Terralign, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(terralign.__version__, prog_name="terralign")
@click.option("--verbose", is_flag=True, help="Report more, such as the threads computed with.")
@click.option("--quiet", is_flag=True, help="Report no progress, only warnings and results.")
@click.option("--debug", is_flag=True, help="Show the traceback of a fault.")
def main(debug: bool, quiet: bool, verbose: bool) -> None:
    """Bring any satellite sensor into a CLIP's embedding space.

    Patch a CLIP on satellite RGB, align other sensors to it, then classify and search
    multispectral and radar imagery by text. Start with: terralign demo
    """
    try:
        os.getcwd()
    except FileNotFoundError as error:  # libraries end the process without it
        raise StorageError("the working folder is gone; change to one that exists") from error
    if quiet and verbose:
        raise click.UsageError("--quiet and --verbose exclude each other; give one")
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(_OneLine("%(message)s"))
    logger = logging.getLogger("terralign")
    logger.handlers[:] = [handler]
    logger.setLevel(logging.WARNING if quiet else logging.DEBUG if verbose else logging.INFO)
    logger.propagate = False
    # What other libraries log is either repeated by terralign in one line, or of no use.
    logging.getLogger().addHandler(logging.NullHandler())
    for name in ("huggingface_hub", "httpx", "matplotlib", "rasterio"):
        logging.getLogger(name).setLevel(logging.CRITICAL)
    warnings.filterwarnings("ignore", category=UserWarning, module="PIL")  # of the same kind
    warnings.showwarning = _report_warning
    sys.unraisablehook = _report_unraisable


_OF_NO_USE = ("Dataset has no geotransform", "The dataset has no Overviews")
"""How warnings begin about pictures that are made in memory to be shown."""


def _report_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """In one line, without the place in the code.

    What is of no use is left out here, since a filter does not hold: libraries set their own for
    a while, and in threads one ends the other's.
    """
    if not str(message).startswith(_OF_NO_USE):
        logging.getLogger(__name__).warning("%s", message)


def _report_unraisable(fault: Any) -> None:
    """As Python does, but for GDAL's messages with bytes that are no text, which rasterio drops."""
    if not str(fault.object).startswith("rasterio."):
        sys.__unraisablehook__(fault)


def say_loading(model: str) -> None:
    """On a terminal, that a model is being loaded: the libraries for it alone take seconds."""
    if sys.stderr.isatty():
        logging.getLogger(__name__).info("loading %s ...", model)


def threads() -> None:
    """Torch's threads for commands that only compute: few, see `compute.py`."""
    from terralign.compute import choose_threads, set_threads

    set_threads(choose_threads())


def print_run(result: Any, as_json: bool) -> None:
    """What `run_recipe` did, as a table or as JSON; of several processes the first prints it."""
    if place().rank > 0:
        return
    from terralign.report.comparison import format_table
    from terralign.report.searched import format_searched
    from terralign.runs.searched import PARTS, SEARCH

    if as_json:
        values = {
            "folder": str(result.folder),
            "complete_before": result.complete_before,
            "rows": [row.to_json() for row in result.rows],
        }
        if result.searched:
            values["searched"] = [one.to_json() for one in result.searched]
        click.echo(json.dumps(values))
        return
    if result.rows:
        click.echo(format_table(result.rows))
    if result.searched:
        click.echo(format_searched(result.searched))
    if result.complete_before:
        click.echo(
            f"{result.folder} is already complete; nothing to do. For data that changed since, "
            "choose another folder."
        )
    click.echo(f"model:  {result.folder / 'model'}")
    if (result.folder / "report.html").is_file():
        click.echo(f"report: {result.folder / 'report.html'}")
    if result.searched:
        parts = shlex.quote(str(result.folder / SEARCH / PARTS))
        click.echo(f'search: terralign search {parts} "a lake of shallow water"')
