"""Bounds on threads that wait for a disk: when a request's time is over, the thread that works for it goes on."""

from __future__ import annotations

import functools
import threading
from collections.abc import Callable, Iterator
from typing import ParamSpec, TypeVar

from fastapi.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from service.problems import OverloadedError

P = ParamSpec("P")
R = TypeVar("R")

_RETRY_AFTER_S = 5


class Slots:
    """So many things at once; one more gets OverloadedError. what: they are, for the error. Threads may share it."""

    def __init__(self, n: int, what: str) -> None:
        self._free = threading.BoundedSemaphore(n)
        self._what = what

    def take(self) -> None:
        """Take a slot, which `give_back` frees. Never waits; raises OverloadedError."""
        if not self._free.acquire(blocking=False):
            raise OverloadedError(f"too many {self._what} are under way", _RETRY_AFTER_S)

    def give_back(self) -> None:
        """Free a slot."""
        self._free.release()

    def bound(self, door: Callable[P, R]) -> Callable[P, R]:
        """A door, run in a thread, that holds a slot until its thread is done with it."""

        @functools.wraps(door)
        def bounded(*args: P.args, **kwargs: P.kwargs) -> R:
            self.take()
            try:
                return door(*args, **kwargs)
            finally:
                self.give_back()

        return bounded


class Download(StreamingResponse):
    """An answer of many pieces, each made in a thread, that holds a slot until it and the last thread have ended.

    Raises OverloadedError before the answer begins.
    """

    def __init__(self, pieces: Iterator[bytes], slots: Slots, *, media_type: str, headers: dict[str, str]) -> None:
        self._pieces = _Pieces(pieces, slots.give_back)
        self._slots = slots
        super().__init__(self._pieces, media_type=media_type, headers=headers)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send it."""
        self._slots.take()
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._pieces.end()


class _Pieces:
    """Pieces, and who uses them: the answer, and a thread that makes one. ended: called once, by the last to leave."""

    def __init__(self, pieces: Iterator[bytes], ended: Callable[[], None]) -> None:
        self._pieces, self._ended = pieces, ended
        self._lock = threading.Lock()
        self._n_users = 1

    def __iter__(self) -> Iterator[bytes]:
        return self

    def __next__(self) -> bytes:
        with self._lock:
            if self._n_users == 0:
                raise StopIteration
            self._n_users += 1
        try:
            return next(self._pieces)
        finally:
            self.end()

    def end(self) -> None:
        """One user less."""
        with self._lock:
            self._n_users -= 1
            last = self._n_users == 0
        if last:
            self._ended()
