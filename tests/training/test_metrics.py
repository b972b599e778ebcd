from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.metrics import (
    expected_calibration_error,
    reliability_bins,
    roc_curve,
    roc_curves,
    score,
    worst_class,
)

NAMES = ("angry", "happy", "sad")


def called(*tops: tuple[int, float], n_classes: int = 3) -> NDArray[np.float32]:
    """Rows whose likeliest class and its probability are given; the others share the rest."""
    rows = np.empty((len(tops), n_classes), np.float32)
    for row, (label, confidence) in zip(rows, tops, strict=True):
        row[:] = (1 - confidence) / (n_classes - 1)
        row[label] = confidence
    return rows


def test_scores_of_a_small_case_worked_out_by_hand() -> None:
    probabilities = called((0, 0.9), (0, 0.8), (1, 0.6), (1, 0.6), (0, 0.9), (2, 0.8))
    scores = score(probabilities, np.array([0, 0, 0, 1, 1, 2]), NAMES)
    assert scores.n == 6
    assert scores.confusion.tolist() == [[2, 1, 0], [1, 1, 0], [0, 0, 1]]
    assert scores.accuracy == 0.66667  # 4 of 6
    by_class = {name: (m.precision, m.recall, m.f1, m.n) for name, m in scores.per_class.items()}
    assert by_class == {
        "angry": (0.66667, 0.66667, 0.66667, 3),  # 2 of 3 called, 2 of 3 true
        "happy": (0.5, 0.5, 0.5, 2),  # 1 of 2, 1 of 2
        "sad": (1.0, 1.0, 1.0, 1),
    }
    assert scores.macro_f1 == 0.72222  # (2/3 + 1/2 + 1) / 3
    # Two faces a bin: at 0.9 one right (gap 0.4), at 0.8 both (0.2), at 0.6 one (0.1); a third of each.
    assert scores.ece == 0.23333


def test_precision_and_recall_are_not_confused() -> None:
    scores = score(called((0, 0.9), (0, 0.9), (0, 0.9), (1, 0.9)), np.array([0, 1, 1, 1]), NAMES)
    angry, happy, sad = (scores.per_class[name] for name in NAMES)
    assert (angry.precision, angry.recall, angry.f1) == (0.33333, 1.0, 0.5)
    assert (happy.precision, happy.recall, happy.f1) == (1.0, 0.33333, 0.5)
    assert (sad.precision, sad.recall, sad.f1, sad.n) == (0.0, 0.0, 0.0, 0)
    assert scores.confusion.tolist() == [[1, 0, 0], [2, 1, 0], [0, 0, 0]]
    assert scores.macro_f1 == 0.33333  # the class without samples counts as 0


def test_macro_f1_is_rounded_once() -> None:
    # F1 of the classes: 2/3, 2/3, 0 → 0.444444…; the mean of the rounded ones would be 0.44445.
    scores = score(called((0, 0.5), (0, 0.5), (1, 0.5), (1, 0.5)), np.array([0, 2, 1, 2]), NAMES)
    assert [m.f1 for m in scores.per_class.values()] == [0.66667, 0.66667, 0.0]
    assert scores.macro_f1 == 0.44444


@pytest.mark.parametrize(
    ("tops", "right", "n_bins", "expected"),
    [
        pytest.param([0.7] * 10, 7, 15, 0.0, id="calibrated"),
        pytest.param([0.9] * 10, 5, 15, 0.4, id="too sure"),
        pytest.param([0.6] * 4, 4, 15, 0.4, id="too modest"),
        pytest.param([1.0], 1, 15, 0.0, id="certain and right"),
        pytest.param([1.0], 0, 15, 1.0, id="certain and wrong"),
        # A bin holds its upper edge: 0.5 is alone, so 0.5 · |1 - 0.5| + 0.5 · |0 - 0.51|.
        pytest.param([0.5, 0.51], 1, 2, 0.505, id="edge is in the lower bin"),
        # Both in one bin: |0.5 - 0.55|.
        pytest.param([0.51, 0.59], 1, 2, 0.05, id="errors cancel in a bin"),
    ],
)
def test_calibration_error(tops: list[float], right: int, n_bins: int, expected: float) -> None:
    labels = np.array([0] * right + [1] * (len(tops) - right))
    probabilities = called(*((0, top) for top in tops))
    assert expected_calibration_error(probabilities, labels, n_bins) == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("index", range(1, 15))
def test_every_edge_of_the_fifteen_bins_belongs_to_the_bin_below_it(index: int) -> None:
    edge = index / 15
    n_classes = 16  # so that the smallest edge can still be the top probability
    probabilities = called((0, edge), (0, edge - 0.001), (0, edge + 0.001), n_classes=n_classes)
    labels = np.array([0, 1, 1])
    # In one bin with the face below: |1/2 - (edge - 0.0005)| for two of three; alone above: edge + 0.001.
    expected = 2 / 3 * abs(0.5 - (edge - 0.0005)) + 1 / 3 * (edge + 0.001)
    assert expected_calibration_error(probabilities, labels) == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize(
    ("scores", "positive", "area"),
    [
        pytest.param([0.9, 0.8, 0.3, 0.1], [1, 1, 0, 0], 1.0, id="apart"),
        pytest.param([0.1, 0.3, 0.8, 0.9], [1, 1, 0, 0], 0.0, id="the wrong way round"),
        # Of the four pairs 0.9 > 0.8, 0.9 > 0.1, 0.3 < 0.8, 0.3 > 0.1.
        pytest.param([0.9, 0.8, 0.3, 0.1], [1, 0, 1, 0], 0.75, id="three of four pairs"),
        pytest.param([0.5, 0.5, 0.5, 0.5, 0.5], [1, 0, 1, 0, 0], 0.5, id="all tied"),
        # Of the six pairs: 0.7 beats two and ties one, 0.4 beats one and ties none.
        pytest.param([0.7, 0.7, 0.4, 0.5, 0.2], [1, 0, 1, 0, 0], 3.5 / 6, id="one tie counts half"),
    ],
)
def test_area_is_the_share_of_pairs_in_order(scores: list[float], positive: list[int], area: float) -> None:
    for order in (slice(None), slice(None, None, -1)):  # the order of the samples must not matter, ties least of all
        curve = roc_curve(np.array(scores)[order], np.array(positive, bool)[order])
        assert curve is not None
        assert curve.auc == pytest.approx(area)


def test_roc_of_a_small_case_worked_out_by_hand() -> None:
    # Thresholds 0.9: one of two hits; 0.6: a hit and two of three alarms; 0.1: all.
    curve = roc_curve(np.array([0.6, 0.9, 0.6, 0.1, 0.6]), np.array([True, True, False, False, False]))
    assert curve is not None
    assert curve.true_positive_rate.tolist() == [0, 0.5, 1, 1]
    assert curve.false_positive_rate == pytest.approx([0, 0, 2 / 3, 1])


def test_area_equals_the_count_of_all_pairs_on_many_tied_scores() -> None:
    rng = np.random.default_rng(0)
    scores, positive = rng.integers(0, 12, 300) / 12, rng.random(300) < 0.3
    differences = scores[positive][:, None] - scores[~positive][None, :]
    pairs = (differences > 0).mean() + 0.5 * (differences == 0).mean()
    curve = roc_curve(scores, positive)
    assert curve is not None
    assert curve.auc == pytest.approx(pairs)


def test_no_curve_without_both_kinds() -> None:
    scores = np.array([0.1, 0.9])
    assert roc_curve(scores, np.array([True, True])) is None
    assert roc_curve(scores, np.array([False, False])) is None
    curves = roc_curves(called((0, 0.9), (1, 0.8), (0, 0.6)), np.array([0, 1, 1]), NAMES)
    assert list(curves) == ["angry", "happy"]  # nobody is sad
    assert curves["angry"].auc == 1.0


def test_reliability_bins_of_a_small_case_worked_out_by_hand() -> None:
    probabilities = called((0, 0.5), (0, 0.45), (1, 0.9), (1, 1.0), (2, 0.92))
    bins = reliability_bins(probabilities, np.array([0, 1, 1, 1, 0]), n_bins=4)
    assert [(one.lower, one.upper, one.n) for one in bins] == [
        (0, 0.25, 0),
        (0.25, 0.5, 2),
        (0.5, 0.75, 0),
        (0.75, 1, 3),
    ]
    assert [one.confidence for one in bins] == pytest.approx([0, 0.475, 0, 0.94])
    assert [one.accuracy for one in bins] == pytest.approx([0, 0.5, 0, 2 / 3])


@pytest.mark.parametrize("n_bins", [1, 4, 15])
def test_calibration_error_is_the_mean_distance_over_the_bins(n_bins: int) -> None:
    rng = np.random.default_rng(1)
    probabilities = rng.dirichlet(np.ones(3) * 0.7, 500).astype(np.float32)
    labels = rng.integers(0, 3, 500)
    bins = reliability_bins(probabilities, labels, n_bins)
    assert sum(one.n for one in bins) == 500
    mean = sum(one.n / 500 * abs(one.confidence - one.accuracy) for one in bins)
    assert expected_calibration_error(probabilities, labels, n_bins) == pytest.approx(mean, abs=1e-6)


def test_worst_class_is_the_lowest_f1_of_those_with_samples() -> None:
    scores = score(called((0, 0.9), (0, 0.9), (1, 0.9)), np.array([0, 1, 1]), NAMES)
    assert scores.per_class["sad"].f1 == 0.0  # nobody is sad, so it is no worst class
    assert worst_class(scores.per_class) == "angry"  # 2/3 each: the first
    with pytest.raises(ValueError):
        worst_class({})
