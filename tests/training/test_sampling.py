from __future__ import annotations

import pytest
import torch

from training.config import LossConfig
from training.sampling import epoch_order

LABELS = torch.tensor([0] * 600 + [2] * 300 + [3] * 30)
"""Three classes of very different size; nobody has label 1."""


def order(sampler: str, seed: int = 0) -> torch.Tensor:
    config = LossConfig.model_validate({"sampler": sampler})
    return epoch_order(LABELS, config, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("sampler", ["shuffled", "weighted"])
def test_an_epoch_is_as_long_as_the_set_and_the_seed_decides_it(sampler: str) -> None:
    first, again, other = order(sampler), order(sampler), order(sampler, seed=1)
    assert first.dtype == torch.int64
    assert len(first) == len(LABELS)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_shuffled_shows_each_face_once() -> None:
    assert torch.equal(order("shuffled").sort().values, torch.arange(len(LABELS)))
    assert not torch.equal(order("shuffled"), torch.arange(len(LABELS)))


def test_weighted_shows_each_class_equally_often_on_average() -> None:
    shown = torch.stack([LABELS[order("weighted", seed)].bincount(minlength=4) for seed in range(40)]).double()
    mean = shown.mean(0)
    assert mean[1] == 0
    # 930 draws at a third: a standard deviation of 14.4, over 40 epochs of 2.3.
    assert mean[[0, 2, 3]].tolist() == pytest.approx([310, 310, 310], abs=9)


def test_weighted_shows_the_faces_of_a_class_equally_often_on_average() -> None:
    times = torch.stack([order("weighted", seed).bincount(minlength=len(LABELS)) for seed in range(40)]).sum(0)
    rare = times[LABELS == 3].double()
    assert rare.min() > 0
    # 40 · 310 / 30 = 413 each, with a standard deviation of 20.
    assert rare.tolist() == pytest.approx([413] * 30, abs=80)
