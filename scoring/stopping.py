"""SIGINT, SIGTERM and SIGHUP as a StoppedError, so that a run ends its workers and leaves its output fit to go on."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType

from scoring.errors import StoppedError

_SIGNALS = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
_SHOW_CURSOR = b"\x1b[?25h"


@contextmanager
def stopped_by_signals() -> Iterator[Callable[[], None]]:
    """Within, the first signal raises StoppedError in the main thread, and a second one ends the process at once.

    Yields what a run should call now and then, from the main thread: it raises StoppedError when a signal was lost
    (raised where exceptions are ignored), and takes signals back that a library has taken. A signal that was ignored
    from the start (`nohup`) stays ignored. Only in the main thread.
    """
    before = {number: signal.getsignal(number) for number in _SIGNALS}
    ours = [number for number in _SIGNALS if before[number] is not signal.SIG_IGN]
    stopped = False

    def stop(number: int, frame: FrameType | None) -> None:
        nonlocal stopped
        if stopped:
            if sys.stderr.isatty():
                os.write(sys.stderr.fileno(), _SHOW_CURSOR)
            os._exit(1)
        stopped = True
        raise StoppedError("stopped; the same command goes on from here")

    def check() -> None:
        if stopped:
            raise StoppedError("stopped; the same command goes on from here")
        for number in ours:
            if signal.getsignal(number) is not stop:
                signal.signal(number, stop)

    check()
    try:
        yield check
    finally:
        for number in ours:
            signal.signal(number, before[number] or signal.SIG_DFL)
