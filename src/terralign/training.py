"""The method on samples in hand: `patch` a space, `align` a tower to it, `evaluate` either.

What a recipe runs from a TOML file, with the same settings under the same names. Settings are
keywords: a misspelt one is an error that names the nearest right one.
"""

from __future__ import annotations

import inspect
import logging
import re
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from numbers import Integral
from pathlib import Path
from typing import Any, Literal, TypeVar

import torch
from pydantic import BaseModel, ValidationError
from torch import Tensor

from terralign.compute import as_usual, choose_device
from terralign.datasets.composited import with_composite
from terralign.datasets.overlap import Overlaps
from terralign.datasets.sample import (
    Indexed,
    SampleSet,
    Subset,
    at_size,
    is_sample_set,
    require_labels,
)
from terralign.encoders.custom import Encoder
from terralign.encoders.picture_size import picture_size
from terralign.encoders.sensor import CUSTOM, INFLATE, SensorTower, TowerConfig
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.encoders.trained import describe_course
from terralign.encoders.zeroshot import Prompts, as_prompts
from terralign.errors import (
    DataError,
    Interrupted,
    ModelError,
    RecipeError,
    nearest,
)
from terralign.evaluation.classification import choose_prompts, evaluate_zero_shot
from terralign.evaluation.embed import require_rgb
from terralign.evaluation.result import Evaluation
from terralign.evaluation.retrieval import TEXT, evaluate_retrieval
from terralign.files import claimed
from terralign.sensors import Sensor
from terralign.toml_values import explain
from terralign.train import patch as stage_1
from terralign.train.align import AlignmentSource, AlignSettings
from terralign.train.finetune import PatchingTask
from terralign.train.ineffective import warn_of_few_steps
from terralign.train.outcome import course_of_loss, num_steps
from terralign.train.patch import PatchSettings
from terralign.train.rates import warn_of_patch_rate
from terralign.train.settings import StudentSettings, student_scaling
from terralign.train.tower import make_tower

logger = logging.getLogger(__name__)

Data = SampleSet | Sequence[SampleSet]
"""One sample set, or several."""

HELD_OUT = 0.2
"""The share of the training data that alpha is chosen on where no validation data are given."""

Function = TypeVar("Function", bound=Callable[..., Any])


def _takes(*models: type[BaseModel], but: Sequence[str] = ()) -> Callable[[Function], Function]:
    """Give a function with `**settings` the signature and the documentation of the fields of
    `models`, so that `help` and tab completion show them."""

    def decorate(function: Function) -> Function:
        signature = inspect.signature(function)
        known = [one for one in signature.parameters.values() if one.kind != one.VAR_KEYWORD]
        names = {one.name for one in known} | set(but)
        lines = []
        for name, field in _fields(models).items():
            if name in names:
                continue
            default = field.get_default(call_default_factory=True)
            known.append(
                inspect.Parameter(
                    name,
                    inspect.Parameter.KEYWORD_ONLY,
                    default=default,
                    annotation=field.annotation,
                )
            )
            lines.append(f"    {name} = {default!r}: {' '.join((field.description or '').split())}")
        function.__signature__ = signature.replace(parameters=known)  # type: ignore[attr-defined]
        settings = "\n".join(line.removesuffix(": ") for line in lines)
        function.__doc__ = f"{function.__doc__ or ''}\n    Settings:\n\n{settings}\n"
        return function

    return decorate


def _fields(models: Sequence[type[BaseModel]]) -> dict[str, Any]:
    return {name: field for model in models for name, field in model.model_fields.items()}


@_takes(AlignSettings, StudentSettings, but=("backbone",))
def align(
    space: EmbeddingSpace,
    data: Data,
    *,
    name: str,
    encoder: str | Encoder | None = None,
    sensors: Sequence[str | Sensor] | str | Sensor | None = None,
    bands: Sequence[str] | None = None,
    labels: bool | None = None,
    prompts: Prompts | None = None,
    validation: SampleSet | None = None,
    folder: str | Path | None = None,
    allow_shared_samples: bool = False,
    seed: int = 0,
    device: str | None = None,
    **settings: Any,
) -> SensorTower:
    """Stage 2: a tower of another sensor that embeds as the space's RGB tower does.

    `data`: `Samples`, or several, whose sensor makes RGB composites, or that have RGB pictures
    beside it; the RGB tower, the teacher, sees these. `encoder`: a timm model's name, an
    `nn.Module` (a copy is trained) or a function that builds one, which takes (B, C, H, W) float32
    and gives (B, features); None: the RGB tower itself, inflated to all bands. `sensors`: those
    that the tower takes; left out, the data's own. `bands`: a part of theirs. `labels`: None uses
    labels where data have them and `losses` has a label term, which the default losses have; False
    trains without, as the method needs none. `prompts`: for the label term; left out, the data's
    own, else those of the space. `validation`: samples by which the best step is kept. An encoder
    with batch norms that was not trained before needs `batch_norm="train"`.

    `folder`: where checkpoints go; a call that is repeated with it resumes. Left out, they go to a
    temporary folder that is removed. `device`: where to train; left out, where the space is.
    `allow_shared_samples`: validate even on samples that are trained on.

    Returns the tower, with the definitions of its own sensors: `space.add(tower)` takes it. How
    training went is logged and stays in `tower.trained`: steps, first and last loss, and the mean
    cosine to the teacher, 1 where the tower embeds as the teacher does.

    `RecipeError` for a setting that is unknown or without effect, or data that would be validated
    on themselves.
    """
    _require_space(space)
    _check_arguments(
        name=name, seed=seed, device=device, folder=folder, sensors=sensors, labels=labels
    )
    if validation is not None:
        settings.setdefault("keep", "best")
    if "backbone" in settings:
        raise RecipeError("align() has no setting 'backbone'; did you mean 'encoder'?")
    settings.update(_student_settings(encoder, bands))
    chosen, student = _settings("align", settings, AlignSettings, StudentSettings)
    seed = int(seed)
    with _on_device(space, device), _working_folder(folder) as work:
        sets = _opened(space, data)
        kept = None if validation is None else _opened_one(space, validation, "validation")
        declared = _sensors_of(space, sets, sensors)
        use_labels = _label_use(sets, labels, chosen)
        sources = [
            _source(space, one, use and one.labels is not None, prompts)
            for one, use in zip(sets, use_labels, strict=True)
        ]
        custom = None if encoder is None or isinstance(encoder, str) else encoder
        student_scaling(student, declared)
        sizes = [len(one) for one in sets]
        warn_of_few_steps(f"align {name}", num_steps(sizes, chosen), sum(sizes), chosen)
        judged = None
        if kept is not None:
            with_labels = any(source.labelled for source in sources) and kept.labels is not None
            judged = _source(space, kept, with_labels, prompts)
        tower = make_tower(
            name, space.clip, student, declared, sources, chosen, work,
            anchors=_anchors(space, sources) if "kl" in (chosen.losses or ()) else None,
            validation=judged, encoder=custom, describe=True,
            allow_shared_samples=allow_shared_samples, seed=seed,
        )  # fmt: skip
        if tower.trained is not None:
            logger.info("align %s: %s", name, tower.trained)
    return tower.to(space.device)


@_takes(PatchSettings)
def patch(
    space: EmbeddingSpace,
    data: Data,
    *,
    supported: Data = (),
    validation: Data | None = None,
    prompts: Prompts | None = None,
    preserve_on: SampleSet | None = None,
    folder: str | Path | None = None,
    allow_shared_samples: bool = False,
    seed: int = 0,
    device: str | None = None,
    **settings: Any,
) -> EmbeddingSpace:
    """Stage 1: fine-tune the RGB tower on labelled samples, then choose how far to go.

    The weights are interpolated between those of the space (alpha 0) and the fine-tuned ones
    (alpha 1). The alpha is taken that is best on `validation`, among those at which no `supported`
    task loses more than `max_supported_drop`. `data`: labelled `Samples`, or several, that are RGB
    or make RGB composites. `supported`: labelled photos whose accuracy must hold. `validation`: one
    set for each of `data`; left out, a fifth of each, drawn with `seed` and with all classes alike,
    is held out and never trained on. `prompts`: for `data`; left out, their own, else the space's.
    `preserve_on`: pictures for `preserve_unlabelled`.

    `folder`, `device`, `allow_shared_samples`: as for `align`. Returns a new space; the given one
    is left as it is. Its `provenance` has alpha, why it was chosen, the curve, and what it was
    trained on: data, samples, steps, first and last loss. Towers are not
    taken over, since they were aligned to the other RGB tower. `RecipeError` as for `align`.
    """
    _require_space(space)
    _check_arguments(seed=seed, device=device, folder=folder)
    [chosen] = _settings("patch", settings, PatchSettings)
    seed = int(seed)
    with _on_device(space, device), _working_folder(folder) as work:
        training = _opened(space, data)
        held = _held_out(training, seed) if validation is None else None
        pairs = held or list(zip(training, _judging(space, validation, training), strict=True))
        tasks = [_task(space, one, prompts) for one, _ in pairs]
        judged = [_task(space, one, prompts) for _, one in pairs]
        warn_of_patch_rate(space.clip.visual, chosen.lr, source=space.source)
        sizes = [len(task.samples) for task in tasks]
        for fit in [sizes] if chosen.mode == "joint" else [[size] for size in sizes]:
            warn_of_few_steps("patch", num_steps(fit, chosen), sum(fit), chosen)
        result = stage_1.patch(
            space.clip, tasks, chosen, work,
            validation=judged,
            supported=[_task(space, one, None) for one in _opened(space, supported)],
            preserve_on=(
                None if preserve_on is None else _opened_one(space, preserve_on, "preserve_on")
            ),
            allow_shared_samples=allow_shared_samples,
            seed=seed,
        )  # fmt: skip
        if space.towers:
            logger.warning(
                "the towers %s belong to the RGB tower of the space that was patched and are not "
                "taken over; align them again", ", ".join(space.towers),
            )  # fmt: skip
        alpha = result.choice.alpha
        if alpha == 0:
            logger.warning("the space is as it was: %s", result.choice.reason)
        # Tasks that are patched one after another or each alone have no course of loss together.
        first, last = course_of_loss(work / "checkpoints" / "metrics.jsonl")
        steps = num_steps(sizes, chosen)
        course = describe_course(steps, sum(sizes), first, last)
        logger.info("patch: %s, alpha %g", course, alpha)
        how = f"patched (alpha {alpha:g})" if alpha else "unchanged (alpha 0)"
        patched = EmbeddingSpace(
            space.clip.with_visual(result.patched, source=f"{space.source}, {how}"),
            sensors=space.sensors,
            prompts=tasks[0].prompts,
            provenance={
                "base": space.source,
                "base_id": space.space_id,
                "alpha": alpha,
                "reason": result.choice.reason,
                "data": [task.samples.name for task in tasks],
                "num_samples": sum(sizes),
                "num_steps": steps,
                "first_loss": first,
                "last_loss": last,
                "curve": [asdict(point) for point in result.points],
                "settings": chosen.model_dump(mode="json"),
                "seed": seed,
            },
        )
    return patched.to(space.device)


def evaluate(
    space: EmbeddingSpace,
    data: SampleSet,
    *,
    tower: str | None = None,
    prompts: Prompts | None = None,
    class_names: Sequence[str] | None = None,
    task: Literal["zero-shot", "retrieval"] = "zero-shot",
    query: str | None = None,
    gallery: str | None = None,
    composite: str | None = None,
) -> Evaluation:
    """Measure a space on one sample set, as `terralign evaluate` does: equal, number for number.

    `task`: "zero-shot" classifies by the names of the classes; "retrieval", which `query` or
    `gallery` imply, ranks one side's vectors for the other's. `tower`: a tower or sensor; left out,
    the aligned tower of the data's first sensor, else the RGB tower. `class_names`: instead of the
    data's own, one per class. `prompts`: left out, the data's own, else the space's. `query`,
    `gallery`: "text", "rgb", a tower or a sensor (gallery: "rgb"). `composite`: which RGB composite
    of the data's sensor the RGB tower sees.

    Returns the metrics with 95 % intervals, chance levels and sample counts, printed as a table.
    """
    _require_space(space)
    if task not in ("zero-shot", "retrieval"):
        raise RecipeError(f"task = {task!r}; expected 'zero-shot' or 'retrieval'")
    retrieval = task == "retrieval" or query is not None or gallery is not None
    if retrieval and tower is not None:
        raise RecipeError("tower is for classification; name towers by query and gallery")
    if retrieval and class_names is not None:
        raise RecipeError("class_names is for classification; leave it out")
    sets = _opened(space, data)
    if len(sets) != 1:
        raise DataError(f"evaluate() measures one sample set, not {len(sets)}; call it for each")
    samples = with_composite(sets[0], composite)
    if composite is not None:
        require_rgb(space, samples, (query, gallery or RGB) if retrieval else (tower,))
    given = None if prompts is None else as_prompts(prompts)
    if retrieval:
        return evaluate_retrieval(
            space, samples, query=query, gallery=gallery or RGB, prompts=given
        )
    return evaluate_zero_shot(space, samples, tower=tower, prompts=given, class_names=class_names)


# Settings


def _require_space(space: object) -> None:
    """`ModelError` where a model's name or folder is given instead of the space."""
    if isinstance(space, EmbeddingSpace):
        return
    if isinstance(space, str | Path):
        kind = "text" if isinstance(space, str) else "path"
        raise ModelError(f"space is a {kind}; write ta.load({str(space)!r}) first")
    raise ModelError(f"space is a {type(space).__name__}, not an EmbeddingSpace from ta.load(...)")


def _settings(function: str, given: Mapping[str, Any], *models: type[BaseModel]) -> list[Any]:
    """Checked values of each model; `RecipeError` names the nearest name to an unknown one."""
    known = _fields(models)
    unknown = next((name for name in given if name not in known), None)
    if unknown is not None:
        own = inspect.signature(globals()[function]).parameters
        raise RecipeError(
            f"{function}() has no setting {unknown!r}; {nearest(unknown, {*known, *own})}"
        )
    found = []
    for model in models:
        values = {name: value for name, value in given.items() if name in model.model_fields}
        try:
            found.append(model.model_validate(values))
        except ValidationError as error:
            raise RecipeError(f"{function}: {explain(error, model)}") from error
    return found


def _student_settings(encoder: str | Encoder | None, bands: Sequence[str] | None) -> dict[str, Any]:
    """What the arguments of `align` set."""
    if encoder == CUSTOM:
        raise RecipeError("encoder = 'custom': give the module, or a function that builds it")
    if isinstance(bands, str):
        raise RecipeError(f"bands = {bands!r} is one text; give a list of names")
    if bands is not None and not isinstance(bands, Iterable):
        raise RecipeError(f"bands = {bands!r:.100}; give a list of names")
    backbone = INFLATE if encoder is None else encoder if isinstance(encoder, str) else CUSTOM
    return {"backbone": backbone, "bands": None if bands is None else tuple(bands)}


def _is_seed(value: Any) -> bool:
    is_whole = isinstance(value, Integral) and not isinstance(value, bool)
    return is_whole and 0 <= int(value) < 2**63


def _is_tower_name(value: object) -> bool:
    pattern = str(TowerConfig.model_fields["name"].metadata[0].pattern)
    return (
        isinstance(value, str) and value not in (RGB, TEXT) and bool(re.fullmatch(pattern, value))
    )


def _are_sensors(value: object) -> bool:
    given = value if isinstance(value, list | tuple) else [value]
    return bool(given) and all(isinstance(one, str | Sensor) for one in given)


_EXPECTED: dict[str, tuple[Callable[[Any], bool], str]] = {
    "seed": (_is_seed, "a whole number from 0 to 2**63 - 1"),
    "name": (
        _is_tower_name,
        f"small letters, digits and hyphens, as in 'sentinel2', and not {RGB} or {TEXT}",
    ),
    "device": (lambda it: isinstance(it, str | torch.device), "a text such as 'cpu' or 'cuda:1'"),
    "folder": (
        lambda it: isinstance(it, str | Path) and bool(str(it).strip()),
        "the path of a folder",
    ),
    "labels": (lambda it: isinstance(it, bool), "True, False or None (the data have the labels)"),
    "sensors": (
        _are_sensors,
        "a sensor or a list of them, each by name, .toml file or definition (Sensor)",
    ),
}
"""Argument -> what it must be where it is given, and the error's words for it."""


def _check_arguments(*, seed: object, **others: object) -> None:
    """`RecipeError` for an argument of a type that cannot be meant."""
    given = {"seed": seed, **{name: one for name, one in others.items() if one is not None}}
    for name, value in given.items():
        fits, expected = _EXPECTED[name]
        if not fits(value):
            raise RecipeError(f"{name} = {value!r:.100}; expected {expected}")


# Data


def _opened(space: EmbeddingSpace, data: Data) -> list[SampleSet]:
    """The sets, with RGB pictures of the size that the RGB tower takes."""
    sets = [data] if is_sample_set(data) else list(data) if isinstance(data, list | tuple) else None
    if sets is None or not all(map(is_sample_set, sets)):
        given = next((one for one in sets or [data] if not is_sample_set(one)), data)
        raise DataError(
            f"data are Samples, or a list of them, not {type(given).__name__}; see "
            "Samples.from_arrays, from_folder, from_torchgeo, from_torchvision and open"
        )
    size = picture_size(space.input_spec())
    return [at_size(one, size) for one in sets]  # type: ignore[arg-type]


def _opened_one(space: EmbeddingSpace, data: Data, keyword: str) -> SampleSet:
    sets = _opened(space, data)
    if len(sets) != 1:
        raise RecipeError(f"{keyword} is {len(sets)} sample sets; give one")
    return sets[0]


def _sensors_of(
    space: EmbeddingSpace,
    sets: Sequence[SampleSet],
    sensors: Sequence[str | Sensor] | str | Sensor | None,
) -> list[Sensor]:
    """The sensors of a tower: those named, else the one of each set that is not RGB."""
    there = {name: layout.sensor for one in sets for name, layout in one.layouts.items()}
    if sensors is not None:
        given = [sensors] if isinstance(sensors, str | Sensor) else list(sensors)
        return [
            one if isinstance(one, Sensor) else there.get(one) or space.find_sensor(one)
            for one in given
        ]
    found: dict[str, Sensor] = {}
    for one in sets:
        own = [name for name in one.layouts if name != RGB]
        if len(own) > 1:
            raise RecipeError(
                f"{one.name} has {' and '.join(own)}; name those that the tower takes (sensors=)"
            )
        found.update({name: there[name] for name in own})
    if not found:
        raise RecipeError(
            "the data have RGB pictures alone, which the RGB tower takes already; patch it "
            "instead, or give data of another sensor"
        )
    return list(found.values())


def _label_use(
    sets: Sequence[SampleSet], labels: bool | None, settings: AlignSettings
) -> list[bool]:
    """Whether each set's labels are used."""
    if labels:
        for one in sets:
            require_labels(one)
        return [True] * len(sets)
    if labels is False or "label" not in settings.weights(labelled=True):
        return [False] * len(sets)
    used = [one.labels is not None for one in sets]
    names = [one.name for one, use in zip(sets, used, strict=True) if use]
    if names:
        logger.info("align: uses the labels of %s (labels=False: none)", ", ".join(names))
    return used


def _source(
    space: EmbeddingSpace, samples: SampleSet, labelled: bool, prompts: Prompts | None
) -> AlignmentSource:
    if not labelled:
        return AlignmentSource(samples=samples)
    return AlignmentSource(
        samples=samples,
        prompts=choose_prompts(samples, prompts, own=space.prompts),
        class_names=require_labels(samples).class_names,
    )


def _anchors(space: EmbeddingSpace, sources: Sequence[AlignmentSource]) -> Tensor:
    """(K, D) the texts of the kl loss: the class names of the labelled data."""
    texts = [
        space.zero_shot_weights(source.class_names, source.prompts)
        for source in sources
        if source.class_names is not None
    ]
    if not texts:
        raise RecipeError("the kl loss needs class names: use labelled data, or leave it out")
    return torch.cat(texts)


def _task(space: EmbeddingSpace, samples: SampleSet, prompts: Prompts | None) -> PatchingTask:
    return PatchingTask(
        samples=samples,
        prompts=choose_prompts(samples, prompts, own=space.prompts),
        class_names=require_labels(samples).class_names,
    )


def _judging(
    space: EmbeddingSpace, validation: Data | None, training: Sequence[SampleSet]
) -> list[SampleSet]:
    sets = [] if validation is None else _opened(space, validation)
    if len(sets) != len(training):
        raise RecipeError(
            f"{len(sets)} validation sets for {len(training)} sets of data; give one for each, or "
            "leave validation out"
        )
    return sets


def _held_out(training: Sequence[SampleSet], seed: int) -> list[tuple[SampleSet, SampleSet]]:
    """Each set without a share of its samples and all their copies, and that share."""
    overlaps = Overlaps()
    parts = [_split_apart(one, overlaps, seed) for one in training]
    pairs: list[tuple[SampleSet, SampleSet]] = []
    for rest, part in parts:
        shared = {row for _, other in parts for row in overlaps.find(other, rest).rows.tolist()}
        kept = rest[[row for row in range(len(rest)) if row not in shared]]
        if not len(kept):
            raise RecipeError(
                f"{rest.name}: every sample is held out, or a copy of one that is; give validation "
                "samples of its own"
            )
        logger.info(
            "patch: %d of %d samples of %s are held out, by which alpha is chosen; %d are trained "
            "on", len(part), len(rest) + len(part), rest.name, len(kept),
        )  # fmt: skip
        pairs.append((kept, part))
    return pairs


def _split_apart(samples: SampleSet, overlaps: Overlaps, seed: int) -> tuple[Subset, Subset]:
    """A set without a share of its samples and their copies within it, and that share."""
    rest, part = Indexed.split_off(samples, HELD_OUT, seed=seed)
    first = overlaps.find_copies(samples)
    rows_of = {id(one): one.within()[1].tolist() for one in (rest, part)}
    held = {first.get(row, row) for row in rows_of[id(part)]}
    apart = [
        place for place, row in enumerate(rows_of[id(rest)]) if first.get(row, row) not in held
    ]
    return rest[apart], part


# Folders and devices


@contextmanager
def _working_folder(folder: str | Path | None) -> Iterator[Path]:
    """The folder given, for this process alone, or a temporary one."""
    if folder is None:
        with tempfile.TemporaryDirectory(prefix="terralign-") as made:
            try:
                yield Path(made)
            except Interrupted as error:
                raise KeyboardInterrupt(
                    "training was stopped, and its temporary folder removed; with folder=, the "
                    "same call resumes"
                ) from error
        return
    with claimed(Path(folder)):
        yield Path(folder)


@contextmanager
def _on_device(space: EmbeddingSpace, device: str | None) -> Iterator[None]:
    """The space on another device for a while, with torch's own defaults; see `as_usual`."""
    before = space.device
    try:
        if device is not None:
            space.to(choose_device(device))
        with as_usual(space.device):
            yield
    finally:
        space.to(before)
