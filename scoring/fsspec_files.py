"""Files of any file system that fsspec knows, besides those that have a module of their own here."""

from __future__ import annotations

import datetime
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from handlers.errors import HandlerError, TooLargeError
from scoring.connection import Connection, UnreachableError
from scoring.errors import InputError, ScoringError, UnreadableError
from scoring.parts import Entry
from scoring.selection import Selection
from scoring.troubles import Trouble, reason_of, trouble_of, why_unreadable

_VERSION_KEYS = (
    "ETag",
    "etag",
    "md5Hash",
    "generation",
    "mtime",
    "LastModified",
    "last_modified",
    "updated",
    "modify",
    "modificationTime",
    "created",
)


def fetch(connection: Connection, path: str, max_bytes: int) -> bytes:
    """A file's bytes, of which at most one more than allowed is asked for.

    Raises TooLargeError, InputError as `Connection.call` does, and what the file system raises.
    """

    def get(filesystem: Any) -> bytes:
        return bytes(filesystem.cat_file(path, start=0, end=max_bytes + 1))

    data = connection.call(get)
    if len(data) > max_bytes:
        raise TooLargeError(f"over the limit of {max_bytes} bytes")
    return data


@dataclass(frozen=True)
class FsspecFiles:
    """Files below a folder.

    root: the folder as its file system writes paths, without a `/` at the end.
    """

    connection: Connection
    root: str
    selection: Selection

    def list(self) -> Iterator[Entry]:
        """Every file that is selected; of the listing one folder is held. Raises InputError."""
        pending = [("", self.selection.start())]
        while pending:
            folder, levels = pending.pop()
            for name, info in self._items(folder):
                path = f"{folder}/{name}" if folder else name
                if info.get("type") == "directory":
                    below = self.selection.enter(levels, name)
                    if below:
                        pending.append((path, below))
                elif info.get("type") == "file" and self.selection.picks(levels, name, path):
                    yield Entry(path, _size(info), _version(info))

    def read(self, entry: Entry, max_bytes: int) -> bytes:
        """The file's bytes.

        Raises UnreadableError, TooLargeError, and InputError when the whole folder is gone or cannot be reached, which
        the folder itself is asked for when a file cannot be had.
        """
        if entry.size_bytes is not None and entry.size_bytes > max_bytes:
            raise TooLargeError(f"{entry.size_bytes} bytes, over the limit of {max_bytes}")
        if entry.size_bytes == 0:
            return b""  # many servers refuse the first bytes of a file that has none
        try:
            return fetch(self.connection, f"{self.root}/{entry.path}", max_bytes)
        except UnreachableError as error:
            reason = UnreadableError(error.reason)
        except (ScoringError, HandlerError):
            raise
        except Exception as error:
            reason = why_unreadable(error)
        if self.kind(self.root) is None:
            raise InputError(f"{self.connection.shown} is not there any more")
        raise reason

    def selects(self, path: str) -> bool:
        """Whether a file at this path would be listed if it were there."""
        return self.selection.selects(path)

    def kind(self, path: str) -> str | None:
        """`file`, `directory`, something else, or None when there is nothing at a path. Raises InputError."""
        try:
            return str(self.connection.call(lambda filesystem: filesystem.info(path)).get("type"))
        except ScoringError:
            raise
        except Exception as error:
            if trouble_of(error) in (Trouble.MISSING, Trouble.NO_STORE):
                return None
            raise self._unlistable(error) from None

    def _items(self, folder: str) -> Iterator[tuple[str, Any]]:
        address = f"{self.root}/{folder}" if folder else self.root
        try:
            infos = self.connection.call(lambda filesystem: filesystem.ls(address, detail=True))
        except ScoringError:
            raise
        except Exception as error:
            if trouble_of(error) in (Trouble.MISSING, Trouble.NO_STORE):
                if folder:
                    return  # removed since its parent was listed
                raise InputError(f"{self.connection.shown} does not exist") from None
            raise self._unlistable(error) from None
        start = address.rstrip("/") + "/"
        for info in infos:
            name = str(info["name"]).rstrip("/")
            # Some list the folder itself, or whatever the links of a page lead to.
            if name.startswith(start) and (name := name[len(start) :]) and "/" not in name and name[0] != "?":
                yield name, info

    def _unlistable(self, error: Exception) -> InputError:
        trouble = trouble_of(error)
        reason = trouble.value if trouble is Trouble.FORBIDDEN else reason_of(error)
        return InputError(f"{self.connection.shown} cannot be listed: {reason}")


def _size(info: Any) -> int | None:
    return int(info["size"]) if info.get("size") is not None else None


def _version(info: Any) -> str:
    for key in _VERSION_KEYS:
        if (value := info.get(key)) not in (None, ""):
            return value.isoformat() if isinstance(value, datetime.datetime) else str(value).strip('"')
    return ""
