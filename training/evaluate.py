"""Scores of a bundle on a data set, through the classifier that serves it."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handlers.classifier import EmotionClassifier, probabilities_of
from handlers.engines import InputShape, Network, Precision, choose_engine
from handlers.engines.torch_engine import TorchEngine
from model_store import registry
from model_store.bundle import BUNDLES_ROOT, Bundle, find_bundle, open_bundle
from model_store.errors import ModelStoreError
from model_store.export import build_servable
from model_store.manifest import EmotionManifest, Evaluation, Tta
from model_store.networks import load_networks
from model_store.servable import ServableModel
from training.data import FaceSet
from training.errors import DataError
from training.ferplus import LabelsFrom, columns_of_emotions
from training.layouts import SPLITS, usages_of
from training.metrics import Scores, score


@dataclass(frozen=True)
class Report:
    """What `evaluate` prints: the scores as the manifest keeps them, and the confusion matrix."""

    model: str
    temperature: float
    evaluation: Evaluation
    confusion: NDArray[np.int64]
    precision: Precision = "fp32"

    def as_json(self) -> dict[str, object]:
        """Plain values; the confusion matrix has the true labels as its keys' order in rows."""
        return {
            "model": self.model,
            "precision": self.precision,
            "temperature": self.temperature,
            **self.evaluation.model_dump(),
            "labels": list(self.evaluation.per_class),
            "confusion": self.confusion.tolist(),
        }

    def as_text(self) -> str:
        """A table for the terminal."""
        scores = self.evaluation
        lines = [
            (
                f"{self.model} on {scores.split} "
                f"(n = {scores.n}, TTA {scores.tta}, {self.precision}, temperature {self.temperature})"
            ),
            (
                f"accuracy {scores.accuracy:.4f}  macro F1 {scores.macro_f1:.4f}  "
                f"ECE {scores.ece_uncalibrated:.4f} before temperature, {scores.ece:.4f} after"
            ),
            "",
            f"{'true ↓  called →':18}"
            + "".join(f"{label:>10}" for label in scores.per_class)
            + f"{'precision':>11}{'recall':>9}{'F1':>9}{'n':>7}",
        ]
        for (label, metrics), row in zip(scores.per_class.items(), self.confusion, strict=True):
            cells = "".join(f"{int(count):10d}" for count in row)
            lines.append(
                f"{label:18}{cells}{metrics.precision:11.4f}{metrics.recall:9.4f}{metrics.f1:9.4f}{metrics.n:7d}"
            )
        return "\n".join(lines)


def open_emotion_bundle(name: str, root: Path = BUNDLES_ROOT) -> Bundle:
    """The bundle `name` or `name:version` under `root`. Raises DataError when it is of another task."""
    bundle = open_bundle(find_bundle(root, name))
    if not isinstance(bundle.manifest, EmotionManifest):
        raise DataError(f"{name} is not an emotion classifier")
    return bundle


def load_network(bundle: Bundle, engine: str, threads: int, precision: Precision = "fp32") -> Network:
    """The bundle's network: on torch from its weights, on another engine from what registration would build.

    Raises ModelUnavailableError for int8 on torch, and for a bundle without an int8 network.
    """
    return load_precisions(bundle, engine, threads, (precision,))[0]


def load_precisions(bundle: Bundle, engine: str, threads: int, precisions: Sequence[Precision]) -> list[Network]:
    """The bundle's network once for each precision; see `load_network`.

    What registration built is taken from the model store where it stands there, as building it takes seconds.
    """
    chosen = choose_engine(engine, threads=threads)
    if isinstance(chosen, TorchEngine) and set(precisions) == {"fp32"}:
        return [chosen.wrap(load_networks(bundle)["classifier"]) for _ in precisions]
    assert isinstance(bundle.manifest, EmotionManifest)
    spec = bundle.manifest.input
    shape = InputShape((spec.channels, spec.size_px, spec.size_px))
    with _servable(bundle) as servable:
        return [chosen.load(servable, "classifier", shape, precision) for precision in precisions]


@contextlib.contextmanager
def _servable(bundle: Bundle) -> Iterator[ServableModel]:
    standing = None
    with contextlib.suppress(ModelStoreError):  # not registered, or damaged there: build it
        standing = registry.load(bundle.manifest.tag)
    if standing is not None and standing.bundle.sha256 == bundle.sha256:
        yield standing
        return
    with tempfile.TemporaryDirectory() as work:
        yield build_servable(bundle, Path(work))


def label_source(labels: tuple[str, ...], path: Path) -> LabelsFrom:
    """How a model with these labels reads a data set: by FER+'s majority where it knows FER+'s eight emotions.

    Class folders and split files have labels of their own and no votes, so those stand, whichever the model.
    """
    try:
        columns_of_emotions(labels)
    except DataError:
        return "label"
    has_own_labels = path.is_dir() or usages_of(path) == SPLITS
    return "label" if has_own_labels else "ferplus-majority"


def evaluate(manifest: EmotionManifest, network: Network, faces: FaceSet, split: str, tta: Tta) -> Report:
    """Score a network on faces. Raises DataError when the faces' labels are not the model's."""
    if faces.label_names != manifest.labels:
        raise DataError(f"the data has the labels {faces.label_names}, the model {manifest.labels}")
    return report(manifest, EmotionClassifier(manifest, network, tta).logits(list(faces.crops_u8)), faces, split, tta)


def report(manifest: EmotionManifest, logits: NDArray[np.float32], faces: FaceSet, split: str, tta: Tta) -> Report:
    """Score logits float32 (N, K) that a network gave for the faces with that augmentation."""
    evaluation, scores = evaluation_of(logits, manifest.temperature, faces, split, tta)
    return Report(manifest.tag, manifest.temperature, evaluation, scores.confusion)


def evaluation_of(
    logits: NDArray[np.float32], temperature: float, faces: FaceSet, split: str, tta: Tta
) -> tuple[Evaluation, Scores]:
    """Scores of logits float32 (N, K) at a temperature: as a manifest keeps them, and with the confusion matrix."""
    before, after = (
        score(probabilities_of(logits, value), faces.labels, faces.label_names) for value in (1.0, temperature)
    )
    evaluation = Evaluation(
        split=split,
        tta=tta,
        n=after.n,
        accuracy=after.accuracy,
        macro_f1=after.macro_f1,
        ece_uncalibrated=before.ece,
        ece=after.ece,
        per_class=after.per_class,
    )
    return evaluation, after
