"""What `terralign info` shows, as plain values: versions, the lists, and one thing of any of them.

torch is imported for a model alone.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from terralign.datasets.catalog import DATASETS, find_dataset
from terralign.datasets.facts import DatasetFacts, read_facts
from terralign.datasets.store import is_store, read_manifest
from terralign.encoders.prompt_sets import load_prompts, prompt_set_names
from terralign.encoders.published import published_models
from terralign.encoders.sources import check_source, shipped_model
from terralign.encoders.tables import Table
from terralign.errors import TerralignError, counted, nearest
from terralign.files import as_bytes, hint_of_name, read_shipped, read_toml, shipped_names
from terralign.index.names import is_folder_of_parts
from terralign.sensors import SENSORS, Sensor, parse_sensor
from terralign.versions import versions

if TYPE_CHECKING:
    from terralign.preprocess import InputSpec

LISTS = ("datasets", "models", "sensors", "recipes", "suites", "studies", "prompts")
"""What there is a list of."""

_TAKES = (
    f"Info takes a list ({', '.join(LISTS)}), a name of one of them, a packed store, a folder "
    "of embedded scenes, a TOML file, or a model (its name or folder, hf-hub:ORG/NAME, "
    "ARCHITECTURE:TAG, ARCHITECTURE:FILE)"
)


def about(what: str | None = None) -> dict[str, Any]:
    """Plain values about `what`: None (versions), a list, a name of one, a packed store, a folder
    of embedded scenes, a TOML file, or anything `EmbeddingSpace.load` takes. `TerralignError` names
    what is nearest."""
    if what is None:
        return versions()
    if what in LISTS:
        return _list(what)
    named = _named(what)
    if len(named) == 1:
        return next(iter(named.values()))
    if named:
        return named
    path = Path(what)
    if path.suffix == ".toml":
        return _about_toml(path)
    if is_store(path):
        return _about_store(path)
    if is_folder_of_parts(path):
        return _about_parts(path)
    if path.exists() or ":" in what:
        check_source(what)
        return _about_space(what)
    names = [*LISTS, *(name for kind in LISTS for name in _list(kind))]
    hint = nearest(what, names)
    near = f"; {hint}" if hint.startswith("did you mean") else "."
    raise TerralignError(f"unknown name or path {what!r}{hint_of_name(what)}{near} {_TAKES}")


def dataset_table() -> str:
    """The data sets, a line each."""
    names = list(DATASETS)
    facts = [read_facts(name) for name in names]
    table = Table.of_rows(
        len(names),
        [
            ("name", lambda row: names[row]),
            ("sensors", lambda row: ", ".join(facts[row].sensors)),
            ("labels", lambda row: facts[row].labels),
            ("classes", lambda row: facts[row].class_list or "-"),
            ("size", lambda row: re.split(r",| at |;", facts[row].size)[0] or "-"),
            ("splits", lambda row: "yes" if facts[row].has_splits else "no"),
        ],
        max_rows=len(names),
    )
    return f"{table.text()}\n\nterralign info NAME describes one; --json has all values."


def model_table() -> str:
    """The models with short names, a line each."""
    models = published_models()
    names = list(models)

    def reported(row: int) -> str:
        found = models[names[row]].eurosat
        return "-" if found is None else f"{found.top1:g} %"

    table = Table.of_rows(
        len(names),
        [
            ("name", lambda row: names[row]),
            ("sensors", lambda row: ", ".join(models[names[row]].sensors)),
            ("activation", lambda row: models[names[row]].activation),
            ("EuroSAT, as reported", reported),
            ("size", lambda row: as_bytes(models[names[row]].num_bytes or 0, none="-")),
            ("licence", lambda row: models[names[row]].licence),
        ],
        max_rows=len(names),
    )
    legend = "Zero-shot top-1; splits and prompts differ."
    return f"{table.text()}\n\n{legend} terralign info NAME describes one; --json has all values."


def recipe_table() -> str:
    """The recipes and what each needs, a line each."""
    recipes = _list("recipes")
    names = list(recipes)

    def cell(row: int, need: str, unit: str) -> str:
        needs = recipes[names[row]]["needs"]
        if need not in needs:
            return "-"
        return f"{'~' if need in needs.get('estimated', ()) else ''}{needs[need]:g} {unit}"

    table = Table.of_rows(
        len(names),
        [
            ("name", lambda row: names[row]),
            ("base", lambda row: recipes[names[row]]["base"]),
            ("download", lambda row: cell(row, "download_gb", "GB")),
            ("disk", lambda row: cell(row, "disk_gb", "GB")),
            ("memory", lambda row: cell(row, "memory_gb", "GB")),
            ("one core", lambda row: cell(row, "cpu_hours", "h")),
            ("one GPU", lambda row: cell(row, "gpu_hours", "h")),
        ],
        max_rows=len(names),
    )
    legend = "~ estimated, - not known."
    return f"{table.text()}\n\n{legend} terralign info NAME describes one; --json has all values."


# By name


def _list(kind: str) -> dict[str, Any]:
    if kind == "datasets":
        return {name: read_facts(name).about() for name in DATASETS}
    if kind == "models":
        return {name: one.about(name) for name, one in published_models().items()}
    if kind == "sensors":
        return {
            sensor.name: {
                "bands": list(sensor.band_names),
                "unit": sensor.unit,
                "composites": [one.name for one in sensor.composites] or "none",
            }
            for sensor in SENSORS.values()
        }
    if kind == "prompts":
        return {
            name: counted(len(load_prompts(name).templates), "template")
            for name in prompt_set_names()
        }
    shipped = {name: read_shipped(kind, name) for name in shipped_names(kind)}
    if kind == "recipes":
        return {
            name: {"note": one["note"], "base": _base_of(one), "needs": one.get("needs", {})}
            for name, one in shipped.items()
        }
    return {name: str(one.get("note", "")) for name, one in shipped.items()}


def _about_dataset(facts: DatasetFacts) -> dict[str, Any]:
    return {"kind": "data set", **facts.about()}


def _about_sensor(sensor: Sensor) -> dict[str, Any]:
    scaled = "DN" if sensor.dn_scale == 1 else f"DN x {sensor.dn_scale:g}"
    offset = "(DN + dn_offset)" if sensor.offset_varies else "DN"
    formula = scaled.replace("DN", offset) + (f" {sensor.add:+g}" if sensor.add else "")
    return {
        "kind": "sensor",
        "bands": {
            band.name: ", ".join(
                [
                    *([f"{band.center_nm:g} nm"] if band.center_nm else []),
                    *([f"{band.gsd_m:g} m"] if band.gsd_m else []),
                    *([f"also {', '.join(band.aliases)}"] if band.aliases else []),
                ]
            )
            or "-"
            for band in sensor.bands
        },
        "unit": sensor.unit,
        "physical": formula,
        "no data": "none" if sensor.nodata is None else sensor.nodata,
        "composites": {
            one.name: f"{', '.join(one.bands)}; 1 is {one.stretch:g}" for one in sensor.composites
        }
        or "none",
    }


def _about_recipe(values: Mapping[str, Any]) -> dict[str, Any]:
    patch = values.get("patch", {})
    towers = values.get("align", [])
    return {
        "kind": "recipe",
        "note": values.get("note", ""),
        "needs": _about_needs(values.get("needs", {})) or "not stated",
        "base": _base_of(values),
        "patched on": _data_of(patch.get("tasks", [])) or "not patched",
        "supported": _data_of(patch.get("supported", [])) or "nothing",
        "towers": {
            one.get("name", "-"): f"{', '.join(one.get('sensors', []))} on "
            f"{', '.join(_data_of(one.get('data', [])))}"
            for one in towers
        }
        or "none",
        "evaluated on": _data_of(values.get("evaluate", [])) or "nothing",
    }


def _base_of(values: Mapping[str, Any]) -> str:
    return values.get("base", {}).get("model") or "pretrained by the recipe"


_NEEDS = {
    "download_gb": "GB to download", "disk_gb": "GB of disk", "memory_gb": "GB of memory",
    "cpu_hours": "hours of one CPU core", "gpu_hours": "hours of one GPU instead",
}  # fmt: skip


def _about_needs(needs: Mapping[str, Any]) -> list[str]:
    estimated = needs.get("estimated", ())
    lines = [
        f"{needs[key]:g} {unit}{', estimated' if key in estimated else ''}"
        for key, unit in _NEEDS.items()
        if key in needs
    ]
    return [*lines, *([needs["source"]] if "source" in needs else [])]


def _about_suite(values: Mapping[str, Any]) -> dict[str, Any]:
    entries = {}
    for one in values.get("entries", []):
        title = one.get("name") or f"{one.get('data')}/{one.get('split')}"
        tasks = ", ".join(one.get("tasks", []))
        entries[title] = f"{one.get('data')} {one.get('split')}: {tasks}"
    return {"kind": "suite", "note": values.get("note", ""), "entries": entries}


def _about_study(values: Mapping[str, Any]) -> dict[str, Any]:
    varied = {key: list(map(str, one)) for key, one in values.get("vary", {}).items()}
    variants = [one.get("name", "-") for one in values.get("variants", [])]
    return {
        "kind": "study",
        "note": values.get("note", ""),
        "recipe": values.get("recipe", ""),
        "stage": values.get("stage", "the whole run"),
        **({"varies": varied} if varied else {}),
        **({"variants": variants} if variants else {}),
        "seeds": list(values.get("seeds", [0, 1, 2])),
    }


def _about_prompts(templates: Sequence[str]) -> dict[str, Any]:
    return {"kind": "prompt set", "templates": list(templates)}


def _data_of(tables: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(one.get("data")) for one in tables))


def _named(name: str) -> dict[str, dict[str, Any]]:
    """What bears this name, by kind."""
    found: dict[str, dict[str, Any]] = {}
    if name in DATASETS:
        found["datasets"] = _about_dataset(read_facts(name))
    if name in published_models():
        of_space = _about_space(name) if shipped_model(name) else {}
        found["models"] = {
            **of_space, "kind": "published model", **published_models()[name].about(name),
        }  # fmt: skip
    if name in SENSORS:
        found["sensors"] = _about_sensor(SENSORS[name])
    for kind, describe in _SHIPPED.items():
        if name in shipped_names(kind):
            found[kind] = describe(read_shipped(kind, name))
    if name in prompt_set_names():
        found["prompts"] = _about_prompts(load_prompts(name).templates)
    return found


_SHIPPED: dict[str, Callable[[Mapping[str, Any]], dict[str, Any]]] = {
    "recipes": _about_recipe,
    "suites": _about_suite,
    "studies": _about_study,
}


# By path


def _about_toml(path: Path) -> dict[str, Any]:
    """A TOML file, by the key that only its kind has."""
    values = read_toml(path, what="TOML file")
    if "reader" in values:
        return _about_dataset(find_dataset(str(path)).facts)
    if "bands" in values:
        return _about_sensor(parse_sensor(values, origin=str(path)))
    for key, kind in (("entries", "suites"), ("recipe", "studies"), ("base", "recipes")):
        if key in values:
            about = _SHIPPED[kind](values)
            try:
                _load(kind, str(path))
            except TerralignError as error:
                return {"kind": about["kind"], "not valid": str(error)}
            return about
    if "templates" in values:
        return _about_prompts(list(values["templates"]))
    raise TerralignError(
        f"{path} is not a TOML file of terralign: a data set has the key reader, a sensor bands, a "
        "recipe base, a suite entries, a study recipe, a prompt set templates"
    )


def _load(kind: str, path: str) -> None:
    """Raise what is wrong with a suite, study or recipe."""
    from terralign.ablate.study import load_study
    from terralign.bench.suite import load_suite
    from terralign.runs.recipe import load_recipe

    given = os.environ.get("TERRALIGN_DATA")  # as for commands with --data-root
    loaders: dict[str, Callable[..., object]] = {
        "suites": load_suite, "studies": load_study, "recipes": load_recipe,
    }  # fmt: skip
    loaders[kind](path, data_root=Path(given) if given else None)


def _about_store(store: Path) -> dict[str, Any]:
    manifest = read_manifest(store)
    return {
        "kind": "packed store",
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
        **({"classes": list(manifest.labels.class_names)} if manifest.labels else {}),
        **({"prompts": list(manifest.prompts)} if manifest.prompts else {}),
        "left out": manifest.num_skipped,
        "shards": len(manifest.shards),
        "bytes": sum(one.num_bytes for one in (manifest.table, *manifest.shards)),
    }


def _about_parts(folder: Path) -> dict[str, Any]:
    from terralign.index.approximate import describe_approximate
    from terralign.index.search import describe_index, open_index

    index = open_index(folder)
    about = describe_approximate(folder, index.store)
    return {
        "kind": "folder of embedded scenes",
        **describe_index(index),
        "index": about or "none (terralign index makes one)",
    }


def _about_space(source: str) -> dict[str, Any]:
    from terralign.encoders.space import EmbeddingSpace

    space = EmbeddingSpace.load(source, skip_custom=True)
    towers = {
        name: {"tower_id": space.tower_id(name), **_about_input(space.input_spec(name))}
        for name in space.tower_names
    }
    for name, tower in space.towers.items():
        towers[name]["gsd_m"] = tower.config.gsd_m or "not recorded"
    for config in space.skipped:
        towers[config.name] = {
            "custom encoder": config.describe_encoder(),
            **_about_input(config.input),
        }
    return {
        "kind": "model",
        "source": space.source,
        "space_id": space.space_id,
        "dimensions": space.dim,
        "logit_scale": round(space.clip.logit_scale, 4),
        "prompts": space.prompts.name if space.prompts else "none",
        "towers": towers,
        "provenance": space.provenance or "none",
    }


def _about_input(spec: InputSpec) -> dict[str, Any]:
    return {
        "sensors": list(spec.sensors),
        "bands": list(spec.bands),
        "size": spec.size,
        "missing bands": spec.missing,
    }
