"""Reports: rows become tables, figures and pages; this room knows rows and nothing else.

`run.py`, `bench.py` and `study.py` make a `Document` (`document.py`) of tables (`tables.py`) and
figures (`figures.py`, `diagnostics.py`); `render.py` writes it as HTML, Markdown and LaTeX, by the
templates beside it. What needs pixels or models is prepared by the callers: pictures come as bytes.
"""
