"""Which of O-Net's candidates need float32, judged by the same network computed in bfloat16.

bfloat16 is almost twice as fast where the processor has it, and off by little. A candidate is dropped only where that
little cannot matter; all others are computed again in float32, and only those numbers are used. So the results are
those of float32 throughout, as long as the errors stay within the margins below.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from handlers.detection import kernels
from handlers.detection.boxes import Boxes, suppress

LOGIT_MARGIN = 0.3
"""Largest error allowed for in O-Net's face logit. Seen over 3,000 candidates: 0.07."""

_OVERLAP_MARGIN = 0.05
_ROUNDING = float(np.finfo(np.float32).eps)
_MANY_TIES = 256


def score_bounds(probabilities: NDArray[np.float32]) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Rough probabilities (N, 2) of no face and face → the lowest and the highest that "face" may be, each (N,).

    As float32 has them: near 1 it cannot tell scores apart whose logits differ by whole units.
    """
    floor = np.finfo(np.float32).tiny
    logits = np.log(np.maximum(probabilities, floor).astype(np.float64)) @ (-1.0, 1.0)
    lowest = 1 / (1 + np.exp(LOGIT_MARGIN - logits)) - _ROUNDING
    highest = 1 / (1 + np.exp(-LOGIT_MARGIN - logits)) + _ROUNDING
    return lowest, highest


def are_mostly_duplicates(boxes: Boxes, group: NDArray[np.int64], times: int) -> bool:
    """Whether there are at least `times` as many boxes as places that they lie at."""
    order = -np.arange(len(boxes), dtype=np.float32)
    return len(suppress(boxes, order, group, 0.3, "union")) * times <= len(boxes)


def contenders(
    boxes: Boxes, probabilities: NDArray[np.float32], group: NDArray[np.int64], threshold: float, overlap: float
) -> NDArray[np.int64]:
    """Indices of the candidates that may be left after thresholding and suppression by overlap with the smaller box.

    boxes: (N, 4), probabilities: (N, 2), both roughly right; group: (N,), see `boxes.suppress`. A candidate is none
    when it cannot pass the threshold, or when one that surely stays overlaps it and surely scores higher. Surely to
    stay means over the threshold, with nothing near it that may score as high.
    """
    lowest, highest = score_bounds(probabilities)
    keep = np.empty(len(boxes), np.int64)
    boxes, group = np.ascontiguousarray(boxes), np.ascontiguousarray(group)
    n_kept = kernels.contenders(boxes, lowest, highest, group, threshold, overlap, _OVERLAP_MARGIN, keep)
    return keep[:n_kept]


def groups_with_ties(
    boxes: Boxes, scores: NDArray[np.float32], group: NDArray[np.int64], overlap: float
) -> NDArray[np.int64]:
    """Groups in which two boxes of one score overlap by more than `overlap` of the smaller, or nearly so.

    Which of the two stays depends on how the reference happens to sort *all* its scores, so all are needed there.
    """
    order = np.lexsort((scores, group))
    same = (np.diff(group[order]) == 0) & (np.diff(scores[order]) == 0)
    tied = set()
    for run in np.split(order, np.flatnonzero(~same) + 1):
        if len(run) > _MANY_TIES or (len(run) > 1 and _any_overlap(boxes[run], overlap - _OVERLAP_MARGIN)):
            tied.add(int(group[run[0]]))
    return np.array(sorted(tied), np.int64)


def _any_overlap(boxes: Boxes, overlap: float) -> bool:
    areas = (boxes[:, 2:] - boxes[:, :2] + 1).prod(axis=1)
    corners = np.maximum(boxes[:, None, :2], boxes[None, :, :2])
    shared = np.maximum(np.minimum(boxes[:, None, 2:], boxes[None, :, 2:]) - corners + 1, 0).prod(axis=2)
    return bool((np.triu(shared / np.minimum(areas[:, None], areas[None]), 1) > overlap).any())
