"""Studies: one recipe in many variants and seeds, run, resumed and put into a table.

`study` reads a study, `runs` goes through its runs, `sharing` saves them what others have computed,
`baselines` are the methods that take the place of stage 1, and `summary` makes the table.
"""
