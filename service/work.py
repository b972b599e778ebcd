"""What the runners do with a batch, without BentoML: the same in a runner process and in the API process."""

from __future__ import annotations

import importlib.metadata
import logging
import platform
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import bentoml
import numpy as np
from numpy.typing import NDArray

from handlers.classifier import Classifier
from handlers.decode import DecodeLimits, decode_image
from handlers.engines import choose_engine
from handlers.errors import ExpiredError, HandlerError, InternalError
from handlers.pipeline import FAKE, DetectRequest, classify, detect_pictures, load_classifier, load_detector
from handlers.preprocess import resize_crop
from handlers.results import DetectedPicture, Emotion
from service import metrics, tracing
from service.request_context import current_deadline_s, current_request_id, enter_batch, leave_request
from service.settings import Settings

logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class ClassifyRequest:
    """One face for the emotion model with the tag `model`: a crop, uint8 (S, S, C), or an image file of one."""

    face: NDArray[np.uint8] | bytes
    model: str


@dataclass(frozen=True, eq=False)
class Work:
    """One item on its way to a runner.

    sent_s, deadline_s: on the clock of `time.monotonic`, which all processes of a machine share. trace: W3C trace
    context of the request.
    """

    request: Any
    sent_s: float
    deadline_s: float
    request_id: str
    trace: dict[str, str] | None

    @classmethod
    def of(cls, request: Any) -> Work:
        """Work for the current request."""
        return cls(request, time.monotonic(), current_deadline_s(), current_request_id(), tracing.carrier())

    @property
    def expired(self) -> bool:
        """True when nobody waits for the result any more."""
        return time.monotonic() >= self.deadline_s


class DetectionStage:
    """Image files → faces with crops. Raises ModelUnavailableError or EngineUnavailableError when built."""

    def __init__(self, settings: Settings) -> None:
        self._limits = settings.limits
        self._detector = load_detector(
            settings.detector, settings.engine, threads=settings.threads, settings=settings.detection
        )
        engine = "none" if settings.detector == FAKE else choose_engine(settings.engine).name
        version = importlib.metadata.version("mien")
        metrics.BUILD_INFO.labels(version, platform.python_version(), bentoml.__version__, engine).set(1)

    def __call__(self, works: Sequence[Work]) -> list[DetectedPicture | HandlerError]:
        """One value or error for each `DetectRequest`, in order."""
        metrics.BATCH_PICTURES.observe(len(works))
        with _batch("detect", works):
            requests: list[DetectRequest] = [work.request for work in works]
            return detect_pictures(
                self._detector,
                requests,
                self._limits,
                expired=lambda index: works[index].expired,
                observe=lambda stage, seconds: metrics.STAGE_SECONDS.labels(stage).observe(seconds),
            )


class EmotionStage:
    """Faces → calibrated emotions, by several models. Raises ModelUnavailableError or EngineUnavailableError."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._limits: DecodeLimits = settings.limits
        self._classifiers: dict[str, Classifier] = {}
        for model in settings.models:
            self._load(model)

    def __call__(self, works: Sequence[Work]) -> list[Emotion | HandlerError]:
        """One value or error for each `ClassifyRequest`, in order."""
        metrics.BATCH_FACES.observe(len(works))
        results: dict[int, Emotion | HandlerError] = {}
        with _batch("classify", works):
            for model in dict.fromkeys(work.request.model for work in works):
                rows = [index for index, work in enumerate(works) if work.request.model == model]
                results |= zip(rows, self._classify(model, [works[row] for row in rows]), strict=True)
        return [results[index] for index in range(len(works))]

    def _classify(self, model: str, works: list[Work]) -> list[Emotion | HandlerError]:
        try:
            # A model is missing here only after a promotion between the API's start and this worker's restart.
            classifier = self._classifiers.get(model) or self._load(model)
        except HandlerError as error:
            return [error] * len(works)
        except Exception:
            logger.exception("%s cannot be loaded", model)
            return [InternalError("the model cannot be loaded")] * len(works)
        faces = [self._crop(work, classifier) for work in works]
        started = time.monotonic()
        emotions = iter(classify(classifier, [face for face in faces if not isinstance(face, HandlerError)]))
        metrics.STAGE_SECONDS.labels("classify").observe(time.monotonic() - started)
        return [face if isinstance(face, HandlerError) else next(emotions) for face in faces]

    def _crop(self, work: Work, classifier: Classifier) -> NDArray[np.uint8] | HandlerError:
        request: ClassifyRequest = work.request
        face = request.face
        if work.expired:
            return ExpiredError("the request's time was over before its turn")
        if isinstance(face, np.ndarray):
            return face
        try:
            return resize_crop(decode_image(face, self._limits), classifier.input)
        except HandlerError as error:
            return type(error)(error.detail)  # the raised one keeps the picture alive through its traceback
        except Exception:
            logger.exception("decoding failed on a face of %d bytes", len(face))
            return InternalError("decoding failed on this face")

    def _load(self, model: str) -> Classifier:
        settings = self._settings
        classifier = load_classifier(
            model, settings.engine, threads=settings.threads, tta=settings.tta, precision=settings.precision
        )
        self._classifiers[classifier.tag] = classifier
        logger.info("loaded %s", classifier.tag)
        return classifier


@contextmanager
def _batch(stage: str, works: Sequence[Work]) -> Iterator[None]:
    """Note how long each item waited, and give log lines and spans the requests that the batch works for."""
    now_s = time.monotonic()
    for work in works:
        metrics.STAGE_SECONDS.labels(f"{stage}_wait").observe(max(0.0, now_s - work.sent_s))
    token = enter_batch(work.request_id for work in works)
    try:
        with ExitStack() as spans:
            for work in {work.request_id: work for work in works if work.trace is not None}.values():
                span = tracing.span_from(work.trace, stage, request_id=work.request_id, batch_size=len(works))
                spans.enter_context(span)
            yield
    finally:
        leave_request(token)
