"""terralign brings any satellite sensor into a CLIP's embedding space.

    import terralign as ta

    space = ta.load("runs/b32/model")
    space.classify("scene.tif", ["forest", "a river"], sensor="sentinel2-l2a")

The names below are the public interface; every other module may move.
"""

from __future__ import annotations

TYPE_CHECKING = False  # as `typing` has it, whose import would delay the handler of Ctrl-C
if TYPE_CHECKING:
    from typing import Any

    from terralign.chips import Chip
    from terralign.datasets.samples import Samples
    from terralign.encoders.space import EmbeddingSpace, load
    from terralign.encoders.vectors import Embeddings
    from terralign.errors import TerralignError
    from terralign.index.embed import embed_scenes
    from terralign.index.indexing import index_folder
    from terralign.index.score import class_map, score_map
    from terralign.index.search import open_index
    from terralign.scenes.scene import Scene, open_scene
    from terralign.searching.evaluate import evaluate_search
    from terralign.sensors import SENSORS, Sensor, load_sensor
    from terralign.training import align, evaluate, patch

__version__ = "0.1.0"

_LIGHT = {
    "SENSORS": "terralign.sensors",
    "Chip": "terralign.chips",
    "Sensor": "terralign.sensors",
    "TerralignError": "terralign.errors",
    "load_sensor": "terralign.sensors",
}
"""Public name -> the module that it is imported from when it is first asked for."""

_DEFERRED = {
    "EmbeddingSpace": "terralign.encoders.space",
    "Embeddings": "terralign.encoders.vectors",
    "Samples": "terralign.datasets.samples",
    "Scene": "terralign.scenes.scene",
    "align": "terralign.training",
    "class_map": "terralign.index.score",
    "embed_scenes": "terralign.index.embed",
    "evaluate": "terralign.training",
    "evaluate_search": "terralign.searching.evaluate",
    "index_folder": "terralign.index.indexing",
    "load": "terralign.encoders.space",
    "open_index": "terralign.index.search",
    "open_scene": "terralign.scenes.scene",
    "patch": "terralign.training",
    "score_map": "terralign.index.score",
}
"""The same of modules that take seconds (torch): imported when the name is first used."""

__all__ = [
    "SENSORS",
    "Chip",
    "EmbeddingSpace",
    "Embeddings",
    "Samples",
    "Scene",
    "Sensor",
    "TerralignError",
    "__version__",
    "align",
    "class_map",
    "embed_scenes",
    "evaluate",
    "evaluate_search",
    "index_folder",
    "load",
    "load_sensor",
    "open_index",
    "open_scene",
    "patch",
    "score_map",
]


def __getattr__(name: str) -> Any:
    if name in _DEFERRED:
        from terralign.deferred import find

        return find(_DEFERRED[name], name)
    if name not in _LIGHT:
        raise AttributeError(f"module 'terralign' has no attribute {name!r}")
    import importlib

    found = getattr(importlib.import_module(_LIGHT[name]), name)
    globals()[name] = found
    return found


def __dir__() -> list[str]:
    return sorted(__all__)
