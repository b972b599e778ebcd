"""Face detectors behind one protocol: the fast MTCNN cascade, the facenet-pytorch reference, a fake."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from handlers.results import Detection


class Detector(Protocol):
    """Finds faces in pictures. Safe to call from several threads."""

    def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
        """Faces of a picture, uint8 (H, W, 3) RGB, from the largest to the smallest."""
        ...

    def detect_batch(
        self, pictures: Sequence[NDArray[np.uint8]], min_face_sizes_px: Sequence[int]
    ) -> list[list[Detection]]:
        """The same for several pictures, each with its own smallest face; `len(results) == len(pictures)`, in order."""
        ...


def largest_first(detections: Sequence[Detection]) -> list[Detection]:
    """Sorted by box area, the largest first; equal areas by confidence."""

    def key(detection: Detection) -> tuple[float, float]:
        left, top, right, bottom = detection.box_px
        return (right - left) * (bottom - top), detection.confidence

    return sorted(detections, key=key, reverse=True)
