"""What runs on a CUDA device, held to the CPU's numbers.

TERRALIGN_GPU_TESTS=cpu runs the same tests on the CPU, to try the tests themselves.
"""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fakes import metrics_of
from small_sets import *  # noqa: F403
from terralign import compute
from terralign.chips import PixelLayout
from terralign.datasets.synthetic import SyntheticSet
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import hash_state
from terralign.encoders.pixels import ready_pixels
from terralign.encoders.space import EmbeddingSpace
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import Interrupted, TrainingError
from terralign.evaluation.embed import choose_route, embed_samples
from terralign.preprocess import (
    Photometric,
    Spectral,
    ViewSpec,
    apply_views,
    augment_photometric,
    augment_spectral,
    draw_views,
    make_ready,
    scale_bands,
    scale_composite,
)
from terralign.preprocess.spec import valid_shares
from terralign.train.align import AlignmentSource, AlignSettings, align
from terralign.train.checkpoints import Checkpoints
from terralign.train.finetune import FinetuneSettings, PatchingTask, finetune
from terralign.train.interpolate import interpolate, on_device
from terralign.train.student import StudentSettings, new_student
from terralign.train.sweep import sweep
from terralign.train.teacher import ViewPlan, stored_views

DEVICE = os.environ.get("TERRALIGN_GPU_TESTS", "cuda")
S2 = "sentinel2-l2a"
PLAIN = PromptSet(name="plain", templates=("{}",))
CROPS = ViewSpec(crop_scale=(0.5, 1.0), crop_ratio=(0.75, 1.33))
QUICK = AlignSettings(epochs=2, batch_size=8, lr=1e-3, losses={"mse_normalised": 1.0})

pytestmark = [] if DEVICE == "cpu" else [pytest.mark.gpu]


@pytest.fixture
def clip(tiny_clip: ClipModel) -> ClipModel:
    """The tiny CLIP on the device, of its own."""
    own = copy.deepcopy(tiny_clip)
    own.model.to(DEVICE)
    return own


@pytest.fixture
def in_float32() -> Iterator[None]:
    yield
    compute.choose_inference("fp32")


def _raw(samples: SyntheticSet, *, holes: bool) -> tuple[Tensor, PixelLayout]:
    """Raw numbers (16, 12, 64, 64): uint16, or float32 with pixels and a band without data."""
    layout = samples.layouts[S2]
    pixels = torch.from_numpy(samples.read(np.arange(16, dtype=np.int64))[S2])
    if not holes:
        return pixels, layout
    pixels = pixels.float()
    pixels[::3, :, 5:20, 7:30] = torch.nan
    pixels[1, 4] = torch.nan
    return pixels, layout


UNSEEN = StudentSettings(bands=("B05", "B08", "B11", "B12"))
"""A student that sees none of the teacher's bands, and so has something to learn."""
INDICES = np.arange(16, dtype=np.int64)


def _bands(raw: Tensor, layout: PixelLayout, spec: Any, views: ViewSpec) -> Tensor:
    drawn = draw_views(views, seed=1, view=2, indices=INDICES)
    bands = apply_views(scale_bands(raw, layout, spec), drawn, spec.size)
    spectral = Spectral(gain=0.1, band_dropout=0.2)
    return make_ready(augment_spectral(bands, spectral, seed=1, view=2, indices=INDICES), spec)


def _picture(raw: Tensor, layout: PixelLayout, spec: Any, views: ViewSpec) -> Tensor:
    drawn = draw_views(views, seed=1, view=2, indices=INDICES)
    pictures = apply_views(scale_composite(raw, layout), drawn, spec.size).clamp(0, 1)
    colours = Photometric(blur_probability=0.5)
    pictures = augment_photometric(pictures, colours, seed=1, view=2, indices=INDICES)
    return make_ready(pictures, spec)


@pytest.mark.parametrize("holes", [False, True])
@pytest.mark.parametrize("views", [ViewSpec(), CROPS])
@pytest.mark.parametrize("prepare", [_bands, _picture])
def test_preprocessing_gives_the_numbers_of_the_cpu(
    prepare: Callable[..., Tensor],
    views: ViewSpec,
    holes: bool,
    clip: ClipModel,
    scenes: SyntheticSet,
) -> None:
    raw, layout = _raw(scenes, holes=holes)
    student, _ = new_student("s", clip, StudentSettings(), [S2], [scenes], seed=0)
    spec = student.config.input if prepare is _bands else clip.input_spec
    here, there = prepare(raw, layout, spec, views), prepare(raw.to(DEVICE), layout, spec, views)
    assert there.device.type == DEVICE
    close = (there.cpu() - here).abs() < 1e-3
    assert close.float().mean() > 0.999  # a pixel at the border of no data may fall either way


@pytest.mark.parametrize("holes", [False, True])
def test_valid_shares_are_those_of_the_cpu(holes: bool, scenes: SyntheticSet) -> None:
    raw, layout = _raw(scenes, holes=holes)
    for together in (False, True):
        here = valid_shares(raw, layout, layout.bands, together=together)
        there = valid_shares(raw.to(DEVICE), layout, layout.bands, together=together)
        torch.testing.assert_close(there.cpu(), here)


def test_embeddings_are_those_of_the_cpu(
    clip: ClipModel, tiny_clip: ClipModel, scenes: SyntheticSet
) -> None:
    here, there = EmbeddingSpace(tiny_clip), EmbeddingSpace(clip)
    route = choose_route(here, scenes)
    expected, found = (embed_samples(one, scenes, route, batch_size=7) for one in (here, there))
    torch.testing.assert_close(found.vectors, expected.vectors, rtol=1e-3, atol=1e-4)
    assert (found.valid_share, found.num_empty) == (expected.valid_share, expected.num_empty)


@pytest.mark.usefixtures("in_float32")
@pytest.mark.parametrize("precision", ["tf32", "bf16"])
def test_other_precisions_are_close_and_named(
    precision: compute.Precision, clip: ClipModel, scenes: SyntheticSet
) -> None:
    raw, layout = _raw(scenes, holes=False)
    space = EmbeddingSpace(clip)
    ready = ready_pixels(raw.to(DEVICE), layout, space.input_spec(), tower="rgb")
    exact = space.encode_ready(ready, tower="rgb")
    compute.choose_inference(precision)
    rounded = space.encode_ready(ready, tower="rgb")
    assert torch.cosine_similarity(exact, rounded).min() > 0.99
    assert compute.inference_depends() == {"precision": precision}


def test_stored_views_are_those_of_the_cpu(
    clip: ClipModel, tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    plan = ViewPlan(spec=CROPS, num_views=2, seed=4)
    here = stored_views(tiny_clip, scenes, plan, tmp_path / "a", batch_size=7)
    there = stored_views(clip, scenes, plan, tmp_path / "b", batch_size=7)
    np.testing.assert_allclose(there, here, rtol=2e-2, atol=2e-2)


def test_a_sweep_finds_the_values_of_the_cpu(
    clip: ClipModel, tiny_clip: ClipModel, scenes_val: SyntheticSet
) -> None:
    labels = scenes_val.labels
    assert labels is not None
    task = PatchingTask(samples=scenes_val, prompts=PLAIN, class_names=labels.class_names)
    alphas = [0.0, 0.5, 1.0]
    torch.manual_seed(0)
    theta_0 = tiny_clip.visual.state_dict()
    theta_1 = {key: value + 0.01 * torch.randn_like(value) for key, value in theta_0.items()}

    def values(model: ClipModel, device: str) -> list[float]:
        first, second = (on_device(one, torch.device(device)) for one in (theta_0, theta_1))
        points = sweep(
            model, lambda alpha: interpolate(first, second, alpha), alphas,
            validation=[task], supported=[], batch_size=7,
        )  # fmt: skip
        return [point.mean_patching for point in points]

    assert values(clip, DEVICE) == pytest.approx(values(tiny_clip, "cpu"), abs=0.051)


# Training


def _align(
    clip: ClipModel, samples: SyntheticSet, folder: Path, settings: AlignSettings = QUICK
) -> tuple[str, list[dict[str, Any]]]:
    """The weights' hash, and the log."""
    student, _ = new_student("s", clip, UNSEEN, [S2], [samples], seed=0)
    align(clip, student.to(DEVICE), [AlignmentSource(samples=samples)], settings, folder)
    return hash_state(student.state_dict()), metrics_of(folder)


def test_losses_are_those_of_the_cpu(
    clip: ClipModel, tiny_clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    _, there = _align(clip, scenes, tmp_path / "a")
    student, _ = new_student("s", tiny_clip, UNSEEN, [S2], [scenes], seed=0)
    align(tiny_clip, student, [AlignmentSource(samples=scenes)], QUICK, tmp_path / "b")
    here = metrics_of(tmp_path / "b")
    assert [one["step"] for one in there] == [one["step"] for one in here] == list(range(1, 11))
    np.testing.assert_allclose(
        [one["loss"] for one in there], [one["loss"] for one in here], rtol=0.05
    )


@pytest.mark.parametrize("changed", [
    {"precision": "bf16"}, {"precision": "tf32"}, {"gradient_checkpointing": True},
    {"accumulate": 3}, {"live_teacher": True},
])  # fmt: skip
def test_every_way_of_training_learns(
    changed: dict[str, Any], clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"epochs": 6, **changed})
    _, log = _align(clip, scenes, tmp_path, settings)
    assert log[-1]["loss"] < 0.9 * log[0]["loss"]


def test_a_compiled_student_learns_the_same(
    clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    _, plain = _align(clip, scenes, tmp_path / "a")
    _, compiled = _align(clip, scenes, tmp_path / "b", QUICK.model_copy(update={"compile": True}))
    np.testing.assert_allclose(
        [one["loss"] for one in compiled], [one["loss"] for one in plain], rtol=0.05
    )


def test_a_stopped_run_ends_in_the_bits_of_the_unbroken_one(
    clip: ClipModel, scenes: SyntheticSet, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with compute.computing(inference="fp32", deterministic=True):
        whole, log = _align(clip, scenes, tmp_path / "a")
        taken = []

        def stop_at_four(self: Checkpoints) -> bool:
            taken.append(1)
            if len(taken) == 4:
                os.kill(os.getpid(), 2)
            return False

        with monkeypatch.context() as patch:
            patch.setattr(Checkpoints, "due", stop_at_four)
            with pytest.raises(Interrupted):
                _align(clip, scenes, tmp_path / "b")
        assert _align(clip, scenes, tmp_path / "b") == (whole, log)


def test_a_loss_that_is_not_finite_names_its_step_and_samples(
    clip: ClipModel, scenes: SyntheticSet, tmp_path: Path
) -> None:
    labels = scenes.labels
    assert labels is not None
    task = PatchingTask(samples=scenes, prompts=PLAIN, class_names=labels.class_names)
    settings = FinetuneSettings(epochs=2, batch_size=8, lr=1e30, clip_norm=None)
    with pytest.raises(TrainingError, match=r"step \d+ of 10: the loss is .*batch: .*-"):
        finetune(clip, [task], settings, tmp_path)
