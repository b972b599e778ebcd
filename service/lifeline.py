"""A worker ends when its supervisor is gone, however that went: nobody else would ever end it."""

from __future__ import annotations

import os
import signal
import threading
import time

VARIABLE = "MIEN_LIFELINE_FD"
_GRACE_S = 5.0


def watch_parent() -> None:
    """Begin to watch the supervisor in a thread; without the environment variable `MIEN_LIFELINE_FD` do nothing.

    The variable names a pipe's end to read whose other end only the supervisor holds, so its end of file is the end of
    the supervisor. This process then gets SIGTERM, and is gone 5 s later even when that did not end it.
    """
    descriptor = os.environ.get(VARIABLE)
    if descriptor is not None:
        threading.Thread(target=_end_with, args=(int(descriptor),), name="lifeline", daemon=True).start()


def _end_with(descriptor: int) -> None:
    while os.read(descriptor, 1):
        pass
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(_GRACE_S)
    os._exit(1)
