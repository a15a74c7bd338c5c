"""Data sets: by name (`catalog`), from a user's TOML file, from an archive, from a packed store.

`sample` says what every one of them gives. `published` reads archives, `declared` what users
describe, `synthetic` draws its own, `store` keeps any of them decoded, and `batches` feeds
training.
"""
