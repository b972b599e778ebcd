"""The sorted listing of a run: kept on disk, so that a million inputs take no more memory than a thousand."""

from __future__ import annotations

import contextlib
import heapq
import os
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator
from typing import IO

from scoring.errors import OutputError
from scoring.parts import Entry

_Row = tuple[bytes, int, str]
"""Path, size (-1 for none), version. In this order, so that of entries of one path the same one always wins."""

_HEAD = struct.Struct("<IIq")
_MERGED_AT_ONCE = 64
"""Each run is an open file, and a process may have 1,024."""
_BUFFER_BYTES = 1 << 16
_PROGRESS_EVERY = 1000


class Listing:
    """Entries by `Entry.sort_key`, no path twice; read as often as wanted, also at the same time.

    n_entries: how many there are. n_repeated: how many more were given, of paths that were there.
    """

    def __init__(self, rows: _File | list[_Row], n_entries: int, n_repeated: int) -> None:
        self._rows = rows
        self.n_entries, self.n_repeated = n_entries, n_repeated

    def __iter__(self) -> Iterator[Entry]:
        for path, size, version in self._rows:
            yield Entry(os.fsdecode(path), None if size < 0 else size, version)


@contextlib.contextmanager
def sorted_listing(
    entries: Iterable[Entry], *, on_progress: Callable[[int], None] | None = None, run_size: int = 50_000
) -> Iterator[Listing]:
    """Sort entries, of which `run_size` are held in memory; the others go to files without a name in `$TMPDIR`.

    on_progress: is told now and then how many were read so far, and how many at the end. The listing can be read until
    the context ends. Raises OutputError when the temporary folder is full or cannot be written, and what `entries` do.
    """
    with contextlib.ExitStack() as files:
        runs = _Runs(files)
        held: list[_Row] = []
        n_read = 0
        for entry in entries:
            held.append((entry.sort_key, -1 if entry.size_bytes is None else entry.size_bytes, entry.version))
            n_read += 1
            if on_progress is not None and n_read % _PROGRESS_EVERY == 0:
                on_progress(n_read)
            if len(held) >= run_size:
                held.sort()
                runs.add(held)
                held = []
        held.sort()
        if on_progress is not None:
            on_progress(n_read)
        rows: _File | list[_Row]
        if runs.levels:
            rows = runs.merged(held)
            n_entries = rows.n_rows
        else:
            rows = list(_without_repeated(held))
            n_entries = len(rows)
        del held
        yield Listing(rows, n_entries, n_read - n_entries)


class _Runs:
    """Sorted files, of each length at most `_MERGED_AT_ONCE`: so many short ones are merged into one longer."""

    def __init__(self, files: contextlib.ExitStack) -> None:
        self._files = files
        self.levels: list[list[_File]] = []

    def add(self, rows: Iterable[_Row]) -> None:
        run = self._new(rows)
        for level in self.levels:
            level.append(run)
            if len(level) < _MERGED_AT_ONCE:
                return
            run = self._new(heapq.merge(*level))
            for file in level:
                file.close()
            level.clear()
        self.levels.append([run])

    def merged(self, rest: list[_Row]) -> _File:
        """All of them and the rest, without what repeats."""
        runs = [run for level in self.levels for run in level]
        merged = self._new(_without_repeated(heapq.merge(rest, *runs)))
        for run in runs:
            run.close()
        return merged

    def _new(self, rows: Iterable[_Row]) -> _File:
        file = _File(rows)
        self._files.callback(file.close)
        return file


class _File:
    """Rows in a file that has no name, so that nothing is left of it however the process ends."""

    def __init__(self, rows: Iterable[_Row]) -> None:
        self.n_rows = 0
        try:
            self._file: IO[bytes] = tempfile.TemporaryFile(prefix="mien-listing-", buffering=_BUFFER_BYTES)  # noqa: SIM115
        except OSError as error:
            raise _unwritable(error) from error
        try:
            for path, size, version in rows:
                text = version.encode()
                self._file.write(_HEAD.pack(len(path), len(text), size) + path + text)
                self.n_rows += 1
            self._file.flush()
        except OSError as error:
            self.close()
            raise _unwritable(error) from error
        except BaseException:
            self.close()
            raise

    def close(self) -> None:
        with contextlib.suppress(OSError):  # of a full disk, again, for what is still buffered
            self._file.close()

    def __iter__(self) -> Iterator[_Row]:
        # Reads at a place of its own: several iterators share the one descriptor.
        descriptor, offset, buffer, start = self._file.fileno(), 0, b"", 0
        for _ in range(self.n_rows):
            while len(buffer) - start < _HEAD.size or len(buffer) - start < _length(buffer, start):
                chunk = os.pread(descriptor, _BUFFER_BYTES, offset)
                if not chunk:
                    raise OutputError("the temporary file of the listing was cut short")
                buffer, start, offset = buffer[start:] + chunk, 0, offset + len(chunk)
            n_path, n_version, size = _HEAD.unpack_from(buffer, start)
            middle = start + _HEAD.size + n_path
            yield buffer[start + _HEAD.size : middle], size, buffer[middle : middle + n_version].decode()
            start = middle + n_version


def _length(buffer: bytes, start: int) -> int:
    n_path, n_version, _ = _HEAD.unpack_from(buffer, start)
    return int(_HEAD.size + n_path + n_version)


def _without_repeated(rows: Iterable[_Row]) -> Iterator[_Row]:
    last: bytes | None = None
    for row in rows:
        if row[0] != last:
            yield row
            last = row[0]


def _unwritable(error: OSError) -> OutputError:
    reason = os.strerror(error.errno) if error.errno else str(error)
    return OutputError(f"the listing cannot be kept in {tempfile.gettempdir()}: {reason}")
