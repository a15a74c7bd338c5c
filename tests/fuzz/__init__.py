"""Seeded fuzz: damaged and hostile files of every format that terralign reads.

`corpus` makes small valid files, `mutations` damages them, `hostile` has files made by hand,
`outcome` reads one in a child process and judges how it ended, and `run.py` runs many.
"""
