from __future__ import annotations

import asyncio

import pytest

from service.request_context import current_request_id, enter_request, leave_request


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
