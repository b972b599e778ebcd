"""The reference detector: facenet-pytorch's own MTCNN, with the weights of the registered bundle."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from handlers.detection.mtcnn import pyramid_scales
from handlers.detection.settings import DetectionSettings
from handlers.results import Detection
from model_store.networks import load_networks
from model_store.servable import ServableModel


class ReferenceDetector:
    """`facenet_pytorch.MTCNN(keep_all=True)` behind the `Detector` protocol."""

    def __init__(self, model: ServableModel, device: str = "cpu", settings: DetectionSettings | None = None) -> None:
        from facenet_pytorch import MTCNN

        self._settings = settings or DetectionSettings()
        self._mtcnn = MTCNN(
            keep_all=True,
            thresholds=list(self._settings.thresholds),
            factor=self._settings.pyramid_factor,
            device=device,
        )
        for name, network in load_networks(model.bundle).items():
            getattr(self._mtcnn, name).load_state_dict(network.state_dict())
        self._lock = threading.Lock()

    def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
        """Faces of a picture, uint8 (H, W, 3) RGB, the largest first."""
        height, width, _ = rgb_u8.shape
        scales = pyramid_scales(height, width, min_face_size_px, self._settings)
        if not scales:  # facenet-pytorch raises on a picture without a pyramid level
            return []
        with self._lock:  # the smallest face is an attribute there, not an argument
            self._mtcnn.min_face_size = 12 / scales[0]
            boxes, confidences, points = self._mtcnn.detect(rgb_u8, landmarks=True)
        if boxes is None:
            return []
        return [
            Detection(
                box_px=(float(box[0]), float(box[1]), float(box[2]), float(box[3])),
                confidence=float(confidence),
                landmarks_px=tuple((float(x), float(y)) for x, y in face_points),
            )
            for box, confidence, face_points in zip(boxes, confidences, points, strict=True)
        ]

    def detect_batch(
        self, pictures: Sequence[NDArray[np.uint8]], min_face_sizes_px: Sequence[int]
    ) -> list[list[Detection]]:
        """One picture after the other."""
        return [self.detect(rgb_u8, size) for rgb_u8, size in zip(pictures, min_face_sizes_px, strict=True)]
