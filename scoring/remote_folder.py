"""A folder behind a URL that fsspec understands: buckets above all."""

from __future__ import annotations

import logging
import os
import secrets
import time
from collections.abc import Callable
from typing import Any, TypeVar

from scoring.errors import OutputError

_T = TypeVar("_T")
_logger = logging.getLogger(__name__)

_OBJECT_STORES = {"s3", "s3a", "gs", "gcs", "abfs", "abfss", "az", "adl", "memory"}
"""Where one write of a whole file is atomic, and folders need not be made."""

PAUSES_S = (0.5, 2.0, 5.0)
"""Between the tries when the other side cannot be reached."""

_FINAL = (FileNotFoundError, PermissionError, NotADirectoryError, IsADirectoryError, NotImplementedError)


class RemoteFolder:
    """See `scoring.output.Folder`. Nothing that was listed is kept: a resumed run must see what is there.

    Raises OutputError for a protocol that is unknown or whose package is missing.
    """

    def __init__(self, url: str) -> None:
        import fsspec

        protocol = url.partition("://")[0]
        options: dict[str, Any] = {}
        if protocol in ("s3", "s3a"):  # one layer of retries, ours, not three on top of each other
            options["config_kwargs"] = {"connect_timeout": 10, "retries": {"total_max_attempts": 1}}
        try:
            self._fs, root = fsspec.core.url_to_fs(url, skip_instance_cache=True, use_listings_cache=False, **options)
        except ImportError as error:
            raise OutputError(f"the output {url} needs a package that is not installed: {error}") from error
        except ValueError as error:
            raise OutputError(f"the output {url} cannot be used: {error}") from error
        self._url, self._root = url, root.rstrip("/")
        self._atomic = protocol in _OBJECT_STORES

    def prepare(self, below: str) -> None:
        """See `Folder`."""
        if not self._atomic:
            self._tried("written", lambda: self._fs.makedirs(self._at(below), exist_ok=True))
        probe = f"{below}/.probe-{secrets.token_hex(4)}"
        self.write(probe, b"probe\n")
        self.remove(probe)

    def names(self, below: str = "") -> list[str]:
        """See `Folder`."""
        folder = self._at(below)

        def listed() -> list[str]:
            self._fs.invalidate_cache()
            try:
                found = self._fs.ls(folder, detail=False)
            except FileNotFoundError as error:
                if _bucket_is_gone(error):
                    raise
                return []
            # A bucket may hold an object with the folder's own name, and some file systems end folders with a slash.
            names = [path.rstrip("/") for path in found]
            return [name.rpartition("/")[2] for name in names if name.strip("/") != folder.strip("/")]

        return self._tried("read", listed)

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        data: bytes = self._tried("read", lambda: self._fs.cat_file(self._at(name)))
        return data

    def write(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        target = self._at(name)
        if self._atomic:
            self._tried("written", lambda: self._fs.pipe_file(target, data))
            return
        folder, _, last = target.rpartition("/")
        temporary = f"{folder}/.writing-{secrets.token_hex(8)}-{last}"

        def moved() -> None:
            try:
                self._fs.pipe_file(temporary, data)
                self._remove(target)  # not every file system moves onto what is there
                self._fs.mv(temporary, target)
            except BaseException:
                self._remove_quietly(temporary)
                raise

        self._tried("written", moved)

    def remove(self, name: str) -> None:
        """See `Folder`."""
        self._tried("written", lambda: self._remove(self._at(name)))

    def clean(self, below: str) -> None:
        """See `Folder`. Leaves everything: nothing here says whether a writer still lives, and readers ignore it."""

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _remove(self, path: str) -> None:
        self._fs.invalidate_cache()
        try:
            self._fs.rm_file(path)
        except FileNotFoundError as error:
            if _bucket_is_gone(error):
                raise

    def _remove_quietly(self, path: str) -> None:
        try:
            self._remove(path)
        except Exception as error:
            _logger.warning("%s: a temporary file is left: %s", self._url, error)

    def _tried(self, verb: str, act: Callable[[], _T]) -> _T:
        for pause_s in (*PAUSES_S, None):
            try:
                return act()
            except Exception as error:  # every file system has errors of its own
                if pause_s is None or isinstance(error, _FINAL):
                    raise OutputError(f"the output folder {self._url} cannot be {verb}: {_cause(error)}") from error
                _logger.info("%s: tried again in %s s: %s", self._url, pause_s, _cause(error))
                time.sleep(pause_s)
        raise AssertionError("the last pause is None")


def _bucket_is_gone(error: FileNotFoundError) -> bool:
    response = getattr(error.__cause__, "response", None)
    return isinstance(response, dict) and response.get("Error", {}).get("Code") == "NoSuchBucket"


def _cause(error: Exception) -> str:
    """One line. A bare path or key as the message says nothing, so the kind of error goes first then."""
    text = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, PermissionError):
        return f"permission denied ({text})"
    if isinstance(error, FileNotFoundError):
        return f"it is not there ({text})"
    if isinstance(error, NotImplementedError):
        return "this kind of URL is read-only"
    if isinstance(error, OSError) and error.errno and not error.args[1:]:
        return os.strerror(error.errno)
    return text[:300]
