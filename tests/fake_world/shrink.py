"""The sizes at which shipped recipes run in seconds, as `--set` takes them."""

from __future__ import annotations

from collections.abc import Iterator

from fake_world.models import STUDENT, STUDENT_SIZE
from terralign.datasets.catalog import find_dataset
from terralign.runs.recipe import Recipe

FEW = 24
"""Samples taken of data sets that are built in, and are large."""


def shrink(recipe: Recipe) -> list[str]:
    """`KEY=VALUE` for one or two short epochs of each stage, and a small student."""
    return ["threads=1", *_base(recipe), *_patch(recipe), *_align(recipe), *_evaluate(recipe)]


def _base(recipe: Recipe) -> Iterator[str]:
    if recipe.base.pretrain is not None:
        yield "base.pretrain.epochs=1"
        yield "base.pretrain.batch_size=16"
        yield "base.pretrain.warmup_steps=1"
        yield f"base.pretrain.limit={2 * FEW}"


def _patch(recipe: Recipe) -> Iterator[str]:
    patch = recipe.patch
    if patch is None:
        return
    yield "patch.epochs=2"
    yield "patch.batch_size=8"
    yield "patch.warmup_steps=1"
    for number, task in enumerate(patch.tasks):
        if _is_built_in(task.data):
            yield f"patch.tasks.{number}.limit={FEW}"
            yield f"patch.tasks.{number}.validation_limit={FEW}"
    for number, supported in enumerate(patch.supported):
        if _is_built_in(supported.data):
            yield f"patch.supported.{number}.validation_limit={FEW}"
    if patch.preserve_on is not None and _is_built_in(patch.preserve_on.data):
        yield f"patch.preserve_on.limit={FEW}"


def _align(recipe: Recipe) -> Iterator[str]:
    for tower in recipe.align:
        yield f"align.{tower.name}.epochs=1"
        yield f"align.{tower.name}.batch_size=8"
        yield f"align.{tower.name}.warmup_steps=1"
        yield f"align.{tower.name}.num_views=1"
        if tower.student.backbone.startswith("vit_"):
            yield f"align.{tower.name}.student.backbone={STUDENT}"
        if tower.student.size is not None:
            yield f"align.{tower.name}.student.size={STUDENT_SIZE}"
        for number, source in enumerate(tower.data):
            if _is_built_in(source.data):
                yield f"align.{tower.name}.data.{number}.limit={FEW}"


def _evaluate(recipe: Recipe) -> Iterator[str]:
    for number, entry in enumerate(recipe.evaluate):
        if _is_built_in(entry.data):
            yield f"evaluate.{number}.limit={FEW}"


def _is_built_in(data: str) -> bool:
    return not find_dataset(data).facts.needs_root


def data_names(recipe: Recipe) -> list[str]:
    """The data sets that a recipe reads."""
    names = [entry.data for entry in recipe.evaluate]
    if recipe.patch is not None:
        names += [task.data for task in recipe.patch.tasks]
        names += [supported.data for supported in recipe.patch.supported]
        names += [recipe.patch.preserve_on.data] if recipe.patch.preserve_on else []
    for tower in recipe.align:
        names += [source.data for source in tower.data]
        names += [tower.validation.data] if tower.validation else []
    return list(dict.fromkeys(names))
