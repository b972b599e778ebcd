from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch

from tests.training.faces import tiny_experiment
from training.config import Experiment
from training.schedules import epochs_without_improvement, learning_rate_at, stops_early

STEPS = 10
"""Steps of an epoch."""


def experiment_with(kind: str, *, epochs: int = 10, max_lr: float = 0.5, **schedule: Any) -> Experiment:
    return tiny_experiment(optim__epochs=epochs, optim__max_lr=max_lr, schedule={"kind": kind, **schedule})


def rates(experiment: Experiment) -> list[float]:
    return [learning_rate_at(experiment, step, STEPS) for step in range(STEPS * experiment.optim.epochs)]


@pytest.mark.parametrize("warmup", [0.1, 0.25, 0.8])
def test_one_cycle_rises_from_a_25th_to_its_peak_and_falls_to_nothing(warmup: float) -> None:
    found = rates(experiment_with("one-cycle", epochs=100, warmup_fraction=warmup))
    peak = round(1000 * warmup)
    assert found[0] == pytest.approx(0.02)
    assert found[peak] == pytest.approx(0.5)
    assert found[-1] < 0.5 / 1000
    assert all(after > before for before, after in itertools.pairwise(found[: peak + 1]))
    assert all(after < before for before, after in itertools.pairwise(found[peak:]))
    assert found[peak // 2] == pytest.approx((0.02 + 0.5) / 2)
    assert found[(1000 + peak) // 2] == pytest.approx(0.25)


def test_one_cycle_is_torchs() -> None:
    """Torch puts the last of the steps at the end of the fall; ours stops one before it."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    cycle = torch.optim.lr_scheduler.OneCycleLR(
        optimizer, 0.5, total_steps=102, pct_start=26 / 102, div_factor=25, final_div_factor=1e9
    )
    theirs = []
    for _ in range(100):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step()
    assert rates(experiment_with("one-cycle")) == pytest.approx(theirs, abs=0.008)


def test_no_warmup_begins_at_the_peak() -> None:
    assert rates(experiment_with("one-cycle", warmup_fraction=0.0))[0] == 0.5
    assert rates(experiment_with("warmup-plateau-cosine", warmup_fraction=0.0))[0] == 0.5


def test_constant_is_constant() -> None:
    assert set(rates(experiment_with("constant"))) == {0.5}


def test_step_is_torchs() -> None:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    steps = torch.optim.lr_scheduler.StepLR(optimizer, step_size=3, gamma=0.2)
    theirs = []
    for _ in range(10):
        theirs += [optimizer.param_groups[0]["lr"]] * STEPS
        optimizer.step()
        steps.step()
    assert rates(experiment_with("step", step_size_epochs=3, gamma=0.2)) == pytest.approx(theirs)


def test_warmup_plateau_cosine_by_hand() -> None:
    found = rates(experiment_with("warmup-plateau-cosine", warmup_fraction=0.2, plateau_fraction=0.3, min_lr=0.1))
    assert found[:20] == pytest.approx([0.5 * step / 20 for step in range(1, 21)])
    assert found[20:51] == pytest.approx([0.5] * 31)
    assert found[75] == pytest.approx((0.5 + 0.1) / 2)
    assert all(after < before for before, after in itertools.pairwise(found[51:]))
    assert 0.1 < found[-1] < 0.101


def plateau_rates(losses: list[float], **schedule: Any) -> list[float]:
    experiment = experiment_with("plateau", **schedule)
    return [learning_rate_at(experiment, epoch * STEPS, STEPS, losses[:epoch]) for epoch in range(len(losses) + 1)]


@pytest.mark.parametrize("patience", [0, 1, 3])
def test_plateau_is_torchs(patience: int) -> None:
    generator = torch.Generator().manual_seed(patience)
    losses = (2 / torch.arange(1, 41) + 0.3 * torch.rand(40, generator=generator)).tolist()
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=0.5)
    plateau = torch.optim.lr_scheduler.ReduceLROnPlateau(
        optimizer, factor=0.5, patience=patience, threshold=1e-4, threshold_mode="abs", eps=0
    )
    theirs = [0.5]
    for loss in losses:
        plateau.step(loss)
        theirs.append(optimizer.param_groups[0]["lr"])
    found = plateau_rates(losses, gamma=0.5, patience_epochs=patience)
    assert found == pytest.approx(theirs)
    assert len(set(found)) > 3


def test_plateau_by_hand() -> None:
    # With a patience of 1 the second epoch without a new low lowers the rate; a fall by 0.00005 is none.
    losses = [1.0, 0.9, 0.95, 0.89995, 0.91, 0.92, 0.5, 0.6]
    expected = [0.5, 0.5, 0.5, 0.5, 0.05, 0.05, 0.005, 0.005, 0.005]
    assert plateau_rates(losses, patience_epochs=1) == pytest.approx(expected)
    floored = plateau_rates(losses, patience_epochs=1, min_lr=0.02)
    assert floored == pytest.approx([max(rate, 0.02) for rate in expected])


def test_no_kind_goes_under_its_floor_or_over_its_peak() -> None:
    for kind in ("one-cycle", "constant", "step", "plateau", "warmup-plateau-cosine"):
        found = rates(experiment_with(kind, min_lr=0.01, step_size_epochs=1, warmup_fraction=0.5))
        assert max(found) <= 0.5
        assert min(found) >= (0.0 if kind == "warmup-plateau-cosine" else 0.01), kind


def test_epochs_without_improvement_counts_from_the_last_low() -> None:
    assert epochs_without_improvement([]) == 0
    assert epochs_without_improvement([1.0, 0.5]) == 0
    assert epochs_without_improvement([1.0, 0.5, 0.6, 0.49995]) == 2
    assert epochs_without_improvement([1.0, 0.5, float("nan")]) == 1


def test_early_stopping_waits_for_its_patience_and_is_off_by_default() -> None:
    losses = [1.0, 0.5, 0.6, 0.7]
    assert not stops_early(experiment_with("constant"), losses * 9)
    assert not stops_early(experiment_with("constant", early_stop_epochs=3), losses)
    assert stops_early(experiment_with("constant", early_stop_epochs=2), losses)
