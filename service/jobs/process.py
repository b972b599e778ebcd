"""The process that works on jobs until SIGTERM. The supervisor starts it where MIEN_SCORING_ROOTS is set."""

from __future__ import annotations

import logging
import os
import signal
import sys
import time
from contextlib import suppress
from pathlib import Path
from types import FrameType

from bentoml import server_context

from service.jobs.store import JobStore
from service.jobs.worker import Worker
from service.lifeline import watch_parent
from service.logs import configure_logs
from service.settings import SettingsError, get_settings

logger = logging.getLogger(__name__)

_LOOK_S = 0.2
_AUTOGROUP = Path("/proc/self/autogroup")


class _Stop:
    """Set by SIGTERM and SIGINT."""

    def __init__(self) -> None:
        self.told = False
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._tell)

    def _tell(self, number: int, frame: FrameType | None) -> None:
        self.told = True

    def wait(self, seconds: float) -> None:
        """Sleep, at most so long."""
        end_s = time.monotonic() + seconds
        while not self.told and time.monotonic() < end_s:
            time.sleep(_LOOK_S)


def lower_priority(niceness: int) -> None:
    """Make this process, and those that it will start, as nice as told towards all others.

    Where Linux groups processes by session (autogroup), niceness counts only within a group, and this process leads one
    of its own, as the supervisor started it in a new session: the group must be nice, too.
    """
    os.nice(niceness)
    if os.getsid(0) == os.getpid():
        with suppress(OSError):
            _AUTOGROUP.write_text(str(niceness))


def main() -> None:
    """Work until told to stop; exit with 1 and a line on stderr when a setting or the folder of jobs is wrong."""
    try:
        settings = get_settings()
    except SettingsError as error:
        sys.exit(f"SettingsError: {error}")
    if settings.jobs_dir is None:
        sys.exit("SettingsError: MIEN_JOBS_DIR: must name the folder of jobs")
    configure_logs(settings.log_level)
    server_context.service_name, server_context.worker_index = "mien_jobs", 1  # as log lines name processes
    stop = _Stop()
    watch_parent()
    lower_priority(settings.job_niceness)
    store = JobStore(settings.jobs_dir)
    try:
        store.make()
    except OSError as error:
        sys.exit(f"SettingsError: MIEN_JOBS_DIR: {settings.jobs_dir} cannot be used: {error}")
    logger.info("jobs are worked on", extra={"folder": str(settings.jobs_dir), "pid": os.getpid()})
    Worker(settings, store, lambda: stop.told).work(stop.wait)
