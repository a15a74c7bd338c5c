"""What there is: versions, data sets, sensors, recipes, suites, studies, prompts, or a model."""

from __future__ import annotations

import tomllib
from importlib import resources
from pathlib import Path
from typing import Any

from terralign.datasets.catalog import DATASETS
from terralign.datasets.facts import read_facts
from terralign.datasets.store import is_store, read_manifest
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import load_prompts, prompt_set_names
from terralign.recipe import recipe_names
from terralign.run_folder import versions
from terralign.sensors import SENSORS
from terralign.study import study_names
from terralign.suite import suite_names


def about(what: str | None = None) -> dict[str, Any]:
    """Plain values about `what`: None (versions), "datasets", "sensors", "recipes", "suites",
    "studies", "prompts", a data set, a packed store, or anything `EmbeddingSpace.load` takes."""
    if what is None:
        return versions()
    if what == "datasets":
        return {name: read_facts(name).about() for name in DATASETS}
    if what == "sensors":
        return {
            sensor.name: {
                "bands": list(sensor.band_names),
                "unit": sensor.unit,
                "composites": [one.name for one in sensor.composites] or "none",
            }
            for sensor in SENSORS.values()
        }
    if what == "recipes":
        return {name: _note("recipes", name) for name in recipe_names()}
    if what == "suites":
        return {name: _note("suites", name) for name in suite_names()}
    if what == "studies":
        return {name: _note("studies", name) for name in study_names()}
    if what == "prompts":
        return {name: list(load_prompts(name).templates) for name in prompt_set_names()}
    if what in DATASETS:
        return read_facts(what).about()
    if is_store(Path(what)):
        return _about_store(Path(what))
    return _about_space(EmbeddingSpace.load(what, skip_custom=True))


def _note(folder: str, name: str) -> str:
    text = (resources.files("terralign") / folder / f"{name}.toml").read_text(encoding="utf-8")
    return str(tomllib.loads(text).get("note", ""))


def _about_store(store: Path) -> dict[str, Any]:
    manifest = read_manifest(store)
    return {
        "data set": manifest.name,
        "splits": [f"{split} ({number:,})" for split, number in manifest.splits.items()],
        "sensors": {
            name: {
                "bands": list(stored.bands),
                "numbers": stored.dtype or "encoded pictures",
                "shape": list(stored.shape) if stored.shape else "varies",
                "units": stored.units,
                "DN offset": stored.dn_offset,
            }
            for name, stored in manifest.sensors.items()
        },
        "classes": list(manifest.labels.class_names) if manifest.labels else "none",
        "left out": manifest.num_skipped,
        "shards": len(manifest.shards),
        "bytes": sum(one.num_bytes for one in (manifest.table, *manifest.shards)),
    }


def _about_space(space: EmbeddingSpace) -> dict[str, Any]:
    towers = {}
    for name in space.tower_names:
        spec = space.input_spec(name)
        towers[name] = {
            "tower_id": space.tower_id(name),
            "sensors": list(spec.sensors),
            "bands": list(spec.bands),
            "size": spec.size,
            "missing bands": spec.missing,
        }
    for config in space.skipped:
        towers[config.name] = {
            "custom encoder": config.describe_encoder(),
            "sensors": list(config.input.sensors),
            "bands": list(config.input.bands),
            "size": config.input.size,
            "missing bands": config.input.missing,
        }
    return {
        "source": space.source,
        "space_id": space.space_id,
        "dimensions": space.dim,
        "logit_scale": round(space.clip.logit_scale, 4),
        "prompts": space.prompts.name if space.prompts else "none",
        "towers": towers,
        "provenance": space.provenance or "none",
    }
