"""Finds the face crop: how a detector's box relates to the tight squares that the training faces are.

Training faces are enlarged and set in a frame, the detector runs on them, and the square is described relative to its
box. Serving then cuts the same square out of a photograph around the same box.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from handlers.classifier import Classifier
from handlers.decode import decode_image
from handlers.detection import Detector
from handlers.detection.settings import DetectionSettings
from handlers.errors import HandlerError
from handlers.face_crop import cut_face
from handlers.results import Detection
from model_store.manifest import FaceCropSpec
from training.data import FaceSet
from training.errors import DataError

_ENLARGED_PX = 192
_FRAME_PX = 96
_MIN_DETECTIONS = 20


@dataclass(frozen=True)
class Quartiles:
    """Lower quartile, median and upper quartile of one quantity over the faces."""

    low: float
    median: float
    high: float


@dataclass(frozen=True)
class CropFit:
    """The square in units of the box's longer side, over the training faces in which the detector found a face."""

    n_faces: int
    n_found: int
    scale: Quartiles
    shift_x: Quartiles
    shift_y: Quartiles

    @property
    def spec(self) -> FaceCropSpec:
        """The medians, to two decimals."""
        return FaceCropSpec(
            scale=round(self.scale.median, 2),
            shift_x=round(self.shift_x.median, 2),
            shift_y=round(self.shift_y.median, 2),
            alignment="none",
        )


def fit_face_crop(detector: Detector, faces: FaceSet, n: int, seed: int = 0) -> CropFit:
    """Fit on `n` faces drawn at random. Raises DataError when the detector finds too few of them."""
    rows = np.random.default_rng(seed).permutation(len(faces))[:n]
    found = [values for row in rows if (values := _relative_square(detector, faces.crops_u8[row])) is not None]
    if len(found) < _MIN_DETECTIONS:
        raise DataError(f"the detector found a face in only {len(found)} of {len(rows)} training crops")
    scale, shift_x, shift_y = (
        Quartiles(*map(float, np.percentile(column, (25, 50, 75)))) for column in zip(*found, strict=False)
    )
    return CropFit(len(rows), len(found), scale, shift_x, shift_y)


def detect_in_crop(detector: Detector, crop_u8: NDArray[np.uint8]) -> Detection | None:
    """The largest face that a detector finds in a training face, uint8 (S, S, C); None when it finds none.

    A training face fills its picture and is smaller than what a detector looks for, so it is enlarged to 192 px and
    its edges are repeated for 96 px around it: box and landmarks are in pixels of that frame.
    """
    image = Image.fromarray(crop_u8[:, :, 0] if crop_u8.shape[2] == 1 else crop_u8).convert("RGB")
    enlarged = np.asarray(image.resize((_ENLARGED_PX, _ENLARGED_PX), Image.Resampling.BICUBIC))
    framed = np.pad(enlarged, ((_FRAME_PX, _FRAME_PX), (_FRAME_PX, _FRAME_PX), (0, 0)), mode="edge")
    detections = detector.detect(framed, _ENLARGED_PX // 4)
    return detections[0] if detections else None


def _relative_square(detector: Detector, crop_u8: NDArray[np.uint8]) -> tuple[float, float, float] | None:
    """Scale and shifts of the crop's square relative to the box found in it; None when no face is found."""
    detection = detect_in_crop(detector, crop_u8)
    if detection is None:
        return None
    left, top, right, bottom = detection.box_px
    longer = max(right - left, bottom - top)
    centre = _FRAME_PX + _ENLARGED_PX / 2
    return _ENLARGED_PX / longer, (centre - (left + right) / 2) / longer, (centre - (top + bottom) / 2) / longer


@dataclass(frozen=True)
class CropScore:
    """Accuracy of the whole chain on labelled photographs with one crop geometry."""

    spec: FaceCropSpec
    accuracy: float
    n: int


def score_crops(
    detector: Detector, classifier: Classifier, photos: Path, specs: list[FaceCropSpec]
) -> tuple[list[CropScore], int]:
    """Score each geometry on `<photos>/<label>/*`: the largest face of each photograph against its folder's name.

    Returns the scores, and the number of files in which no face was found or that are no picture (they count in no
    score).
    """
    pictures: list[tuple[NDArray[np.uint8], Detection, int]] = []
    n_missed = 0
    for index, label in enumerate(classifier.labels):
        for file in sorted((photos / label).glob("*")):
            try:
                rgb_u8 = decode_image(file.read_bytes())
            except HandlerError:
                n_missed += 1
                continue
            detections = detector.detect(rgb_u8, DetectionSettings().min_face_size_px)
            if detections:
                pictures.append((rgb_u8, detections[0], index))
            else:
                n_missed += 1
    if not pictures:
        raise DataError(f"{photos}: no photograph with a face in folders named {', '.join(classifier.labels)}")
    truth = np.array([label for _, _, label in pictures])
    scores = []
    for spec in specs:
        crops = [cut_face(rgb_u8, detection.box_px, spec) for rgb_u8, detection, _ in pictures]
        hits = classifier.classify(crops).argmax(1) == truth
        scores.append(CropScore(spec, float(hits.mean()), len(pictures)))
    return scores, n_missed
