"""The command that measures a model: evaluate."""

from __future__ import annotations

import json
from pathlib import Path

import click

from terralign.cli.app import (
    data_root_option,
    device_option,
    example,
    json_option,
    main,
    say_loading,
    threads,
)
from terralign.errors import SplitError, TerralignError, counted
from terralign.sensors import RGB

_LIKELY_SIZE = "224-shortest-bicubic"
"""Data are opened before the model, so that slips are reported at once; pictures are opened again
where the model's size is another."""


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

    samples = None
    try:
        samples = open_dataset(data, data_root=data_root, split=split, size=_LIKELY_SIZE)
    except SplitError:
        raise
    except TerralignError:
        pass  # perhaps for the size: a packed store of pictures has its own
    say_loading(model)
    from terralign.compute import choose_device
    from terralign.datasets.composited import with_composite
    from terralign.encoders.picture_size import picture_size
    from terralign.encoders.space import EmbeddingSpace
    from terralign.evaluation.classification import choose_class_names, evaluate_zero_shot
    from terralign.evaluation.embed import require_rgb
    from terralign.evaluation.retrieval import evaluate_retrieval
    from terralign.scenes.pictures import as_picture_size

    chosen_device = choose_device(device)
    space = EmbeddingSpace.load(model)
    size = picture_size(space.input_spec())
    if samples is None or (RGB in samples.layouts and size != as_picture_size(_LIKELY_SIZE)):
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
        number = counted(len(found.prompts["templates"]), "template")
        click.echo(f"prompts: {found.prompts['name']} ({number})")
    click.echo(found.table().text())
    for note in found.result.notes:
        click.echo(note)
