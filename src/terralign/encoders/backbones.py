"""What a sensor tower's backbone and its scaling are called, without torch."""

from __future__ import annotations

from typing import Literal

INFLATE = "inflate"
"""The RGB tower over the tower's bands."""

CUSTOM = "custom"
"""An encoder that its user builds."""

Scaling = Literal["reflectance", "ssl4eo-s1", "standardised"]
"""How a timm tower's inputs were scaled; `train/student.py` has the numbers."""
