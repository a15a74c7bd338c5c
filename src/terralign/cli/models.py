"""The command that measures a model on a data set, or a search against polygons: evaluate."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import click
from click.core import ParameterSource

from terralign.cli.app import (
    EXISTING_FILE,
    data_root_option,
    device_option,
    example,
    json_option,
    main,
    option_group,
    say_loading,
    threads,
)
from terralign.cli.class_names import split_list
from terralign.cli.faults import name_options
from terralign.cli.imagery import read_bbox
from terralign.errors import counted

_TRUTH_OPTIONS = [
    click.option(
        "--truth", type=click.Path(path_type=Path),
        help="Measure a search: a GeoJSON file of polygons, whose property `class` names theirs.",
    ),
    click.option(
        "--text", "texts", multiple=True, metavar="[CLASS=]TEXT",
        help="With --truth: what to search for, and the class of polygons that it means; "
        "repeatable; default: the names of the classes.",
    ),
    click.option(
        "-k", "ks", metavar="K,K", default=None,
        help="With --truth: how many hits to judge; default: 10,20,50.",
    ),
    click.option(
        "--min-cover", type=click.FloatRange(0, 1, min_open=True), metavar="SHARE",
        help="With --truth: a window is relevant if polygons cover so much of it; default: 0.5.",
    ),
    click.option(
        "--class-property", metavar="NAME",
        help="With --truth: the property that names the class of a polygon; default: class.",
    ),
    click.option(
        "--model", "space", metavar="SPACE",
        help="With --truth: a space; default: the one that the vectors were made with.",
    ),
    click.option(
        "--bbox", callback=read_bbox, metavar="W,S,E,N",
        help="With --truth: only windows that touch this box, in degrees.",
    ),
    click.option(
        "--polygon", type=EXISTING_FILE,
        help="With --truth: only windows that touch these polygons, such as the area mapped.",
    ),
    click.option(
        "--collapse", is_flag=True, default=None,
        help="With --truth: of windows that overlap, judge the best alone.",
    ),
    click.option(
        "--cut", type=click.FloatRange(0, 1), metavar="PROBABILITY",
        help="With --truth: judge only hits that pass this relevance cut, see search.",
    ),
    click.option(
        "--centre/--no-centre", default=None,
        help="With --truth: how windows of several towers are ranked, see search.",
    ),
]  # fmt: skip


@main.command()
@click.argument("model", metavar="MODEL|FOLDER")
@click.option("--data", help="A data set's name, a packed store, or a TOML.")
@data_root_option
@click.option("--split", default="test", show_default=True, help="The split to measure on.")
@click.option(
    "--tower",
    help="A tower or sensor; default: the data's own sensor, else RGB; with --truth: all.",
)
@click.option(
    "--task", type=click.Choice(["zero-shot", "retrieval"]), default="zero-shot",
    show_default=True, help="What to measure.",
)  # fmt: skip
@click.option("--query", help="Retrieval: text, rgb, a tower or a sensor.")
@click.option("--gallery", help="Retrieval: text, rgb, a tower or a sensor.")
@click.option("--prompts", help="A prompt set's name, or a TOML with templates.")
@click.option("--classes", help="Class names: openai-imagenet; default: the data set's own.")
@click.option("--composite", help="RGB recipe of the data's sensor, for the RGB tower.")
@option_group(_TRUTH_OPTIONS, "asked", apart=["truth"])
@device_option
@json_option
@example(
    "terralign evaluate runs/m/model --data eurosat-ms --data-root data --split val --json\n"
    '      terralign evaluate scenes --truth polygons.geojson --text "water=a river or a lake"'
)
def evaluate(
    model: str,
    data: str | None,
    data_root: Path | None,
    split: str,
    tower: str | None,
    task: str,
    query: str | None,
    gallery: str | None,
    prompts: str | None,
    classes: str | None,
    composite: str | None,
    truth: Path | None,
    asked: dict[str, Any],
    device: str | None,
    as_json: bool,
) -> None:
    """Measure a model on a data set, or a search against polygons.

    MODEL is a space, an open_clip folder, hf-hub:ORG/NAME, ARCHITECTURE:TAG or ARCHITECTURE:FILE;
    it is measured on --data by zero-shot classification, or by retrieval (--query, --gallery).
    FOLDER is one that `embed` filled; with --truth, searches of it are measured: the share of the
    first k hits that are of the class (precision), and the share of its windows that are among them
    (recall).
    """
    if truth is not None:
        context = click.get_current_context()
        given = [
            f"--{name}"
            for name in ("data", "split", "task", "query", "gallery", "classes", "composite")
            if context.get_parameter_source(name) is ParameterSource.COMMANDLINE
        ]
        if given:
            raise click.UsageError(f"{', '.join(given)}: no effect with --truth; leave it out")
        _evaluate_search(Path(model), truth, tower, prompts, asked, device, as_json)
        return
    if asked:
        flags = [_TRUTH_FLAGS.get(name, f"--{name.replace('_', '-')}") for name in asked]
        raise click.UsageError(f"{', '.join(flags)}: only with --truth")
    if data is None:
        raise click.UsageError(
            "Missing option '--data': a data set, or '--truth': polygons to measure a search by"
        )
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


_TRUTH_FLAGS = {"texts": "--text", "ks": "-k", "space": "--model"}


def _evaluate_search(
    folder: Path,
    truth: Path,
    tower: str | None,
    prompts: str | None,
    asked: dict[str, Any],
    device: str | None,
    as_json: bool,
) -> None:
    ks, texts = _numbers(asked.pop("ks", "10,20,50")), asked.pop("texts", ())
    name = asked.pop("space", None)
    if name is not None:
        from terralign.encoders.sources import check_source

        check_source(name)
    from terralign.cli.checks import check_prompts
    from terralign.index.filters import read_polygon
    from terralign.index.truth import read_truth

    check_prompts(prompts)
    polygons = read_truth(truth, **_chosen(asked, "class_property"))
    if "polygon" in asked:
        asked["polygon"] = read_polygon(asked["polygon"])
    pairs = _by_class(texts, list(polygons.shapes))
    from terralign.index.search import open_index

    index = open_index(folder)
    say_loading(name or index.model)
    from terralign.compute import choose_device
    from terralign.encoders.space import EmbeddingSpace
    from terralign.searching.evaluate import evaluate_search

    space = EmbeddingSpace.load(name or index.model).to(choose_device(device))
    threads()
    if tower is not None:
        asked["towers"] = split_list(tower, "--tower")
    found = evaluate_search(space, index, polygons, pairs, ks=ks, prompts=prompts, **asked)
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    click.echo(found)
    for note in found.notes:
        click.echo(name_options(note, click.get_current_context().command.params))


def _chosen(asked: dict[str, Any], name: str) -> dict[str, Any]:
    return {name: asked.pop(name)} if name in asked else {}


def _numbers(text: str) -> list[int]:
    """K,K as whole numbers."""
    try:
        found = [int(one) for one in text.split(",")]
    except ValueError:
        found = []
    if not found or not all(1 <= one <= 100_000 for one in found):
        raise click.BadParameter(
            f"{text!r}: expected whole numbers from 1 to 100,000, as in 10,20,50", param_hint="-k"
        )
    return found


def _by_class(texts: Sequence[str], classes: Sequence[str]) -> dict[str, list[str]] | None:
    """Texts by class; one without CLASS= is of the class of its name, or of the only one."""
    if not texts:
        return None
    found: dict[str, list[str]] = {}
    for given in texts:
        label, sign, text = (one.strip() for one in given.partition("="))
        if not sign:
            text, label = label, label if label in classes or len(classes) > 1 else classes[0]
        if (sign and label not in classes) or not text:
            raise click.UsageError(
                f"--text {given!r}: expected CLASS=TEXT with one of the classes "
                f"{', '.join(classes)}"
            )
        if label not in classes:
            raise click.UsageError(
                f"--text {given!r}: say which class it means, as in "
                f'--text "{classes[0]}={text}"; the polygons are of {", ".join(classes)}'
            )
        found.setdefault(label, []).append(text)
    return found
