"""Spreads the work of one runner over its workers, each of which has a socket of its own.

A shared socket does not do it: who accepts first takes every connection that waits, and connections are kept. And a
call costs some milliseconds whatever it carries. So each worker has a lane with a call or two under way, which keeps it
busy, and what arrives meanwhile goes together in the next one.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from handlers.errors import InternalError

Call = Callable[[list[Any]], Awaitable[list[Any]]]


@dataclass(frozen=True, eq=False)
class _Waiting:
    items: list[Any]
    results: asyncio.Future[list[Any]]


class Lanes:
    """Calls a runner through one of its workers. calls: one for each worker. max_items: of one call, if they are many.

    A waiter who is cancelled before his items were sent takes them back.
    """

    def __init__(self, calls: Sequence[Call], max_items: int) -> None:
        self._free = deque(calls)
        self._max_items = max_items
        self._waiting: deque[_Waiting] = deque()
        self._sending: set[asyncio.Task[None]] = set()

    async def __call__(self, items: list[Any]) -> list[Any]:
        """One result for each item, in order. Raises what the worker's call raises, for all who shared it."""
        waiting = _Waiting(items, asyncio.get_running_loop().create_future())
        self._waiting.append(waiting)
        self._send_what_waits()
        return await waiting.results

    def _send_what_waits(self) -> None:
        while self._free and (together := self._next()):
            task = asyncio.create_task(self._send(self._free.popleft(), together))
            self._sending.add(task)
            task.add_done_callback(self._sending.discard)

    def _next(self) -> list[_Waiting]:
        together: list[_Waiting] = []
        n_items = 0
        while self._waiting and (not together or n_items + len(self._waiting[0].items) <= self._max_items):
            each = self._waiting.popleft()
            if not each.results.cancelled():
                together.append(each)
                n_items += len(each.items)
        return together

    async def _send(self, call: Call, together: list[_Waiting]) -> None:
        items = [item for each in together for item in each.items]
        try:
            results = await call(items)
            if len(results) != len(items):
                raise InternalError(f"{len(results)} results for {len(items)} items")
        except Exception as error:
            for each in together:
                if not each.results.done():
                    each.results.set_exception(error)
        else:
            for each in together:
                own, results = results[: len(each.items)], results[len(each.items) :]
                if not each.results.done():
                    each.results.set_result(own)
        finally:
            self._free.append(call)
            self._send_what_waits()
