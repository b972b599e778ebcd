"""The one `analyze()` behind every door: detector runner → emotion runner → results."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
from bentoml.exceptions import BentoMLException, ServiceUnavailable

from handlers.classifier import ClassifierSpec
from handlers.errors import HandlerError, InternalError, ModelUnavailableError
from handlers.pipeline import DetectRequest, assemble, describe_classifier
from handlers.results import Analysis, DetectedPicture
from service import metrics
from service.problems import DeadlineError, UnavailableError
from service.runners import ClassifyRequest
from service.settings import Settings

logger = logging.getLogger(__name__)

CONNECTION_TRIES = 3
_CONNECTION_LOST = (aiohttp.ClientConnectionError, aiohttp.ClientPayloadError)
RunnerCall = Callable[[list[Any]], Awaitable[list[Any]]]


@dataclass(frozen=True)
class Options:
    """How one request wants its pictures analysed. `model`: a served name or tag, None for the first one served."""

    model: str | None = None
    min_face_size_px: int | None = None


class Analyzer:
    """Chains the runners. Built once an API process, from the settings and the runners' two methods."""

    def __init__(self, settings: Settings, detect: RunnerCall, classify: RunnerCall) -> None:
        self._timeout_s = settings.timeout_s
        self._min_face_size_px = settings.min_face_size_px
        self._detect, self._classify = detect, classify
        self._served: dict[str, ClassifierSpec] = {}
        for name in settings.models:
            spec = describe_classifier(name)
            for alias in (name, spec.tag, spec.tag.partition(":")[0]):
                self._served.setdefault(alias, spec)
        self._default = self._served[settings.models[0]]

    def spec(self, model: str | None) -> ClassifierSpec:
        """The served model of that name or tag. Raises ModelUnavailableError."""
        spec = self._default if model is None else self._served.get(model)
        if spec is None:
            served = ", ".join(sorted({spec.tag for spec in self._served.values()}))
            raise ModelUnavailableError(f"model {model!r} is not served here; served: {served}")
        return spec

    async def analyze(self, images: Sequence[bytes], options: Options) -> list[Analysis | HandlerError]:
        """One `Analysis` or error a picture, in order.

        Raises ModelUnavailableError for an unknown model, DeadlineError, UnavailableError or InternalError when the
        whole request failed.
        """
        spec = self.spec(options.model)
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._analyze(images, options, spec)
        except TimeoutError:
            raise DeadlineError(f"not finished within {self._timeout_s:g} s") from None

    async def _analyze(
        self, images: Sequence[bytes], options: Options, spec: ClassifierSpec
    ) -> list[Analysis | HandlerError]:
        smallest = self._min_face_size_px if options.min_face_size_px is None else options.min_face_size_px
        pictures: list[DetectedPicture | HandlerError] = await call_runner(
            "detect",
            self._detect,
            [DetectRequest(image, smallest, spec.face_crop, spec.input) for image in images],
        )
        crops = [
            ClassifyRequest(crop, spec.tag)
            for picture in pictures
            if isinstance(picture, DetectedPicture)
            for crop in picture.face_crops
        ]
        emotions = iter(await call_runner("classify", self._classify, crops))
        results = [
            picture
            if isinstance(picture, HandlerError)
            else assemble(picture, [next(emotions) for _ in picture.face_crops])
            for picture in pictures
        ]
        for result in results:
            if isinstance(result, Analysis):
                metrics.FACES_PER_PICTURE.observe(len(result.faces))
                for face in result.faces:
                    metrics.PREDICTIONS.labels(spec.tag, face.emotion).inc()
        return results


async def call_runner(stage: str, call: RunnerCall, items: list[Any]) -> list[Any]:
    """Call a runner with the items and return as many results, in order.

    A lost connection is tried again: a runner closes idle connections after 5 s while BentoML's client still uses
    them, and both stages can be repeated without harm. Raises UnavailableError after `CONNECTION_TRIES` lost
    connections or when the runner sheds load, InternalError when it fails.
    """
    if not items:
        return []
    started = time.monotonic()
    try:
        for attempt in range(1, CONNECTION_TRIES + 1):
            try:
                results = await call(items)
                break
            except _CONNECTION_LOST as error:
                if attempt == CONNECTION_TRIES:
                    logger.warning("%s: no connection to the runner after %d tries (%s)", stage, attempt, error)
                    raise UnavailableError(f"the {stage} runner cannot be reached") from error
                metrics.RUNNER_RETRIES.labels(stage).inc()
    except ServiceUnavailable as error:
        raise UnavailableError(f"the {stage} runner is overloaded") from error
    except (BentoMLException, aiohttp.ClientError) as error:
        logger.exception("%s: the runner failed", stage)
        raise InternalError(f"the {stage} runner failed") from error
    finally:
        metrics.STAGE_SECONDS.labels(stage).observe(time.monotonic() - started)
    if len(results) != len(items):
        logger.error("%s: %d results for %d items", stage, len(results), len(items))
        raise InternalError(f"the {stage} runner lost count")
    return results
