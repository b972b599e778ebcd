import os
import pickle
import threading
import time
from collections.abc import Callable

import pytest

from handlers.errors import HandlerError, InternalError, TooLargeError
from scoring.crew_process import WorkerProcess
from scoring.crew_worker import N_NOTES, ReadAhead
from scoring.errors import InputError
from scoring.parts import Entry
from tests.scoring.scorers import MakeOrdered
from tests.scoring.test_crew import until

MIB = 2**20


def entry(number: int, size_bytes: int | None = 10) -> Entry:
    return Entry(f"file-{number}", size_bytes, "")


def read_ahead(read: Callable[[Entry], bytes | HandlerError]) -> tuple[ReadAhead, memoryview]:
    notes = memoryview(bytearray(8 * N_NOTES)).cast("q")
    return ReadAhead(read, notes), notes


@pytest.mark.parametrize(("size_bytes", "n_ahead"), [(10, 4), (20 * MIB, 3), (40 * MIB, 1), (100 * MIB, 1), (None, 4)])
def test_what_is_read_ahead_is_bounded_in_files_and_in_bytes(size_bytes: int | None, n_ahead: int) -> None:
    begun: list[str] = []
    ahead, _ = read_ahead(lambda entry: begun.append(entry.path) or b"x" * (entry.size_bytes or 1))  # type: ignore[func-returns-value]
    ahead.order([(number, entry(number, size_bytes)) for number in range(1, 8)])
    until(lambda: len(begun) >= n_ahead)
    time.sleep(0.1)
    assert len(begun) == n_ahead
    taken = [ahead.take(None) for _ in range(7)]
    assert sorted(number for number, _ in filter(None, taken)) == list(range(1, 8))
    assert ahead.take(0.0) is None


def test_every_file_is_noted_while_it_is_read() -> None:
    go_on = threading.Event()

    def read(entry: Entry) -> bytes:
        go_on.wait(60)
        return b""

    ahead, notes = read_ahead(read)
    ahead.order([(number, entry(number)) for number in (11, 12)])
    until(lambda: set(notes) == {0, 11, 12})
    assert ahead.take(0.01) is None
    go_on.set()
    assert {ahead.take(None), ahead.take(None)} == {(11, b""), (12, b"")}
    assert set(notes) == {0}


@pytest.mark.parametrize(
    ("raised", "becomes"),
    [(TooLargeError("large"), TooLargeError), (InputError("gone"), InputError), (OSError("bug"), InternalError)],
)
def test_what_reading_raises_is_what_it_gave(raised: Exception, becomes: type[Exception]) -> None:
    def read(entry: Entry) -> bytes:
        raise raised

    ahead, _ = read_ahead(read)
    ahead.order([(5, entry(5))])
    taken = ahead.take(None)
    assert taken is not None
    assert isinstance(taken[1], becomes)


def test_a_worker_ends_by_itself_when_its_connection_does() -> None:
    worker = WorkerProcess(pickle.dumps(MakeOrdered()), 0)
    messages: list[object] = []
    until(lambda: messages.extend(worker.channel.receive()) or messages)  # type: ignore[func-returns-value]
    assert messages == [("ready", None)]
    worker.channel.close()
    pid, status = os.waitpid(worker.pid, 0)
    assert (pid, os.waitstatus_to_exitcode(status)) == (worker.pid, 0)
