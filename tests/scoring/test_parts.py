import os
import zlib

import pytest

from scoring.parts import Entry, cut_parts


def entries(n: int) -> list[Entry]:
    return [Entry(f"{index:06d}.jpg", index, str(index)) for index in range(n)]


def test_parts_hold_every_entry_once_and_in_order() -> None:
    listing = entries(5_000)
    parts = list(cut_parts(listing, 64, "run"))
    assert [entry for part in parts for entry in part.entries] == listing
    assert [part.index for part in parts] == list(range(len(parts)))
    assert max(len(part.entries) for part in parts) <= 128
    assert 30 < 5_000 / len(parts) < 100


def test_no_entries_are_no_parts() -> None:
    assert list(cut_parts([], 64, "run")) == []


@pytest.mark.parametrize("position", [0, 1_234, 4_999])
def test_an_added_entry_changes_one_part_or_two(position: int) -> None:
    listing = entries(5_000)
    before = {part.fingerprint for part in cut_parts(listing, 64, "run")}
    listing.insert(position, Entry(f"{position:06d}-added.jpg", 1, "1"))
    after = {part.fingerprint for part in cut_parts(listing, 64, "run")}
    # A part that is cut at its largest size hands the surplus on until a path's checksum cuts.
    assert 1 <= len(after - before) <= 6


@pytest.mark.parametrize(
    "changed",
    [Entry("000100.jpg", 7, "100"), Entry("000100.jpg", 100, "7"), Entry("000100.jpg", None, "100")],
    ids=["size", "version", "unknown size"],
)
def test_a_changed_entry_changes_its_part_alone(changed: Entry) -> None:
    listing = entries(1_000)
    before = [part.fingerprint for part in cut_parts(listing, 64, "run")]
    listing[100] = changed
    after = [part.fingerprint for part in cut_parts(listing, 64, "run")]
    assert sum(old != new for old, new in zip(before, after, strict=True)) == 1


def test_another_run_fingerprint_changes_every_part() -> None:
    one = {part.fingerprint for part in cut_parts(entries(1_000), 64, "one")}
    assert one.isdisjoint(part.fingerprint for part in cut_parts(entries(1_000), 64, "two"))


def test_parts_stream() -> None:
    pulled = []

    def listing():
        for entry in entries(10_000):
            pulled.append(entry)
            yield entry

    next(cut_parts(listing(), 16, "run"))
    assert len(pulled) <= 32


def test_a_name_that_is_no_utf8_can_be_shown_and_cut() -> None:
    entry = Entry(os.fsdecode(b"caf\xe9.jpg"), 1, "1")
    assert entry.shown_path == "caf\\xe9.jpg"
    assert entry.sort_key == b"caf\xe9.jpg"
    (part,) = cut_parts([entry], 4, "run")
    assert part.entries == (entry,)
    assert zlib.crc32(entry.sort_key)


def test_order_is_that_of_bytes() -> None:
    names = ["B", "a", "é", "\U0001f600", os.fsdecode(b"\xff")]
    assert sorted((Entry(name, 0, "") for name in reversed(names)), key=lambda entry: entry.sort_key) == [
        Entry(name, 0, "") for name in names
    ]
