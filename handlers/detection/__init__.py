"""Face detectors behind one protocol: the fast MTCNN cascade, the facenet-pytorch reference, a fake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from handlers.errors import InvalidRequestError
from handlers.results import Detection

DEFAULT_MIN_FACE_SIZE_PX = 20
SMALLEST_MIN_FACE_SIZE_PX = 12


class Detector(Protocol):
    """Finds faces in one picture. Safe to call from several threads."""

    def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
        """Faces of a picture, uint8 (H, W, 3) RGB, from the largest to the smallest."""
        ...


def check_min_face_size(value: int | None) -> int:
    """The value, or the default for None. Raises InvalidRequestError below what the first network can see."""
    if value is None:
        return DEFAULT_MIN_FACE_SIZE_PX
    if value < SMALLEST_MIN_FACE_SIZE_PX:
        raise InvalidRequestError(f"min_face_size must be at least {SMALLEST_MIN_FACE_SIZE_PX} px, not {value}")
    return value


def largest_first(detections: Sequence[Detection]) -> list[Detection]:
    """Sorted by box area, the largest first; equal areas by confidence."""

    def key(detection: Detection) -> tuple[float, float]:
        left, top, right, bottom = detection.box_px
        return (right - left) * (bottom - top), detection.confidence

    return sorted(detections, key=key, reverse=True)
