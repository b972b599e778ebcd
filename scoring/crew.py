"""Worker processes that score the files of parts together, each with a scorer of its own."""

from __future__ import annotations

import pickle
import queue
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from types import TracebackType
from typing import Protocol, Self

from handlers.errors import HandlerError
from scoring.crew_foreman import Foreman
from scoring.crew_ledger import Done
from scoring.engine import Progress
from scoring.parts import Entry, Outcome, Part
from scoring.tally import Tally

_TICK_S = 0.25
_AHEAD_S = 0.5
_MIN_AHEAD, _MAX_AHEAD = 256, 16_384


class ScorerLike(Protocol):
    """One file to its outcome in two steps; see `scoring.scorer.Scorer`. `read` is called from several threads.

    What either raises makes the file an `internal` one, except a HandlerError, which is its outcome, and an InputError
    of `read`, which ends the work.
    """

    def read(self, entry: Entry) -> bytes | HandlerError:
        """The file's bytes."""
        ...

    def judge(self, image: bytes) -> Outcome:
        """The outcome of these bytes. Called from one thread only."""
        ...


class Crew:
    """A context manager: `n_workers` processes, started when there is work, all gone when it is left.

    make_scorer: called in each worker, so it must pickle and be importable there. file_timeout_s: a file that is read
    or judged for longer becomes an ExpiredError, and its worker is replaced. niceness: added to the caller's.
    A file that ends its worker twice, the second time alone in it, becomes a WorkerDiedError; nobody else is touched.
    """

    def __init__(
        self, make_scorer: Callable[[], ScorerLike], n_workers: int, *, file_timeout_s: float, niceness: int = 0
    ) -> None:
        if n_workers < 1 or file_timeout_s <= 0:
            raise ValueError("a crew needs a worker, and a file some time")
        self._n_workers = n_workers
        self._foreman = Foreman(pickle.dumps(make_scorer), n_workers, file_timeout_s=file_timeout_s, niceness=niceness)
        self._is_scoring = False

    def __enter__(self) -> Self:
        self._foreman.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._foreman.stop()

    def score(self, parts: Iterable[Part], progress: Progress) -> Generator[tuple[Part, list[Outcome]], None, None]:
        """Yield every part with the outcomes of its entries, in their order; the parts in any order.

        Reads `parts` as far as the workers need. They go on while the caller does something with a part. Closing the
        iterator, and any error, ends the workers. May be called again when it is over, with the same workers.
        Raises EngineError when no worker can be kept alive, InputError from `read`, HandlerError from `make_scorer`,
        and whatever `parts` and `progress` raise.
        """
        if self._is_scoring:
            raise RuntimeError("a crew scores for one caller at a time")
        self._is_scoring, is_over = True, False
        try:
            yield from self._scored(iter(parts), progress)
            is_over = True
        finally:
            if not is_over:
                self._foreman.reset()
                self._forget_events()
            self._is_scoring = False

    def _scored(self, parts: Iterator[Part], progress: Progress) -> Generator[tuple[Part, list[Outcome]], None, None]:
        foreman, ledger = self._foreman, self._foreman.ledger
        n_answered_before, n_finished_before = ledger.n_answered, ledger.n_finished
        n_taken = n_yielded = n_open_parts = 0
        has_more = True
        ticked_s = 0.0
        while has_more or n_open_parts:
            if (now_s := time.monotonic()) - ticked_s >= _TICK_S:
                ticked_s = now_s
                progress.tick()
            n_unanswered = n_taken - (ledger.n_answered - n_answered_before)
            n_unclaimed = ledger.n_finished - n_finished_before - n_yielded
            takes_more = has_more and n_unanswered + n_unclaimed < self._n_ahead()
            if takes_more:
                part = next(parts, None)
                has_more = part is not None
                if part is not None:
                    n_taken += len(part.entries)
                    n_open_parts += 1
                    foreman.score(part)
            try:
                event = ledger.events.get(timeout=0 if takes_more else _TICK_S)
            except queue.Empty:
                if not foreman.is_alive():
                    raise RuntimeError("the crew is not there (outside its `with` block)") from None
                continue
            if isinstance(event, Tally):
                progress.scored(event)
            elif isinstance(event, Done):
                n_open_parts -= 1
                n_yielded += len(event.outcomes)
                yield event.part, event.outcomes
            else:
                raise event

    def _n_ahead(self) -> int:
        """Files in hand that keep the workers busy while the caller writes a part."""
        file_s = self._foreman.file_s
        n_files = _AHEAD_S / file_s if file_s else 0
        return self._n_workers * int(max(_MIN_AHEAD, min(_MAX_AHEAD, n_files)))

    def _forget_events(self) -> None:
        while True:
            try:
                self._foreman.ledger.events.get_nowait()
            except queue.Empty:
                return
