"""LaTeX tables of a bench: they compile whatever the names are, and fit the page."""

from __future__ import annotations

import re
from dataclasses import replace

import pytest

from terralign.bench.report.latex import MAX_LINES, TEX_HEAD, escape_tex, tex_file, tex_table
from terralign.bench.report.tables import Cell, Column, Table, TableLine

NASTY = r'50% of \a_b & {x} #1 ~$y^2$ <script>"|`*[z]` --> →'
PACKAGES = {"fontenc", "array", "booktabs", "longtable", "textcomp"}


def table(num_lines: int = 2, num_columns: int = 2) -> Table:
    """Every figure once; two heads; names that LaTeX would trip over."""
    lines = tuple(
        TableLine(
            labels=("*m" if row % 2 else NASTY, f"tower_{row}"),
            cells=tuple(
                Cell(value=f"{row}.{column:03d}", interval="48.7–53.9", mark="paired")
                for column in range(num_columns)
            ),
        )
        for row in range(num_lines)
    )
    columns = tuple(
        Column(heading=NASTY if one == 0 else f"set-{one}", metric="top-1", about="n 7, chance 3.3")
        for one in range(num_columns)
    )
    groups = ((NASTY, lines[:1]), ("", lines[1:]))
    return Table(name=NASTY, title=NASTY, heads=("model", "tower"), columns=columns, groups=groups)


def braces_are_balanced(text: str) -> bool:
    depth = 0
    for sign in re.sub(r"\\[\\{}]", "", text):
        depth += (sign == "{") - (sign == "}")
        if depth < 0:
            return False
    return depth == 0


def grids(text: str) -> list[tuple[int, list[str]]]:
    """Of each tabular: the number of its columns, and its rows."""
    found = re.findall(
        r"\\begin\{(tabular|longtable)\}\{((?:[^{}]|\{[^{}]*\})*)\}\n(.*?)\\end\{\1\}", text, re.S
    )
    out = []
    for _, specification, body in found:
        letters = re.sub(r">\{[^}]*\}", "", re.sub(r"p\{[^}]*\}", "p", specification))
        assert set(letters) <= set("lrp"), specification
        rows = [line for line in body.splitlines() if re.search(r"\\\\\*?$", line)]
        out.append((len(letters), [row for row in rows if not row.startswith(r"\caption")]))
    return out


def num_cells(row: str) -> int:
    spans = [int(width) for width in re.findall(r"\\multicolumn\{(\d+)\}", row)]
    return len(re.findall(r"(?<!\\)&", row)) + 1 + sum(spans) - len(spans)


@pytest.mark.parametrize(
    ("num_lines", "num_columns", "tall"),
    [(2, 1, False), (2, 4, False), (2, 20, True), (MAX_LINES + 1, 1, True), (60, 9, True)],
)
def test_latex_is_balanced_with_as_many_cells_in_each_row_as_columns(
    num_lines: int, num_columns: int, tall: bool
) -> None:
    text = tex_table(table(num_lines, num_columns), caption="Per cent.")
    assert braces_are_balanced(text)
    open_ones = []
    for kind, name in re.findall(r"\\(begin|end)\{(\w+)\}", text):
        if kind == "begin":
            open_ones.append(name)
        else:
            assert open_ones.pop() == name
    assert not open_ones
    assert (r"\begin{longtable}" in text) == tall
    assert (r"\begin{table}" in text) != tall
    for columns, rows in grids(text):
        assert len(rows) > num_lines
        assert {num_cells(row) for row in rows} == {columns}
    for number, _ in enumerate(grids(text)):  # rules: heads come twice where pages break
        part = text.split(r"\begin{" + ("longtable" if tall else "tabular") + "}")[number + 1]
        heads = 2 if tall and number == 0 else 1
        assert part.count(r"\toprule") == part.count(r"\midrule") == heads
        assert part.count(r"\bottomrule") == 1
    assert text.count(r"\label{") == text.count(r"\caption[") == 1
    assert not re.search(r"\\label\{tab:[^}]*[^a-z0-9}:-]", text)


def test_a_wide_table_becomes_panels_that_fit_and_no_figure_is_lost() -> None:
    text = tex_table(table(3, 9))
    sizes = [columns - 2 for columns, _ in grids(text)]
    assert sum(sizes) == 9
    # A figure with its interval takes at least 55 points, the labels as much, of a page's 345.
    assert max(sizes) <= 5
    assert max(sizes) - min(sizes) <= 1  # the last is no leftover
    figures = re.findall(r"\d\.\d{3}", "".join(row for _, rows in grids(text) for row in rows))
    assert sorted(figures) == [f"{row}.{column:03d}" for row in range(3) for column in range(9)]
    assert len(grids(tex_table(table(3, 2)))) == 1


def test_lines_without_a_figure_in_a_panel_are_not_in_it() -> None:
    wide = table(1, 8)
    cells = (Cell(value="77"), *[None] * 7)
    line = TableLine(labels=("sparse", "rgb"), cells=cells)
    groups = (("", (*wide.groups[0][1], line)), ("nothing", ()))
    text = tex_table(
        Table(name="t", title="t", heads=wide.heads, columns=wide.columns, groups=groups)
    )
    assert len(grids(text)) > 1
    assert text.count("sparse") == 1
    assert "nothing" not in text


def test_long_labels_break_and_words_of_headings_stay_whole() -> None:
    long = TableLine(labels=("m", "a tower of many words " * 5), cells=(Cell(value="1"),))
    one = Table(
        name="t", title="t", heads=("model", "on"), groups=(("a heading " * 20, (long,)),),
        columns=(Column(heading="", metric="expected calibration error"),),
    )  # fmt: skip
    text = tex_table(one)
    assert re.search(r"\\begin\{tabular\}\{l>\{\\raggedright\\arraybackslash\}p\{\d+pt\}r\}", text)
    assert re.search(r"\\multicolumn\{3\}\{p\{\d+pt\}\}\{\\raggedright \\emph\{a heading", text)
    assert " & expected \\\\\n & & calibration" in text.replace("&  &", "& &")


def test_latex_reads_nothing_of_its_own_in_names() -> None:
    escaped = escape_tex(NASTY)
    assert braces_are_balanced(escaped)
    commands = r"\\text\w+\{\}|\\[{}$&#_%]|\$\\rightarrow\$|\{\[\}|\{\]\}|\{\*\}|-\{\}"
    assert not re.search(r"[\\{}$&#^_%~<>|\"`*\[\]]|--", re.sub(commands, "", escaped))
    assert escape_tex("a\x07\n\\b") == r"a \textbackslash{}b"
    assert escape_tex("--- é") == "-{}-{}- é"
    assert escape_tex("'' ,,") == "'{}' ,{},"
    assert escape_tex("模型 e\N{COMBINING ACUTE ACCENT} ħ α ≤ €") == "?? é ? ? $\\leq$ €"


def test_a_figure_has_its_mark_its_interval_and_a_minus_sign() -> None:
    cells = (
        Cell(value="51.2", interval="48.7–53.9", mark="paired"),
        Cell(value="-12.0*", interval="-20.0 to +4.0", mark="best"),
        None,
    )
    columns = tuple(Column(heading=name, metric="top-1") for name in "aab")
    line = TableLine(labels=("m",), cells=cells)
    text = tex_table(
        Table(name="t", title="t", heads=("model",), columns=columns, groups=(("", (line,)),))
    )
    assert (
        r"m & 51.2$^{\dagger}$ {\scriptsize (48.7\textendash{}53.9)} & "
        r"\textbf{$-$12.0{*}} {\scriptsize ($-$20.0 to +4.0)} & -- \\"
    ) in text
    assert r" & \multicolumn{2}{c}{a} & \multicolumn{1}{c}{b} \\" in text
    assert r"\cmidrule(lr){2-3}\cmidrule(lr){4-4}" in text


def test_a_tex_file_has_a_legend_for_its_marks_and_needs_only_what_it_says() -> None:
    text = tex_file([table()], legend="Per cent.", marks="†: tied.")
    assert text.startswith(TEX_HEAD)
    named = re.findall(r"\\usepackage(?:\[\w+\])?\{([\w,]+)\}", TEX_HEAD)
    assert {one for names in named for one in names.split(",")} == PACKAGES
    assert r"Per cent. $^{\dagger}$: tied.}\label{tab:" in text
    assert r"\hline" not in text
    text = tex_file([replace(table(), legend="In metres.")], legend="Per cent.", marks="")
    assert "In metres.}" in text
    assert "Per cent" not in text
