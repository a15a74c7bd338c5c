"""Make the pictures of the experiment log: `docs/images/log-*.png`.

    terralign ablate bound --data-root DATA --out studies/bound
    python docs/make_log_pictures.py --bound studies/bound

    terralign ablate efficiency --data-root DATA --out studies/efficiency
    python docs/make_log_pictures.py --efficiency studies/efficiency

    terralign ablate losses --data-root DATA --out studies/losses --seed 0 --seed 1 --seed 2
    terralign ablate bands --data-root DATA --out studies/bands --seed 0 --seed 1 --seed 2 \\
        --only rgb
    python docs/make_log_pictures.py --trade studies/losses --trade studies/bands

    terralign run starter --data-root DATA --out runs/starter
    python docs/make_log_pictures.py --starter runs/starter

    terralign run micro-real --data-root DATA --out runs/m
    python docs/make_log_pictures.py --micro runs/m

    python benchmarks/transfer.py runs/starter/model --base DATA/micro-clip \\
        --data-root DATA > transfer.jsonl
    python docs/make_log_pictures.py --transfer transfer.jsonl

Look at the pictures before you commit them.
"""

from __future__ import annotations

import argparse
import csv
import json
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from make_pictures import IMAGES, keep
from terralign.evaluation.rows import read_rows
from terralign.report.canvas import (
    FONT_SIZE,
    LIGHT,
    add_legend,
    new_axes,
    new_figure,
    png_bytes,
    style_axes,
)
from terralign.report.figures import comparison_figure
from terralign.runs.folder import read_measured
from terralign.train.checkpoints import read_metrics

MAX_BYTES = 100_000
BOUND = -1.0
"""The default bound of stage 1, in points."""
SUPPORTED = {"supported:tiny-imagenet/val": "photos", "supported:aid/all": "aerial scenes (AID)"}
WAYS = {
    "aligned-inflated": "aligned, inflated",
    "aligned-random": "aligned, random start",
    "aligned-head": "aligned, last layer only",
    "labels-inflated": "labels alone, inflated",
    "labels-random": "labels alone, random start",
}
"""Variants of the study efficiency without their labels."""
TRADE = {
    "mse-normalised-and-label": "mse_normalised 1, label 1",
    "mse-normalised-and-label-0.2": "mse_normalised 1, label 0.2",
    "mse-normalised": "mse_normalised",
    "paper": "the paper's: mse 1, label 0.05",
    "rgb": "the same, red, green and blue alone",
}
"""Variants of the studies losses and bands."""
MODELS = ("base", "patched", "sentinel2")


def main() -> None:
    """Parse the command line and draw."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--bound", type=Path, help="a finished study bound")
    parser.add_argument("--efficiency", type=Path, help="a finished study efficiency")
    parser.add_argument(
        "--trade", type=Path, action="append", help="a finished study losses, or bands"
    )
    parser.add_argument("--starter", type=Path, help="a finished run of starter")
    parser.add_argument("--micro", type=Path, help="a finished run of micro-real")
    parser.add_argument("--transfer", type=Path, help="what transfer.py printed")
    arguments = parser.parse_args()
    if arguments.bound is not None:
        write("log-bound", bound_figure(arguments.bound / "runs"))
    if arguments.efficiency is not None:
        write("log-efficiency", efficiency_figure(arguments.efficiency / "runs"))
    if arguments.trade is not None:
        variants = [one for study in arguments.trade for one in sorted(study.glob("runs/*"))]
        write("log-losses", trade_figure(variants))
    if arguments.starter is not None:
        write("log-starter", towers_figure(arguments.starter))
    if arguments.micro is not None:
        write("log-towers", towers_figure(arguments.micro))
    if arguments.transfer is not None:
        lines = map(json.loads, arguments.transfer.read_text().splitlines())
        write("log-transfer", covers_figure([one for one in lines if "HLS" in one["what"]]))


def towers_figure(run: Path) -> Figure:
    """What a run measured of its towers, with intervals."""
    shown = [
        row
        for row in read_rows(run / "results.json")
        if row.role == "alignment" and row.metric in ("top1", "macro_map", "recall@1")
    ]
    return comparison_figure(shown)


def bound_figure(runs: Path) -> Figure:
    """What alpha costs each supported task against what it gains, per variant: means over seeds."""
    figure = new_figure(LIGHT, height=3.6)
    panels = figure.subplots(1, len(SUPPORTED), sharex=True, sharey=True)
    for axes, title in zip(panels, SUPPORTED.values(), strict=True):
        style_axes(axes, LIGHT)
        axes.set_title(title, color=LIGHT.text, size=FONT_SIZE)
        axes.axhline(BOUND, color=LIGHT.muted, linestyle="--", linewidth=1)
        axes.set_xlabel("EuroSAT RGB, top-1 %")
    panels[0].set_ylabel("change in points")
    for number, variant in enumerate(sorted(runs.iterdir())):
        curve = mean_curve(sorted(variant.glob("*/alpha-sweep.csv")))
        gained = 100 * curve["patching:eurosat-rgb/val"]
        for axes, column in zip(panels, SUPPORTED, strict=True):
            change = 100 * (curve[column] - curve[column][0])
            label = variant.name.replace("-", " ") if axes is panels[0] else None
            axes.plot(
                gained, change, **LIGHT.line(number), label=label, markersize=3.5, linewidth=1.2
            )
    add_legend(figure, LIGHT, columns=2)
    return figure


def efficiency_figure(folder: Path) -> Figure:
    """Accuracy of a tower against the labels and the CPU time of its training, for each way to
    train it: means over seeds."""
    runs = sorted(path.parent for path in folder.glob("*/*/results.json"))
    figure = new_figure(LIGHT, height=3.8)
    by_labels, by_time = panels = figure.subplots(1, 2, sharey=True)
    for axes in panels:
        style_axes(axes, LIGHT)
        axes.axhline(
            np.mean([top1_of(run, "patched") for run in runs if has_stage_1(run)]),
            color=LIGHT.muted, linestyle="--", linewidth=1,
        )  # fmt: skip
    places = {"0": 0, "29": 1, "286": 2}
    for number, (way, title) in enumerate(WAYS.items()):
        points = [
            (place, *np.mean([(top1_of(run, "aligned"), minutes_of(run)) for run in own], axis=0))
            for labels, place in places.items()
            if (own := [run for run in runs if run.parent.name == f"{way}-{labels}"])
        ]
        where, values, minutes = np.array(points).T
        look = {**LIGHT.line(number), "markersize": 4.5, "linewidth": 1.2}
        by_labels.plot(where, values, **look, label=title)
        by_time.plot(minutes, values, **look, linestyle="none")
    by_labels.set_xticks(list(places.values()), list(places))
    by_labels.set_xlabel("labelled tiles")
    by_labels.set_ylabel("EuroSAT MS, top-1 %")
    by_time.set_xlabel("training, CPU minutes")
    by_time.set_xlim(left=0)
    add_legend(figure, LIGHT, columns=2)
    return figure


def trade_figure(variants: list[Path]) -> Figure:
    """Accuracy of each variant's tower against its retrieval of the RGB picture, on EuroSAT MS:
    means over seeds, with 95 % intervals over the samples."""
    figure, axes = new_axes(LIGHT, height=5.0)
    for number, variant in enumerate(variants):
        runs = sorted(path.parent for path in variant.glob("*/results.json"))
        top1, recall = (pooled(runs, metric) for metric in ("top1", "recall@1"))
        errors = [[[value - low], [high - value]] for value, low, high in (top1, recall)]
        label = TRADE.get(variant.name, variant.name)
        axes.errorbar(
            top1[0], recall[0], xerr=errors[0], yerr=errors[1], linestyle="none", markersize=5,
            linewidth=1, label=label, **LIGHT.line(number),
        )  # fmt: skip
    axes.set_xlabel("EuroSAT MS, top-1 %")
    axes.set_ylabel("recall@1 of the RGB picture, %")
    add_legend(figure, LIGHT, columns=1)
    return figure


def pooled(runs: list[Path], metric: str) -> tuple[float, float, float]:
    """A metric of the aligned towers on EuroSAT MS in per cent, and its 95 % bootstrap interval:
    each sample's values are averaged over the runs first."""
    values = []
    for run in runs:
        rows = read_rows(run / "results.json")
        key = ("eurosat-ms", "aligned", metric)
        row = next(one for one in rows if (one.dataset, one.model, one.metric) == key)
        measured = read_measured(run, row)
        assert measured is not None, f"{run} kept no values of its samples"
        values.append(measured[metric])
    mean = 100 * np.mean(values, axis=0)
    draws = np.random.default_rng(0).integers(0, len(mean), (2000, len(mean)))
    low, high = np.percentile(mean[draws].mean(1), [2.5, 97.5])
    return float(mean.mean()), float(low), float(high)


def top1_of(run: Path, model: str) -> float:
    """Top-1 in per cent of a run's patched RGB tower, or of its aligned one."""
    rows = read_rows(run / "results.json")
    return 100 * next(float(r.value or 0) for r in rows if (r.model, r.metric) == (model, "top1"))


def has_stage_1(run: Path) -> bool:
    """Whether a run patched its RGB tower; one of stage 2 alone begins with a patched one."""
    return (run / "patch").is_dir()


def minutes_of(run: Path) -> float:
    """CPU time of the steps of a run's tower."""
    [path] = run.glob("align/*/metrics.jsonl")
    return sum(row["cpu_seconds"] for row in read_metrics(path)) / 60


def mean_curve(paths: list[Path]) -> dict[str, np.ndarray[Any, Any]]:
    """Column -> its values over alpha, the mean of the files."""
    tables = []
    for path in paths:
        with path.open(newline="") as file:
            tables.append(list(csv.DictReader(file)))
    return {
        column: np.mean([[float(row[column]) for row in table] for table in tables], axis=0)
        for column in tables[0][0]
    }


def covers_figure(lines: list[dict[str, Any]]) -> Figure:
    """The share of each class of the HLS windows that each model finds, with intervals."""
    figure, axes = new_axes(LIGHT, height=3.4)
    facts, own = lines[0], {line["model"]: line for line in lines[1:]}
    names = [name for name in own["base"] if name not in ("what", "model")]
    for number, model in enumerate(MODELS):
        draw_model(axes, [own[model][name] for name in names], number, model)
    axes.axvline(100 * facts["chance"], color=LIGHT.muted, linestyle="--", linewidth=1)
    numbers = [*map(str, facts["windows_of_class"]), str(facts["num"])]
    axes.set_yticks(
        range(len(names)), [f"{name} ({n})" for name, n in zip(names, numbers, strict=True)]
    )
    axes.invert_yaxis()
    axes.set_xlim(0, 100)
    axes.set_xlabel("found, % (dashed: chance)")
    add_legend(figure, LIGHT, columns=len(MODELS))
    return figure


def draw_model(axes: Axes, values: list[list[float]], number: int, model: str) -> None:
    """The values of a model, [value, low, high] each, beside those of the others."""
    value, low, high = np.array(values).T
    axes.errorbar(
        value, np.arange(len(value)) + 0.22 * (number - 1), xerr=[value - low, high - value],
        linestyle="none", markersize=4, linewidth=1.2, label=model, **LIGHT.line(number),
    )  # fmt: skip


def write(name: str, figure: Figure) -> None:
    """Save as PNG; a picture that is too large a file ends the script."""
    keep(IMAGES / f"{name}.png", png_bytes(figure), max_bytes=MAX_BYTES)


if __name__ == "__main__":
    main()
