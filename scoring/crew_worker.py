"""The process of one worker of a crew: `python -m scoring.crew_worker`, started by `scoring.crew_process` only.

One thread takes orders, some read files ahead, and the main thread judges them one by one. Before any of them touches a
file it notes the file's number in memory that the crew shares, so that the crew knows what ended a worker that is gone.

It ends with its crew, however that went: at the end of the connection, and on Linux by a signal from the kernel,
which also comes when a native call holds the interpreter.
"""

from __future__ import annotations

import contextlib
import faulthandler
import logging
import logging.handlers
import mmap
import os
import pickle
import signal
import socket
import sys
import threading
import time
import traceback
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

from handlers.errors import HandlerError, InternalError
from scoring.crew_channel import WorkerEnd
from scoring.errors import InputError
from scoring.parts import Entry

logger = logging.getLogger("scoring.crew_worker")  # which runs as `__main__`

N_READERS = 4
"""Files that are read at once: a bucket answers late, and four requests under way hide that."""

N_NOTES = 1 + N_READERS
"""Numbers in the shared memory, 64 bits each: of the file that is judged, then of those that are read; 0 is none."""

_READ_AHEAD_FILES = 4
_READ_AHEAD_BYTES = 64 * 2**20
_GUESSED_BYTES = 2 * 2**20  # of a file whose size the source does not say
_COALESCE_S = 0.05
_OOM_SCORE = 500
_PR_SET_PDEATHSIG = 1


class ReadAhead:
    """Reads the files that were ordered in threads, a few ahead of whoever takes them.

    read: an entry to its bytes or its HandlerError; may raise. notes: where the reader with index i (from 1) notes the
    number of its file.
    """

    def __init__(self, read: Callable[[Entry], bytes | HandlerError], notes: memoryview) -> None:
        self._read, self._notes = read, notes
        self._changed = threading.Condition()
        self._ordered: deque[tuple[int, Entry]] = deque()
        self._ready: deque[tuple[int, bytes | HandlerError | InputError, int]] = deque()
        self._n_ahead = self._bytes_ahead = 0
        for index in range(1, 1 + N_READERS):
            threading.Thread(target=_or_die, args=(self._go_on_reading, index), daemon=True).start()

    def order(self, files: list[tuple[int, Entry]]) -> None:
        """Read these, too."""
        with self._changed:
            self._ordered.extend(files)
            self._changed.notify_all()

    def take(self, patience_s: float | None) -> tuple[int, bytes | HandlerError | InputError] | None:
        """The number of a file, and what reading it gave.

        patience_s: None comes after so long, and at once when nothing is on its way; None waits for ever.
        """
        with self._changed:
            while not self._ready:
                if patience_s is None:
                    self._changed.wait()
                elif not (self._ordered or self._n_ahead) or not self._changed.wait(patience_s):
                    return None
            number, content, reserved_bytes = self._ready.popleft()
            self._n_ahead -= 1
            self._bytes_ahead -= reserved_bytes
            if self._ordered:
                self._changed.notify()
            return number, content

    def _go_on_reading(self, index: int) -> None:
        while True:
            with self._changed:
                while not self._may_begin():
                    self._changed.wait()
                number, entry = self._ordered.popleft()
                reserved_bytes = _expected_bytes(entry)
                self._n_ahead += 1
                self._bytes_ahead += reserved_bytes
            self._notes[index] = number
            content = self._content_of(entry)
            self._notes[index] = 0
            n_bytes = len(content) if isinstance(content, bytes) else 0
            with self._changed:
                self._bytes_ahead += n_bytes - reserved_bytes
                self._ready.append((number, content, n_bytes))
                self._changed.notify_all()

    def _may_begin(self) -> bool:
        if not self._ordered:
            return False
        if self._n_ahead == 0:
            return True  # however large it is
        expected_bytes = _expected_bytes(self._ordered[0][1])
        return self._n_ahead < _READ_AHEAD_FILES and self._bytes_ahead + expected_bytes <= _READ_AHEAD_BYTES

    def _content_of(self, entry: Entry) -> bytes | HandlerError | InputError:
        try:
            return self._read(entry)
        except (HandlerError, InputError) as error:
            return error
        except Exception:
            return _internal_error("reading", entry.shown_path)


def _expected_bytes(entry: Entry) -> int:
    return _GUESSED_BYTES if entry.size_bytes is None else entry.size_bytes


def _internal_error(doing: str, what: str) -> InternalError:
    logger.exception("%s %s failed", doing, what)
    return InternalError("scoring this file failed; see the log")


class _LogSender(logging.handlers.QueueHandler):
    """Log lines go to the crew's process, which knows where to and in which form."""

    def __init__(self, crew: WorkerEnd) -> None:
        super().__init__(queue=None)  # type: ignore[arg-type]
        self._crew = crew

    def enqueue(self, record: logging.LogRecord) -> None:
        self._crew.send(("log", record.__dict__))


def _or_die(work: Callable[..., object], *arguments: object) -> None:
    # A thread that is silently gone would leave the crew waiting for ever.
    try:
        work(*arguments)
    except BaseException:
        traceback.print_exc()
        sys.stderr.flush()
        os._exit(1)


def _take_orders(crew: WorkerEnd, ahead: ReadAhead, paths: dict[int, str]) -> NoReturn:
    while True:
        try:
            files = crew.receive()
        except (EOFError, OSError):
            os._exit(0)
        orders = [(number, Entry(*fields)) for number, *fields in files]
        paths.update((number, entry.shown_path) for number, entry in orders)
        ahead.order(orders)


def _work(crew: WorkerEnd, notes: memoryview, scorer: Any) -> NoReturn:
    ahead = ReadAhead(scorer.read, notes)
    paths: dict[int, str] = {}
    threading.Thread(target=_or_die, args=(_take_orders, crew, ahead, paths), daemon=True).start()
    answers: list[tuple[int, object]] = []
    sent_s = time.monotonic()
    while True:
        taken = ahead.take(max(0.0, sent_s + _COALESCE_S - time.monotonic()) if answers else None)
        if taken is None:
            crew.send(("answers", answers))
            answers, sent_s = [], time.monotonic()
            continue
        number, content = taken
        path = paths.pop(number)
        if isinstance(content, InputError):
            crew.send(("input gone", str(content)))
            continue
        if isinstance(content, HandlerError):
            answers.append((number, content))
        else:
            notes[0] = number
            answers.append((number, _judged(scorer, content, path)))
            notes[0] = 0
        del taken, content  # a picture of 60 MB must not wait for the next one to come
        if time.monotonic() - sent_s > _COALESCE_S:
            crew.send(("answers", answers))
            answers, sent_s = [], time.monotonic()


def _judged(scorer: Any, image: bytes, path: str) -> object:
    try:
        return scorer.judge(image)
    except HandlerError as error:
        return error
    except Exception:
        return _internal_error("scoring", path)


def _prepare_process(crew_pid: int, niceness: int) -> None:
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the whole group; the crew decides what it means
    faulthandler.enable(all_threads=False)
    if niceness:
        with contextlib.suppress(OSError):
            os.nice(niceness)
    if sys.platform == "linux":
        import ctypes

        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != crew_pid:  # it was gone before the kernel knew of our wish
            os._exit(0)
        score = Path("/proc/self/oom_score_adj")
        with contextlib.suppress(OSError, ValueError):
            score.write_text(str(max(_OOM_SCORE, int(score.read_text()))))


def main(connection_fd: int, notes_fd: int, crew_pid: int, niceness: int) -> NoReturn:
    """Load a scorer and score what is ordered until the crew is gone.

    connection_fd: our end of the socket pair. notes_fd: file of `N_NOTES` numbers of 64 bits, mapped by both.
    """
    _prepare_process(crew_pid, niceness)
    notes = memoryview(mmap.mmap(notes_fd, 8 * N_NOTES)).cast("q")
    crew = WorkerEnd(socket.socket(fileno=connection_fd))
    make_scorer, log_level = crew.receive()
    logging.basicConfig(level=log_level, handlers=[_LogSender(crew)])
    try:
        scorer = pickle.loads(make_scorer)()
    except HandlerError as error:
        crew.send(("refused", error))
        os._exit(1)
    except Exception as error:
        traceback.print_exc()
        crew.send(("failed to load", f"{type(error).__name__}: {error}"))
        os._exit(1)
    crew.send(("ready", None))
    _work(crew, notes, scorer)


if __name__ == "__main__":
    _or_die(main, *(int(argument) for argument in sys.argv[1:]))
