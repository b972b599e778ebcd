from __future__ import annotations

import asyncio
import contextlib
import io
import logging
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from types import SimpleNamespace
from typing import Any

import aiohttp
import httpx
import pytest
from PIL import Image

from handlers.errors import InternalError
from handlers.pipeline import FAKE
from service import metrics, readiness
from service.admission import Admission
from service.analyzer import Analyzer, Options, RunnerCall
from service.edge import build_rest_app
from service.readiness import Readiness
from service.settings import Settings
from service.work import DetectionStage, EmotionStage, Work
from tests.pictures import encoded, noise
from tests.service.conftest import make_admission

WITHIN_S = 30
INTERVAL_S = 0.02


class _Runners:
    """Both runners on the fakes, whose state a test can change: `works`, `fails`, `lost`, `raises` or `hangs`."""

    def __init__(self) -> None:
        settings = Settings(models=(FAKE,), detector=FAKE)
        self._stages = {"detect": DetectionStage(settings), "classify": EmotionStage(settings)}
        self.state = {"detect": "works", "classify": "works"}
        self.calls: list[tuple[str, list[Work]]] = []

    def call(self, stage: str) -> RunnerCall:
        async def run(works: list[Work]) -> list[Any]:
            self.calls.append((stage, works))
            match self.state[stage]:
                case "fails":
                    return [InternalError("no")] * len(works)
                case "lost":
                    raise aiohttp.ServerDisconnectedError
                case "raises":
                    raise ZeroDivisionError
                case "hangs":
                    await asyncio.Event().wait()
            return self._stages[stage](works)  # type: ignore[operator, no-any-return]

        return run

    def analyzer(self, admission: Admission | None = None) -> Analyzer:
        settings = Settings(models=(FAKE,), detector=FAKE)
        return Analyzer(settings, admission or make_admission(settings), self.call("detect"), self.call("classify"))


@pytest.fixture(autouse=True)
def _impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(readiness, "_TRIAL_TIMEOUT_S", 0.2)
    monkeypatch.setattr(readiness, "_RETRY_S", 0.01)


@pytest.fixture
def runners(fake_environment: None) -> _Runners:
    return _Runners()


@asynccontextmanager
async def _watching(watched: Readiness) -> AsyncIterator[None]:
    task = asyncio.create_task(watched.watch())
    try:
        yield
    finally:
        assert not task.done()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not true():
            await asyncio.sleep(0.002)


def test_it_is_not_ready_before_anything_was_tried(runners: _Runners) -> None:
    assert not Readiness(runners.analyzer(), INTERVAL_S).ready
    assert runners.calls == []


def test_an_analyzer_that_has_done_nothing_is_not_ready_on_a_machine_that_has_just_started(
    runners: _Runners, monkeypatch: pytest.MonkeyPatch
) -> None:
    runners.state["detect"] = "fails"
    watched = Readiness(runners.analyzer(), 600)
    monkeypatch.setattr(readiness, "time", SimpleNamespace(monotonic=lambda: 12.0))

    async def main() -> None:
        async with _watching(watched):
            await _until(lambda: bool(runners.calls) or watched.ready)
            assert not watched.ready

    asyncio.run(main())


@pytest.mark.parametrize("stage", ["detect", "classify"])
@pytest.mark.parametrize("state", ["fails", "lost", "raises", "hangs"])
def test_it_is_ready_only_while_a_picture_gets_through_both_runners(
    runners: _Runners, stage: str, state: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    watched = Readiness(runners.analyzer(), INTERVAL_S)

    async def main() -> None:
        runners.state[stage] = state
        async with _watching(watched):
            await _until(lambda: "not ready" in caplog.text)
            assert not watched.ready
            assert metrics.READY._value.get() == 0

            runners.state[stage] = "works"
            await _until(lambda: watched.ready)
            assert metrics.READY._value.get() == 1

            runners.state[stage] = state
            await _until(lambda: not watched.ready)
            assert metrics.READY._value.get() == 0

            runners.state[stage] = "works"
            await _until(lambda: watched.ready)

    asyncio.run(main())
    assert [message for message in caplog.messages if message.startswith("ready")] == [
        "ready: a picture went through both runners"
    ] * 2


def test_the_trial_goes_through_every_model_as_a_small_picture_with_a_deadline_and_an_id(
    runners: _Runners,
) -> None:
    watched = Readiness(runners.analyzer(), 600)

    async def main() -> None:
        started_s = time.monotonic()
        async with _watching(watched):
            await _until(lambda: watched.ready)
        assert [stage for stage, _ in runners.calls] == ["detect", "classify"]
        for _, (work,) in runners.calls:
            assert work.request_id == "readiness"
            assert started_s < work.deadline_s < time.monotonic() + 1

    asyncio.run(main())
    picture = runners.calls[0][1][0].request.image
    assert len(picture) < 1024
    assert Image.open(io.BytesIO(picture)).size == (48, 48)


def test_without_traffic_it_tries_again_and_again(runners: _Runners) -> None:
    watched = Readiness(runners.analyzer(), INTERVAL_S)

    async def main() -> None:
        async with _watching(watched):
            await _until(lambda: len(runners.calls) >= 8)
        assert watched.ready

    asyncio.run(main())


def test_there_is_no_trial_while_real_pictures_get_through(runners: _Runners) -> None:
    interval_s = 0.2
    analyzer = runners.analyzer()
    watched = Readiness(analyzer, interval_s)
    picture = encoded(noise(64, 64))

    async def main() -> None:
        await analyzer.analyze([picture], Options())
        async with _watching(watched):
            end_s = time.monotonic() + 3 * interval_s
            while time.monotonic() < end_s:
                await analyzer.analyze([picture], Options())
                await asyncio.sleep(0.01)
            assert watched.ready

    asyncio.run(main())
    assert "readiness" not in {work.request_id for _, works in runners.calls for work in works}


def test_pictures_without_a_face_prove_nothing_of_the_emotion_runner(runners: _Runners) -> None:
    analyzer = runners.analyzer()

    asyncio.run(analyzer.analyze([encoded(noise(8, 8)), b"text"], Options()))

    assert [stage for stage, _ in runners.calls] == ["detect"]
    assert analyzer.last_success_s <= 0


def test_it_is_ready_although_every_place_is_taken(runners: _Runners) -> None:
    admission = Admission(concurrency=1, queue_size=0, queue_timeout_s=1, max_pending_bytes=1)
    watched = Readiness(runners.analyzer(admission), INTERVAL_S)

    async def main() -> None:
        async with admission.turn(1), _watching(watched):
            await _until(lambda: watched.ready)

    asyncio.run(main())


def test_readyz_answers_at_once_though_the_runners_hang(runners: _Runners) -> None:
    runners.state["detect"] = "hangs"
    watched = Readiness(runners.analyzer(), INTERVAL_S)
    app = build_rest_app(Settings(models=(FAKE,), detector=FAKE))
    app.state.readiness = watched

    async def main() -> None:
        client = httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mien")
        async with client, _watching(watched):
            await _until(lambda: bool(runners.calls))
            n_calls = len(runners.calls)
            assert (await client.get("/readyz")).status_code == 503
            assert len(runners.calls) == n_calls

            runners.state["detect"] = "works"
            await _until(lambda: watched.ready)
            assert (await client.get("/readyz")).status_code == 200

    asyncio.run(main())
