"""Stage 1's gradients."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from fakes import assert_resumes_exactly, losses_of
from terralign.chips import PixelLayout
from terralign.datasets.sample import Labels
from terralign.datasets.synthetic import SyntheticSet
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import hash_state
from terralign.encoders.zeroshot import PromptSet
from terralign.errors import RecipeError
from terralign.preprocess import Photometric
from terralign.sensors import SENSORS
from terralign.train.finetune import (
    FinetuneSettings,
    PatchingTask,
    finetune,
    is_batch_norm,
    reestimate_batch_norm,
    select_trainable,
    train_mode,
    training_pictures,
)

QUICK = FinetuneSettings(epochs=2, batch_size=8, lr=1e-3)
NUM_STEPS = 10
PLAIN = PromptSet(name="plain", templates=("{}",))

GOLDEN = [
    1.18746, 1.47495, 1.03983, 0.63263, 0.77824, 0.37662, 0.54645, 0.5146, 0.24101, 0.62582,
    0.59268, 0.65207, 0.28959, 0.05328, 0.3179, 0.30786, 0.60923, 0.29745, 0.03025, 0.7532,
]  # fmt: skip


def _changed(before: dict[str, Tensor], after: dict[str, Tensor]) -> set[str]:
    return {key for key, value in before.items() if not torch.equal(value, after[key])}


def test_finetuning_moves_the_tower_and_leaves_the_clip(
    tiny_clip: ClipModel, task: PatchingTask, tmp_path: Path
) -> None:
    before = hash_state(tiny_clip.model.state_dict())
    theta_0 = tiny_clip.visual.state_dict()
    theta_1 = finetune(tiny_clip, [task], QUICK, tmp_path)
    assert hash_state(tiny_clip.model.state_dict()) == before
    assert _changed(theta_0, theta_1) == set(theta_0)
    losses = losses_of(tmp_path)
    assert len(losses) == NUM_STEPS
    assert losses[-1] < losses[0]


@dataclass(frozen=True, kw_only=True)
class _Noise:
    """40 pictures of coloured noise in three classes, from numpy's stable generator alone."""

    name: str = "noise"
    split: str = "train"
    captions: None = None
    prompts: None = None
    fingerprint: str = "noise-1"
    keys: tuple[str, ...] = tuple(f"noise-{number}" for number in range(40))

    @property
    def layouts(self) -> dict[str, PixelLayout]:
        rgb = SENSORS["rgb"]
        composite = rgb.composite("as-is")
        layout = PixelLayout(sensor=rgb, bands=rgb.band_names, units="dn", composite=composite)
        return {"rgb": layout}

    @property
    def labels(self) -> Labels:
        values = np.arange(40, dtype=np.int64) % 3
        return Labels(values=values, class_names=("red", "green", "blue"), class_list="noise")

    def __len__(self) -> int:
        return 40

    def read(self, indices: NDArray[np.int64]) -> dict[str, NDArray[np.generic]]:
        pixels = np.random.default_rng(0).integers(0, 160, (40, 3, 32, 32))
        pixels[np.arange(40), np.arange(40) % 3] += 60
        return {"rgb": pixels[indices].astype(np.uint8)}


def test_golden_loss_curve_of_twenty_steps(tiny_clip: ClipModel, tmp_path: Path) -> None:
    """Recorded; a change of batches, augmentation, loss, schedule or optimiser shows here."""
    settings = FinetuneSettings(
        epochs=4, batch_size=8, lr=1e-3, warmup_steps=4, weight_decay=0.1,
        photometric=Photometric(),
    )  # fmt: skip
    names = ("red", "green", "blue")
    task = PatchingTask(samples=_Noise(), prompts=PLAIN, class_names=names)
    finetune(tiny_clip, [task], settings, tmp_path, seed=3)
    assert losses_of(tmp_path) == pytest.approx(GOLDEN, rel=1e-3)


def test_parts_of_a_batch_need_no_picture_to_preserve_on(
    tiny_clip: ClipModel, task: PatchingTask, photos: SyntheticSet, tmp_path: Path
) -> None:
    """Two pictures for four parts: the loss is that of the whole batch."""
    found = []
    for accumulate in (1, 4):
        settings = FinetuneSettings(
            epochs=1, batch_size=8, lr=1e-5, preserve_unlabelled=1.0, preserve_batch_size=2,
            accumulate=accumulate,
        )  # fmt: skip
        folder = tmp_path / str(accumulate)
        finetune(tiny_clip, [task], settings, folder, preserve_on=photos)
        found.append(losses_of(folder))
    assert found[0] == pytest.approx(found[1], rel=1e-4)


@pytest.mark.parametrize("step", [0, 3, NUM_STEPS - 1])
def test_resuming_is_exact_with_every_part_of_a_run(
    tiny_clip: ClipModel,
    task: PatchingTask,
    many_label_task: PatchingTask,
    photos: SyntheticSet,
    tmp_path: Path,
    step: int,
) -> None:
    """Two tasks, calibration scalars, photometric draws, pictures to preserve on."""
    settings = FinetuneSettings(
        epochs=1, batch_size=8, lr=1e-3, preserve=1.0, preserve_unlabelled=1.0,
        preserve_batch_size=4,
        photometric=Photometric(),
    )  # fmt: skip
    tasks = [task, many_label_task]

    def run(folder: Path) -> str:
        return hash_state(finetune(tiny_clip, tasks, settings, folder, preserve_on=photos))

    assert_resumes_exactly(run, tmp_path, step, message=f"after step {step + 1} of {NUM_STEPS}")


@pytest.mark.parametrize("parts", [3, 4])
def test_accumulation_gives_the_same_tower(
    tiny_clip: ClipModel, task: PatchingTask, photos: SyntheticSet, tmp_path: Path, parts: int
) -> None:
    """Also with pictures to preserve on, of another number than the batch."""
    settings = QUICK.model_copy(
        update={"preserve_unlabelled": 5.0, "preserve_batch_size": 6, "lr": 1e-4, "epochs": 1}
    )
    one = finetune(tiny_clip, [task], settings, tmp_path / "one", preserve_on=photos)
    settings = settings.model_copy(update={"accumulate": parts})
    several = finetune(tiny_clip, [task], settings, tmp_path / "n", preserve_on=photos)
    assert losses_of(tmp_path / "n") == pytest.approx(losses_of(tmp_path / "one"), rel=1e-4)
    for key, value in one.items():
        torch.testing.assert_close(several[key], value, rtol=1e-3, atol=1e-4)


def test_preserving_keeps_embeddings_closer(
    tiny_clip: ClipModel, task: PatchingTask, photos: SyntheticSet, tmp_path: Path
) -> None:
    def drift(name: str, **change: Any) -> float:
        given = {"preserve_on": photos} if change else {}
        settings = QUICK.model_copy(update=change)
        theta = finetune(tiny_clip, [task], settings, tmp_path / name, **given)
        visual = copy.deepcopy(tiny_clip.visual)
        visual.load_state_dict(theta)
        pictures = torch.randn(16, 3, 32, 32, generator=torch.Generator().manual_seed(0))
        with torch.no_grad():
            near = F.cosine_similarity(visual(pictures), tiny_clip.visual(pictures))
        return 1 - float(near.mean())

    assert drift("kept", preserve_unlabelled=50.0) < drift("free")


def test_only_the_parameters_named_are_trained(
    tiny_clip: ClipModel, task: PatchingTask, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"trainable": ("proj", "ln_post.*")})
    theta_1 = finetune(tiny_clip, [task], settings, tmp_path)
    changed = _changed(tiny_clip.visual.state_dict(), theta_1)
    assert changed == {"proj", "ln_post.weight", "ln_post.bias"}


def test_frozen_parameters_stay_bit_for_bit(
    tiny_clip: ClipModel, task: PatchingTask, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(
        update={"frozen": ("positional_embedding",), "weight_decay": 0.5, "decay": "all"}
    )
    theta_1 = finetune(tiny_clip, [task], settings, tmp_path)
    theta_0 = tiny_clip.visual.state_dict()
    assert _changed(theta_0, theta_1) == set(theta_0) - {"positional_embedding"}


def test_frozen_batch_norms_keep_their_statistics(
    norm_clip: ClipModel, task: PatchingTask, tmp_path: Path
) -> None:
    theta_0 = norm_clip.visual.state_dict()
    statistics = {key for key in theta_0 if "running_" in key or "num_batches" in key}
    assert statistics
    one_epoch = QUICK.model_copy(update={"epochs": 1})
    frozen = finetune(norm_clip, [task], one_epoch, tmp_path / "frozen")
    assert _changed(theta_0, frozen) == set(theta_0) - statistics
    trained = finetune(
        norm_clip, [task], one_epoch.model_copy(update={"batch_norm": "train"}), tmp_path / "t"
    )
    assert statistics <= _changed(theta_0, trained)


def test_reestimated_statistics_are_those_of_the_pictures(norm_clip: ClipModel) -> None:
    visual = copy.deepcopy(norm_clip.visual)
    generator = torch.Generator().manual_seed(0)
    pictures = [torch.randn(8, 3, 32, 32, generator=generator) + 1 for _ in range(3)]
    first = next(layer for layer in visual.modules() if is_batch_norm(layer))
    seen: list[Tensor] = []
    handle = first.register_forward_pre_hook(lambda layer, inputs: seen.append(inputs[0]))
    reestimate_batch_norm(visual, pictures)
    handle.remove()
    assert isinstance(first, nn.BatchNorm2d)
    expected = torch.stack([one.mean((0, 2, 3)) for one in seen]).mean(0)
    torch.testing.assert_close(first.running_mean, expected)
    assert first.momentum == 0.1  # as before
    assert not visual.training
    again = copy.deepcopy(visual)
    reestimate_batch_norm(again, pictures)
    assert _changed(visual.state_dict(), again.state_dict()) == set()


def test_reestimating_draws_nothing() -> None:
    module = nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3))
    before = torch.get_rng_state()
    reestimate_batch_norm(module, [torch.ones(2, 3, 4, 4)])
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(module[1].running_mean, torch.ones(3))


def test_pictures_for_statistics_are_those_of_training(
    norm_clip: ClipModel, task: PatchingTask
) -> None:
    pictures = training_pictures(norm_clip, [task], QUICK, num_batches=2, seed=0)
    assert [tuple(one.shape) for one in pictures] == [(8, 3, 32, 32)] * 2
    assert len(training_pictures(norm_clip, [task], QUICK, num_batches=99, seed=0)) == 5


def test_train_mode_leaves_frozen_norms_in_eval_mode(norm_clip: ClipModel) -> None:
    visual = copy.deepcopy(norm_clip.visual)
    train_mode(visual, frozen_batch_norm=True)
    assert visual.training
    assert not any(layer.training for layer in visual.modules() if is_batch_norm(layer))
    train_mode(visual, frozen_batch_norm=False)
    assert all(layer.training for layer in visual.modules())


def test_bfloat16_runs(tiny_clip: ClipModel, task: PatchingTask, tmp_path: Path) -> None:
    settings = QUICK.model_copy(update={"precision": "bf16", "epochs": 1})
    theta = finetune(tiny_clip, [task], settings, tmp_path / "bf16")
    assert {value.dtype for value in theta.values()} == {torch.float32}
    finetune(tiny_clip, [task], QUICK.model_copy(update={"epochs": 1}), tmp_path / "fp32")
    assert losses_of(tmp_path / "bf16") == pytest.approx(losses_of(tmp_path / "fp32"), rel=0.05)


def test_multi_label_tasks_start_calibrated(
    tiny_clip: ClipModel, many_label_task: PatchingTask, tmp_path: Path
) -> None:
    finetune(tiny_clip, [many_label_task], QUICK, tmp_path / "calibrated")
    settings = QUICK.model_copy(update={"loss": "bce"})
    finetune(tiny_clip, [many_label_task], settings, tmp_path / "plain")
    calibrated, plain = losses_of(tmp_path / "calibrated")[0], losses_of(tmp_path / "plain")[0]
    assert calibrated < 0.75
    assert plain > calibrated


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": "bce"}, "'bce' does not fit synthetic-scenes, which is single-label"),
        ({"trainable": ("transformer.resblock.*",)}, "matches no parameter"),
        ({"trainable": ()}, "trainable names no parameter"),
        ({"frozen": ("pos_embedding",)}, "frozen pattern 'pos_embedding' matches no parameter"),
        ({"frozen": ("*",)}, "leave no parameter to train"),
        ({"keep": "best"}, "needs validation data"),
        ({"warmup_steps": NUM_STEPS}, "has only 10 steps"),
    ],
)
def test_settings_without_effect_are_refused(
    tiny_clip: ClipModel, task: PatchingTask, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        finetune(tiny_clip, [task], QUICK.model_copy(update=change), tmp_path)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"loss": "cross_entropy"}, "which is multi-label; use calibrated_bce or bce"),
        ({"label_smoothing": 0.1}, "label_smoothing has no effect on multi-label data"),
    ],
)
def test_settings_without_effect_on_multi_label_data_are_refused(
    tiny_clip: ClipModel,
    many_label_task: PatchingTask,
    tmp_path: Path,
    change: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(RecipeError, match=said):
        finetune(tiny_clip, [many_label_task], QUICK.model_copy(update=change), tmp_path)


def test_pictures_to_preserve_on_need_a_weight(
    tiny_clip: ClipModel, task: PatchingTask, photos: SyntheticSet, tmp_path: Path
) -> None:
    with pytest.raises(RecipeError, match="preserve_on \\(its pictures\\) need one another"):
        finetune(tiny_clip, [task], QUICK, tmp_path, preserve_on=photos)


def test_a_checkpoint_of_other_data_is_refused(
    tiny_clip: ClipModel, task: PatchingTask, validation: PatchingTask, tmp_path: Path
) -> None:
    finetune(tiny_clip, [task], QUICK, tmp_path)
    with pytest.raises(RecipeError, match="of other settings or data"):
        finetune(tiny_clip, [validation], QUICK, tmp_path)
    with pytest.raises(RecipeError, match="of other settings or data"):
        finetune(tiny_clip, [task], QUICK, tmp_path, seed=1)


def test_select_trainable_takes_wildcards() -> None:
    network = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    select_trainable(network, ["1.*"])
    trained = [name for name, value in network.named_parameters() if value.requires_grad]
    assert trained == ["1.weight", "1.bias"]
