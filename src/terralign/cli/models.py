"""The commands that take a model: evaluate, classify."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from terralign.cli.app import data_root_option, device_option, example, json_option, main, threads


@main.command()
@click.argument("model")
@click.option("--data", required=True, help="A data set's name, a packed store, or a TOML.")
@data_root_option
@click.option("--split", default="test", show_default=True)
@click.option("--tower", help="Tower or sensor; default: the data's own sensor, else RGB.")
@click.option(
    "--task", type=click.Choice(["zero-shot", "retrieval"]), default="zero-shot", show_default=True
)
@click.option("--query", help="Retrieval: text, rgb, a tower or sensor.")
@click.option("--gallery", help="Retrieval: text, rgb, a tower or sensor.")
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
    """Measure MODEL on one split of a data set: zero-shot classification, or retrieval.

    MODEL is a space, an open_clip folder, ARCHITECTURE:TAG or ARCHITECTURE:FILE. Giving --query or
    --gallery means retrieval.
    """
    retrieval = task == "retrieval" or bool(query or gallery)
    if retrieval and tower:
        raise click.UsageError("--tower is for classification; name towers by --query, --gallery")
    if retrieval and classes:
        raise click.UsageError("--classes is for classification; leave it out")
    from terralign.datasets.catalog import open_dataset
    from terralign.datasets.composited import with_composite
    from terralign.encoders.space import EmbeddingSpace
    from terralign.evaluate.classification import choose_class_names, evaluate_zero_shot
    from terralign.evaluate.embed import require_rgb
    from terralign.evaluate.retrieval import evaluate_retrieval
    from terralign.train.threads import choose_device

    chosen_device = choose_device(device)
    space = EmbeddingSpace.load(model)
    samples = open_dataset(data, data_root=data_root, split=split, size=space.input_spec().size)
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
@click.option("--labels", required=True, help='Class names: "forest,river,industrial area".')
@click.option("--sensor", help="Sensor of GeoTIFFs, the model's own too, or a TOML.")
@click.option("--bands", help="Band names of the files in order: B02,B03,B04,B08.")
@click.option("--dn-offset", type=float, help="Added to Sentinel-2 DN: 0 or -1000.")
@click.option("--units", type=click.Choice(["dn", "physical"]), help="What the files' numbers are.")
@click.option("--composite", help="RGB recipe of the sensor, for the RGB tower.")
@click.option("--tower", help="Default: the sensor's own, else RGB.")
@click.option("--prompts", help="A prompt set's name, or a TOML with templates.")
@device_option
@json_option
@example('terralign classify runs/m/model scene.tif --labels "forest,river" --sensor sentinel2-l2a')
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
    threads()
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
