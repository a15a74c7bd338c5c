"""Losses by hand on small matrices."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from terralign.train.losses import (
    LOSSES,
    Calibration,
    Context,
    cosine,
    cosines,
    infonce,
    kl,
    label_loss,
    mse,
    mse_normalised,
)
from terralign.train.settings import FEATURE_LOSSES, PAPER_LOSSES

STUDENT = torch.tensor([[3.0, 4.0], [0.0, 2.0]])
TEACHER = torch.tensor([[1.0, 0.0], [0.0, 5.0]])
CONTEXT = Context(scale=2.0, anchors=torch.eye(2))
# Normalised: student (0.6, 0.8), (0, 1); teacher (1, 0), (0, 1). Cosines: 0.6 and 1.


def test_mse_is_a_mean_over_samples_and_dimensions() -> None:
    assert float(mse(STUDENT, TEACHER, CONTEXT)) == pytest.approx((4 + 16 + 0 + 9) / 4)


def test_normalised_mse_is_summed_over_dimensions() -> None:
    expected = ((0.4**2 + 0.8**2) + 0) / 2
    assert float(mse_normalised(STUDENT, TEACHER, CONTEXT)) == pytest.approx(expected)
    assert expected == pytest.approx(2 - (0.6 + 1))  # 2 - 2 mean cos


def test_cosine_loss_is_one_minus_the_mean_cosine() -> None:
    assert float(cosine(STUDENT, TEACHER, CONTEXT)) == pytest.approx(1 - 0.8)


def test_infonce_by_hand() -> None:
    # cosines [[0.6, 0.8], [0, 1]], times 2
    rows = (math.log1p(math.exp(0.4)) + math.log1p(math.exp(-2.0))) / 2
    columns = (math.log1p(math.exp(-1.2)) + math.log1p(math.exp(-0.4))) / 2
    assert float(infonce(STUDENT, TEACHER, CONTEXT)) == pytest.approx((rows + columns) / 2)


def test_infonce_is_symmetric() -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = torch.randn(5, 3, generator=generator), torch.randn(5, 3, generator=generator)
    there, back = infonce(a, b, CONTEXT), infonce(b, a, CONTEXT)
    torch.testing.assert_close(there, back)


def test_kl_by_hand() -> None:
    def softmax(a: float, b: float) -> tuple[float, float]:
        first = 1 / (1 + math.exp(b - a))
        return first, 1 - first

    teacher, student = softmax(2.0, 0.0), softmax(1.2, 1.6)
    first = sum(t * math.log(t / s) for t, s in zip(teacher, student, strict=True))
    assert float(kl(STUDENT, TEACHER, CONTEXT)) == pytest.approx(first / 2, rel=1e-5)


@pytest.mark.parametrize("name", ["mse", "mse_normalised", "cosine", "kl"])
def test_equal_features_cost_nothing(name: str) -> None:
    assert float(LOSSES[name](STUDENT, STUDENT, CONTEXT)) == pytest.approx(0, abs=1e-6)


@pytest.mark.parametrize("name", ["mse_normalised", "cosine", "infonce", "kl"])
def test_losses_of_directions_ignore_length(name: str) -> None:
    loss = LOSSES[name]
    torch.testing.assert_close(loss(7 * STUDENT, TEACHER, CONTEXT), loss(STUDENT, TEACHER, CONTEXT))


def test_every_loss_is_a_mean_over_samples() -> None:
    """Twice the same batch costs the same; InfoNCE, which needs distinct rows, apart."""
    for name, loss in LOSSES.items():
        if name != "infonce":
            once = loss(STUDENT, TEACHER, CONTEXT)
            twice = loss(STUDENT.repeat(2, 1), TEACHER.repeat(2, 1), CONTEXT)
            torch.testing.assert_close(once, twice)


def test_the_papers_losses() -> None:
    assert PAPER_LOSSES == {"mse": 1.0, "label": 0.05}


def test_cross_entropy_on_scaled_cosines() -> None:
    loss = label_loss(STUDENT, torch.eye(2), torch.tensor([0, 1]), scale=2.0)
    expected = (math.log1p(math.exp(0.4)) + math.log1p(math.exp(-2.0))) / 2
    assert float(loss) == pytest.approx(expected)


def test_label_smoothing_moves_the_cross_entropy() -> None:
    plain = label_loss(STUDENT, torch.eye(2), torch.tensor([1, 1]), scale=2.0)
    smooth = label_loss(STUDENT, torch.eye(2), torch.tensor([1, 1]), scale=2.0, label_smoothing=0.2)
    # 0.9 on the right class and 0.1 on the other: plus 0.1 times the mean margin (0.4 + 2) / 2
    assert float(smooth - plain) == pytest.approx(0.1 * 1.2, rel=1e-4)


def _sigmoid_loss(logit: float, wanted: bool) -> float:
    return math.log1p(math.exp(-logit if wanted else logit))


def test_binary_cross_entropy_averages_samples_and_classes() -> None:
    labels = torch.tensor([[True, False], [False, True]])
    loss = label_loss(STUDENT, torch.eye(2), labels, scale=2.0)
    parts = [(1.2, True), (1.6, False), (0.0, False), (2.0, True)]
    expected = sum(_sigmoid_loss(logit, wanted) for logit, wanted in parts) / 4
    assert float(loss) == pytest.approx(expected, rel=1e-5)


def test_calibrated_loss_goes_through_its_two_scalars() -> None:
    calibration = Calibration(2.0, base_rate=0.5, mean_cosine=0.25)  # bias -0.5
    labels = torch.tensor([[True, False], [False, True]])
    loss = label_loss(STUDENT, torch.eye(2), labels, scale=100.0, calibration=calibration)
    parts = [(0.7, True), (1.1, False), (-0.5, False), (1.5, True)]
    expected = sum(_sigmoid_loss(logit, wanted) for logit, wanted in parts) / 4
    assert float(loss.detach()) == pytest.approx(expected, rel=1e-5)
    loss.backward()
    assert all(value.grad is not None for value in calibration.parameters())


@pytest.mark.parametrize("base_rate", [0.02, 0.15, 0.6])
def test_calibration_starts_at_the_base_rate(base_rate: float) -> None:
    calibration = Calibration(20.0, base_rate=base_rate, mean_cosine=0.22)
    started = float(torch.sigmoid(calibration(torch.tensor(0.22)).detach()))
    assert started == pytest.approx(base_rate, rel=1e-3)
    # The plain logits of a CLIP would start every class near 1.
    assert float(torch.sigmoid(torch.tensor(100 * 0.22))) > 0.999


def test_calibration_of_labels_that_are_all_absent_is_finite() -> None:
    assert bool(torch.isfinite(Calibration(20.0, base_rate=0.0, mean_cosine=0.2).bias))


@pytest.mark.parametrize("what", ["infonce", "kl", "label"])
def test_logits_keep_their_precision_under_autocast(what: str) -> None:
    generator = torch.Generator().manual_seed(0)
    a, b = (torch.randn(6, 16, generator=generator) for _ in range(2))
    anchors = torch.nn.functional.normalize(torch.randn(5, 16, generator=generator), dim=-1)
    context = Context(scale=100.0, anchors=anchors)

    def value() -> Tensor:
        if what == "label":
            return label_loss(a, anchors, torch.arange(6) % 5, scale=100.0)
        return LOSSES[what](a, b, context)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        inside = value()
    assert torch.equal(inside, value())


def test_cosines_by_hand() -> None:
    torch.testing.assert_close(cosines(STUDENT, TEACHER), torch.tensor([[0.6, 0.8], [0.0, 1.0]]))


def test_settings_know_the_feature_losses_by_name() -> None:
    assert tuple(LOSSES) == FEATURE_LOSSES
