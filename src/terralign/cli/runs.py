"""The commands that run recipes: quickstart, run, patch, align."""

from __future__ import annotations

import logging
import os
import sys
from pathlib import Path
from typing import Any

import click

from terralign.cli.app import (
    FOLDER,
    Command,
    data_root_option,
    device_option,
    example,
    json_option,
    main,
    print_run,
    set_option,
)
from terralign.errors import RecipeError
from terralign.launch import LAUNCHER, launch, own_command, place


@main.command()
@click.option(
    "--out", type=FOLDER, default=Path("terralign-quickstart"),
    show_default=True, help="Run folder.",
)  # fmt: skip
@device_option
@json_option
@example("terralign quickstart --out runs/first")
def quickstart(out: Path, device: str | None, as_json: bool) -> None:
    """Run the whole method on a synthetic world, offline, in minutes.

    Pretrains a tiny CLIP on pictures of everyday shapes, shows that it fails on synthetic
    Sentinel-2 scenes, patches it, aligns Sentinel-2 and Sentinel-1 towers, evaluates, embeds a
    scene and searches it by text, and writes a report. The numbers do not transfer to real imagery.
    """
    from terralign.runs.recipe import load_recipe
    from terralign.runs.run import run_recipe

    print_run(run_recipe(load_recipe("quickstart"), out, device=device), as_json)
    if not as_json:
        click.echo("Synthetic data: these numbers do not transfer to real imagery.")


@main.command()
@click.argument("recipe")
@click.option("--out", type=FOLDER, help="Run folder; default: runs/NAME.")
@data_root_option
@set_option
@click.option(
    "--stores", type=FOLDER,
    help="Where a recipe with pack = true keeps packed data sets; default: in the run folder.",
)  # fmt: skip
@click.option(
    "--nproc", type=click.IntRange(min=1),
    help="Processes that train together on this machine, each on its own GPU; default: one.",
)  # fmt: skip
@device_option
@json_option
@example("terralign run eurosat-starter --data-root data --out runs/m --set patch.epochs=2")
def run(
    recipe: str,
    out: Path | None,
    data_root: Path | None,
    overrides: tuple[str, ...],
    stores: Path | None,
    nproc: int | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Run a RECIPE: patch, align, evaluate, report.

    RECIPE is a name (`terralign info recipes` lists them) or a TOML file. Run the same command
    again to resume an interrupted run. `torchrun -m terralign run RECIPE` runs it on several GPUs
    or machines.
    """
    _take_place(nproc)
    from terralign.cli.checks import check_recipe

    check_recipe(recipe, data_root)
    from terralign.runs.recipe import load_recipe

    loaded = load_recipe(recipe, overrides=overrides, data_root=data_root)
    if nproc is not None and nproc > 1 and place().size == 1:
        sys.exit(launch(own_command(), nproc))
    from terralign.runs.run import run_recipe

    folder = out or Path("runs") / loaded.name
    print_run(
        run_recipe(loaded, folder, data_root=data_root, device=device, stores=stores), as_json
    )


def _take_place(nproc: int | None = None) -> None:
    """Of several processes only the first reports progress; torch reports nothing by itself."""
    here = place()
    if here.size == 1:
        return
    if nproc is not None and nproc > 1 and LAUNCHER not in os.environ:
        raise RecipeError(
            f"--nproc {nproc} within {here.size} processes that were started already; leave it out"
        )
    os.environ.setdefault("TORCH_CPP_LOG_LEVEL", "ERROR")
    if here.rank > 0:
        logging.getLogger("terralign").setLevel(logging.ERROR)


def _stage_options(function: Command) -> Command:
    """The options that `patch` and `align` share."""
    for option in (
        json_option,
        device_option,
        set_option,
        data_root_option,
        click.option("--out", required=True, type=FOLDER, help="Run folder."),
        click.option("--recipe", required=True, help="A name or a TOML; its settings count."),
    ):
        function = option(function)
    return function


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
    _take_place()
    from terralign.cli.checks import check_recipe

    check_recipe(recipe, data_root, base=base)
    from terralign.runs.recipe import load_recipe, single_stage
    from terralign.toml_paths import TomlPaths

    loaded = load_recipe(recipe, overrides=overrides, data_root=data_root)
    if base is not None:
        base = TomlPaths.here(data_root).resolve({"model": base})["model"]
    part = single_stage(loaded, stage, base=base)
    from terralign.runs.run import run_recipe

    print_run(run_recipe(part, out, data_root=data_root, device=device), as_json)


@main.command()
@click.option("--base", help="The model to start from, in place of the recipe's.")
@_stage_options
@example("terralign patch --recipe eurosat-starter --data-root data --out runs/patched")
def patch(**arguments: Any) -> None:
    """Run stage 1 alone: patch a CLIP on satellite RGB.

    Fine-tunes the RGB tower, chooses alpha, saves the patched space and measures it.
    """
    _run_stage("patch", **arguments)


@main.command()
@click.option(
    "--base",
    required=True,
    help="The space to add towers to, such as the model folder that `patch` wrote.",
)
@_stage_options
@example(
    "terralign align --recipe eurosat-starter --base runs/patched/model --data-root data "
    "--out runs/a"
)
def align(**arguments: Any) -> None:
    """Run stage 2 alone: align sensor towers to a space.

    The space is the one that --base names; the recipe's towers are added to it and measured.
    """
    _run_stage("align", **arguments)
