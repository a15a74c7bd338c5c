"""A whole run of a few seconds, for the tests of runs and of the command line."""

from __future__ import annotations

import tomllib
from typing import Any

from terralign.runs.recipe import Recipe, parse_recipe

SMALL_RECIPE = """
name = "small"
note = "A test."
threads = 1

[base.pretrain]
epochs = 1
batch_size = 16
limit = 48
lr = 1e-3
freeze = ["token_embedding.*"]

[base.pretrain.architecture]
embed_dim = 32
vision_cfg = { image_size = 32, patch_size = 8, width = 64, head_width = 32, layers = 1 }
text_cfg = { context_length = 16, vocab_size = 49408, width = 32, heads = 2, layers = 1 }

[patch]
epochs = 2
batch_size = 16
lr = 1e-3
warmup_steps = 2
alphas = [0.5, 1.0]
max_supported_drop = 0.5

[[patch.tasks]]
data = "synthetic-scenes"
limit = 64
validation_limit = 32

[[patch.supported]]
data = "synthetic-photos"
validation_limit = 32

[[align]]
name = "s2"
sensors = ["sentinel2-l2a"]
epochs = 2
batch_size = 16
lr = 1e-3
num_views = 2

[[align.data]]
data = "synthetic-scenes"
limit = 64
labels = true

[[align]]
name = "s1"
sensors = ["sentinel1-grd"]
epochs = 2
batch_size = 16
lr = 1e-3
losses = { cosine = 1.0, kl = 0.1 }
num_views = 2
student = { backbone = "test_vit", drop_path = 0.2 }

[[align.data]]
data = "synthetic-scenes"
limit = 64

[[evaluate]]
data = "synthetic-scenes"
split = "test"
role = "patching"
models = ["base", "finetuned", "patched"]
towers = ["s2", "s1"]
limit = 40

[[evaluate]]
data = "synthetic-photos"
split = "test"
role = "supported"
models = ["base", "patched"]
limit = 40

[[evaluate]]
data = "synthetic-scenes"
split = "test"
role = "alignment"
task = "retrieval"
query = "s1"
gallery = "s2"
limit = 40

[[evaluate]]
data = "synthetic-photos"
split = "test"
role = "supported"
task = "retrieval"
query = "text"
gallery = "rgb"
limit = 40
"""


def small_values() -> dict[str, Any]:
    """The recipe as plain values."""
    return tomllib.loads(SMALL_RECIPE)


def small_recipe(**changes: Any) -> Recipe:
    """The recipe, with other values at its top level; a value of None leaves a key out."""
    values = {**small_values(), **changes}
    kept = {key: value for key, value in values.items() if value is not None}
    return parse_recipe(kept, origin="small")
