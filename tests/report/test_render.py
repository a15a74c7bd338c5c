"""Documents as HTML, Markdown and LaTeX: names from outside never become markup."""

from __future__ import annotations

import base64
import io
import re
from functools import partial
from pathlib import Path

import pytest
from PIL import Image

from report_page import NASTY, Page
from terralign.report.document import (
    Answer,
    Card,
    Code,
    Document,
    Gallery,
    Notes,
    Picture,
    Plot,
    Plots,
    Section,
    Text,
)
from terralign.report.figures import loss_figure
from terralign.report.render import (
    MAX_TABULAR_LINES,
    escape_tex,
    html,
    latex,
    markdown,
    write_document,
)
from terralign.report.tables import Cell, Column, Line, Table, text_table

PACKAGES = {"fontenc", "adjustbox", "booktabs", "longtable", "textcomp"}
PIXELS = io.BytesIO()
Image.new("RGB", (8, 8), (9, 99, 9)).save(PIXELS, "JPEG")


def table(num_lines: int = 2, num_columns: int = 2) -> Table:
    """Every kind of cell; two heads; names that each form would trip over."""
    kinds = (
        Cell(value="51.2", interval="48.7–53.9", mark="paired"),
        Cell(value="-12.0*", interval="-20.0 to +4.0", p_values="p < 0.04", mark="best"),
        None,
    )
    lines = tuple(
        Line(
            labels=("*m" if row % 2 else NASTY, f"tower_{row}"),
            cells=tuple(kinds[column % len(kinds)] for column in range(num_columns)),
        )
        for row in range(num_lines)
    )
    columns = tuple(
        Column(heading=NASTY if one == 0 else f"set-{one}", metric="top-1", about="n 7, chance 3.3")
        for one in range(num_columns)
    )
    groups = ((NASTY, lines[:1]), ("", lines[1:]))
    return Table(title=NASTY, heads=("model", "tower"), columns=columns, groups=groups, note=NASTY)


def document() -> Document:
    """A document of every kind of block, with a nasty name wherever one can be."""
    picture = Picture(view=NASTY, path="samples/1.jpg", data=PIXELS.getvalue())
    answers = (
        Answer(text=NASTY, is_right=True, by=NASTY, detail=NASTY),
        Answer(text="river", is_right=False, by="m"),
    )
    found = (Answer(text=NASTY, is_right=False, detail="0.9", pictures=(picture,)),)
    losses = partial(loss_figure, {NASTY: [{"step": 1, "loss": 1.0}, {"step": 2, "loss": 0.5}]})
    blocks = (
        Text(text=NASTY),
        Notes(items=(NASTY, NASTY)),
        Code(title=NASTY, text=f"{NASTY}\n```\nlr = 1e-5\n", language="toml", folded=True),
        Code(title=NASTY, text=NASTY, language="sh"),
        Plots(plots=(Plot(name="losses", caption=NASTY, draw=losses),)),
        Gallery(
            title=NASTY, heads=(NASTY, NASTY, "m"),
            cards=(Card(text=NASTY, answers=answers, pictures=(picture,)),),
        ),
        Gallery(title=NASTY, heads=(NASTY, "1"), cards=(Card(text=NASTY, answers=found),)),
        table(),
        text_table(NASTY, (NASTY, "b"), [(NASTY, "c")]),
    )  # fmt: skip
    return Document(title=NASTY, sections=(Section(title=NASTY, blocks=blocks),))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("report")
    assert write_document(document(), folder, end="<!-- end -->") == folder / "report.html"
    return folder


def test_the_page_escapes_everything_and_needs_nothing_else(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert "script" not in page.tags
    assert page.text.count(NASTY) >= 20
    assert not re.search(r"\{\{|\}\}|\{%", text.replace(NASTY, ""))
    assert text.endswith("<!-- end -->")
    assert "default-src 'none'" in text
    kinds = {source.split(",")[0] for source in page.sources}
    assert kinds == {"data:image/png;base64", "data:image/jpeg;base64"}
    for source in page.sources:
        data = base64.b64decode(source.split(",")[1], validate=True)
        with Image.open(io.BytesIO(data)) as picture:
            assert picture.size[0] > 0


def test_figures_are_in_two_themes_and_right_and_wrong_are_told_apart(folder: Path) -> None:
    page = Page((folder / "report.html").read_text(encoding="utf-8"))
    light, dark = (one for one in page.sources if "png" in one[:20])
    assert light != dark
    assert [one for one in page.classes if one in ("right", "wrong")] == ["right", "wrong", "wrong"]
    assert f"{NASTY}, {NASTY}" in page.alts


def test_a_cell_of_the_page_has_its_column_mark_and_interval(folder: Path) -> None:
    text = (folder / "report.html").read_text(encoding="utf-8")
    assert 'data-label="set-1, top-1 (n 7, chance 3.3)"' in text
    assert "51.2† <span>48.7–53.9</span>" in text
    assert "<b>-12.0*</b> <span>-20.0 to +4.0</span> <span>p &lt; 0.04</span>" in text


def test_markdown_keeps_its_shape_whatever_the_names(folder: Path) -> None:
    text = (folder / "report.md").read_text(encoding="utf-8")
    assert "\n````toml\n" in text  # a longer fence than any in the text
    outside = re.sub(r"^(`{3,})\w+\n.*?\n\1$", "", text, flags=re.MULTILINE | re.DOTALL)
    assert "<script" not in outside.replace(r"\<", "")
    tables = re.findall(r"(?:^\|.*\n)+", outside, flags=re.MULTILINE)
    widths = [{len(re.findall(r"(?<!\\)\|", row)) for row in one.splitlines()} for one in tables]
    assert widths == [{4}, {3}, {5}, {3}]
    links = re.findall(r"(?<!\\)\]\(([^)]+)\)", outside)
    assert sorted(links) == ["figures/losses.png", "samples/1.jpg", "samples/1.jpg"]
    assert all((folder / link).is_file() for link in links)
    assert "51.2† (48.7–53.9)" in outside
    assert r"**-12.0\*** (-20.0 to +4.0; p \< 0.04)" in outside
    assert outside.count("tower_1") == 1  # an underscore within a word is left alone


def test_the_same_document_is_the_same_bytes_and_old_figures_go(
    folder: Path, tmp_path: Path
) -> None:
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "old.png").write_bytes(b"")
    write_document(document(), tmp_path, end="<!-- end -->")
    for name in ("report.html", "report.md", "figures/losses.png"):
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["losses.png"]


# LaTeX


def tex(table: Table) -> str:
    return latex(Document(title="t", sections=(Section(title="s", blocks=(table,)),)))


def braces_are_balanced(text: str) -> bool:
    depth = 0
    for sign in re.sub(r"\\[\\{}]", "", text):
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return False
    return depth == 0


def num_cells(row: str) -> int:
    spans = [int(width) for width in re.findall(r"\\multicolumn\{(\d+)\}", row)]
    return len(re.findall(r"(?<!\\)&", row)) + 1 + sum(spans) - len(spans)


@pytest.mark.parametrize(
    ("num_lines", "num_columns"), [(2, 1), (2, 4), (2, 20), (MAX_TABULAR_LINES + 1, 1), (60, 9)]
)
def test_latex_is_balanced_with_as_many_cells_in_each_row_as_columns(
    num_lines: int, num_columns: int
) -> None:
    text = tex(table(num_lines, num_columns))
    assert braces_are_balanced(text)
    open_ones: list[str] = []
    for kind, name in re.findall(r"^\\(begin|end)\{(\w+)\}", text, flags=re.MULTILINE):
        if kind == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    assert not open_ones
    assert (r"\begin{longtable}" in text) == (num_lines > MAX_TABULAR_LINES)
    assert (r"\begin{tabular}" in text) == (num_lines <= MAX_TABULAR_LINES)
    assert f"{{ll{'r' * num_columns}}}" in text
    body = text.split(r"\toprule")[1].split(r"\bottomrule")[0]
    rows = [row for row in re.split(r"\\\\\*?\s", body) if row.strip()]
    assert len(rows) == num_lines + 4
    assert {num_cells(row) for row in rows} == {2 + num_columns}
    assert text.count(r"\label{") == text.count(r"\caption[") == 1
    assert not re.search(r"\\label\{tab:[^}]*[^a-z0-9}:-]", text)


def test_latex_reads_nothing_of_its_own_in_names() -> None:
    escaped = escape_tex(NASTY)
    assert braces_are_balanced(escaped)
    commands = r"\\text\w+\{\}|\\[{}$&#_%]|\$\\rightarrow\$|\{\[\}|\{\]\}|\{\*\}|-\{\}"
    assert not re.search(r"[\\{}$&#^_%~<>|\"`*\[\]]|--", re.sub(commands, "", escaped))
    assert escape_tex("a\x07\n\\b") == r"a \textbackslash{}b"
    assert escape_tex("--- é") == "-{}-{}- é"
    assert escape_tex("'' ,,") == "'{}' ,{},"
    assert escape_tex("模型 e\N{COMBINING ACUTE ACCENT} ħ α ≤ €") == "?? é ? ? $\\leq$ €"


def test_a_value_has_its_mark_its_interval_and_a_minus_sign_in_latex() -> None:
    line = re.sub(r"\s+", " ", tex(table(1, 3)))
    assert (
        r"51.2$^{\dagger}$ {\scriptsize (48.7\textendash{}53.9)} & "
        r"\textbf{$-$12.0{*}} {\scriptsize ($-$20.0 to +4.0; p \textless{} 0.04)} & -- \\"
    ) in line


def test_a_tex_file_explains_its_marks_and_names_the_packages_it_needs() -> None:
    text = tex(table())
    named = re.findall(r"^% \\usepackage(?:\[\w+\])?\{([\w,]+)\}", text, flags=re.MULTILINE)
    assert {one for names in named for one in names.split(",")} == PACKAGES
    assert "Per cent, with 95 \\% intervals. Bold: the best" in text
    assert r"$^{\dagger}$: tied with it" in text
    plain = tex(Table(title="t", heads=("a",), columns=(Column(metric="m"),), groups=(),
                      legend="In metres."))  # fmt: skip
    assert r"\caption[t]{t. In metres.}" in plain


def test_markdown_of_a_document_without_files_is_its_text() -> None:
    text = markdown(Document(title="A", sections=(Section(title="", blocks=(Text(text="b_c"),)),)))
    assert text.split() == ["#", "A", "b_c"]


def test_characters_that_act_on_a_terminal_are_left_out() -> None:
    text = "a\x1b[31m\0b\u202e\ud800c\n"
    block = Code(title=text, text=text, language="toml")
    shown = Document(title=text, sections=(Section(title=text, blocks=(block,)),))
    for written in (markdown(shown), html(shown, {})):
        assert not re.search("[\x00-\x08\x0b-\x1f\u202e\ud800]", written)
        assert re.search(r"a\\?\[31mbc", written)
