"""The whole chain in one process: image bytes in, faces with calibrated emotions out, one result an input.

The service runs the same two stages, `detect_pictures` and `classify`, in two runners; this module puts them together.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from handlers.classifier import Classifier, ClassifierSpec, EmotionClassifier, emotion_of
from handlers.decode import DecodeLimits, decode_image
from handlers.detection import Detector, check_min_face_size
from handlers.engines import choose_engine
from handlers.errors import HandlerError, InternalError, ModelUnavailableError
from handlers.face_crop import cut_face
from handlers.preprocess import resize_crop
from handlers.results import Analysis, DetectedPicture, Emotion, Face
from model_store import registry
from model_store.errors import ModelStoreError
from model_store.manifest import EmotionManifest, FaceCropSpec, InputSpec, Tta
from model_store.servable import ServableModel

logger = logging.getLogger(__name__)

FAKE = "fake"
DEFAULT = "default"


@dataclass(frozen=True)
class Pipeline:
    """A detector, a classifier and the limits of a picture. Safe to use from several threads."""

    detector: Detector
    classifier: Classifier
    limits: DecodeLimits = field(default_factory=DecodeLimits)

    def analyze(self, images: Sequence[bytes], *, min_face_size_px: int | None = None) -> list[Analysis | HandlerError]:
        """Analyse pictures; `len(results) == len(images)`, in order.

        images: bytes of image files (see `handlers.decode`). min_face_size_px: 20 unless given.
        A picture that cannot be read has its HandlerError as its result, and its neighbours are not touched.
        Raises InvalidRequestError only for `min_face_size_px` itself.
        """
        classifier = self.classifier
        pictures = detect_pictures(
            self.detector, images, classifier.face_crop, classifier.input, self.limits, min_face_size_px
        )
        crops = [crop for picture in pictures if isinstance(picture, DetectedPicture) for crop in picture.face_crops]
        emotions = iter(classify(classifier, crops))
        return [
            picture
            if isinstance(picture, HandlerError)
            else assemble(picture, [next(emotions) for _ in picture.face_crops])
            for picture in pictures
        ]


def load_pipeline(
    model: str = DEFAULT,
    engine: str = "auto",
    *,
    threads: int = 1,
    tta: Tta = "none",
    limits: DecodeLimits | None = None,
) -> Pipeline:
    """Load detector and classifier from the BentoML store.

    model: `default`, the name or `name:version` of a registered emotion model, or `fake`. engine: see
    `handlers.engines.choose_engine`. threads: compute threads of one call.
    Raises ModelUnavailableError or EngineUnavailableError.
    """
    return Pipeline(
        load_detector(FAKE if model == FAKE else DEFAULT, engine, threads=threads),
        load_classifier(model, engine, threads=threads, tta=tta),
        limits or DecodeLimits(),
    )


def load_detector(model: str = DEFAULT, engine: str = "auto", *, threads: int = 1) -> Detector:
    """Load a face detector; the arguments are those of `load_pipeline`, and so are the errors."""
    if model == FAKE:
        from handlers.fakes import FakeDetector

        return FakeDetector()
    from handlers.detection.mtcnn import MtcnnDetector

    chosen = choose_engine(engine, threads=threads)
    servable = _open_registered(model, "face-detection")
    if servable.manifest.task != "face-detection":
        raise ModelUnavailableError(f"{servable.manifest.tag} is not a face detector")
    if chosen.name == "torch":
        from handlers.detection.reference import ReferenceDetector

        return ReferenceDetector(servable)
    return MtcnnDetector(chosen.load(servable))


def load_classifier(model: str = DEFAULT, engine: str = "auto", *, threads: int = 1, tta: Tta = "none") -> Classifier:
    """Load an emotion classifier; the arguments are those of `load_pipeline`, and so are the errors."""
    if model == FAKE:
        from handlers.fakes import FakeClassifier

        return FakeClassifier()
    chosen = choose_engine(engine, threads=threads)
    servable, manifest = _open_emotion_model(model)
    return EmotionClassifier(manifest, chosen.load(servable)["classifier"], tta)


def describe_classifier(model: str = DEFAULT) -> ClassifierSpec:
    """What the callers of a classifier must know of it, without loading its network. Raises ModelUnavailableError."""
    if model == FAKE:
        from handlers.fakes import FakeClassifier

        return FakeClassifier()
    return _open_emotion_model(model)[1]


def _open_emotion_model(model: str) -> tuple[ServableModel, EmotionManifest]:
    servable = _open_registered(model, "emotion-classification")
    if not isinstance(servable.manifest, EmotionManifest):
        raise ModelUnavailableError(f"{servable.manifest.tag} is not an emotion classifier")
    return servable, servable.manifest


def _open_registered(model: str, task: registry.Task) -> ServableModel:
    try:
        return registry.load_default(task) if model == DEFAULT else registry.load(model)
    except ModelStoreError as error:
        raise ModelUnavailableError(str(error)) from error


def detect_pictures(
    detector: Detector,
    images: Sequence[bytes],
    face_crop: FaceCropSpec,
    input_spec: InputSpec,
    limits: DecodeLimits,
    min_face_size_px: int | None = None,
) -> list[DetectedPicture | HandlerError]:
    """First stage: decode, detect, cut the faces out. One value or error an input, in order.

    Raises InvalidRequestError only for `min_face_size_px` itself.
    """
    smallest = check_min_face_size(min_face_size_px)
    return [_detect_picture(detector, image, face_crop, input_spec, limits, smallest) for image in images]


def _detect_picture(
    detector: Detector,
    image: bytes,
    face_crop: FaceCropSpec,
    input_spec: InputSpec,
    limits: DecodeLimits,
    min_face_size_px: int,
) -> DetectedPicture | HandlerError:
    try:
        rgb_u8 = decode_image(image, limits)
        detections = tuple(detector.detect(rgb_u8, min_face_size_px))
        crops = tuple(resize_crop(cut_face(rgb_u8, found.box_px, face_crop), input_spec) for found in detections)
        return DetectedPicture(rgb_u8.shape[1], rgb_u8.shape[0], detections, crops)
    except HandlerError as error:
        return error
    except Exception:
        logger.exception("detection failed on one picture of %d bytes", len(image))
        return InternalError("detection failed on this picture")


def classify(classifier: Classifier, crops_u8: Sequence[NDArray[np.uint8]]) -> list[Emotion | HandlerError]:
    """Second stage: one emotion or error a crop, in order.

    A failure on the whole batch is narrowed down by trying each crop alone, so that only the guilty one has an error.
    """
    try:
        rows = classifier.classify(crops_u8)
        if rows.shape != (len(crops_u8), len(classifier.labels)):
            raise ValueError(f"{rows.shape} probabilities for {len(crops_u8)} crops")
        if not np.isfinite(rows).all():
            raise ValueError("probabilities that are not numbers")
        return [emotion_of(row, classifier.labels) for row in rows]
    except Exception:
        logger.exception("classification failed on a batch of %d crops", len(crops_u8))
        if len(crops_u8) <= 1:
            return [InternalError("classification failed on this face") for _ in crops_u8]
        return [result for crop in crops_u8 for result in classify(classifier, [crop])]


def assemble(picture: DetectedPicture, emotions: Sequence[Emotion | HandlerError]) -> Analysis | HandlerError:
    """Join both stages' results of one picture. A face that could not be classified makes the picture an error."""
    faces = []
    for detection, emotion in zip(picture.detections, emotions, strict=True):
        if isinstance(emotion, HandlerError):
            return emotion
        faces.append(
            Face(
                box_px=detection.box_px,
                detection_confidence=detection.confidence,
                landmarks_px=detection.landmarks_px,
                emotion=emotion.label,
                confidence=emotion.confidence,
                probabilities=emotion.probabilities,
            )
        )
    return Analysis(picture.width, picture.height, tuple(faces))
