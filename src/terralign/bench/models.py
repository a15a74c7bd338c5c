"""The models of a bench: their names, and one interface for spaces and for plain encoders."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from terralign.datasets.sample import SampleSet
from terralign.encoders.picture_size import picture_size
from terralign.encoders.protocols import ImageEncoder
from terralign.encoders.sources import MS_CLIP, TIMM
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.encoders.timm_encoder import load_timm_encoder
from terralign.errors import RecipeError, SensorError
from terralign.evaluation.embed import Route, route_through
from terralign.preprocess import InputSpec
from terralign.scenes.pictures import PictureSize

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, kw_only=True, slots=True)
class BenchModel:
    """A loaded model. `space`: None for an encoder without text."""

    name: str
    source: str
    encoder: ImageEncoder
    space: EmbeddingSpace | None
    model_id: str

    def picture_size(self) -> PictureSize:
        """The size that RGB pictures are opened at."""
        return picture_size(self.encoder.input_spec(self.encoder.tower_names[0]))


def name_models(given: Sequence[str]) -> dict[str, str]:
    """`NAME=SOURCE` or `SOURCE` -> name and source, in order; derived names are made unique.

    A run's `model` folder is called as the run; a file of weights as the file. `RecipeError` where
    a name is given twice.
    """
    models: dict[str, str] = {}
    for text in given:
        name, separator, source = text.partition("=")
        if separator and _NAME.fullmatch(name):
            if not source:
                raise RecipeError(f"--models {text!r}: expected NAME=SOURCE")
            if name in models:
                raise RecipeError(f"two models are called {name!r}; give one another name")
            models[name] = source
            continue
        plain = _derived(text)
        name, number = plain, 2
        while name in models:
            name, number = f"{plain}-{number}", number + 1
        models[name] = text
    return models


def _derived(source: str) -> str:
    prefix, separator, rest = source.partition(":")
    if prefix in (MS_CLIP, TIMM) and separator:
        name = prefix if prefix == MS_CLIP else rest.partition(":")[0].replace("@", "-")
    elif prefix == "hf-hub":
        name = rest.rpartition("/")[2]
    elif separator and not Path(source).exists():
        name = Path(rest).stem if Path(rest).suffix else f"{prefix}-{rest}"
    else:
        path = Path(source).resolve()
        name = path.parent.name if path.name == "model" else path.name
    return re.sub(r"[^A-Za-z0-9._-]+", "-", name).strip("-.") or "model"


def load_model(name: str, source: str, *, device: str) -> BenchModel:
    """Anything `EmbeddingSpace.load` takes, or `timm:NAME[:FILE]`.

    Raises `ModelError` as they do.
    """
    prefix, _, rest = source.partition(":")
    if prefix == TIMM:
        encoder = load_timm_encoder(rest).to(device)
        return BenchModel(
            name=name, source=source, encoder=encoder, space=None, model_id=encoder.model_id
        )
    space = EmbeddingSpace.load(source).to(device)
    return BenchModel(name=name, source=source, encoder=space, space=space, model_id=space.space_id)


def find_routes(
    model: BenchModel, samples: SampleSet, towers: Sequence[str]
) -> tuple[list[Route], dict[str, str]]:
    """How the samples go through each tower that takes them; tower -> why another does not.

    `towers`: only these, where any are named. Towers of sensors that the data lack are no matter
    unless they are named.
    """
    routes, reasons = [], {}
    for name in model.encoder.tower_names:
        if towers and name not in towers:
            continue
        try:
            routes.append(route_through(model.encoder, samples, name))
        except SensorError as error:
            sensors = model.encoder.input_spec(name).sensors
            if name in towers or any(one in samples.layouts for one in sensors):
                reasons[name] = str(error)
    for name in towers:
        if name not in model.encoder.tower_names:
            reasons[name] = f"the model has no tower {name!r}"
    if not routes and not reasons:
        names = ", ".join(model.encoder.tower_names)
        reasons[names] = f"takes none of the sensors {', '.join(samples.layouts)}"
    return routes, reasons


def bands_used(route: Route, spec: InputSpec) -> tuple[str, ...]:
    """The bands of the data that a route looks at."""
    if spec.sensors == (RGB,):
        return (route.layout.composite or route.layout.sensor.composite()).bands
    return tuple(band for band in spec.bands if band in route.layout.bands)
