"""FER+'s votes (Barsoum et al., 2016) as soft labels of the data's own classes.

Ten annotators looked at each FER2013 face again. Their categories are not FER2013's: half of what FER2013 calls sad or
angry they call neutral, and teaching that outright makes a worse FER2013 classifier. So a face's votes are translated:
a softmax regression, fitted on the training faces, says how likely each FER2013 label is for such votes.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

_PENALTY = 1e-4
_ITERATIONS = 300


def labels_given_votes(votes: NDArray[np.int8], labels: NDArray[np.int64], n_classes: int) -> NDArray[np.float32]:
    """P(label | votes) of each face, float32 (N, K), fitted on these faces themselves.

    votes: int8 (N, 10) in the order of `training.ferplus.FERPLUS_CATEGORIES`; a row of zeros is a face that nobody voted on. labels:
    int64 (N,). The features of a face are its vote shares, their logarithms and which category half of the annotators
    chose. Deterministic: the loss is convex.
    """
    features = torch.from_numpy(_features(votes))
    truth = torch.from_numpy(labels)
    weight = torch.zeros(features.shape[1], n_classes, dtype=torch.float64, requires_grad=True)
    bias = torch.zeros(n_classes, dtype=torch.float64, requires_grad=True)
    optimizer = torch.optim.LBFGS([weight, bias], max_iter=_ITERATIONS, line_search_fn="strong_wolfe")

    def closure() -> torch.Tensor:
        optimizer.zero_grad()
        loss = F.cross_entropy(features @ weight + bias, truth) + _PENALTY * weight.pow(2).sum()
        loss.backward()  # type: ignore[no-untyped-call]
        return loss

    optimizer.step(closure)  # type: ignore[no-untyped-call]
    with torch.no_grad():
        return (features @ weight + bias).softmax(1).numpy().astype(np.float32)


def _features(votes: NDArray[np.int8]) -> NDArray[np.float64]:
    counts = votes.astype(np.float64)
    shares = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    nobody = (counts.sum(1, keepdims=True) == 0).astype(np.float64)
    return np.concatenate([shares, np.log(shares + 0.05) - np.log(0.05), shares >= 0.5, nobody], axis=1)
