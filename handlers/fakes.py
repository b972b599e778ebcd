"""A detector and a classifier without a model: deterministic, instant, for tests, demos and the load-test floor."""

from __future__ import annotations

import zlib
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from handlers.results import Detection
from model_store.manifest import FaceCropSpec, InputSpec

FAKE_LABELS: tuple[str, ...] = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")


class FakeDetector:
    """Finds one face in the middle of every picture that is not all of one colour."""

    def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
        """One detection, half as large as the picture's shorter side, unless that is under `min_face_size_px`."""
        height, width, _ = rgb_u8.shape
        side = min(height, width) / 2
        if side < min_face_size_px or (rgb_u8 == rgb_u8[0, 0]).all():
            return []
        left, top = (width - side) / 2, (height - side) / 2
        points = ((0.3, 0.4), (0.7, 0.4), (0.5, 0.6), (0.35, 0.8), (0.65, 0.8))
        return [
            Detection(
                box_px=(left, top, left + side, top + side),
                confidence=0.99,
                landmarks_px=tuple((left + x * side, top + y * side) for x, y in points),
            )
        ]

    def detect_batch(
        self, pictures: Sequence[NDArray[np.uint8]], min_face_sizes_px: Sequence[int]
    ) -> list[list[Detection]]:
        """One picture after the other."""
        return [self.detect(rgb_u8, size) for rgb_u8, size in zip(pictures, min_face_sizes_px, strict=True)]


class FakeClassifier:
    """Draws the probabilities of a crop from a checksum of its pixels: the same crop always gets the same ones."""

    tag = "fake:1.0.0"
    labels: tuple[str, ...] = FAKE_LABELS
    input = InputSpec(size_px=48, channels=1, mean=(0.5,), std=(0.25,), interpolation="bilinear")
    face_crop = FaceCropSpec(scale=1.0, shift_x=0.0, shift_y=0.0, alignment="none")

    def classify(self, crops_u8: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """float32 (N, 7), rows sum to 1."""
        rows = np.empty((len(crops_u8), len(self.labels)), np.float32)
        for row, crop in zip(rows, crops_u8, strict=True):
            draws = np.random.default_rng(zlib.crc32(crop.tobytes())).exponential(size=len(row))
            row[:] = draws / draws.sum()
        return rows
