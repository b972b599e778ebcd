import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import pytest

from scoring.errors import StoppedError
from scoring.stopping import stopped_by_signals

REPOSITORY = Path(__file__).parents[2]
SIGNALS = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP]


def run_alone(scenario: Callable[..., None], *arguments: object) -> None:
    """Call it in a new process: a signal in one of pytest's own may end it, and all that it had still to test.

    Signals are not ignored there, as they would be where the tests run in the background or under nohup.
    """
    with ProcessPoolExecutor(1, multiprocessing.get_context("spawn"), initializer=heed_signals) as executor:
        executor.submit(scenario, *arguments).result(timeout=60)


def heed_signals() -> None:
    for number in SIGNALS:
        signal.signal(number, signal.default_int_handler)


@pytest.mark.parametrize("number", SIGNALS)
def test_a_signal_stops_what_is_within_and_nothing_after(number: signal.Signals) -> None:
    run_alone(stop_once, number)


def stop_once(number: signal.Signals) -> None:
    before = [signal.getsignal(each) for each in SIGNALS]
    with pytest.raises(StoppedError, match="goes on from here"), stopped_by_signals():
        signal.raise_signal(number)

    assert [signal.getsignal(each) for each in SIGNALS] == before


def test_a_signal_that_was_lost_is_found_again() -> None:
    run_alone(lose_a_signal)


def lose_a_signal() -> None:
    with stopped_by_signals() as check:
        check()
        with pytest.raises(StoppedError):
            signal.raise_signal(signal.SIGTERM)
        with pytest.raises(StoppedError):
            check()


def test_a_signal_that_a_library_has_taken_is_taken_back() -> None:
    run_alone(take_a_signal_back)


def take_a_signal_back() -> None:
    with stopped_by_signals() as check:
        signal.signal(signal.SIGTERM, lambda *_: sys.exit(15))
        check()
        with pytest.raises(StoppedError):
            signal.raise_signal(signal.SIGTERM)


def test_a_signal_that_was_ignored_stays_ignored() -> None:
    run_alone(ignore_a_signal)


def ignore_a_signal() -> None:
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with stopped_by_signals() as check:
        check()
        signal.raise_signal(signal.SIGHUP)
        check()


def test_a_second_signal_ends_the_process_at_once() -> None:
    code = (
        "import time\n"
        "from scoring.stopping import stopped_by_signals\n"
        "with stopped_by_signals():\n"
        "    try:\n"
        "        print('up', flush=True)\n"
        "        time.sleep(60)\n"
        "    finally:\n"
        "        print('cleaning', flush=True)\n"
        "        time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", code], cwd=REPOSITORY, stdout=subprocess.PIPE) as process:
        try:
            assert process.stdout is not None
            assert process.stdout.readline() == b"up\n"
            os.kill(process.pid, signal.SIGTERM)
            assert process.stdout.readline() == b"cleaning\n"
            time.sleep(0.05)
            os.kill(process.pid, signal.SIGTERM)
            assert process.wait(30) == 1
        finally:
            process.kill()
