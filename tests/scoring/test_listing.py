from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from itertools import islice
from pathlib import Path

import pytest

from scoring.errors import InputError, OutputError
from scoring.listing import sorted_listing
from scoring.parts import Entry


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    return tmp_path


def entries(n: int, seed: int = 0) -> Iterator[Entry]:
    chance = random.Random(seed)
    for index in range(n):
        yield Entry(f"{chance.randrange(10**9):09d}/{index}.jpg", chance.randrange(10**12), str(index))


NASTY = [
    Entry("new\nline", 1, "v\n\0"),
    Entry("\udcff\udcfe", None, ""),
    Entry("🙂", 0, "é🙂"),
    Entry("é", 2**40, "x" * 300),
    Entry("e\u0301", 3, ""),
    Entry("a/b", None, "1"),
    Entry("a-b", 1, "1"),
    Entry("B", 1, "1"),
    Entry("x" * 5000, 1, "1"),
    Entry("", 1, ""),
]


@pytest.mark.parametrize("run_size", [1, 2, 3, 1000])
def test_entries_come_back_exactly_and_by_their_bytes(run_size: int) -> None:
    with sorted_listing(iter(NASTY), run_size=run_size) as listing:
        assert list(listing) == sorted(NASTY, key=lambda entry: entry.sort_key)
        assert list(listing) == list(listing)
        assert (listing.n_entries, listing.n_repeated) == (len(NASTY), 0)


@pytest.mark.parametrize("run_size", [2, 7, 10_000])
def test_repeated_paths_are_dropped_and_the_same_one_wins_in_any_order(run_size: int) -> None:
    given = [Entry("b", 1, "1"), Entry("a", 2, "2"), Entry("a", 1, "9"), Entry("a", None, ""), Entry("b", 1, "1")] * 5
    for seed in range(5):
        random.Random(seed).shuffle(given)
        with sorted_listing(given, run_size=run_size) as listing:
            assert list(listing) == [Entry("a", None, ""), Entry("b", 1, "1")]
            assert (listing.n_entries, listing.n_repeated) == (2, 23)


@pytest.mark.parametrize("run_size", [1, 10])
def test_more_runs_than_may_be_open_at_once(run_size: int) -> None:
    given = list(entries(4500 if run_size == 1 else 9000))
    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    most = 0

    def watched() -> Iterator[Entry]:
        nonlocal most
        for index, entry in enumerate(given):
            if index % 100 == 0:
                most = max(most, len(os.listdir("/dev/fd")) - before)  # noqa: PTH208
            yield entry

    with sorted_listing(watched(), run_size=run_size) as listing:
        assert len(os.listdir("/dev/fd")) == before + 1  # noqa: PTH208
        assert list(listing) == sorted(given, key=lambda entry: entry.sort_key)
    assert 60 < most < 200
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208


def test_several_may_read_at_once() -> None:
    with sorted_listing(entries(5000), run_size=100) as listing:
        pairs = list(zip(listing, islice(listing, 10, None), strict=False))
        whole = list(listing)
    assert [first for first, _ in pairs] == whole[:-10]
    assert [second for _, second in pairs] == whole[10:]


_MEASURE = """
import resource
from scoring.listing import sorted_listing
from tests.scoring.test_listing import entries

for n in (20_000, 200_000):
    with sorted_listing(entries(n), run_size=200) as listing:
        assert sum(1 for _ in listing) == n
    print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="peak memory is in other units elsewhere")
def test_memory_is_flat() -> None:
    """In a process of its own, since a peak does not go down again."""
    root = Path(__file__).parents[2]
    ran = subprocess.run([sys.executable, "-c", _MEASURE], cwd=root, capture_output=True, text=True, check=True)
    few_kib, many_kib = map(int, ran.stdout.split())
    assert many_kib - few_kib < 8 * 1024  # the entries alone would take 50 MiB


def test_a_short_listing_touches_no_disk(temporary: Path) -> None:
    temporary.rmdir()
    with sorted_listing(entries(99), run_size=100) as listing:
        assert sum(1 for _ in listing) == 99
    with pytest.raises(OutputError, match="cannot be kept"), sorted_listing(entries(100), run_size=100):
        pass


def test_nothing_has_a_name_even_while_it_is_used(temporary: Path) -> None:
    with sorted_listing(entries(1000), run_size=10) as listing:
        assert next(iter(listing))
        assert list(temporary.iterdir()) == []


def test_errors_of_the_entries_come_through_and_leave_nothing_open(temporary: Path) -> None:
    def failing() -> Iterator[Entry]:
        yield from entries(500)
        raise InputError("the bucket is gone")

    before = len(os.listdir("/dev/fd"))  # noqa: PTH208
    with pytest.raises(InputError, match="the bucket is gone"), sorted_listing(failing(), run_size=10):
        pass
    assert len(os.listdir("/dev/fd")) == before  # noqa: PTH208
    assert list(temporary.iterdir()) == []


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full")
def test_a_full_disk_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: open("/dev/full", "wb"))  # noqa: PTH123, SIM115
    with (
        pytest.raises(OutputError, match=r"cannot be kept in .*: No space left on device"),
        sorted_listing(entries(1000), run_size=10),
    ):
        pass


def test_progress_is_told() -> None:
    told: list[int] = []
    with sorted_listing(entries(2500), on_progress=told.append, run_size=100):
        assert told == [1000, 2000, 2500]


def test_nothing_gives_nothing() -> None:
    with sorted_listing([]) as listing:
        assert list(listing) == []
        assert (listing.n_entries, listing.n_repeated) == (0, 0)
