"""The folder of jobs, which the API processes and workers of all replicas share: one folder a job, no other database.

    ID/job.json      the request, written once before the folder has its name
    ID/state.json    how far it is; replaced by who holds the lease
    ID/cancel        there once somebody asked to cancel
    ID/lease         locked (flock) by the process that works on it; the lock ends with the process, however that ends
    ID/output/       see `scoring.output`

A folder on NFS or another shared file system needs working locks: Linux's NFS client has them by default.
"""

from __future__ import annotations

import fcntl
import logging
import os
import secrets
import shutil
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from service.jobs.records import Job, JobRequest, JobState, State, is_job_id

logger = logging.getLogger(__name__)

_REQUEST, _STATE, _CANCEL, _LEASE, _OUTPUT = "job.json", "state.json", "cancel", "lease", "output"
# No id begins so: a folder that is being made or removed.
_NO_JOB = "."
# Making one takes milliseconds; what is older than a day has no maker.
_MADE_WITHIN_S = 86_400


class JobStore:
    """The jobs of a folder. Every method reads or writes files, so it may block for as long as they take."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._finished: dict[str, State] = {}

    def make(self) -> None:
        """Make the folder, for its owner alone, and remove what a crash left half made or half removed.

        Raises OSError.
        """
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        for left in self._folder.glob(f"{_NO_JOB}new-*"):
            with suppress(OSError):
                if left.stat().st_mtime < time.time() - _MADE_WITHIN_S:
                    shutil.rmtree(left, ignore_errors=True)
        for left in self._folder.glob(f"{_NO_JOB}gone-*"):
            shutil.rmtree(left, ignore_errors=True)

    def add(self, request: JobRequest) -> None:
        """Keep a new job. Raises OSError; then it does not exist."""
        self._folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        new = self._folder / f"{_NO_JOB}new-{request.id}"
        new.mkdir(mode=0o700)
        try:
            _write(new / _REQUEST, request.to_json(), durable=True)
            new.rename(self._folder / request.id)
        except OSError:
            shutil.rmtree(new, ignore_errors=True)
            raise
        _sync(self._folder)

    def ids(self) -> list[str]:
        """Of all jobs, oldest first."""
        try:
            return sorted(name for name in os.listdir(self._folder) if is_job_id(name))  # noqa: PTH208
        except FileNotFoundError:
            return []

    def find(self, job_id: str) -> Job | None:
        """A job, None when there is none of that id, whatever the text is."""
        if not is_job_id(job_id):
            return None
        folder = self._folder / job_id
        try:
            request = JobRequest.from_json((folder / _REQUEST).read_bytes())
        except FileNotFoundError:
            return None
        except ValueError as error:
            logger.error("a job cannot be read: %s", error, extra={"job": job_id})
            return None
        state = self._state(job_id)
        return Job(request, state, not state.finished and (folder / _CANCEL).exists())

    def counts(self) -> dict[State, int]:
        """How many jobs there are, by state."""
        counts: dict[State, int] = {}
        job_ids = self.ids()
        for job_id in job_ids:
            state = self.state_name(job_id)
            counts[state] = counts.get(state, 0) + 1
        for gone in self._finished.keys() - set(job_ids):
            self._finished.pop(gone, None)
        return counts

    def state_name(self, job_id: str) -> State:
        """The state of a job that exists; a finished one's file is read once only."""
        known = self._finished.get(job_id)
        if known is not None:
            return known
        state = self._state(job_id)
        if state.finished:
            self._finished[job_id] = state.state
        return state.state

    def ask_to_cancel(self, job_id: str) -> None:
        """Leave the mark that who works on the job looks for."""
        with suppress(FileNotFoundError):
            (self._folder / job_id / _CANCEL).touch()

    @contextmanager
    def lease(self, job_id: str, owner: str) -> Iterator[Lease | None]:
        """Hold the lease of a job until the block ends; None when somebody else does, or the job is gone.

        owner: who this is, for people who look into the folder.
        """
        folder = self._folder / job_id
        try:
            file = (folder / _LEASE).open("a+")
        except FileNotFoundError:
            yield None
            return
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                # It may have been removed between the opening and the lock.
                there = (folder / _LEASE).stat().st_ino == os.fstat(file.fileno()).st_ino
            except (BlockingIOError, FileNotFoundError):
                there = False
            if not there:
                yield None
                return
            file.truncate(0)
            file.write(f"{owner}\n")
            file.flush()
            yield Lease(folder)

    def remove(self, lease: Lease) -> None:
        """Remove a job with all it made. Raises OSError when it cannot be removed."""
        gone = self._folder / f"{_NO_JOB}gone-{secrets.token_hex(8)}"
        lease.folder.rename(gone)
        self._finished.pop(lease.folder.name, None)
        shutil.rmtree(gone, ignore_errors=True)

    def output_folder(self, job_id: str) -> Path:
        """Where a job's results are."""
        return self._folder / job_id / _OUTPUT

    def _state(self, job_id: str) -> JobState:
        return _read_state(self._folder / job_id)


class Lease:
    """The right to work on a job and to write its state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def output_folder(self) -> Path:
        """Where the results go."""
        return self.folder / _OUTPUT

    def state(self) -> JobState:
        """The job's state as it stands."""
        return _read_state(self.folder)

    def write(self, state: JobState, *, durable: bool = True) -> None:
        """Replace the state. durable: it shall outlast a loss of power. Raises OSError."""
        _write(self.folder / _STATE, state.to_json(), durable=durable)

    @property
    def cancelled(self) -> bool:
        """Somebody asked to end the job."""
        return (self.folder / _CANCEL).exists()

    def n_parts(self) -> int:
        """Parts that stand in the output."""
        try:
            return sum(not name.startswith(".") for name in os.listdir(self.output_folder / "parts"))  # noqa: PTH208
        except FileNotFoundError:
            return 0


def _read_state(folder: Path) -> JobState:
    try:
        return JobState.from_json((folder / _STATE).read_bytes())
    except FileNotFoundError:
        return JobState()
    except ValueError as error:
        logger.error("a job's state cannot be read, so it is queued again: %s", error, extra={"job": folder.name})
        return JobState()


def _write(path: Path, data: bytes, *, durable: bool) -> None:
    new = path.with_name(f".{path.name}")  # one name is enough: there is one writer at a time
    try:
        with new.open("wb") as file:
            file.write(data)
            if durable:
                file.flush()
                os.fsync(file.fileno())
        new.replace(path)
    except OSError:
        new.unlink(missing_ok=True)
        raise
    if durable:
        _sync(path.parent)


def _sync(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
