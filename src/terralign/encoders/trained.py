"""How a tower was trained: the few figures that are kept beside its weights."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field


class TowerTraining(BaseModel):
    """Data, settings and outcome of the training of one tower; no part of its identity.

    `str(tower.trained)` is one line: steps, samples, losses, cosine.
    """

    model_config = ConfigDict(extra="forbid", frozen=True, use_attribute_docstrings=True)

    data: tuple[str, ...]
    """Names of the sample sets."""
    num_samples: int = Field(ge=1)
    """Training samples of all sets together."""
    encoder: str
    """A timm model's name, the class of a custom encoder, or "inflate"."""
    losses: dict[str, float]
    """Each loss with its weight."""
    epochs: int = Field(ge=1)
    batch_size: int = Field(ge=1)
    lr: float
    seed: int
    num_steps: int = Field(ge=1)
    """Optimiser steps."""
    first_loss: float | None
    """Mean loss of the first tenth of the steps; None: not recorded."""
    last_loss: float | None
    """Mean loss of the last tenth of the steps."""
    cosine: float
    """Mean cosine of tower and teacher on the training samples, or on 256 of them."""

    def __str__(self) -> str:
        course = describe_course(self.num_steps, self.num_samples, self.first_loss, self.last_loss)
        return f"{course}, mean cosine to the teacher {self.cosine:.2f}"


def describe_course(
    num_steps: int, num_samples: int, first_loss: float | None, last_loss: float | None
) -> str:
    """ "28 steps over 60 samples, loss 0.412 -> 0.0801"."""
    steps = f"{num_steps:,} step{'s' * (num_steps != 1)}"
    samples = f"{num_samples:,} sample{'s' * (num_samples != 1)}"
    known = first_loss is not None and last_loss is not None
    return f"{steps} over {samples}" + (f", loss {first_loss:.3g} -> {last_loss:.3g}" * known)
