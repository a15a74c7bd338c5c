"""Class lists that ship with the package, `classes/*.toml`: folder -> class as prompts say it."""

from __future__ import annotations

import tomllib
from functools import cache
from importlib import resources
from typing import Any


@cache
def read_table(name: str) -> dict[str, Any]:
    """The shipped file `classes/{name}.toml`."""
    file = resources.files("terralign.datasets") / "classes" / f"{name}.toml"
    return tomllib.loads(file.read_text(encoding="utf-8"))


def load_class_list(name: str) -> dict[str, str]:
    """The shipped class list `name`: folder name -> class name, in the list's order."""
    return dict(read_table(name)["classes"])
