"""The composition root: builds the service from the settings, its runners and its doors."""

from __future__ import annotations

import asyncio
from typing import Any

import bentoml

from service.admission import Admission
from service.analyzer import Analyzer, RunnerCall
from service.api_keys import ApiKeys
from service.catalog import read_cards, record_models
from service.drain import drain_at_the_end
from service.edge import EdgeMiddleware, build_edge, build_rest_app
from service.inline import InlineRunner
from service.lifeline import watch_parent
from service.logs import configure_logs
from service.readiness import Readiness
from service.runners import DetectorRunner, EmotionRunner, pickled
from service.settings import get_settings
from service.tracing import configure_tracing, shutdown_tracing
from service.work import DetectionStage, EmotionStage

_settings = get_settings()
configure_logs(_settings.log_level)
watch_parent()
drain_at_the_end()
_admission = Admission(
    _settings.n_concurrent, _settings.queue_size, _settings.queue_timeout_ms / 1000, _settings.max_pending_bytes
)
_rest = build_rest_app(_settings)
_edge = build_edge(_settings, _rest, ApiKeys(_settings.api_keys_file), _admission)


@bentoml.service(
    name="mien",
    workers=_settings.api_workers,
    traffic={"timeout": _settings.timeout_s + 10},
    metrics={"enabled": False},  # BentoML's own label the raw path, so callers could make new series
    logging={"access": {"enabled": False}},
)
class Mien:
    """The service that callers see; the runners are reached through it only."""

    if _settings.topology == "runners":
        detector = bentoml.depends(DetectorRunner)
        emotion = bentoml.depends(EmotionRunner)

    def __init__(self) -> None:
        configure_tracing(_settings, "api")
        analyzer = Analyzer(_settings, _admission, *self._runner_calls())
        record_models(_settings.detector, analyzer.models)
        _rest.state.analyzer = analyzer
        _rest.state.cards = read_cards(analyzer.models)
        _rest.state.readiness = Readiness(analyzer, _settings.readiness_interval_s)

    def _runner_calls(self) -> tuple[RunnerCall, RunnerCall]:
        if _settings.topology == "inline":
            return (
                InlineRunner(DetectionStage(_settings), _settings.detector_batch_size),
                InlineRunner(EmotionStage(_settings), _settings.emotion_batch_size),
            )
        detector: Any = self.detector
        emotion: Any = self.emotion
        return (
            pickled(lambda items: detector.to_async.detect(items)),
            pickled(lambda items: emotion.to_async.classify(items)),
        )

    @bentoml.on_startup
    async def watch_readiness(self) -> None:
        """Runs as long as the process."""
        if _settings.topology == "runners":
            for runner in (self.detector, self.emotion):
                await runner.__aenter__()  # BentoML does so only after this hook; twice does no harm
        self._watching = asyncio.create_task(_rest.state.readiness.watch())

    @bentoml.on_shutdown
    async def stop_watching(self) -> None:
        """BentoML calls it when the last request is answered."""
        self._watching.cancel()
        shutdown_tracing()


Mien.add_asgi_middleware(EdgeMiddleware, edge=_edge)  # type: ignore[attr-defined]
