"""When a runner's batch begins: at once when the runner is free, with all that waits then.

BentoML's dispatcher (1.4.39) lets a free runner wait for company, as long as requests waited lately on average, so one
caller after a rush is slow for a while; it looks every millisecond whether the runner is free, which takes the
interpreter from the computation; and it begins by waiting on purpose, to learn. While a runner computes, what arrives
gathers by itself.
"""

from __future__ import annotations

import asyncio
from typing import Any

import _bentoml_impl.server.app as bentoml_app
from bentoml._internal.marshal.dispatcher import CorkDispatcher, Job


class EagerDispatcher(CorkDispatcher[Any, Any]):
    """BentoML's dispatcher with another answer to when: never later than the runner is free."""

    async def controller(self) -> None:
        """Start a batch whenever there is work and the runner is free."""
        while True:
            async with self._wake_event:
                await self._wake_event.wait_for(lambda: self._queue and self._sema.sema > 0)
            self._sema.sema -= 1
            batch = tuple(self._get_inputs())
            self._batch = asyncio.create_task(self._run(batch))

    async def _run(self, batch: tuple[Job[Any, Any], ...]) -> None:
        await self.outbound_call(batch)
        async with self._wake_event:
            self._wake_event.notify_all()


def batch_eagerly() -> None:
    """Let the runners that this process serves from now on batch this way."""
    bentoml_app.CorkDispatcher = EagerDispatcher
