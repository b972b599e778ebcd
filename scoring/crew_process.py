"""One worker of a crew, seen from the crew: its process, its connection, its notes and the end of what it printed."""

from __future__ import annotations

import logging
import mmap
import os
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from typing import IO

from handlers.cores import ONE_THREAD_EACH
from scoring.crew_channel import CrewEnd
from scoring.crew_worker import N_NOTES

logger = logging.getLogger(__name__)

_PRINTED_BYTES = 8192
_KILL_PATIENCE_S = 2.0


class WorkerProcess:
    """A worker that was just started. Start it from a thread that outlives it: Linux ends it with that thread.

    A fresh interpreter, never a fork: threads of the caller and native libraries do not survive one. The worker gets
    the caller's import path, and one thread for each library that computes.

    make_scorer: pickled. niceness: added to the caller's. Raises OSError when no process can be started.
    """

    def __init__(self, make_scorer: bytes, niceness: int) -> None:
        ours, theirs = socket.socketpair()
        with theirs, _shared_file() as file:
            os.ftruncate(file.fileno(), 8 * N_NOTES)
            self._notes = memoryview(mmap.mmap(file.fileno(), 8 * N_NOTES)).cast("q")
            numbers = (theirs.fileno(), file.fileno(), os.getpid(), niceness)
            try:
                self._process = subprocess.Popen(
                    # -P: the working folder is none of our import path
                    [sys.executable, "-P", "-m", "scoring.crew_worker", *map(str, numbers)],
                    env=_environment(os.environ, sys.path),
                    pass_fds=numbers[:2],
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.PIPE,
                    stderr=subprocess.STDOUT,
                    bufsize=0,
                )
            except OSError:
                ours.close()
                raise
        assert self._process.stdout is not None
        self.printed = self._process.stdout
        os.set_blocking(self.printed.fileno(), False)
        self._last_printed = b""
        self.channel = CrewEnd(ours)
        self.channel.send((make_scorer, logging.getLogger().getEffectiveLevel()))
        self._seen = [(0, 0.0)] * N_NOTES
        self._looked_s = time.monotonic()

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def noted(self) -> set[int]:
        """The numbers of the files that it reads or judges."""
        return set(self._notes) - {0}

    def overdue(self, limit_s: float) -> set[int]:
        """The numbers of the files that it has been at for longer than `limit_s`. To be called now and then.

        A second at most is counted between two calls, so that the time in which everything was stopped (Ctrl-Z) is no
        file's fault.
        """
        now_s = time.monotonic()
        passed_s = min(now_s - self._looked_s, 1.0)
        self._looked_s = now_s
        for index, number in enumerate(self._notes):
            last_number, spent_s = self._seen[index]
            spent_s = spent_s + passed_s if number and number == last_number else 0.0
            self._seen[index] = number, spent_s
        return {number for number, spent_s in self._seen if spent_s > limit_s}

    def read_printed(self) -> bool:
        """Keep the end of what it printed, which nobody else would read. False when there is no more for now."""
        try:
            data = self.printed.read(1 << 16)
        except OSError:
            return False
        self._last_printed = (self._last_printed + (data or b""))[-_PRINTED_BYTES:]
        return bool(data)

    def last_printed(self) -> str:
        """The end of what it printed, which says most about a native crash."""
        return self._last_printed.decode(errors="replace").strip()

    def kill(self) -> None:
        """Send SIGKILL, and do not wait."""
        self._process.kill()

    def end(self) -> str:
        """Kill it, wait for its end and return how it ended. What it had sent can still be received."""
        self._process.kill()
        try:
            code = self._process.wait(_KILL_PATIENCE_S)
        except subprocess.TimeoutExpired:  # stuck in the kernel; it ends as soon as that lets it
            logger.warning("worker %d does not end", self.pid)
            return "does not end"
        while self.read_printed():
            pass
        return f"signal {signal.Signals(-code).name}" if code < 0 else f"exit code {code}"

    def close(self) -> None:
        """Give its descriptors back."""
        self.channel.close()
        self.printed.close()
        self._notes.release()


def _shared_file() -> IO[bytes]:
    # In memory where that can be: a full disk must not keep workers from starting.
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("mien-notes"), "w+b", buffering=0)
    return tempfile.TemporaryFile(buffering=0)


def _environment(ours: Mapping[str, str], import_path: Sequence[str]) -> dict[str, str]:
    folders = os.pathsep.join(folder or os.getcwd() for folder in import_path)  # noqa: PTH109
    return {**ours, "PYTHONPATH": folders, **ONE_THREAD_EACH}
