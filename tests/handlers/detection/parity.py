"""Parity of a detector with `facenet_pytorch.MTCNN`: the pictures, the reference's answers, and their differences."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handlers.decode import decode_image
from handlers.detection import Detector
from handlers.detection.settings import DetectionSettings
from handlers.results import Detection
from tests.boxes import overlap
from tests.handlers.composites import composite

N_COMPOSITES = 200

MIN_EQUAL_COUNTS = 0.995
MIN_OVERLAP = 0.99
MAX_LANDMARK_SHIFT_PX = 1.0
MAX_CONFIDENCE_DIFFERENCE = 0.01

_PHOTOS = Path(__file__).parents[4] / "shared" / "data" / "photos"
_FULL_TOLERANCE_SIDE_PX = 640


@dataclass(frozen=True)
class Picture:
    """A picture of the corpus, uint8 (H, W, 3) RGB."""

    name: str
    rgb_u8: NDArray[np.uint8]


@dataclass(frozen=True)
class Comparison:
    """One picture's faces by a detector and by the reference; the last three over the matched pairs of faces.

    longer_side_px: of the picture. min_overlap: the worst intersection over union, 1 without a pair.
    max_landmark_shift_px: the farthest that a landmark is from the reference's.
    """

    picture: str
    longer_side_px: int
    n_found: int
    n_expected: int
    min_overlap: float
    max_landmark_shift_px: float
    max_confidence_difference: float

    @property
    def is_equal(self) -> bool:
        return self.count_is_equal and self.faces_are_equal

    @property
    def count_is_equal(self) -> bool:
        return self.n_found == self.n_expected

    @property
    def faces_are_equal(self) -> bool:
        """Whether every matched pair is within the tolerances; the landmarks' grows with pictures over 640 px."""
        scale = max(1.0, self.longer_side_px / _FULL_TOLERANCE_SIDE_PX)
        return (
            self.min_overlap >= MIN_OVERLAP
            and self.max_landmark_shift_px <= MAX_LANDMARK_SHIFT_PX * scale
            and self.max_confidence_difference <= MAX_CONFIDENCE_DIFFERENCE
        )

    def __str__(self) -> str:
        return (
            f"{self.picture}: {self.n_found} faces, expected {self.n_expected}; least IoU {self.min_overlap:.4f}, "
            f"landmarks {self.max_landmark_shift_px:.3f} px, confidence {self.max_confidence_difference:.5f}"
        )


@dataclass(frozen=True)
class Summary:
    """The comparisons of many pictures together.

    n_faces: the reference's. n_unequal_faces: pictures with as many faces, but a pair beyond the tolerances. The last
    three are over the pictures with as many faces.
    """

    n_pictures: int
    n_faces: int
    n_equal_counts: int
    n_unequal_faces: int
    min_overlap: float
    max_landmark_shift_px: float
    max_confidence_difference: float

    @property
    def is_parity(self) -> bool:
        return self.n_equal_counts >= MIN_EQUAL_COUNTS * self.n_pictures and self.n_unequal_faces == 0

    def __str__(self) -> str:
        return (
            f"{self.n_pictures} pictures with {self.n_faces} faces; "
            f"as many found in {self.n_equal_counts} ({self.n_equal_counts / self.n_pictures:.2%}); "
            f"beyond the tolerances in {self.n_unequal_faces}; least IoU {self.min_overlap:.4f}, "
            f"largest landmark shift {self.max_landmark_shift_px:.3f} px, "
            f"largest confidence difference {self.max_confidence_difference:.5f}"
        )


def astronaut_and_composites(every: int = 1) -> Iterator[Picture]:
    """The same pictures everywhere: the astronaut, and every n-th of the composites, from the first on."""
    import skimage

    astronaut = Path(skimage.__file__).parent / "data" / "astronaut.png"
    yield Picture("astronaut", decode_image(astronaut.read_bytes()))
    for seed in range(0, N_COMPOSITES, every):
        yield Picture(f"composite {seed}", composite(seed))


def photographs() -> Iterator[Picture]:
    """Every photograph of ../shared/data/photos; none where that folder is absent."""
    for path in sorted(_PHOTOS.glob("*/*")):
        yield Picture(f"{path.parent.name}/{path.name}", decode_image(path.read_bytes()))


class Reference:
    """facenet-pytorch's own MTCNN, made the way that everybody makes it, on one thread."""

    def __init__(self) -> None:
        from facenet_pytorch import MTCNN

        self._mtcnn = MTCNN(keep_all=True, device="cpu")

    def detect(self, rgb_u8: NDArray[np.uint8]) -> list[Detection]:
        """Faces of a picture, uint8 (H, W, 3) RGB."""
        with _one_torch_thread():
            boxes, confidences, points = self._mtcnn.detect(Image.fromarray(rgb_u8), landmarks=True)
        if boxes is None:
            return []
        return [
            Detection(
                box_px=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                confidence=float(confidence),
                landmarks_px=tuple((float(x), float(y)) for x, y in landmarks),
            )
            for box, confidence, landmarks in zip(boxes, confidences, points, strict=True)
        ]


@contextmanager
def _one_torch_thread() -> Iterator[None]:
    """These networks are too small to gain from more, and lose a lot on shared cores."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def compare(picture: Picture, found: Sequence[Detection], expected: Sequence[Detection]) -> Comparison:
    """Match the faces one to one, the best overlap of all first, and measure the pairs; order does not matter."""
    overlaps = np.array([[overlap(face.box_px, other.box_px) for other in expected] for face in found])
    pairs: list[tuple[Detection, Detection]] = []
    matched_overlaps: list[float] = []
    for _ in range(min(len(found), len(expected))):
        row, column = np.unravel_index(overlaps.argmax(), overlaps.shape)
        pairs.append((found[row], expected[column]))
        matched_overlaps.append(float(overlaps[row, column]))
        overlaps[row, :] = overlaps[:, column] = -1
    return Comparison(
        picture=picture.name,
        longer_side_px=max(picture.rgb_u8.shape[:2]),
        n_found=len(found),
        n_expected=len(expected),
        min_overlap=min(matched_overlaps, default=1.0),
        max_landmark_shift_px=max((_landmark_shift_px(face, other) for face, other in pairs), default=0.0),
        max_confidence_difference=max((abs(face.confidence - other.confidence) for face, other in pairs), default=0.0),
    )


def compare_all(
    detector: Detector, reference: Callable[[Picture], list[Detection]], pictures: Iterable[Picture]
) -> list[Comparison]:
    """Compare a detector with the reference's faces on every picture, at the default smallest face."""
    return [
        compare(picture, detector.detect(picture.rgb_u8, DetectionSettings().min_face_size_px), reference(picture))
        for picture in pictures
    ]


def _landmark_shift_px(face: Detection, other: Detection) -> float:
    return float(np.linalg.norm(np.subtract(face.landmarks_px, other.landmarks_px), axis=1).max())


def summarise(comparisons: Sequence[Comparison]) -> Summary:
    """The comparisons of at least one picture, together."""
    equal = [comparison for comparison in comparisons if comparison.count_is_equal]
    return Summary(
        n_pictures=len(comparisons),
        n_faces=sum(comparison.n_expected for comparison in comparisons),
        n_equal_counts=len(equal),
        n_unequal_faces=sum(not comparison.faces_are_equal for comparison in equal),
        min_overlap=min((comparison.min_overlap for comparison in equal), default=1.0),
        max_landmark_shift_px=max((comparison.max_landmark_shift_px for comparison in equal), default=0.0),
        max_confidence_difference=max((comparison.max_confidence_difference for comparison in equal), default=0.0),
    )
