"""Objects of an S3 bucket: listed page by page, and fetched by their exact keys.

fsspec's own listing holds all of a prefix in memory, and its paths cannot carry every key (`//`, `?versionId=`).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from handlers.errors import HandlerError, TooLargeError
from scoring.connection import Connection, UnreachableError
from scoring.errors import InputError, ScoringError, UnreadableError
from scoring.parts import Entry
from scoring.selection import Selection
from scoring.troubles import Trouble, code_of, reason_of, trouble_of, why_unreadable

_CHUNK_BYTES = 1 << 18


def list_page(filesystem: Any, bucket: str, prefix: str, delimiter: str = "", token: str = "", n: int = 1000) -> Any:
    """One answer of ListObjectsV2 with at most `n` keys. Raises what s3fs raises."""
    options = {"Bucket": bucket, "Prefix": prefix, "MaxKeys": n}
    if delimiter:
        options["Delimiter"] = delimiter
    if token:
        options["ContinuationToken"] = token
    return filesystem.call_s3("list_objects_v2", **options)


def fetch(connection: Connection, bucket: str, key: str, max_bytes: int) -> bytes:
    """An object's bytes, of which at most one more than allowed is asked for.

    Raises TooLargeError, InputError as `Connection.call` does, and what s3fs raises.
    """

    def get(filesystem: Any) -> bytes:
        from fsspec.asyn import sync

        async def read() -> bytes:
            answer = await filesystem._call_s3("get_object", Bucket=bucket, Key=key, Range=f"bytes=0-{max_bytes}")
            chunks: list[bytes] = []
            n_bytes = 0
            async with answer["Body"] as body:
                # Servers may ignore the range, so it is no bound.
                while n_bytes <= max_bytes and (chunk := await body.read(_CHUNK_BYTES)):
                    chunks.append(chunk)
                    n_bytes += len(chunk)
            return b"".join(chunks)

        data: bytes = sync(filesystem.loop, read)
        return data

    try:
        data = connection.call(get)
    except OSError as error:
        if code_of(error) in ("InvalidRange", "416"):
            return b""  # an object without a byte has no first byte either
        raise
    if len(data) > max_bytes:
        raise TooLargeError(f"over the limit of {max_bytes} bytes")
    return data


@dataclass(frozen=True)
class S3Files:
    """Objects below a prefix.

    prefix: empty for the whole bucket, else it ends with `/`, and paths begin behind it.
    """

    connection: Connection
    bucket: str
    prefix: str
    selection: Selection

    def list(self) -> Iterator[Entry]:
        """Every object that is selected; of the listing one page is held. Raises InputError."""
        pending = [(self.prefix, self.selection.start())]
        while pending:
            folder, levels = pending.pop()
            # All levels in one listing takes far fewer requests than one for each folder.
            flat = self.selection.any_depth(levels)
            start = folder if flat else folder + self.selection.name_start(levels)
            for page in self._pages(start, "" if flat else "/"):
                for item in page.get("Contents", ()):
                    below, path = item["Key"][len(folder) :], item["Key"][len(self.prefix) :]
                    # A key that ends in "/" is how consoles draw an empty folder.
                    if below and not below.endswith("/") and self.selection.picks_below(levels, below, path):
                        yield Entry(path, int(item["Size"]), _version(item))
                for item in page.get("CommonPrefixes", ()):
                    inside = self.selection.enter(levels, item["Prefix"][len(folder) : -1])
                    if inside:
                        pending.append((item["Prefix"], inside))

    def read(self, entry: Entry, max_bytes: int) -> bytes:
        """The object's bytes.

        Raises UnreadableError, TooLargeError, and InputError when the bucket is gone or cannot be reached, which it is
        asked for when an object cannot be had.
        """
        if entry.size_bytes is not None and entry.size_bytes > max_bytes:
            raise TooLargeError(f"{entry.size_bytes} bytes, over the limit of {max_bytes}")
        try:
            return fetch(self.connection, self.bucket, self.prefix + entry.path, max_bytes)
        except UnreachableError as error:
            reason = UnreadableError(error.reason)
        except (ScoringError, HandlerError):
            raise
        except Exception as error:
            reason = why_unreadable(error)
        if not self.has_below(self.prefix):
            raise InputError(f"{self.connection.shown} is not there any more")
        raise reason

    def selects(self, path: str) -> bool:
        """Whether a file at this path would be listed if it were there."""
        return self.selection.selects(path)

    def has(self, key: str) -> bool:
        """Whether there is an object of exactly this key. Raises InputError."""
        contents = self._page(key, n=1).get("Contents", ())
        return any(item["Key"] == key for item in contents)  # it is the first of those that begin with it

    def has_below(self, prefix: str) -> bool:
        """Whether there is an object below this prefix. Raises InputError."""
        return bool(self._page(prefix, n=1).get("Contents"))

    def _pages(self, prefix: str, delimiter: str) -> Iterator[Any]:
        token = ""
        while True:
            page = self._page(prefix, delimiter, token)
            yield page
            token = page.get("NextContinuationToken", "") if page.get("IsTruncated") else ""
            if not token:
                return

    def _page(self, prefix: str, delimiter: str = "", token: str = "", n: int = 1000) -> Any:
        try:
            return self.connection.call(
                lambda filesystem: list_page(filesystem, self.bucket, prefix, delimiter, token, n)
            )
        except ScoringError:
            raise
        except Exception as error:
            trouble, shown = trouble_of(error), self.connection.shown
            if trouble in (Trouble.NO_STORE, Trouble.MISSING):
                raise InputError(f"{shown}: the bucket {self.bucket!r} does not exist") from None
            if trouble is Trouble.FORBIDDEN:
                raise InputError(f"{shown} cannot be listed: {trouble.value}") from None
            raise InputError(f"{shown} cannot be listed: {reason_of(error)}") from None


def _version(item: Any) -> str:
    etag = str(item.get("ETag", "")).strip('"')
    return etag or (item["LastModified"].isoformat() if "LastModified" in item else "")
