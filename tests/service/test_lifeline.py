from __future__ import annotations

import os
import signal
import subprocess
import sys

import pytest

from service.lifeline import VARIABLE
from tests.service.server_process import REPOSITORY

_WATCHER = """
import signal, threading, time
from service.lifeline import watch_parent
if {stubborn}:
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
watch_parent()
print(threading.active_count(), flush=True)
time.sleep({seconds})
"""


def _watcher(descriptor: int, *, stubborn: bool) -> subprocess.Popen[str]:
    process = subprocess.Popen(
        [sys.executable, "-c", _WATCHER.format(stubborn=stubborn, seconds=60)],
        cwd=REPOSITORY,
        env={**os.environ, VARIABLE: str(descriptor)},
        pass_fds=(descriptor,),
        stdout=subprocess.PIPE,
        text=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "2\n"
    return process


def test_a_worker_gets_sigterm_when_the_other_end_of_the_pipe_is_closed() -> None:
    alive, holds_alive = os.pipe()
    with _watcher(alive, stubborn=False) as process:
        os.close(alive)
        with pytest.raises(subprocess.TimeoutExpired):
            process.wait(0.3)

        os.close(holds_alive)

        assert process.wait(30) == -signal.SIGTERM


def test_a_worker_that_ignores_sigterm_is_gone_all_the_same() -> None:
    alive, holds_alive = os.pipe()
    with _watcher(alive, stubborn=True) as process:
        os.close(alive)

        os.close(holds_alive)

        assert process.wait(30) == 1


def test_without_the_variable_nothing_is_watched() -> None:
    environment = {name: value for name, value in os.environ.items() if name != VARIABLE}

    done = subprocess.run(
        [sys.executable, "-c", _WATCHER.format(stubborn=False, seconds=0)],
        cwd=REPOSITORY,
        env=environment,
        capture_output=True,
        text=True,
        timeout=30,
        check=True,
    )

    assert done.stdout == "1\n"
