"""The commands that run recipes: quickstart, run, patch, align."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from terralign.cli.app import (
    Command,
    data_root_option,
    device_option,
    example,
    json_option,
    main,
    print_run,
    set_option,
)


@main.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("terralign-quickstart"),
    show_default=True, help="Run folder.",
)  # fmt: skip
@device_option
@json_option
@example("terralign quickstart --out runs/first")
def quickstart(out: Path, device: str | None, as_json: bool) -> None:
    """Run the whole method on a built-in synthetic world: minutes on a laptop, no network.

    Pretrains a tiny CLIP on pictures of everyday shapes, shows that it fails on synthetic
    Sentinel-2 scenes, patches it, aligns Sentinel-2 and Sentinel-1 towers, evaluates, and writes a
    report. Its figures are about a synthetic world.
    """
    from terralign.recipe import load_recipe
    from terralign.run import run_recipe

    print_run(run_recipe(load_recipe("quickstart"), out, device=device), as_json)
    if not as_json:
        click.echo("These figures are about a synthetic world; they say nothing of real imagery.")


@main.command()
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default runs/NAME.")
@data_root_option
@set_option
@click.option(
    "--stores", type=click.Path(path_type=Path),
    help="Where a recipe with pack = true keeps its stores; default: in the run folder.",
)  # fmt: skip
@device_option
@json_option
@example("terralign run micro-real --data-root data --out runs/m --set patch.epochs=2")
def run(
    recipe: str,
    out: Path | None,
    data_root: Path | None,
    overrides: tuple[str, ...],
    stores: Path | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Run a RECIPE: one that ships (see `terralign info recipes`) or a TOML file.

    The same command again resumes an interrupted run, or says that it is complete.
    """
    from terralign.recipe import load_recipe
    from terralign.run import run_recipe

    loaded = load_recipe(recipe, overrides=overrides)
    folder = out or Path("runs") / loaded.name
    print_run(
        run_recipe(loaded, folder, data_root=data_root, device=device, stores=stores), as_json
    )


def _single_stage(stage: str) -> Callable[[Command], Command]:
    """The options that `patch` and `align` share."""

    def wrap(function: Command) -> Command:
        options = [
            click.option("--recipe", required=True, help="Where the stage's settings are."),
            click.option("--base", help="The model to start from, instead of the recipe's."),
            click.option(
                "--out", required=True, type=click.Path(path_type=Path), help="Run folder."
            ),
            data_root_option,
            set_option,
            device_option,
            json_option,
        ]

        @functools.wraps(function)
        def call(**arguments: Any) -> None:
            _run_stage(stage, **arguments)

        wrapped: Command = call
        for option in reversed(options):
            wrapped = option(wrapped)
        return wrapped

    return wrap


def _run_stage(
    stage: str,
    *,
    recipe: str,
    base: str | None,
    out: Path,
    data_root: Path | None,
    overrides: tuple[str, ...],
    device: str | None,
    as_json: bool,
) -> None:
    from terralign.recipe import load_recipe, single_stage
    from terralign.run import run_recipe

    part = single_stage(load_recipe(recipe, overrides=overrides), stage, base=base)
    print_run(run_recipe(part, out, data_root=data_root, device=device), as_json)


@main.command()
@_single_stage("patch")
@example("terralign patch --recipe micro-real --data-root data --out runs/patched")
def patch() -> None:
    """Stage 1 alone: fine-tune on satellite RGB, choose alpha, save the patched space."""


@main.command()
@_single_stage("align")
@example(
    "terralign align --recipe micro-real --base runs/patched/model --data-root data --out runs/a"
)
def align() -> None:
    """Stage 2 alone: align the recipe's sensor towers to a (patched) space."""
