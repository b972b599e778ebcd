"""The two runners as BentoML services with adaptive batching. Each returns one value or error an item.

BentoML merges the items of waiting requests into one list and cuts the result by position, so an exception here would
fail strangers' requests and a short list would shift their results: errors are values, and the length is checked.

Items cross as pickled bytes, because BentoML passes arguments through pydantic, which turns dataclasses into dicts. The
runners listen on a socket of this machine only, as BentoML itself unpickles what arrives there.
"""

from __future__ import annotations

import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import bentoml

from service.batching import batch_eagerly
from service.logs import configure_logs
from service.settings import get_settings
from service.tracing import configure_tracing, shutdown_tracing
from service.work import DetectionStage, EmotionStage

# Without this BentoML's client closes its session every 100 requests, the ones in flight included.
RUNNER_CONNECTION = {"max_requests": 10**9, "max_age": 1e9}

_settings = get_settings()
batch_eagerly()
# BentoML's tracing and metrics took a quarter of a runner's time beside the models; ours say what theirs would.
UNOBSERVED = {"tracing": {"excluded_urls": ".*"}, "metrics": {"enabled": False}}
_RUNNER = {
    **UNOBSERVED,
    "threads": 1,
    "traffic": {"timeout": _settings.timeout_s + 5},
    "runner_connection": RUNNER_CONNECTION,
    "logging": {"access": {"enabled": False}},
}


def pickled(call: Callable[[list[bytes]], Awaitable[list[bytes]]]) -> Callable[[list[Any]], Awaitable[list[Any]]]:
    """A runner's method on bytes as a function on work and results."""

    async def on_values(works: list[Any]) -> list[Any]:
        return [pickle.loads(item) for item in await call([pickle.dumps(work) for work in works])]

    return on_values


@bentoml.service(name="mien_detector", workers=_settings.n_detector_workers, **_RUNNER)
class DetectorRunner:
    """Image bytes → faces with crops."""

    def __init__(self) -> None:
        settings = get_settings()
        configure_logs(settings.log_level)
        configure_tracing(settings, "detector")
        self._stage = DetectionStage(settings)

    @bentoml.api(
        batchable=True, max_batch_size=_settings.detector_batch_size, max_latency_ms=_settings.batch_latency_ms
    )
    def detect(self, items: list[bytes]) -> list[bytes]:
        """A pickled `DetectedPicture` or `HandlerError` for each pickled `Work`, in order."""
        return [pickle.dumps(result) for result in self._stage([pickle.loads(item) for item in items])]

    @bentoml.on_shutdown
    def send_last_traces(self) -> None:
        """Called by BentoML when the process ends."""
        shutdown_tracing()


@bentoml.service(name="mien_emotion", workers=_settings.emotion_workers, **_RUNNER)
class EmotionRunner:
    """Face crops → calibrated emotions."""

    def __init__(self) -> None:
        settings = get_settings()
        configure_logs(settings.log_level)
        configure_tracing(settings, "emotion")
        self._stage = EmotionStage(settings)

    @bentoml.api(batchable=True, max_batch_size=_settings.emotion_batch_size, max_latency_ms=_settings.batch_latency_ms)
    def classify(self, items: list[bytes]) -> list[bytes]:
        """A pickled `Emotion` or `HandlerError` for each pickled `Work`, in order."""
        return [pickle.dumps(result) for result in self._stage([pickle.loads(item) for item in items])]

    @bentoml.on_shutdown
    def send_last_traces(self) -> None:
        """Called by BentoML when the process ends."""
        shutdown_tracing()
