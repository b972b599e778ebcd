"""The one `analyze()` behind every door: detector runner → emotion runner → results; and its two halves alone."""

from __future__ import annotations

import asyncio
import logging
import math
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp
from bentoml.exceptions import BentoMLException, ServiceUnavailable

from handlers.classifier import ClassifierSpec
from handlers.errors import HandlerError, InternalError, ModelUnavailableError
from handlers.pipeline import DetectRequest, assemble, describe_classifier
from handlers.results import Analysis, DetectedPicture, Emotion
from service import metrics, tracing
from service.admission import Admission
from service.problems import UnavailableError
from service.settings import Settings
from service.work import ClassifyRequest, Work

logger = logging.getLogger(__name__)

CONNECTION_TRIES = 3
_BETWEEN_TRIES_S = 0.05
_CONNECTION_LOST = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
RunnerCall = Callable[[list[Any]], Awaitable[list[Any]]]
Result = TypeVar("Result")


@dataclass(frozen=True)
class Options:
    """How one request wants its pictures analysed. `model`: a served name or tag, None for the first one served."""

    model: str | None = None
    min_face_size_px: int | None = None


class Analyzer:
    """Chains the runners. Built once an API process, from the settings and the runners' two methods.

    A call with more pictures than may be in work at once is done in pieces. All methods raise ModelUnavailableError for
    an unknown model, and OverloadedError, UnavailableError or InternalError when the whole call failed.
    """

    def __init__(self, settings: Settings, admission: Admission, detect: RunnerCall, classify: RunnerCall) -> None:
        self._min_face_size_px = settings.min_face_size_px
        self._n_concurrent = settings.n_concurrent
        self._admission = admission
        self._detect_call, self._classify_call = detect, classify
        self._served: dict[str, ClassifierSpec] = {}
        for name in settings.models:
            spec = describe_classifier(name)
            for alias in (name, spec.tag, spec.tag.partition(":")[0]):
                self._served.setdefault(alias, spec)
        self._default = self._served[settings.models[0]]
        self.last_success_s = -math.inf
        """When a picture last went through both runners, on the clock of `time.monotonic`."""

    @property
    def models(self) -> list[ClassifierSpec]:
        """The served models, the default first."""
        return list({spec.tag: spec for spec in self._served.values()}.values())

    def spec(self, model: str | None) -> ClassifierSpec:
        """The served model of that name or tag. Raises ModelUnavailableError."""
        spec = self._default if model is None else self._served.get(model)
        if spec is None:
            served = ", ".join(sorted(spec.tag for spec in self.models))
            raise ModelUnavailableError(f"this model is not served here; served: {served}")
        return spec

    async def analyze(self, images: Sequence[bytes], options: Options) -> list[Analysis | HandlerError]:
        """One `Analysis` or error a picture, in order."""
        spec = self.spec(options.model)

        async def both(piece: Sequence[bytes]) -> list[Analysis | HandlerError]:
            pictures = await self._detect_pictures(piece, options, spec)
            crops = [
                crop for picture in pictures if isinstance(picture, DetectedPicture) for crop in picture.face_crops
            ]
            emotions = iter(await self._classify_faces(crops, spec))
            return [
                picture
                if isinstance(picture, HandlerError)
                else assemble(picture, [next(emotions) for _ in picture.face_crops])
                for picture in pictures
            ]

        results = await self._in_pieces(images, both)
        for result in results:
            if isinstance(result, Analysis):
                metrics.FACES_PER_PICTURE.observe(len(result.faces))
                if result.faces:
                    self.last_success_s = time.monotonic()
                for face in result.faces:
                    _count_prediction(spec, face.emotion, face.confidence)
        return results

    async def detect(self, images: Sequence[bytes], options: Options) -> list[DetectedPicture | HandlerError]:
        """The first half: one `DetectedPicture` or error a picture, in order."""
        spec = self.spec(options.model)

        async def first_half(piece: Sequence[bytes]) -> list[DetectedPicture | HandlerError]:
            return await self._detect_pictures(piece, options, spec)

        results = await self._in_pieces(images, first_half)
        for result in results:
            if isinstance(result, DetectedPicture):
                metrics.FACES_PER_PICTURE.observe(len(result.detections))
        return results

    async def classify(self, faces: Sequence[bytes], model: str | None) -> list[Emotion | HandlerError]:
        """The second half: one `Emotion` or error an image file of a face, in order."""
        spec = self.spec(model)

        async def second_half(piece: Sequence[bytes]) -> list[Emotion | HandlerError]:
            return await self._classify_faces(piece, spec)

        results = await self._in_pieces(faces, second_half)
        for result in results:
            if isinstance(result, Emotion):
                _count_prediction(spec, result.label, result.confidence)
        return results

    async def prove(self, image: bytes) -> None:
        """Send a picture through the detector, and as a face through every emotion model, past the admission.

        Raises the HandlerError that stands in the way.
        """
        results: list[Any] = await self._detect_pictures([image], Options(), self._default)
        for spec in self.models:
            results += await self._classify_faces([image], spec)
        for result in results:
            if isinstance(result, HandlerError):
                raise result
        self.last_success_s = time.monotonic()

    async def _in_pieces(
        self, images: Sequence[bytes], work_on: Callable[[Sequence[bytes]], Awaitable[list[Result]]]
    ) -> list[Result]:
        async with self._admission.turn(min(len(images), self._n_concurrent)):
            return [
                result
                for start in range(0, len(images), self._n_concurrent)
                for result in await work_on(images[start : start + self._n_concurrent])
            ]

    async def _detect_pictures(
        self, images: Sequence[bytes], options: Options, spec: ClassifierSpec
    ) -> list[DetectedPicture | HandlerError]:
        smallest = self._min_face_size_px if options.min_face_size_px is None else options.min_face_size_px
        requests = [DetectRequest(image, smallest, spec.face_crop, spec.input) for image in images]
        return await call_runner("detect", self._detect_call, requests)

    async def _classify_faces(self, faces: Sequence[Any], spec: ClassifierSpec) -> list[Emotion | HandlerError]:
        return await call_runner("classify", self._classify_call, [ClassifyRequest(face, spec.tag) for face in faces])


def _count_prediction(spec: ClassifierSpec, emotion: str, confidence: float) -> None:
    metrics.PREDICTIONS.labels(spec.tag, emotion).inc()
    metrics.CONFIDENCE.labels(spec.tag).observe(confidence)


async def call_runner(stage: str, call: RunnerCall, requests: list[Any]) -> list[Any]:
    """Send requests to a runner and return as many results, in order.

    A lost connection is tried again: a runner closes idle connections after 5 s while BentoML's client still uses
    them, a killed one is back in seconds, and both stages can be repeated without harm. Raises UnavailableError after
    `CONNECTION_TRIES` lost connections or when the runner sheds load, InternalError when it fails.
    """
    if not requests:
        return []
    started = time.monotonic()
    try:
        with tracing.span(f"{stage} call", items=len(requests)):
            for attempt in range(1, CONNECTION_TRIES + 1):
                try:
                    results = await call([Work.of(request) for request in requests])
                    break
                except _CONNECTION_LOST as error:
                    if attempt == CONNECTION_TRIES:
                        logger.warning("%s: no connection to the runner after %d tries (%s)", stage, attempt, error)
                        raise UnavailableError(f"the {stage} runner cannot be reached") from error
                    metrics.RUNNER_RETRIES.labels(stage).inc()
                    await asyncio.sleep(_BETWEEN_TRIES_S)
    except ServiceUnavailable as error:
        raise UnavailableError(f"the {stage} runner is overloaded") from error
    except (BentoMLException, aiohttp.ClientError) as error:
        logger.exception("%s: the runner failed", stage)
        raise InternalError(f"the {stage} runner failed") from error
    finally:
        metrics.STAGE_SECONDS.labels(f"{stage}_call").observe(time.monotonic() - started)
    if len(results) != len(requests):
        logger.error("%s: %d results for %d items", stage, len(results), len(requests))
        raise InternalError(f"the {stage} runner lost count")
    return results
