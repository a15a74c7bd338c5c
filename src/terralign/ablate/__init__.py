"""Studies: one recipe in many variants and seeds, run, resumed and put into a table.

`study` reads a study, `runs` runs its variants, whose common stages a cache holds, `baselines` are
the methods that take the place of stage 1, `differences` compares variants, and `summary` makes the
table.
"""
