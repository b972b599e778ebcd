"""Where a classifier is wrong: its commonest confusions, and its accuracy on kinds of faces.

Every table parts the same faces by another property: how blurred they are, how far they are turned, how much FER+'s
annotators agreed, whether the same pixels are a training face, how sure the classifier is.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from handlers.detection import Detector
from handlers.results import LANDMARK_NAMES, Detection
from training.data import FaceSet
from training.duplicates import pixel_digest
from training.face_crop_fit import detect_in_crop

FRONTAL, PROFILE = 0.25, 0.6
"""Up to the first a face counts as frontal, over the second as a profile; see `turned`."""

_AGREEMENTS = (0.5, 0.7, 0.9)
_CONFIDENCES = (0.4, 0.6, 0.8)


@dataclass(frozen=True)
class Confusion:
    """`n` faces labelled `truth` were called `called`: that share of the faces labelled `truth`."""

    truth: str
    called: str
    n: int
    share: float


@dataclass(frozen=True)
class Part:
    """The faces of one kind: how many, how many of them are called by their label, how sure the classifier is.

    `accuracy` and `confidence` are means over the part, NaN where it is empty.
    """

    kind: str
    n: int
    accuracy: float
    confidence: float


@dataclass(frozen=True)
class Answers:
    """A classifier's probabilities, float32 (N, K), for labelled faces."""

    faces: FaceSet
    probabilities: NDArray[np.float32]

    @property
    def hits(self) -> NDArray[np.bool_]:
        """bool (N,): which faces are called by their label."""
        hits: NDArray[np.bool_] = self.probabilities.argmax(1) == self.faces.labels
        return hits

    def part(self, kind: str, chosen: NDArray[np.bool_]) -> Part:
        """The faces that are `chosen`, bool (N,)."""
        n = int(chosen.sum())
        if not n:
            return Part(kind, 0, float("nan"), float("nan"))
        confidence = float(self.probabilities.max(1)[chosen].mean())
        return Part(kind, n, float(self.hits[chosen].mean()), confidence)


def commonest_confusions(confusion: NDArray[np.int64], labels: Sequence[str], n: int = 10) -> list[Confusion]:
    """The `n` commonest errors of a confusion matrix (K, K) whose rows are the true labels; never one of 0 faces."""
    errors = confusion.copy()
    np.fill_diagonal(errors, 0)
    found = []
    for flat in np.argsort(-errors, axis=None, kind="stable")[:n]:
        truth, called = np.unravel_index(flat, errors.shape)
        count = int(errors[truth, called])
        if count:
            found.append(Confusion(labels[truth], labels[called], count, count / int(confusion[truth].sum())))
    return found


def sharpness(crops_u8: NDArray[np.uint8]) -> NDArray[np.float64]:
    """Variance of the Laplacian (Pech-Pacheco et al., 2000) of crops uint8 (N, S, S, C), whose channels are averaged.

    Divided by the variance of the crop, so that a dull face is not taken for a blurred one. 0 for a crop of one grey.
    """
    grey = crops_u8.astype(np.float64).mean(3)
    centre = grey[:, 1:-1, 1:-1]
    laplacian = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:] - 4 * centre
    spread = grey.var((1, 2))
    values: NDArray[np.float64] = np.divide(laplacian.var((1, 2)), spread, out=np.zeros_like(spread), where=spread > 0)
    return values


def turned(detection: Detection) -> float:
    """How far a face is turned aside, from 0: the nose's way from between the eyes, in half distances of the eyes.

    Measured along the line of the eyes, so a tilted head counts as it would upright. At 1 the nose is below an eye.
    """
    points = dict(zip(LANDMARK_NAMES, np.array(detection.landmarks_px, np.float64), strict=True))
    eyes = points["right_eye"] - points["left_eye"]
    aside = np.dot(points["nose"] - (points["left_eye"] + points["right_eye"]) / 2, eyes)
    length = float(np.dot(eyes, eyes))
    return float(abs(aside) / length * 2) if length else float("inf")


def by_sharpness(answers: Answers) -> list[Part]:
    """Quarters of the faces, the blurred first."""
    edges = np.quantile(values := sharpness(answers.faces.crops_u8), (0.25, 0.5, 0.75))
    quarter = np.searchsorted(edges, values, side="left")
    names = ("the most blurred quarter", "the second", "the third", "the sharpest quarter")
    return [answers.part(name, quarter == index) for index, name in enumerate(names)]


def by_pose(answers: Answers, detector: Detector) -> list[Part]:
    """Frontal, half turned and profile, by the landmarks of a detector that runs on every face."""
    found = [detect_in_crop(detector, crop) for crop in answers.faces.crops_u8]
    aside = np.array([np.nan if detection is None else turned(detection) for detection in found])
    return [
        answers.part(f"frontal (nose up to {FRONTAL} aside)", aside <= FRONTAL),
        answers.part(f"half turned (up to {PROFILE})", (aside > FRONTAL) & (aside <= PROFILE)),
        answers.part("profile", aside > PROFILE),
        answers.part("the detector finds no face", np.isnan(aside)),
    ]


def by_agreement(answers: Answers) -> list[Part]:
    """By the share of FER+'s annotators who chose what most of them chose; nothing when the faces have no votes."""
    votes = answers.faces.votes
    if votes is None:
        return []
    total = votes.sum(1, dtype=np.int64)
    share = np.divide(votes.max(1), total, out=np.zeros(len(votes)), where=total > 0)
    parts = _steps(answers, "agreed", share, _AGREEMENTS, total > 0)
    return [*parts, answers.part("nobody voted", total == 0)]


def by_twin(answers: Answers, training: FaceSet) -> list[Part]:
    """By whether the same pixels are a training face, and with which label."""
    labels = defaultdict(set)
    for crop, label in zip(training.crops_u8, training.labels, strict=True):
        labels[pixel_digest(crop)].add(int(label))
    twins = [labels.get(pixel_digest(crop), set()) for crop in answers.faces.crops_u8]
    there = np.array([bool(twin) for twin in twins])
    alike = np.array([int(label) in twin for label, twin in zip(answers.faces.labels, twins, strict=True)])
    return [
        answers.part("a training face with this label", there & alike),
        answers.part("a training face with another label", there & ~alike),
        answers.part("no training face", ~there),
    ]


def by_confidence(answers: Answers) -> list[Part]:
    """By the probability of what the face is called."""
    values = answers.probabilities.max(1).astype(np.float64)
    return _steps(answers, "sure", values, _CONFIDENCES, np.ones(len(values), bool))


def confusion_table(confusions: Sequence[Confusion]) -> str:
    """Markdown: a line an error."""
    lines = ["| labelled | called | faces | of that label |", "|---|---|--:|--:|"]
    lines += [f"| {row.truth} | {row.called} | {row.n} | {row.share:.1%} |" for row in confusions]
    return "\n".join(lines)


def part_table(title: str, parts: Sequence[Part]) -> str:
    """Markdown: a line a kind of faces."""
    lines = [f"| {title} | faces | accuracy | mean confidence |", "|---|--:|--:|--:|"]
    for part in parts:
        scores = f"{part.accuracy:.1%} | {part.confidence:.1%}" if part.n else "– | –"
        lines.append(f"| {part.kind} | {part.n} | {scores} |")
    return "\n".join(lines)


def _steps(
    answers: Answers, word: str, values: NDArray[np.float64], edges: Sequence[float], counted: NDArray[np.bool_]
) -> list[Part]:
    """Parts between the edges, the lowest first; a value at an edge belongs to what is above it."""
    step = np.searchsorted(np.array(edges) - 1e-9, values, side="right")
    bounds = ["0", *(f"{edge:.0%}"[:-1] for edge in edges), "100"]
    return [
        answers.part(f"{word} {low} to {high} %", counted & (step == index))
        for index, (low, high) in enumerate(pairwise(bounds))
    ]
