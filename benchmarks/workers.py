"""An object in a process of its own, so that what it sets for its process (compute threads) disturbs no other."""

from __future__ import annotations

import multiprocessing
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection
from typing import Any


class WorkerError(RuntimeError):
    """The object failed; the text is the traceback in its process."""


class Worker:
    """Makes an object in a new process and calls its methods there, one at a time.

    load: makes the object; it must pickle. Loading goes on while others are started. The process is idle between calls.
    A context manager that ends it.
    """

    def __init__(self, load: Callable[[], object]) -> None:
        context = multiprocessing.get_context("spawn")
        self._connection, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(load, theirs), daemon=True)
        self._process.start()
        self._loaded = False
        theirs.close()

    def wait(self) -> None:
        """Return when the object is there. Raises WorkerError."""
        if not self._loaded:
            self.answer()
            self._loaded = True

    def ask(self, method: str, *arguments: object) -> None:
        """Begin a call; `answer` must follow before the next. Raises WorkerError when there is no object."""
        self.wait()
        self._connection.send((method, arguments))

    def answered(self, within_s: float) -> bool:
        """Whether `answer` would return at once, after waiting for so many seconds at most."""
        return self._connection.poll(within_s)

    def answer(self) -> Any:
        """What the call returned. Raises WorkerError."""
        try:
            succeeded, result = self._connection.recv()
        except EOFError:
            raise WorkerError("the process has ended") from None
        if not succeeded:
            raise WorkerError(result)
        return result

    def run(self, method: str, *arguments: object) -> Any:
        """A call from beginning to end. Raises WorkerError."""
        self.ask(method, *arguments)
        return self.answer()

    def __enter__(self) -> Worker:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.kill()
        self._process.join()
        self._connection.close()


def _serve(load: Callable[[], object], connection: Connection) -> None:
    try:
        held = load()
    except Exception:
        connection.send((False, traceback.format_exc()))
        return
    connection.send((True, None))
    while True:
        try:
            method, arguments = connection.recv()
        except EOFError:
            return
        try:
            connection.send((True, getattr(held, method)(*arguments)))
        except Exception:
            connection.send((False, traceback.format_exc()))
