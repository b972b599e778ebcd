"""Works on the jobs of the folder one at a time, as long as the process lives: callers in turn, the oldest job first.

Interactive requests come first: this process and all it starts are niced, and no picture of a job goes through the
runners. While there is no job it holds no model.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from handlers.errors import HandlerError, InvalidRequestError
from handlers.pipeline import FAKE
from scoring.config import RunConfig, resolve_config
from scoring.errors import EngineError, InputError, OptionsError, OutputError, ScoringError, StoppedError
from service import metrics
from service.jobs.ending import finish_job
from service.jobs.inputs import find_place
from service.jobs.progress import CancelledError, JobProgress
from service.jobs.records import STATES, JobRequest, JobState, Standing
from service.jobs.store import JobStore, Lease
from service.problems import ForbiddenError
from service.settings import Settings

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""So many processes may die in work on a job without a part done between; then the job has failed."""

POLL_S = 1.0
RETRY_S = 30.0
"""How long a job waits whose results cannot be written, or whose input went away while it was scored."""
MAX_PUT_OFFS = 24 * 60 * 60 // int(RETRY_S)
"""So often a job is put off without a part done between, for a day at least; then it has failed. Clocks may jump."""

_FILE_TIMEOUT_S = 300.0
# What callers read: the errors' own texts name folders and addresses of the machine, and go to the log.
_EXPLAINED: dict[type[ScoringError], tuple[str, str]] = {
    OptionsError: ("invalid_request", "the options of the job do not go together"),
    InputError: ("input_error", "the input cannot be read, has no file to score, or went away"),
    OutputError: ("output_error", "the results cannot be written"),
    EngineError: ("engine_error", "the processes that score cannot be kept alive"),
}
_INTERNAL = ("internal", "the service failed; the cause is in its log under the job's id")


class Worker:
    """Takes jobs from a store. stopping: whether to end, asked at least once a second."""

    def __init__(self, settings: Settings, store: JobStore, stopping: Callable[[], bool]) -> None:
        self._settings, self._store, self._stopping = settings, store, stopping
        self._owner = f"{socket.gethostname()} process {os.getpid()}"
        # Of jobs whose folders cannot even be written, on the clock of `time.monotonic`.
        self._not_before_s: dict[str, float] = {}
        self._survived: set[str] = set()
        self._turns: dict[str | None, int] = {}

    def work(self, wait: Callable[[float], None]) -> None:
        """Work until told to stop. wait: sleeps for so many seconds, or less when told to stop meanwhile."""
        while not self._stopping():
            try:
                worked = self.work_once()
            except OSError as error:
                # The folder may be on a network's file system that comes back.
                logger.error("the folder of jobs cannot be used: %s", error)
                worked = False
            if not worked:
                wait(POLL_S)

    def work_once(self) -> bool:
        """Work on a job that nobody works on. False when there is none. Raises OSError."""
        standings = self._store.standings()
        _count(standings)
        for job_id in self._in_turn(standings):
            try:
                with self._store.lease(job_id, self._owner) as lease:
                    if lease is None or lease.state().finished:
                        continue
                    caller = self._store.caller_of(job_id)
                    self._turns[caller] = max(self._turns.values(), default=0) + 1
                    self._take(job_id, lease)
                self._count_again()
            except OSError as error:
                # Not even its state can be read or written: a full disk, most likely.
                logger.error("the job's folder cannot be used: %s", error, extra={"job": job_id})
                self._not_before_s[job_id] = time.monotonic() + RETRY_S
                self._survived.add(job_id)
            return True
        return False

    def _in_turn(self, standings: Mapping[str, Standing]) -> list[str]:
        """Unfinished jobs that need not wait: those of whom was served the longest ago first, then the oldest."""
        now_s = time.monotonic()
        self._not_before_s = {
            job_id: until_s for job_id, until_s in self._not_before_s.items() if job_id in standings and until_s > now_s
        }
        ready = [
            job_id
            for job_id, standing in standings.items()
            if not standing.finished and job_id not in self._not_before_s and not _waits(standing)
        ]
        return sorted(ready, key=lambda job_id: (self._turns.get(self._store.caller_of(job_id), 0), job_id))

    def _count_again(self) -> None:
        try:
            _count(self._store.standings())
        except OSError as error:
            logger.warning("the jobs cannot be counted: %s", error)

    def _take(self, job_id: str, lease: Lease) -> None:
        before, n_parts = lease.state(), lease.n_parts()
        if lease.cancelled:
            finish_job(lease, before, "cancelled")
            return
        stuck = before.n_parts == n_parts
        # An attempt whose end could not be written stands there like a death, which it was not.
        survived = job_id in self._survived
        self._survived.discard(job_id)
        n_before = before.n_attempts if stuck and not survived else 0
        if n_before >= MAX_ATTEMPTS:
            logger.error("the job does not get on", extra={"job": job_id, "attempts": n_before})
            finish_job(lease, before, "failed", _INTERNAL)
            return
        state = replace(
            before,
            state="running",
            started_s=before.started_s or time.time(),
            n_attempts=n_before + 1,
            n_parts=n_parts,
            n_put_off=before.n_put_off if stuck else 0,
            not_before_s=None,
            error_code=None,
            error_detail=None,
        )
        lease.write(state)
        logger.info("job begins", extra={"job": job_id, "resumed": before.started_s is not None})
        progress = JobProgress(lease, state, self._stopping, self._count_again)
        try:
            self._score(lease.request(), lease, progress)
        except CancelledError:
            finish_job(lease, progress.state, "cancelled")
        except StoppedError:
            # Not its fault, so not an attempt; who takes it next goes on from the parts that stand.
            lease.write(replace(progress.state, state="queued", n_attempts=n_before))
            logger.info("job interrupted", extra={"job": job_id, "files": progress.state.tally.n_inputs})
        except OutputError as error:
            self._put_off(lease, replace(progress.state, n_attempts=n_before), error)
        except InputError as error:
            # What was there when the job began may come back: a network, a disk that is mounted again.
            if progress.state.tally.n_inputs or n_parts or before.tally.n_inputs or before.n_put_off:
                self._put_off(lease, replace(progress.state, n_attempts=n_before), error)
            else:
                logger.warning("job failed: %s", error, extra={"job": job_id})
                finish_job(lease, progress.state, "failed", _explained(error))
        except OSError as error:
            logger.exception("job interrupted", extra={"job": job_id})
            self._put_off(lease, replace(progress.state, n_attempts=n_before), OutputError(str(error)))
        except ScoringError as error:
            logger.warning("job failed: %s", error, extra={"job": job_id})
            finish_job(lease, progress.state, "failed", _explained(error))
        except HandlerError as error:
            logger.warning("job failed: %s", error.detail, extra={"job": job_id})
            ours = isinstance(error, ForbiddenError | InvalidRequestError)
            detail = error.detail if ours else "the models of the job cannot be used"
            finish_job(lease, progress.state, "failed", (error.code, detail))
        except Exception:
            logger.exception("job failed", extra={"job": job_id})
            finish_job(lease, progress.state, "failed", _INTERNAL)
        else:
            finish_job(lease, progress.state, "succeeded")

    def _score(self, request: JobRequest, lease: Lease, progress: JobProgress) -> None:
        # Here, as a worker without jobs needs none of it: pyarrow alone is 40 MB.
        from scoring.local_engine import LocalEngine
        from scoring.output import Output
        from scoring.run import ScoringJob, run
        from scoring.scorer import MakeScorer
        from scoring.sources import open_source

        settings = self._settings
        place = find_place(request.input, settings.roots)
        source = open_source(place.location, recursive=request.recursive, include=request.include, confined=True)
        if place.root.is_local and source.root != place.location:
            raise InputError(f"{place.location} is not reached without links")
        config = _config(request, settings)
        output = Output(str(lease.output_folder))
        engine = LocalEngine(
            MakeScorer(source, config),
            config=config,
            output=output,
            n_workers=settings.job_workers,
            file_timeout_s=_FILE_TIMEOUT_S,  # and of this process's niceness, which is the settings'
        )
        result = run(ScoringJob(source, output, config), engine, progress)
        progress.state = replace(progress.state, tally=result.tally)

    def _put_off(self, lease: Lease, state: JobState, error: ScoringError) -> None:
        about = {"job": lease.folder.name}
        n_put_off = state.n_put_off + 1 if lease.n_parts() == state.n_parts else 1
        if n_put_off > MAX_PUT_OFFS:
            logger.error("job failed, and will not be put off again: %s", error, extra=about)
            finish_job(lease, state, "failed", _explained(error))
            return
        logger.error("job put off: %s", error, extra=about)
        code, detail = _explained(error)
        # In its state, so that no replica tries it at once. Wall clock, as replicas share no other.
        not_before_s = time.time() + RETRY_S
        queued = replace(state, state="queued", error_code=code, error_detail=detail)
        lease.write(replace(queued, n_put_off=n_put_off, not_before_s=not_before_s))


def _waits(standing: Standing) -> bool:
    """Whether a job was put off just now. A time further away than RETRY_S is of a clock that was wrong."""
    return standing.not_before_s is not None and 0 < standing.not_before_s - time.time() <= RETRY_S


def _count(standings: Mapping[str, Standing]) -> None:
    counts = Counter(standing.state for standing in standings.values())
    for state in STATES:
        metrics.JOBS.labels(state).set(counts[state])


def _explained(error: ScoringError) -> tuple[str, str]:
    return next((known for kind, known in _EXPLAINED.items() if isinstance(error, kind)), _INTERNAL)


def _config(request: JobRequest, settings: Settings) -> RunConfig:
    """What the results depend on: the request, and of the settings what holds for the other doors, too."""
    detection = settings.detection
    if request.min_face_size_px is not None:
        detection = replace(detection, min_face_size_px=request.min_face_size_px)
    return resolve_config(
        FAKE if request.model.partition(":")[0] == FAKE else request.model,
        runtime=settings.engine,
        precision=settings.precision,
        tta=settings.tta,
        limits=settings.limits,
        detection=detection,
        part_size=settings.job_part_size,
    )
