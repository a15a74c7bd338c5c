"""Running a recipe: base -> patch -> align* -> evaluate -> search, each stage kept in the folder.

A run folder holds `recipe.toml` (resolved), `versions.json`, the stages' checkpoints and
`metrics.jsonl` (all stages' lines are in the run folder's own too), `model/` (the space), `search/`
(a scene and its parts), `results.json` and the report. Running the same recipe again resumes, or
does nothing; another recipe in the same folder is refused.
"""

from __future__ import annotations

import json
import logging
import shlex
from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from terralign import progress, ranks
from terralign.compute import choose_device, computing
from terralign.datasets.catalog import check_data_root
from terralign.datasets.fingerprint import describe_layout
from terralign.datasets.sample import SampleSet, labels_id, pixels_id
from terralign.encoders.clip.load import ClipModel, load_clip, save_clip
from terralign.encoders.picture_size import picture_size
from terralign.encoders.sensor import SensorTower
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import ModelError, RecipeError
from terralign.evaluation.classification import (
    choose_class_names,
    evaluate_zero_shot,
)
from terralign.evaluation.embed import Embed, Embedded, Route, choose_route, embed_samples
from terralign.evaluation.result import Evaluation
from terralign.evaluation.retrieval import TEXT, evaluate_retrieval
from terralign.evaluation.rows import Row, read_rows
from terralign.files import (
    atomic_folder,
    claimed,
    hash_json,
    read_json,
    require_folder,
    write_json,
    write_text,
)
from terralign.report.document import Gallery
from terralign.report.figures import Sweep
from terralign.report.run import RunReport
from terralign.report.searched import SearchedText
from terralign.runs.checks import check_towers
from terralign.runs.data import RunData
from terralign.runs.folder import BEFORE_WORK, keep_measurement, keep_recipe, keep_threads
from terralign.runs.overlaps import RunOverlaps
from terralign.runs.recipe import (
    AlignRecipe,
    EvaluateRecipe,
    Recipe,
    asked,
    recipe_hash,
    recipe_text,
)
from terralign.runs.searched import PARTS, SEARCH, picture_of, read_searched, search_landscape
from terralign.runs.shown import show_samples
from terralign.scenes.pictures import Size
from terralign.sensors import find_sensor
from terralign.toml_paths import TomlPaths, identity_of, model_names
from terralign.train.checkpoints import read_metrics
from terralign.train.patch import PatchResult, patch
from terralign.train.pretrain import PretrainSettings, pretrain, pretrain_depends
from terralign.train.rates import warn_of_patch_rate
from terralign.train.stage import Stage, run_stage
from terralign.train.tower import make_tower
from terralign.versions import versions

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True, slots=True)
class RunResult:
    """A finished run. `complete_before`: nothing had to be done. `searched`: what the texts found
    that a recipe's scene was searched by."""

    folder: Path
    rows: tuple[Row, ...]
    complete_before: bool
    searched: tuple[SearchedText, ...] = ()


def run_recipe(
    recipe: Recipe,
    folder: Path,
    *,
    data_root: Path | None = None,
    device: str | None = None,
    stores: Path | None = None,
    cache: Path | None = None,
) -> RunResult:
    """Run a recipe in `folder`, or resume an earlier call.

    Called by all processes that `torchrun` started: they train, and embed what is measured,
    together. The first has the folder; it pretrains, saves, searches and reports alone.

    `device`: None takes CUDA where available. `stores`: where a recipe with `pack` keeps its packed
    data sets, for other runs too; None: in the run folder. `cache`: a folder of finished stages,
    which runs that have stages in common share. Raises `RecipeError` for a folder
    of another recipe, with the difference, and `Interrupted` after saving when asked to stop.
    """
    for place in (stores, cache):
        if place is not None:
            require_folder(place)
    with (
        ranks.joined(device),
        claimed(folder, begins_with=BEFORE_WORK) if ranks.is_first() else nullcontext(),
    ):

        def begin() -> bool:
            keep_recipe(recipe, folder, data_root)
            return all((folder / one).is_file() for one in ("results.json", "model/space.json"))

        complete = ranks.by_first(begin)
        if complete:
            rows = read_rows(folder / "results.json")
        else:
            run = _Run(recipe, folder, data_root, choose_device(device), stores, cache)
            with computing(inference=recipe.inference, deterministic=recipe.deterministic):
                rows = run.run()
        found = read_searched(folder) if ranks.is_first() else ()
        return RunResult(folder=folder, rows=tuple(rows), complete_before=complete, searched=found)


def evaluate_entry(
    space: EmbeddingSpace,
    samples: SampleSet,
    entry: EvaluateRecipe,
    *,
    tower: str | None,
    prompts: PromptSet,
    embed: Embed | None = None,
) -> Evaluation:
    """Measure what a recipe's entry asks of one tower; of retrieval it names both sides itself."""
    if entry.task == "retrieval":
        return evaluate_retrieval(
            space, samples, query=entry.query, gallery=entry.gallery or RGB,
            prompts=prompts, embed=embed,
        )  # fmt: skip
    return evaluate_zero_shot(
        space, samples, tower=tower, prompts=prompts,
        class_names=choose_class_names(samples, entry.classes), embed=embed,
    )  # fmt: skip


def load_base(recipe: Recipe, data_root: Path | None) -> EmbeddingSpace:
    """The space that a recipe names as its base; `ModelError` where it is not found."""
    model = recipe.base.model
    assert model is not None
    named = model in model_names()
    found = None if named else TomlPaths(folder=None, data_root=data_root).find(model)
    if not named and found is None and not Path(model).exists() and ":" not in model:
        places = "beside the recipe" + (f" and in the data root {data_root}" if data_root else "")
        hint = "" if data_root else "; give the data root to look there too (data_root=)"
        raise ModelError(
            f"base.model: {model} not found; looked {places}{hint}. It may also be a name of "
            "`terralign info models`, hf-hub:ORG/NAME, ARCHITECTURE:TAG or ARCHITECTURE:FILE"
        )
    return EmbeddingSpace.load(
        found or model, sha256=recipe.base.sha256, revisions=recipe.base.revisions
    )


class _Run:
    """One run in progress: its folder, its opened data, its vectors so far."""

    data: RunData
    overlaps: RunOverlaps

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        data_root: Path | None,
        device: str,
        stores: Path | None,
        cache: Path | None,
    ) -> None:
        self.cache = cache
        self.recipe, self.folder, self.data_root, self.device = recipe, folder, data_root, device
        self.paths = TomlPaths.beside(folder / "recipe.toml", data_root)
        self.stores = stores or folder / "stores"
        self._vectors: dict[str, Embedded] = {}
        self._models: dict[str, EmbeddingSpace] = {}
        self.stages = progress.Stages([])

    def run(self) -> list[Row]:
        check_data_root(self.data_root)
        self._keep_threads()
        if (settings := self.recipe.base.pretrain) is None:
            base = ranks.first_then_others(lambda: load_base(self.recipe, self.data_root))
            base = base.to(self.device)
            self._open(picture_size(base.input_spec()))
        else:
            self._open(settings.image_size)
            base = self._pretrained_base(settings)
        check_towers(self.recipe, base.towers, self.data.open)
        self.data.choose_own_prompts(base.prompts)
        patched = self._patch(base)
        space = self._align(base, patched)
        with self.stages.within("evaluate"):
            rows = self._evaluate(base, patched, space)
        if ranks.is_first():
            with ranks.alone():
                self._finish(rows, patched, space)
        return rows

    def _finish(self, rows: list[Row], patched: PatchResult | None, space: EmbeddingSpace) -> None:
        """All after measuring: save, search, report."""
        model = self.folder / "model"
        if not (model / "space.json").is_file():
            space.to("cpu").save(model)
        if (search := self.recipe.search) is not None:
            with self.stages.within("search"):
                space.source = str(model.absolute())  # where `terralign search` finds it
                search_landscape(space.to(self.device), search, self.folder / SEARCH)
        with self.stages.within("report"):
            self._report(rows, patched, space)
        notes = {"notes": self.overlaps.notes} if self.overlaps.notes else {}
        write_json(self.folder / "results.json", {"rows": [row.to_json() for row in rows], **notes})

    def _keep_threads(self) -> None:
        threads, num_ranks = self.recipe.threads, ranks.world_size()
        ranks.first_then_others(
            lambda: keep_threads(self.folder, threads, device=self.device, num_ranks=num_ranks)
        )

    def _open(self, size: Size) -> None:
        """Open all data, with RGB pictures of `size`, and find what they share."""
        self.data = RunData(self.recipe, self.data_root, self.stores, size)
        ranks.first_then_others(self.data.open_everything)  # which may pack
        self.overlaps = RunOverlaps(self.recipe, self.data)
        self.overlaps.check()
        self.stages = self._stages()

    # Stages

    def _stages(self) -> progress.Stages:
        """The stages of the run, with what each trains on."""
        recipe, stages = self.recipe, []
        if (base := recipe.base.pretrain) is not None:
            samples = len(self.data.open(base.data, base.split, base.limit))
            stages.append(progress.Stage(name="pretrain", samples=base.epochs * samples))
        if recipe.patch is not None:
            samples = sum(len(task.samples) for task in self.data.patching.tasks)
            epochs = recipe.patch.settings.epochs
            stages.append(progress.Stage(name="patch", samples=epochs * samples))
        for tower in recipe.align:
            sources = map(self.data.source, tower.data)
            samples = sum(len(one.samples) * one.repeats for one in sources)
            epochs = tower.settings.epochs
            stages.append(progress.Stage(name=f"align {tower.name}", samples=epochs * samples))
        last = ["evaluate", *(["search"] if recipe.search else []), "report"]
        return progress.Stages([*stages, *(progress.Stage(name=name) for name in last)])

    def _pretrained_base(self, settings: PretrainSettings) -> EmbeddingSpace:
        samples = self.data.open(settings.data, settings.split, settings.limit)
        settings = settings.model_copy(update={"data": samples.name})
        folder, seed = self.folder / "base", self.recipe.seed

        def make() -> dict[str, Any]:
            with self.stages.within("pretrain"):
                clip = pretrain(
                    samples, settings, self.folder / "pretrain",
                    seed=seed, device=self.device, tensorboard=self.recipe.tensorboard,
                )  # fmt: skip
            with atomic_folder(folder) as partial:
                save_clip(clip, partial)
            return {}

        stage = Stage(
            what="a pretrained base", depends=pretrain_depends(samples, settings, seed=seed),
            note=self.folder / "base.json", files=(folder.name,), cache=self.cache,
        )  # fmt: skip
        run_stage(stage, make)
        return EmbeddingSpace(load_clip(str(folder))).to(self.device)

    def _patch(self, base: EmbeddingSpace) -> PatchResult | None:
        recipe = self.recipe.patch
        if recipe is None:
            return None
        patching, settings = self.data.patching, recipe.settings
        if self.recipe.base.pretrain is None:
            warn_of_patch_rate(base.clip.visual, settings.lr, source=base.clip.source)
        with self.stages.within("patch"):
            return patch(
                base.clip,
                patching.tasks,
                settings,
                self.folder / "patch",
                validation=patching.validation,
                supported=patching.supported,
                preserve_on=patching.preserve_on,
                allow_shared_samples=True,  # checked when they were opened
                seed=self.recipe.seed,
                tensorboard=self.recipe.tensorboard,
                cache=self.cache,
            )

    def _align(self, base: EmbeddingSpace, patched: PatchResult | None) -> EmbeddingSpace:
        if patched is not None and base.towers:
            logger.warning(
                "the base's towers (%s) belong to its RGB tower and are not kept, now that it is "
                "patched; align them again", ", ".join(base.towers),
            )  # fmt: skip
        clip = base.clip
        if patched is not None:
            clip = clip.with_visual(patched.patched, source="patched")
        space = EmbeddingSpace(
            clip,
            towers=base.towers if patched is None else {},
            sensors=base.sensors,
            prompts=self.data.own_prompts,
            provenance=self._provenance(base, patched),
        )
        for recipe in self.recipe.align:
            with self.stages.within(f"align {recipe.name}"):
                tower = self._align_one(space.clip, recipe)
            space.add(tower, [find_sensor(name) for name in recipe.sensors])
        return space

    def _align_one(self, clip: ClipModel, recipe: AlignRecipe) -> SensorTower:
        settings = recipe.settings
        return make_tower(
            recipe.name, clip, recipe.student, [find_sensor(name) for name in recipe.sensors],
            [self.data.source(one) for one in recipe.data], settings,
            self.folder / "align" / recipe.name,
            views_folder=self.folder / "teacher",
            anchors=self._anchors(clip) if "kl" in (settings.losses or ()) else None,
            validation=self.data.source(recipe.validation) if recipe.validation else None,
            root=self.data_root,
            pretrained=self.recipe.base.pretrain is None,
            allow_shared_samples=True,  # checked when they were opened
            cache=self.cache, seed=self.recipe.seed, tensorboard=self.recipe.tensorboard,
        )  # fmt: skip

    def _anchors(self, clip: ClipModel) -> Tensor:
        if self.recipe.patch is None:
            raise RecipeError(
                "the kl loss takes its anchors from patching tasks; the recipe has no patch stage"
            )
        return torch.cat([task.weights(clip) for task in self.data.patching.tasks])

    def _provenance(self, base: EmbeddingSpace, patched: PatchResult | None) -> dict[str, Any]:
        model = self.recipe.base.model
        return {
            "recipe": self.recipe.name,
            "recipe_hash": recipe_hash(self.recipe),
            "base": identity_of({"model": model})["model"] if model else "pretrained by the recipe",
            "base_id": base.space_id,
            "alpha": patched.choice.alpha if patched else None,
            "versions": versions(),
        }

    # Evaluation

    def _evaluate(
        self, base: EmbeddingSpace, patched: PatchResult | None, space: EmbeddingSpace
    ) -> list[Row]:
        models: dict[str, EmbeddingSpace] = {"base": base}
        if patched is not None:
            finetuned = base.clip.with_visual(patched.finetuned, source="finetuned")
            models["finetuned"] = EmbeddingSpace(finetuned)
            models["patched"] = EmbeddingSpace(space.clip)
        self._models = models
        rows: list[Row] = []
        for entry in self.recipe.evaluate:
            if entry.task == "retrieval":
                aligned = {entry.query, entry.gallery} & set(space.towers)
                plain = "patched" if patched is not None else "base"
                rows += self._measured("aligned" if aligned else plain, space, entry, tower=None)
            for model in entry.models:
                rows += self._measured(model, models[model], entry, tower=RGB)
            for tower in entry.towers:
                rows += self._measured("aligned", space, entry, tower=tower)
        return rows

    def _measured(
        self, model: str, space: EmbeddingSpace, entry: EvaluateRecipe, *, tower: str | None
    ) -> list[Row]:
        """The rows of one measurement; kept, so that an interrupted run does not repeat it."""
        samples = self.data.open(*asked(entry))
        names = [tower] if tower else [entry.query or "", entry.gallery or ""]
        towers = {name: space.tower_id(name) for name in names if name in space.tower_names}
        identity = {
            "space": space.space_id,
            "model": model,
            "towers": towers,
            "data": samples.fingerprint,
            "labels": labels_id(samples),
            "entry": identity_of(entry.model_dump(mode="json", exclude={"models", "towers"})),
            "prompts": self.data.prompts(samples, entry.prompts).describe(),
        }
        rows = keep_measurement(
            self.folder,
            identity,
            lambda: self._evaluation(space, samples, entry, tower),
            model=model,
            role=entry.role,
            cache=self.cache,
        )
        return self.overlaps.noted(rows, samples, model, names) if ranks.is_first() else rows

    def _evaluation(
        self,
        space: EmbeddingSpace,
        samples: SampleSet,
        entry: EvaluateRecipe,
        tower: str | None,
    ) -> Evaluation | None:
        def embed(route: Route) -> Embedded:
            key = hash_json(
                {
                    "tower": space.tower_id(route.tower),
                    "pixels": pixels_id(samples),  # which sets with other classes share
                    "layout": describe_layout(route.layout),
                }
            )
            if key not in self._vectors:
                self._vectors[key] = embed_samples(space, samples, route)
            return self._vectors[key]

        names = [entry.query, entry.gallery] if entry.task == "retrieval" else [tower]
        for name in names:  # by all ranks; the first measures
            if name != TEXT:
                embed(choose_route(space, samples, name))
        if not ranks.is_first():
            return None
        prompts = self.data.prompts(samples, entry.prompts)
        return evaluate_entry(space, samples, entry, tower=tower, prompts=prompts, embed=embed)

    def _shown(self, space: EmbeddingSpace) -> Gallery | None:
        """Samples of the entry that most towers are measured on, with what is predicted for them.

        None where nothing is classified.
        """
        entries = [one for one in self.recipe.evaluate if one.task != "retrieval"]
        entry = max(entries, key=lambda one: len(one.towers), default=None)
        if entry is None:
            return None
        samples = self.data.open(*asked(entry))
        models: dict[str, tuple[EmbeddingSpace, str]] = {
            name: (self._models[name], RGB) for name in entry.models
        }
        models |= {tower: (space, tower) for tower in entry.towers}
        return show_samples(
            samples,
            models,
            prompts=self.data.prompts(samples, entry.prompts),
            class_names=choose_class_names(samples, entry.classes),
        )

    def _next_steps(self, space: EmbeddingSpace) -> list[tuple[str, str]]:
        """What to do with the model of the run, each with its command."""
        folder = self.folder.name if self.folder.is_absolute() else str(self.folder)
        model = shlex.quote(f"{folder}/model")
        towers = [one.name for one in self.recipe.align] or list(space.towers)
        sensors = [name for tower in towers for name in space.input_spec(tower).sensors]
        sensor = (sensors or [RGB])[0]
        offset = " --dn-offset -1000" if sensor.startswith("sentinel2") else ""
        steps = [
            ("The towers of the model, their bands and prompts", f"terralign info {model}"),
            (
                "Classify a GeoTIFF of your own"
                + (" (-1000: products of processing baseline 04.00 and later)" if offset else ""),
                f'terralign classify {model} scene.tif --labels "forest,a river,a town" '
                f"--sensor {sensor}{offset}",
            ),
        ]
        if self.recipe.search is not None:
            parts = shlex.quote(f"{folder}/{SEARCH}/{PARTS}")
            steps.append(
                (
                    "Search the scene in other words",
                    f'terralign search {parts} "a lake of shallow water"',
                )
            )
        if self.recipe.base.pretrain is not None:
            base = shlex.quote(f"{folder}/base")
            steps.append(
                (
                    "Compare it with its base model on the synthetic world",
                    f"terralign bench quick --models {base} {model} --out bench",
                )
            )
        elif self.recipe.evaluate:
            entry = self.recipe.evaluate[0]
            steps.append(
                (
                    "Measure it on a data set, this or another",
                    f"terralign evaluate {model} --data {shlex.quote(entry.data)} "
                    f"--split {entry.split} --data-root data",
                )
            )
        return steps

    def _report(
        self, figures: list[Row], patched: PatchResult | None, space: EmbeddingSpace
    ) -> None:
        curves = {}
        for path in sorted(self.folder.rglob("*/metrics.jsonl")):
            label = str(path.parent.relative_to(self.folder)).replace("/checkpoints", "")
            curves[label] = read_metrics(path)
        lines = [{"stage": stage, **line} for stage, rows in curves.items() for line in rows]
        write_text(
            self.folder / "metrics.jsonl", "".join(f"{json.dumps(line)}\n" for line in lines)
        )
        notes = [self.recipe.note] if self.recipe.note else []
        if patched is not None:
            notes.append(f"Stage 1: {patched.choice.reason}.")
        if self.recipe.patch is not None:
            patching = self.data.patching
            sets = [task.samples for task in (*patching.validation, *patching.supported)]
            shown = ", ".join(f"{one.name}/{one.split} (n = {len(one):,})" for one in sets)
            notes.append(f"Alpha was chosen on {shown}.")
        notes += self.overlaps.notes
        RunReport(
            title=f"terralign run: {self.recipe.name}",
            rows=figures,
            sweep=self._sweep(patched),
            curves=curves,
            recipe_text=recipe_text(self.recipe, self.paths),
            versions=read_json(self.folder / "versions.json"),
            notes=notes,
            shown=self._shown(space),
            searched=read_searched(self.folder),
            scene=picture_of(self.folder / SEARCH) if self.recipe.search else None,
            next_steps=self._next_steps(space),
        ).write(self.folder)

    def _sweep(self, patched: PatchResult | None) -> Sweep | None:
        if patched is None:
            return None
        assert self.recipe.patch is not None
        return Sweep(
            points=[asdict(point) for point in patched.points],
            chosen=patched.choice.alpha,
            baseline=patched.baseline,
            of_last_task=self.recipe.patch.settings.mode == "sequential",
            max_supported_drop=self.recipe.patch.settings.max_supported_drop,
        )
