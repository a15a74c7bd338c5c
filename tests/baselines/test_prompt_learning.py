"""Prompt learning (CoOp)."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from colours import colours_task
from fakes import assert_resumes_exactly, losses_of
from terralign.baselines import prompt_learning as module
from terralign.baselines.prompt_learning import (
    LearnedPrompts,
    PromptLearningSettings,
    evaluate_learned_prompts,
    learn_prompts,
    place_context,
    token_embedding,
)
from terralign.encoders.clip.load import ClipModel, new_clip
from terralign.encoders.clip.weights import hash_state
from terralign.encoders.zeroshot import PromptSet, zero_shot_weights
from terralign.errors import ModelError, RecipeError
from terralign.train.finetune import FinetuneSettings, PatchingTask, finetune

QUICK = PromptLearningSettings(epochs=1, batch_size=8, lr=0.02, num_tokens=4)
NAMES = ("forest", "annual crop", "x-ray lab")


def _words(clip: ClipModel, text: str) -> Tensor:
    """The token embeddings of a text without its first, last and padding tokens."""
    tokens = clip.tokenizer([text])[0]
    inner = tokens[1 : int(tokens.argmax())]
    return token_embedding(clip).weight.detach()[inner]


def _learned(clip: ClipModel, context: Tensor, suffix: str = "") -> LearnedPrompts:
    return LearnedPrompts(context=context, class_names=None, suffix=suffix, text_id=clip.text_id())


@pytest.fixture(scope="module", params=["clip", "custom", "siglip-like", "pad-masked"])
def text_clip(request: pytest.FixtureRequest, tiny_clip_config: dict[str, Any]) -> ClipModel:
    """open_clip's two ways of holding a text tower, and its ways of masking and pooling."""
    change: dict[str, Any] = {
        "clip": {},
        "custom": {},
        "siglip-like": {"no_causal_mask": True, "pool_type": "last", "proj_bias": True},
        "pad-masked": {"embed_cls": True, "pool_type": "last"},
    }[request.param]
    config = {**tiny_clip_config, "text_cfg": {**tiny_clip_config["text_cfg"], **change}}
    if request.param != "clip":
        config["custom_text"] = True
    return new_clip(config, {"mean": [0.5] * 3, "std": [0.25] * 3}, seed=0)


def test_a_context_of_words_gives_the_weights_of_that_prompt(text_clip: ClipModel) -> None:
    """The oracle: the same words as an ordinary prompt."""
    context = _words(text_clip, "a photo of a")
    assert context.shape == (4, 32)
    prompts = PromptSet(name="photo", templates=("a photo of a {}.",))
    expected = zero_shot_weights(text_clip, NAMES, prompts)
    found = _learned(text_clip, context, ".").zero_shot_weights(text_clip, NAMES, batch_size=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)
    other = _learned(text_clip, context.flip(0), ".").zero_shot_weights(text_clip, NAMES)
    assert not torch.allclose(other, expected, atol=1e-3)


def test_a_context_for_each_class_is_that_class_s(tiny_clip: ClipModel) -> None:
    contexts = torch.stack([_words(tiny_clip, t) for t in ("a field of", "one new old", "x y z")])
    learned = LearnedPrompts(
        context=contexts, class_names=NAMES, suffix="", text_id=tiny_clip.text_id()
    )
    found = learned.zero_shot_weights(tiny_clip, (NAMES[2], NAMES[0]), batch_size=1)
    for row, name, words in ((0, NAMES[2], "x y z"), (1, NAMES[0], "a field of")):
        prompts = PromptSet(name="one", templates=(f"{words} {{}}",))
        expected = zero_shot_weights(tiny_clip, [name], prompts)[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(RecipeError, match="'meadow' has no learned context"):
        learned.zero_shot_weights(tiny_clip, ("meadow",))


@pytest.mark.parametrize("context", ["unified", "class-specific"])
def test_it_learns_what_it_is_not_shown(tiny_clip: ClipModel, tmp_path: Path, context: Any) -> None:
    before = hash_state(tiny_clip.model.state_dict())
    settings = PromptLearningSettings(
        epochs=20, batch_size=10, lr=0.02, num_tokens=8, context=context
    )
    train, held_out = colours_task("train"), colours_task("val")
    start = module._initial_context(
        tiny_clip, settings, 2 if context == "class-specific" else None, 0
    )
    learned = learn_prompts(tiny_clip, [train], settings, tmp_path)
    first = dataclasses.replace(learned, context=start)
    assert evaluate_learned_prompts(tiny_clip, first, held_out).value("top1") < 0.7
    assert evaluate_learned_prompts(tiny_clip, learned, held_out).value("top1") > 0.9
    assert hash_state(tiny_clip.model.state_dict()) == before
    assert not token_embedding(tiny_clip)._forward_hooks


@pytest.mark.parametrize("context", ["unified", "class-specific"])
@pytest.mark.parametrize("step", [0, 6])
def test_resuming_is_exact(
    tiny_clip: ClipModel,
    task: PatchingTask,
    many_label_task: PatchingTask,
    tmp_path: Path,
    context: Any,
    step: int,
) -> None:
    """Two tasks, calibration scalars included."""
    settings = QUICK.model_copy(update={"context": context})

    def run(folder: Path) -> str:
        learned = learn_prompts(tiny_clip, [task, many_label_task], settings, folder)
        return hash_state({"context": learned.context})

    assert_resumes_exactly(run, tmp_path, step, message=f"after step {step + 1} of 10")


def test_it_starts_at_the_loss_of_fine_tuning_with_the_same_prompt(
    tiny_clip: ClipModel, task: PatchingTask, tmp_path: Path
) -> None:
    """The same batches and loss: with rates near zero, the same figures, step by step."""
    settings = PromptLearningSettings(
        epochs=1, batch_size=8, lr=1e-9, init="a photo of a", suffix=""
    )
    learn_prompts(tiny_clip, [task], settings, tmp_path / "prompts")
    prompts = PromptSet(name="photo", templates=("a photo of a {}",))
    same = dataclasses.replace(task, prompts=prompts)
    finetune(
        tiny_clip, [same], FinetuneSettings(epochs=1, batch_size=8, lr=1e-9), tmp_path / "tower"
    )
    losses = losses_of(tmp_path / "prompts")
    assert losses == pytest.approx(losses_of(tmp_path / "tower"), rel=1e-4)
    assert len(set(losses)) > 1


def test_accumulation_gives_the_same_context(
    tiny_clip: ClipModel, task: PatchingTask, tmp_path: Path
) -> None:
    settings = QUICK.model_copy(update={"lr": 1e-3})
    one = learn_prompts(tiny_clip, [task], settings, tmp_path / "one")
    settings = settings.model_copy(update={"accumulate": 3})
    three = learn_prompts(tiny_clip, [task], settings, tmp_path / "three")
    torch.testing.assert_close(three.context, one.context, rtol=1e-3, atol=2e-4)


# What is refused


def test_a_text_tower_without_token_embedding_is_refused(tiny_clip: ClipModel) -> None:
    class _Other(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.text = torch.nn.Linear(2, 2)

    clip = dataclasses.replace(tiny_clip, model=_Other())
    with pytest.raises(ModelError, match="learned through a Linear, which has no token_embedding"):
        token_embedding(clip)


def test_a_tokenizer_that_merges_words_is_refused(tiny_clip: ClipModel) -> None:
    def merging(texts: list[str]) -> Tensor:
        return torch.tensor([[sum(map(ord, text)), 1, 2, 3, 0, 0, 0, 0] for text in texts])

    clip = dataclasses.replace(tiny_clip, tokenizer=merging)
    with pytest.raises(ModelError, match="does not give each word of a text its own tokens"):
        place_context(clip, ["forest"], 2)


def test_class_names_that_do_not_fit_are_refused(tiny_clip: ClipModel) -> None:
    tokens, start = place_context(tiny_clip, ["forest"], 13)
    assert (tokens.shape, start) == ((1, 16), 1)
    with pytest.raises(RecipeError, match="'forest' does not fit beside 14 context tokens"):
        place_context(tiny_clip, ["forest"], 14)
    with pytest.raises(RecipeError, match="'a b c d e' does not fit beside 10"):
        place_context(tiny_clip, ["forest", "a b c d e"], 10)
    with pytest.raises(RecipeError, match="'forest' does not fit beside 99"):
        place_context(tiny_clip, ["forest"], 99)


def test_prompts_of_another_text_tower_are_refused(
    tiny_clip: ClipModel, tiny_clip_config: dict[str, Any]
) -> None:
    learned = _learned(tiny_clip, torch.zeros(2, 32))
    other = new_clip(tiny_clip_config, {"mean": [0.5] * 3, "std": [0.5] * 3}, seed=5)
    with pytest.raises(ModelError, match="another text tower"):
        learned.zero_shot_weights(other, ("forest",))
    patched = tiny_clip.with_visual(other.visual.state_dict(), source="patched")
    assert learned.zero_shot_weights(patched, ("forest",)).shape == (1, 32)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"init": "a photo of a", "num_tokens": 3}, "has 4 tokens, num_tokens is 3"),
        ({"init": " ", "num_tokens": None}, "has 0 tokens"),
        ({"loss": "bce"}, "does not fit synthetic-scenes, which is single-label"),
        ({"keep": "best"}, "needs validation data"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    tiny_clip: ClipModel, task: PatchingTask, tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        learn_prompts(tiny_clip, [task], QUICK.model_copy(update=change), tmp_path)
