"""How samples are augmented, as values of a recipe; `preprocess.augment` does it."""

from __future__ import annotations

from typing import Self

from pydantic import BaseModel, ConfigDict, Field, model_validator


class ViewSpec(BaseModel):
    """The geometry of a view: random resized crop, flips, 90-degree turns."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    crop_scale: tuple[float, float] = (1.0, 1.0)
    """Least and greatest share of the area that is kept; (1, 1) crops nothing."""
    crop_ratio: tuple[float, float] = (1.0, 1.0)
    """Least and greatest width / height of the crop."""
    flips: bool = True
    """Left-right and up-down, each with probability 0.5."""
    turns: bool = True
    """0, 90, 180 or 270 degrees with the same probability."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> Self:
        if not 0 < self.crop_scale[0] <= self.crop_scale[1] <= 1:
            raise ValueError(f"crop_scale {self.crop_scale}: expected 0 < least <= greatest <= 1")
        if not 0 < self.crop_ratio[0] <= self.crop_ratio[1]:
            raise ValueError(f"crop_ratio {self.crop_ratio}: expected 0 < least <= greatest")
        return self

    @property
    def crops(self) -> bool:
        """Whether a view may be less than the whole sample."""
        return self.crop_scale != (1.0, 1.0) or self.crop_ratio != (1.0, 1.0)


class Photometric(BaseModel):
    """Colour augmentation of RGB pictures; the defaults are the paper's (as reported)."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    jitter: float = Field(default=0.4, ge=0, lt=1)
    """Brightness, contrast and saturation are multiplied by a factor in [1 - j, 1 + j]."""
    jitter_probability: float = Field(default=0.8, ge=0, le=1)
    grey_probability: float = Field(default=0.2, ge=0, le=1)
    blur_probability: float = Field(default=0.4, ge=0, le=1)


class Spectral(BaseModel):
    """Augmentation of multispectral and radar bands."""

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    band_dropout: float = Field(default=0.0, ge=0, lt=1)
    """Probability that a band is as if missing, zero where it enters the network; at least one
    band stays."""
    gain: float = Field(default=0.0, ge=0, lt=1)
    """Each band is multiplied by a factor in [1 - g, 1 + g]."""
