"""Scorers for tests, which do on purpose what pictures do by accident. They pickle; names of files are orders."""

from __future__ import annotations

import ctypes
import fcntl
import os
import resource
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from handlers.errors import CorruptImageError, HandlerError, ModelUnavailableError
from handlers.results import Analysis
from scoring.errors import InputError
from scoring.parts import Entry, Outcome


def expected(path: str) -> Analysis:
    """What `OrderedScorer` says of a file that does nothing special: its width is the number at the end of its name."""
    return Analysis(int(path.rpartition("-")[2]), 1, ())


@dataclass(frozen=True)
class MakeOrdered:
    """pace_s: what judging a file takes at least. journal: a file that gets a line `read|judge PID PATH` for each."""

    pace_s: float = 0.0
    journal: Path | None = None

    def __call__(self) -> OrderedScorer:
        return OrderedScorer(self.pace_s, self.journal)


class OrderedScorer:
    """Obeys the word before the first `-` of a file's name in `judge`, or in `read` when that word begins with `read_`.

    Two need the journal: `once_…` is obeyed the first time only, `lonely` kills its worker unless nobody else judges.
    """

    def __init__(self, pace_s: float, journal: Path | None) -> None:
        self._pace_s, self._journal = pace_s, journal

    def read(self, entry: Entry) -> bytes | HandlerError:
        self._note("read", entry.path)
        order = entry.path.partition("-")[0]
        if order == "unreadable":
            return CorruptImageError("not a picture")
        if order.startswith("read_"):
            ORDERS[order.removeprefix("read_")]()
        return entry.path.encode()

    def judge(self, image: bytes) -> Outcome:
        path = image.decode()
        n_earlier = self._note("judge", path)
        if self._journal is None or path.startswith("lonely"):
            return self._judge(path, n_earlier)
        with self._journal.open("rb") as journal:
            fcntl.flock(journal, fcntl.LOCK_SH)
            return self._judge(path, n_earlier)

    def _judge(self, path: str, n_earlier: int) -> Outcome:
        if self._pace_s:
            time.sleep(self._pace_s)
        order = path.partition("-")[0]
        if order == "corrupt":
            return CorruptImageError("not a picture")
        if order == "lonely":
            self._die_in_company()
        if not order.startswith("once_"):
            ORDERS.get(order, _nothing)()
        elif not n_earlier:
            ORDERS[order.removeprefix("once_")]()
        return expected(path)

    def _die_in_company(self) -> None:
        # As when memory is enough for one large picture, but not for two.
        assert self._journal is not None
        with self._journal.open("rb") as journal:
            time.sleep(0.2)
            try:
                fcntl.flock(journal, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                _kill()

    def _note(self, doing: str, path: str) -> int:
        if self._journal is None:
            return 0
        with self._journal.open("a+") as journal:
            journal.seek(0)
            n_earlier = sum(line.split()[::2] == [doing, path] for line in journal)
            journal.write(f"{doing} {os.getpid()} {path}\n")
        return n_earlier


def _nothing() -> None:
    pass


def _exit() -> None:
    os._exit(3)


def _leave() -> None:
    sys.exit("had enough")


def _segfault() -> None:
    ctypes.string_at(0)


def _kill() -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def _hang() -> None:
    time.sleep(600)


def _hang_with_lock() -> None:
    ctypes.PyDLL(None).sleep(600)  # keeps the interpreter's lock: no other thread of the worker gets a turn


def _fail() -> None:
    raise KeyError("a bug")


def _use_memory() -> None:
    limits = resource.getrlimit(resource.RLIMIT_AS)
    used_bytes = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used_bytes + 2**24, limits[1]))
    try:
        bytearray(2**30)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)


def _lose_input() -> None:
    raise InputError("the folder is gone")


def _print() -> None:
    print("printed by a library", flush=True)


ORDERS: dict[str, Callable[[], None]] = {
    "exit": _exit,
    "leave": _leave,
    "segfault": _segfault,
    "kill": _kill,
    "hang": _hang,
    "hang_with_lock": _hang_with_lock,
    "fail": _fail,
    "use_memory": _use_memory,
    "lose_input": _lose_input,
    "print": _print,
}


@dataclass(frozen=True)
class MakeAfterwards:
    """Obeys an order while it loads, the first `n_times`; then a scorer that does nothing special.

    counter: a file that grows by a byte with every load.
    """

    order: str
    n_times: int
    counter: Path

    def __call__(self) -> OrderedScorer:
        with self.counter.open("ab") as counter:
            counter.write(b".")
        if self.counter.stat().st_size <= self.n_times:
            ORDERS[self.order]()
        return OrderedScorer(0.0, None)


@dataclass(frozen=True)
class MakeSlowly:
    """Takes `load_s` to load."""

    load_s: float

    def __call__(self) -> OrderedScorer:
        time.sleep(self.load_s)
        return OrderedScorer(0.0, None)


@dataclass(frozen=True)
class MakeWithoutModel:
    """What loading does when the model is not there."""

    def __call__(self) -> OrderedScorer:
        raise ModelUnavailableError("no model of that name")


@dataclass(frozen=True)
class MakeWitness:
    """Its scorer tells about its process: the width is the niceness, the height the readiness to be killed."""

    def __call__(self) -> WitnessScorer:
        return WitnessScorer()


class WitnessScorer:
    """See `MakeWitness`. A process whose math libraries may use several threads makes it fail."""

    def read(self, entry: Entry) -> bytes:
        return b""

    def judge(self, image: bytes) -> Outcome:
        assert {os.environ[name] for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")} == {"1"}
        return Analysis(os.nice(0), int(Path("/proc/self/oom_score_adj").read_text()), ())
