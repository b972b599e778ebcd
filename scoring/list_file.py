"""A text file that names the inputs: one path or URL a line."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from handlers.errors import HandlerError
from scoring import fsspec_files, local_files, s3_files
from scoring.addresses import is_url, local_path_of, refuse_unsafe, s3_parts
from scoring.connection import Connection, UnreachableError
from scoring.errors import InputError, OptionsError, ScoringError, UnreadableError
from scoring.parts import Entry
from scoring.selection import Selection
from scoring.troubles import why_unreadable

SUFFIXES = frozenset({".txt", ".lst", ".list"})
_MAX_LINE_BYTES = 1 << 16
_SERVERLESS_PROTOCOLS = frozenset({"s3", "s3a", "gs", "gcs", "http", "https", "memory"})
"""Those where one client asks for everything, whatever the address names first."""


@dataclass(frozen=True)
class ListedFiles:
    """Files that the lines of `path`, which is absolute, name; relative ones lie below the folder of the list.

    Entries are named as the lines are written. Of local files size and version are looked up; of remote ones not, which
    would be a request each. Lines that are blank are skipped. include: as in `Selection`, for the end of each line.
    """

    path: str
    selection: Selection
    _connections: dict[str, Connection] = field(default_factory=dict, compare=False, repr=False)

    def list(self) -> Iterator[Entry]:
        """An entry a line, in order. Raises InputError, which names the line."""
        try:
            with Path(self.path).open("rb") as lines:
                number = 0
                while line := lines.readline(_MAX_LINE_BYTES):
                    number += 1
                    if number == 1:
                        line = line.removeprefix(b"\xef\xbb\xbf")
                    if len(line) == _MAX_LINE_BYTES:
                        raise InputError(f"line {number} of {local_files.shown(self.path)} is too long for a path")
                    text = os.fsdecode(line.rstrip(b"\r\n"))
                    if text.strip() and self.selection.includes(text.rpartition("/")[2], text):
                        yield self._entry(text, number)
        except OSError as error:
            reason = os.strerror(error.errno) if error.errno else str(error)
            raise InputError(f"{local_files.shown(self.path)} cannot be read: {reason}") from error

    def read(self, entry: Entry, max_bytes: int) -> bytes:
        """The file's bytes. Raises UnreadableError, TooLargeError, and InputError when credentials are refused.

        The lines have nothing in common, so a server that cannot be reached and a bucket that is missing are errors of
        those that name them.
        """
        if (path := self._local_path(entry.path)) is not None:
            try:
                return local_files.read_file(path, max_bytes)
            except (OSError, ValueError) as error:
                raise local_files.why_unreadable(error) from None
        try:
            connection = self._connection(entry.path)
            if connection.protocol in ("s3", "s3a"):
                return s3_files.fetch(connection, *s3_parts(entry.path), max_bytes)
            return fsspec_files.fetch(connection, entry.path, max_bytes)
        except UnreachableError as error:
            raise UnreadableError(error.reason) from None
        except (ScoringError, HandlerError):
            raise
        except Exception as error:
            raise why_unreadable(error) from None

    def selects(self, path: str) -> bool:
        """False: the lines need not lie below anything."""
        return False

    def _entry(self, text: str, number: int) -> Entry:
        try:
            if "://" in text:
                refuse_unsafe(text)
            path = self._local_path(text)
            if path is None:
                self._connection(text)
                return Entry(text, None, "")
        except (InputError, OptionsError) as error:
            raise InputError(f"line {number} of {local_files.shown(self.path)}: {error}") from None
        try:
            status = Path(path).stat()
        except (OSError, ValueError):
            return Entry(text, None, "")
        return local_files.entry_of(text, status) if stat.S_ISREG(status.st_mode) else Entry(text, None, "")

    def _local_path(self, text: str) -> str | None:
        if not is_url(text):
            return os.path.join(os.path.dirname(self.path), text)  # noqa: PTH118, PTH120 - keeps `..` and `//` as written
        return local_path_of(text)

    def _connection(self, url: str) -> Connection:
        """One for each server, made again in each process."""
        protocol, _, rest = url.partition("://")
        protocol = protocol.lower()
        server = "" if protocol in _SERVERLESS_PROTOCOLS else rest.partition("/")[0]
        store = f"{protocol}://{server}"
        if store not in self._connections:
            connection = Connection(store, store)
            connection.check_known()
            self._connections[store] = connection
        return self._connections[store]
