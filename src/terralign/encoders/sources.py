"""How a model is named, checked without torch, so that a slip is reported at once."""

from __future__ import annotations

import importlib.util
from collections.abc import Sequence
from functools import cache
from pathlib import Path

from terralign.encoders.published import published_models
from terralign.errors import ModelError, TerralignError, nearest
from terralign.files import hint_of_name, not_found, read_json
from terralign.sensors import Sensor, parse_sensor
from terralign.toml_paths import SHIPPED_MODELS, model_names
from terralign.toml_paths import WEIGHTS_SUFFIXES as WEIGHTS_SUFFIXES

HUB = "hf-hub"
MS_CLIP = "ms-clip"
TIMM = "timm"

_IMAGERY_SUFFIXES = (".tif", ".tiff", ".jp2", ".jpg", ".jpeg", ".png")

STARTER = Path(__file__).parents[1] / "models" / "starter"
"""The folder of the models that come with terralign."""


def shipped_model(source: str) -> Path | None:
    """The file that describes a model that comes with terralign; None for any other name.

    `ModelError` where this installation lacks it.
    """
    if source not in SHIPPED_MODELS:
        return None
    path = STARTER / SHIPPED_MODELS[source]
    if not path.is_file():
        raise ModelError(
            f"{source} comes with terralign, but {path} is not found; install terralign again"
        )
    return path


def is_ms_clip(source: str) -> bool:
    """Whether a name is Llama3-MS-CLIP's, or of a file of it."""
    known = published_models().get(source)
    return source.startswith(f"{MS_CLIP}:") or (known is not None and known.architecture == MS_CLIP)


def _is_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in ("space.json", "open_clip_config.json"))


def check_source(source: str, *, others: Sequence[str] = ()) -> None:
    """`ModelError` where nothing can be loaded by this name: no such folder, file or architecture.

    Tags and hubs are left to the loader. `others`: prefixes that the caller knows besides.
    """
    if shipped_model(source) is not None:
        return
    if source in published_models():
        if published_models()[source].archive:
            raise ModelError(published_models()[source].by_hand(source))
        return
    if Path(source).is_dir():
        if (Path(source) / "model" / "space.json").is_file() and not _is_model(Path(source)):
            raise ModelError(f"{source} is a run folder; its space is {Path(source) / 'model'}")
        return
    if Path(source).is_file():
        if Path(source).suffix.lower() in _IMAGERY_SUFFIXES:
            raise ModelError(f"{source} is imagery, not a model; the model comes before the files")
        raise ModelError(
            f"{source} is a file of weights; name its architecture too, as in ViT-B-32:{source}"
        )
    prefix, separator, rest = source.partition(":")
    known = _architectures()
    if separator and prefix not in (*known, HUB, MS_CLIP, *others):
        raise ModelError(f"unknown architecture {prefix!r} in {source!r}; {nearest(prefix, known)}")
    if prefix in (*known, MS_CLIP) and Path(rest).suffix in WEIGHTS_SUFFIXES:
        if not Path(rest).exists():
            raise ModelError(f"{source}: file of weights {not_found(rest)}")
        return
    if not separator and source not in known:
        hint = nearest(source, model_names())
        near = f"{hint} Or it is" if hint.startswith("did you mean") else "expected"
        raise ModelError(
            f"no model at {source!r}{hint_of_name(source)}: {near} a name of `terralign info "
            "models`, a space or open_clip folder, hf-hub:ORG/NAME, ARCHITECTURE:TAG (as "
            "ViT-B-32-quickgelu:openai) or ARCHITECTURE:FILE"
        )


def sensors_of(source: str) -> dict[str, Sensor]:
    """The sensors that came with a space's towers, by name; none of another model, and none where
    `space.json` is damaged, which loading reports."""
    path = shipped_model(source) or Path(source) / "space.json"
    if not path.is_file():
        return {}
    try:
        found = [parse_sensor(one, origin=source) for one in read_json(path)["sensors"]]
    except (TerralignError, KeyError, TypeError, ValueError, AttributeError):
        return {}
    return {sensor.name: sensor for sensor in found}


@cache
def _architectures() -> tuple[str, ...]:
    """open_clip's architectures, by the names of its configuration files."""
    found = importlib.util.find_spec("open_clip")
    if found is None or found.origin is None:
        return ()
    folder = Path(found.origin).parent / "model_configs"
    return tuple(sorted(path.stem for path in folder.glob("*.json")))
