"""The two runners as BentoML services with adaptive batching. Each returns one value or error an item.

BentoML merges the items of waiting requests into one list and cuts the result by position, so an exception here would
fail strangers' requests and a short list would shift their results: errors are values, and the length is checked.

Items cross as pickled bytes, because BentoML passes arguments through pydantic, which turns dataclasses into dicts. The
runners listen on a socket of this machine only, as BentoML itself unpickles what arrives there.
"""

from __future__ import annotations

import logging
import pickle
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Any

import bentoml
import numpy as np
from numpy.typing import NDArray

from handlers.classifier import Classifier
from handlers.errors import HandlerError, InternalError
from handlers.pipeline import classify, detect_pictures, load_classifier, load_detector
from handlers.results import Emotion
from service.logs import configure_logs
from service.settings import get_settings

logger = logging.getLogger(__name__)

# Without this BentoML's client closes its session every 100 requests, the ones in flight included.
RUNNER_CONNECTION = {"max_requests": 10**9, "max_age": 1e9}

_settings = get_settings()
_RUNNER = {
    "threads": 1,
    "traffic": {"timeout": _settings.timeout_s + 5},
    "runner_connection": RUNNER_CONNECTION,
    "logging": {"access": {"enabled": False}},
}


@dataclass(frozen=True, eq=False)
class ClassifyRequest:
    """One face crop, uint8 (S, S, C), for the emotion model with the tag `model`."""

    crop_u8: NDArray[np.uint8]
    model: str


def pickled(call: Callable[[list[bytes]], Awaitable[list[bytes]]]) -> Callable[[list[Any]], Awaitable[list[Any]]]:
    """A runner's method on bytes as a function on requests and results."""

    async def on_values(requests: list[Any]) -> list[Any]:
        return [pickle.loads(item) for item in await call([pickle.dumps(request) for request in requests])]

    return on_values


@bentoml.service(name="mien_detector", workers=_settings.detector_workers, **_RUNNER)
class DetectorRunner:
    """Image bytes → faces with crops."""

    def __init__(self) -> None:
        settings = get_settings()
        configure_logs(settings.log_level)
        self._limits = settings.limits
        self._detector = load_detector(
            settings.detector, settings.engine, threads=settings.threads, settings=settings.detection
        )

    @bentoml.api(
        batchable=True, max_batch_size=_settings.detector_batch_size, max_latency_ms=_settings.batch_latency_ms
    )
    def detect(self, items: list[bytes]) -> list[bytes]:
        """A pickled `DetectedPicture` or `HandlerError` for each pickled `DetectRequest`, in order."""
        results = detect_pictures(self._detector, [pickle.loads(item) for item in items], self._limits)
        return [pickle.dumps(result) for result in results]


@bentoml.service(name="mien_emotion", workers=_settings.emotion_workers, **_RUNNER)
class EmotionRunner:
    """Face crops → calibrated emotions."""

    def __init__(self) -> None:
        settings = get_settings()
        configure_logs(settings.log_level)
        self._settings = settings
        self._classifiers: dict[str, Classifier] = {}
        for model in settings.models:
            self._load(model)

    @bentoml.api(batchable=True, max_batch_size=_settings.emotion_batch_size, max_latency_ms=_settings.batch_latency_ms)
    def classify(self, items: list[bytes]) -> list[bytes]:
        """A pickled `Emotion` or `HandlerError` for each pickled `ClassifyRequest`, in order."""
        return [pickle.dumps(result) for result in self._classify_all([pickle.loads(item) for item in items])]

    def _classify_all(self, requests: list[ClassifyRequest]) -> list[Emotion | HandlerError | None]:
        results: list[Emotion | HandlerError | None] = [None] * len(requests)
        for model in dict.fromkeys(request.model for request in requests):
            rows = [index for index, request in enumerate(requests) if request.model == model]
            for row, result in zip(rows, self._classify(model, [requests[row] for row in rows]), strict=True):
                results[row] = result
        return results

    def _classify(self, model: str, requests: list[ClassifyRequest]) -> list[Emotion | HandlerError]:
        try:
            # A model is missing here only after a promotion between the API's start and this worker's restart.
            classifier = self._classifiers.get(model) or self._load(model)
        except HandlerError as error:
            return [error] * len(requests)
        except Exception:
            logger.exception("%s cannot be loaded", model)
            return [InternalError("the model cannot be loaded")] * len(requests)
        return classify(classifier, [request.crop_u8 for request in requests])

    def _load(self, model: str) -> Classifier:
        settings = self._settings
        classifier = load_classifier(
            model, settings.engine, threads=settings.threads, tta=settings.tta, precision=settings.precision
        )
        self._classifiers[classifier.tag] = classifier
        logger.info("loaded %s", classifier.tag)
        return classifier
