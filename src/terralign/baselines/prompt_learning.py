"""Prompt learning, a baseline of patching: CoOp (Zhou et al. 2022, arXiv 2109.01134).

Both towers stay frozen; a few vectors in the place of a prompt's words are trained through the text
tower, on the batches, the loss and the budget of fine-tuning. Letters: B batch, D embedding,
K classes, L tokens of a text, M context tokens, E width of the text tower's tokens.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, cast

import torch
from pydantic import Field
from torch import Tensor, nn

from terralign.datasets.sample import require_labels
from terralign.encoders.clip.load import ClipModel
from terralign.encoders.space import RGB, EmbeddingSpace
from terralign.errors import ModelError, RecipeError
from terralign.evaluation.classification import score_classes
from terralign.evaluation.embed import choose_route, embed_samples
from terralign.evaluation.metrics import MetricResult
from terralign.train.finetune import PatchingTask, PictureBatches, start_calibrations
from terralign.train.loop import Batch, fit
from terralign.train.losses import label_loss
from terralign.train.settings import PictureSettings

DEFAULT_NUM_TOKENS = 16
"""CoOp's."""


class PromptLearningSettings(PictureSettings):
    """CoOp's training."""

    lr: float = Field(default=2e-3, gt=0)
    context: Literal["unified", "class-specific"] = "unified"
    """One context for all classes, which serves new class names too; or one for each class."""
    num_tokens: int | None = Field(default=None, ge=1)
    """M, context tokens; None: as many as `init` has, without it 16 (CoOp's)."""
    init: str | None = None
    """Words that the context starts from ("a photo of a"); None: small random vectors."""
    suffix: str = "."
    """What follows the class name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class LearnedPrompts:
    """Learned context tokens: (M, E) unified, or (K, M, E), one for each of `class_names`.

    `text_id`: the text tower they belong to. They serve every RGB tower of its space.
    """

    context: Tensor
    class_names: tuple[str, ...] | None
    suffix: str
    text_id: str

    def zero_shot_weights(
        self, clip: ClipModel, class_names: Sequence[str], *, batch_size: int = 256
    ) -> Tensor:
        """W (K, D) float32, L2-normalised, on the CPU, for any class names (class-specific: for
        those learned)."""
        if clip.text_id() != self.text_id:
            raise ModelError(f"{clip.source} has another text tower than the prompts learned with")
        context = self.context
        if self.class_names is not None:
            unknown = [name for name in class_names if name not in self.class_names]
            if unknown:
                raise RecipeError(
                    f"class {unknown[0]!r} has no learned context; learn it, or use "
                    'context = "unified", which serves any class'
                )
            context = context[[self.class_names.index(name) for name in class_names]]
        texts = _Texts(clip, class_names, self.context.shape[-2], self.suffix)
        rows = []
        with torch.no_grad():
            for start in range(0, len(class_names), batch_size):
                part = slice(start, start + batch_size)
                rows.append(texts.embed(context[part] if context.ndim == 3 else context, part))
        return torch.cat(rows).cpu()


class _Texts:
    """The texts of K classes with M places for context tokens, and their embeddings."""

    def __init__(
        self, clip: ClipModel, class_names: Sequence[str], num_tokens: int, suffix: str
    ) -> None:
        self._model = cast(Any, clip.model)
        self._layer = token_embedding(clip)
        self._num_tokens = num_tokens
        tokens, self._start = place_context(clip, class_names, num_tokens, suffix)
        self._tokens = tokens.to(self._layer.weight.device)

    def embed(self, context: Tensor, part: slice = slice(None)) -> Tensor:
        """(K, D) float32, L2-normalised: the texts with context (M, E) or (K, M, E) in place."""
        tokens = self._tokens[part]
        context = context.to(tokens.device)
        with _replaced(self._layer, context.expand(len(tokens), -1, -1), self._start):
            return cast(Tensor, self._model.encode_text(tokens, normalize=True).float())


@contextmanager
def _replaced(layer: nn.Embedding, context: Tensor, start: int) -> Iterator[None]:
    """Within the block the layer gives `context` (K, M, E) from position `start` on."""

    def replace(module: nn.Module, inputs: tuple[Tensor], output: Tensor) -> Tensor:
        parts = [output[:, :start], context.to(output.dtype), output[:, start + context.shape[1] :]]
        return torch.cat(parts, dim=1)

    handle = layer.register_forward_hook(replace)
    try:
        yield
    finally:
        handle.remove()


def token_embedding(clip: ClipModel) -> nn.Embedding:
    """The layer that embeds a text's tokens: of open_clip's CLIP or of its TextTransformer."""
    text = getattr(clip.model, "text", clip.model)
    layer = getattr(text, "token_embedding", None)
    if not isinstance(layer, nn.Embedding):
        raise ModelError(
            f"{clip.source}: prompts cannot be learned through a {type(text).__name__}, which has "
            "no token_embedding; use a CLIP with a text tower of open_clip"
        )
    return layer


def place_context(
    clip: ClipModel, class_names: Sequence[str], num_tokens: int, suffix: str = ""
) -> tuple[Tensor, int]:
    """(tokens (K, L) int64, position of the first of the M context tokens).

    The context's tokens are those of a stand-in word; which positions they have is seen from what
    differs between two such words, for any tokenizer. Raises `RecipeError` where a class name
    does not fit beside the context, `ModelError` for a tokenizer that merges words.
    """
    _, start, parted = _insert(clip, ["a"], 1)
    if not parted.all():
        raise ModelError(
            f"{clip.source}: prompts cannot be learned with its tokenizer, which does not give "
            "each word of a text its own tokens"
        )
    tokens, found, fits = _insert(clip, [f"{name}{suffix}" for name in class_names], num_tokens)
    if found != start or not fits.all():
        wrong = class_names[int(fits.int().argmin())]
        raise RecipeError(
            f"class {wrong!r} does not fit beside {num_tokens} context tokens into the "
            f"{tokens.shape[1]} tokens of a text; lower num_tokens"
        )
    return tokens, start


def _insert(clip: ClipModel, names: list[str], num_tokens: int) -> tuple[Tensor, int, Tensor]:
    """(tokens (K, L) with M stand-ins, position of the first, (K,) True where all else is kept)."""
    plain = clip.tokenizer(names)
    one, other = (
        clip.tokenizer([" ".join([word] * num_tokens + [name]) for name in names])
        for word in ("x", "z")
    )
    differs = one != other
    start, length = int(differs[0].int().argmax()), plain.shape[1]
    stop = start + num_tokens
    if stop > length:
        return one, start, torch.zeros(len(names), dtype=torch.bool)
    kept = [plain[:, :start], one[:, start:stop], plain[:, start : length - num_tokens]]
    expected = torch.zeros_like(differs)
    expected[:, start:stop] = True
    return one, start, ((torch.cat(kept, 1) == one) & (differs == expected)).all(1)


class _Learner(nn.Module):
    """What is trained: the context tokens, and the scalars that are dropped afterwards."""

    def __init__(
        self,
        clip: ClipModel,
        tasks: Sequence[PatchingTask],
        settings: PromptLearningSettings,
        batches: PictureBatches,
        seed: int,
    ) -> None:
        super().__init__()
        self._clip, self._smoothing = clip, settings.label_smoothing
        names = [task.class_names for task in tasks]
        every = tuple(dict.fromkeys(name for some in names for name in some))
        specific = settings.context == "class-specific"
        self.class_names = every if specific else None
        self._rows = [[every.index(name) for name in some] for some in names]
        start = _initial_context(clip, settings, len(every) if specific else None, seed)
        self._texts = [_Texts(clip, some, start.shape[-2], settings.suffix) for some in names]
        self.context = nn.Parameter(start)
        with torch.no_grad():
            weights = [self.weights_of(number) for number in range(len(tasks))]
        self.calibrations = start_calibrations(clip, tasks, settings, batches, weights)

    def weights_of(self, number: int) -> Tensor:
        """W (K, D) of task `number` with the context as it is now."""
        own = self.context if self.class_names is None else self.context[self._rows[number]]
        return self._texts[number].embed(own)

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        assert batch.labels is not None
        with torch.no_grad():
            features = self._clip.visual(batch.pixels)
        loss = label_loss(
            features, self.weights_of(batch.source), batch.labels,
            scale=self._clip.logit_scale,
            calibration=self.calibrations.of(batch.source),
            label_smoothing=self._smoothing,
        )  # fmt: skip
        return loss, {"label": loss}


def learn_prompts(
    clip: ClipModel,
    tasks: Sequence[PatchingTask],
    settings: PromptLearningSettings,
    folder: Path,
    *,
    seed: int = 0,
) -> LearnedPrompts:
    """Context tokens trained on all tasks jointly; a task's own prompts are not used.

    `folder` takes checkpoints and `metrics.jsonl`; calling again resumes, or does nothing when the
    training is complete. `clip` is left as it is. Class-specific: classes of the same name share
    their context.
    """
    batches = PictureBatches(clip, tasks, settings, seed)
    learner = _Learner(clip, tasks, settings, batches, seed)
    learner.to(next(clip.model.parameters()).device)
    identity = {
        "stage": "prompt-learning",
        "settings": settings.model_dump(mode="json"),
        "tasks": [task.identity() for task in tasks],
        "clip": clip.anchor_id(),
    }
    fit(
        learner, batches, settings, folder,
        identity=identity, seed=seed, label="prompt learning",
    )  # fmt: skip
    return LearnedPrompts(
        context=learner.context.detach().cpu().clone(),
        class_names=learner.class_names,
        suffix=settings.suffix,
        text_id=clip.text_id(),
    )


def _initial_context(
    clip: ClipModel, settings: PromptLearningSettings, num_classes: int | None, seed: int
) -> Tensor:
    """(M, E), or (K, M, E) for `num_classes`: the words of `init`, or noise of CoOp's size."""
    layer = token_embedding(clip)
    if settings.init is None:
        leading = () if num_classes is None else (num_classes,)
        shape = (*leading, settings.num_tokens or DEFAULT_NUM_TOKENS, layer.embedding_dim)
        return 0.02 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    _, start = place_context(clip, [""], 1)
    one, other = (clip.tokenizer([f"{settings.init} {word}"])[0] for word in ("x", "z"))
    num_tokens = int((one != other).int().argmax()) - start
    if num_tokens < 1 or settings.num_tokens not in (None, num_tokens):
        raise RecipeError(
            f"init = {settings.init!r} has {max(0, num_tokens)} tokens, num_tokens is "
            f"{settings.num_tokens}; leave num_tokens out, or change the words"
        )
    words = layer.weight.detach().cpu().float()[one[start : start + num_tokens]]
    return words.clone() if num_classes is None else words.repeat(num_classes, 1, 1)


def evaluate_learned_prompts(
    clip: ClipModel, prompts: LearnedPrompts, task: PatchingTask
) -> MetricResult:
    """Zero-shot metrics of a task's samples with W from learned prompts instead of its own."""
    space = EmbeddingSpace(clip)
    embedded = embed_samples(space, task.samples, choose_route(space, task.samples, RGB)).vectors
    weights = prompts.zero_shot_weights(clip, task.class_names)
    return score_classes(embedded, weights, require_labels(task.samples))
