"""A recipe and its run in a folder."""
