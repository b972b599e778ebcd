"""FER+'s votes (Barsoum et al., 2016) as soft labels of the data's own classes.

Ten annotators looked at each FER2013 face again. Their categories are not FER2013's: half of what FER2013 calls sad or
angry they call neutral, and teaching that outright makes a worse FER2013 classifier. So a face's votes are translated:
a softmax regression, fitted on the training faces, says how likely each FER2013 label is for such votes.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

_PENALTY = 1e-4
_ITERATIONS = 300


def labels_given_votes(votes: NDArray[np.int8], labels: NDArray[np.int64], n_classes: int) -> NDArray[np.float32]:
    """P(label | votes) of each face, float32 (N, K), fitted on these faces themselves.

    votes: int8 (N, 10) in the order of `training.ferplus.FERPLUS_CATEGORIES`; a row of zeros is a face that nobody
    voted on. labels: int64 (N,). Deterministic: the loss is convex.
    """
    features = vote_features(votes)
    return softmax_regression(features, labels, n_classes)(features)


def softmax_regression(
    features: NDArray[np.float64], labels: NDArray[np.int64], n_classes: int, penalty: float = _PENALTY
) -> Callable[[NDArray[np.float64]], NDArray[np.float32]]:
    """Fit P(label | features) with an L2 penalty; returns what gives the probabilities float32 (M, K) of other rows."""
    rows, truth = torch.from_numpy(features), torch.from_numpy(labels)
    weight = torch.zeros(rows.shape[1], n_classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(rows @ weight + bias, truth) + penalty * weight.pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]

    @torch.no_grad()
    def probabilities(others: NDArray[np.float64]) -> NDArray[np.float32]:
        return (torch.from_numpy(others) @ weight + bias).softmax(1).numpy().astype(np.float32)

    return probabilities


def vote_features(votes: NDArray[np.int8]) -> NDArray[np.float64]:
    """Float64 (N, 31): shares of the votes, their logarithms, which category half of the annotators chose, and 1 for a
    face that nobody voted on.
    """
    counts = votes.astype(np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    nobody = (counts.sum(1, keepdims=True) == 0).astype(np.float64)
    return np.concatenate([shares, np.log(shares + 0.05) - np.log(0.05), shares >= 0.5, nobody], axis=1)
