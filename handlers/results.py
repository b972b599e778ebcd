"""What the inference core returns: frozen values that pickle, and that say their units."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Box = tuple[float, float, float, float]
Point = tuple[float, float]

LANDMARK_NAMES = ("left_eye", "right_eye", "nose", "mouth_left", "mouth_right")
"""Order of the five landmarks; left and right as seen in the picture."""


@dataclass(frozen=True)
class Detection:
    """One face of a picture, in pixels of the upright picture (after EXIF rotation).

    box_px: left, top, right, bottom, which may lie outside the picture. confidence: 0..1.
    landmarks_px: five (x, y) points in the order of `LANDMARK_NAMES`.
    """

    box_px: Box
    confidence: float
    landmarks_px: tuple[Point, ...]


@dataclass(frozen=True, eq=False)
class DetectedPicture:
    """A decoded picture after detection: what the classifier needs, and no more of its pixels than that.

    width, height: of the upright picture. face_crops: one uint8 (S, S, C) array a detection, of the classifier's size
    and channels.
    """

    width: int
    height: int
    detections: tuple[Detection, ...]
    face_crops: tuple[NDArray[np.uint8], ...]

    def __post_init__(self) -> None:
        if len(self.detections) != len(self.face_crops):
            raise ValueError(f"{len(self.detections)} detections but {len(self.face_crops)} crops")


@dataclass(frozen=True)
class Emotion:
    """A classified expression: the likeliest label, its calibrated probability, and every label's probability."""

    label: str
    confidence: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Face:
    """A face with its expression; for the units see `Detection`."""

    box_px: Box
    detection_confidence: float
    landmarks_px: tuple[Point, ...]
    emotion: str
    confidence: float
    probabilities: dict[str, float]


@dataclass(frozen=True)
class Analysis:
    """A picture's size after EXIF rotation, and its faces from the largest to the smallest. No face: an empty tuple."""

    width: int
    height: int
    faces: tuple[Face, ...]
