"""The output folder: the database of a run. Its parts are the data set, and what stands in it is whole.

    OUT/parts/part-<fingerprint>.<format>     written at once or not at all
    OUT/manifest.json, OUT/summary.json       of a finished run
    OUT/_SUCCESS                              empty; written last, and removed before anything changes
    OUT/_lock                                 empty; held by the processes that work here

No file holds a time or a host, so that a run that was killed and resumed ends with the bytes of an undisturbed one.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol
from urllib.parse import unquote, urlsplit

from scoring.errors import OutputError
from scoring.formats import is_part_name

PARTS = "parts"
MANIFEST, SUMMARY, SUCCESS, LOCK = "manifest.json", "summary.json", "_SUCCESS", "_lock"
_OURS = {PARTS, MANIFEST, SUMMARY, SUCCESS, LOCK}
_OURS_ALONE = {PARTS, LOCK}
"""What stands in every output that a run has begun; the other names are those of many a program."""
_IGNORED = {"lost+found"}


class Folder(Protocol):
    """Where files are kept, by names below it with `/` between. Every method raises OutputError."""

    def prepare(self, below: str) -> None:
        """Make the folder and the one below it, and prove that files can be written there."""

    def names(self, below: str = "") -> list[str]:
        """What stands directly in it, or in a folder below it, unsorted; nothing when that is not there."""

    def read(self, name: str) -> bytes:
        """A file's bytes."""

    def write(self, name: str, data: bytes) -> None:
        """Make or replace a file. Nobody ever sees a part of it."""

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""

    def clean(self, below: str) -> None:
        """Remove what writers that died have left in it and in the folder below it."""


@dataclass(frozen=True)
class Output:
    """A folder or fsspec URL to write to. Pickles as its URL; every process makes connections of its own.

    A relative folder is made absolute. Raises OutputError for a URL that is malformed or holds credentials.
    """

    url: str

    def __post_init__(self) -> None:
        object.__setattr__(self, "url", _checked(self.url))

    def __getstate__(self) -> dict[str, str]:
        return {"url": self.url}

    def __setstate__(self, state: dict[str, str]) -> None:
        object.__setattr__(self, "url", state["url"])

    @property
    def local_folder(self) -> Path | None:
        """The folder, when it is on this machine's file systems."""
        return None if "://" in self.url else Path(self.url)

    @cached_property
    def _folder(self) -> Folder:
        if self.local_folder:
            from scoring.local_folder import LocalFolder

            return LocalFolder(self.local_folder)
        from scoring.remote_folder import RemoteFolder

        return RemoteFolder(self.url)

    def prepare(self) -> None:
        """Make the folder and prove that it can be written.

        Raises OutputError when it cannot, or when it holds other things: a run litters nobody's folder, and readers
        would take foreign files among the parts for results.
        """
        names = {name for name in self._folder.names() if not name.startswith(".")} - _IGNORED
        foreign = sorted(names - _OURS) or ([] if names & _OURS_ALONE else sorted(names))
        if foreign:
            raise OutputError(f"{self.url} holds other files, {foreign[0]!r} among them; name a new or empty folder")
        foreign = sorted(
            name for name in self._folder.names(PARTS) if not name.startswith(".") and not is_part_name(name)
        )
        if foreign:
            raise OutputError(f"{self.url}/{PARTS} holds files that are not Mien's, {foreign[0]!r} among them")
        self._folder.prepare(PARTS)

    @contextmanager
    def lock(self, *, shared: bool) -> Iterator[None]:
        """Hold the folder, which must be there: for oneself, or shared by the shards of one run.

        It ends with the process at the latest. Only local folders are locked, and not on file systems without locks.
        Raises OutputError when another run holds it.
        """
        if self.local_folder is None:
            yield
            return
        from scoring.local_folder import locked

        with locked(self.local_folder / LOCK, shared=shared):
            yield

    def part_names(self) -> set[str]:
        """The files of the parts that stand, of whatever run and format."""
        return {name for name in self._folder.names(PARTS) if is_part_name(name)}

    def write_part(self, name: str, data: bytes) -> None:
        """Write a part's file, at once."""
        self._folder.write(f"{PARTS}/{name}", data)

    def read_part(self, name: str) -> bytes:
        """The bytes of a part's file."""
        return self._folder.read(f"{PARTS}/{name}")

    def remove_part(self, name: str) -> None:
        """Remove a part's file, if it is there."""
        self._folder.remove(f"{PARTS}/{name}")

    def begin(self) -> None:
        """Mark the output as unfinished, before anything in it changes. Nothing happens when it is."""
        for name in (SUCCESS, SUMMARY, MANIFEST):
            self._folder.remove(name)
        self._folder.clean(PARTS)

    def finish(self, manifest: dict[str, Any], summary: dict[str, Any]) -> None:
        """Mark the output as finished: both files, then `_SUCCESS`."""
        self._folder.clean(PARTS)
        for name, content in ((MANIFEST, manifest), (SUMMARY, summary)):
            self._folder.write(name, (json.dumps(content, indent=2, sort_keys=True) + "\n").encode())
        self._folder.write(SUCCESS, b"")

    def finished(self) -> dict[str, Any] | None:
        """The manifest of a finished output, else None."""
        names = self._folder.names()
        if not {SUCCESS, MANIFEST, SUMMARY} <= set(names):
            return None
        try:
            manifest = json.loads(self._folder.read(MANIFEST))
        except ValueError:
            return None
        return manifest if isinstance(manifest, dict) else None


def _checked(url: str) -> str:
    """The URL without a trailing `/`, a local folder as an absolute path. Raises OutputError."""
    if not url or "\0" in url:
        raise OutputError("the output must be named: a folder or a URL")
    if "://" not in url:
        return str(Path(url).absolute())
    if "::" in url:
        raise OutputError("chained URLs (::) cannot be an output")
    try:
        parts = urlsplit(url)
        suspicious = "@" in parts.netloc and (parts.password is not None or parts.scheme in ("s3", "s3a"))
        _ = parts.port
    except ValueError:  # its text may show a secret: one with a slash in it is taken for host and port
        suspicious = True
    if suspicious:
        raise OutputError(
            "the output's URL is malformed or holds credentials; give those by the environment, where no log shows them"
        )
    if parts.scheme in ("file", "local"):
        return str(Path(unquote(parts.path)).absolute())
    if re.search("[?#]", url):
        raise OutputError("the output's URL cannot have a query or a fragment")
    return url.rstrip("/")
