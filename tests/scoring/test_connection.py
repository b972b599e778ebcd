from __future__ import annotations

import pickle
import threading
from typing import Any, ClassVar

import botocore.exceptions
import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from handlers.errors import TooLargeError
from scoring import connection
from scoring.connection import Connection, UnreachableError
from scoring.errors import InputError, StoppedError


class _Failing:
    """Work that fails with these, one a call, and then succeeds."""

    def __init__(self, *errors: Exception) -> None:
        self.errors = list(errors)
        self.n_calls = 0

    def __call__(self, filesystem: Any) -> str:
        self.n_calls += 1
        if self.errors:
            raise self.errors.pop(0)
        return "done"


@pytest.fixture
def memory() -> Connection:
    return Connection("memory://x", "the memory", (0.0, 0.0, 0.0))


def test_passing_troubles_are_waited_out(memory: Connection) -> None:
    work = _Failing(TimeoutError(), ConnectionResetError(), TimeoutError())
    assert memory.call(work) == "done"
    assert work.n_calls == 4


def test_patience_ends(memory: Connection) -> None:
    work = _Failing(*[ConnectionResetError("https://h/?sig=SECRET was cut")] * 9)
    with pytest.raises(UnreachableError, match="the memory cannot be reached: https://h/ was cut") as caught:
        memory.call(work)
    assert pickle.loads(pickle.dumps(caught.value)).reason == "https://h/ was cut"
    assert work.n_calls == 4


def test_refused_credentials_are_not_tried_again(memory: Connection) -> None:
    work = _Failing(botocore.exceptions.NoCredentialsError())
    with pytest.raises(InputError, match="the memory: the credentials are missing or refused"):
        memory.call(work)
    assert work.n_calls == 1


@pytest.mark.parametrize(
    "error", [FileNotFoundError("x"), PermissionError("x"), TooLargeError("x"), InputError("x"), StoppedError("x")]
)
def test_other_errors_come_through_at_once(memory: Connection, error: Exception) -> None:
    work = _Failing(error)
    with pytest.raises(type(error), match="x"):
        memory.call(work)
    assert work.n_calls == 1


def test_a_pickled_connection_is_made_anew_and_as_patient() -> None:
    first = Connection("memory://x", "the memory", (1.5,))
    assert first.filesystem is first.filesystem
    second = pickle.loads(pickle.dumps(first))
    assert (second.url, second.shown, second.waits_s) == ("memory://x", "the memory", (1.5,))
    assert second.filesystem is not first.filesystem
    assert first.named("other").filesystem is first.filesystem


def test_the_usual_patience_is_four_tries_in_about_ten_seconds() -> None:
    assert Connection("memory://x", "x").waits_s == connection.RETRY_WAITS_S
    assert len(connection.RETRY_WAITS_S) == 3
    assert 5 <= sum(connection.RETRY_WAITS_S) <= 15


def test_threads_share_one_file_system(memory: Connection) -> None:
    seen: list[Any] = []
    threads = [threading.Thread(target=lambda: seen.append(memory.filesystem)) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({id(filesystem) for filesystem in seen}) == 1


def test_what_fsspec_does_not_know() -> None:
    for ask in (Connection.check_known, lambda unknown: unknown.filesystem):
        with pytest.raises(InputError, match="nix:// is no protocol that fsspec knows"):
            ask(Connection("nix://x", "x"))
    Connection("memory://x", "x").check_known()


class _ConnectsAtOnce(MemoryFileSystem):  # type: ignore[misc]
    """As those of ftp and sftp do."""

    protocol = "atonce"
    errors: ClassVar[list[Exception]] = []

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        if self.errors:
            raise self.errors.pop(0)


fsspec.register_implementation("atonce", _ConnectsAtOnce, clobber=True)


def test_a_file_system_that_connects_when_it_is_made_is_waited_for() -> None:
    _ConnectsAtOnce.errors[:] = [ConnectionRefusedError(), TimeoutError()]
    assert Connection("atonce://x", "x", (0.0, 0.0)).call(lambda filesystem: "done") == "done"
    _ConnectsAtOnce.errors[:] = [ConnectionRefusedError("shut")] * 3
    with pytest.raises(UnreachableError, match="x cannot be reached: shut"):
        Connection("atonce://x", "x", (0.0, 0.0)).path_of("atonce://x/y")
    for error, expected in ((StoppedError("stopped"), StoppedError), (ValueError("odd"), InputError)):
        _ConnectsAtOnce.errors[:] = [error]
        with pytest.raises(expected):
            Connection("atonce://x", "x").call(lambda filesystem: "done")
