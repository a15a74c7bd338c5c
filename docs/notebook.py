"""Run the notebooks of the documentation, and show them on its site.

    python docs/notebook.py docs/tutorial.ipynb

runs the code cells in order, in a temporary folder, and stores in the notebook what they print and
show. It needs no Jupyter: a cell is plain Python whose last expression is shown. Look at the result
before you commit it. mkdocs takes this file as a hook, which makes a page of each notebook.
"""

from __future__ import annotations

import ast
import base64
import contextlib
import io
import json
import os
import sys
import tempfile
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from mkdocs.structure.pages import Page

JPEG = "image/jpeg"
SUFFIX = ".ipynb"


def run(notebook: dict[str, Any]) -> dict[str, Any]:
    """The notebook with the outputs of its code cells, run in the working directory."""
    names: dict[str, Any] = {"__name__": "__main__"}
    cells = []
    for cell in notebook["cells"]:
        if cell["cell_type"] == "code":
            number = sum(one["cell_type"] == "code" for one in cells) + 1
            outputs = run_cell("".join(cell["source"]), names)
            cell = {**cell, "execution_count": number, "outputs": outputs}
        cells.append(cell)
    return {**notebook, "cells": cells}


def run_cell(text: str, names: dict[str, Any]) -> list[dict[str, Any]]:
    """What a cell prints, and its last expression, as outputs of the notebook format."""
    tree = ast.parse(text)
    last = tree.body[-1] if tree.body and isinstance(tree.body[-1], ast.Expr) else None
    printed, value = io.StringIO(), None
    with contextlib.redirect_stdout(printed):
        body = ast.Module(tree.body[:-1] if last else tree.body, type_ignores=[])
        exec(compile(body, "cell", "exec"), names)
        if last is not None:
            value = eval(compile(ast.Expression(last.value), "cell", "eval"), names)
    outputs: list[dict[str, Any]] = []
    if printed.getvalue():
        lines = printed.getvalue().splitlines(keepends=True)
        outputs.append({"output_type": "stream", "name": "stdout", "text": lines})
    if value is not None:
        outputs.append({"output_type": "display_data", "metadata": {}, "data": shown(value)})
    return outputs


def shown(value: Any) -> dict[str, Any]:
    """A Pillow image as JPEG, anything else as its text."""
    if not hasattr(value, "convert"):
        return {"text/plain": repr(value).splitlines(keepends=True)}
    content = io.BytesIO()
    value.convert("RGB").save(content, "JPEG", quality=80, optimize=True)
    return {JPEG: base64.b64encode(content.getvalue()).decode("ascii")}


def markdown(notebook: dict[str, Any]) -> str:
    """The notebook as a page."""
    parts = []
    for cell in notebook["cells"]:
        text = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            parts.append(text)
            continue
        parts.append(f"```python\n{text}\n```")
        for output in cell["outputs"]:
            data = output.get("data", {"text/plain": output.get("text", [])})
            if JPEG in data:
                parts.append(f"![what the lines above show](data:{JPEG};base64,{data[JPEG]})")
            else:
                printed = "".join(data["text/plain"]).rstrip("\n")
                parts.append(f"```text\n{printed}\n```")
    return "\n\n".join(parts) + "\n"


class NotebookFile(File):
    """A notebook, which mkdocs treats as it does a page."""

    def is_documentation_page(self) -> bool:
        """Always."""
        return True


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Hook of mkdocs: notebooks are pages."""
    for file in [one for one in files if one.src_uri.endswith(SUFFIX)]:
        files.remove(file)
        page = NotebookFile(
            file.src_uri, config.docs_dir, config.site_dir, config.use_directory_urls
        )
        files.append(page)
    return files


def on_page_read_source(*, page: Page, config: MkDocsConfig) -> str | None:
    """Hook of mkdocs: the text of a notebook's page."""
    if not page.file.src_uri.endswith(SUFFIX):
        return None
    return markdown(json.loads(Path(config.docs_dir, page.file.src_uri).read_text("utf-8")))


def main() -> None:
    """Run the notebooks that are named."""
    for path in map(Path, sys.argv[1:]):
        path = path.resolve()
        notebook = json.loads(path.read_text("utf-8"))
        start = Path.cwd()
        with tempfile.TemporaryDirectory() as folder:
            os.chdir(folder)
            finished = run(notebook)
            os.chdir(start)
        path.write_text(json.dumps(finished, indent=1, ensure_ascii=False) + "\n", "utf-8")


if __name__ == "__main__":
    main()
