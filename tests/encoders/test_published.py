"""Published models by short name: the list, and how each is loaded, with small stand-ins."""

from __future__ import annotations

import logging
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from open_clip import factory
from test_ms_clip import checkpoint

import terralign as ta
from terralign.bench.models import load_model, name_models
from terralign.datasets.catalog import DATASETS
from terralign.encoders.clip import hub as hubs
from terralign.encoders.clip.load import new_clip
from terralign.encoders.published import PublishedModel, published_models
from terralign.encoders.sources import check_source
from terralign.errors import ModelError
from terralign.files import hash_file, shipped_names
from terralign.report.reported import load_reported
from terralign.sensors import SENSORS
from terralign.toml_paths import TomlPaths, model_names

MODELS = published_models()


@pytest.mark.parametrize("name", MODELS)
def test_every_entry_can_be_loaded_or_says_how(name: str) -> None:
    model = MODELS[name]
    assert set(model.sensors) <= set(SENSORS)
    assert model.prompts in ("", *shipped_names("encoders/prompts"))
    assert name not in {*DATASETS, *SENSORS}  # recipes may be called as the model they make
    if model.archive:
        with pytest.raises(ModelError, match=f"{name} is on no hub: fetch https://.*unpack it"):
            ta.load(name)
        with pytest.raises(ModelError, match="is on no hub"):
            check_source(name)
    elif name != "starter":
        assert model.hub
        assert model.tag or model.file
        check_source(name)


@pytest.mark.parametrize("name", [name for name, one in MODELS.items() if one.architecture])
def test_the_architecture_has_the_activation_that_the_list_states(name: str) -> None:
    model = MODELS[name]
    assert (model.activation == "QuickGELU") == str(model.architecture).endswith("-quickgelu")


def test_reported_values_are_those_of_the_report() -> None:
    titles = {
        "openai-vit-b-32": "CLIP ViT-B/32, zero-shot",
        "openai-vit-l-14": "CLIP ViT-L/14, zero-shot",
        "georsclip-vit-h-14": "GeoRSCLIP ViT-H/14",
        "llama3-ms-clip": "Llama3-MS-CLIP, multispectral",
    }
    for name, title in titles.items():
        [value] = [
            one.value
            for one in load_reported()
            if one.model == title and "eurosat-ms" in one.data and one.metric == "top1"
        ]
        reported = MODELS[name].eurosat
        assert reported is not None
        assert reported.top1 == round(value, 1)


@pytest.fixture
def fetched(
    tmp_path: Path, tiny_clip_config: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> dict[str, Any]:
    """A hub that serves small weights for any name; what it was asked for last."""
    names = ("ViT-B-32", "ViT-B-16", "ViT-B-32-quickgelu")
    small = {name: {**tiny_clip_config, "quick_gelu": "quick" in name} for name in names}
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", {**factory._MODEL_CONFIGS, **small})
    clip = new_clip(tiny_clip_config, {}, seed=0)
    asked: dict[str, Any] = {}

    def download(name: str, *, filename: str, revision: str | None) -> str:
        state = clip.model.state_dict()
        path = tmp_path / Path(filename).name
        torch.save(checkpoint(clip) if "MS_CLIP" in filename else state, path)
        asked.update(name=name, filename=filename, revision=revision, path=path)
        return str(path)

    monkeypatch.setattr(hubs, "download_pretrained_from_hf", download)
    return asked


def test_weights_of_the_hub_are_loaded_at_their_commit_and_held_to_their_hash(
    fetched: dict[str, Any], caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(ModelError, match=r"SHA-256 [0-9a-f]{64}, expected 60014e395d93"):
        ta.load("remoteclip-vit-b-32")
    assert fetched["name"] == "chendelong/RemoteCLIP"
    assert fetched["filename"] == "RemoteCLIP-ViT-B-32.pt"
    assert fetched["revision"] == "bf1d8a3ccf2ddbf7c875705e46373bfe542bce38"
    with caplog.at_level(logging.WARNING):
        space = ta.load("remoteclip-vit-b-32", sha256=hash_file(fetched["path"]))
    assert space.source == "remoteclip-vit-b-32"
    assert "chendelong/RemoteCLIP" in space.provenance["fetched"]
    assert caplog.text == ""  # the list states the activation, which a file does not


def test_quickgelu_is_the_lists_choice(fetched: dict[str, Any]) -> None:
    with pytest.raises(ModelError):
        ta.load("georsclip-vit-b-32")
    space = ta.load("georsclip-vit-b-32", sha256=hash_file(fetched["path"]))
    assert space.clip.model_cfg["quick_gelu"]


@pytest.mark.parametrize("source", ["llama3-ms-clip", "ms-clip:FILE"])
def test_a_multispectral_model_has_its_tower(source: str, fetched: dict[str, Any]) -> None:
    if source.endswith("FILE"):
        hubs.download_pretrained_from_hf("x", filename="MS_CLIP.pt", revision=None)  # type: ignore[attr-defined]
        source = source.replace("FILE", str(fetched["path"]))
    check_source(source)
    model = load_model("ms", source, device="cpu")
    assert model.space is not None
    assert model.space.tower_names == ("rgb", "sentinel2")
    with pytest.raises(ModelError, match="expected 0000"):
        ta.load(source, sha256="0" * 64)


def test_a_path_does_not_hide_a_short_name(tmp_path: Path) -> None:
    (tmp_path / "remoteclip-vit-b-32").mkdir()
    (tmp_path / "mine").mkdir()
    paths = TomlPaths(folder=tmp_path)
    values = {"base": {"model": "remoteclip-vit-b-32"}, "other": {"model": "mine"}}
    found = paths.resolve(values)
    assert found["base"]["model"] == "remoteclip-vit-b-32"
    assert found["other"]["model"] == str(tmp_path / "mine")


def test_a_slip_in_a_short_name_is_named() -> None:
    with pytest.raises(ModelError, match=r"did you mean 'georsclip-vit-b-32'\?"):
        check_source("georsclip-vit-b32")
    assert name_models(["openai-vit-b-32"]) == {"openai-vit-b-32": "openai-vit-b-32"}
    assert set(MODELS) <= model_names()


# Documentation


def rows(name: str, model: PublishedModel) -> list[str]:
    """A model's line in each of the two tables of docs/models.md."""
    weights = {
        bool(model.hub): f"[hub](https://huggingface.co/{model.hub})",
        bool(model.archive): f"[archive]({model.archive}), by hand",
    }.get(True, "come with terralign")
    top1, source = ("", "")
    if model.eurosat is not None:
        top1, source = f"{model.eurosat.top1:g}", model.eurosat.source
    size = "" if model.num_bytes is None else model.about(name)["size"]
    prompts = f"`{model.prompts}`" if model.prompts else ""
    tables = (
        (", ".join(model.sensors), model.activation, top1, size),
        (weights, source, prompts, model.licence),
    )
    return [f"| {' | '.join((f'`{name}`', *cells))} |" for cells in tables]


def test_the_page_of_models_is_the_list() -> None:
    page = (Path(__file__).parents[2] / "docs/models.md").read_text(encoding="utf-8")
    written = re.findall(r"^\| `.*\|$", page, re.MULTILINE)
    first, second = zip(*(rows(name, model) for name, model in MODELS.items()), strict=True)
    assert written == [*first, *second]
