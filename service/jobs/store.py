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

from service.jobs.records import Job, JobRequest, JobState, Standing, is_job_id

logger = logging.getLogger(__name__)

_REQUEST, _STATE, _CANCEL, _LEASE, _OUTPUT = "job.json", "state.json", "cancel", "lease", "output"
# No id begins so: a folder that is being made or removed.
_NO_JOB = "."
# Making one takes milliseconds; what is older than a day has no maker.
_MADE_WITHIN_S = 86_400


class JobStore:
    """The jobs of a folder. Every method reads or writes files, so it may block for as long as they take.

    Threads may share one. A job whose files cannot be read is logged once and passed over; the others go on.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        # What never changes again is read once: a caller's list must not cost a look at everybody's jobs.
        self._finished: dict[str, Standing] = {}
        self._callers: dict[str, str | None] = {}
        self._unreadable: set[str] = set()

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
        try:
            _sync(self._folder)
        except OSError as error:
            # It is there and will be worked on; all that is in doubt is whether it outlasts a loss of power now.
            logger.error("a new job may not be on the disk yet: %s", error, extra={"job": request.id})

    def ids(self) -> list[str]:
        """Of all jobs, oldest first. Raises OSError."""
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
            # In this order: of a job that is removed meanwhile the request is missing, too.
            state = _read_state(folder)
            request = _read_request(folder)
            return Job(request, state, not state.finished and (folder / _CANCEL).exists())
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._pass_over(job_id, error)
            return None

    def caller_of(self, job_id: str) -> str | None:
        """Who made a job, None when nobody is known."""
        try:
            return self._callers[job_id]
        except KeyError:
            pass
        try:
            caller = _read_request(self._folder / job_id).caller
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as error:
            self._pass_over(job_id, error)
            return None
        self._callers[job_id] = caller
        return caller

    def standings(self) -> dict[str, Standing]:
        """How every job stands, the oldest first. Finished jobs cost nothing from the second time on."""
        found: dict[str, Standing] = {}
        job_ids = self.ids()
        for job_id in job_ids:
            standing = self._finished.get(job_id)
            if standing is None:
                try:
                    state = _read_state(self._folder / job_id)
                except OSError as error:
                    self._pass_over(job_id, error)
                    continue
                standing = Standing(state.state, state.not_before_s)
                if standing.finished:
                    self._finished[job_id] = standing
            found[job_id] = standing
        there = set(job_ids)
        for gone in {*list(self._finished), *list(self._callers), *list(self._unreadable)} - there:
            self._forget(gone)
        return found

    def ask_to_cancel(self, job_id: str) -> None:
        """Leave the mark that who works on the job looks for. It has no bytes, so a full disk takes it, too.

        Raises OSError.
        """
        with suppress(FileNotFoundError):
            (self._folder / job_id / _CANCEL).touch()

    @contextmanager
    def lease(self, job_id: str, owner: str) -> Iterator[Lease | None]:
        """Hold the lease of a job until the block ends; None when somebody else does, or the job is gone.

        owner: who this is, for people who look into the folder. Raises OSError.
        """
        folder = self._folder / job_id
        try:
            file = (folder / _LEASE).open("ab+", buffering=0)
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
            # On a full disk the lock is enough.
            with suppress(OSError):
                file.truncate(0)
                file.write(f"{owner}\n".encode())
            yield Lease(folder)

    def remove(self, lease: Lease) -> None:
        """Remove a job with all it made. Raises OSError when it cannot be removed."""
        gone = self._folder / f"{_NO_JOB}gone-{secrets.token_hex(8)}"
        lease.folder.rename(gone)
        self._forget(lease.folder.name)
        shutil.rmtree(gone, ignore_errors=True)

    def output_folder(self, job_id: str) -> Path:
        """Where a job's results are."""
        return self._folder / job_id / _OUTPUT

    def _pass_over(self, job_id: str, error: Exception) -> None:
        if job_id not in self._unreadable:
            self._unreadable.add(job_id)
            logger.error("a job cannot be read: %s", error, extra={"job": job_id})

    def _forget(self, job_id: str) -> None:
        self._finished.pop(job_id, None)
        self._callers.pop(job_id, None)
        self._unreadable.discard(job_id)


class Lease:
    """The right to work on a job and to write its state."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    @property
    def output_folder(self) -> Path:
        """Where the results go."""
        return self.folder / _OUTPUT

    def request(self) -> JobRequest:
        """What the caller asked for. Raises OSError, and ValueError when it is damaged."""
        return _read_request(self.folder)

    def state(self) -> JobState:
        """The job's state as it stands. Raises OSError."""
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


def _read_request(folder: Path) -> JobRequest:
    return JobRequest.from_json((folder / _REQUEST).read_bytes())


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
