"""terralign brings any satellite sensor into a CLIP's embedding space.

The public surface: `EmbeddingSpace` (load, encode, classify, save), `SENSORS`, the data sets
(`terralign.datasets`) and the errors (`terralign.errors`).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from terralign.errors import TerralignError
from terralign.sensors import SENSORS

if TYPE_CHECKING:
    from terralign.encoders.space import EmbeddingSpace

__version__ = "0.1.0"
__all__ = ["SENSORS", "EmbeddingSpace", "TerralignError", "__version__"]


def __getattr__(name: str) -> Any:
    if name == "EmbeddingSpace":  # torch is imported only when it is needed
        from terralign.encoders.space import EmbeddingSpace

        return EmbeddingSpace
    raise AttributeError(f"module 'terralign' has no attribute {name!r}")
