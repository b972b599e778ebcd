"""A folder behind a URL that fsspec understands: buckets above all."""

from __future__ import annotations

import datetime
import logging
import secrets
from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

from scoring.connection import Connection
from scoring.errors import InputError, OutputError, ScoringError
from scoring.troubles import Trouble, reason_of, trouble_of

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory"}
"""Where one write of a whole file is atomic, and folders need not be made."""

_TEMPORARY = (".probe-", ".writing-")
_LEFT_OVER_AFTER = datetime.timedelta(days=1)
"""So old, a temporary file has no writer any more, and clocks that differ do not matter."""


class RemoteFolder:
    """See `scoring.output.Folder`. Nothing that was listed is kept: a resumed run must see what is there.

    Raises OutputError for a protocol that is unknown or whose package is missing.
    """

    def __init__(self, url: str) -> None:
        self._url = url
        self._connection = Connection(url, f"the output folder {url}")
        self._atomic = self._connection.protocol in _OBJECT_STORES
        try:
            self._root = self._connection.path_of(url)
        except InputError as error:
            raise OutputError(str(error)) from None

    def prepare(self, below: str) -> None:
        """See `Folder`."""
        if not self._atomic:
            self._tried("written", lambda filesystem: filesystem.makedirs(self._at(below), exist_ok=True))
        probe = f"{below}/.probe-{secrets.token_hex(4)}"
        self.write(probe, b"probe\n")
        self.remove(probe)

    def names(self, below: str = "") -> list[str]:
        """See `Folder`."""
        folder = self._at(below)

        def listed(filesystem: Any) -> list[str]:
            filesystem.invalidate_cache()
            try:
                found = filesystem.ls(folder, detail=False)
            except FileNotFoundError as error:
                if trouble_of(error) is not Trouble.MISSING:
                    raise
                return []
            # A bucket may hold an object with the folder's own name, and some file systems end folders with a slash.
            names = [path.rstrip("/") for path in found]
            return [name.rpartition("/")[2] for name in names if name.strip("/") != folder.strip("/")]

        return self._tried("read", listed)

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        data: bytes = self._tried("read", lambda filesystem: filesystem.cat_file(self._at(name)))
        return data

    def write(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        target = self._at(name)
        if self._atomic:
            self._tried("written", lambda filesystem: filesystem.pipe_file(target, data))
            return
        folder, _, last = target.rpartition("/")
        temporary = f"{folder}/.writing-{secrets.token_hex(8)}-{last}"

        def moved(filesystem: Any) -> None:
            try:
                filesystem.pipe_file(temporary, data)
                _remove(filesystem, target)  # not every file system moves onto what is there
                filesystem.mv(temporary, target)
            except BaseException:
                self._remove_quietly(filesystem, temporary)
                raise

        self._tried("written", moved)

    def remove(self, name: str) -> None:
        """See `Folder`."""
        self._tried("written", lambda filesystem: _remove(filesystem, self._at(name)))

    def clean(self, below: str) -> None:
        """See `Folder`. Nothing here says whether a writer still lives, so only what is a day old goes."""
        for folder in ("", below):
            for name in self.names(folder):
                if name.startswith(_TEMPORARY):
                    path = self._at(f"{folder}/{name}" if folder else name)
                    self._tried("written", partial(self._remove_if_old, path=path))

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _remove_if_old(self, filesystem: Any, path: str) -> None:
        try:
            written_at = filesystem.modified(path)
            if written_at.tzinfo is None:
                written_at = written_at.replace(tzinfo=datetime.UTC)
            old = datetime.datetime.now(datetime.UTC) - written_at > _LEFT_OVER_AFTER
        except ScoringError:
            raise
        except Exception:  # gone meanwhile, or a file system that tells no times
            return
        if old:
            self._remove_quietly(filesystem, path)

    def _remove_quietly(self, filesystem: Any, path: str) -> None:
        try:
            _remove(filesystem, path)
        except ScoringError:
            raise
        except Exception as error:
            _logger.warning("%s: a temporary file is left: %s", self._url, reason_of(error))

    def _tried(self, verb: str, act: Callable[[Any], _T]) -> _T:
        try:
            return self._connection.call(act)
        except InputError as error:  # so says a connection, whatever it is for
            raise OutputError(str(error)) from None
        except ScoringError:
            raise
        except Exception as error:  # every file system has errors of its own
            raise OutputError(f"the output folder {self._url} cannot be {verb}: {_cause(error)}") from None


def _remove(filesystem: Any, path: str) -> None:
    filesystem.invalidate_cache()
    try:
        filesystem.rm_file(path)
    except FileNotFoundError as error:
        if trouble_of(error) is not Trouble.MISSING:
            raise


def _cause(error: Exception) -> str:
    """One line. A bare path or key as the message says nothing, so the kind of error goes first then."""
    match trouble_of(error):
        case Trouble.NO_STORE:
            return Trouble.NO_STORE.value
        case Trouble.FORBIDDEN:
            return f"permission denied ({reason_of(error)})"
        case Trouble.MISSING:
            return f"it is not there ({reason_of(error)})"
    return "this kind of URL is read-only" if isinstance(error, NotImplementedError) else reason_of(error)
