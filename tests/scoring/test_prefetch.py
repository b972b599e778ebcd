from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest

from scoring.errors import InputError, StoppedError
from scoring.parts import Entry
from scoring.prefetch import prefetched


def entries(n: int) -> Iterator[Entry]:
    return (Entry(str(index), index, "") for index in range(n))


def nothing() -> None:
    pass


@pytest.mark.parametrize("n", [0, 1, 999, 1000, 1001, 12_345])
def test_the_same_entries_in_the_same_order(n: int) -> None:
    assert list(prefetched(entries(n), nothing)) == list(entries(n))


def test_an_error_comes_after_what_was_listed_in_full_batches() -> None:
    def failing() -> Iterator[Entry]:
        yield from entries(3000)
        raise InputError("gone")

    got: list[Entry] = []
    with pytest.raises(InputError, match="gone"):
        got.extend(prefetched(failing(), nothing))
    assert got == list(entries(3000))


def test_ticks_while_the_listing_waits_and_ends_by_them() -> None:
    waiting = threading.Event()

    def stuck() -> Iterator[Entry]:
        yield from entries(1)
        waiting.wait(60)

    n_ticks = 0

    def tick() -> None:
        nonlocal n_ticks
        n_ticks += 1
        if n_ticks == 2:
            raise StoppedError("stopped")

    with pytest.raises(StoppedError):
        list(prefetched(stuck(), tick))
    waiting.set()


def test_it_reads_a_bounded_number_ahead_and_its_thread_ends() -> None:
    n_read = 0

    def counted() -> Iterator[Entry]:
        nonlocal n_read
        for entry in entries(1_000_000):
            n_read += 1
            yield entry

    got = prefetched(counted(), nothing)
    next(got)
    until = time.monotonic() + 20
    while n_read < 5000 and time.monotonic() < until:
        time.sleep(0.01)
    time.sleep(0.2)
    assert n_read < 10_000
    got.close()
    while any(thread.name == "listing" for thread in threading.enumerate()):
        assert time.monotonic() < until
        time.sleep(0.01)
