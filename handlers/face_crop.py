"""Detector box → the square that the classifier was trained on, by the manifest's geometry."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from handlers.results import Box
from model_store.manifest import FaceCropSpec


def crop_square_px(box_px: Box, spec: FaceCropSpec) -> tuple[int, int, int]:
    """Left, top and side in whole pixels of the square for a box; it may reach outside the picture."""
    left, top, right, bottom = box_px
    longer = max(right - left, bottom - top)
    side = max(1, round(spec.scale * longer))
    centre_x = (left + right) / 2 + spec.shift_x * longer
    centre_y = (top + bottom) / 2 + spec.shift_y * longer
    return round(centre_x - side / 2), round(centre_y - side / 2), side


def cut_face(rgb_u8: NDArray[np.uint8], box_px: Box, spec: FaceCropSpec) -> NDArray[np.uint8]:
    """Cut the face square out of a picture: uint8 (H, W, 3) → uint8 (side, side, 3).

    What lies outside the picture repeats its edge, so the square is always whole.
    """
    height, width, _ = rgb_u8.shape
    left, top, side = crop_square_px(box_px, spec)
    if left >= 0 and top >= 0 and left + side <= width and top + side <= height:
        return rgb_u8[top : top + side, left : left + side]
    rows = np.clip(np.arange(top, top + side), 0, height - 1)
    columns = np.clip(np.arange(left, left + side), 0, width - 1)
    return rgb_u8[rows[:, None], columns[None, :]]
