"""What costs accuracy in the wild, measured without training anything: spoiled crops, box jitter, class priors.

Every lever is pulled on face crops of the network's input size, so that its strengths mean the same for photographs and
for FER2013's 48-px faces; lengths are in 48ths of the crop's side. Geometry is different: a photograph is cut again
around a wrong box, so what comes into view is real, while a bare crop can only repeat its edge.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from handlers.classifier import Classifier
from handlers.face_crop import cut_face
from handlers.preprocess import resize_crop
from model_store.manifest import FaceCropSpec
from training.data import FaceSet
from training.errors import DataError
from training.label_names import matching_label
from training.wild import Portrait, face_crops, truth_of

Crop = NDArray[np.uint8]
_REFERENCE_PX = 48


@dataclass(frozen=True)
class Lever:
    """One way to spoil a crop. spoil: crop uint8 (S, S, C), strength and a generator → a crop of that shape."""

    name: str
    strengths: tuple[float, ...]
    spoil: Callable[[Crop, float, np.random.Generator], Crop]


@dataclass(frozen=True)
class Framing:
    """A wrong box: its side is `scale` times the right one's, its centre off by shares of the right side."""

    scale: float = 1.0
    shift_x: float = 0.0
    shift_y: float = 0.0


def _image(crop_u8: Crop) -> Image.Image:
    return Image.fromarray(crop_u8[:, :, 0] if crop_u8.shape[2] == 1 else crop_u8)


def _blur(crop_u8: Crop, sigma: float, _: np.random.Generator) -> Crop:
    radius = sigma * len(crop_u8) / _REFERENCE_PX
    return np.asarray(_image(crop_u8).filter(ImageFilter.GaussianBlur(radius))).reshape(crop_u8.shape)


def _resample(crop_u8: Crop, side_px: float, _: np.random.Generator) -> Crop:
    side = len(crop_u8)
    small = _image(crop_u8).resize((int(side_px), int(side_px)), Image.Resampling.BILINEAR)
    return np.asarray(small.resize((side, side), Image.Resampling.BILINEAR)).reshape(crop_u8.shape)


def _jpeg(crop_u8: Crop, quality: float, _: np.random.Generator) -> Crop:
    file = io.BytesIO()
    _image(crop_u8).save(file, "JPEG", quality=int(quality))
    return np.asarray(Image.open(file)).reshape(crop_u8.shape)


def _light(crop_u8: Crop, lift: float, _: np.random.Generator) -> Crop:
    return np.asarray(np.clip(crop_u8.astype(np.float32) + lift, 0, 255).round(), np.uint8)


def _contrast(crop_u8: Crop, gain: float, _: np.random.Generator) -> Crop:
    mean = crop_u8.mean()
    return np.asarray(np.clip((crop_u8 - mean) * gain + mean, 0, 255).round(), np.uint8)


def _noise(crop_u8: Crop, sigma: float, rng: np.random.Generator) -> Crop:
    return np.asarray(np.clip(crop_u8 + rng.normal(0, sigma, crop_u8.shape), 0, 255).round(), np.uint8)


def _rotate(crop_u8: Crop, limit_deg: float, rng: np.random.Generator) -> Crop:
    """By a random angle, the edge repeated."""
    side = len(crop_u8)
    padded = np.pad(crop_u8, ((side // 2, side // 2), (side // 2, side // 2), (0, 0)), mode="edge")
    turned = _image(padded).rotate(rng.uniform(-limit_deg, limit_deg), Image.Resampling.BILINEAR)
    start = side // 2
    return np.asarray(turned).reshape(padded.shape)[start : start + side, start : start + side]


LEVERS = (
    Lever("blur, sigma px", (0.5, 1.0, 1.5, 2.0), _blur),
    Lever("seen at px", (32, 24, 16, 12), _resample),
    Lever("JPEG quality", (60, 30, 15, 8), _jpeg),
    Lever("brighter by", (-80, -40, 40, 80), _light),
    Lever("contrast times", (0.3, 0.5, 0.7, 1.5), _contrast),
    Lever("noise, sigma", (5, 10, 20), _noise),
    Lever("turned by up to °", (10, 20, 30), _rotate),
)

FRAMINGS = (
    *(Framing(scale=scale) for scale in (0.8, 0.9, 1.1, 1.2, 1.35)),
    *(Framing(shift_x=shift) for shift in (-0.1, -0.05, 0.05, 0.1)),
    *(Framing(shift_y=shift) for shift in (-0.1, -0.05, 0.05, 0.1)),
)


@dataclass(frozen=True)
class LeverScore:
    """Accuracy on all crops and recall on the neutral ones, with one lever at one strength. NaN: no neutral crop."""

    lever: str
    strength: str
    accuracy: float
    neutral_recall: float


def lever_scores_of_faces(classifier: Classifier, faces: FaceSet, seed: int = 0) -> list[LeverScore]:
    """The untouched faces first, then every lever of `LEVERS` and `FRAMINGS` at every strength.

    faces: crops of the classifier's own size and channels. Raises DataError when their labels are not the
    classifier's.
    """
    if faces.label_names != classifier.labels:
        raise DataError(f"the faces have the labels {faces.label_names}, the model {classifier.labels}")
    crops = list(faces.crops_u8)
    spoiled = _spoiled(crops, seed)
    framed = ((framing, [_reframed(crop, framing) for crop in crops]) for framing in FRAMINGS)
    return _scores(classifier, faces.labels, crops, spoiled, framed)


def lever_scores_of_portraits(classifier: Classifier, portraits: Sequence[Portrait], seed: int = 0) -> list[LeverScore]:
    """The same for the largest faces of photographs, see `training.wild.known_faces`."""
    framed = (
        (framing, [_cut_wrongly(portrait, framing, classifier) for portrait in portraits]) for framing in FRAMINGS
    )
    crops = face_crops(classifier, portraits)
    return _scores(classifier, truth_of(classifier, portraits), crops, _spoiled(crops, seed), framed)


def _spoiled(crops: Sequence[Crop], seed: int) -> Iterator[tuple[Lever, float, list[Crop]]]:
    for lever in LEVERS:
        for strength in lever.strengths:
            rng = np.random.default_rng(seed)
            yield lever, strength, [lever.spoil(crop, strength, rng) for crop in crops]


def _scores(
    classifier: Classifier,
    labels: NDArray[np.int64],
    crops: Sequence[Crop],
    spoiled: Iterator[tuple[Lever, float, list[Crop]]],
    framed: Iterator[tuple[Framing, list[Crop]]],
) -> list[LeverScore]:
    neutral = labels == _neutral_index(classifier)

    def score(lever: str, strength: str, changed: Sequence[Crop]) -> LeverScore:
        hits = classifier.classify(changed).argmax(1) == labels
        return LeverScore(
            lever, strength, float(hits.mean()), float(hits[neutral].mean()) if neutral.any() else float("nan")
        )

    scores = [score("none", "", crops)]
    scores += [score(lever.name, f"{strength:g}", changed) for lever, strength, changed in spoiled]
    for framing, changed in framed:
        names = ("scale", "shift_x", "shift_y")
        name = next((key for key in names if getattr(framing, key) != getattr(Framing(), key)), "scale")
        scores.append(score(f"box {name.replace('_', ' ')}", f"{getattr(framing, name):g}", changed))
    return scores


def _neutral_index(classifier: Classifier) -> int:
    label = matching_label("neutral", classifier.labels)
    if label is None:
        raise DataError(f"{classifier.tag} has no label for neutral")
    return classifier.labels.index(label)


def _cut_wrongly(portrait: Portrait, framing: Framing, classifier: Classifier) -> Crop:
    assert portrait.face is not None
    right = classifier.face_crop
    wrong = FaceCropSpec(
        scale=right.scale * framing.scale,
        shift_x=right.shift_x + right.scale * framing.shift_x,
        shift_y=right.shift_y + right.scale * framing.shift_y,
        alignment="none",
    )
    return resize_crop(cut_face(portrait.rgb_u8, portrait.face.box_px, wrong), classifier.input)


def _reframed(crop_u8: Crop, framing: Framing) -> Crop:
    """What a wrong box around this crop would show, the edge repeated outside."""
    side = len(crop_u8)
    padded = np.pad(crop_u8, ((side // 2, side // 2), (side // 2, side // 2), (0, 0)), mode="edge")
    centre_x, centre_y = (side // 2 + side * (0.5 + shift) for shift in (framing.shift_x, framing.shift_y))
    half = side * framing.scale / 2
    box = (centre_x - half, centre_y - half, centre_x + half, centre_y + half)
    return np.asarray(_image(padded).resize((side, side), Image.Resampling.BILINEAR, box)).reshape(crop_u8.shape)


def lever_table(columns: dict[str, list[LeverScore]]) -> str:
    """Markdown: a line a lever and strength, two columns a data set. columns: its name → its scores."""
    heads = [f"{name}: {what}" for name in columns for what in ("accuracy", "neutral recall")]
    lines = ["| lever | strength | " + " | ".join(heads) + " |", "|---" * (len(heads) + 2) + "|"]
    for row in zip(*columns.values(), strict=True):
        cells = " | ".join(f"{score.accuracy:.1%} | {score.neutral_recall:.1%}" for score in row)
        lines.append(f"| {row[0].lever} | {row[0].strength} | {cells} |")
    return "\n".join(lines)


PRIOR_OFFSETS = (-0.6, -0.3, 0.0, 0.2, 0.4, 0.6, 0.8, 1.0, 1.5)
"""Natural logarithms of the factors by which neutral is made likelier."""


@dataclass(frozen=True)
class PriorScore:
    """Accuracy and neutral recall when `offset` was added to the logarithm of neutral's probability."""

    offset: float
    accuracy: float
    neutral_recall: float


def prior_scores(
    classifier: Classifier, probabilities: NDArray[np.floating], labels: NDArray[np.int64]
) -> list[PriorScore]:
    """What another prior for neutral would do (Saerens et al., 2002), at each of `PRIOR_OFFSETS`.

    probabilities: the classifier's (N, K). labels: int64 (N,). Raises DataError when it has no label for neutral.
    """
    neutral = _neutral_index(classifier)
    scores = []
    for offset in PRIOR_OFFSETS:
        shifted = np.log(np.maximum(probabilities.astype(np.float64), 1e-12))
        shifted[:, neutral] += offset
        hits = shifted.argmax(1) == labels
        recall = float(hits[labels == neutral].mean()) if (labels == neutral).any() else float("nan")
        scores.append(PriorScore(offset, float(hits.mean()), recall))
    return scores


def prior_table(columns: dict[str, list[PriorScore]]) -> str:
    """Markdown: a line an offset, two columns a data set. columns: its name → its scores."""
    heads = [f"{name}: {what}" for name in columns for what in ("accuracy", "neutral recall")]
    lines = ["| ln of neutral's factor | " + " | ".join(heads) + " |", "|---" * (len(heads) + 1) + "|"]
    for row in zip(*columns.values(), strict=True):
        cells = " | ".join(f"{score.accuracy:.1%} | {score.neutral_recall:.1%}" for score in row)
        lines.append(f"| {row[0].offset:+.1f} | {cells} |")
    return "\n".join(lines)
