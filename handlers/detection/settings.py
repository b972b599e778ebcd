"""What can be chosen about detection, and what each choice may be."""

from __future__ import annotations

from dataclasses import dataclass

from handlers.errors import InvalidRequestError

SMALLEST_MIN_FACE_SIZE_PX = 12
"""What P-Net sees of a picture at once."""


@dataclass(frozen=True)
class DetectionSettings:
    """The defaults are those of `facenet_pytorch.MTCNN`; docs/detection.md says what others cost and gain.

    min_face_size_px: the smallest face looked for, unless a request says otherwise. thresholds: of P-Net, R-Net and
    O-Net on the face probability. pyramid_factor: ratio between the levels of the pyramid.

    max_side_px bounds time and memory: a picture with a longer side over it is searched as if it were shrunk to it, so
    that the smallest face looked for grows with the picture. Raises ValueError for a value out of its range.
    """

    min_face_size_px: int = 20
    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    pyramid_factor: float = 0.709
    max_side_px: int = 2560

    def __post_init__(self) -> None:
        if self.min_face_size_px < SMALLEST_MIN_FACE_SIZE_PX:
            raise ValueError(
                f"min_face_size_px must be at least {SMALLEST_MIN_FACE_SIZE_PX}, not {self.min_face_size_px}"
            )
        if len(self.thresholds) != 3 or not all(0 < threshold < 1 for threshold in self.thresholds):
            raise ValueError(f"thresholds must be three numbers between 0 and 1, not {self.thresholds}")
        if not 0.1 <= self.pyramid_factor <= 0.95:
            raise ValueError(f"pyramid_factor must be from 0.1 to 0.95, not {self.pyramid_factor}")
        if self.max_side_px < SMALLEST_MIN_FACE_SIZE_PX:
            raise ValueError(f"max_side_px must be at least {SMALLEST_MIN_FACE_SIZE_PX}, not {self.max_side_px}")


def check_min_face_size(value: int | None, default: int = DetectionSettings.min_face_size_px) -> int:
    """The value, or the default for None. Raises InvalidRequestError below what the first network can see."""
    if value is None:
        return default
    if value < SMALLEST_MIN_FACE_SIZE_PX:
        raise InvalidRequestError(f"min_face_size must be at least {SMALLEST_MIN_FACE_SIZE_PX} px, not {value}")
    return value
