"""Box arithmetic of the MTCNN cascade, with the reference's roundings."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from handlers.detection.kernels import non_maximum_suppression

Boxes = NDArray[np.float32]
Overlap = Literal["union", "smaller"]


def suppress(
    boxes: Boxes, scores: NDArray[np.float32], group: NDArray[np.int64], threshold: float, overlap: Overlap
) -> NDArray[np.int64]:
    """Non-maximum suppression: indices of the boxes that stay, group after group, each by falling score.

    boxes: (N, 4) left, top, right, bottom. scores: (N,). group: (N,), not falling: only boxes of one group meet. A box
    removes the ones after it that overlap it by more than `threshold`: the intersection over the union, with sides as
    plain differences, or over the smaller of the two boxes, with both edge pixels counted in: the cascade needs both.

    Equal scores are common, not rare: boxes that reach outside the picture differ, but their crops do not. The first
    comes first for "union", the last for "smaller", as in the reference (torchvision's NMS, and its numpy one).
    """
    boxes, group = np.ascontiguousarray(boxes), np.ascontiguousarray(group)
    if overlap == "union":
        order = np.lexsort((-scores, group))
    else:
        members = [np.flatnonzero(group == index) for index in np.unique(group)]
        order = np.concatenate([np.empty(0, np.int64), *(own[np.argsort(scores[own])[::-1]] for own in members)])
    kept = np.empty(len(order), np.int64)
    n_kept = non_maximum_suppression(boxes, group, order, threshold, overlap == "smaller", kept)
    return kept[:n_kept]


def best(scores: NDArray[np.float32], most: int) -> NDArray[np.int64]:
    """Indices of the `most` highest scores, in the order in which they stand; of equal scores the first are taken."""
    if len(scores) <= most:
        return np.arange(len(scores))
    return np.sort(np.argsort(-scores, kind="stable")[:most])


def regress(boxes: Boxes, offsets: NDArray[np.float32], edge: float) -> Boxes:
    """Move each side by its offset times the box's side length (plus `edge`): (N, 4), (N, 4) → (N, 4)."""
    sides = boxes[:, 2:] - boxes[:, :2] + np.float32(edge)
    moved: Boxes = boxes + offsets * np.concatenate([sides, sides], 1)
    return moved


def to_squares(boxes: Boxes) -> Boxes:
    """Squares with the same centre and the longer side: (N, 4) → (N, 4)."""
    sides = boxes[:, 2:] - boxes[:, :2]
    longer = sides.max(1, keepdims=True)
    corners = boxes[:, :2] + sides * np.float32(0.5) - longer * np.float32(0.5)
    return np.concatenate([corners, corners + longer], 1)


def clip_to_pixels(boxes: Boxes, width: int, height: int) -> NDArray[np.int64]:
    """Whole-pixel corners inside the picture, right and bottom excluded: (N, 4) → int64 (N, 4), some maybe empty."""
    whole = np.trunc(boxes).astype(np.int64)
    corners = np.maximum(whole[:, :2], 1) - 1
    return np.concatenate([corners, np.minimum(whole[:, 2:], (width, height))], 1)
