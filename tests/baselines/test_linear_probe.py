"""Linear probing, then fine-tuning."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from colours import colours_task
from fakes import assert_resumes_exactly, losses_of
from terralign.baselines.linear_probe import (
    LinearHead,
    LinearProbeResult,
    LinearProbeSettings,
    evaluate_linear_head,
    probe_then_finetune,
)
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.clip.weights import hash_state
from terralign.encoders.space import EmbeddingSpace
from terralign.errors import DataError, RecipeError
from terralign.evaluation.classification import evaluate_zero_shot
from terralign.train.finetune import FinetuneSettings, PatchingTask, finetune

QUICK = LinearProbeSettings(epochs=2, probe_epochs=1, batch_size=8, lr=1e-3, probe_lr=1e-2)


def _hash(result: LinearProbeResult) -> str:
    heads = [head.state_dict() for head in (*result.probe_heads, *result.heads)]
    return " ".join(hash_state(state) for state in (*heads, result.finetuned))


def test_a_head_of_zero_shot_weights_is_zero_shot_classification(
    tiny_clip: ClipModel, validation: PatchingTask
) -> None:
    head = LinearHead(validation.weights(tiny_clip), scale=tiny_clip.logit_scale)
    found = evaluate_linear_head(tiny_clip, head, validation.samples)
    space = EmbeddingSpace(tiny_clip)
    expected = evaluate_zero_shot(
        space, validation.samples, prompts=validation.prompts, tower="rgb"
    )
    assert found.value("top1") == expected.result.value("top1")
    features = torch.randn(5, tiny_clip.dim, generator=torch.Generator().manual_seed(0))
    by_hand = tiny_clip.logit_scale * F.normalize(features, dim=-1) @ head.weight.T
    torch.testing.assert_close(head(features), by_hand)


@pytest.mark.parametrize("multi_label", [False, True])
def test_it_learns_what_it_is_not_shown(
    tiny_clip: ClipModel, tmp_path: Path, multi_label: bool
) -> None:
    """First the head alone, then with the tower; each part helps on held-out pictures."""
    before = hash_state(tiny_clip.model.state_dict())
    train, held_out = (colours_task(s, multi_label=multi_label).samples for s in ("train", "val"))
    task = colours_task("train", multi_label=multi_label)
    metric = "macro_map" if multi_label else "top1"
    settings = LinearProbeSettings(epochs=4, probe_epochs=2, batch_size=10, lr=1e-3, probe_lr=3e-3)
    found = probe_then_finetune(tiny_clip, [task], settings, tmp_path)
    start = LinearHead(task.weights(tiny_clip), scale=tiny_clip.logit_scale)
    tuned = tiny_clip.with_visual(found.finetuned, source="tuned")
    values = [
        evaluate_linear_head(clip, head, held_out).value(metric)
        for clip, head in (
            (tiny_clip, start), (tiny_clip, found.probe_heads[0]), (tuned, found.heads[0])
        )
    ]  # fmt: skip
    assert values[0] < values[1]
    assert values[2] > max(0.9, values[0])
    assert losses_of(tmp_path / "finetune")[-1] < losses_of(tmp_path / "probe")[0]
    assert hash_state(tiny_clip.model.state_dict()) == before
    assert evaluate_linear_head(tuned, found.heads[0], train).value(metric) > 0.9


def test_the_first_part_trains_the_head_alone(
    tiny_clip: ClipModel, task: PatchingTask, tmp_path: Path
) -> None:
    """A second part that moves nothing leaves the tower as it was, and the head as probed."""
    settings = QUICK.model_copy(update={"lr": 1e-12})
    found = probe_then_finetune(tiny_clip, [task], settings, tmp_path)
    for key, value in tiny_clip.visual.state_dict().items():
        torch.testing.assert_close(found.finetuned[key], value, rtol=0, atol=1e-8)
    weights = task.weights(tiny_clip)
    assert not torch.allclose(found.probe_heads[0].weight, weights, atol=1e-3)
    torch.testing.assert_close(found.heads[0].weight, found.probe_heads[0].weight)


def test_both_parts_see_the_batches_of_fine_tuning(
    tiny_clip: ClipModel, task: PatchingTask, tmp_path: Path
) -> None:
    """With rates near zero: the losses of two epochs of fine-tuning, step by step."""
    settings = QUICK.model_copy(update={"lr": 1e-9, "probe_lr": 1e-9})
    probe_then_finetune(tiny_clip, [task], settings, tmp_path)
    same = FinetuneSettings(epochs=2, batch_size=8, lr=1e-9)
    finetune(tiny_clip, [task], same, tmp_path / "tower")
    both = losses_of(tmp_path / "probe") + losses_of(tmp_path / "finetune")
    expected = losses_of(tmp_path / "tower")
    assert both == pytest.approx(expected, rel=1e-4)
    assert expected[:5] != pytest.approx(expected[5:], rel=1e-4)


@pytest.mark.parametrize("step", [0, 9, 10, 15])
def test_resuming_is_exact_in_both_parts(
    tiny_clip: ClipModel,
    task: PatchingTask,
    many_label_task: PatchingTask,
    tmp_path: Path,
    step: int,
) -> None:
    def run(folder: Path) -> str:
        return _hash(probe_then_finetune(tiny_clip, [task, many_label_task], QUICK, folder))

    assert_resumes_exactly(run, tmp_path, step, message=f"after step {step % 10 + 1} of 10")


@pytest.mark.parametrize(("within_budget", "num_steps"), [(True, 5), (False, 10)])
def test_the_budget_holds_both_parts_or_the_second(
    tiny_clip: ClipModel,
    task: PatchingTask,
    tmp_path: Path,
    within_budget: bool,
    num_steps: int,
) -> None:
    settings = QUICK.model_copy(update={"within_budget": within_budget})
    probe_then_finetune(tiny_clip, [task], settings, tmp_path)
    assert len(losses_of(tmp_path / "probe")) == 5
    assert len(losses_of(tmp_path / "finetune")) == num_steps


def test_frozen_batch_norms_and_named_parameters(
    norm_clip: ClipModel, task: PatchingTask, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"trainable": ("attnpool.*",)})
    found = probe_then_finetune(norm_clip, [task], settings, tmp_path)
    state = norm_clip.visual.state_dict()
    changed = {key for key, value in state.items() if not torch.equal(value, found.finetuned[key])}
    assert changed
    assert all(key.startswith("attnpool.") for key in changed)


def test_a_head_serves_its_own_task_only(tiny_clip: ClipModel, validation: PatchingTask) -> None:
    with pytest.raises(DataError, match="the head has 2 classes, synthetic-scenes"):
        evaluate_linear_head(tiny_clip, LinearHead(torch.eye(2, 32), scale=1.0), validation.samples)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"epochs": 1}, "probe_epochs = 1 leaves none of epochs = 1"),
        ({"label_smoothing": 0.1}, "no effect on multi-label data"),
        ({"trainable": ("nothing.*",)}, "matches no parameter"),
        ({"warmup_steps": 5}, "the run has only 5 steps"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tiny_clip: ClipModel,
    many_label_task: PatchingTask,
    tmp_path: Path,
    change: dict[str, Any],
    said: str,
) -> None:
    with pytest.raises(RecipeError, match=said):
        probe_then_finetune(tiny_clip, [many_label_task], QUICK.model_copy(update=change), tmp_path)


def test_kept_heads_are_no_longer_trained(
    tiny_clip: ClipModel, task: PatchingTask, tmp_path: Path
) -> None:
    found = probe_then_finetune(tiny_clip, [task], QUICK, tmp_path)
    heads: list[Tensor] = [head.weight for head in (*found.probe_heads, *found.heads)]
    assert not any(weight.requires_grad for weight in heads)
    assert not torch.equal(heads[0], heads[1])
