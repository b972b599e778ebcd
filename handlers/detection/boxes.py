"""Box arithmetic of the MTCNN cascade, with the reference's roundings."""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Boxes = NDArray[np.float32]

_NMS_BLOCK = 256


def non_maximum_suppression(
    boxes: Boxes, scores: NDArray[np.float32], threshold: float, overlap: Literal["union", "smaller"]
) -> NDArray[np.int64]:
    """Indices of the boxes that stay, by falling score: each removes the ones that overlap it by more than `threshold`.

    boxes: (N, 4) left, top, right, bottom. The overlap is the intersection over the union, with sides as plain
    differences, or over the smaller of the two boxes, with both edge pixels counted in: the cascade needs both kinds.

    Equal scores are common, not rare: boxes that reach outside the picture differ, but their crops do not. The first
    comes first for "union", the last for "smaller", as in the reference (torchvision's NMS, and its numpy one).
    """
    if overlap == "union":
        edge, order = 0.0, np.argsort(-scores, kind="stable")
    else:
        edge, order = 1.0, np.argsort(scores)[::-1]
    sides = tuple(np.ascontiguousarray(boxes[order, side]) for side in range(4))
    alive = np.ones(len(order), bool)
    kept: list[int] = []
    for start in range(0, len(order), _NMS_BLOCK):
        block = start + np.flatnonzero(alive[start : start + _NMS_BLOCK])
        overlapping = _overlapping(sides, block, start, threshold, edge)
        for row, index in enumerate(block):
            if alive[index]:
                kept.append(int(index))
                alive[start:] &= ~overlapping[row]
    return order[kept]


def _overlapping(
    sides: tuple[NDArray[np.float32], ...], block: NDArray[np.int64], start: int, threshold: float, edge: float
) -> NDArray[np.bool_]:
    """Which boxes from `start` on overlap each of `block` by more than `threshold`: bool (len(block), N - start)."""
    left, top, right, bottom = (side[start:] for side in sides)
    block_left, block_top, block_right, block_bottom = (side[block][:, None] for side in sides)
    areas = (right - left + edge) * (bottom - top + edge)
    block_areas = (block_right - block_left + edge) * (block_bottom - block_top + edge)
    width = np.minimum(block_right, right) - np.maximum(block_left, left) + edge
    height = np.minimum(block_bottom, bottom) - np.maximum(block_top, top) + edge
    shared = np.maximum(width, 0) * np.maximum(height, 0)
    whole = np.minimum(block_areas, areas) if edge else block_areas + areas - shared
    return np.asarray(shared > threshold * whole)


def regress(boxes: Boxes, offsets: NDArray[np.float32], edge: float) -> Boxes:
    """Move each side by its offset times the box's side length (plus `edge`): (N, 4), (N, 4) → (N, 4)."""
    width = boxes[:, 2] - boxes[:, 0] + np.float32(edge)
    height = boxes[:, 3] - boxes[:, 1] + np.float32(edge)
    return boxes + offsets * np.stack([width, height, width, height], 1)


def to_squares(boxes: Boxes) -> Boxes:
    """Squares with the same centre and the longer side: (N, 4) → (N, 4)."""
    width, height = boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]
    side = np.maximum(width, height)
    left = boxes[:, 0] + width * np.float32(0.5) - side * np.float32(0.5)
    top = boxes[:, 1] + height * np.float32(0.5) - side * np.float32(0.5)
    return np.stack([left, top, left + side, top + side], 1)


def clip_to_pixels(boxes: Boxes, width: int, height: int) -> NDArray[np.int64]:
    """Whole-pixel corners inside the picture, right and bottom excluded: (N, 4) → int64 (N, 4), some maybe empty."""
    whole = np.trunc(boxes).astype(np.int64)
    left, top = np.maximum(whole[:, 0], 1) - 1, np.maximum(whole[:, 1], 1) - 1
    right, bottom = np.minimum(whole[:, 2], width), np.minimum(whole[:, 3], height)
    return np.stack([left, top, right, bottom], 1)
