"""What `terralign info` shows, as plain values: versions, the lists, and one thing of any of them.

torch is imported for a model alone.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from terralign.datasets.catalog import DATASETS, find_dataset
from terralign.datasets.facts import DatasetFacts, read_facts
from terralign.datasets.store import is_store, read_manifest
from terralign.encoders.prompt_sets import load_prompts, prompt_set_names
from terralign.errors import TerralignError, counted, nearest
from terralign.files import read_shipped, read_toml, shipped_names
from terralign.sensors import SENSORS, Sensor, parse_sensor
from terralign.versions import versions

LISTS = ("datasets", "sensors", "recipes", "suites", "studies", "prompts")
"""What there is a list of."""

_TAKES = (
    f"Info takes a list ({', '.join(LISTS)}), a name of one of them, a packed store, a TOML file, "
    "or a model (its folder, hf-hub:ORG/NAME, ARCHITECTURE:TAG, ARCHITECTURE:FILE)"
)


def about(what: str | None = None) -> dict[str, Any]:
    """Plain values about `what`: None (versions), a list, a name of one, a packed store, a TOML
    file, or anything `EmbeddingSpace.load` takes. `TerralignError` names what is nearest."""
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
    if path.exists() or ":" in what:
        return _about_space(what)
    names = [*LISTS, *(name for kind in _KINDS for name in _names(kind))]
    hint = nearest(what, names)
    near = f"; {hint}" if hint.startswith("did you mean") else "."
    raise TerralignError(f"nothing is called {what!r}, and no such path exists{near} {_TAKES}")


def dataset_table() -> str:
    """The data sets, a line each."""
    rows = [("name", "sensors", "labels", "classes", "size", "splits")]
    for name in DATASETS:
        facts = read_facts(name)
        rows.append(
            (
                name,
                ", ".join(facts.sensors),
                facts.labels,
                facts.class_list or "-",
                facts.size.split(",")[0].split(" at ")[0].split(";")[0] or "-",
                "yes" if facts.has_splits else "no",
            )
        )
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    lines = [
        "  ".join(f"{cell:<{width}}" for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in rows
    ]
    return "\n".join([*lines, "", "terralign info NAME describes one; --json has all values."])


# By name


def _list(kind: str) -> dict[str, Any]:
    if kind == "datasets":
        return {name: read_facts(name).about() for name in DATASETS}
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
        return {name: counted(len(_templates(name)), "template") for name in _names("prompts")}
    return {name: str(read_shipped(kind, name).get("note", "")) for name in _names(kind)}


def _names(kind: str) -> list[str]:
    if kind == "prompts":
        return prompt_set_names()
    known: dict[str, Mapping[str, Any]] = {"datasets": DATASETS, "sensors": SENSORS}
    return list(known[kind]) if kind in known else shipped_names(kind)


def _named(name: str) -> dict[str, dict[str, Any]]:
    """What bears this name, by kind."""
    return {kind: describe(name) for kind, describe in _KINDS.items() if name in _names(kind)}


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
    patch, base = values.get("patch", {}), values.get("base", {})
    towers = values.get("align", [])
    return {
        "kind": "recipe",
        "note": values.get("note", ""),
        "base": base.get("model") or "pretrained by the recipe",
        "patched on": _data_of(patch.get("tasks", [])) or "not patched",
        "must keep": _data_of(patch.get("supported", [])) or "nothing",
        "towers": {
            one.get("name", "-"): f"{', '.join(one.get('sensors', []))} on "
            f"{', '.join(_data_of(one.get('data', [])))}"
            for one in towers
        }
        or "none",
        "evaluated on": _data_of(values.get("evaluate", [])) or "nothing",
    }


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


def _about_prompts(templates: list[str]) -> dict[str, Any]:
    return {"kind": "prompt set", "templates": templates}


def _templates(name: str) -> list[str]:
    return list(load_prompts(name).templates)


def _data_of(tables: list[dict[str, Any]]) -> list[str]:
    return list(dict.fromkeys(str(one.get("data")) for one in tables))


_KINDS: dict[str, Callable[[str], dict[str, Any]]] = {
    "datasets": lambda name: _about_dataset(read_facts(name)),
    "sensors": lambda name: _about_sensor(SENSORS[name]),
    "recipes": lambda name: _about_recipe(read_shipped("recipes", name)),
    "suites": lambda name: _about_suite(read_shipped("suites", name)),
    "studies": lambda name: _about_study(read_shipped("studies", name)),
    "prompts": lambda name: _about_prompts(_templates(name)),
}


# By path


def _about_toml(path: Path) -> dict[str, Any]:
    """A TOML file, by the key that only its kind has."""
    values = read_toml(path)
    if "reader" in values:
        return _about_dataset(find_dataset(str(path)).facts)
    if "bands" in values:
        return _about_sensor(parse_sensor(values, origin=str(path)))
    for key, kind, check, describe in (
        ("entries", "suite", _check_suite, _about_suite),
        ("recipe", "study", _check_study, _about_study),
        ("base", "recipe", _check_recipe, _about_recipe),
    ):
        if key in values:
            try:
                check(str(path))
            except TerralignError as error:
                return {"kind": kind, "not valid": str(error)}
            return describe(values)
    if "templates" in values:
        return _about_prompts(list(values["templates"]))
    raise TerralignError(
        f"{path} is no TOML that is known here: a data set has the key reader, a sensor bands, a "
        "recipe base, a suite entries, a study recipe, a prompt set templates"
    )


def _check_suite(path: str) -> None:
    from terralign.bench.suite import load_suite

    load_suite(path, data_root=_data_root())


def _check_study(path: str) -> None:
    from terralign.ablate.study import load_study

    load_study(path, data_root=_data_root())


def _check_recipe(path: str) -> None:
    from terralign.runs.recipe import load_recipe

    load_recipe(path, data_root=_data_root())


def _data_root() -> Path | None:
    """`info` has no --data-root, but its variable holds here as for every command."""
    given = os.environ.get("TERRALIGN_DATA")
    return Path(given) if given else None


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
        "classes": list(manifest.labels.class_names) if manifest.labels else "none",
        "left out": manifest.num_skipped,
        "shards": len(manifest.shards),
        "bytes": sum(one.num_bytes for one in (manifest.table, *manifest.shards)),
    }


def _about_space(source: str) -> dict[str, Any]:
    from terralign.encoders.space import EmbeddingSpace

    space = EmbeddingSpace.load(source, skip_custom=True)
    towers: dict[str, dict[str, Any]] = {}
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
        "kind": "model",
        "source": space.source,
        "space_id": space.space_id,
        "dimensions": space.dim,
        "logit_scale": round(space.clip.logit_scale, 4),
        "prompts": space.prompts.name if space.prompts else "none",
        "towers": towers,
        "provenance": space.provenance or "none",
    }
