"""Works on the jobs of the folder, the oldest first and one at a time, as long as the process lives.

Interactive requests come first: this process and all it starts are niced, and no picture of a job goes through the
runners. While there is no job it holds no model.
"""

from __future__ import annotations

import logging
import os
import socket
import time
from collections.abc import Callable
from dataclasses import replace

from handlers.errors import HandlerError, InvalidRequestError
from handlers.pipeline import FAKE
from scoring.config import RunConfig, resolve_config
from scoring.errors import EngineError, InputError, OptionsError, OutputError, ScoringError, StoppedError
from service import metrics
from service.jobs.inputs import find_place
from service.jobs.progress import CancelledError, JobProgress
from service.jobs.records import FINISHED, STATES, JobRequest, JobState, State
from service.jobs.store import JobStore, Lease
from service.problems import ForbiddenError
from service.settings import Settings

logger = logging.getLogger(__name__)

MAX_ATTEMPTS = 3
"""So many processes may die in work on a job without a part done between; then the job has failed."""

POLL_S = 1.0
RETRY_S = 30.0
"""How long a job waits whose results cannot be written, or whose input went away while it was scored."""

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
        self._not_before_s: dict[str, float] = {}

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
        """Work on the oldest job that nobody works on. False when there is none. Raises OSError."""
        self._count()
        for job_id in self._store.ids():
            if self._store.state_name(job_id) in FINISHED or self._not_before_s.get(job_id, 0.0) > time.monotonic():
                continue
            with self._store.lease(job_id, self._owner) as lease:
                if lease is None or lease.state().finished:
                    continue
                try:
                    self._take(job_id, lease)
                except OSError as error:
                    # Not even its state can be written: a full disk, most likely.
                    logger.error("the job's folder cannot be used: %s", error, extra={"job": job_id})
                    self._not_before_s[job_id] = time.monotonic() + RETRY_S
                self._count()
                return True
        return False

    def _count(self) -> None:
        counts = self._store.counts()
        for state in STATES:
            metrics.JOBS.labels(state).set(counts.get(state, 0))

    def _take(self, job_id: str, lease: Lease) -> None:
        before, n_parts = lease.state(), lease.n_parts()
        if lease.cancelled:
            self._end(lease, before, "cancelled")
            return
        n_before = before.n_attempts if before.n_parts == n_parts else 0
        if n_before >= MAX_ATTEMPTS:
            logger.error("the job does not get on", extra={"job": job_id, "attempts": n_before})
            known = (before.error_code, before.error_detail or "") if before.error_code else _INTERNAL
            self._end(lease, before, "failed", known)
            return
        state = replace(
            before,
            state="running",
            started_s=before.started_s or time.time(),
            n_attempts=n_before + 1,
            n_parts=n_parts,
            error_code=None,
            error_detail=None,
        )
        lease.write(state)
        logger.info("job begins", extra={"job": job_id, "resumed": before.started_s is not None})
        progress = JobProgress(lease, state, self._stopping)
        try:
            job = self._store.find(job_id)
            if job is None:
                raise ValueError("the job's request cannot be read")
            self._score(job.request, lease, progress)
        except CancelledError:
            self._end(lease, progress.state, "cancelled")
        except StoppedError:
            # Not its fault, so not an attempt; who takes it next goes on from the parts that stand.
            lease.write(replace(progress.state, state="queued", n_attempts=n_before))
            logger.info("job interrupted", extra={"job": job_id, "files": progress.state.tally.n_inputs})
        except OutputError as error:
            logger.error("job put off: %s", error, extra={"job": job_id})
            self._put_off(lease, replace(progress.state, n_attempts=n_before), error)
        except InputError as error:
            # What was there when the job began may come back: a network, a disk that is mounted again.
            if progress.state.tally.n_inputs or n_parts:
                logger.error("job put off: %s", error, extra={"job": job_id})
                self._put_off(lease, progress.state, error)
            else:
                logger.warning("job failed: %s", error, extra={"job": job_id})
                self._end(lease, progress.state, "failed", _explained(error))
        except OSError as error:
            logger.exception("job put off", extra={"job": job_id})
            self._put_off(lease, progress.state, OutputError(str(error)))
        except ScoringError as error:
            logger.warning("job failed: %s", error, extra={"job": job_id})
            self._end(lease, progress.state, "failed", _explained(error))
        except HandlerError as error:
            logger.warning("job failed: %s", error.detail, extra={"job": job_id})
            ours = isinstance(error, ForbiddenError | InvalidRequestError)
            detail = error.detail if ours else "the models of the job cannot be used"
            self._end(lease, progress.state, "failed", (error.code, detail))
        except Exception:
            logger.exception("job failed", extra={"job": job_id})
            self._end(lease, progress.state, "failed", _INTERNAL)
        else:
            self._end(lease, progress.state, "succeeded")

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
        code, detail = _explained(error)
        self._not_before_s[lease.folder.name] = time.monotonic() + RETRY_S
        lease.write(replace(state, state="queued", error_code=code, error_detail=detail))

    def _end(self, lease: Lease, state: JobState, ended: State, error: tuple[str, str] | None = None) -> None:
        now_s = time.time()
        code, detail = error or (None, None)
        started_s = state.started_s or now_s
        state = replace(state, state=ended, finished_s=now_s, error_code=code, error_detail=detail)
        lease.write(state)
        metrics.JOB_SECONDS.labels(ended).observe(max(0.0, now_s - started_s))
        about = {"job": lease.folder.name, "state": ended, "files": state.tally.n_inputs, "error": code}
        logger.info("job ends", extra=about)


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
