"""The files that a crew has to score: which wait, which are suspects, and what became of the parts they are of."""

from __future__ import annotations

import queue
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass

from scoring.errors import WorkerDiedError
from scoring.parts import Entry, Outcome, Part
from scoring.tally import Tally


@dataclass(slots=True)
class OpenPart:
    """A part with files that have no outcome yet."""

    part: Part
    outcomes: list[Outcome | None]
    n_missing: int


@dataclass(slots=True)
class File:
    """A file without an outcome.

    is_suspect: it was at work when its worker died, so it must be alone in its next. needs_quiet: and no other worker
    may work meanwhile.
    """

    part: OpenPart
    index: int
    is_suspect: bool = False
    needs_quiet: bool = False

    @property
    def entry(self) -> Entry:
        """Its entry."""
        return self.part.part.entries[self.index]


@dataclass(frozen=True)
class Done:
    """A part and all its outcomes, in the order of its entries."""

    part: Part
    outcomes: list[Outcome]


Event = Done | Tally | Exception
"""A part that is done, counts of what was answered since the last ones, or what ended the work."""


class Ledger:
    """For one thread; what others read is said.

    events: for the crew's caller. n_answered, n_finished: files that have an outcome, and files of the parts that were
    put into `events`; they only grow, and the caller reads them. n_open: files without an outcome.
    """

    def __init__(self) -> None:
        self.events: queue.SimpleQueue[Event] = queue.SimpleQueue()
        self.n_answered = self.n_finished = self.n_open = 0
        self._waiting: deque[File] = deque()
        self._suspects: deque[File] = deque()
        self._untold: list[Outcome] = []
        self._told_s = 0.0

    @property
    def n_waiting(self) -> int:
        """Files that no worker has, without the suspects."""
        return len(self._waiting)

    @property
    def n_suspects(self) -> int:
        """Suspects that no worker has."""
        return len(self._suspects)

    def add(self, part: Part) -> None:
        """Take the files of a part in."""
        open_part = OpenPart(part, [None] * len(part.entries), len(part.entries))
        self.n_open += open_part.n_missing
        self._waiting.extend(File(open_part, index) for index in range(open_part.n_missing))

    def take(self, n: int) -> list[File]:
        """The next `n` that wait."""
        return [self._waiting.popleft() for _ in range(n)]

    @property
    def needs_quiet(self) -> bool:
        """The next suspect does."""
        return bool(self._suspects) and self._suspects[0].needs_quiet

    def take_suspect(self) -> File:
        """The next suspect."""
        return self._suspects.popleft()

    def return_unbegun(self, files: Sequence[File]) -> None:
        """They were handed out, in this order, and nobody began with them; they are the next ones again."""
        self._suspects.extendleft(file for file in reversed(files) if file.is_suspect)
        self._waiting.extendleft(file for file in reversed(files) if not file.is_suspect)

    def return_begun(self, file: File, *, needs_quiet: bool) -> None:
        """Its worker died at it."""
        if file.is_suspect:
            self.answer(file, WorkerDiedError("ended its process twice, the second time alone in it"))
        else:
            file.is_suspect, file.needs_quiet = True, needs_quiet
            self._suspects.append(file)

    def answer(self, file: File, outcome: Outcome) -> None:
        """The file's outcome; with the last one its part is done."""
        part = file.part
        part.outcomes[file.index] = outcome
        part.n_missing -= 1
        self.n_open -= 1
        self.n_answered += 1
        self._untold.append(outcome)
        if not part.n_missing:
            self.tell()
            self.n_finished += len(part.outcomes)
            self.events.put(Done(part.part, [outcome for outcome in part.outcomes if outcome is not None]))

    def tell(self, every_s: float = 0.0) -> None:
        """Put the counts of new outcomes into `events`, unless that was done less than `every_s` ago."""
        now_s = time.monotonic()
        if self._untold and now_s - self._told_s >= every_s:
            self.events.put(Tally.of(self._untold))
            self._untold, self._told_s = [], now_s

    def forget(self) -> None:
        """All that is open."""
        self._waiting.clear()
        self._suspects.clear()
        self._untold = []
        self.n_open = 0
