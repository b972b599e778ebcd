"""The runners' work in the API process (`MIEN_TOPOLOGY=inline`): a thread for each stage, fed with batches."""

from __future__ import annotations

import asyncio
import logging
import queue
import threading
from collections.abc import Callable, Sequence
from typing import Any

from service.work import Work

logger = logging.getLogger(__name__)

_Waiting = tuple[list[Work], asyncio.AbstractEventLoop, "asyncio.Future[list[Any]]"]


class InlineRunner:
    """Runs a stage in a thread of its own, on all that waits at once, up to `max_batch_size` items or one call."""

    def __init__(self, stage: Callable[[Sequence[Work]], list[Any]], max_batch_size: int) -> None:
        self._stage, self._max_batch_size = stage, max_batch_size
        self._waiting: queue.SimpleQueue[_Waiting] = queue.SimpleQueue()
        threading.Thread(target=self._work, name=f"inline-{type(stage).__name__}", daemon=True).start()

    async def __call__(self, works: list[Work]) -> list[Any]:
        """One result for each item, in order. Raises what the stage raises. Cancelled before its turn: not done."""
        loop = asyncio.get_running_loop()
        results: asyncio.Future[list[Any]] = loop.create_future()
        self._waiting.put((works, loop, results))
        return await results

    def _work(self) -> None:
        while True:
            calls = [call for call in self._next_calls() if not call[2].cancelled()]
            works = [work for call in calls for work in call[0]]
            try:
                outcome: list[Any] | Exception = self._stage(works) if works else []
            except Exception as error:
                logger.exception("a batch of %d failed", len(works))
                outcome = error
            for call_works, loop, results in calls:
                if isinstance(outcome, Exception):
                    loop.call_soon_threadsafe(_settle, results, outcome)
                else:
                    loop.call_soon_threadsafe(_settle, results, outcome[: len(call_works)])
                    outcome = outcome[len(call_works) :]

    def _next_calls(self) -> list[_Waiting]:
        calls = [self._waiting.get()]
        n_items = len(calls[0][0])
        while n_items < self._max_batch_size:
            try:
                calls.append(self._waiting.get_nowait())
            except queue.Empty:
                break
            n_items += len(calls[-1][0])
        return calls


def _settle(results: asyncio.Future[list[Any]], outcome: list[Any] | Exception) -> None:
    if results.done():
        return
    if isinstance(outcome, Exception):
        results.set_exception(outcome)
    else:
        results.set_result(outcome)
