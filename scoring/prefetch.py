"""A listing that is read in a thread, so that a run can be stopped while a folder or a bucket keeps it waiting."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Generator, Iterable

from scoring.parts import Entry

_TICK_S = 0.5
_BATCH = 1000
_BATCH_S = 0.2
_MOST_BATCHES = 4


def prefetched(entries: Iterable[Entry], tick: Callable[[], None]) -> Generator[Entry, None, None]:
    """The same entries in the same order. `tick` is called at least once a second, however long the next one takes.

    Raises what `entries` or `tick` raise. A thread that waits for the system when the iteration ends is left behind,
    and ends when the system answers.
    """
    batches: queue.Queue[list[Entry] | BaseException | None] = queue.Queue(_MOST_BATCHES)
    over = threading.Event()

    def put(item: list[Entry] | BaseException | None) -> bool:
        while not over.is_set():
            try:
                batches.put(item, timeout=_TICK_S)
                return True
            except queue.Full:
                continue
        return False

    def read() -> None:
        try:
            held: list[Entry] = []
            since_s = time.monotonic()
            for entry in entries:
                held.append(entry)
                if len(held) >= _BATCH or time.monotonic() - since_s >= _BATCH_S:
                    if not put(held):
                        return
                    held, since_s = [], time.monotonic()
            put(held)
            put(None)
        except BaseException as error:
            put(error)

    threading.Thread(target=read, name="listing", daemon=True).start()
    ticked_s = time.monotonic()
    try:
        while True:
            try:
                batch = batches.get(timeout=_TICK_S)
            except queue.Empty:
                batch = []
            if time.monotonic() - ticked_s >= _TICK_S:
                tick()
                ticked_s = time.monotonic()
            if batch is None:
                return
            if isinstance(batch, BaseException):
                raise batch
            yield from batch
    finally:
        over.set()
