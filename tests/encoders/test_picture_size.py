"""Pictures become what open_clip's own transform makes of them, whatever the CLIP's way is."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import open_clip
import pytest
import torch
from PIL import Image

from terralign.chips import PixelLayout
from terralign.encoders.clip.load import ClipModel, new_clip
from terralign.encoders.picture_size import picture_size
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.preprocess import make_ready, resize, rgb_spec, scale_composite
from terralign.scenes.pictures import PictureSize, decode_rgb
from terralign.sensors import SENSORS

MEAN, STD = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28)
SHAPES = [(32, 32), (64, 64), (97, 32), (32, 50), (40, 83), (83, 41), (31, 20), (7, 5), (33, 32)]
WAYS = list(itertools.product(["shortest", "squash"], ["bicubic", "bilinear"]))


def picture(height: int, width: int) -> Image.Image:
    rng = np.random.default_rng(height * 100 + width)
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def transform(mode: str, interpolation: str) -> Any:
    return open_clip.image_transform(
        32, is_train=False, mean=MEAN, std=STD, resize_mode=mode, interpolation=interpolation
    )


@pytest.mark.parametrize(("mode", "interpolation"), WAYS)
@pytest.mark.parametrize(("height", "width"), SHAPES)
def test_pictures_equal_open_clips_own_transform(
    tmp_path: Path, mode: Any, interpolation: Any, height: int, width: int
) -> None:
    path = tmp_path / "a.png"
    picture(height, width).save(path)
    spec = rgb_spec(size=32, mean=MEAN, std=STD, interpolation=interpolation, resize_mode=mode)
    assert picture_size(spec) == PictureSize(32, mode, interpolation)
    pixels = decode_rgb(path, picture_size(spec))
    with Image.open(path) as opened:
        expected = transform(mode, interpolation)(opened)
    mean, std = (torch.tensor(one)[:, None, None] for one in (MEAN, STD))
    whole = torch.round((expected * std + mean) * 255).to(torch.uint8)
    np.testing.assert_array_equal(pixels, whole.numpy())
    rgb = SENSORS["rgb"]
    layout = PixelLayout(sensor=rgb, bands=rgb.band_names, units="dn", composite=rgb.composites[0])
    scaled = scale_composite(torch.from_numpy(pixels)[None], layout)
    torch.testing.assert_close(
        make_ready(resize(scaled, spec), spec)[0], expected, atol=1e-6, rtol=0
    )


@pytest.mark.parametrize(("mode", "interpolation"), WAYS)
def test_classified_files_are_prepared_as_open_clip_does(
    tmp_path: Path, tiny_clip_config: dict[str, Any], mode: str, interpolation: str
) -> None:
    preprocess_cfg = {
        "mean": list(MEAN), "std": list(STD), "resize_mode": mode, "interpolation": interpolation
    }  # fmt: skip
    clip: ClipModel = new_clip(tiny_clip_config, preprocess_cfg, seed=0)
    space = EmbeddingSpace(clip, prompts=PromptSet(name="plain", templates=("{}",)))
    labels = ["forest", "river", "town"]
    picture(45, 80).save(tmp_path / "a.png")
    picture(45, 80).save(tmp_path / "a.tif")
    with torch.inference_mode():
        ready = transform(mode, interpolation)(picture(45, 80))[None]
        own = torch.nn.functional.normalize(clip.visual(ready), dim=-1)
    chances = (clip.logit_scale * own @ space.zero_shot_weights(labels).T).softmax(-1)[0]
    for found in space.classify([tmp_path / "a.png", tmp_path / "a.tif"], labels):
        assert list(found.probabilities.values()) == pytest.approx(chances.tolist(), rel=1e-4)
