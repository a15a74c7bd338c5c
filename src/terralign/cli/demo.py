"""The command that shows what comes with terralign: demo."""

from __future__ import annotations

import json
from pathlib import Path

import click

from terralign.cli.app import (
    FOLDER,
    device_option,
    example,
    json_option,
    main,
    say_loading,
    threads,
)


@main.command()
@click.option(
    "--out", type=FOLDER, default=Path("terralign-demo"), show_default=True,
    help="Folder for the page, the vectors and the map.",
)  # fmt: skip
@device_option
@json_option
@example("terralign demo --out runs/demo")
def demo(out: Path, device: str | None, as_json: bool) -> None:
    """Classify and search a real scene in words, offline, in a minute.

    The model (`starter`) and the scene (Sentinel-2 over Thailand) come with terralign. Writes a
    page with pictures, report.html, and prints the Python lines that do the same.
    """
    from terralign.encoders.sources import check_source

    check_source("starter")
    say_loading("starter")
    from terralign.demo import run_demo

    threads()
    found = run_demo(out, device=device)
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    counts = ", ".join(f"{name} {number}" for name, number in found.counts().items())
    click.echo(f"{len(found.classes)} windows classified: {counts}")
    for hits in found.searches:
        best = hits[0]
        window = best.place.window
        assert window is not None  # of a scene
        click.echo(
            f"{hits.query!r}: best at row {window.row}, column {window.column}, cosine "
            f"{best.score:.3f}"
        )
    click.echo(f"report: {found.page}")
    click.echo(f"\nThe same in Python:\n\n{found.python}", nl=False)
