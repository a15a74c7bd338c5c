"""What a result depends on besides recipe and data: versions of packages, Python, the machine."""

from __future__ import annotations

import importlib.metadata
import platform


def versions() -> dict[str, str]:
    """Name -> version; imports none of the packages."""
    packages = (
        *("terralign", "torch", "torchvision", "open_clip_torch", "timm", "numpy"),
        *("scipy", "scikit-learn"),
    )
    return {
        "python": platform.python_version(),
        "machine": platform.machine(),
        **{name: importlib.metadata.version(name) for name in packages},
    }
