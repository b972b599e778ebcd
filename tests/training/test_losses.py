from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from training.config import LossConfig
from training.losses import balanced_weights, class_counts, classification_loss, effective_number_weights, loss_weights


def logits_of(*rows: tuple[float, ...]) -> torch.Tensor:
    """Logits whose softmax are these rows; a constant more in each row changes nothing."""
    return torch.tensor(rows).log() + torch.arange(len(rows))[:, None]


def loss_of(
    probabilities: list[tuple[float, ...]],
    targets: list[tuple[float, ...]],
    weights: list[float] | None = None,
    **config: Any,
) -> float:
    weighing = None if weights is None else torch.tensor(weights)
    loss = classification_loss(logits_of(*probabilities), torch.tensor(targets), LossConfig(**config), weighing)
    assert loss.shape == ()
    return float(loss)


def test_cross_entropy_of_one_hot_and_of_soft_targets() -> None:
    # -ln 0.7 = 0.35667, -ln 0.2 = 1.60944
    assert loss_of([(0.7, 0.2, 0.1)], [(1, 0, 0)]) == pytest.approx(0.35667, abs=1e-5)
    assert loss_of([(0.7, 0.2, 0.1)], [(0.5, 0.5, 0)]) == pytest.approx((0.35667 + 1.60944) / 2, abs=1e-5)
    assert loss_of([(0.7, 0.2, 0.1), (0.1, 0.2, 0.7)], [(1, 0, 0), (0, 1, 0)]) == pytest.approx(0.98306, abs=1e-5)


def test_cross_entropy_is_torchs() -> None:
    generator = torch.Generator().manual_seed(0)
    logits, labels = torch.randn(9, 4, generator=generator), torch.arange(9) % 4
    one_hot = torch.eye(4)[labels]
    ours = classification_loss(logits, one_hot, LossConfig(), None)
    assert torch.allclose(ours, torch.nn.functional.cross_entropy(logits, labels))
    smoothed = 0.9 * one_hot + 0.1 / 4
    ours = classification_loss(logits, smoothed, LossConfig(), None)
    assert torch.allclose(ours, torch.nn.functional.cross_entropy(logits, labels, label_smoothing=0.1))


@pytest.mark.parametrize(
    ("gamma", "expected"),
    [(0.0, 0.35667), (1.0, 0.3 * 0.35667), (2.0, 0.09 * 0.35667), (0.5, math.sqrt(0.3) * 0.35667)],
)
def test_focal_loss_turns_down_what_is_known(gamma: float, expected: float) -> None:
    found = loss_of([(0.7, 0.2, 0.1)], [(1, 0, 0)], kind="focal", focal_gamma=gamma)
    assert found == pytest.approx(expected, abs=1e-5)


def test_focal_loss_of_soft_targets_is_each_class_own() -> None:
    # 0.5 · 0.3² · 0.35667 + 0.5 · 0.8² · 1.60944
    assert loss_of([(0.7, 0.2, 0.1)], [(0.5, 0.5, 0)], kind="focal") == pytest.approx(0.53107, abs=1e-5)


def test_focal_loss_ignores_the_balance_that_is_not_its_own() -> None:
    counts = torch.tensor([1, 9])
    assert loss_weights(LossConfig(kind="focal"), counts) is None
    assert loss_weights(LossConfig(), counts) is None


@pytest.mark.parametrize("kind", ["cross-entropy", "focal", "class-balanced-focal"])
@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
def test_faces_that_are_certain_have_a_finite_slope(kind: Any, gamma: float) -> None:
    logits = torch.tensor([[200.0, 0.0, 0.0], [0.0, 200.0, 0.0]], requires_grad=True)
    targets = torch.tensor([[1.0, 0.0, 0.0], [0.9, 0.05, 0.05]])
    loss = classification_loss(logits, targets, LossConfig(kind=kind, focal_gamma=gamma), torch.ones(3))
    loss.backward()  # type: ignore[no-untyped-call]
    assert math.isfinite(float(loss.detach()))
    assert logits.grad is not None
    assert bool(logits.grad.isfinite().all())


def test_counts_hold_a_class_without_faces() -> None:
    assert class_counts(torch.tensor([0, 2, 2]), 4).tolist() == [1, 0, 2, 0]


def test_balanced_weights_are_total_over_classes_times_count() -> None:
    # 8 faces, 3 classes: 8 / 3, 8 / 9, 8 / 12
    assert balanced_weights(torch.tensor([1, 3, 4])).tolist() == pytest.approx([8 / 3, 8 / 9, 2 / 3])
    assert balanced_weights(torch.tensor([2, 0, 2])).tolist() == pytest.approx([2 / 3, 0, 2 / 3])


def test_effective_numbers_of_cui_and_others() -> None:
    # β 0.9: (1 - 0.9) / (1 - 0.9) = 1 and 0.1 / 0.19 = 0.526316; times 2 / 1.526316
    assert effective_number_weights(torch.tensor([1, 2]), 0.9).tolist() == pytest.approx([1.310345, 0.689655])
    assert effective_number_weights(torch.tensor([1, 2, 0]), 0.9).tolist() == pytest.approx([1.965517, 1.034483, 0])
    assert effective_number_weights(torch.tensor([5, 500]), 0.0).tolist() == pytest.approx([1, 1])
    inverse = effective_number_weights(torch.tensor([10, 20]), 1 - 1e-12)
    assert float(inverse[0] / inverse[1]) == pytest.approx(2, rel=1e-3)


def test_class_balanced_focal_loss_by_hand() -> None:
    config = LossConfig(kind="class-balanced-focal", class_balance_beta=0.9)
    weights = loss_weights(config, torch.tensor([1, 2]))
    assert weights is not None
    # 1.310345 · 0.2² · 0.223144 and 0.689655 · 0.4² · 0.510826, their mean
    loss = classification_loss(logits_of((0.8, 0.2), (0.4, 0.6)), torch.eye(2), config, weights)
    assert float(loss) == pytest.approx((0.0116958 + 0.0563670) / 2, abs=1e-6)


def test_weights_multiply_their_class_and_the_mean_is_over_faces() -> None:
    found = loss_of([(0.7, 0.2, 0.1), (0.1, 0.2, 0.7)], [(1, 0, 0), (0, 1, 0)], [3.0, 0.5, 9.0])
    assert found == pytest.approx((3 * 0.35667 + 0.5 * 1.60944) / 2, abs=1e-5)


def test_balanced_weights_and_class_balance_multiply() -> None:
    counts = torch.tensor([1, 2])
    both = loss_weights(
        LossConfig(kind="class-balanced-focal", class_balance_beta=0.9, class_weights="balanced"), counts
    )
    assert both is not None
    assert both.tolist() == pytest.approx([1.5 * 1.310345, 0.75 * 0.689655])
    balanced = loss_weights(LossConfig(class_weights="balanced"), counts)
    assert balanced is not None
    assert balanced.tolist() == pytest.approx([1.5, 0.75])
