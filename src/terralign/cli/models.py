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
from terralign.errors import counted


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
    from terralign.datasets.samples import Samples

    samples = Samples.open(data, data_root=data_root, split=split)
    say_loading(model)
    from terralign.compute import choose_device
    from terralign.encoders.space import EmbeddingSpace
    from terralign.evaluation.classification import choose_class_names
    from terralign.training import evaluate as measure

    space = EmbeddingSpace.load(model).to(choose_device(device))
    threads()
    found = measure(
        space,
        samples,
        tower=tower,
        prompts=prompts,
        class_names=choose_class_names(samples, classes) if classes else None,
        task="retrieval" if retrieval else "zero-shot",
        query=query,
        gallery=gallery,
        composite=composite,
    )
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
