"""The settings of every training, as recipes have them; a recipe is checked without torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, field_validator, model_validator

from terralign.augmentation import Photometric, Spectral, ViewSpec
from terralign.encoders.backbones import CUSTOM, INFLATE, Scaling
from terralign.errors import RecipeError, nearest
from terralign.limits import require
from terralign.precision import Precision
from terralign.sensors import Sensor

LabelLoss = Literal["cross_entropy", "bce", "calibrated_bce"]


WITHOUT_EFFECT = {"compile", "gradient_checkpointing", "shards"}
"""Settings that change how something is computed, and not what: results are the same but for
rounding, and a run may be resumed with others."""


class LoopSettings(BaseModel):
    """How long and how fast to train. The learning rate warms up linearly, then follows a cosine
    to zero over exactly the steps of the run."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    epochs: int = Field(default=1, ge=1)
    batch_size: int = Field(default=128, ge=1)
    """Samples per optimiser step."""
    lr: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=0.0, ge=0)
    """AdamW's."""
    decay: Literal["matrices", "all"] = "matrices"
    """What is decayed: not norms, biases and other vectors; or all parameters alike, as PAINT and
    WiSE-FT do."""
    betas: tuple[float, float] = (0.9, 0.999)
    warmup_steps: int = Field(default=0, ge=0)
    clip_norm: float | None = Field(default=1.0, gt=0)
    """Greatest norm of the gradient."""
    accumulate: int = Field(default=1, ge=1)
    """Parts a batch is split into to fit the memory; the gradient is that of the whole batch."""
    shards: int | None = Field(default=None, ge=1, le=1024)
    """Fixed parts of every batch whose gradients are summed in order, so that training has the same
    bits in 1, 2, 4 ... up to this many processes, where their kernels do. None: each process's
    share is one part."""
    precision: Precision = "fp32"
    """Of the products inside the towers ("bf16" by autocast); inputs and weights stay float32."""
    compile: bool = False
    """Compile the tower that is trained (`torch.compile`): minutes at the start, faster steps."""
    gradient_checkpointing: bool = False
    """Compute a transformer's activations again in the backward pass instead of keeping them: less
    memory, about a third more time."""
    keep: Literal["last", "best"] = "last"
    """Which weights the stage keeps: the last, or the best on validation data."""
    validate_every: int | None = Field(default=None, ge=1)
    """Steps between validations; None: once, at the end of each epoch, where there is a validation
    set and `keep` is "best"."""

    def values_of(self, kind: type[LoopSettings]) -> dict[str, Any]:
        """The values of the fields that `kind`, a class that this one derives from, has."""
        return self.model_dump(mode="json", include=set(kind.model_fields) - WITHOUT_EFFECT)


def check_loop(settings: LoopSettings, num_steps: int, *, validated: bool) -> None:
    """Raise `RecipeError` for settings that a training of so many steps, with validation data or
    without, cannot have, or that would change nothing."""
    if settings.decay == "all" and settings.weight_decay == 0:
        raise RecipeError('decay = "all" has no effect with weight_decay = 0; leave it out')
    require("training_steps", num_steps, "its epochs take", fault=RecipeError, todo="lower them")
    if settings.warmup_steps >= num_steps:
        raise RecipeError(
            f"warmup_steps = {settings.warmup_steps}, but the run has only {num_steps} steps; "
            "lower it or train longer"
        )
    if settings.keep == "best" and not validated:
        raise RecipeError('keep = "best" needs validation data; name some, or keep = "last"')
    if settings.keep == "last" and settings.validate_every is not None:
        raise RecipeError('validate_every has no effect with keep = "last"; leave it out')


# Before both stages


class PretrainSettings(LoopSettings):
    """A small CLIP and how it is trained."""

    lr: float = Field(default=1e-3, gt=0)
    weight_decay: float = Field(default=0.1, ge=0)
    data: str = "synthetic-photos"
    """Pictures with captions."""
    split: str = "train"
    limit: int | None = Field(default=None, ge=1)
    """At most this many samples, always the same."""
    architecture: dict[str, Any]
    """open_clip's model_cfg: embed_dim, vision_cfg, text_cfg."""
    freeze: tuple[str, ...] = ()
    """Names of parameters that keep their random start, with wildcards: the token embeddings of a
    tiny CLIP cost more time than they bring."""
    mean: tuple[float, float, float] = (0.5, 0.5, 0.5)
    std: tuple[float, float, float] = (0.5, 0.5, 0.5)
    views: ViewSpec = ViewSpec(flips=False, turns=False)

    @field_validator("architecture")
    @classmethod
    def _architecture_is_whole(cls, value: dict[str, Any]) -> dict[str, Any]:
        vision = value.get("vision_cfg")
        if not (isinstance(vision, dict) and isinstance(value.get("text_cfg"), dict)):
            raise ValueError("expected embed_dim, vision_cfg = {...} and text_cfg = {...}")
        for key, given in (
            ("embed_dim", value.get("embed_dim")),
            ("vision_cfg.image_size", vision.get("image_size")),
        ):
            if not isinstance(given, int) or given < 1:
                raise ValueError(f"{key} must be a whole number, not {given!r}")
        return value

    @property
    def image_size(self) -> int:
        """The side of its pictures in pixels."""
        return int(self.architecture["vision_cfg"]["image_size"])


# Stage 1


class PictureSettings(LoopSettings):
    """Training on labelled pictures, whatever is trained."""

    loss: LabelLoss | None = None
    """None: cross-entropy for single-label tasks, calibrated BCE for multi-label ones; "bce" is
    the paper's for these."""
    label_smoothing: float = Field(default=0.0, ge=0, lt=1)
    """Of the cross-entropy; refused for multi-label tasks, where it would do nothing."""
    views: ViewSpec = ViewSpec()
    """Geometric augmentation, drawn anew in every epoch."""
    photometric: Photometric | None = None
    """Colour augmentation; None: off. `{}` in a recipe takes the paper's."""


class FinetuneSettings(PictureSettings):
    """Stage 1's gradients. Default rate, decay and clipping are the paper's (as reported)."""

    lr: float = Field(default=1e-5, gt=0)
    weight_decay: float = Field(default=0.5, ge=0)
    preserve: float = Field(default=0.0, ge=0)
    """Weight of a term that keeps what the tower knew: 1 - cos between the embeddings of the
    fine-tuned and the zero-shot tower, averaged over the patching pictures. 0: off (the
    paper's)."""
    preserve_unlabelled: float = Field(default=0.0, ge=0)
    """Weight of the same term over other pictures (`preserve_on`), whose labels are not used."""
    preserve_batch_size: int = Field(default=64, ge=1)
    """Other pictures per step."""
    trainable: tuple[str, ...] = ("*",)
    """Names of the tower's parameters to train, with wildcards; the rest stays."""
    frozen: tuple[str, ...] = ()
    """Of those, names of parameters that stay as they are, with wildcards."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Running statistics of batch norms: kept, or updated (and re-estimated for each alpha)."""


DEFAULT_ALPHAS = tuple(round(0.1 * step, 1) for step in range(11))


class PatchSettings(FinetuneSettings):
    """Stage 1: the gradients' settings, and those of the sweep."""

    mode: Literal["joint", "sequential", "parallel", "ties"] = "joint"
    """How several tasks are patched: in one of PAINT's ways, or each alone and merged by TIES,
    whose means of changes may want alphas up to 2."""
    density: float = Field(default=0.2, gt=0, le=1)
    """TIES: the share of each task's largest changes of weights that is kept."""
    alphas: tuple[float, ...] = Field(default=DEFAULT_ALPHAS, min_length=1)
    """Interpolation coefficients to try; 0 is always tried."""
    max_supported_drop: float = Field(default=0.01, ge=0, le=1)
    """Greatest drop of any supported task, as a fraction of 1 (0.01: one point)."""

    @model_validator(mode="after")
    def _density_has_an_effect(self) -> Self:
        if self.mode != "ties" and self.density != type(self).model_fields["density"].default:
            raise ValueError(
                f'density = {self.density:g} has no effect with mode = "{self.mode}"; leave it '
                'out, or give mode = "ties"'
            )
        return self


# Stage 2

SSL4EO_S1 = {"VV": (-12.54847273, 5.25697717), "VH": (-20.19237134, 5.91150917)}
"""Mean and standard deviation in dB of Sentinel-1 over SSL4EO-S12, as its published code has them
(`pretrain_ssl/datasets/SSL4EO/ssl4eo_dataset.py`). Its pretraining stretches each band from two
deviations below the mean to two above it to 0-1."""


class StudentSettings(BaseModel):
    """What the student is, before training."""

    model_config = ConfigDict(
        extra="forbid", frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )

    backbone: str = INFLATE
    """A timm model's name, "inflate": the RGB tower over the student's bands, or "custom": an
    encoder that is given in Python."""
    bands: tuple[str, ...] | None = None
    """Any spelling that one of the tower's sensors knows. None: all bands of the training data."""
    missing: Literal["error", "zero"] = "error"
    """What happens to a band that pixels lack: an error, or zero (the paper's B10 of L2A)."""
    others: Literal["zero", "mean", "fitted"] = "zero"
    """Inflated towers: where the filters of invisible bands start, at zero or at the mean of the
    RGB filters; towers without visible bands start at the mean with both. "fitted", for these
    alone: at the least-squares estimate of the RGB composite from the tower's bands."""
    initial: str | None = None
    """A self-supervised checkpoint (SSL4EO-S12, torchgeo) for a timm backbone."""
    initial_bands: tuple[str, ...] | None = None
    """The checkpoint's bands in order; None: those of the student."""
    scaling: Scaling | None = None
    """How a timm backbone's inputs are scaled: "reflectance" (DN / 10000 clipped to 0-1),
    "ssl4eo-s1" (dB from two deviations of SSL4EO-S12 below the mean to two above, as 0-1), or
    "standardised" (by the mean and deviation of the training data). None: what the initial weights
    were trained with; with a checkpoint "reflectance" for optical sensors and "ssl4eo-s1" for
    Sentinel-1, and with random weights "standardised"."""
    size: int | None = Field(default=None, gt=0, le=4096)
    """Side in pixels of a timm backbone's input. None: that of the initial ViT checkpoint, else the
    CLIP's."""
    drop_path: float = Field(default=0.0, ge=0, lt=1)
    """Stochastic depth of a timm backbone; the paper's is 0.2 (as reported)."""

    @model_validator(mode="after")
    def _settings_have_an_effect(self) -> Self:
        if self.backbone == INFLATE:
            if self.initial is not None:
                raise ValueError("an inflated tower starts from the RGB tower; leave out initial")
            if self.drop_path:
                raise ValueError("drop_path has no effect on an inflated tower; leave it out")
            if self.scaling is not None:
                raise ValueError(
                    "scaling has no effect on an inflated tower, which keeps the composite's "
                    "stretch and the CLIP's mean and deviation; leave it out"
                )
            if self.size is not None:
                raise ValueError(
                    "size has no effect on an inflated tower, which has its CLIP's; leave it out"
                )
        elif self.others != "zero":
            kind = CUSTOM if self.backbone == CUSTOM else "timm"
            raise ValueError(f"others = {self.others!r} has no effect on a {kind} backbone")
        if self.backbone == CUSTOM and (self.initial is not None or self.drop_path):
            raise ValueError(
                "a custom encoder comes with its weights and its own stochastic depth; leave out "
                "initial and drop_path"
            )
        if self.initial_bands is not None and self.initial is None:
            raise ValueError("initial_bands has no effect without initial; leave it out")
        return self


def student_scaling(settings: StudentSettings, sensors: Sequence[Sensor]) -> Scaling | None:
    """How the student's inputs are scaled; None for an inflated tower, which keeps its CLIP's way.

    `RecipeError` where a scaling does not fit one of the tower's sensors.
    """
    if settings.backbone == INFLATE:
        return None
    optical = all(sensor.unit == "reflectance" for sensor in sensors)
    radar = all(_is_ssl4eo_radar(sensor) for sensor in sensors)
    if settings.scaling is None:
        if settings.initial is None or not (optical or radar):
            return "standardised"
        return "reflectance" if optical else "ssl4eo-s1"
    fits = {"reflectance": optical, "ssl4eo-s1": radar, "standardised": True}
    if not fits[settings.scaling]:
        wanted = (
            "reflectance"
            if settings.scaling == "reflectance"
            else f"dB of {' and '.join(SSL4EO_S1)} of Sentinel-1"
        )
        units = ", ".join(f"{sensor.name} is in {sensor.unit}" for sensor in sensors)
        raise RecipeError(
            f'scaling = "{settings.scaling}" is for {wanted}; {units}: set scaling = '
            '"standardised", or leave it out'
        )
    return settings.scaling


def _is_ssl4eo_radar(sensor: Sensor) -> bool:
    return sensor.unit == "dB" and set(sensor.band_names) <= SSL4EO_S1.keys()


FEATURE_LOSSES = ("mse", "mse_normalised", "cosine", "infonce", "kl")
"""The feature losses by name; `train.losses` computes them."""

PAPER_LOSSES = {"mse": 1.0, "label": 0.05}
"""The paper's stage 2 (as reported): MSE of raw features and 0.05 times the label loss."""

DEFAULT_LOSSES = {"mse_normalised": 1.0, "label": 0.2}
"""Chosen on validation data (docs/experiment-log.md); "label" is dropped where no labels are
given."""


class AlignSettings(LoopSettings):
    """Stage 2's training. Default rate and decay are the paper's (as reported)."""

    lr: float = Field(default=1e-4, gt=0)
    weight_decay: float = Field(default=0.01, ge=0)
    losses: dict[str, float] | Literal["paper"] | None = None
    """Weights of feature losses (mse, mse_normalised, cosine, infonce, kl) and of "label"; "paper":
    MSE of raw features and 0.05 label loss; None: mse_normalised 1 and label 0.2, for accuracy and
    retrieval both."""
    label_loss: LabelLoss | None = None
    """None: cross-entropy for single-label data, calibrated BCE for multi-label data."""
    batch_norm: Literal["frozen", "train"] = "frozen"
    """Running statistics of the student's batch norms."""
    trainable: tuple[str, ...] = ("*",)
    """Names of the student's parameters to train, with wildcards."""
    frozen: tuple[str, ...] = ()
    """Of those, names of parameters that stay as they are, with wildcards: the position embeddings
    that MoCo-v3 keeps fixed are "backbone.pos_embed"."""
    views: ViewSpec = ViewSpec()
    """Geometry of a view, the same for teacher and student."""
    num_views: int = Field(default=1, ge=1, le=10_000)
    """Seeded views per sample that the teacher embeds; a sample that is seen for the n-th time
    (0-based, over epochs and repeats) is in view n modulo this."""
    live_teacher: bool = False
    """Run the teacher in every step instead of storing its embeddings."""
    spectral: Spectral = Spectral()
    """Augmentation of the student's bands."""

    @field_validator("losses")
    @classmethod
    def _losses_are_known(cls, value: Any) -> Any:
        for name, weight in (value or {}).items() if isinstance(value, dict) else ():
            if name not in (*FEATURE_LOSSES, "label"):
                known = [*FEATURE_LOSSES, "label"]
                raise ValueError(f"unknown loss {name!r}; {nearest(name, known)}")
            if weight <= 0:
                raise ValueError(f"loss {name!r} has weight {weight}; leave it out instead")
        return value

    def weights(self, *, labelled: bool) -> dict[str, float]:
        """The losses with their weights; `RecipeError` for a label loss without labels."""
        if self.losses == "paper":
            chosen = dict(PAPER_LOSSES)
        elif self.losses is None:
            chosen = dict(DEFAULT_LOSSES)
        else:
            chosen = dict(self.losses)
            if "label" in chosen and not labelled:
                raise RecipeError(
                    "losses has a label term, but no data set is used with its labels; "
                    "set labels = true on one, or leave the term out"
                )
        if not labelled:
            chosen.pop("label", None)
        if not chosen:
            raise RecipeError("no loss is left: name at least one")
        return chosen
