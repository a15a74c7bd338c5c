"""The text and RGB towers, through open_clip: any architecture, tag, hub id or local file.

Size, mean, standard deviation and activation come from the model's own configuration and travel
with it. Weights are held in float32.
"""

from __future__ import annotations

import copy
import logging
import math
import shutil
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, Literal, cast

import open_clip
import torch
from open_clip.transform import PreprocessCfg
from torch import Tensor, nn

from terralign.compute import as_usual
from terralign.encoders.clip.compact import compact_shapes, read_compact
from terralign.encoders.clip.config import (
    build,
    check_model_cfg,
    meta_shapes,
    towers_cfg,
    towers_state,
)
from terralign.encoders.clip.hub import Hub, check_sha256
from terralign.encoders.clip.pickles import read_pickled
from terralign.encoders.clip.text_tower import (
    TEXT_CONFIG_NAME,
    Tokenizer,
    load_tokenizer,
    local_text_cfg,
    read_text_config,
    save_tokenizer,
)
from terralign.encoders.clip.weights import (
    StateDict,
    check_numbers_of,
    check_shapes,
    fit_names,
    fit_scalars,
    hash_module,
    load_weights,
    read_shapes,
    read_state_dict,
    write_state_dict,
)
from terralign.encoders.published import PublishedModel, published_models
from terralign.encoders.sources import WEIGHTS_SUFFIXES, check_source
from terralign.errors import ModelError, first_line, nearest, shown, some
from terralign.files import hash_json, read_json, require_plain, write_json
from terralign.preprocess import InputSpec, rgb_spec

logger = logging.getLogger(__name__)

CONFIG_NAME = "open_clip_config.json"
WEIGHTS_NAME = "open_clip_model.safetensors"
_MOST_LOGIT_SCALE = 1e6
"""CLIPs are trained up to 100; far above it probabilities are no longer numbers."""


@dataclass(frozen=True, kw_only=True, slots=True)
class ClipModel:
    """A CLIP: its module, configuration, tokenizer and where it came from.

    `model_cfg` and `preprocess_cfg` are open_clip's; `tokenizer`: list of str -> (N, L) int64;
    `text_config` is the configuration of a text tower that comes from transformers; `fetched`:
    what was fetched from a hub, as `Hub.fetched`.
    """

    model: nn.Module
    model_cfg: dict[str, Any]
    preprocess_cfg: dict[str, Any]
    tokenizer: Tokenizer
    source: str
    text_config: dict[str, Any] | None = None
    fetched: Mapping[str, Any] | None = None

    @property
    def visual(self) -> nn.Module:
        """The RGB tower, projection included: (B, 3, H, W) normalised float32 -> (B, D)."""
        return cast(nn.Module, self.model.visual)

    @property
    def dim(self) -> int:
        """D of the embedding space."""
        return int(self.model_cfg["embed_dim"])

    @property
    def logit_scale(self) -> float:
        """exp(logit_scale): what cosines are multiplied by to become logits."""
        return float(cast(Tensor, self.model.logit_scale).detach().exp())

    @property
    def input_spec(self) -> InputSpec:
        """What the RGB tower takes; `ModelError` where its configuration is not supported."""
        try:
            return self._read_preprocess_cfg()
        except (KeyError, TypeError, ValueError) as error:
            reason = f"{type(error).__name__}: {first_line(error)}"
            raise ModelError(f"{self.source}: unusable preprocess_cfg ({reason})") from error

    def _read_preprocess_cfg(self) -> InputSpec:
        size = self.preprocess_cfg["size"]
        if isinstance(size, list | tuple):
            if len(set(size)) != 1:
                raise ModelError(f"{self.source}: only square inputs are supported, not {size}")
            size = size[0]
        mode = self.preprocess_cfg.get("resize_mode") or "shortest"
        if mode not in ("shortest", "squash"):
            raise ModelError(
                f"{self.source}: resize_mode {mode!r} is not supported, only shortest and squash"
            )
        interpolation = self.preprocess_cfg.get("interpolation") or "bicubic"
        if interpolation not in ("bicubic", "bilinear", "random"):  # random: of training alone
            raise ModelError(
                f"{self.source}: interpolation {interpolation!r} is not supported, only bicubic "
                "and bilinear"
            )
        mean = tuple(self.preprocess_cfg["mean"])
        if max(mean) > 1:
            raise ModelError(
                f"{self.source}: preprocess_cfg has a mean of {max(mean):g}; expected that of "
                "pixels from 0 to 1: divide mean and std by 255"
            )
        return rgb_spec(
            size=int(size),
            mean=mean,
            std=tuple(self.preprocess_cfg["std"]),
            interpolation="bilinear" if interpolation == "bilinear" else "bicubic",
            resize_mode=cast(Literal["shortest", "squash"], mode),
        )

    def with_visual(self, state: StateDict, *, source: str) -> ClipModel:
        """The same text tower with another RGB tower's weights; this model is left as it is."""
        model = copy.deepcopy(self.model)
        visual = cast(nn.Module, model.visual)
        expected = {key: tuple(value.shape) for key, value in visual.state_dict().items()}
        given = {key: tuple(value.shape) for key, value in state.items()}
        check_shapes(expected, given, what=source)
        visual.load_state_dict(state)
        return replace(self, model=model, source=source)

    def anchor_id(self) -> str:
        """The name of what anchors a space: text and RGB weights, architecture, preprocessing."""
        config = {"model": self.model_cfg, "preprocess": self.input_spec.model_dump()}
        return hash_module(self.model, extra=hash_json(config | self._text_config()))

    def text_id(self) -> str:
        """The name of the text tower: every weight that is not of the RGB tower, and its config."""
        text = {key: value for key, value in self.model_cfg.items() if key != "vision_cfg"}
        extra = hash_json(text | self._text_config())
        return hash_module(self.model, extra=extra, without="visual.")

    def _text_config(self) -> dict[str, Any]:
        return {"text_config": self.text_config} if self.text_config else {}


@as_usual()
def load_clip(
    source: str, *, sha256: str | None = None, revisions: Mapping[str, str] | None = None
) -> ClipModel:
    """A CLIP in eval mode on the CPU, from

    - a folder in the layout of open_clip's hub models (`open_clip_config.json` beside
      `open_clip_model.safetensors`),
    - `hf-hub:ORG/NAME`, or `hf-hub:ORG/NAME@REVISION` (a commit, tag or branch),
    - `ARCHITECTURE:TAG` as open_clip names them (`ViT-B-32-quickgelu:openai`),
    - `ARCHITECTURE:FILE` for a local state dict (`.pt`, loaded safely, or `.safetensors`),
    - the short name of a published model (`terralign info models`), as it is pinned there.

    `sha256`: of the file of weights, checked before anything is read from it. `revisions`: model on
    the hub -> revision, also of the text towers and tokenizers that a model names.

    `ModelError` where it is not found, damaged, or its activation does not fit its tag.
    """
    published = published_models().get(source)
    hub = hub_for(published, revisions)
    if published is None:
        clip = _load(source, sha256, hub)
    else:
        clip = replace(_load_published(source, published, sha256, hub), source=source)
    hub.check_revisions()
    if hub.fetched:  # open_clip loaded it; of others, the file was checked
        state = clip.model.state_dict()
        check_numbers_of(state, state, what=source)
    return replace(clip, fetched=hub.fetched or None)


def _load(source: str, sha256: str | None, hub: Hub) -> ClipModel:
    if Path(source).is_dir():
        return _load_folder(Path(source), sha256, hub)
    if source.startswith("hf-hub:"):
        return _load_hub(source, sha256, hub)
    architecture, separator, rest = source.partition(":")
    if not separator or architecture not in open_clip.list_models():
        raise _unknown_model(source, architecture, separator)
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    if rest in tags:
        return _load_tag(architecture, rest, sha256, hub)
    path = Path(rest)
    if path.suffix in WEIGHTS_SUFFIXES or path.exists():
        return _load_file(architecture, path, sha256, hub)
    raise ModelError(f"{architecture} has no weights tagged {rest!r}; {nearest(rest, tags)}")


def _load_published(
    name: str, published: PublishedModel, sha256: str | None, hub: Hub
) -> ClipModel:
    if published.archive:
        raise ModelError(published.by_hand(name))
    assert published.architecture is not None
    sha256 = sha256 or published.sha256
    if published.tag is not None:
        return _load_tag(published.architecture, published.tag, sha256, hub)
    weights = fetch_weights(name, published, hub)
    return _load_file(published.architecture, weights, sha256, hub, activation_known=True)


def hub_for(published: PublishedModel | None, revisions: Mapping[str, str] | None) -> Hub:
    """The hub at the revisions that are given, else at those that a published model pins."""
    return Hub({**(published.revisions if published else {}), **(revisions or {})})


def fetch_weights(name: str, published: PublishedModel, hub: Hub) -> Path:
    """The file of weights of a published model, from the hub or its cache."""
    assert published.hub is not None
    try:
        return hub.file(published.hub, published.file)
    except Exception as error:  # a hub and its network fail in many ways
        raise _not_loaded(name, error) from error


def _unknown_model(source: str, architecture: str, separator: str) -> ModelError:
    check_source(source)
    if separator:
        hint = nearest(architecture, open_clip.list_models())
        return ModelError(f"unknown architecture {architecture!r} in {source!r}; {hint}")
    tags = ", ".join(open_clip.list_pretrained_tags_by_model(architecture)[:6])
    return ModelError(f"{source!r} names no weights; write {source}:TAG with TAG of {tags}")


def _load_folder(folder: Path, sha256: str | None, hub: Hub) -> ClipModel:
    if not (folder / CONFIG_NAME).is_file():
        raise ModelError(
            f"{folder} is neither a space nor an open_clip folder: {CONFIG_NAME} not found"
            f"{_what_it_holds(folder)}"
        )
    model_cfg = _read_model_cfg(folder / CONFIG_NAME, str(folder))
    text_config = read_text_config(model_cfg["text_cfg"], folder=folder, hub=hub, what=str(folder))
    weights = folder / WEIGHTS_NAME
    if not weights.is_file():
        others = sorted(one.name for one in folder.iterdir() if one.suffix in WEIGHTS_SUFFIXES)
        found = f"; it holds {some(others)}: save them as that one file" if others else ""
        raise ModelError(f"{folder} lacks its weights, {WEIGHTS_NAME}{found}")
    check_sha256(weights, sha256)
    # Shapes first, on the meta device: a hostile configuration takes no memory.
    what = str(weights)
    check_shapes(meta_shapes(model_cfg, text_config, what), read_shapes(weights), what=what)
    model = _create(f"local-dir:{folder}", model_cfg, text_config, what=str(folder))
    check_numbers_of(read_state_dict(weights), model.state_dict(), what=what)
    return _finish(model, model_cfg, text_config, hub, source=str(folder), folder=folder)


def _what_it_holds(folder: Path) -> str:
    """What a folder is that is no open_clip folder, and what to give instead; "" if not known."""
    below = sorted(one.parent for one in folder.glob(f"*/{CONFIG_NAME}"))
    below += sorted(one.parent for one in folder.glob(f"snapshots/*/{CONFIG_NAME}"))
    if below:
        return f"; did you mean {shown(below[0])}?"
    if (folder / "adapter_config.json").is_file():
        return "; it holds an adapter (LoRA and the like): merge it into its base model first"
    if (folder / "config.json").is_file():
        return (
            "; its config.json is that of Hugging Face's transformers: give the same model in "
            "open_clip's layout, from its own hub page or converted"
        )
    return ""


def load_compact_clip(folder: Path, names: Sequence[str]) -> ClipModel:
    """A CLIP in the compact form (see `clip.compact`): the files `names` of weights in `folder`,
    beside its `open_clip_config.json`. `ModelError` where it is damaged."""
    hub, what, paths = Hub(), str(folder), [folder / name for name in names]
    model_cfg = _read_model_cfg(folder / CONFIG_NAME, what)
    text_config = read_text_config(model_cfg["text_cfg"], folder=folder, hub=hub, what=what)
    check_shapes(meta_shapes(model_cfg, text_config, what), compact_shapes(paths), what=what)
    model = build(model_cfg, text_config, what)
    load_weights(model, read_compact(paths), what=what)
    own = read_json(folder / CONFIG_NAME).get("preprocess_cfg")
    if not isinstance(own, dict):
        raise ModelError(f"{what}: {CONFIG_NAME} has no preprocess_cfg")
    size = cast(Any, model.visual).image_size
    open_clip.set_model_preprocess_cfg(model, {**asdict(PreprocessCfg()), **own, "size": size})
    return _finish(model, model_cfg, text_config, hub, source=what, folder=folder)


def _read_model_cfg(path: Path, what: str) -> dict[str, Any]:
    config = read_json(path)
    require_plain(config, name=str(path), fault=ModelError)
    model_cfg = config.get("model_cfg") if isinstance(config, dict) else None
    if not isinstance(model_cfg, dict) or not all(
        isinstance(model_cfg.get(part), dict) for part in ("vision_cfg", "text_cfg")
    ):
        raise ModelError(f"{what}: {CONFIG_NAME} has no model_cfg with vision_cfg and text_cfg")
    check_model_cfg(model_cfg, what)
    return model_cfg


def _load_hub(source: str, sha256: str | None, hub: Hub) -> ClipModel:
    name = hub.named(source)
    try:
        config = hub.file(name, CONFIG_NAME)
        weights = hub.file(name)
    except Exception as error:  # a hub and its network fail in many ways
        raise _not_loaded(source, error) from error
    _check_fetched(weights, sha256)
    model_cfg = _read_model_cfg(config, source)
    text_config = read_text_config(model_cfg["text_cfg"], folder=None, hub=hub, what=source)
    # open_clip converts some of the hub's weights while loading, so only sizes can be compared:
    # no format of theirs has less than one byte per weight.
    shapes = meta_shapes(model_cfg, text_config, source)
    num_weights = sum(math.prod(shape) for shape in shapes.values())
    if num_weights > weights.stat().st_size:
        raise ModelError(
            f"{source}: its configuration has {num_weights} weights, {weights.name} only "
            f"{weights.stat().st_size} bytes"
        )
    with TemporaryDirectory() as folder:  # open_clip would fetch the newest revision
        shutil.copyfile(config, Path(folder) / CONFIG_NAME)
        (Path(folder) / weights.name).symlink_to(weights.resolve())
        model = _create(f"local-dir:{folder}", model_cfg, text_config, what=source)
    return _finish(model, model_cfg, text_config, hub, source=source)


def _check_fetched(weights: Path, sha256: str | None) -> None:
    """What open_clip is about to load is what was asked for, and takes no more than its size."""
    check_sha256(weights, sha256)
    if weights.suffix == ".safetensors":
        read_shapes(weights)
    elif weights.suffix not in (".npz", ".npy"):
        read_pickled(weights, only_check=True)


def _load_tag(architecture: str, tag: str, sha256: str | None, hub: Hub) -> ClipModel:
    model_cfg = open_clip.get_model_config(architecture)
    check_model_cfg(model_cfg, architecture)
    pretrained = open_clip.get_pretrained_cfg(architecture, tag)
    wants = bool(pretrained.get("quick_gelu", False))
    has = bool(model_cfg.get("quick_gelu", False))
    other = architecture.removesuffix("-quickgelu") + ("-quickgelu" if wants else "")
    # Without a counterpart (roberta-ViT-B-32 has none) the architecture's activation is right.
    if wants != has and other != architecture:
        raise ModelError(
            f"{architecture}:{tag} was trained with {'QuickGELU' if wants else 'GELU'}, but the "
            f"architecture uses {'QuickGELU' if has else 'GELU'}; use {other}:{tag}"
        )
    source = f"{architecture}:{tag}"
    text_config = read_text_config(model_cfg["text_cfg"], folder=None, hub=hub, what=source)
    try:
        weights = hub.published(pretrained)
    except Exception as error:  # a hub and its network fail in many ways
        raise _not_loaded(source, error) from error
    _check_fetched(weights, sha256)
    preprocess = {key: value for key, value in pretrained.items() if key != "size"}
    model = _create(
        architecture, model_cfg, text_config, weights=weights, preprocess=preprocess, what=source
    )
    return _finish(model, model_cfg, text_config, hub, source=source)


def _load_file(
    architecture: str,
    path: Path,
    sha256: str | None,
    hub: Hub,
    *,
    activation_known: bool = False,
) -> ClipModel:
    model_cfg = open_clip.get_model_config(architecture)
    check_model_cfg(model_cfg, architecture)
    if sha256 is not None and path.is_file():
        check_sha256(path, sha256)
    state = read_state_dict(path)
    # Old checkpoints carry text position ids, which no architecture here has as weights.
    state = {key: value for key, value in state.items() if not key.endswith("position_ids")}
    what = f"{path} as {architecture}"
    if not activation_known and f"{architecture}-quickgelu" in open_clip.list_models():
        logger.warning(
            "%s is loaded with GELU; weights that began from OpenAI's need QuickGELU "
            "(%s-quickgelu:FILE), and the file does not say which", path, architecture,
        )  # fmt: skip
    text_config = read_text_config(model_cfg["text_cfg"], folder=None, hub=hub, what=what)
    if any(key.endswith("logit_bias") for key in state):  # trained by the loss of SigLIP
        model_cfg = {"init_logit_bias": 0.0, **model_cfg}
    expected = meta_shapes(model_cfg, text_config, what)
    state = fit_scalars(fit_names(state, expected, what=what), expected)
    check_shapes(expected, {key: tuple(value.shape) for key, value in state.items()}, what=what)
    model = build(model_cfg, text_config, what)
    load_weights(model, state, what=what)
    size = cast(Any, model.visual).image_size
    open_clip.set_model_preprocess_cfg(model, {**_published_preprocess(architecture), "size": size})
    return _finish(model, model_cfg, text_config, hub, source=f"{architecture}:{path}")


def _published_preprocess(architecture: str) -> dict[str, Any]:
    """Preprocessing of an architecture's published weights where all agree, else open_clip's own.

    A file of weights does not state it (SigLIP, for one, does not use OpenAI's mean).
    """
    default = asdict(PreprocessCfg())
    tags = open_clip.list_pretrained_tags_by_model(architecture)
    published = [open_clip.get_pretrained_cfg(architecture, tag) for tag in tags]
    found = [
        {key: one[key] for key in default if one.get(key) is not None and key != "size"}
        for one in published
    ]
    return {**default, **found[0]} if found and all(one == found[0] for one in found) else default


def _create(
    name: str,
    model_cfg: dict[str, Any],
    text_config: dict[str, Any] | None,
    *,
    what: str,
    weights: Path | None = None,
    preprocess: Mapping[str, Any] | None = None,
) -> nn.Module:
    """open_clip's module with its weights; it takes `model_cfg` from where `name` points."""
    try:
        with (
            warnings.catch_warnings(),
            _root_logger_as_it_is(),
            local_text_cfg(model_cfg["text_cfg"], text_config) as text_cfg,
        ):
            warnings.simplefilter("ignore")
            model = open_clip.create_model(
                name,
                pretrained=None if weights is None else str(weights),
                force_preprocess_cfg=dict(preprocess or {}),
                precision="fp32",
                pretrained_image=False,
                pretrained_text=False,
                require_pretrained=True,
                **({"text_cfg": text_cfg} if text_config else {}),
            )
    except Exception as error:  # open_clip wraps network and file faults in many ways
        raise _not_loaded(what, error) from error
    return cast(nn.Module, model)


@contextmanager
def _root_logger_as_it_is() -> Iterator[None]:
    """open_clip logs by functions of `logging` that give a root logger without handlers one."""
    root = logging.getLogger()
    silent = logging.NullHandler()
    root.addHandler(silent)
    try:
        yield
    finally:
        root.removeHandler(silent)


def _not_loaded(what: str, error: Exception) -> ModelError:
    if isinstance(error, ModelError):
        return error
    remedy = "" if Path(what).exists() else ". Without a network, give a local folder or file"
    return ModelError(f"cannot load {what}: {first_line(error)}{remedy}")


def _ready(model: nn.Module) -> nn.Module:
    """Frozen, in eval mode, and with weights channels last, which makes convolutions faster."""
    model.eval().requires_grad_(False)
    return model.to(memory_format=torch.channels_last)


def _finish(
    model: nn.Module,
    model_cfg: dict[str, Any],
    text_config: dict[str, Any] | None,
    hub: Hub,
    *,
    source: str,
    folder: Path | None = None,
) -> ClipModel:
    preprocess_cfg = dict(open_clip.get_model_preprocess_cfg(model))
    towers = towers_cfg(model_cfg)
    if towers != model_cfg:
        state = towers_state(model.state_dict())
        model = build(towers, text_config, source)
        model.load_state_dict(state)
    clip = ClipModel(
        model=_ready(model),
        model_cfg=towers,
        preprocess_cfg={
            key: list(value) if isinstance(value, tuple) else value
            for key, value in preprocess_cfg.items()
        },
        tokenizer=load_tokenizer(towers["text_cfg"], folder=folder, hub=hub, what=source),
        source=source,
        text_config=text_config,
    )
    _ = clip.input_spec  # unusable preprocessing is reported at once
    if not 0 < clip.logit_scale < _MOST_LOGIT_SCALE:
        raise ModelError(
            f"{source}: its logit_scale is {clip.logit_scale:.3g} (exp of the weight); expected "
            f"one between 0 and {_MOST_LOGIT_SCALE:.0e}: it is damaged, or no CLIP"
        )
    return clip


def new_clip(model_cfg: dict[str, Any], preprocess_cfg: dict[str, Any], *, seed: int) -> ClipModel:
    """A CLIP with random weights from an open_clip `model_cfg`.

    Only a text tower or a tokenizer of transformers is fetched, by its name.
    """
    what = "architecture"
    check_model_cfg(model_cfg, what)
    towers = towers_cfg(model_cfg)
    hub = Hub()
    text_config = read_text_config(towers["text_cfg"], folder=None, hub=hub, what=what)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = build(towers, text_config, what)
    return ClipModel(
        model=_ready(model),
        model_cfg=towers,
        preprocess_cfg={"size": cast(Any, model.visual).image_size, **preprocess_cfg},
        tokenizer=load_tokenizer(towers["text_cfg"], folder=None, hub=hub, what=what),
        source="random weights",
        text_config=text_config,
        fetched=hub.fetched or None,
    )


def save_clip(clip: ClipModel, folder: Path) -> list[str]:
    """Write a CLIP into `folder` in the layout of open_clip's hub models; names what it wrote.

    `open_clip.create_model("local-dir:FOLDER")` loads the result. A text tower of transformers
    has its configuration beside it, for `load_clip` to need no network.
    """
    written = save_clip_config(clip, folder)
    write_state_dict(folder / WEIGHTS_NAME, clip.model.state_dict())
    return [*written, WEIGHTS_NAME]


def save_clip_config(clip: ClipModel, folder: Path) -> list[str]:
    """What `save_clip` writes beside the weights."""
    write_json(
        folder / CONFIG_NAME,
        {"model_cfg": clip.model_cfg, "preprocess_cfg": clip.preprocess_cfg},
    )
    written = [CONFIG_NAME]
    if clip.text_config is not None:
        write_json(folder / TEXT_CONFIG_NAME, clip.text_config)
        written.append(TEXT_CONFIG_NAME)
    return written + save_tokenizer(clip.tokenizer, folder)
