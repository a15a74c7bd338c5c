"""The command line: parse, call one library function, print.

Results go to stdout, progress and logs to stderr; how it ends is in `faults.py`. torch is imported
inside the commands, so that `--help` is quick.
"""

from __future__ import annotations

import functools
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

_json_option = click.option("--json", "as_json", is_flag=True, help="Print one JSON value.")
_device_option = click.option("--device", help="cpu, cuda, cuda:1; default: CUDA where there is.")
_data_root_option = click.option(
    "--data-root",
    type=click.Path(path_type=Path),
    envvar="TERRALIGN_DATA",
    help="Folder that holds the data sets (or the variable TERRALIGN_DATA).",
)
_set_option = click.option(
    "--set", "overrides", multiple=True, metavar="KEY=VALUE",
    help="Override one value of the recipe, as in patch.lr=2e-5; may be repeated.",
)  # fmt: skip


def _example(text: str) -> Callable[[Command], Command]:
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


def _threads() -> None:
    from terralign.train.threads import choose_threads, set_threads

    set_threads(choose_threads())


def _print_run(result: Any, as_json: bool) -> None:
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


@main.command()
@click.option(
    "--out", type=click.Path(path_type=Path), default=Path("terralign-quickstart"),
    show_default=True, help="Run folder.",
)  # fmt: skip
@_device_option
@_json_option
@_example("terralign quickstart --out runs/first")
def quickstart(out: Path, device: str | None, as_json: bool) -> None:
    """Run the whole method on a built-in synthetic world: minutes on a laptop, no network.

    Pretrains a tiny CLIP on pictures of everyday shapes, shows that it fails on synthetic
    Sentinel-2 scenes, patches it, aligns Sentinel-2 and Sentinel-1 towers, evaluates, and writes a
    report. Its figures are about a synthetic world.
    """
    from terralign.recipe import load_recipe
    from terralign.run import run_recipe

    _print_run(run_recipe(load_recipe("quickstart"), out, device=device), as_json)
    if not as_json:
        click.echo("These figures are about a synthetic world; they say nothing of real imagery.")


@main.command()
@click.argument("recipe")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder; default runs/NAME.")
@_data_root_option
@_set_option
@_device_option
@_json_option
@_example("terralign run micro-real --data-root data --out runs/m --set patch.epochs=2")
def run(
    recipe: str,
    out: Path | None,
    data_root: Path | None,
    overrides: tuple[str, ...],
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
    _print_run(run_recipe(loaded, folder, data_root=data_root, device=device), as_json)


def _single_stage(stage: str) -> Callable[[Command], Command]:
    """The options that `patch` and `align` share."""

    def wrap(function: Command) -> Command:
        options = [
            click.option("--recipe", required=True, help="Where the stage's settings are."),
            click.option("--base", help="The model to start from, instead of the recipe's."),
            click.option(
                "--out", required=True, type=click.Path(path_type=Path), help="Run folder."
            ),
            _data_root_option,
            _set_option,
            _device_option,
            _json_option,
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
    _print_run(run_recipe(part, out, data_root=data_root, device=device), as_json)


@main.command()
@_single_stage("patch")
@_example("terralign patch --recipe micro-real --data-root data --out runs/patched")
def patch() -> None:
    """Stage 1 alone: fine-tune on satellite RGB, choose alpha, save the patched space."""


@main.command()
@_single_stage("align")
@_example(
    "terralign align --recipe micro-real --base runs/patched/model --data-root data --out runs/a"
)
def align() -> None:
    """Stage 2 alone: align the recipe's sensor towers to a (patched) space."""


@main.command()
@click.argument("model")
@click.option("--data", required=True, help="A data set's name, or a TOML that declares one.")
@_data_root_option
@click.option("--split", default="test", show_default=True)
@click.option("--tower", help="Tower or sensor; default: the data's own sensor, else RGB.")
@click.option(
    "--task", type=click.Choice(["zero-shot", "retrieval"]), default="zero-shot", show_default=True
)
@click.option("--query", help="Retrieval: text, rgb, a tower or sensor.")
@click.option("--gallery", help="Retrieval: text, rgb, a tower or sensor.")
@click.option("--prompts", help="A prompt set's name, or a TOML with templates.")
@_device_option
@_json_option
@_example("terralign evaluate runs/m/model --data eurosat-ms --data-root data --split val --json")
def evaluate(
    model: str,
    data: str,
    data_root: Path | None,
    split: str,
    tower: str | None,
    task: str,
    query: str | None,
    gallery: str | None,
    prompts: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure MODEL on one split of a data set: zero-shot classification, or retrieval.

    MODEL is a space, an open_clip folder, ARCHITECTURE:TAG or ARCHITECTURE:FILE. Giving --query or
    --gallery means retrieval.
    """
    retrieval = task == "retrieval" or bool(query or gallery)
    if retrieval and tower:
        raise click.UsageError("--tower is for classification; name towers by --query, --gallery")
    from terralign.datasets.catalog import open_dataset
    from terralign.encoders.space import EmbeddingSpace
    from terralign.evaluate.classification import evaluate_zero_shot
    from terralign.evaluate.retrieval import evaluate_retrieval
    from terralign.train.threads import choose_device

    chosen_device = choose_device(device)
    space = EmbeddingSpace.load(model)
    samples = open_dataset(data, data_root=data_root, split=split, size=space.input_spec().size)
    _threads()
    space.to(chosen_device)
    if retrieval:
        found = evaluate_retrieval(
            space, samples, query=query, gallery=gallery or "rgb", prompts=prompts
        )
    else:
        found = evaluate_zero_shot(space, samples, tower=tower, prompts=prompts)
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    click.echo(f"{found.dataset} {found.split}, {found.task}, {found.note}")
    if found.prompts:
        click.echo(
            f"prompts: {found.prompts['name']} ({len(found.prompts['templates'])} templates)"
        )
    for metric in found.result.metrics:
        click.echo(
            f"  {metric.name:<16}{100 * metric.value:6.2f} %  "
            f"[{100 * metric.low:.2f}, {100 * metric.high:.2f}]  "
            f"chance {100 * metric.chance:.2f} %, n = {metric.num_samples}"
        )
    for note in found.result.notes:
        click.echo(f"  {note}")


@main.command()
@click.argument("model")
@click.argument("files", nargs=-1, required=True, type=click.Path(path_type=Path))
@click.option("--labels", required=True, help='Class names: "forest,river,industrial area".')
@click.option("--sensor", help="Sensor of GeoTIFFs, the model's own too, or a TOML.")
@click.option("--bands", help="Band names of the files in order: B02,B03,B04,B08.")
@click.option("--dn-offset", type=float, help="Added to Sentinel-2 DN: 0 or -1000.")
@click.option("--units", type=click.Choice(["dn", "physical"]), help="What the files' numbers are.")
@click.option("--composite", help="RGB recipe of the sensor, for the RGB tower.")
@click.option("--tower", help="Default: the sensor's own, else RGB.")
@click.option("--prompts", help="A prompt set's name, or a TOML with templates.")
@_device_option
@_json_option
@_example(
    'terralign classify runs/m/model scene.tif --labels "forest,river" --sensor sentinel2-l2a'
)
def classify(
    model: str,
    files: tuple[Path, ...],
    labels: str,
    sensor: str | None,
    bands: str | None,
    dn_offset: float | None,
    units: Any,
    composite: str | None,
    tower: str | None,
    prompts: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Classify FILES (pictures, or GeoTIFFs of a known sensor) by the names of classes."""
    from terralign.encoders.space import EmbeddingSpace
    from terralign.evaluate.files import classify_files
    from terralign.train.threads import choose_device

    names = [name.strip() for name in labels.split(",") if name.strip()]
    if len(names) < 2:
        raise click.UsageError('--labels needs at least two names, as in "forest,river"')
    chosen_device = choose_device(device)
    space = EmbeddingSpace.load(model).to(chosen_device)
    _threads()
    rows = classify_files(
        space,
        files,
        names,
        sensor=space.find_sensor(sensor) if sensor else None,
        bands=[band.strip() for band in bands.split(",")] if bands else None,
        dn_offset=dn_offset,
        units=units,
        composite=composite,
        tower=tower,
        prompts=prompts,
    )
    if as_json:
        click.echo(json.dumps([row.to_json() for row in rows]))
        return
    width = max(len(str(row.file)) for row in rows)
    for row in rows:
        best = sorted(row.probabilities.items(), key=lambda item: -item[1])[:3]
        said = ", ".join(f"{name} {100 * value:.1f} %" for name, value in best)
        click.echo(f"{row.file!s:<{width}}  {said}  ({row.tower})")


@main.command()
@click.argument("what", required=False)
@_json_option
@_example("terralign info runs/m/model")
def info(what: str | None, as_json: bool) -> None:
    """Say what WHAT is: datasets, sensors, recipes, prompts, or a model. Default: the versions."""
    from terralign.about import about

    value = about(what)
    click.echo(json.dumps(value) if as_json else _outline(value))


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
            shown = ", ".join(map(str, one)) if isinstance(one, list | tuple) else one
            lines.append(f"{indent}{key:<{width}}  {shown}")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
