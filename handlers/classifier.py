"""Face crops → calibrated probabilities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from handlers.engines import Network
from handlers.preprocess import preprocess
from handlers.results import Emotion
from model_store.manifest import EmotionManifest, FaceCropSpec, InputSpec, Tta

_BATCH = 64


class ClassifierSpec(Protocol):
    """What the callers of a classifier must know of it. A manifest is one, and so is every classifier."""

    @property
    def tag(self) -> str:
        """`name:version`."""
        ...

    @property
    def labels(self) -> tuple[str, ...]:
        """In the order of the probabilities."""
        ...

    @property
    def input(self) -> InputSpec:
        """How a crop becomes an input."""
        ...

    @property
    def face_crop(self) -> FaceCropSpec:
        """Which square around a detector's box is the crop."""
        ...


class Classifier(ClassifierSpec, Protocol):
    """Says what expression a face shows. Safe to call from several threads."""

    def classify(self, crops_u8: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Crops, uint8 (H, W), (H, W, 1) or (H, W, 3) RGB of any sizes → float32 (N, K), rows sum to 1."""
        ...


class EmotionClassifier:
    """A registered emotion model on an engine.

    tta: `flip` averages the logits of each crop and its mirror image, at twice the cost.
    """

    def __init__(self, manifest: EmotionManifest, network: Network, tta: Tta = "none") -> None:
        self.tag = manifest.tag
        self.labels = manifest.labels
        self.input = manifest.input
        self.face_crop = manifest.face_crop
        self.temperature = manifest.temperature
        self._network = network
        self._tta = tta

    def classify(self, crops_u8: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Probabilities after temperature scaling (Guo et al., 2017); see `Classifier.classify`."""
        return probabilities_of(self.logits(crops_u8), self.temperature)

    def logits(self, crops_u8: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        """Logits float32 (N, K) before the temperature."""
        parts = [np.empty((0, len(self.labels)), np.float32)]
        for start in range(0, len(crops_u8), _BATCH):
            inputs = preprocess(crops_u8[start : start + _BATCH], self.input)
            (logits,) = self._network(inputs)
            if self._tta == "flip":
                (mirrored,) = self._network(np.ascontiguousarray(inputs[:, :, :, ::-1]))
                logits = (logits + mirrored) * np.float32(0.5)
            parts.append(logits)
        return np.concatenate(parts)


def probabilities_of(logits: NDArray[np.float32], temperature: float) -> NDArray[np.float32]:
    """Softmax of logits (N, K) divided by the temperature, computed in float64, returned as float32."""
    scaled = logits.astype(np.float64) / temperature
    exponents = np.exp(scaled - scaled.max(axis=1, keepdims=True, initial=-np.inf))
    return np.asarray(exponents / exponents.sum(axis=1, keepdims=True), np.float32)


def emotion_of(probabilities: NDArray[np.float32], labels: tuple[str, ...]) -> Emotion:
    """One row of probabilities (K,) as an `Emotion`, labels in the model's order."""
    if probabilities.shape != (len(labels),):
        raise ValueError(f"probabilities {probabilities.shape} for {len(labels)} labels")
    best = int(probabilities.argmax())
    return Emotion(
        label=labels[best],
        confidence=float(probabilities[best]),
        probabilities={label: float(value) for label, value in zip(labels, probabilities, strict=True)},
    )
