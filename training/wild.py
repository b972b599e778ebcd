"""How a model does on photographs: the chain that serves it, on `<emotion>/<picture>` folders.

Pictures are decoded and searched once, whatever the number of models. Each model then gets the largest face of every
picture, cut and resized by the functions that the detector's runner uses, and its classifier answers with the
calibrated probabilities that a caller would see.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handlers.classifier import Classifier, EmotionClassifier
from handlers.decode import decode_image
from handlers.detection import Detector
from handlers.detection.settings import DetectionSettings
from handlers.engines import Precision
from handlers.errors import HandlerError
from handlers.face_crop import cut_face
from handlers.preprocess import resize_crop
from handlers.results import Detection
from model_store.bundle import Bundle
from model_store.manifest import EmotionManifest
from training.errors import DataError
from training.evaluate import load_precisions
from training.label_names import matching_label
from training.metrics import expected_calibration_error


@dataclass(frozen=True, eq=False)
class Portrait:
    """A labelled picture and its largest face.

    emotion: its folder's name. rgb_u8: uint8 (H, W, 3). face: None where none was found.
    """

    name: str
    emotion: str
    rgb_u8: NDArray[np.uint8]
    face: Detection | None


@dataclass(frozen=True)
class Photographs:
    """What a folder of class folders holds. unreadable: names of the files that are no picture."""

    portraits: tuple[Portrait, ...]
    unreadable: tuple[str, ...]


def find_faces(detector: Detector, photos: Path) -> Photographs:
    """Decode every file of `<photos>/<emotion>/*` and find its largest face.

    Raises DataError when there is no such file.
    """
    portraits, unreadable = [], []
    for file in sorted(path for path in photos.glob("[!.]*/[!.]*") if path.is_file()):
        name = f"{file.parent.name}/{file.name}"
        try:
            rgb_u8 = decode_image(file.read_bytes())
        except HandlerError:
            unreadable.append(name)
            continue
        faces = detector.detect(rgb_u8, DetectionSettings().min_face_size_px)
        portraits.append(Portrait(name, file.parent.name, rgb_u8, faces[0] if faces else None))
    if not portraits:
        raise DataError(f"{photos}: no picture in folders named after emotions")
    return Photographs(tuple(portraits), tuple(unreadable))


@dataclass(frozen=True)
class WildReport:
    """A model's scores on photographs.

    n_pictures: all that could be read; of them `n_without_face` had no face, and `n_left_out` had one of an emotion
    that the model does not know. The others count: `n` of them. recall: for each folder, the share of its pictures
    that was called so. called: how many of them the model called what, in its own words, the commonest first.
    mean_confidence and ece are of the calibrated probabilities.
    """

    model: str
    precision: Precision
    n_pictures: int
    n_unreadable: int
    n_without_face: int
    n_left_out: int
    n: int
    accuracy: float
    mean_confidence: float
    ece: float
    recall: dict[str, float]
    called: dict[str, dict[str, int]]

    @property
    def standard_error(self) -> float:
        """Of the accuracy, as of `n` independent draws."""
        return math.sqrt(self.accuracy * (1 - self.accuracy) / self.n)

    def as_json(self) -> dict[str, object]:
        """Plain values, with the standard error."""
        return {**asdict(self), "standard_error": self.standard_error}


def score_wild(classifier: Classifier, photographs: Photographs, precision: Precision = "fp32") -> WildReport:
    """Score a classifier on the largest face of each picture. Raises DataError, see `known_faces`."""
    counted = known_faces(classifier, photographs)
    n_faces = sum(portrait.face is not None for portrait in photographs.portraits)
    probabilities = classifier.classify(face_crops(classifier, counted))
    truth = truth_of(classifier, counted)
    called = probabilities.argmax(1)
    emotions = np.array([portrait.emotion for portrait in counted])
    folders = sorted(set(emotions))
    return WildReport(
        model=classifier.tag,
        precision=precision,
        n_pictures=len(photographs.portraits),
        n_unreadable=len(photographs.unreadable),
        n_without_face=len(photographs.portraits) - n_faces,
        n_left_out=n_faces - len(counted),
        n=len(counted),
        accuracy=float((called == truth).mean()),
        mean_confidence=float(probabilities.max(1).mean()),
        ece=expected_calibration_error(probabilities, truth),
        recall={emotion: float((called == truth)[emotions == emotion].mean()) for emotion in folders},
        called={
            emotion: dict(Counter(classifier.labels[index] for index in called[emotions == emotion]).most_common())
            for emotion in folders
        },
    )


def known_faces(classifier: Classifier, photographs: Photographs) -> list[Portrait]:
    """The portraits with a face and an emotion that the classifier has a label for. Raises DataError without any."""
    known = [
        entry
        for entry in photographs.portraits
        if entry.face is not None and matching_label(entry.emotion, classifier.labels) is not None
    ]
    if not known:
        raise DataError(f"no face of {', '.join(classifier.labels)} in these photographs")
    return known


def face_crops(classifier: Classifier, portraits: Sequence[Portrait]) -> list[NDArray[np.uint8]]:
    """Each portrait's face as the detector's runner cuts it for this classifier: uint8 (S, S, C)."""
    return [
        resize_crop(cut_face(portrait.rgb_u8, portrait.face.box_px, classifier.face_crop), classifier.input)
        for portrait in portraits
        if portrait.face is not None
    ]


def truth_of(classifier: Classifier, portraits: Sequence[Portrait]) -> NDArray[np.int64]:
    """Each portrait's emotion as an index of the classifier's labels, int64 (N,). They must be `known_faces`."""
    labels = [matching_label(portrait.emotion, classifier.labels) for portrait in portraits]
    return np.array([classifier.labels.index(label) for label in labels if label is not None], np.int64)


def classifiers_of(
    bundle: Bundle, precisions: Sequence[Precision], engine: str = "auto", *, threads: int = 1
) -> list[tuple[Precision, EmotionClassifier]]:
    """The bundle's classifier in each precision that it has. Raises DataError when it has none of them."""
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    present = [precision for precision in precisions if precision != "int8" or manifest.int8 is not None]
    if not present:
        raise DataError(f"{manifest.tag} has no int8 network")
    networks = load_precisions(bundle, engine, threads, present)
    return [
        (precision, EmotionClassifier(manifest, network)) for precision, network in zip(present, networks, strict=True)
    ]


def wild_table(reports: Sequence[WildReport]) -> str:
    """Markdown: a line a model and precision. Recalls stand under the folders' names."""
    emotions = list(dict.fromkeys(emotion for report in reports for emotion in report.called))
    lines = [
        "| model | n | accuracy | standard error | " + " | ".join(emotions) + " | confidence | ECE |",
        "|---" * (len(emotions) + 6) + "|",
    ]
    for report in reports:
        recalls = " | ".join(f"{report.recall[name]:.0%}" if name in report.recall else "–" for name in emotions)
        lines.append(
            f"| {report.model} {report.precision} | {report.n} | {report.accuracy:.1%} | {report.standard_error:.1%} "
            f"| {recalls} | {report.mean_confidence:.1%} | {report.ece:.1%} |"
        )
    return "\n".join(lines)


def called_table(reports: Sequence[WildReport], emotion: str = "neutral") -> str:
    """Markdown: what each model called the pictures of one emotion, the commonest first."""
    lines = [f"| model | n {emotion} | called |", "|---|---|---|"]
    for report in reports:
        row = report.called.get(emotion)
        if row:
            words = ", ".join(f"{label} {count}" for label, count in row.items())
            lines.append(f"| {report.model} {report.precision} | {sum(row.values())} | {words} |")
    return "\n".join(lines)
