"""The process that works on jobs: its priority, and what it refuses to start with."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from tests.service.jobs.conftest import WAIT_S, until
from tests.service.server_process import REPOSITORY


def _autogroup(pid: int) -> str:
    return Path(f"/proc/{pid}/autogroup").read_text()


def test_it_is_nice_and_so_is_the_group_that_the_kernel_puts_it_in(
    tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    worker = start_worker(MIEN_JOB_NICENESS="7", new_session=True)
    until(lambda: psutil.Process(worker.pid).nice() == 7, "it is not nice")
    until(lambda: (tmp_path / "jobs").is_dir(), "it does not start")

    if Path("/proc/self/autogroup").exists():
        assert _autogroup(worker.pid).split()[1:] == ["nice", "7"]


def test_a_group_that_it_shares_with_others_is_left_alone(
    tmp_path: Path, start_worker: Callable[..., subprocess.Popen[bytes]]
) -> None:
    if not Path("/proc/self/autogroup").exists():
        pytest.skip("this kernel has no autogroups")
    before = _autogroup(os.getpid())

    start_worker(MIEN_JOB_NICENESS="7")
    until(lambda: (tmp_path / "jobs").is_dir(), "it does not start")

    assert _autogroup(os.getpid()) == before


@pytest.mark.parametrize(
    ("variables", "says"),
    [
        ({}, "SettingsError: MIEN_JOBS_DIR: must name the folder of jobs"),
        ({"MIEN_JOBS_DIR": "/dev/null/jobs"}, "SettingsError: MIEN_JOBS_DIR: /dev/null/jobs cannot be used: "),
        ({"MIEN_JOB_NICENESS": "20"}, "SettingsError: MIEN_JOB_NICENESS: "),
    ],
)
def test_it_does_not_start_with_wrong_settings(variables: dict[str, str], says: str) -> None:
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("MIEN_")}

    done = subprocess.run(
        [sys.executable, "-m", "service.jobs"],
        cwd=REPOSITORY,
        env={**inherited, "MIEN_JOB_NICENESS": "0", **variables},
        capture_output=True,
        text=True,
        timeout=WAIT_S,
        check=False,
    )

    assert done.returncode == 1
    assert done.stderr.splitlines()[-1].startswith(says)
