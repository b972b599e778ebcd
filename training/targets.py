"""What the network is taught for each face: its label, blended with what teachers and annotators say."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from handlers.classifier import EmotionClassifier, probabilities_of
from handlers.engines.torch_engine import TorchEngine
from handlers.preprocess import resize_crop
from model_store.bundle import Bundle
from model_store.manifest import EmotionManifest
from model_store.networks import load_networks
from training.config import TargetsConfig
from training.data import FaceSet
from training.errors import DataError
from training.votes import labels_given_votes


def training_targets(
    faces: FaceSet, config: TargetsConfig, teachers: NDArray[np.float32] | None = None
) -> NDArray[np.float32]:
    """Float32 (N, K), a distribution for each face: see `TargetsConfig`.

    teachers: the teachers' mean probabilities (N, K), see `teacher_probabilities`; needed with a teacher weight.
    Soft labels of the data set take the label's place. Raises DataError when the faces have no votes and the
    configuration wants them.
    """
    n_classes = len(faces.label_names)
    own = faces.soft_labels if faces.soft_labels is not None else np.eye(n_classes, dtype=np.float32)[faces.labels]
    own = (1 - config.label_smoothing) * own + config.label_smoothing / n_classes
    targets = (1 - config.teacher_weight - config.votes) * own
    if config.teacher_weight:
        if teachers is None or teachers.shape != own.shape:
            raise DataError("targets.teachers: their probabilities are missing or of other faces")
        targets = targets + config.teacher_weight * teachers
    if config.votes:
        if faces.votes is None:
            raise DataError("targets.votes: this data set has no FER+ votes")
        targets = targets + config.votes * labels_given_votes(faces.votes, faces.labels, n_classes)
    return targets.astype(np.float32)


def teacher_probabilities(
    bundles: Sequence[Bundle], faces: FaceSet, temperature: float, *, threads: int
) -> NDArray[np.float32]:
    """The mean over bundles of softmax(logits / temperature), each the mean over a face and its mirror image.

    float32 (N, K). The faces' crops are brought to each teacher's own input. Raises DataError when a teacher has other
    labels.
    """
    total = np.zeros((len(faces), len(faces.label_names)), np.float32)
    for bundle in bundles:
        manifest = bundle.manifest
        if not isinstance(manifest, EmotionManifest) or manifest.labels != faces.label_names:
            raise DataError(f"targets.teachers: {manifest.tag} has other labels than {', '.join(faces.label_names)}")
        network = TorchEngine(threads).wrap(load_networks(bundle)["classifier"])
        crops = [resize_crop(crop, manifest.input) for crop in faces.crops_u8]
        logits = EmotionClassifier(manifest, network, "flip").logits(crops)
        total += probabilities_of(logits, temperature) / len(bundles)
    return total
