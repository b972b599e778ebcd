from __future__ import annotations

import asyncio
from typing import Any

import _bentoml_impl.server.app as bentoml_app
import pytest

from service.batching import EagerDispatcher
from service.runners import DetectorRunner


def _dispatcher(max_batch_size: int = 8) -> EagerDispatcher:
    def refuse() -> Any:
        raise AssertionError("work was refused")

    return EagerDispatcher(10_000, max_batch_size, fallback=refuse, get_batch_size=len)


class _Runner:
    def __init__(self) -> None:
        self.batches: list[tuple[list[int], ...]] = []
        self.may_answer = asyncio.Event()

    async def __call__(self, batches: tuple[list[int], ...]) -> list[list[int]]:
        self.batches.append(batches)
        await self.may_answer.wait()
        return [[-item for item in items] for items in batches]


async def _settled() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


def test_the_first_goes_at_once_and_what_waits_meanwhile_goes_together() -> None:
    async def main() -> tuple[list[Any], list[tuple[list[int], ...]]]:
        runner = _Runner()
        call = _dispatcher()(runner)
        first = asyncio.create_task(call([1]))
        await _settled()
        assert runner.batches == [([1],)]
        others = [asyncio.create_task(call(items)) for items in ([2], [3, 4])]
        await _settled()
        runner.may_answer.set()
        return [await first, *[await other for other in others]], runner.batches

    results, batches = asyncio.run(main())

    assert results == [[-1], [-2], [-3, -4]]
    assert batches == [([1],), ([2], [3, 4])]


def test_a_free_runner_is_never_left_waiting_however_long_others_waited_before() -> None:
    async def main() -> None:
        runner = _Runner()
        dispatcher = _dispatcher()
        call = dispatcher(runner)
        dispatcher.optimizer.wait = 60
        runner.may_answer.set()
        for number in range(20):
            assert await asyncio.wait_for(call([number]), 5) == [-number]

    asyncio.run(main())


def test_a_failed_batch_reaches_its_callers_and_the_next_one_is_started() -> None:
    async def main() -> Any:
        failing = True

        async def run(batches: tuple[list[int], ...]) -> list[list[int]]:
            if failing:
                raise ValueError("broken")
            return list(batches)

        call = _dispatcher()(run)
        with pytest.raises(ValueError, match="broken"):
            await call([1])
        failing = False
        return await call([2])

    assert asyncio.run(main()) == [2]


def test_the_runners_use_it() -> None:
    factory = bentoml_app.ServiceAppFactory(DetectorRunner, services={DetectorRunner.name: DetectorRunner.config})

    assert {type(dispatcher) for dispatcher in factory.dispatchers.values()} == {EagerDispatcher}
