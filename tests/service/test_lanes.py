from __future__ import annotations

import asyncio
from typing import Any

import aiohttp
import pytest

from handlers.errors import InternalError
from service.lanes import Lanes


class _Worker:
    """A runner's worker that answers when told to, each item with its negative."""

    def __init__(self) -> None:
        self.calls: list[list[int]] = []
        self.may_answer = asyncio.Event()
        self.fails_on = 0

    async def call(self, items: list[Any]) -> list[Any]:
        self.calls.append(items)
        number = len(self.calls)
        await self.may_answer.wait()
        if number == self.fails_on:
            raise aiohttp.ServerDisconnectedError
        return [-item for item in items]


async def _settled() -> None:
    for _ in range(10):
        await asyncio.sleep(0)


def test_every_caller_gets_the_results_of_its_own_items() -> None:
    async def main() -> tuple[list[list[int]], list[list[int]]]:
        worker = _Worker()
        lanes = Lanes([worker.call], max_items=8)
        callers = [asyncio.create_task(lanes(items)) for items in ([1], [2, 3], [4], [5, 6, 7])]
        await _settled()
        worker.may_answer.set()
        return await asyncio.gather(*callers), worker.calls

    results, calls = asyncio.run(main())

    assert results == [[-1], [-2, -3], [-4], [-5, -6, -7]]
    assert calls == [[1], [2, 3, 4, 5, 6, 7]], "the first goes at once, what arrives meanwhile goes together"


def test_the_workers_share_what_comes() -> None:
    async def main() -> list[list[list[int]]]:
        workers = [_Worker(), _Worker()]
        lanes = Lanes([worker.call for worker in workers], max_items=2)
        callers = [asyncio.create_task(lanes([number])) for number in range(6)]
        await _settled()
        before = [list(worker.calls) for worker in workers]
        workers[1].may_answer.set()
        await asyncio.gather(*callers[1:2], *callers[2:])
        assert before == [[[0]], [[1]]]
        workers[0].may_answer.set()
        await callers[0]
        return [worker.calls for worker in workers]

    first, second = asyncio.run(main())

    assert first == [[0]], "a worker that does not answer gets no more"
    assert second == [[1], [2, 3], [4, 5]]


@pytest.mark.parametrize("n_items", [1, 3, 9])
def test_a_call_carries_no_more_items_than_allowed_unless_they_came_together(n_items: int) -> None:
    async def main() -> list[int]:
        worker = _Worker()
        lanes = Lanes([worker.call], max_items=4)
        callers = [asyncio.create_task(lanes([0] * n_items)) for _ in range(6)]
        await _settled()
        worker.may_answer.set()
        await asyncio.gather(*callers)
        return [len(call) for call in worker.calls]

    lengths = asyncio.run(main())

    assert sum(lengths) == 6 * n_items
    assert max(lengths) <= max(4, n_items)


def test_a_lost_call_fails_those_who_shared_it_and_nobody_else() -> None:
    async def main() -> list[Any]:
        worker = _Worker()
        worker.fails_on = 1
        lanes = Lanes([worker.call], max_items=8)
        first = asyncio.create_task(lanes([1]))
        await _settled()
        others = [asyncio.create_task(lanes([number])) for number in (2, 3)]
        await _settled()
        worker.may_answer.set()
        with pytest.raises(aiohttp.ServerDisconnectedError):
            await first
        return [await other for other in others]

    assert asyncio.run(main()) == [[-2], [-3]]


def test_a_worker_that_lost_count_is_our_error() -> None:
    async def short(items: list[Any]) -> list[Any]:
        return items[1:]

    with pytest.raises(InternalError):
        asyncio.run(Lanes([short], max_items=8)([1, 2]))


def test_who_gives_up_before_his_turn_is_not_sent() -> None:
    async def main() -> list[list[int]]:
        worker = _Worker()
        lanes = Lanes([worker.call], max_items=8)
        first = asyncio.create_task(lanes([1]))
        await _settled()
        second, third = (asyncio.create_task(lanes([number])) for number in (2, 3))
        await _settled()
        second.cancel()
        await _settled()
        worker.may_answer.set()
        assert await third == [-3]
        assert await first == [-1]
        return worker.calls

    assert asyncio.run(main()) == [[1], [3]]


def test_who_gives_up_during_the_call_leaves_the_lane_open() -> None:
    async def main() -> list[int]:
        worker = _Worker()
        lanes = Lanes([worker.call], max_items=8)
        first = asyncio.create_task(lanes([1]))
        await _settled()
        first.cancel()
        await _settled()
        worker.may_answer.set()
        return await lanes([2])

    assert asyncio.run(main()) == [-2]
