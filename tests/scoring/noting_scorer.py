"""A scorer that notes what it scores in a file, and the processes that do: for tests that count, and that kill them."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from handlers.errors import HandlerError
from scoring.parts import Entry, Outcome
from tests.scoring.scorers import MakeOrdered, OrderedScorer


@dataclass(frozen=True)
class Note:
    """A file that was scored. worker, parent: process ids, of the worker and of who has started it."""

    path: str
    worker: int
    parent: int


@dataclass(frozen=True)
class Notes:
    """The file of the notes; it need not be there."""

    file: Path

    def add(self, path: str) -> None:
        """Add one, whoever adds at the same time."""
        line = f"{path} {os.getpid()} {os.getppid()}\n".encode()
        descriptor = os.open(self.file, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
        try:
            os.write(descriptor, line)
        finally:
            os.close(descriptor)

    def read(self) -> list[Note]:
        """Those that are there, in the order of their time."""
        if not self.file.exists():
            return []
        fields = [line.split() for line in self.file.read_text().splitlines()]
        return [Note(path, int(worker), int(parent)) for path, worker, parent in fields]

    def wait_for(self, n: int) -> list[Note]:
        """Those that are there when there are `n`, within two minutes."""
        return self._wait(lambda notes: len(notes) >= n)

    def wait_for_workers(self, n: int) -> list[Note]:
        """Those that are there when `n` workers have each judged three files, within two minutes."""
        return self._wait(
            lambda notes: sum(times >= 3 for times in Counter(note.worker for note in notes).values()) >= n
        )

    def _wait(self, is_enough: Callable[[list[Note]], bool]) -> list[Note]:
        for _ in range(2400):
            if is_enough(notes := self.read()):
                return notes
            time.sleep(0.05)
        raise TimeoutError(f"{len(self.read())} files were scored, and no more")


class NotingScorer:
    """Notes each file that it judges, and leaves the rest to the other scorer."""

    def __init__(self, scorer: OrderedScorer, notes: Notes) -> None:
        self._scorer, self._notes = scorer, notes

    def read(self, entry: Entry) -> bytes | HandlerError:
        return self._scorer.read(entry)

    def judge(self, image: bytes) -> Outcome:
        self._notes.add(image.decode())
        return self._scorer.judge(image)


@dataclass(frozen=True)
class MakeNoting:
    """A scorer that obeys the names of files (`MakeOrdered`). pace_s: what judging a file takes at least."""

    notes: Notes
    pace_s: float = 0.0

    def __call__(self) -> NotingScorer:
        return NotingScorer(MakeOrdered(self.pace_s)(), self.notes)
