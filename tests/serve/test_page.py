"""The files of the page: whole, from here alone, and with nothing inline, as its policy demands."""

from __future__ import annotations

import re
from html.parser import HTMLParser
from pathlib import Path

import pytest

import terralign

PAGE = Path(terralign.__file__).parent / "serve" / "page"
INDEX = (PAGE / "index.html").read_text(encoding="utf-8")
OURS = sorted(path for path in PAGE.iterdir() if path.is_file())


class Elements(HTMLParser):
    """The start tags of a page, and the text of its scripts and styles."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.inline: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))

    def handle_data(self, data: str) -> None:
        if self.tags and self.tags[-1][0] in ("script", "style"):
            self.inline.append(data.strip())


ELEMENTS = Elements(INDEX)


def test_whatever_the_page_names_is_there() -> None:
    named = [
        address
        for _, attributes in ELEMENTS.tags
        for name, address in attributes.items()
        if name in ("href", "src") and address and not address.startswith("#")
    ]
    assert len(named) >= 4
    for address in named:
        assert address.startswith("static/")
        assert (PAGE / address.removeprefix("static/")).is_file(), address
    for path in PAGE.glob("*.js"):
        text = path.read_text(encoding="utf-8")
        for name in re.findall(r'(?:from|import|URL\()\s*"(\.[^"]+\.js)"', text):
            assert (PAGE / name).is_file(), f"{path.name}: {name}"
    assert "static/vendor/countries-50m.json" in (PAGE / "app.js").read_text(encoding="utf-8")


def test_every_id_that_scripts_ask_for_is_on_the_page() -> None:
    there = [attributes["id"] for _, attributes in ELEMENTS.tags if attributes.get("id")]
    assert len(there) == len(set(there))
    scripts = "".join(path.read_text(encoding="utf-8") for path in PAGE.glob("*.js"))
    asked = set(re.findall(r'byId\("([\w-]+)"\)', scripts))
    assert asked <= set(there)
    labelled = {attributes["for"] for _, attributes in ELEMENTS.tags if attributes.get("for")}
    assert labelled <= set(there)
    icons = re.findall(r'href="#(icon-\w+)"', INDEX)
    assert set(icons) == set(re.findall(r'<symbol id="(icon-\w+)"', INDEX))


def test_nothing_is_inline() -> None:
    assert [text for text in ELEMENTS.inline if text] == []
    assert [tag for tag, _ in ELEMENTS.tags if tag == "style"] == []
    for tag, attributes in ELEMENTS.tags:
        assert not [one for one in attributes if one == "style" or one.startswith("on")], tag
        assert tag != "script" or attributes.get("src")
    scripts = "".join(path.read_text(encoding="utf-8") for path in PAGE.glob("*.js"))
    for risky in ("innerHTML", "outerHTML", "insertAdjacentHTML", "document.write", "eval("):
        assert risky not in scripts
    policy = re.search(r'http-equiv="Content-Security-Policy" content="([^"]+)"', INDEX)
    assert policy is not None
    assert "unsafe" not in policy[1]
    assert policy[1].startswith("default-src 'none'; script-src 'self';")


@pytest.mark.parametrize("path", OURS, ids=lambda path: path.name)
def test_nothing_comes_from_elsewhere(path: Path) -> None:
    hosts = set(re.findall(r"https?://([\w.-]+)", path.read_text(encoding="utf-8")))
    assert hosts <= {"www.w3.org"}  # the name of SVG


def test_what_others_wrote_has_its_licence_beside_it() -> None:
    vendor = PAGE / "vendor"
    licences = {path.name.removesuffix(".LICENSE.txt") for path in vendor.glob("*.LICENSE.txt")}
    assert licences == {"maplibre-gl", "world-atlas"}
    rest = {path.name for path in vendor.iterdir() if not path.name.endswith(".LICENSE.txt")}
    assert rest == {
        *("maplibre-gl.js", "maplibre-gl-worker.js", "maplibre-gl.css", "countries-50m.json")
    }
    for path in vendor.glob("*.js"):
        assert "sourceMappingURL" not in path.read_text(encoding="utf-8")[-300:]


def test_the_legend_has_the_colours_of_the_scores() -> None:
    script = (PAGE / "map.js").read_text(encoding="utf-8")
    style = (PAGE / "style.css").read_text(encoding="utf-8")
    ramp = re.search(r"const RAMP = \[(.*)\];", script)
    legend = re.search(r"linear-gradient\(to right, (.*)\);", style)
    assert ramp is not None
    assert legend is not None
    assert re.findall(r"#\w{6}", ramp[1]) == re.findall(r"#\w{6}", legend[1])
