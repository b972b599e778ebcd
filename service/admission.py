"""Who may work now, who waits, and who is told to come back later. One object in each API process.

Requests are refused early: before their body is read, when the places for waiting are taken, when too many bytes are
held, or when the wait would be longer than allowed. Who is let in waits in turn, for a bounded time.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections import deque
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

from service import metrics
from service.problems import OverloadedError

_SMOOTHING = 0.1


class Admission:
    """Bounds of one API process.

    concurrency: pictures in work at once. queue_size: pictures that wait. queue_timeout_s: longest wait; what a picture
    lately took once it had its turn is part of it, since most of that is waiting, too. max_pending_bytes: of the bodies
    that are held.
    """

    def __init__(self, concurrency: int, queue_size: int, queue_timeout_s: float, max_pending_bytes: int) -> None:
        self._concurrency, self._queue_size = concurrency, queue_size
        self._queue_timeout_s, self._max_pending_bytes = queue_timeout_s, max_pending_bytes
        self._requests = self._pending_bytes = self._working = self._waiting = 0
        self._turns: deque[tuple[int, asyncio.Future[None]]] = deque()
        self._mean_work_s = 0.0

    @contextmanager
    def request(self, n_bytes: int) -> Iterator[None]:
        """Hold a request of at most `n_bytes`, from before its body is read until it is answered.

        Raises OverloadedError. A request alone is let in whatever its size, which other limits bound.
        """
        if self._requests >= self._concurrency + self._queue_size:
            raise self._overloaded("too many requests are waiting")
        if self._requests and self._pending_bytes + n_bytes > self._max_pending_bytes:
            raise self._overloaded("too many bytes are waiting")
        if self._expected_wait_s() > self._queue_timeout_s:
            raise self._overloaded("the wait would be too long")
        self._requests += 1
        self._pending_bytes += n_bytes
        try:
            yield
        finally:
            self._requests -= 1
            self._pending_bytes -= n_bytes

    @asynccontextmanager
    async def turn(self, n_pictures: int) -> AsyncIterator[None]:
        """Wait until that many pictures (`concurrency` at most) may be worked on. Raises OverloadedError."""
        started = time.monotonic()
        await self._wait_for_turn(n_pictures)
        metrics.STAGE_SECONDS.labels("queue").observe(time.monotonic() - started)
        metrics.IN_PROGRESS.inc(n_pictures)
        started = time.monotonic()
        try:
            yield
        finally:
            work_s = time.monotonic() - started
            self._mean_work_s += (work_s - self._mean_work_s) * (_SMOOTHING if self._mean_work_s else 1)
            metrics.IN_PROGRESS.dec(n_pictures)
            self._working -= n_pictures
            self._let_in()

    async def _wait_for_turn(self, n_pictures: int) -> None:
        if not self._turns and self._working + n_pictures <= self._concurrency:
            self._working += n_pictures
            return
        if (self._waiting and self._waiting + n_pictures > self._queue_size) or not self._queue_size:
            raise self._overloaded("too many pictures are waiting")
        turn: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        entry = (n_pictures, turn)
        self._turns.append(entry)
        self._count_waiting(n_pictures)
        try:
            async with asyncio.timeout(max(0.0, self._queue_timeout_s - self._mean_work_s)):
                await turn
        except BaseException as error:
            if turn.done() and not turn.cancelled():
                self._working -= n_pictures  # the turn came together with the end of the wait
            elif entry in self._turns:
                self._turns.remove(entry)
                self._count_waiting(-n_pictures)
            self._let_in()
            if isinstance(error, TimeoutError):
                raise self._overloaded("no turn came in time") from None
            raise

    def _let_in(self) -> None:
        while self._turns and self._working + self._turns[0][0] <= self._concurrency:
            n_pictures, turn = self._turns.popleft()
            self._count_waiting(-n_pictures)
            if not turn.cancelled():  # its task has been told to give up, and has not run since
                self._working += n_pictures
                turn.set_result(None)

    def _count_waiting(self, change: int) -> None:
        self._waiting += change
        metrics.QUEUED.inc(change)

    def _expected_wait_s(self) -> float:
        if self._working < self._concurrency:
            return 0.0
        return self._mean_work_s * (1 + self._waiting / self._concurrency)

    def _overloaded(self, detail: str) -> OverloadedError:
        return OverloadedError(detail, max(1, math.ceil(self._expected_wait_s())))
