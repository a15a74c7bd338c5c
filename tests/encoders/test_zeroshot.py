"""Zero-shot weights equal open_clip's own, and caches never mix up what they hold."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import open_clip
import pytest
import torch
from torch import Tensor

from terralign.encoders import zeroshot
from terralign.encoders.clip import text_tower
from terralign.encoders.clip.load import ClipModel, load_clip, new_clip
from terralign.encoders.zeroshot import (
    OPENAI_IMAGENET,
    PromptSet,
    as_class_names,
    as_prompts,
    embed_text,
    load_prompts,
    openai_imagenet_names,
    prompt_set_names,
    zero_shot_weights,
)
from terralign.errors import DataError, RecipeError

CLASSES = ("annual crop", "forest", "sea or lake")
PROMPTS = PromptSet(name="two", templates=("a photo of {}.", "{} from above"))


@pytest.fixture(autouse=True)
def _empty_cache(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(zeroshot, "_cache", {})


def theirs(clip: ClipModel, templates: tuple[str, ...]) -> Tensor:
    with torch.inference_mode():
        built = open_clip.build_zero_shot_classifier(clip.model, clip.tokenizer, CLASSES, templates)
    return built.T


@pytest.mark.parametrize("prompts", [PROMPTS, load_prompts("satellite"), load_prompts("plain")])
def test_weights_equal_open_clips_own(tiny_clip: ClipModel, prompts: PromptSet) -> None:
    weights = zero_shot_weights(tiny_clip, CLASSES, prompts)
    assert weights.shape == (3, 32)
    assert weights.dtype == torch.float32
    torch.testing.assert_close(weights, theirs(tiny_clip, prompts.templates), atol=1e-6, rtol=0)


@pytest.mark.realdata
def test_weights_of_micro_clip_equal_open_clips_own(real_data: Path) -> None:
    clip = load_clip(str(real_data / "micro-clip"))
    prompts = load_prompts("satellite")
    weights = zero_shot_weights(clip, CLASSES, prompts)
    torch.testing.assert_close(weights, theirs(clip, prompts.templates), atol=1e-6, rtol=0)


def test_openai_templates_are_those_of_open_clip(tiny_clip: ClipModel) -> None:
    prompts = load_prompts(OPENAI_IMAGENET)
    expected = [template("heron") for template in open_clip.OPENAI_IMAGENET_TEMPLATES]
    assert [template.replace("{}", "heron") for template in prompts.templates] == expected
    assert len(openai_imagenet_names()) == 1000


def test_text_embeddings_do_not_depend_on_the_batch_size(tiny_clip: ClipModel) -> None:
    texts = [f"a photo of {name}" for name in CLASSES]
    together = embed_text(tiny_clip, texts)
    torch.testing.assert_close(together, embed_text(tiny_clip, texts, batch_size=2))
    torch.testing.assert_close(together.norm(dim=1), torch.ones(3))


LONG = "a satellite picture of a wide river between fields, forests, towns and roads in spring"
"""Of 17 tokens and those that begin and end it; the tiny CLIP takes 16."""


def test_a_text_longer_than_the_context_is_warned_of_once(
    tiny_clip: ClipModel, caplog: pytest.LogCaptureFixture
) -> None:
    assert tiny_clip.tokenizer.context_length == 16  # type: ignore[attr-defined]
    fits = " ".join(["river"] * 14)
    embed_text(tiny_clip, ["forest", fits])
    assert caplog.records == []
    long = [LONG, fits + " delta", "x, " * 40]
    embed_text(tiny_clip, [*["forest"] * 5, *long], batch_size=3)
    (record,) = caplog.records
    said = record.getMessage()
    assert "longer than the 16 tokens" in said
    assert f"{LONG[:57]}..." in said
    assert f"({len(tiny_clip.tokenizer.encode(LONG)) + 2} tokens), and 2 more" in said  # type: ignore[attr-defined]


def test_a_very_long_word_is_refused_since_tokenizers_square_its_length(
    tiny_clip: ClipModel,
) -> None:
    with pytest.raises(DataError, match=r"has a word of 1,001 characters.*word_characters="):
        embed_text(tiny_clip, ["forest", "a " + "x" * 1001])
    embed_text(tiny_clip, ["forest", "a " + "x" * 1000])


def test_a_prompt_longer_than_the_context_is_named(
    tiny_clip: ClipModel, caplog: pytest.LogCaptureFixture
) -> None:
    zero_shot_weights(tiny_clip, ["forest", LONG], PROMPTS)
    (record,) = caplog.records
    assert f"a photo of {LONG}"[:57] in record.getMessage()
    assert "and 1 more" in record.getMessage()


def test_names_that_are_alike_are_warned_of_save_in_openais_list(
    tiny_clip: ClipModel, caplog: pytest.LogCaptureFixture
) -> None:
    bare = PromptSet(name="bare", templates=("{}",))
    zero_shot_weights(tiny_clip, ("Farm  land", "farm land", "sea"), bare)
    assert "'Farm  land' and 'farm land' are the same text but for case" in caplog.text
    caplog.clear()
    assert len(set(openai_imagenet_names())) < 1000
    zero_shot_weights(tiny_clip, openai_imagenet_names(), bare)
    assert "the same text" not in caplog.text


def test_texts_that_fit_are_not_counted_again(
    tiny_clip: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(text_tower, "_count_tokens", None)  # counting would fail
    embed_text(tiny_clip, ["a river", "forest " * 12])


@pytest.mark.parametrize("texts", [[""], ["forest", " \n"], ["forest", "\u200b"]])
def test_an_empty_text_is_refused(tiny_clip: ClipModel, texts: list[str]) -> None:
    with pytest.raises(RecipeError, match=f"text {len(texts)} of {len(texts)} is empty"):
        embed_text(tiny_clip, texts)
    with pytest.raises(RecipeError, match=f"class name {len(texts)} of {len(texts)} is empty"):
        zero_shot_weights(tiny_clip, texts, PROMPTS)


@pytest.mark.parametrize("texts", [[], [1], ["a", None]])
def test_what_is_no_text_is_refused(tiny_clip: ClipModel, texts: list[str]) -> None:
    with pytest.raises(RecipeError, match="list of at least one string"):
        embed_text(tiny_clip, texts)


def test_no_class_is_refused(tiny_clip: ClipModel) -> None:
    with pytest.raises(RecipeError, match="at least one class name"):
        zero_shot_weights(tiny_clip, [], PROMPTS)


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        (None, "labels = None; give a list"),
        (5, "labels = 5; give a list"),
        (["a", None], "label None is no text"),
        ((one for one in ("a", None)), "label None is no text"),
        (["a", 1.5], r"label 1\.5 is no text"),
        (["a", "b", " a"], "label ' a' is given more than once"),
        (["a"], "at least two class names"),
        ("forest", "one text, 'forest'"),
        ({"a": "a wood", "b": "a lake"}, "give a list"),
    ],
)
def test_what_is_no_list_of_class_names_is_refused(labels: Any, said: str) -> None:
    with pytest.raises(DataError, match=said):
        as_class_names(labels)


@pytest.mark.parametrize(
    ("prompts", "said"),
    [
        (3, "prompts = 3; give the name of a prompt set"),
        ([], "has no template"),
        (["no braces"], r"every template needs one \{\}, 'no braces' has not"),
        ([3], "the template 3 is not text"),
        (["{}", None], "the template None is not text"),
        ({"{}": 1}, "give the name of a prompt set"),
    ],
)
def test_what_is_no_prompt_set_is_refused(prompts: Any, said: str) -> None:
    with pytest.raises(RecipeError, match=said):
        as_prompts(prompts)


def test_many_texts_show_how_far_they_are(
    tiny_clip: ClipModel, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr("terralign.progress.SECONDS_BETWEEN_LINES", 0.0)
    texts = [f"field {number}" for number in range(300)]
    embed_text(tiny_clip, texts[:256])
    assert caplog.messages == []
    embed_text(tiny_clip, texts)
    assert [one.partition(",")[0] for one in caplog.messages] == [
        "texts: 256 of 300 texts",
        "texts: 300 of 300 texts",
    ]


def test_the_same_question_is_answered_from_the_cache(
    tiny_clip: ClipModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = zero_shot_weights(tiny_clip, CLASSES, PROMPTS)
    renamed = PromptSet(name="other name", templates=PROMPTS.templates)
    monkeypatch.setattr(zeroshot, "embed_text", None)  # embedding again would fail
    assert torch.equal(zero_shot_weights(tiny_clip, list(CLASSES), renamed), first)


def test_another_template_class_or_text_tower_is_another_answer(
    tiny_clip: ClipModel, tiny_clip_config: dict[str, object]
) -> None:
    first = zero_shot_weights(tiny_clip, CLASSES, PROMPTS)
    changed = PromptSet(name="two", templates=("a photo of {}!", "{} from above"))
    assert not torch.equal(zero_shot_weights(tiny_clip, CLASSES, changed), first)
    swapped = zero_shot_weights(tiny_clip, CLASSES[::-1], PROMPTS)
    torch.testing.assert_close(swapped.flip(0), first)
    other = new_clip(tiny_clip_config, tiny_clip.preprocess_cfg, seed=0)
    same = zero_shot_weights(other, CLASSES, PROMPTS)
    assert torch.equal(same, first)
    with torch.no_grad():
        other.model.token_embedding.weight.add_(0.1 * torch.rand(32))  # type: ignore[union-attr, operator]
    assert not torch.equal(zero_shot_weights(other, CLASSES, PROMPTS), first)


def test_another_rgb_tower_shares_the_cache(
    tiny_clip: ClipModel, tiny_clip_config: dict[str, object], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = zero_shot_weights(tiny_clip, CLASSES, PROMPTS)
    other = new_clip(tiny_clip_config, tiny_clip.preprocess_cfg, seed=9)
    patched = tiny_clip.with_visual(other.visual.state_dict(), source="patched")
    monkeypatch.setattr(zeroshot, "embed_text", None)  # embedding again would fail
    assert torch.equal(zero_shot_weights(patched, CLASSES, PROMPTS), first)


def test_the_cache_on_disk_is_read_and_named_by_hash(
    tiny_clip: ClipModel, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = zero_shot_weights(tiny_clip, CLASSES, PROMPTS, cache_dir=tmp_path)
    assert len(list(tmp_path.iterdir())) == 1
    monkeypatch.setattr(zeroshot, "_cache", {})
    monkeypatch.setattr(zeroshot, "embed_text", None)  # embedding again would fail
    again = zero_shot_weights(tiny_clip, CLASSES, PROMPTS, cache_dir=tmp_path)
    assert torch.equal(again, first)
    with pytest.raises(TypeError):
        zero_shot_weights(tiny_clip, CLASSES[:2], PROMPTS, cache_dir=tmp_path)


def test_prompt_sets_ship_by_name() -> None:
    assert prompt_set_names() == sorted(
        ["photo", "plain", "satellite", "satellite-centered", OPENAI_IMAGENET]
    )
    for name in prompt_set_names():
        assert load_prompts(name).name == name
    with pytest.raises(RecipeError, match="unknown prompt set 'satelite'; did you mean 'satell"):
        load_prompts("satelite")


def test_a_prompt_file_of_ones_own_loads(tmp_path: Path) -> None:
    (tmp_path / "mine.toml").write_text('templates = ["ein Bild von {}"]', encoding="utf-8")
    prompts = load_prompts(str(tmp_path / "mine.toml"))
    assert prompts == PromptSet(name="mine", templates=("ein Bild von {}",))
    description = prompts.describe()
    assert description["templates"] == ["ein Bild von {}"]
    assert description["hash"] != PROMPTS.describe()["hash"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b'templates = "a photo of {}"', "needs templates ="),
        (b'template = ["{}"]', "needs templates ="),
        (b"templates = [1]", "needs templates ="),
        (b"templates = [" + b"'{}'," * 10_001 + b"]", "10,001 templates, more than the limit"),
        (b"templates = ['{}" + b"-" * 1000 + b"']", r"mine\.toml has a word of 1,002 characters"),
        (b'templates = ["{}"]\nname = "x"', "unknown key 'name'"),
        (b"templates = []", "has no template"),
        (b'templates = ["a photo"]', "every template needs one {}, 'a photo' has not"),
        (b'templates = ["{} and {}"]', "every template needs one {}"),
        (b"templates = [", "is not valid TOML"),
        (b"\xff", "is not UTF-8 text"),
    ],
)
def test_a_prompt_file_that_is_wrong_is_told(tmp_path: Path, content: bytes, said: str) -> None:
    (tmp_path / "mine.toml").write_bytes(content)
    with pytest.raises(RecipeError, match=said):
        load_prompts(str(tmp_path / "mine.toml"))


def test_a_missing_prompt_file_is_told(tmp_path: Path) -> None:
    with pytest.raises(RecipeError, match=r"cannot read prompt set .*mine\.toml"):
        load_prompts(str(tmp_path / "mine.toml"))
