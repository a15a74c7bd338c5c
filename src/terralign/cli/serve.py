"""The command that serves a folder of parts."""

from __future__ import annotations

import html
import json
import os
import secrets
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING

import click

from terralign.cli.app import device_option, example, json_option, main, say_loading, threads
from terralign.errors import TerralignError, counted, shown
from terralign.files import missing_hint

if TYPE_CHECKING:
    from terralign.encoders.space import EmbeddingSpace
    from terralign.index.search import Index

TOKEN_VARIABLE = "TERRALIGN_TOKEN"


@main.command()
@click.argument("folder", type=click.Path(path_type=Path))
@click.option("--model", help="A space; default: the one that the vectors were made with.")
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen on.")
@click.option(
    "--port", type=click.IntRange(0, 65535), default=8000, show_default=True,
    help="0 takes any that is free.",
)  # fmt: skip
@click.option(
    "--token", envvar=TOKEN_VARIABLE,
    help="The token that requests must carry; default: a generated one. The variable "
    "TERRALIGN_TOKEN sets it without showing it in the list of processes.",
)  # fmt: skip
@click.option(
    "--no-token", is_flag=True, help="Need no token: everybody on this machine has access."
)
@click.option(
    "--allow-host", "hosts", multiple=True, metavar="NAME",
    help="A host name that requests may be sent to, as behind a proxy; repeatable.",
)  # fmt: skip
@click.option(
    "--scenes", multiple=True, type=click.Path(path_type=Path),
    help="A folder that files of scenes may be read from, also those that moved there; repeatable. "
    "Default: the files that the parts name.",
)  # fmt: skip
@click.option(
    "--static",
    "out",
    type=click.Path(path_type=Path, file_okay=False),
    help="Serve nothing: write the page with the result of --query into this folder, for any web "
    "server.",
)
@click.option("--query", help="With --static: the text to search for.")
@click.option("--against", help="With --static: a text to stay away from.")
@click.option("-k", "k", type=click.IntRange(1, 500), help="With --static: hits; default: 200.")
@click.option("--title", help="Of the page; default: the folder's name.")
@click.option("--open", "opens", is_flag=True, help="Open the page in a browser.")
@device_option
@json_option
@example("terralign serve scenes --open")
def serve(
    folder: Path,
    model: str | None,
    host: str,
    port: int,
    token: str | None,
    no_token: bool,
    hosts: tuple[str, ...],
    scenes: tuple[Path, ...],
    out: Path | None,
    query: str | None,
    against: str | None,
    k: int | None,
    title: str | None,
    opens: bool,
    device: str | None,
    as_json: bool,
) -> None:
    """Serve a folder of parts as a searchable map.

    FOLDER is what `terralign embed` filled. Prints the address of the page; Ctrl-C ends the server.
    """
    _check_usage(out, query, against, k)
    for path in scenes:
        if not path.is_dir():
            hint = "" if path.exists() else missing_hint(path)
            raise click.UsageError(f"--scenes {shown(path)}: no such folder{hint}")
    _require_extra()
    if out is not None:
        assert query is not None
        _export(folder, model, scenes, title, device, as_json, out, query, against, k)
        return
    from terralign.index.search import open_index
    from terralign.serve.run import address_of, bind, is_busy, is_loopback
    from terralign.serve.settings import ServeSettings

    token, is_generated = _choose_token(token, no_token=no_token, host=host)
    index = open_index(folder)
    with bind(host, port) as listening:
        space = _load(model, index, device)
        from terralign.serve.app import create_app
        from terralign.serve.run import run

        names = ("localhost", "127.0.0.1", "[::1]", host, *hosts)
        settings = ServeSettings(
            title=title or folder.absolute().name,
            token=token,
            hosts=tuple(map(str.lower, names)) if hosts or is_loopback(host) else None,
            scenes=scenes,
        )
        app = create_app(folder, space, settings)
        address = address_of(listening, host)
        if as_json:
            shown_token = token if is_generated else None
            click.echo(json.dumps({"address": address, "token": shown_token}))
        else:
            entry = f"{address}?token={token}" if is_generated else address
            click.echo(f"{counted(len(index), 'window')}: open {entry} (Ctrl-C ends the server)")
        with _opened(f"{address}?token={token}" if token else address) if opens else nullcontext():
            run(app, listening)
    click.echo("stopped", err=True)
    if is_busy():  # Python would wait for what nobody waits for any more
        sys.stdout.flush()
        os._exit(0)


def _choose_token(token: str | None, *, no_token: bool, host: str) -> tuple[str | None, bool]:
    """The token that requests must show, and whether it was generated."""
    from terralign.serve.run import is_loopback
    from terralign.serve.security import check_token

    if no_token and token is not None:
        raise click.UsageError(
            "--no-token and a token (--token, TERRALIGN_TOKEN) exclude each other"
        )
    if no_token and not is_loopback(host):
        raise click.UsageError(
            f"--no-token with --host {host}: everybody who reaches this machine would have access; "
            "leave one of them out"
        )
    if no_token:
        return None, False
    return (secrets.token_urlsafe(24), True) if token is None else (check_token(token), False)


_OF_SERVERS = ("host", "port", "token", "no_token", "hosts", "opens")
"""Options without effect on an export."""


def _check_usage(out: Path | None, query: str | None, against: str | None, k: int | None) -> None:
    context = click.get_current_context()
    if out is None:
        given = {"--query": query, "--against": against, "-k": k}
        useless = [flag for flag, value in given.items() if value is not None]
        if useless:
            raise click.UsageError(f"{', '.join(useless)}: only with --static; ask on the page")
        return
    if not (query or "").strip():
        raise click.UsageError("--static needs --query, the text to search for")
    flags = {one.name: max(one.opts, key=len) for one in context.command.params}
    useless = [
        flags[name]
        for name in _OF_SERVERS
        if context.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
    ]
    if useless:
        raise click.UsageError(f"{', '.join(useless)}: no effect with --static; leave it out")


def _export(
    folder: Path,
    model: str | None,
    scenes: tuple[Path, ...],
    title: str | None,
    device: str | None,
    as_json: bool,
    out: Path,
    query: str,
    against: str | None,
    k: int | None,
) -> None:
    from terralign.index.search import open_index
    from terralign.serve.requests import Asked, check_asked
    from terralign.serve.served import ServedIndex
    from terralign.serve.settings import ServeSettings
    from terralign.serve.static_export import check_export, export_static

    check_export(out)
    asked = check_asked(Asked, {"query": query, "against": against or "", "k": k or 200})
    index = open_index(folder)
    settings = ServeSettings(title=title or folder.absolute().name, scenes=scenes)
    served = ServedIndex(folder, _load(model, index, device), settings)
    found = export_static(served, asked, out)
    if as_json:
        click.echo(json.dumps(found.to_json()))
        return
    click.echo(f"{out}: {counted(found.num_hits, 'hit')}, {counted(found.num_pictures, 'picture')}")
    if found.num_missing:
        click.echo(f"{counted(found.num_missing, 'hit')} without a picture", err=True)
    click.echo(f"show it: python3 -m http.server --directory {shown(out)}")


def _require_extra() -> None:
    try:
        import fastapi  # noqa: F401
        import rio_tiler  # noqa: F401
        import uvicorn  # noqa: F401
    except ImportError as error:
        raise TerralignError(
            f"serve needs {error.name}; install it: pip install 'terralign[serve]'"
        ) from error


def _load(model: str | None, index: Index, device: str | None) -> EmbeddingSpace:
    """The space that is named, else the one that the vectors were made with."""
    say_loading(model or index.model)
    from terralign.compute import choose_device
    from terralign.encoders.space import EmbeddingSpace

    chosen = choose_device(device)
    try:
        space = EmbeddingSpace.load(model or index.model).to(chosen)
    except TerralignError as error:
        if model is not None:
            raise
        raise TerralignError(
            f"{error} (the vectors were made with it; if it is elsewhere, name it: --model)"
        ) from error
    threads()
    return space


@contextmanager
def _opened(address: str) -> Iterator[None]:
    """A browser is opened by a page that leads on, so that no list of processes has the token; the
    page, which only this user can read, is removed when the block ends."""
    import webbrowser

    file, name = tempfile.mkstemp(prefix="terralign-", suffix=".html")
    try:
        with os.fdopen(file, "w") as page:
            page.write(f'<meta http-equiv="refresh" content="0; url={html.escape(address)}">')
        if not webbrowser.open(Path(name).as_uri()):
            click.echo("no browser found; open the address", err=True)
        yield
    finally:
        Path(name).unlink(missing_ok=True)
