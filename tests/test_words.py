"""Help, messages, docstrings and documentation use the field's terms and plain English."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import click
import pytest

from terralign.cli import main

ROOT = Path(__file__).parent.parent
PAGES = [
    *(ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")),
    *sorted((ROOT / "docs").rglob("*.md")),
]
SOURCES = sorted((ROOT / "src").rglob("*.py"))

AVOID = {
    r"\b(is|are) (told|said)\b|\btold\b|\btells\b": "reports, lists, shows",
    r"\b(is|are|was|were) not there\b": "not found",
    r"\bthere (is|are) none\b|\bis none\b|\bare none\b": "none, or: has no ...",
    r"\bdear(er)?\b": "slow, costly",
    r"\bfor want of\b": "without",
    r"\bone's own\b": "custom, your own",
    r"\bby turns\b": "alternating",
    r"\bstands? (in|beside|for itself)\b": "is listed in",
    r"\bnothing was to do\b": "nothing to do",
    r"\bgo(es)? on\b": "resumes, continues",
    r"\bwhich is said\b": "(leave out)",
    r"\b(be|is|are|was|were) (made|computed|measured|read|written|trained) anew\b": "again",
    r"\ba stranger's\b": "untrusted",
    r"\bremed(y|ies) (for|of) (hubs|retrieval)\b": "hubness correction",
    r"\b(METHOD|DESIGN|STYLE)\b(\.md)?|\bshared/(reviews|METHOD|DESIGN|STYLE)": "a page of docs/",
}
"""Pattern -> what to write instead."""


def faults(text: str) -> list[str]:
    """What `AVOID` finds in a text, with what to write instead."""
    plain = re.sub(r"```.*?```|`[^`\n]*`", " ", text, flags=re.DOTALL)
    plain = " ".join(plain.split())
    return [
        f"... {plain[max(0, found.start() - 40) : found.end() + 30]} ... write: {instead}"
        for pattern, instead in AVOID.items()
        for found in re.finditer(pattern, plain)
    ]


def messages(tree: ast.AST) -> Iterator[str]:
    """The docstrings of a module, and the text of its strings in calls and `raise` statements."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            yield ast.get_docstring(node) or ""
        elif isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant):
            yield str(node.value.value)  # the docstring of a field
        elif isinstance(node, ast.Call | ast.Raise):
            yield " ".join(
                one.value
                for one in ast.walk(node)
                if isinstance(one, ast.Constant) and isinstance(one.value, str)
            )


def test_the_list_finds_what_it_names() -> None:
    found = faults("The data root is not there; the run goes on with a sensor of one's own.")
    assert [one.split("write: ")[1] for one in found] == [
        "not found", "custom, your own", "resumes, continues",
    ]  # fmt: skip
    assert faults("data root not found, as `is not there` once said") == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_pages(page: Path) -> None:
    assert faults(page.read_text()) == []


@pytest.mark.parametrize("name", sorted(main.commands))
def test_help(name: str) -> None:
    context = click.Context(main.commands[name], info_name=name)
    assert faults(main.commands[name].get_help(context)) == []


@pytest.mark.parametrize("path", SOURCES, ids=lambda path: str(path.relative_to(ROOT / "src")))
def test_sources(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert [fault for text in messages(tree) for fault in faults(text)] == []
