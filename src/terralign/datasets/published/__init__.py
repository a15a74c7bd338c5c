"""Data sets in the layouts in which their archives are published, one module per archive.

`arrays`, `listing`, `label_files` and `corine` are what several of them share.
"""
