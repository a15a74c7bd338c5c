"""The tutorial runs, and its page shows what it prints."""

from __future__ import annotations

import importlib.util
import json
import re
from pathlib import Path
from typing import Any

import pytest

from test_words import faults

ROOT = Path(__file__).parent.parent
TUTORIAL = json.loads((ROOT / "docs" / "tutorial.ipynb").read_text("utf-8"))
_spec = importlib.util.spec_from_file_location("notebook", ROOT / "docs" / "notebook.py")
assert _spec is not None
assert _spec.loader is not None
notebook = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(notebook)


def cell(kind: str, text: str) -> dict[str, Any]:
    return {"cell_type": kind, "metadata": {}, "source": text.splitlines(keepends=True)}


def test_cells_run_in_order_and_their_page_shows_what_they_print() -> None:
    cells = [
        cell("markdown", "# Sums\n\nFirst a sum:"),
        cell("code", "total = 1 + 2\nprint('total', total)"),
        cell("code", "from PIL import Image\ntotal + 1"),
        cell("code", "Image.new('RGB', (2, 2))"),
    ]
    found = notebook.run({"cells": cells})
    assert [one.get("execution_count") for one in found["cells"]] == [None, 1, 2, 3]
    page = notebook.markdown(found)
    assert page.startswith("# Sums\n\nFirst a sum:\n\n```python\ntotal = 1 + 2\n")
    assert "```text\ntotal 3\n```" in page
    assert "```text\n4\n```" in page
    assert page.count("](data:image/jpeg;base64,/9j/") == 1


def test_the_tutorial_is_stored_with_what_it_printed() -> None:
    code = [one for one in TUTORIAL["cells"] if one["cell_type"] == "code"]
    silent = [one for one in code if not one["outputs"]]
    assert [one["source"][-1] for one in silent] == []
    assert len((ROOT / "docs" / "tutorial.ipynb").read_bytes()) < 400_000


def test_the_tutorials_links_and_words() -> None:
    text = "\n".join("".join(one["source"]) for one in TUTORIAL["cells"])
    assert faults(text) == []
    links = re.findall(r"\]\(([^)\s#]+)", text)
    assert links
    assert [one for one in links if not (ROOT / "docs" / one).exists()] == []


@pytest.mark.shipped
def test_the_tutorial_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    printed = notebook.markdown(notebook.run(TUTORIAL))
    (recall,) = re.findall(r"^recall@1 +([\d.]+) %", printed, re.MULTILINE)
    assert float(recall) > 50
    assert (tmp_path / "town.tif").exists()
    assert (tmp_path / "space-with-camera" / "space.json").exists()
