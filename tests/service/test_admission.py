from __future__ import annotations

import asyncio
import random
from collections.abc import Callable

import pytest

from service import metrics
from service.admission import Admission
from service.problems import OverloadedError, problem_response

PATIENT_S = 60.0
BYTES = 10_000


def _admission(
    concurrency: int = 2, queue_size: int = 8, queue_timeout_s: float = PATIENT_S, max_pending_bytes: int = BYTES
) -> Admission:
    return Admission(concurrency, queue_size, queue_timeout_s, max_pending_bytes)


async def _settled() -> None:
    """Let every task that can go on do so."""
    for _ in range(10):
        await asyncio.sleep(0)


class _Work:
    """A task that takes a turn, and holds it until it is told to end."""

    def __init__(self, admission: Admission, n_pictures: int = 1) -> None:
        self._admission, self._n_pictures = admission, n_pictures
        self._end = asyncio.Event()
        self.began = False
        self.task = asyncio.create_task(self._run())

    async def _run(self) -> None:
        async with self._admission.turn(self._n_pictures):
            self.began = True
            await self._end.wait()

    def release(self) -> None:
        self._end.set()

    async def end(self) -> None:
        self.release()
        await self.task


async def _began(works: list[_Work]) -> list[bool]:
    await _settled()
    return [work.began for work in works]


async def _enter(admission: Admission) -> Callable[[], None]:
    """Take a turn of one picture; the result gives it back, at once."""
    turn = admission.turn(1)
    await turn.__aenter__()

    def leave() -> None:
        with pytest.raises(StopIteration):
            turn.__aexit__(None, None, None).send(None)

    return leave


async def _assert_idle(admission: Admission) -> None:
    """Nothing is held: a turn of every place comes at once, and so does a request of every byte."""
    assert (admission._working, admission._waiting, len(admission._turns)) == (0, 0, 0)
    assert (admission._requests, admission._pending_bytes) == (0, 0)
    async with asyncio.timeout(1), admission.turn(admission._concurrency):
        pass
    with admission.request(BYTES):
        pass


def test_turns_come_in_the_order_of_arrival() -> None:
    async def main() -> None:
        admission = _admission(concurrency=1)
        works = [_Work(admission) for _ in range(4)]

        for n_ended in range(4):
            assert await _began(works) == [True] * (n_ended + 1) + [False] * (3 - n_ended)
            await works[n_ended].end()
        await _assert_idle(admission)

    asyncio.run(main())


def test_as_many_pictures_are_in_work_as_fit_whatever_their_weights() -> None:
    async def main() -> None:
        admission = _admission(concurrency=4)
        works = [_Work(admission, weight) for weight in (1, 2, 1, 4, 1)]
        assert await _began(works) == [True, True, True, False, False]

        await works[1].end()
        assert await _began(works) == [True, True, True, False, False]

        await works[0].end()
        await works[2].end()
        assert await _began(works) == [True, True, True, True, False]

        await works[3].end()
        assert await _began(works) == [True] * 5
        await works[4].end()
        await _assert_idle(admission)

    asyncio.run(main())


def test_a_light_one_does_not_overtake_a_heavy_one_that_waits() -> None:
    async def main() -> None:
        admission = _admission(concurrency=4)
        first, heavy, light = _Work(admission, 2), _Work(admission, 4), _Work(admission, 1)

        assert await _began([first, heavy, light]) == [True, False, False]
        for work in (first, heavy, light):
            await work.end()
        await _assert_idle(admission)

    asyncio.run(main())


def test_the_gauges_follow_what_works_and_what_waits() -> None:
    def gauges() -> tuple[float, float]:
        return metrics.IN_PROGRESS._value.get(), metrics.QUEUED._value.get()

    async def main() -> None:
        admission = _admission(concurrency=3)
        in_progress, queued = gauges()
        works = [_Work(admission, weight) for weight in (3, 2, 1)]
        await _settled()
        assert gauges() == (in_progress + 3, queued + 3)

        for work in works:
            await work.end()
        assert gauges() == (in_progress, queued)

    asyncio.run(main())


def test_who_finds_the_queue_full_is_told_so_at_once() -> None:
    async def main() -> None:
        admission = _admission(concurrency=1, queue_size=2)
        works = [_Work(admission) for _ in range(3)]
        await _settled()

        with pytest.raises(OverloadedError, match="too many pictures are waiting"):
            async with admission.turn(1):
                pytest.fail("there is no place")

        for work in works:
            await work.end()
        await _assert_idle(admission)

    asyncio.run(main())


def test_a_batch_may_wait_alone_though_it_is_larger_than_the_queue() -> None:
    async def main() -> None:
        admission = _admission(concurrency=4, queue_size=2)
        first, batch = _Work(admission), _Work(admission, 4)
        assert await _began([first, batch]) == [True, False]

        with pytest.raises(OverloadedError):
            async with admission.turn(1):
                pytest.fail("the queue is full")

        await first.end()
        assert await _began([batch]) == [True]
        await batch.end()
        await _assert_idle(admission)

    asyncio.run(main())


def test_without_a_queue_nobody_waits() -> None:
    async def main() -> None:
        admission = _admission(concurrency=1, queue_size=0)
        work = _Work(admission)
        await _settled()

        with pytest.raises(OverloadedError):
            async with admission.turn(1):
                pytest.fail("there is no queue")

        await work.end()
        await _assert_idle(admission)

    asyncio.run(main())


def test_who_waited_too_long_is_turned_away_and_frees_the_place() -> None:
    async def main() -> None:
        admission = _admission(concurrency=1, queue_size=1, queue_timeout_s=0.05)
        work = _Work(admission)
        await _settled()

        for _ in range(2):
            with pytest.raises(OverloadedError, match="no turn came in time"):
                async with admission.turn(1):
                    pytest.fail("the place is taken")

        await work.end()
        await _assert_idle(admission)

    asyncio.run(main())


def test_when_a_heavy_one_gives_up_those_behind_it_move_up() -> None:
    async def main() -> None:
        admission = _admission(concurrency=2)
        first, heavy, light = _Work(admission), _Work(admission, 2), _Work(admission)
        assert await _began([first, heavy, light]) == [True, False, False]

        heavy.task.cancel()

        assert await _began([light]) == [True]
        for work in (first, light):
            await work.end()
        await _assert_idle(admission)

    asyncio.run(main())


def test_a_cancelled_waiter_frees_its_place() -> None:
    async def main() -> None:
        admission = _admission(concurrency=1, queue_size=1)
        work, waiter = _Work(admission), _Work(admission)
        await _settled()

        waiter.task.cancel()
        await _settled()
        follower = _Work(admission)
        await work.end()

        assert waiter.task.cancelled()
        assert await _began([waiter, follower]) == [False, True]
        await follower.end()
        await _assert_idle(admission)

    asyncio.run(main())


def test_work_that_is_cancelled_frees_its_place() -> None:
    async def main() -> None:
        admission = _admission(concurrency=1)
        work, waiter = _Work(admission), _Work(admission)
        await _settled()

        work.task.cancel()

        assert await _began([waiter]) == [True]
        await waiter.end()
        await _assert_idle(admission)

    asyncio.run(main())


def test_work_that_fails_frees_its_place_and_its_error_goes_on() -> None:
    async def main() -> None:
        admission = _admission(concurrency=1)
        with pytest.raises(ZeroDivisionError):
            async with admission.turn(1):
                raise ZeroDivisionError

        with pytest.raises(ZeroDivisionError), admission.request(10):
            raise ZeroDivisionError
        await _assert_idle(admission)

    asyncio.run(main())


@pytest.mark.parametrize("cancelled_first", [True, False])
def test_a_turn_that_comes_together_with_a_cancellation_goes_to_the_next(cancelled_first: bool) -> None:
    async def main() -> None:
        admission = _admission(concurrency=1)
        leave = await _enter(admission)
        waiter, follower = _Work(admission), _Work(admission)
        await _settled()

        # Nothing is awaited between the two, so the waiter runs only after both.
        if cancelled_first:
            waiter.task.cancel()
        leave()
        if not cancelled_first:
            waiter.task.cancel()

        assert await _began([waiter, follower]) == [False, True]
        assert waiter.task.cancelled()
        await follower.end()
        await _assert_idle(admission)

    asyncio.run(main())


@pytest.mark.parametrize("after_timeout_s", [-0.01, 0.01], ids=["just before", "just after"])
def test_a_turn_that_comes_together_with_the_timeout_goes_to_the_next(after_timeout_s: float) -> None:
    timeout_s = 0.1

    async def main() -> None:
        admission = _admission(concurrency=1, queue_timeout_s=timeout_s)
        leave = await _enter(admission)
        loop = asyncio.get_running_loop()
        waiter = _Work(admission)
        await _settled()
        started_s = loop.time()
        loop.call_at(started_s + timeout_s + after_timeout_s, leave)

        # The loop stands still until both are due, so that they happen in one round of it, before the waiter runs.
        while loop.time() < started_s + 2 * timeout_s:
            pass
        (outcome,) = await asyncio.gather(waiter.task, return_exceptions=True)

        assert isinstance(outcome, OverloadedError)
        assert not waiter.began
        await _assert_idle(admission)

    asyncio.run(main())


def test_requests_are_refused_when_every_place_is_taken() -> None:
    admission = _admission(concurrency=1, queue_size=2)
    held = [admission.request(1) for _ in range(3)]
    for request in held:
        request.__enter__()

    with pytest.raises(OverloadedError, match="too many requests"), admission.request(1):
        pytest.fail("there is no place")

    held[0].__exit__(None, None, None)
    with admission.request(1):
        pass


def test_requests_are_refused_when_their_bytes_would_be_too_many() -> None:
    admission = _admission(queue_size=100)

    with admission.request(BYTES - 10):
        with admission.request(10):
            pass
        with pytest.raises(OverloadedError, match="too many bytes"), admission.request(11):
            pytest.fail("these are too many")
    with admission.request(BYTES):
        pass


def test_a_request_alone_is_let_in_whatever_its_size() -> None:
    admission = _admission()

    with (
        admission.request(BYTES + 1),
        pytest.raises(OverloadedError, match="too many bytes"),
        admission.request(1),
    ):
        pytest.fail("no byte is left")
    asyncio.run(_assert_idle(admission))


def test_requests_are_refused_when_the_wait_would_be_too_long_and_told_how_long() -> None:
    async def main() -> None:
        admission = _admission(concurrency=2, queue_size=10, queue_timeout_s=3)
        admission._mean_work_s = 1.0
        works = [_Work(admission) for _ in range(2 + 4)]
        await _settled()
        with admission.request(1):
            pass  # four wait, so one more would wait for 2 s, and for the runners 1 s

        works.append(_Work(admission))
        await _settled()
        with pytest.raises(OverloadedError, match="wait would be too long") as caught, admission.request(1):
            pytest.fail("five wait, so one more would wait for 2.5 s, and for the runners 1 s")

        assert caught.value.retry_after_s == 4
        response = problem_response(caught.value)
        assert (response.status_code, response.headers["retry-after"]) == (429, "4")
        for work in works:
            await work.end()
        await _assert_idle(admission)

    asyncio.run(main())


def test_who_is_refused_is_never_told_to_come_back_at_once() -> None:
    admission = _admission(concurrency=1, queue_size=0)

    with admission.request(1), pytest.raises(OverloadedError) as caught, admission.request(1):
        pytest.fail("there is no place")

    assert caught.value.retry_after_s == 1


def test_how_long_work_takes_is_learnt_from_work() -> None:
    async def main() -> None:
        admission = _admission()
        async with admission.turn(1):
            await asyncio.sleep(0.02)
        learnt_s = admission._mean_work_s
        assert learnt_s >= 0.02

        async with admission.turn(1):
            pass
        assert learnt_s / 2 < admission._mean_work_s < learnt_s

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(3))
def test_nothing_is_left_behind_by_a_thousand_tasks_of_which_many_are_cancelled(seed: int) -> None:
    draw = random.Random(seed)
    most_in_work = outcomes = 0

    async def task(admission: Admission, n_pictures: int, steps: int) -> None:
        nonlocal most_in_work, outcomes
        try:
            with admission.request(draw.randrange(200)):
                async with admission.turn(n_pictures):
                    most_in_work = max(most_in_work, admission._working)
                    for _ in range(steps):
                        await asyncio.sleep(0)
                    if draw.random() < 0.1:
                        raise ZeroDivisionError
        finally:
            outcomes += 1

    async def main() -> None:
        in_progress, queued = metrics.IN_PROGRESS._value.get(), metrics.QUEUED._value.get()
        admission = _admission(concurrency=4, queue_size=12, queue_timeout_s=0.002)
        tasks = []
        for _ in range(1000):
            tasks.append(asyncio.create_task(task(admission, draw.randint(1, 4), draw.randrange(6))))
            if draw.random() < 0.3:
                draw.choice(tasks[-10:]).cancel()
            if draw.random() < 0.5:
                await asyncio.sleep(0)
        results = await asyncio.wait_for(asyncio.gather(*tasks, return_exceptions=True), 60)

        kinds = {type(result) for result in results}
        assert kinds <= {type(None), asyncio.CancelledError, OverloadedError, ZeroDivisionError}, kinds
        assert len(kinds) == 4
        assert most_in_work == 4
        assert metrics.IN_PROGRESS._value.get() == in_progress
        assert metrics.QUEUED._value.get() == queued
        await _assert_idle(admission)

    asyncio.run(main())
    assert outcomes > 500
