"""The end of a job, whoever ends it: its state, a line in the log, and a count."""

from __future__ import annotations

import logging
import time
from dataclasses import replace

from service import metrics
from service.jobs.records import JobState, State
from service.jobs.store import Lease

logger = logging.getLogger(__name__)


def finish_job(lease: Lease, state: JobState, ended: State, error: tuple[str, str] | None = None) -> None:
    """Write that a job has ended. error: code and detail of one that failed. Raises OSError; then it has not."""
    now_s = time.time()
    code, detail = error or (None, None)
    started_s = state.started_s or now_s
    state = replace(state, state=ended, finished_s=now_s, not_before_s=None, error_code=code, error_detail=detail)
    lease.write(state)
    metrics.JOB_SECONDS.labels(ended).observe(max(0.0, now_s - started_s))
    about = {"job": lease.folder.name, "state": ended, "files": state.tally.n_inputs, "error": code}
    logger.info("job ends", extra=about)
