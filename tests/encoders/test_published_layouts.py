"""Published remote-sensing CLIPs: their checkpoints' layouts load as ARCHITECTURE:FILE.

RemoteCLIP and GeoRSCLIP publish plain open_clip state dicts, SkyCLIP the checkpoints of open_clip's
training: epoch, name, optimizer, and a state dict whose keys begin with `module.`.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from open_clip import factory

from terralign.encoders.clip.load import ClipModel
from terralign.encoders.space import EmbeddingSpace


@pytest.fixture
def architecture(
    tiny_clip_config: dict[str, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> str:
    """`Tiny-ViT` as an architecture that open_clip knows."""
    monkeypatch.setattr(factory, "_MODEL_CONFIGS", dict(factory._MODEL_CONFIGS))
    monkeypatch.setattr(factory, "_MODEL_CONFIG_PATHS", list(factory._MODEL_CONFIG_PATHS))
    (tmp_path / "Tiny-ViT.json").write_text(json.dumps(tiny_clip_config))
    open_clip.add_model_config(tmp_path / "Tiny-ViT.json")
    return "Tiny-ViT"


def layout(kind: str, state: dict[str, Any]) -> Any:
    if kind == "RemoteCLIP":
        return state
    if kind == "GeoRSCLIP":
        return {key: value.half() if value.is_floating_point() else value
                for key, value in state.items()}  # fmt: skip
    return {
        "epoch": 20,
        "name": "ViT-B-32",
        "state_dict": {f"module.{key}": value for key, value in state.items()},
        "optimizer": {"state": {}, "param_groups": [{"lr": 1e-5, "params": [0]}]},
        "scaler": {"scale": 65536.0},
    }


@pytest.mark.parametrize("kind", ["RemoteCLIP", "GeoRSCLIP", "SkyCLIP"])
def test_it_loads(kind: str, architecture: str, tiny_clip: ClipModel, tmp_path: Path) -> None:
    path = tmp_path / f"{kind}.pt"
    torch.save(layout(kind, dict(tiny_clip.model.state_dict())), path)
    space = EmbeddingSpace.load(f"{architecture}:{path}")
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    atol = 5e-3 if kind == "GeoRSCLIP" else 1e-6
    torch.testing.assert_close(
        space.clip.visual(pictures), tiny_clip.visual(pictures), atol=atol, rtol=0
    )
    assert space.clip.logit_scale == pytest.approx(tiny_clip.logit_scale, rel=1e-3)


def test_a_file_whose_activation_is_in_doubt_is_warned_about(
    architecture: str, tiny_clip: ClipModel, tiny_clip_config: dict[str, Any], tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / "w.pt"
    torch.save(layout("RemoteCLIP", dict(tiny_clip.model.state_dict())), path)
    EmbeddingSpace.load(f"{architecture}:{path}")
    assert not caplog.records
    twin = tmp_path / f"{architecture}-quickgelu.json"
    twin.write_text(json.dumps({**tiny_clip_config, "quick_gelu": True}))
    open_clip.add_model_config(twin)
    EmbeddingSpace.load(f"{architecture}:{path}")
    assert f"need QuickGELU ({architecture}-quickgelu:FILE)" in caplog.text
    caplog.clear()
    EmbeddingSpace.load(f"{architecture}-quickgelu:{path}")
    assert not caplog.records
