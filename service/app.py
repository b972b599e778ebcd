"""The composition root: builds the service from the settings, its runners and its doors."""

from __future__ import annotations

import asyncio
import json
import os
from functools import partial
from typing import Any

import bentoml
from _bentoml_impl.client import RemoteProxy

from service.admission import Admission
from service.analyzer import Analyzer, RunnerCall
from service.api_keys import ApiKeys
from service.catalog import read_cards, record_models
from service.drain import drain_at_the_end
from service.edge import EdgeMiddleware, build_edge, build_rest_app
from service.inline import InlineRunner
from service.lanes import Lanes
from service.lifeline import watch_parent
from service.logs import configure_logs
from service.readiness import Readiness
from service.runners import UNOBSERVED, DetectorRunner, EmotionRunner, pickled
from service.settings import RUNNERS_VARIABLE, get_settings
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
    **UNOBSERVED,  # and BentoML's metrics label the raw path, so callers could make new series
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
        self._proxies: list[Any] = []
        if _settings.topology == "inline":
            return (
                InlineRunner(DetectionStage(_settings), _settings.detector_batch_size),
                InlineRunner(EmotionStage(_settings), _settings.emotion_batch_size),
            )
        return (
            self._lanes(self.detector, DetectorRunner, "detect", _settings.detector_batch_size),
            self._lanes(self.emotion, EmotionRunner, "classify", _settings.emotion_batch_size),
        )

    def _lanes(self, proxy: Any, runner: Any, method: str, max_items: int) -> RunnerCall:
        """A lane for each socket that the supervisor names, else the one that BentoML knows."""
        uris = json.loads(os.environ.get(RUNNERS_VARIABLE, "{}")).get(runner.name, [])
        proxies = [RemoteProxy(uri, service=runner) for uri in uris] or [proxy]
        self._proxies += proxies
        return Lanes([pickled(partial(_call, each, method)) for each in proxies], max_items)

    @bentoml.on_startup
    async def watch_readiness(self) -> None:
        """Runs as long as the process."""
        for proxy in self._proxies:
            await proxy.__aenter__()  # BentoML enters its own only after this hook; twice does no harm
        self._watching = asyncio.create_task(_rest.state.readiness.watch())

    @bentoml.on_shutdown
    async def stop_watching(self) -> None:
        """BentoML calls it when the last request is answered."""
        self._watching.cancel()
        for proxy in self._proxies:
            await proxy.close()
        shutdown_tracing()


async def _call(proxy: Any, method: str, items: list[bytes]) -> list[bytes]:
    # Looked up when it is called: BentoML adds the methods once it has entered the proxy.
    results: list[bytes] = await getattr(proxy.to_async, method)(items)
    return results


Mien.add_asgi_middleware(EdgeMiddleware, edge=_edge)  # type: ignore[attr-defined]
