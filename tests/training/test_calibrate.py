from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.classifier import probabilities_of
from training.calibrate import fit_temperature, negative_log_likelihood
from training.metrics import expected_calibration_error


def drawn(temperature: float, n: int = 20_000, seed: int = 0) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Logits, and labels drawn from softmax(logits / temperature) by the Gumbel trick."""
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 3, (n, 7)).astype(np.float32)
    return logits, (logits / temperature + rng.gumbel(size=logits.shape)).argmax(1)


@pytest.mark.parametrize("temperature", [0.4, 1.0, 1.7, 4.0])
def test_temperature_of_the_labels_is_recovered(temperature: float) -> None:
    assert fit_temperature(*drawn(temperature)) == pytest.approx(temperature, rel=0.03)


@pytest.mark.parametrize("temperature", [0.4, 1.7])
def test_no_other_temperature_is_likelier(temperature: float) -> None:
    logits, labels = drawn(temperature, n=2000)
    fitted = fit_temperature(logits, labels)
    least = negative_log_likelihood(logits, labels, fitted)
    grid = np.concatenate([np.geomspace(0.05, 20, 200), fitted * np.array([0.99, 0.999, 1.001, 1.01])])
    assert all(negative_log_likelihood(logits, labels, value) >= least for value in grid)
    assert negative_log_likelihood(logits, labels, 1.0) > least + 1e-3


def test_likelihood_of_a_small_case_worked_out_by_hand() -> None:
    logits = np.log(np.array([[0.5, 0.25, 0.25], [0.1, 0.8, 0.1]], np.float32))
    labels = np.array([0, 2])
    assert negative_log_likelihood(logits, labels, 1.0) == pytest.approx(-np.log([0.5, 0.1]).mean())
    # Halving the temperature squares: 4/6 of (4, 1, 1), and 1/66 of (1, 64, 1).
    assert negative_log_likelihood(logits, labels, 0.5) == pytest.approx(-np.log([4 / 6, 1 / 66]).mean())


def test_extreme_logits_stay_finite() -> None:
    logits = np.array([[4000.0, -4000.0], [4000.0, -4000.0]], np.float32)
    assert negative_log_likelihood(logits, np.array([0, 1]), 0.05) == pytest.approx(80_000)


def test_perfect_separation_ends_at_the_lower_bound() -> None:
    logits = np.eye(7, dtype=np.float32)
    assert fit_temperature(logits, np.arange(7)) == pytest.approx(0.05, rel=1e-3)


@pytest.mark.parametrize("temperature", [0.4, 4.0], ids=["too modest", "too sure"])
def test_calibration_improves_and_no_decision_changes(temperature: float) -> None:
    logits, labels = drawn(temperature)
    before, after = (probabilities_of(logits, value) for value in (1.0, fit_temperature(logits, labels)))
    assert np.array_equal(before.argmax(1), after.argmax(1))
    assert expected_calibration_error(before, labels) > 0.1
    assert expected_calibration_error(after, labels) < 0.02
