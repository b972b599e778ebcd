"""Scores of a classifier from its probabilities: accuracy, F1, confusion, calibration."""

from __future__ import annotations

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
    confidence = probabilities.max(1)
    correct = probabilities.argmax(1) == labels
    bins = np.clip(np.ceil(confidence * n_bins).astype(int) - 1, 0, n_bins - 1)
    gap = 0.0
    for index in range(n_bins):
        inside = bins == index
        if inside.any():
            gap += inside.mean() * abs(correct[inside].mean() - confidence[inside].mean())
    return float(gap)


def _rounded(value: float) -> float:
    """Five decimals: finer than one sample of any split here, coarser than the noise between two CPUs."""
    return round(float(value), 5)
