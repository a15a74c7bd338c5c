"""Class names as the command line takes them: a list, one by one, or a file of them."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import click

from terralign.errors import StorageError, is_blank
from terralign.files import read_lines
from terralign.limits import require


def read_class_names(
    lists: Sequence[str], names: Sequence[str], file: Path | None
) -> tuple[str, ...]:
    """The names of `--labels`, `--label` and `--labels-file`, in this order.

    One `--labels` is a list in CSV; of several each is one name, as each `--label` is. Usage errors
    say what is empty, unbalanced, given twice or too little; nothing is left out.
    """
    lists, names = [_as_text(one) for one in lists], [_as_text(one) for one in names]
    if len(lists) == 1:
        found = split_list(lists[0], "--labels")
    else:
        found = [_named(text, "--labels") for text in lists]
        commas = [name for name in found if "," in name]
        if commas:
            click.echo(
                f"terralign: --labels is given {len(lists)} times, so each is one name: "
                f"{', '.join(map(repr, commas))}",
                err=True,
            )
    found += [_named(text, "--label") for text in names]
    if file is not None:
        found += _read_file(file)
    if not found:
        raise click.UsageError("name the classes: --labels, --label or --labels-file")
    twice = [name for name, number in Counter(found).items() if number > 1]
    if twice:
        raise click.UsageError(f"class {twice[0]!r} is given more than once; name each class once")
    if len(found) == 1:
        raise click.UsageError(
            f"one class is given, {found[0]!r}; give at least two, in quotes where a name has "
            'spaces: --labels "forest,a river"'
        )
    return tuple(found)


def _as_text(argument: str) -> str:
    """An argument as UTF-8, also where the locale (C, ASCII) had its bytes taken for no text."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        try:
            return os.fsencode(argument).decode("utf-8")
        except UnicodeError as error:
            raise click.UsageError(f"class name {argument!r} is not UTF-8 text") from error
    return argument


def split_list(text: str, option: str) -> list[str]:
    """A list on one line, with commas, quoted as in CSV where a name holds one itself."""
    if "\n" in text.strip() or "\r" in text.strip():
        raise click.UsageError(f"{option} holds several lines; give a list on one line, or a file")
    try:
        (row,) = csv.reader([text.strip()], skipinitialspace=True, strict=True)
    except (csv.Error, ValueError):
        row = None
    if row is None or text.count('"') % 2:
        raise click.UsageError(
            f"{option} {text!r}: its quotes are not balanced; write a name that holds a comma as "
            '"a, b" within the list, and a quote as ""'
        )
    names = [name.strip() for name in row] or [""]
    if not all(names):
        raise click.UsageError(
            f"{option} {text!r}: entry {names.index('') + 1} of {len(names)} is empty; "
            "remove the comma that is too many"
        )
    return names


def _named(text: str, option: str) -> str:
    if is_blank(text):
        raise click.UsageError(f"{option} {text!r} is empty; give the name of a class")
    return text.strip()


def _read_file(path: Path) -> list[str]:
    """One name a line, as it is or quoted as in CSV; blank lines do not count."""
    try:
        lines = read_lines(path, what="--labels-file")
    except StorageError as error:
        raise click.UsageError(str(error)) from error
    first = next((line.strip() for line in lines if line.strip()), "")
    separator = {".csv": ",", ".tsv": "\t"}.get(path.suffix.lower(), "\0")
    is_json = first.startswith(("{", "["))
    if is_json or any(separator in line and not line.strip().startswith('"') for line in lines):
        kind = "JSON" if is_json else "a table of several columns"
        raise click.UsageError(
            f"--labels-file {path} looks like {kind}; give a text file of class names, one a line"
        )
    found: dict[str, int] = {}
    for number, line in enumerate(lines, start=1):
        name = line.strip()
        if not name:
            continue
        if name.startswith('"'):
            (name, *others) = split_list(name, f"--labels-file {path}, line {number},")
            if others:
                raise click.UsageError(f"--labels-file {path}, line {number}: one name a line")
        longest = max(map(len, name.split()))
        require("word_characters", longest, f"--labels-file {path}, line {number}, has a word of")
        if name in found:
            raise click.UsageError(
                f"--labels-file {path}: lines {found[name]} and {number} are both {name!r}; "
                "name each class once"
            )
        found[name] = number
    if not found:
        raise click.UsageError(f"--labels-file {path} names no class")
    require("class_names", len(found), f"--labels-file {path} has")
    return list(found)
