"""What an engine is, and what it tells about its progress."""

from __future__ import annotations

from collections.abc import Generator, Iterable
from dataclasses import dataclass
from typing import Protocol

from scoring.parts import Part
from scoring.tally import Tally


@dataclass(frozen=True)
class PartRecord:
    """A part that stands in the output, as the manifest has it.

    name: of the file. sha256, size_bytes: of the file. n_rows: one a face, one for an input without a face or that
    failed. tally: of its inputs.
    """

    name: str
    sha256: str
    size_bytes: int
    n_rows: int
    tally: Tally


class Progress(Protocol):
    """Is told how a run goes on, from the thread that runs it. `tick` may raise StoppedError, which ends the run."""

    def listed(self, n_entries: int, *, done: bool) -> None:
        """So many inputs were found so far, or, when done, in all (of this shard's parts only, when it is one)."""

    def standing(self, tally: Tally) -> None:
        """A part was taken over from an earlier run."""

    def scored(self, tally: Tally) -> None:
        """So much was scored since the last call."""

    def tick(self) -> None:
        """Called at least once a second."""


class Engine(Protocol):
    """Scores parts and writes them. Made for one run."""

    def score(self, parts: Iterable[Part], progress: Progress) -> Generator[PartRecord, None, None]:
        """Score and write every part, in any order; yield each one's record once it stands.

        `parts` is read only as far as there is work for, except where an engine says otherwise. Closing the iterator
        ends all work. Raises ScoringError, or HandlerError for a model that cannot be loaded.
        """
        ...
