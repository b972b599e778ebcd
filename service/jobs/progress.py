"""What a run tells about itself, written into the job's folder about once a second, and when it has to stop."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace

from scoring.errors import StoppedError
from scoring.tally import Tally
from service import metrics
from service.jobs.records import JobState
from service.jobs.store import Lease

_INTERVAL_S = 1.0
_COUNT_INTERVAL_S = 10.0


class CancelledError(StoppedError):
    """The job's caller asked to end it."""


class JobProgress:
    """A `scoring.engine.Progress`. stopping: whether this process is to end. count: called now and then.

    `state` is the job's state as far as is known here. `tick` raises CancelledError or StoppedError, and OSError when
    the folder of jobs cannot be written.
    """

    def __init__(self, lease: Lease, state: JobState, stopping: Callable[[], bool], count: Callable[[], None]) -> None:
        self._lease, self._stopping, self._count = lease, stopping, count
        self.state = replace(state, n_listed=0, listed=False, n_standing=0, tally=Tally(), files_per_second=None)
        self._n_scored = 0
        self._first_s: float | None = None
        self._written_s = 0.0
        self._counted_s: float | None = None

    def listed(self, n_entries: int, *, done: bool) -> None:
        """See `Progress`."""
        self.state = replace(self.state, n_listed=n_entries, listed=done)

    def standing(self, tally: Tally) -> None:
        """See `Progress`."""
        self.state.tally.add(tally)
        self.state = replace(self.state, n_standing=self.state.n_standing + tally.n_inputs)

    def scored(self, tally: Tally) -> None:
        """See `Progress`."""
        self.state.tally.add(tally)
        now_s = time.monotonic()
        if self._first_s is None:
            # The models were loading until now, which says nothing about the rate.
            self._first_s = now_s
        else:
            self._n_scored += tally.n_inputs
            if now_s > self._first_s:
                rate = round(self._n_scored / (now_s - self._first_s), 2)
                self.state = replace(self.state, files_per_second=rate)
        n_ok = tally.n_inputs - tally.n_faceless - tally.n_failed
        for status, n in (("ok", n_ok), ("no_face", tally.n_faceless), ("error", tally.n_failed)):
            metrics.JOB_FILES.labels(status).inc(n)

    def tick(self) -> None:
        """See `Progress`."""
        if self._stopping():
            raise StoppedError("this process was told to stop")
        now_s = time.monotonic()
        if now_s - self._written_s < _INTERVAL_S:
            return
        self._written_s = now_s
        if self._lease.cancelled:
            raise CancelledError("its caller cancelled the job")
        self._lease.write(self.state, durable=False)
        if self._counted_s is None or now_s - self._counted_s >= _COUNT_INTERVAL_S:
            self._counted_s = now_s
            self._count()
