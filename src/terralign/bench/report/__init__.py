"""The report of a bench folder: `report.html`, `report.md`, `tables.tex`, their figures.

`report_bench` is all that others need. `results.py` reads the folder, `plans.py`, `tables.py`,
`markup.py` and `latex.py` make the tables, `sections.py` and `figures.py` the figures,
`examples.py` and `pictures.py` show what queries find; `document.py` puts them together.
"""

from terralign.bench.report.write import report_bench

__all__ = ["report_bench"]
