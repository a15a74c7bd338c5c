"""A row and a page of a report as tests write and read them, and names that would break out."""

from __future__ import annotations

import html.parser
from typing import Any

from terralign.evaluation.rows import Row

NASTY = r'50% of \a_b & {x} #1 ~$y^2$ <script>alert("1")</script> |`*[z]` --> → ' + "'quoted'"

PAIRED = ("div", "table", "details", "figure", "ol", "dl")


def row(model: str = "base", value: float = 0.5, **changes: Any) -> Row:
    keys: dict[str, Any] = {
        "model": model, "tower": "rgb", "role": "patching", "dataset": "eurosat-rgb",
        "split": "val", "task": "zero-shot", "metric": "top1", "value": value,
        "low": value - 0.02, "high": value + 0.01, "num_samples": 1541, "chance": 0.1,
    }  # fmt: skip
    return Row.model_validate(keys | changes)


class Page(html.parser.HTMLParser):
    """Tags, sources, classes and the text of a page; every paired tag is closed in its turn."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.sources: list[str] = []
        self.classes: list[str] = []
        self.alts: list[str] = []
        self.text = ""
        self._open: list[str] = []
        self.feed(text)
        assert self._open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.sources += [v for k, v in attrs if k in ("src", "srcset", "href") and v]
        self.classes += [v for k, v in attrs if k == "class" and v]
        self.alts += [v for k, v in attrs if k == "alt" and v]
        if tag in PAIRED:
            self._open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag in PAIRED:
            assert self._open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data
