"""CLIP: loaded with bounded trust, its configuration, text tower and weights."""
