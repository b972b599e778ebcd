"""Temperature scaling (Guo et al., 2017): one number that makes the confidence mean what it says."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

_LOG_RANGE = (math.log(0.05), math.log(20.0))
_TOLERANCE = 1e-7


def fit_temperature(logits: NDArray[np.float32], labels: NDArray[np.int64]) -> float:
    """The temperature that minimises the negative log-likelihood of labels (N,) under logits (N, K) / temperature.

    The loss is convex in 1 / temperature, so a golden-section search over its logarithm finds the one minimum.
    """
    ratio = (math.sqrt(5) - 1) / 2
    low, high = _LOG_RANGE
    inner, outer = high - ratio * (high - low), low + ratio * (high - low)
    loss_inner, loss_outer = (negative_log_likelihood(logits, labels, math.exp(x)) for x in (inner, outer))
    while high - low > _TOLERANCE:
        if loss_inner < loss_outer:
            high, outer, loss_outer = outer, inner, loss_inner
            inner = high - ratio * (high - low)
            loss_inner = negative_log_likelihood(logits, labels, math.exp(inner))
        else:
            low, inner, loss_inner = inner, outer, loss_outer
            outer = low + ratio * (high - low)
            loss_outer = negative_log_likelihood(logits, labels, math.exp(outer))
    return round(math.exp((low + high) / 2), 5)


def negative_log_likelihood(logits: NDArray[np.float32], labels: NDArray[np.int64], temperature: float) -> float:
    """Mean of -log p(label) in nats."""
    scaled = logits.astype(np.float64) / temperature
    shifted = scaled - scaled.max(1, keepdims=True)
    log_norm = np.log(np.exp(shifted).sum(1))
    return float((log_norm - shifted[np.arange(len(labels)), labels]).mean())
