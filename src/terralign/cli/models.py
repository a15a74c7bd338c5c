"""The commands that take a model: evaluate, classify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from terralign.cli.app import data_root_option, device_option, example, json_option, main, threads
from terralign.cli.class_names import read_class_names, split_list
from terralign.cli.faults import name_options, report


@main.command()
@click.argument("model")
@click.option("--data", required=True, help="A data set's name, a packed store, or a TOML.")
@data_root_option
@click.option("--split", default="test", show_default=True, help="The split to measure on.")
@click.option("--tower", help="A tower or sensor; default: the data's own sensor, else RGB.")
@click.option(
    "--task", type=click.Choice(["zero-shot", "retrieval"]), default="zero-shot",
    show_default=True, help="What to measure.",
)  # fmt: skip
@click.option("--query", help="Retrieval: text, rgb, a tower or a sensor.")
@click.option("--gallery", help="Retrieval: text, rgb, a tower or a sensor.")
@click.option("--prompts", help="A prompt set's name, or a TOML with templates.")
@click.option("--classes", help="Class names: openai-imagenet; default: the data set's own.")
@click.option("--composite", help="RGB recipe of the data's sensor, for the RGB tower.")
@device_option
@json_option
@example("terralign evaluate runs/m/model --data eurosat-ms --data-root data --split val --json")
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
    classes: str | None,
    composite: str | None,
    device: str | None,
    as_json: bool,
) -> None:
    """Measure a MODEL on one split of a data set.

    By zero-shot classification, or by retrieval (--query, --gallery). MODEL is a space, an
    open_clip folder, hf-hub:ORG/NAME, ARCHITECTURE:TAG or ARCHITECTURE:FILE.
    """
    retrieval = task == "retrieval" or bool(query or gallery)
    if retrieval and tower:
        raise click.UsageError("--tower is for classification; name towers by --query, --gallery")
    if retrieval and classes:
        raise click.UsageError("--classes is for classification; leave it out")
    from terralign.cli.checks import check_data, check_prompts
    from terralign.encoders.sources import check_source

    check_source(model)
    check_data(data, data_root)
    check_prompts(prompts)
    from terralign.datasets.catalog import open_dataset
    from terralign.datasets.composited import with_composite
    from terralign.encoders.picture_size import picture_size
    from terralign.encoders.space import EmbeddingSpace
    from terralign.evaluate.classification import choose_class_names, evaluate_zero_shot
    from terralign.evaluate.embed import require_rgb
    from terralign.evaluate.retrieval import evaluate_retrieval
    from terralign.train.threads import choose_device

    chosen_device = choose_device(device)
    space = EmbeddingSpace.load(model)
    size = picture_size(space.input_spec())
    samples = open_dataset(data, data_root=data_root, split=split, size=size)
    samples = with_composite(samples, composite)
    if composite is not None:
        sides = (query, gallery or "rgb") if retrieval else (tower,)
        require_rgb(space, samples, sides)
    threads()
    space.to(chosen_device)
    if retrieval:
        found = evaluate_retrieval(
            space, samples, query=query, gallery=gallery or "rgb", prompts=prompts
        )
    else:
        names = choose_class_names(samples, classes)
        found = evaluate_zero_shot(space, samples, tower=tower, prompts=prompts, class_names=names)
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
@click.option(
    "--labels", "lists", multiple=True,
    help='Class names: "forest,river,industrial area"; a name with a comma in quotes, as in CSV.',
)  # fmt: skip
@click.option("--label", "names", multiple=True, help="One class name as it is; may be repeated.")
@click.option(
    "--labels-file", type=click.Path(path_type=Path, exists=True, dir_okay=False),
    help="A file of class names, UTF-8, one a line.",
)  # fmt: skip
@click.option("--sensor", help="Sensor of GeoTIFFs, the model's own too, or a TOML.")
@click.option(
    "--bands",
    help="Band names in the files' order, - for one to leave out: B02,B03,-,B08; or some of those "
    "that the files name.",
)
@click.option("--dn-offset", type=float, help="Added to Sentinel-2 DN: 0 or -1000.")
@click.option("--units", type=click.Choice(["dn", "physical"]), help="What the files' numbers are.")
@click.option("--composite", help="RGB recipe of the sensor, for the RGB tower.")
@click.option("--tower", help="Default: the sensor's own, else RGB.")
@click.option("--prompts", help="A prompt set's name, or a TOML with templates.")
@click.option(
    "--top", type=click.IntRange(1), default=3, show_default=True,
    help="How many classes a line shows; --json has all.",
)  # fmt: skip
@device_option
@json_option
@example('terralign classify runs/m/model scene.tif --labels "forest,river" --sensor sentinel2-l2a')
def classify(
    model: str,
    files: tuple[Path, ...],
    lists: tuple[str, ...],
    names: tuple[str, ...],
    labels_file: Path | None,
    sensor: str | None,
    bands: str | None,
    dn_offset: float | None,
    units: Any,
    composite: str | None,
    tower: str | None,
    prompts: str | None,
    top: int,
    device: str | None,
    as_json: bool,
) -> None:
    """Classify FILES by the names of classes.

    FILES are pictures, or GeoTIFFs of a known sensor. A file that cannot be read is
    reported, the others are classified, and the exit code is 1.
    """
    labels = read_class_names(lists, names, labels_file)
    from terralign.cli.checks import check_paths, check_prompts, check_sensor
    from terralign.encoders.sources import check_source

    check_source(model)
    check_paths(files)
    check_prompts(prompts)
    check_sensor(sensor)
    from terralign.encoders.space import EmbeddingSpace
    from terralign.evaluate.files import FileFault, classify_each
    from terralign.train.threads import choose_device

    chosen_device = choose_device(device)
    space = EmbeddingSpace.load(model).to(chosen_device)
    threads()
    rows = classify_each(
        space,
        files,
        labels,
        sensor=space.find_sensor(sensor) if sensor else None,
        bands=split_list(bands, "--bands") if bands else None,
        dn_offset=dn_offset,
        units=units,
        composite=composite,
        tower=tower,
        prompts=prompts,
    )
    width = max(len(str(file)) for file in files)
    values, num_failed = [], 0
    for row in rows:
        values.append(row.to_json())
        if isinstance(row, FileFault):
            num_failed += 1
            report(name_options(row.error, click.get_current_context().command.params))
        elif not as_json:
            seen = row.tower
            if row.valid_share < 1:
                seen += f", {100 * row.valid_share:.1f} % of the numbers valid"
            click.echo(f"{row.file!s:<{width}}  {_likeliest(row.probabilities, top)}  ({seen})")
    if as_json:
        click.echo(json.dumps(values))
    if num_failed:
        if len(files) > 1:
            click.echo(f"terralign: {num_failed} of {len(files)} files failed", err=True)
        raise SystemExit(1)


def _likeliest(probabilities: dict[str, float], top: int) -> str:
    """The likeliest classes, and what is left for the others."""
    best = sorted(probabilities.items(), key=lambda item: -item[1])
    shown = [f"{name} {100 * value:.1f} %" for name, value in best[:top]]
    if len(best) > top:
        rest = sum(value for _, value in best[top:])
        shown.append(f"{len(best) - top} more {100 * rest:.1f} %")
    return ", ".join(shown)
