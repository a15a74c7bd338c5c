"""Data sets in the layouts in which their archives are published.

`arrays`, `geotiffs` and `corine` are what several of them share.
"""
