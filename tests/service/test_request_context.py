from __future__ import annotations

import asyncio
import math

import pytest

from service.request_context import (
    current_deadline_s,
    current_request_id,
    enter_batch,
    enter_request,
    leave_request,
    set_deadline,
)


def _taken(wanted: str | None) -> str:
    token = enter_request(wanted)
    try:
        return current_request_id()
    finally:
        leave_request(token)


@pytest.mark.parametrize("wanted", ["a", "2f1c8e5c-6f0b.4:f0/e9+a=_", "x" * 128])
def test_a_short_plain_id_of_the_caller_is_kept(wanted: str) -> None:
    assert _taken(wanted) == wanted


@pytest.mark.parametrize("wanted", [None, "", "x" * 129, "a b", "a\nb", "a\n", 'a"b', "<a>", "é", "٣"])
def test_any_other_id_is_replaced_by_a_new_one(wanted: str | None) -> None:
    first, second = _taken(wanted), _taken(wanted)

    assert first != wanted
    assert first != second
    assert first.isalnum()
    assert len(first) == 32


def test_outside_a_request_there_is_no_id() -> None:
    assert _taken("inside") == "inside"
    assert current_request_id() == ""


def test_concurrent_tasks_keep_their_own_id() -> None:
    async def task(name: str) -> bool:
        token = enter_request(name)
        for _ in range(5):
            await asyncio.sleep(0)
            if current_request_id() != name:
                return False
        leave_request(token)
        return current_request_id() == ""

    async def main() -> list[bool]:
        return await asyncio.gather(*(task(f"id-{index}") for index in range(20)))

    assert all(asyncio.run(main()))


@pytest.mark.parametrize("n_requests", [0, 1, 100])
def test_a_batch_has_every_id_once_however_many_there_are(n_requests: int) -> None:
    ids = [f"{index:032x}" for index in range(n_requests)]

    token = enter_batch([*ids, *ids])

    assert current_request_id() == "+".join(ids)
    leave_request(token)
    assert current_request_id() == ""


def test_a_task_takes_its_deadline_to_those_that_it_starts_and_to_no_other() -> None:
    async def seen() -> float:
        return current_deadline_s()

    async def request(deadline_s: float) -> tuple[float, ...]:
        set_deadline(deadline_s)
        await asyncio.sleep(0)
        return tuple(await asyncio.gather(seen(), seen()))

    async def main() -> None:
        assert await asyncio.gather(request(1.0), request(2.0), seen()) == [(1.0, 1.0), (2.0, 2.0), math.inf]
        assert current_deadline_s() == math.inf

    asyncio.run(main())
