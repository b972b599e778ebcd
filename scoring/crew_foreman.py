"""The thread of a crew that hands files out to its workers, takes their answers, and finds out what ended one.

A file that was being read or judged when its worker died is a suspect: it is tried once more, alone in a worker. What
dies with its worker then is answered by WorkerDiedError. All else that had no answer is handed out again.

The kernel ends a process by SIGKILL when memory is short, and then the neighbours may be as guilty: after a SIGKILL
they do nothing until the suspect had its second try.
"""

from __future__ import annotations

import logging
import queue
import selectors
import socket
import threading
import time
from collections.abc import Set
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import count
from typing import Any

from handlers.errors import ExpiredError
from scoring.crew_ledger import File, Ledger
from scoring.crew_process import WorkerProcess
from scoring.errors import EngineError, InputError
from scoring.parts import Part

logger = logging.getLogger(__name__)

_MAX_BARREN_DEATHS = 3
_AHEAD_S = 0.25
_MIN_AHEAD, _MAX_AHEAD = 2, 512
_POLL_S = 0.25
_TALLY_S = 0.1
_KILLED = "signal SIGKILL"


@dataclass(eq=False)
class _Place:
    """Room for one worker, and the worker in it. out: what it has, by the number it was handed out with."""

    n_barren_deaths: int = 0
    worker: WorkerProcess | None = None
    is_ready: bool = False
    has_answered: bool = False
    failure: str = ""
    out: dict[int, File] = field(default_factory=dict)
    counted_s: float = 0.0

    @property
    def suspect(self) -> File | None:
        file = next(iter(self.out.values()), None)
        return file if file is not None and file.is_suspect else None


class _Reset:
    """The order to forget all work."""

    def __init__(self) -> None:
        self.is_done = threading.Event()


class Foreman(threading.Thread):
    """See the module. make_scorer: pickled. The other arguments are those of `scoring.crew.Crew`.

    ledger: has what the caller is to hear. file_s: what a file takes a worker, about; 0 as long as nobody knows.
    """

    def __init__(self, make_scorer: bytes, n_workers: int, *, file_timeout_s: float, niceness: int) -> None:
        super().__init__(name="crew", daemon=True)
        self.ledger = Ledger()
        self.file_s = 0.0
        self._make_scorer, self._niceness, self._file_timeout_s = make_scorer, niceness, file_timeout_s
        self._orders: queue.SimpleQueue[Part | _Reset | None] = queue.SimpleQueue()
        self._wakes, self._woken = socket.socketpair()
        for end in (self._wakes, self._woken):
            end.setblocking(False)
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._wakes, selectors.EVENT_READ)
        self._numbers = count(1)
        self._places = [_Place() for _ in range(n_workers)]
        self._ever_ready = False
        self._poll_s = min(_POLL_S, file_timeout_s / 4)
        self._looked_s = 0.0

    # For the caller's thread

    def score(self, part: Part) -> None:
        """Take this part, too."""
        self._order(part)

    def reset(self) -> None:
        """Kill every worker and forget all work; returns when that is done."""
        order = _Reset()
        self._order(order)
        while self.is_alive() and not order.is_done.wait(_POLL_S):
            pass

    def stop(self) -> None:
        """Kill every worker and end the thread; returns when that is done."""
        self._order(None)
        self.join()

    def _order(self, order: Part | _Reset | None) -> None:
        self._orders.put(order)
        with suppress(OSError):  # full: it wakes anyway; closed: it has ended
            self._woken.send(b"w")

    # For the thread itself

    def run(self) -> None:
        """Work until `stop`."""
        try:
            while self._obey():
                self._fill_places()
                self._hand_out()
                for key, _ in self._selector.select(self._poll_s):
                    self._attend(key.data)
                self._look_for_the_late()
                self.ledger.tell(_TALLY_S)
        except BaseException as error:
            logger.exception("the crew failed")
            self.ledger.events.put(EngineError(f"the crew failed: {error!r}"))
        finally:
            self._forget()
            self._selector.close()
            self._wakes.close()
            self._woken.close()

    def _obey(self) -> bool:
        while True:
            try:
                order = self._orders.get_nowait()
            except queue.Empty:
                return True
            if order is None:
                return False
            if isinstance(order, _Reset):
                self._forget()
                order.is_done.set()
                continue
            if not self.ledger.n_open:
                for place in self._places:
                    place.n_barren_deaths = 0
            self.ledger.add(order)

    def _attend(self, source: tuple[_Place, WorkerProcess, bool] | None) -> None:
        if source is None:
            with suppress(BlockingIOError):
                self._wakes.recv(4096)
            return
        place, worker, is_channel = source
        if place.worker is not worker:  # buried since the selector looked
            return
        if not is_channel:
            if not worker.read_printed():
                self._selector.unregister(worker.printed)
            return
        worker.channel.flush()
        self._take(place, worker.channel.receive())
        if place.worker is worker:
            if worker.channel.ended:
                self._bury(place)
            else:
                self._watch(place, worker)

    def _watch(self, place: _Place, worker: WorkerProcess) -> None:
        wanted = selectors.EVENT_READ | (selectors.EVENT_WRITE if worker.channel.has_unsent else 0)
        connection = worker.channel.connection
        if self._selector.get_key(connection).events != wanted:
            self._selector.modify(connection, wanted, (place, worker, True))

    # Work

    def _hand_out(self) -> None:
        ledger = self.ledger
        if not ledger.n_waiting and not ledger.n_suspects:
            return
        if any(place.suspect is not None and place.suspect.needs_quiet for place in self._places):
            return
        if ledger.needs_quiet and any(place.out for place in self._places):
            return
        ready = sorted((place for place in self._places if place.is_ready), key=lambda place: len(place.out))
        n_loading = sum(place.worker is not None for place in self._places) - len(ready)
        target = max(_MIN_AHEAD, min(_MAX_AHEAD, int(_AHEAD_S / self.file_s))) if self.file_s else _MIN_AHEAD
        for place in ready:
            if ledger.n_suspects and not place.out:
                suspect = ledger.take_suspect()
                self._give(place, [suspect])
                if suspect.needs_quiet or ledger.needs_quiet:
                    return
            elif len(place.out) <= target // 2 and place.suspect is None:
                # Nobody puts a file by for later that a worker which is about to be ready could begin with.
                n_free = ledger.n_waiting - (n_loading if place.out else 0)
                fair_share = -(-n_free // (len(ready) + n_loading))
                if fair_share > 0:
                    self._give(place, ledger.take(min(target - len(place.out), fair_share)))

    def _give(self, place: _Place, files: list[File]) -> None:
        assert place.worker is not None
        if not place.out:
            place.counted_s = time.monotonic()
        message = []
        for file in files:
            number, entry = next(self._numbers), file.entry
            place.out[number] = file
            message.append((number, entry.path, entry.size_bytes, entry.version))
        place.worker.channel.send(message)
        self._watch(place, place.worker)

    def _take(self, place: _Place, messages: list[Any]) -> None:
        for kind, value in messages:
            if kind == "answers":
                now_s = time.monotonic()
                file_s = (now_s - place.counted_s) / len(value)
                place.counted_s = now_s
                self.file_s = 0.7 * self.file_s + 0.3 * file_s if self.file_s else file_s
                place.has_answered = True
                for number, outcome in value:
                    self.ledger.answer(place.out.pop(number), outcome)
            elif kind == "ready":
                place.is_ready = self._ever_ready = True
            elif kind == "log":
                record = logging.makeLogRecord(value)
                logging.getLogger(record.name).handle(record)
            elif kind == "failed to load":
                place.failure = value
            else:
                self._fail(InputError(value) if kind == "input gone" else value)
                return

    # Workers

    def _fill_places(self) -> None:
        n_wanted = min(self.ledger.n_open, len(self._places)) - sum(place.worker is not None for place in self._places)
        for place in self._places:
            if n_wanted <= 0:
                return
            if place.worker is not None or place.n_barren_deaths >= _MAX_BARREN_DEATHS:
                continue
            n_wanted -= 1
            try:
                worker = WorkerProcess(self._make_scorer, self._niceness)
            except OSError as error:
                self._count_barren(place, str(error))
                return
            place.worker, place.is_ready, place.has_answered, place.failure = worker, False, False, ""
            self._selector.register(worker.channel.connection, selectors.EVENT_READ, (place, worker, True))
            self._selector.register(worker.printed, selectors.EVENT_READ, (place, worker, False))
            self._watch(place, worker)

    def _look_for_the_late(self) -> None:
        now_s = time.monotonic()
        if now_s - self._looked_s < self._poll_s / 2:
            return
        self._looked_s = now_s
        for place in self._places:
            if place.worker is None or not place.out:
                continue
            late = place.worker.overdue(self._file_timeout_s) & place.out.keys()
            if late:
                self._bury(place, late)

    def _bury(self, place: _Place, late: Set[int] = frozenset()) -> None:
        """The worker is gone, or is to go because of the files with the numbers `late`."""
        worker = place.worker
        assert worker is not None
        ending = worker.end()
        self._take(place, worker.channel.receive())
        if place.worker is None:  # its last words ended all work
            return
        noted = worker.noted() & place.out.keys()
        self._vacate(place)
        left, place.out = place.out, {}
        printed = worker.last_printed()
        paths = ", ".join(sorted(file.entry.shown_path for number, file in left.items() if number in noted))
        logger.warning(
            "a worker ended (%s) %s%s",
            f"killed after {self._file_timeout_s:g} s" if late else ending,
            f"at {paths}" if paths else ("between files" if place.is_ready else "while loading"),
            f"; it printed: {printed}" if printed else "",
        )
        unbegun = []
        for number, file in left.items():
            if number in late:
                self.ledger.answer(file, ExpiredError(f"no result after {self._file_timeout_s:g} s"))
            elif number in noted and not late:
                self.ledger.return_begun(file, needs_quiet=ending == _KILLED)
            else:
                unbegun.append(file)
        self.ledger.return_unbegun(unbegun)
        place.is_ready = False
        if place.has_answered or noted:
            place.n_barren_deaths = 0
        else:
            self._count_barren(place, place.failure or f"{ending}{printed and ': '}{printed.rpartition(chr(10))[2]}")

    def _count_barren(self, place: _Place, cause: str) -> None:
        place.n_barren_deaths += 1
        n_deaths = [place.n_barren_deaths for place in self._places]
        if min(n_deaths) >= _MAX_BARREN_DEATHS or (not self._ever_ready and sum(n_deaths) >= _MAX_BARREN_DEATHS):
            self._fail(EngineError(f"no worker can be kept alive; the last one ended: {cause}"))
        elif place.n_barren_deaths == _MAX_BARREN_DEATHS:
            logger.warning("goes on with fewer workers; the last one ended: %s", cause)

    def _vacate(self, place: _Place) -> None:
        worker = place.worker
        assert worker is not None
        self._selector.unregister(worker.channel.connection)
        with suppress(KeyError):  # it had closed that before
            self._selector.unregister(worker.printed)
        worker.close()
        place.worker = None

    def _fail(self, error: Exception) -> None:
        self._forget()
        self.ledger.events.put(error)

    def _forget(self) -> None:
        for place in self._places:
            if place.worker is not None:
                place.worker.kill()
        for place in self._places:
            if place.worker is not None:
                place.worker.end()
                self._vacate(place)
        self._places = [_Place() for _ in self._places]
        self.ledger.forget()
