"""The inputs of a run, and how their sorted listing is cut into parts that resist change.

A part ends where the checksum of a path says so, not after so many inputs. So a picture that is added or removed
changes the part it falls into, and every other part stands.
"""

from __future__ import annotations

import hashlib
import json
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from handlers.errors import HandlerError
from handlers.results import Analysis

Outcome = Analysis | HandlerError
"""What became of one input."""


@dataclass(frozen=True, slots=True)
class Entry:
    """One input.

    path: names it in the rows, unique in its run; below the root of the source, with `/` between, except in list files
    (see `scoring.sources`). A name that is no UTF-8 has surrogates, as in `os.fsdecode`. size_bytes: None where the
    source does not say. version: changes when the content does (modification time in nanoseconds, ETag), else empty.
    """

    path: str
    size_bytes: int | None
    version: str

    @property
    def sort_key(self) -> bytes:
        """Entries are in the order of the bytes of their paths, whatever the platform's locale."""
        return os.fsencode(self.path)

    @property
    def shown_path(self) -> str:
        """The path as UTF-8 can carry it: bytes that are no UTF-8 as `\\xNN`."""
        return os.fsencode(self.path).decode("utf-8", "backslashreplace")


@dataclass(frozen=True)
class Part:
    """Some consecutive entries of the sorted listing: what one file of the output answers for.

    index: its place among the parts of its run, from 0. fingerprint: of its entries and of everything else that its
    rows depend on, 32 hexadecimal digits.
    """

    index: int
    fingerprint: str
    entries: tuple[Entry, ...]


def cut_parts(entries: Iterable[Entry], part_size: int, run_fingerprint: str) -> Iterator[Part]:
    """Cut a sorted listing into parts of about `part_size` entries, twice as many at most. Streams."""
    held: list[Entry] = []
    index = 0
    for entry in entries:
        held.append(entry)
        if len(held) == 2 * part_size or zlib.crc32(entry.sort_key) % part_size == 0:
            yield _part(index, held, run_fingerprint)
            index += 1
            held = []
    if held:
        yield _part(index, held, run_fingerprint)


def _part(index: int, entries: list[Entry], run_fingerprint: str) -> Part:
    digest = hashlib.sha256(run_fingerprint.encode())
    for entry in entries:
        digest.update(json.dumps([entry.path, entry.size_bytes, entry.version]).encode() + b"\n")
    return Part(index, digest.hexdigest()[:32], tuple(entries))
