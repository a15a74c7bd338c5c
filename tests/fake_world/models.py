"""Models of the kinds that shipped recipes name, with random weights of small architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import open_clip
import pytest
import timm
import torch
from open_clip import factory
from torch import Tensor

from terralign.encoders.clip.hub import Hub
from terralign.encoders.clip.load import ClipModel, new_clip, save_clip
from terralign.encoders.clip.weights import write_state_dict

OPENAI = (
    "ViT-B-32-quickgelu",
    "ViT-B-16-quickgelu",
    "ViT-L-14-quickgelu",
    "ViT-L-14-336-quickgelu",
)
"""OpenAI's teachers: the small ones differ in size, patches and depth as the real ones do."""

STUDENT = "test_vit"
"""timm's smallest ViT, in place of ViT-S/16: a class token, patches of 16 pixels."""

STUDENT_SIZE = 32

_TEXT = {"context_length": 24, "vocab_size": 49408, "width": 16, "heads": 2, "layers": 1}
"""The longest of OpenAI's prompts has 22 tokens."""

_VISION: dict[str, dict[str, int]] = {
    "ViT-B-32-quickgelu": {"image_size": 32, "patch_size": 16, "layers": 1},
    "ViT-B-16-quickgelu": {"image_size": 32, "patch_size": 8, "layers": 1},
    "ViT-L-14-quickgelu": {"image_size": 32, "patch_size": 8, "layers": 2},
    "ViT-L-14-336-quickgelu": {"image_size": 48, "patch_size": 8, "layers": 2},
}


def openai_config(architecture: str) -> dict[str, Any]:
    """open_clip's model_cfg of a small CLIP of this kind: a ViT with QuickGELU."""
    return {
        "embed_dim": 32,
        "quick_gelu": True,
        "vision_cfg": {"width": 64, "head_width": 32, **_VISION[architecture]},
        "text_cfg": _TEXT,
    }


def openai_clip(architecture: str) -> ClipModel:
    """One of OpenAI's teachers. All have one text tower, so that a test embeds prompts once."""
    clip = new_clip(openai_config(architecture), {}, seed=0)
    text = new_clip(openai_config(OPENAI[0]), {}, seed=1).model.state_dict()
    shared = {key: value for key, value in text.items() if not key.startswith("visual.")}
    clip.model.load_state_dict({**clip.model.state_dict(), **shared})
    return clip


def micro_clip() -> ClipModel:
    """In place of `micro-clip`: an EfficientNet, which has batch norms."""
    config = {
        "embed_dim": 32,
        "vision_cfg": {
            "timm_model_name": "test_efficientnet",
            "timm_model_pretrained": False,
            "timm_pool": "avg",
            "timm_proj": "linear",
            "image_size": 32,
        },
        "text_cfg": _TEXT,
    }
    return new_clip(config, {"mean": [0.5] * 3, "std": [0.5] * 3}, seed=0)


def write_clip(clip: ClipModel, folder: Path) -> None:
    """A folder in open_clip's layout."""
    folder.mkdir(parents=True)
    save_clip(clip, folder)


def serve_openai(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let open_clip build and fetch small teachers under the names of OpenAI's.

    Replaced are its table of architectures and the download, which gives a file in `folder`;
    everything else, how the tag is read and the weights are loaded, is as it is.
    """
    files = {}
    for architecture in OPENAI:
        files[architecture] = folder / f"{architecture}.safetensors"
        if not files[architecture].is_file():
            write_state_dict(files[architecture], openai_clip(architecture).model.state_dict())
    configs = {name: openai_config(name) for name in OPENAI}
    by_tag = {
        repr(open_clip.get_pretrained_cfg(name, "openai")): str(files[name]) for name in OPENAI
    }

    def published(hub: Hub, config: dict[str, Any]) -> Path:
        path = Path(by_tag[repr(config)])
        hub._record("openai", [path])
        return path

    monkeypatch.setattr(factory, "_MODEL_CONFIGS", {**factory._MODEL_CONFIGS, **configs})
    monkeypatch.setattr(Hub, "published", published)


def write_checkpoint(path: Path, num_bands: int) -> None:
    """A student's checkpoint as SSL4EO-S12 published it: of MAE where the name says so, or MoCo-v3.

    MoCo-v3's holds both encoders and their heads, MAE's the decoder beside the encoder.
    """
    state = student_weights(num_bands)
    if "_mae_" in path.name:
        decoder = {"mask_token": torch.zeros(1, 1, 4), "decoder_embed.weight": torch.zeros(2, 2)}
        content: dict[str, Any] = {"epoch": 99, "model": {**state, **decoder}}
    else:
        keys: dict[str, Tensor] = {"module.predictor.0.weight": torch.zeros(2, 2)}
        for encoder in ("base_encoder", "momentum_encoder"):
            keys |= {f"module.{encoder}.{key}": value for key, value in state.items()}
            keys[f"module.{encoder}.head.0.weight"] = torch.zeros(2, 2)
        content = {"epoch": 100, "state_dict": keys, "optimizer": {"lr": 1.0}}
    path.parent.mkdir(parents=True, exist_ok=True)
    torch.save(content, path)


def student_weights(num_bands: int) -> dict[str, Tensor]:
    """The checkpoint's weights, as timm calls them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = timm.create_model(STUDENT, img_size=STUDENT_SIZE, in_chans=num_bands, num_classes=0)
    state: dict[str, Tensor] = model.state_dict()
    return state
