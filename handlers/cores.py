"""How many processor cores this process may use, and how to keep libraries to one."""

from __future__ import annotations

import math
import os
from pathlib import Path

ONE_THREAD_EACH = dict.fromkeys(("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS"), "1")
"""Environment of a process among several that share the cores: libraries that compute take one thread each."""


def usable_cores() -> int:
    """Processor cores that this process may use: its affinity, and the quota of its control group (version 2)."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):
        return cores
