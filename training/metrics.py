"""Scores of a classifier from its probabilities: accuracy, F1, confusion, calibration, ROC."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from model_store.manifest import ClassMetrics

ECE_BINS = 15


@dataclass(frozen=True)
class Scores:
    """Scores on one split. confusion: int64 (K, K), rows are the true labels and columns the predicted ones."""

    n: int
    accuracy: float
    macro_f1: float
    ece: float
    per_class: dict[str, ClassMetrics]
    confusion: NDArray[np.int64]


def score(probabilities: NDArray[np.floating], labels: NDArray[np.int64], names: tuple[str, ...]) -> Scores:
    """Score probabilities (N, K) against label indices (N,). A class without samples or predictions has F1 0."""
    n_classes = len(names)
    predicted = probabilities.argmax(1)
    confusion = np.zeros((n_classes, n_classes), np.int64)
    np.add.at(confusion, (labels, predicted), 1)
    hits, true, called = np.diag(confusion), confusion.sum(1), confusion.sum(0)
    per_class, f1_scores = {}, []
    for index, name in enumerate(names):
        precision = hits[index] / called[index] if called[index] else 0.0
        recall = hits[index] / true[index] if true[index] else 0.0
        f1 = 2 * precision * recall / (precision + recall) if precision + recall else 0.0
        f1_scores.append(f1)
        per_class[name] = ClassMetrics(
            precision=_rounded(precision), recall=_rounded(recall), f1=_rounded(f1), n=int(true[index])
        )
    return Scores(
        n=len(labels),
        accuracy=_rounded(hits.sum() / len(labels)),
        macro_f1=_rounded(float(np.mean(f1_scores))),
        ece=_rounded(expected_calibration_error(probabilities, labels)),
        per_class=per_class,
        confusion=confusion,
    )


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], n_bins: int = ECE_BINS
) -> float:
    """Mean gap between confidence and accuracy over equal-width bins of the top probability (Guo et al., 2017)."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bins = _bins_of(confidence, n_bins)
    gap = 0.0
    for index in range(n_bins):
        inside = bins == index
        if inside.any():
            gap += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(gap)


@dataclass(frozen=True)
class ReliabilityBin:
    """The samples whose top probability is over `lower` and at most `upper`: how many, how sure, how many right.

    `confidence` and `accuracy` are means over the bin, 0 in an empty one.
    """

    lower: float
    upper: float
    n: int
    confidence: float
    accuracy: float


def reliability_bins(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], n_bins: int = ECE_BINS
) -> tuple[ReliabilityBin, ...]:
    """The bins behind `expected_calibration_error`, from the least to the most confident."""
    confidence, correct = probabilities.max(1), probabilities.argmax(1) == labels
    bins = _bins_of(confidence, n_bins)
    found = []
    for index in range(n_bins):
        inside = bins == index
        n = int(inside.sum())
        means = (float(confidence[inside].mean()), float(correct[inside].mean())) if n else (0.0, 0.0)
        found.append(ReliabilityBin(index / n_bins, (index + 1) / n_bins, n, *means))
    return tuple(found)


@dataclass(frozen=True)
class RocCurve:
    """One class against the rest. Both rates, float64 (M,), rise from 0 to 1 as the threshold falls."""

    false_positive_rate: NDArray[np.float64]
    true_positive_rate: NDArray[np.float64]

    @property
    def auc(self) -> float:
        """The area below: the chance that a sample of the class scores over one of the rest, a tie counting half."""
        return float(np.trapezoid(self.true_positive_rate, self.false_positive_rate))


def roc_curve(scores: NDArray[np.floating], positive: NDArray[np.bool_]) -> RocCurve | None:
    """The curve of scores (N,) for what is `positive` (N,); None when only one kind of sample is there.

    Samples with equal scores pass a threshold together, so a tie is a slope and not a staircase whose shape is the
    order of the samples (Fawcett, 2006).
    """
    n_positive = int(positive.sum())
    n_negative = len(positive) - n_positive
    if not n_positive or not n_negative:
        return None
    order = np.argsort(-scores, kind="stable")
    falling, hits = scores[order], positive[order]
    last_of_ties = np.append(np.flatnonzero(np.diff(falling)), len(falling) - 1)
    true_positives = np.cumsum(hits)[last_of_ties]
    false_positives = last_of_ties + 1 - true_positives
    return RocCurve(
        np.concatenate([[0.0], false_positives / n_negative]), np.concatenate([[0.0], true_positives / n_positive])
    )


def roc_curves(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], names: tuple[str, ...]
) -> dict[str, RocCurve]:
    """Each class against the rest, for probabilities (N, K); classes without samples, or alone, are left out."""
    curves = {name: roc_curve(probabilities[:, index], labels == index) for index, name in enumerate(names)}
    return {name: curve for name, curve in curves.items() if curve is not None}


def worst_class(per_class: Mapping[str, ClassMetrics]) -> str:
    """The class with the lowest F1 among those with samples; the first of equals. Raises ValueError without any."""
    present = {name: metrics.f1 for name, metrics in per_class.items() if metrics.n}
    return min(present, key=lambda name: present[name])


def _bins_of(confidence: NDArray[np.floating], n_bins: int) -> NDArray[np.int64]:
    """The bin of each confidence; a bin holds its upper edge."""
    bins: NDArray[np.int64] = np.clip(np.ceil(confidence * n_bins).astype(np.int64) - 1, 0, n_bins - 1)
    return bins


def _rounded(value: float) -> float:
    """Five decimals: finer than one sample of any split here, coarser than the noise between two CPUs."""
    return round(float(value), 5)
