"""The MTCNN cascade (Zhang et al., 2016) on any engine's networks, with the results of `facenet_pytorch.MTCNN`.

P-Net proposes boxes on every level of a pyramid, R-Net and O-Net refine and prune them, O-Net adds the landmarks.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handlers.detection import largest_first
from handlers.detection.area_pooling import AreaPooling
from handlers.detection.boxes import (
    Boxes,
    clip_to_pixels,
    non_maximum_suppression,
    regress,
    to_squares,
)
from handlers.engines import Network
from handlers.results import Detection

_PNET_CELL_PX, _PNET_STRIDE_PX = 12, 2
_REFINE_BATCH = 512


@dataclass(frozen=True)
class MtcnnSettings:
    """Thresholds of the three stages on the face probability, and the ratio between pyramid levels.

    max_level_side_px bounds the longer side of the largest pyramid level, and so time and memory: on a picture with a
    side over max_level_side_px · min_face_size / 12 the smallest face looked for grows with it (at 20 px: from 2,560 px
    on). Up to there the results are the reference's.
    """

    thresholds: tuple[float, float, float] = (0.6, 0.7, 0.7)
    pyramid_factor: float = 0.709
    max_level_side_px: int = 1536


class MtcnnDetector:
    """A detector of the three networks `pnet`, `rnet` and `onet`. Keeps no state between calls."""

    def __init__(self, networks: dict[str, Network], settings: MtcnnSettings | None = None) -> None:
        self._pnet, self._rnet, self._onet = networks["pnet"], networks["rnet"], networks["onet"]
        self._settings = settings or MtcnnSettings()

    def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
        """Faces of at least about `min_face_size_px` in a picture, uint8 (H, W, 3) RGB, the largest first."""
        height, width, _ = rgb_u8.shape
        scales = pyramid_scales(height, width, min_face_size_px, self._settings)
        if not scales:
            return []
        pooling = AreaPooling(rgb_u8)
        boxes = self._propose(pooling, scales)
        if len(boxes):  # an engine need not take an empty batch
            boxes = self._refine(pooling, boxes)
        return self._describe(pooling, boxes) if len(boxes) else []

    def _propose(self, pooling: AreaPooling, scales: list[float]) -> Boxes:
        """P-Net over the pyramid → candidate squares (N, 4)."""
        boxes: list[Boxes] = []
        scores: list[NDArray[np.float32]] = []
        offsets: list[NDArray[np.float32]] = []
        for scale in scales:
            level = pooling.resize(int(pooling.height * scale + 1), int(pooling.width * scale + 1))
            regression, probability = self._pnet(_centred(level)[np.newaxis])
            found = boxes_of_cells(regression[0], probability[0, 1], scale, self._settings.thresholds[0])
            keep = non_maximum_suppression(found[0], found[1], 0.5, "union")
            for parts, part in zip((boxes, scores, offsets), found, strict=True):
                parts.append(part[keep])
        all_boxes = np.concatenate(boxes)
        keep = non_maximum_suppression(all_boxes, np.concatenate(scores), 0.7, "union")
        return _squares_with_pixels(regress(all_boxes[keep], np.concatenate(offsets)[keep], edge=0.0), pooling)

    def _refine(self, pooling: AreaPooling, boxes: Boxes) -> Boxes:
        """R-Net on the candidates → fewer and better squares (N, 4)."""
        offsets, probabilities = _run_on_crops(self._rnet, pooling, boxes, 24)
        passed = probabilities[:, 1] > self._settings.thresholds[1]
        boxes, scores, offsets = boxes[passed], probabilities[passed, 1], offsets[passed]
        keep = non_maximum_suppression(boxes, scores, 0.7, "union")
        return _squares_with_pixels(regress(boxes[keep], offsets[keep], edge=1.0), pooling)

    def _describe(self, pooling: AreaPooling, boxes: Boxes) -> list[Detection]:
        """O-Net on the survivors → faces with landmarks."""
        offsets, points, probabilities = _run_on_crops(self._onet, pooling, boxes, 48)
        passed = probabilities[:, 1] > self._settings.thresholds[2]
        boxes, scores = boxes[passed], probabilities[passed, 1]
        sides = boxes[:, 2:] - boxes[:, :2] + 1
        landmarks = points[passed].reshape(-1, 2, 5).transpose(0, 2, 1) * sides[:, None] + boxes[:, None, :2] - 1
        boxes = regress(boxes, offsets[passed], edge=1.0)
        keep = non_maximum_suppression(boxes, scores, 0.7, "smaller")
        return largest_first(
            [
                Detection(
                    box_px=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                    confidence=float(score),
                    landmarks_px=tuple((float(x), float(y)) for x, y in face_points),
                )
                for box, score, face_points in zip(boxes[keep], scores[keep], landmarks[keep], strict=True)
            ]
        )


def pyramid_scales(height: int, width: int, min_face_size_px: int, settings: MtcnnSettings) -> list[float]:
    """Scales at which P-Net's 12-px cell covers faces from the smallest wanted to the whole picture."""
    scale = min(_PNET_CELL_PX / min_face_size_px, settings.max_level_side_px / max(height, width))
    shorter = min(height, width) * scale
    scales = []
    while shorter >= _PNET_CELL_PX:
        scales.append(scale)
        scale *= settings.pyramid_factor
        shorter *= settings.pyramid_factor
    return scales


def boxes_of_cells(
    regression: NDArray[np.float32], probability: NDArray[np.float32], scale: float, threshold: float
) -> tuple[Boxes, NDArray[np.float32], NDArray[np.float32]]:
    """P-Net's cells that may be a face, as boxes in picture pixels.

    regression: (4, h, w). probability: (h, w). Returns boxes (N, 4), scores (N,), offsets (N, 4), row by row.
    """
    rows, columns = np.nonzero(probability >= np.float32(threshold))
    corners = np.stack([columns, rows], 1).astype(np.float32) * _PNET_STRIDE_PX
    boxes = np.concatenate([corners + 1, corners + _PNET_CELL_PX], 1)
    boxes = np.floor(boxes / np.float32(scale))
    return boxes, probability[rows, columns], regression[:, rows, columns].T


def _squares_with_pixels(boxes: Boxes, pooling: AreaPooling) -> Boxes:
    """The boxes made square, without those that have no pixel inside the picture (facenet-pytorch fails on them)."""
    squares = to_squares(boxes)
    left, top, right, bottom = clip_to_pixels(squares, pooling.width, pooling.height).T
    with_pixels: Boxes = squares[(right > left) & (bottom > top)]
    return with_pixels


def _run_on_crops(
    network: Network, pooling: AreaPooling, boxes: Boxes, size_px: int
) -> tuple[NDArray[np.float32], ...]:
    """Run a network on the crops of at least one box; the outputs have a row a box."""
    corners = clip_to_pixels(boxes, pooling.width, pooling.height)
    batches = [
        network(_centred(pooling.crops(corners[start : start + _REFINE_BATCH], size_px)))
        for start in range(0, len(corners), _REFINE_BATCH)
    ]
    return tuple(np.concatenate(outputs) for outputs in zip(*batches, strict=True))


def _centred(values: NDArray[np.float32]) -> NDArray[np.float32]:
    """0..255 → about -1..1, as the networks were trained."""
    return (values - np.float32(127.5)) * np.float32(0.0078125)
