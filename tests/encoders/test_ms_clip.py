"""Llama3-MS-CLIP's checkpoint format, with random weights in its key layout."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from terralign.encoders.clip.load import ClipModel
from terralign.encoders.ms_clip import BANDS, MEANS, STDS, load_ms_clip
from terralign.errors import ModelError
from terralign.sensors import SENSORS

TEMPERATURE = 0.05


def checkpoint(clip: ClipModel) -> dict[str, Tensor]:
    """A training module's state dict: one CLIP over ten bands under three prefixes."""
    state = {key: value.clone() for key, value in clip.model.state_dict().items()}
    filters = state["visual.conv1.weight"]
    noise = torch.randn(len(filters), 10, *filters.shape[2:], generator=torch.Generator())
    state["visual.conv1.weight"] = noise * filters.std()
    prefixes = ("clip_base_model.model.", "text_encoder.model.", "image_encoder.model.")
    return {f"{prefix}{key}": value for prefix in prefixes for key, value in state.items()} | {
        "temperature": torch.tensor(TEMPERATURE)
    }


@pytest.fixture
def file(tiny_clip: ClipModel, tmp_path: Path) -> Path:
    path = tmp_path / "Llama3_MS_CLIP_weights.pt"
    torch.save(checkpoint(tiny_clip), path)
    return path


def test_pixels_are_normalised_as_published_and_bands_found_by_name(
    file: Path, tiny_clip: ClipModel, tiny_clip_config: dict[str, Any]
) -> None:
    space = load_ms_clip(file, model_cfg=tiny_clip_config)
    sensor = SENSORS["sentinel2-l2a"]
    dn = np.random.default_rng(0).integers(1, 20_000, (3, 12, 32, 32)).astype(np.uint16)
    ours = space.encode_image(dn, sensor, units="dn", dn_offset=0, tower="sentinel2")

    # By hand: the ten bands in order, statistics of DN with the offset, the plain ViT.
    positions = [sensor.band_names.index(band) for band in BANDS]
    assert positions == [1, 2, 3, 4, 5, 6, 7, 8, 10, 11]  # L2A without B01 and B09
    picked = torch.from_numpy(dn.astype(np.float32))[:, positions]
    mean, std = (torch.tensor(values)[:, None, None] for values in (MEANS, STDS))
    ready = (picked + 1000 - mean) / std
    visual = space.towers["sentinel2"].backbone
    weights = checkpoint(tiny_clip)["image_encoder.model.visual.conv1.weight"]
    torch.testing.assert_close(visual.conv1.weight, weights)  # type: ignore[union-attr]
    theirs = F.normalize(visual(ready), dim=-1)
    torch.testing.assert_close(ours, theirs, atol=2e-4, rtol=0)


def test_text_is_the_checkpoints_and_cosines_are_divided_by_its_temperature(
    file: Path, tiny_clip: ClipModel, tiny_clip_config: dict[str, Any]
) -> None:
    space = load_ms_clip(file, model_cfg=tiny_clip_config)
    assert space.clip.logit_scale == pytest.approx(1 / TEMPERATURE)
    theirs = tiny_clip.model.encode_text(tiny_clip.tokenizer(["a river"]), normalize=True)  # type: ignore[operator]
    torch.testing.assert_close(space.encode_text(["a river"]), theirs, atol=1e-5, rtol=0)


def test_the_rgb_tower_is_the_ten_band_tower_with_the_other_bands_at_their_mean(
    file: Path, tiny_clip_config: dict[str, Any]
) -> None:
    space = load_ms_clip(file, model_cfg=tiny_clip_config)
    sensor = SENSORS["sentinel2-l2a"]
    means = dict(zip(BANDS, MEANS, strict=True))
    flat = [means.get(band, 2000.0) for band in sensor.band_names]
    dn = np.broadcast_to(np.array(flat, np.float32)[:, None, None], (12, 32, 32)).copy()
    visible = [sensor.band_names.index(band) for band in ("B04", "B03", "B02")]
    # Below the composite's white, of which more would be clipped.
    dn[visible] = np.random.default_rng(1).uniform(1001, 2900, (3, 32, 32))
    options: dict[str, Any] = {"units": "dn", "dn_offset": -1000}
    rgb = space.encode_image(dn, sensor, tower="rgb", **options)
    multi = space.encode_image(dn, sensor, tower="sentinel2", **options)
    torch.testing.assert_close(rgb, multi, atol=2e-3, rtol=0)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda s: s.pop("temperature"), "no checkpoint of Llama3-MS-CLIP"),
        (lambda s: s.update({"other.weight": torch.zeros(1)}), "has a key 'other.weight'"),
        (lambda s: s.update(temperature=torch.tensor(-1.0)), "temperature is -1"),
        (
            lambda s: s.update({"text_encoder.model.positional_embedding": torch.zeros(16, 32)}),
            "hold different weights",
        ),
        (
            lambda s: [
                s.update({key: value[:, :3]})
                for key, value in s.items()
                if key.endswith("visual.conv1.weight")
            ],
            "expected one of 10 bands",
        ),
    ],
)
def test_another_file_is_refused_in_one_line(
    change: Any, said: str, tiny_clip: ClipModel, tiny_clip_config: dict[str, Any], tmp_path: Path
) -> None:
    state = checkpoint(tiny_clip)
    change(state)
    torch.save(state, tmp_path / "w.pt")
    with pytest.raises(ModelError, match=said) as fault:
        load_ms_clip(tmp_path / "w.pt", model_cfg=tiny_clip_config)
    assert "\n" not in str(fault.value)
