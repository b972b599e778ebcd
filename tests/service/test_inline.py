from __future__ import annotations

import asyncio
import math
import threading
import time
from collections.abc import Callable, Coroutine, Iterator, Sequence
from typing import Any

import pytest

from handlers.errors import ExpiredError
from handlers.fakes import FakeClassifier
from handlers.pipeline import FAKE, DetectRequest
from handlers.results import DetectedPicture
from service.inline import InlineRunner
from service.settings import Settings
from service.work import DetectionStage, Work
from tests.pictures import encoded, noise

WITHIN_S = 30


class _Stage:
    """Answers `done-<request>`, and fails on `bad`; stands still while `closed`, after it has noted its batch."""

    def __init__(self) -> None:
        self.batches: list[list[Any]] = []
        self.threads: set[int] = set()
        self.open = threading.Event()
        self.open.set()

    def __call__(self, works: Sequence[Work]) -> list[Any]:
        self.threads.add(threading.get_ident())
        requests = [work.request for work in works]
        self.batches.append(requests)
        assert self.open.wait(WITHIN_S)
        if "bad" in requests:
            raise ZeroDivisionError("bad")
        return [f"done-{request}" for request in requests]


def _works(*requests: object) -> list[Work]:
    return [Work(request, time.monotonic(), math.inf, "r", None) for request in requests]


@pytest.fixture
def stage() -> Iterator[_Stage]:
    stage = _Stage()
    yield stage
    stage.open.set()


@pytest.fixture
def runner(stage: _Stage) -> InlineRunner:
    return InlineRunner(stage, max_batch_size=4)


def _run(main: Callable[[], Coroutine[Any, Any, None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), WITHIN_S))


async def _start(runner: InlineRunner, *requests: object) -> asyncio.Task[list[Any]]:
    """A call that is in the queue already."""
    task = asyncio.create_task(runner(_works(*requests)))
    await asyncio.sleep(0)
    return task


async def _start_and_hold(runner: InlineRunner, stage: _Stage, *requests: object) -> asyncio.Task[list[Any]]:
    """A call that the stage works on, and does not end before `stage.open` is set."""
    stage.open.clear()
    n_before = len(stage.batches)
    task = await _start(runner, *requests)
    while len(stage.batches) == n_before:
        await asyncio.sleep(0.001)
    return task


def test_results_come_in_the_order_of_the_items(runner: InlineRunner) -> None:
    async def main() -> None:
        assert await runner(_works("a", "b", "c")) == ["done-a", "done-b", "done-c"]

    _run(main)


def test_no_items_are_no_results_and_no_work(runner: InlineRunner, stage: _Stage) -> None:
    async def main() -> None:
        assert await runner([]) == []
        assert stage.batches == []

    _run(main)


def test_what_waits_together_is_done_together_and_each_caller_gets_its_own(runner: InlineRunner, stage: _Stage) -> None:
    async def main() -> None:
        first = await _start_and_hold(runner, stage, 0)
        waiting = [await _start(runner, *requests) for requests in ((1,), (2, 3), (4,), (5,))]
        stage.open.set()

        assert await first == ["done-0"]
        assert await asyncio.gather(*waiting) == [["done-1"], ["done-2", "done-3"], ["done-4"], ["done-5"]]
        assert stage.batches == [[0], [1, 2, 3, 4], [5]]

    _run(main)


def test_a_call_is_not_split_though_it_is_larger_than_a_batch(runner: InlineRunner, stage: _Stage) -> None:
    async def main() -> None:
        first = await _start_and_hold(runner, stage, 0)
        large, small = await _start(runner, *range(1, 7)), await _start(runner, 7)
        stage.open.set()
        await asyncio.gather(first, large, small)

        assert stage.batches == [[0], [1, 2, 3, 4, 5, 6], [7]]

    _run(main)


def test_the_loop_goes_on_while_the_stage_works(runner: InlineRunner, stage: _Stage) -> None:
    async def main() -> None:
        task = await _start_and_hold(runner, stage, 0)
        assert not task.done()
        assert stage.threads.isdisjoint({threading.get_ident()})

        stage.open.set()
        await task

    _run(main)


def test_an_error_reaches_everybody_of_its_batch_and_nobody_else(runner: InlineRunner, stage: _Stage) -> None:
    async def main() -> None:
        before = await _start_and_hold(runner, stage, 0)
        waiting = [await _start(runner, *requests) for requests in ((1, 2), ("bad", 3), (4,))]
        stage.open.set()
        results = await asyncio.gather(before, *waiting, return_exceptions=True)

        assert results[0] == ["done-0"]
        assert [type(result) for result in results[1:3]] == [ZeroDivisionError] * 2
        assert results[3] == ["done-4"]
        assert await runner(_works(5)) == ["done-5"]

    _run(main)


def test_a_call_that_was_cancelled_before_its_turn_is_not_done(runner: InlineRunner, stage: _Stage) -> None:
    async def main() -> None:
        first = await _start_and_hold(runner, stage, 0)
        cancelled, other = await _start(runner, 1), await _start(runner, 2)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        stage.open.set()

        assert await asyncio.gather(first, other) == [["done-0"], ["done-2"]]
        assert stage.batches == [[0], [2]]

    _run(main)


def test_when_everybody_was_cancelled_nothing_is_done(runner: InlineRunner, stage: _Stage) -> None:
    async def main() -> None:
        first = await _start_and_hold(runner, stage, 0)
        cancelled = await _start(runner, 1)
        cancelled.cancel()
        await asyncio.gather(cancelled, return_exceptions=True)
        stage.open.set()
        await first

        assert await runner(_works(2)) == ["done-2"]
        assert stage.batches == [[0], [2]]

    _run(main)


@pytest.mark.parametrize("request_", [0, "bad"], ids=["that succeeds", "that fails"])
def test_a_call_that_is_cancelled_during_its_work_disturbs_nobody(
    runner: InlineRunner, stage: _Stage, request_: object
) -> None:
    unhandled: list[dict[str, Any]] = []

    async def main() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        first = await _start_and_hold(runner, stage, request_)
        first.cancel()
        await asyncio.gather(first, return_exceptions=True)
        second = await _start(runner, 1)
        stage.open.set()

        assert await second == ["done-1"]

    _run(main)
    assert unhandled == []


def test_many_callers_all_get_their_own(runner: InlineRunner) -> None:
    async def main() -> None:
        calls = [runner(_works(*(f"{call}.{item}" for item in range(call % 4)))) for call in range(500)]

        assert await asyncio.gather(*calls) == [
            [f"done-{call}.{item}" for item in range(call % 4)] for call in range(500)
        ]

    _run(main)


def test_the_real_stage_works_behind_it_and_isolates_what_has_expired(environment: Callable[..., None]) -> None:
    environment(models=FAKE, detector=FAKE)
    runner = InlineRunner(DetectionStage(Settings()), max_batch_size=8)
    spec = FakeClassifier()
    request = DetectRequest(encoded(noise(60, 60)), 20, spec.face_crop, spec.input)
    deadlines_s = (math.inf, 0.0, math.inf)

    async def main() -> None:
        results = await runner([Work(request, time.monotonic(), end_s, "r", None) for end_s in deadlines_s])
        assert [type(result) for result in results] == [DetectedPicture, ExpiredError, DetectedPicture]

    _run(main)
