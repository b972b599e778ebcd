"""The whole chain in one process: image bytes in, faces with calibrated emotions out, one result an input.

The service runs the same two stages, `detect_pictures` and `classify`, in two runners; this module puts them together.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from handlers.classifier import Classifier, ClassifierSpec, EmotionClassifier, emotion_of
from handlers.decode import DecodeLimits, decode_image
from handlers.detection import Detector
from handlers.detection.settings import DetectionSettings, check_min_face_size
from handlers.engines import InputShape, choose_engine
from handlers.errors import ExpiredError, HandlerError, InternalError, ModelUnavailableError
from handlers.face_crop import cut_face
from handlers.preprocess import resize_crop
from handlers.results import Analysis, DetectedPicture, Detection, Emotion, Face
from model_store import registry
from model_store.errors import ModelStoreError
from model_store.manifest import EmotionManifest, FaceCropSpec, InputSpec, Tta
from model_store.servable import ServableModel

logger = logging.getLogger(__name__)

FAKE = "fake"
DEFAULT = "default"
ClassifierPrecision = Literal["auto", "fp32", "int8"]

_PIXELS_AT_ONCE = 1_000_000


@dataclass(frozen=True)
class Pipeline:
    """A detector, a classifier, the limits of a picture and the smallest face. Safe to use from several threads."""

    detector: Detector
    classifier: Classifier
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    min_face_size_px: int = DetectionSettings.min_face_size_px

    def analyze(self, images: Sequence[bytes], *, min_face_size_px: int | None = None) -> list[Analysis | HandlerError]:
        """Analyse pictures; `len(results) == len(images)`, in order.

        images: bytes of image files (see `handlers.decode`). min_face_size_px: the pipeline's own unless given.
        A picture that cannot be read has its HandlerError as its result, and its neighbours are not touched.
        Raises InvalidRequestError only for `min_face_size_px` itself.
        """
        smallest = check_min_face_size(min_face_size_px, self.min_face_size_px)
        classifier = self.classifier
        requests = [DetectRequest(image, smallest, classifier.face_crop, classifier.input) for image in images]
        pictures = detect_pictures(self.detector, requests, self.limits)
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
    precision: ClassifierPrecision = "auto",
    limits: DecodeLimits | None = None,
    detection: DetectionSettings | None = None,
) -> Pipeline:
    """Load detector and classifier from the BentoML store.

    model: `default`, the name or `name:version` of a registered emotion model, or `fake`. engine: see
    `handlers.engines.choose_engine`. threads: compute threads of one call. precision: see `load_classifier`.
    Raises ModelUnavailableError or EngineUnavailableError.
    """
    detection = detection or DetectionSettings()
    return Pipeline(
        load_detector(FAKE if model == FAKE else DEFAULT, engine, threads=threads, settings=detection),
        load_classifier(model, engine, threads=threads, tta=tta, precision=precision),
        limits or DecodeLimits(),
        detection.min_face_size_px,
    )


def load_detector(
    model: str = DEFAULT, engine: str = "auto", *, threads: int = 1, settings: DetectionSettings | None = None
) -> Detector:
    """Load a face detector; the arguments are those of `load_pipeline`, and so are the errors."""
    if model == FAKE:
        from handlers.fakes import FakeDetector

        return FakeDetector()
    from handlers.detection.mtcnn import MtcnnDetector, load_networks

    chosen = choose_engine(engine, threads=threads)
    servable = _open_registered(model, "face-detection")
    if servable.manifest.task != "face-detection":
        raise ModelUnavailableError(f"{servable.manifest.tag} is not a face detector")
    if chosen.name == "torch":
        from handlers.detection.reference import ReferenceDetector

        return ReferenceDetector(servable, settings=settings)
    return MtcnnDetector(load_networks(chosen, servable), settings)


def load_classifier(
    model: str = DEFAULT,
    engine: str = "auto",
    *,
    threads: int = 1,
    tta: Tta = "none",
    precision: ClassifierPrecision = "auto",
) -> Classifier:
    """Load an emotion classifier; the other arguments are those of `load_pipeline`, and so are the errors.

    precision: `int8` runs the quantised network that some models carry, which is faster and, by its card, about as
    accurate; `auto` does so where the model has one and the engine runs it.
    """
    if model == FAKE:
        from handlers.fakes import FakeClassifier

        return FakeClassifier()
    chosen = choose_engine(engine, threads=threads)
    servable, manifest = _open_emotion_model(model)
    precision = resolve_precision(manifest, chosen.name, precision)
    shape = InputShape((manifest.input.channels, manifest.input.size_px, manifest.input.size_px))
    return EmotionClassifier(manifest, chosen.load(servable, "classifier", shape, precision), tta)


def resolve_precision(
    manifest: EmotionManifest, engine: str, precision: ClassifierPrecision
) -> Literal["fp32", "int8"]:
    """What `auto` means for a model in an engine, by its resolved name; see `load_classifier`."""
    if precision != "auto":
        return precision
    chosen: Literal["fp32", "int8"] = "int8" if manifest.int8 is not None and engine != "torch" else "fp32"
    logger.info("%s: precision auto: chose %s", manifest.tag, chosen)
    return chosen


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


@dataclass(frozen=True)
class DetectRequest:
    """One picture for `detect_pictures`: its bytes, the smallest face wanted, and what the crops should be."""

    image: bytes
    min_face_size_px: int
    face_crop: FaceCropSpec
    input: InputSpec


def detect_pictures(
    detector: Detector,
    requests: Sequence[DetectRequest],
    limits: DecodeLimits,
    *,
    expired: Callable[[int], bool] | None = None,
    observe: Callable[[str, float], None] | None = None,
) -> list[DetectedPicture | HandlerError]:
    """First stage: decode, detect, cut the faces out. One value or error a request, in order.

    Pictures are searched together, as many at once as have a million pixels.

    expired: whether nobody waits for the request of that index any more, asked before its picture is decoded and again
    before its group is searched; such a request gets an ExpiredError instead of the work. observe: told what took how
    long in seconds: "decode" for each picture, readable or not, and for each picture of a group searched "detect", its
    equal share of the group's time with the cutting out.
    """
    results: dict[int, DetectedPicture | HandlerError] = {}
    waiting: dict[int, NDArray[np.uint8]] = {}
    n_pixels = 0

    def is_expired(index: int) -> bool:
        if expired is None or not expired(index):
            return False
        results[index] = ExpiredError("its time was over before the work on it began")
        return True

    def search() -> None:
        pictures = {index: rgb_u8 for index, rgb_u8 in waiting.items() if not is_expired(index)}
        waiting.clear()
        started_s = time.perf_counter()
        results.update(_detect_together(detector, pictures, requests))
        if observe is not None:
            taken_s = time.perf_counter() - started_s
            for _ in pictures:
                observe("detect", taken_s / len(pictures))

    for index, request in enumerate(requests):
        if is_expired(index):
            continue
        started_s = time.perf_counter()
        rgb_u8 = _decode(request, limits)
        if observe is not None:
            observe("decode", time.perf_counter() - started_s)
        if isinstance(rgb_u8, HandlerError):
            results[index] = rgb_u8
            continue
        if waiting and n_pixels + rgb_u8[..., 0].size > _PIXELS_AT_ONCE:
            search()
            n_pixels = 0
        waiting[index] = rgb_u8
        n_pixels += rgb_u8[..., 0].size
    search()
    return [results[index] for index in range(len(requests))]


def _decode(request: DetectRequest, limits: DecodeLimits) -> NDArray[np.uint8] | HandlerError:
    try:
        check_min_face_size(request.min_face_size_px)
        return decode_image(request.image, limits)
    except HandlerError as error:
        return type(error)(error.detail)  # the raised one keeps the picture alive through its traceback
    except Exception:
        logger.exception("decoding failed on a picture of %d bytes", len(request.image))
        return InternalError("decoding failed on this picture")


def _detect_together(
    detector: Detector, pictures: dict[int, NDArray[np.uint8]], requests: Sequence[DetectRequest]
) -> dict[int, DetectedPicture | HandlerError]:
    """The results of some requests, by index.

    A failure on all of them is narrowed down by trying each alone, so that only the guilty one has an error.
    """
    if not pictures:
        return {}
    try:
        found = detector.detect_batch([*pictures.values()], [requests[index].min_face_size_px for index in pictures])
        return {
            index: _cut_faces(rgb_u8, faces, requests[index])
            for (index, rgb_u8), faces in zip(pictures.items(), found, strict=True)
        }
    except Exception:
        logger.exception("detection failed on %d pictures", len(pictures))
        if len(pictures) == 1:
            return {index: InternalError("detection failed on this picture") for index in pictures}
    alone = [_detect_together(detector, {index: rgb_u8}, requests) for index, rgb_u8 in pictures.items()]
    return {index: result for results in alone for index, result in results.items()}


def _cut_faces(rgb_u8: NDArray[np.uint8], faces: Sequence[Detection], request: DetectRequest) -> DetectedPicture:
    crops = tuple(resize_crop(cut_face(rgb_u8, face.box_px, request.face_crop), request.input) for face in faces)
    return DetectedPicture(rgb_u8.shape[1], rgb_u8.shape[0], tuple(faces), crops)


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
