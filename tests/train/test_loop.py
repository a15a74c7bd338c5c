"""The training loop: schedule, checkpoints, exact resume, signals, accumulation, precision."""

from __future__ import annotations

import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import settings as examples
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from fakes import metrics_of
from terralign.datasets.batches import Plan
from terralign.errors import Interrupted, RecipeError, StorageError, TrainingError
from terralign.feed import Raw
from terralign.train.checkpoints import Checkpoints
from terralign.train.loop import (
    Batch,
    FitResult,
    LoopSettings,
    fit,
    learning_rate,
    parameter_groups,
)

SETTINGS = LoopSettings(epochs=3, batch_size=4, lr=0.01, weight_decay=0.1, warmup_steps=2)
NUM_STEPS = 12  # 14 samples in batches of up to 4


class _Points:
    """14 points and their targets, in batches."""

    def __init__(self, batch_size: int = 4, spoiled: int | None = None) -> None:
        generator = torch.Generator().manual_seed(5)
        self.x = torch.randn(14, 6, generator=generator)
        self.y = torch.randn(14, 2, generator=generator)
        if spoiled is not None:
            self.y[spoiled] = math.nan
        self.plan = Plan([14], batch_size=batch_size, seed=1)
        self.prepared: list[int] = []

    @property
    def steps_per_epoch(self) -> int:
        return self.plan.steps_per_epoch

    def read(self, step: int) -> Raw[int]:
        return Raw(step, {})

    def make(self, raw: Raw[int]) -> Batch:
        step = raw.known
        self.prepared.append(step)
        indices = self.plan.batch(step).indices
        keys = [f"point-{index}" for index in indices]
        return Batch(keys=keys, pixels=self.x[indices], targets=self.y[indices])


def _network(dropout: float = 0.5) -> nn.Module:
    with torch.random.fork_rng():
        torch.manual_seed(3)
        return nn.Sequential(
            nn.Linear(6, 8), nn.LayerNorm(8), nn.ReLU(), nn.Dropout(dropout), nn.Linear(8, 2)
        )


class _Learner(nn.Module):
    """Mean squared error; `at` runs before the loss of its step (0-based) is computed."""

    def __init__(self, module: nn.Module, at: dict[int, Callable[[], None]] | None = None) -> None:
        super().__init__()
        self.module, self.at, self.step, self.first = module, at or {}, -1, ""

    def forward(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        if batch.keys[0] != self.first:  # no part of the batch before
            self.step, self.first = self.step + 1, batch.keys[0]
        act = self.at.pop(self.step, None)
        if act is not None:
            act()
        assert batch.targets is not None
        loss = F.mse_loss(self.module(batch.pixels).float(), batch.targets)
        return loss, {"error": loss}


def _fit(
    folder: Path,
    *,
    module: nn.Module | None = None,
    at: dict[int, Callable[[], None]] | None = None,
    settings: LoopSettings = SETTINGS,
    batches: _Points | None = None,
    validate: Callable[[], float] | None = None,
    identity: str = "a",
) -> tuple[dict[str, Tensor], FitResult]:
    module = module or _network()
    torch.manual_seed(torch.seed() % 2**31)  # whatever the state was before does not matter
    result = fit(
        _Learner(module, at), batches or _Points(), settings, folder,
        identity={"what": identity}, seed=7, label="toy", validate=validate,
    )  # fmt: skip
    return {key: value.clone() for key, value in module.state_dict().items()}, result


def _equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


@pytest.fixture
def every_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """A checkpoint after every step."""
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)


def _stop() -> None:
    os.kill(os.getpid(), signal.SIGINT)


# Schedule and parameters


@examples(max_examples=50, deadline=None)
@given(num_steps=st.integers(1, 200), share=st.floats(0, 0.99))
def test_the_rate_warms_up_and_then_follows_a_cosine_over_exactly_the_run(
    num_steps: int, share: float
) -> None:
    warmup = int(share * num_steps)
    settings = LoopSettings(lr=2.0, warmup_steps=warmup)
    rates = [
        learning_rate(step, num_steps=num_steps, settings=settings) for step in range(num_steps)
    ]
    assert rates[:warmup] == pytest.approx([2.0 * (i + 1) / warmup for i in range(warmup)])
    assert rates[warmup] == pytest.approx(2.0)
    assert all(a > b for a, b in zip(rates[warmup:], rates[warmup + 1 :], strict=False))
    assert min(rates) > 0
    after = learning_rate(num_steps, num_steps=num_steps, settings=settings)
    assert after == pytest.approx(0, abs=1e-12)
    half = warmup + (num_steps - warmup) / 2
    assert learning_rate(half, num_steps=num_steps, settings=settings) == pytest.approx(1.0)  # type: ignore[arg-type]


def test_vectors_are_not_decayed() -> None:
    module = _network()
    module[0].requires_grad_(False)
    decayed, plain = parameter_groups(module, 0.3)
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.3, 0.0)
    assert [p is module[4].weight for p in decayed["params"]] == [True]
    names = {id(value): name for name, value in module.named_parameters()}
    assert [names[id(p)] for p in plain["params"]] == ["1.weight", "1.bias", "4.bias"]


def test_all_parameters_may_be_decayed_alike() -> None:
    """As plain AdamW does, PAINT's and WiSE-FT's."""
    module = _network()
    group, scalars = parameter_groups(module, 0.3, "all")
    assert not scalars["params"]
    plain = torch.optim.AdamW(module.parameters(), weight_decay=0.3).param_groups[0]
    assert group["weight_decay"] == 0.3
    assert [id(p) for p in group["params"]] == [id(p) for p in plain["params"]]


def test_decay_of_all_reaches_norms_and_biases(tmp_path: Path) -> None:
    weights = {}
    for decay in ("matrices", "all"):
        settings = SETTINGS.model_copy(update={"decay": decay, "weight_decay": 0.5})
        module = _network(dropout=0)
        _fit(tmp_path / decay, module=module, settings=settings)
        weights[decay] = dict(module.named_parameters())
    norms = [weights[decay]["1.weight"].norm() for decay in ("matrices", "all")]
    assert norms[1] < norms[0]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"decay": "all", "weight_decay": 0.0}, 'decay = "all" has no effect'),
        ({"warmup_steps": NUM_STEPS}, "warmup_steps = 12, but the run has only 12 steps"),
        ({"keep": "best"}, "needs validation data"),
        ({"validate_every": 2}, "validate_every has no effect"),
    ],
)
def test_settings_without_effect_are_refused(
    tmp_path: Path, change: dict[str, Any], said: str
) -> None:
    with pytest.raises(RecipeError, match=said):
        _fit(tmp_path, settings=SETTINGS.model_copy(update=change))
    assert list(tmp_path.iterdir()) == []


# Resuming


@pytest.fixture(scope="module")
def uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> tuple[dict[str, Tensor], Path]:
    folder = tmp_path_factory.mktemp("uninterrupted")
    return _fit(folder)[0], folder


def test_an_uninterrupted_run_logs_every_step(
    uninterrupted: tuple[dict[str, Tensor], Path],
) -> None:
    weights, folder = uninterrupted
    rows = metrics_of(folder)
    assert [row["step"] for row in rows] == list(range(1, NUM_STEPS + 1))
    assert {"loss", "error", "lr", "gradient_norm"} <= rows[0].keys()
    assert not _equal(weights, _network().state_dict())


@pytest.mark.parametrize("step", range(NUM_STEPS))
def test_stopping_at_any_step_and_resuming_reproduces_the_uninterrupted_run(
    tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], Path], step: int
) -> None:
    weights, folder = uninterrupted
    with pytest.raises(Interrupted, match=f"after step {step + 1} of {NUM_STEPS} and saved"):
        _fit(tmp_path, at={step: _stop})
    batches = _Points()
    resumed, result = _fit(tmp_path, batches=batches)
    assert result.resumed_at == step + 1
    assert _equal(resumed, weights)
    assert metrics_of(tmp_path) == metrics_of(folder)
    assert sorted(batches.prepared) == list(range(step + 1, NUM_STEPS))  # nothing done again


@pytest.mark.usefixtures("every_step")
@pytest.mark.parametrize("step", [0, 1, 5, 6, NUM_STEPS - 1])
def test_a_crash_between_checkpoints_and_resuming_reproduces_the_uninterrupted_run(
    tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], Path], step: int
) -> None:
    weights, folder = uninterrupted

    def crash() -> None:
        raise OSError("the machine went away")

    with pytest.raises(OSError, match="the machine went away"):
        _fit(tmp_path, at={step: crash})
    resumed, result = _fit(tmp_path)
    assert result.resumed_at == step
    assert _equal(resumed, weights)
    assert metrics_of(tmp_path) == metrics_of(folder)


@pytest.mark.usefixtures("every_step")
def test_lines_after_the_checkpoint_are_dropped(
    tmp_path: Path, uninterrupted: tuple[dict[str, Tensor], Path]
) -> None:
    """As after a kill: the log is ahead of the checkpoint, and its last line is cut short."""
    weights, folder = uninterrupted
    early = tmp_path / "early.pt"
    last = tmp_path / "run" / "last.pt"

    def copy() -> None:
        while torch.load(last, weights_only=True)["step"] < 6:  # a thread is writing it
            time.sleep(0.01)
        shutil.copy(last, early)

    _fit(tmp_path / "run", at={6: copy})
    shutil.copy(early, last)
    with open(tmp_path / "run" / "metrics.jsonl", "a") as log:
        log.write('{"step": 13, "lo')
    resumed, result = _fit(tmp_path / "run")
    assert result.resumed_at == 6
    assert _equal(resumed, weights)
    assert metrics_of(tmp_path / "run") == metrics_of(folder)


def test_a_complete_run_is_not_done_again(tmp_path: Path) -> None:
    weights, _ = _fit(tmp_path)
    batches = _Points()
    again, result = _fit(tmp_path, batches=batches)
    assert _equal(again, weights)
    assert result.resumed_at == result.num_steps == NUM_STEPS
    assert batches.prepared == []


def test_dropout_is_drawn_from_the_restored_state(tmp_path: Path) -> None:
    """Without the saved RNG state the resumed run would differ: the test above could not fail."""
    with pytest.raises(Interrupted):
        _fit(tmp_path, at={4: _stop})
    state = torch.load(tmp_path / "last.pt", weights_only=True)
    state["rng"] = torch.manual_seed(99).get_state()
    torch.save(state, tmp_path / "last.pt")
    changed, _ = _fit(tmp_path)
    right, _ = _fit(tmp_path / "right")
    assert not _equal(changed, right)


def test_threads_of_the_first_run_are_used_again(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with pytest.raises(Interrupted):
        _fit(tmp_path, at={4: _stop})
    torch.set_num_threads(2)
    with caplog.at_level("WARNING", logger="terralign"):
        _fit(tmp_path)
    assert torch.get_num_threads() == 1
    assert "resuming with as many threads as before: 1" in caplog.text


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_signals_save_and_stop(tmp_path: Path, number: signal.Signals) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Interrupted) as stopped:
        _fit(tmp_path, at={3: lambda: os.kill(os.getpid(), number)})
    assert stopped.value.signal_number == number
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 4
    assert signal.getsignal(number) is before


def test_a_second_sigint_does_not_wait(tmp_path: Path) -> None:
    def twice() -> None:
        _stop()
        _stop()

    with pytest.raises(KeyboardInterrupt):
        _fit(tmp_path, at={3: twice})


def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    _fit(tmp_path)
    for other in (
        {"settings": SETTINGS.model_copy(update={"lr": 0.02})},
        {"identity": "b"},
    ):
        with pytest.raises(RecipeError, match=r"last\.pt is of other settings or data"):
            _fit(tmp_path, **other)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "damage",
    [
        lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
        lambda path: path.write_bytes(b""),
        lambda path: path.write_text("not a checkpoint"),
        lambda path: torch.save([1, 2], path),
        lambda path: torch.save({"weights": torch.zeros(2)}, path),
    ],
)
def test_a_damaged_checkpoint_is_told_in_one_line(
    tmp_path: Path, damage: Callable[[Path], object]
) -> None:
    _fit(tmp_path)
    damage(tmp_path / "last.pt")
    with pytest.raises(StorageError, match=r"last\.pt is damaged") as told:
        _fit(tmp_path)
    assert "\n" not in str(told.value)
    assert "delete it to start this stage again" in str(told.value)


# Faults


@pytest.mark.usefixtures("every_step")
def test_a_loss_that_is_not_finite_names_step_batch_and_checkpoint(tmp_path: Path) -> None:
    batches = _Points(spoiled=9)
    step = next(s for s in range(4) if 9 in batches.plan.batch(s).indices)
    assert step > 0
    with pytest.raises(TrainingError) as told:
        _fit(tmp_path, batches=batches)
    said = str(told.value)
    assert f"step {step + 1} of {NUM_STEPS}" in said
    assert "the loss is nan" in said
    assert "point-9" in said
    assert str(tmp_path / "last.pt") in said
    kept = torch.load(tmp_path / "last.pt", weights_only=True)
    assert kept["step"] == step
    assert all(bool(torch.isfinite(value).all()) for value in kept["model"].values())


def test_without_a_checkpoint_the_fault_says_so(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match="last good checkpoint: none yet"):
        _fit(tmp_path, batches=_Points(spoiled=9))


def test_a_checkpoint_that_cannot_be_written_leaves_the_last_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Checkpoints, "due", lambda self: True)
    save, count = torch.save, [0]

    def full(value: Any, path: Path) -> None:
        count[0] += 1
        if count[0] > 3:
            Path(path).write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(value, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(StorageError, match="no space left while writing"):
        _fit(tmp_path)
    monkeypatch.undo()
    assert torch.load(tmp_path / "last.pt", weights_only=True)["step"] == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["last.pt", "metrics.jsonl"]


# Accumulation, precision, modes


@pytest.mark.parametrize("parts", [2, 3, 4, 9])
def test_accumulating_gives_the_gradient_of_the_whole_batch(tmp_path: Path, parts: int) -> None:
    """Also where the parts are uneven, or more than the samples."""
    whole, _ = _fit(tmp_path / "whole", module=_network(dropout=0))
    settings = SETTINGS.model_copy(update={"accumulate": parts})
    split, _ = _fit(tmp_path / "split", module=_network(dropout=0), settings=settings)
    for key, value in whole.items():
        torch.testing.assert_close(split[key], value, rtol=1e-4, atol=1e-5)
    for one, other in zip(
        metrics_of(tmp_path / "whole"), metrics_of(tmp_path / "split"), strict=True
    ):
        assert one == pytest.approx(other, rel=1e-3, abs=1e-5)


def test_bfloat16_runs_and_keeps_float32_weights(tmp_path: Path) -> None:
    seen = []
    module = _network()
    module[0].register_forward_hook(lambda layer, x, y: seen.append((x[0].dtype, y.dtype)))
    settings = SETTINGS.model_copy(update={"precision": "bf16"})
    weights, _ = _fit(tmp_path, module=module, settings=settings)
    assert set(seen) == {(torch.float32, torch.bfloat16)}
    assert {value.dtype for value in weights.values()} == {torch.float32}
    plain, _ = _fit(tmp_path / "plain")
    assert not _equal(weights, plain)
    for key, value in plain.items():
        torch.testing.assert_close(weights[key], value, rtol=0.2, atol=0.05)


def test_the_gradient_is_clipped(tmp_path: Path) -> None:
    norms = []

    def record(optimizer: torch.optim.Optimizer, args: Any, kwargs: Any) -> None:
        values = [p.grad for group in optimizer.param_groups for p in group["params"]]
        norms.append(float(torch.stack([value.norm() for value in values]).norm()))

    handle = register_optimizer_step_pre_hook(record)
    try:
        _fit(tmp_path, settings=SETTINGS.model_copy(update={"clip_norm": 0.01}))
    finally:
        handle.remove()
    assert norms == pytest.approx([0.01] * NUM_STEPS, rel=1e-3)
    assert min(row["gradient_norm"] for row in metrics_of(tmp_path)) > 0.01  # logged unclipped


def test_the_best_weights_on_validation_are_kept(tmp_path: Path) -> None:
    """Validation values of steps 2, 4, ...: the best one is that of step 6."""
    settings = SETTINGS.model_copy(update={"keep": "best", "validate_every": 2})
    module, seen = _network(), []
    values = iter([0.1, 0.2, 0.9, 0.3, 0.9, 0.1])

    def validate() -> float:
        seen.append({key: value.clone() for key, value in module.state_dict().items()})
        module.eval()
        return next(values)

    kept, result = _fit(tmp_path, module=module, settings=settings, validate=validate)
    assert result.best == 0.9
    assert _equal(kept, seen[2])
    validations = [row["validation"] for row in metrics_of(tmp_path) if "validation" in row]
    assert validations == [0.1, 0.2, 0.9, 0.3, 0.9, 0.1]
    # Called again, the complete stage gives the same weights without a validation.
    again, result = _fit(tmp_path, settings=settings, validate=lambda: 1.0)
    assert _equal(again, kept)
    assert result.best == 0.9


def test_keeping_the_best_resumes_exactly(tmp_path: Path) -> None:
    settings = SETTINGS.model_copy(update={"keep": "best", "validate_every": 3})

    def run(folder: Path, at: dict[int, Callable[[], None]] | None = None) -> dict[str, Tensor]:
        module = _network()

        def validate() -> float:
            module.eval()
            return -float(F.mse_loss(module(_Points().x), _Points().y).detach())

        return _fit(folder, module=module, at=at, settings=settings, validate=validate)[0]

    whole = run(tmp_path / "whole")
    for step in (1, 2, 7):
        folder = tmp_path / f"stopped-{step}"
        with pytest.raises(Interrupted):
            run(folder, at={step: _stop})
        assert _equal(run(folder), whole)
        assert metrics_of(folder) == metrics_of(tmp_path / "whole")


def test_tensorboard_is_written_where_it_is_installed(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    module = _network()
    fit(
        _Learner(module), _Points(), SETTINGS, tmp_path,
        identity={}, seed=0, label="toy", tensorboard=True,
    )  # fmt: skip
    assert list(tmp_path.glob("events.out.tfevents.*"))
