"""A remote file system as fsspec gives it: made anew in each process, and asked with patience."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from typing import Any, TypeVar

from handlers.errors import HandlerError
from scoring.errors import InputError, ScoringError
from scoring.troubles import Trouble, reason_of, trouble_of

T = TypeVar("T")

RETRY_WAITS_S = (0.5, 2.0, 6.0)
"""Seconds between tries, when a connection fails or the other side says that it is busy."""

_PACKAGES = {"s3": "mien[s3]", "s3a": "mien[s3]", "gs": "gcsfs", "gcs": "gcsfs", "abfs": "adlfs", "az": "adlfs"}


class UnreachableError(InputError):
    """The other side does not answer, or answers that it cannot now, however often it is asked.

    reason: what it is, in one line.
    """

    def __init__(self, message: str, reason: str = "") -> None:
        super().__init__(message)
        self.reason = reason or message


class Connection:
    """A file system and how to ask it. Pickles; may be used from several threads.

    url: any address in it, without credentials. shown: what messages call it.
    """

    def __init__(self, url: str, shown: str, waits_s: tuple[float, ...] | None = None) -> None:
        self.url, self.shown = url, shown
        self.waits_s = RETRY_WAITS_S if waits_s is None else waits_s
        self._lock = threading.Lock()
        self._filesystem: Any = None
        self._process_id = 0

    def __reduce__(self) -> tuple[type[Connection], tuple[str, str, tuple[float, ...]]]:
        return Connection, (self.url, self.shown, self.waits_s)

    def named(self, shown: str) -> Connection:
        """The same file system under another name in messages."""
        other = Connection(self.url, shown, self.waits_s)
        other._filesystem, other._process_id = self._filesystem, self._process_id
        return other

    @property
    def protocol(self) -> str:
        """Of the URL, in small letters."""
        return self.url.partition("://")[0].lower()

    @property
    def filesystem(self) -> Any:
        """The fsspec file system of this process.

        Raises InputError when there is none for the protocol, and what it raises when it connects at once and fails.
        """
        with self._lock:
            # Its event loop is a thread, which a forked process does not have.
            if self._filesystem is None or self._process_id != os.getpid():
                self._filesystem = self._make()
                self._process_id = os.getpid()
            return self._filesystem

    def check_known(self) -> None:
        """Raises InputError when fsspec has no such protocol, or a package for it is missing."""
        import fsspec

        try:
            fsspec.get_filesystem_class(self.protocol)
        except (ImportError, ValueError) as error:
            raise self._unusable(error) from None

    def path_of(self, url: str) -> str:
        """A URL as its file system writes paths. Raises InputError."""
        path: str = self.call(lambda filesystem: filesystem._strip_protocol(url))
        return path.rstrip("/")

    def call(self, work: Callable[[Any], T]) -> T:
        """`work(filesystem)`, tried again when the connection fails.

        Raises UnreachableError when it goes on failing, InputError when the credentials are no good, and whatever else
        `work` raises.
        """
        for wait_s in (*self.waits_s, None):
            try:
                return work(self.filesystem)
            except (ScoringError, HandlerError):
                raise
            except Exception as error:
                trouble = trouble_of(error)
                if trouble is Trouble.LOGIN:
                    raise InputError(f"{self.shown}: {trouble.value}: {reason_of(error)}") from None
                if trouble is not Trouble.PASSING:
                    raise
                if wait_s is None:
                    reason = reason_of(error)
                    raise UnreachableError(f"{self.shown} cannot be reached: {reason}", reason) from None
            time.sleep(wait_s)
        raise AssertionError("the last try returns or raises")

    def _make(self) -> Any:
        try:
            import fsspec
            from fsspec.core import url_to_fs

            if self.protocol in ("s3", "s3a"):
                # We wait and try again ourselves: three layers of it would multiply to minutes.
                once = {"retries": {"total_max_attempts": 1}}
                filesystem = fsspec.filesystem("s3", skip_instance_cache=True, config_kwargs=once)
                filesystem.retries = 1
            else:
                filesystem, _ = url_to_fs(self.url, skip_instance_cache=True)
        except ScoringError:
            raise
        except Exception as error:
            if trouble_of(error) is Trouble.PASSING:
                raise
            raise self._unusable(error) from None
        if (cache := getattr(filesystem, "dircache", None)) is not None:
            cache.use_listings_cache = False  # set here: not every file system takes it as an argument
        return filesystem

    def _unusable(self, error: Exception) -> InputError:
        if isinstance(error, ImportError):
            package = _PACKAGES.get(self.protocol)
            hint = f"install {package}" if package else reason_of(error)
            return InputError(f"{self.protocol}:// needs a package that is not installed: {hint}")
        if isinstance(error, ValueError) and "not known" in str(error):
            return InputError(f"{self.protocol}:// is no protocol that fsspec knows")
        return InputError(f"{self.shown} cannot be used: {reason_of(error)}")
