"""Class lists that ship with the package, `classes/*.toml`: folder -> class as prompts say it."""

from __future__ import annotations

from functools import cache
from typing import Any

from terralign.files import read_shipped


@cache
def read_table(name: str) -> dict[str, Any]:
    """The shipped file `classes/{name}.toml`."""
    return read_shipped("datasets/classes", name)


def load_class_list(name: str) -> dict[str, str]:
    """The shipped class list `name`: folder name -> class name, in the list's order."""
    return dict(read_table(name)["classes"])
