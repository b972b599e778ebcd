"""The inputs of a run: a folder, a glob, a list file, one picture, or the same at any URL that fsspec knows."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from scoring import list_file
from scoring.addresses import is_url, local_path_of, protocol_of, refuse_unconfined, refuse_unsafe, s3_parts, shown_url
from scoring.connection import Connection
from scoring.errors import InputError, OptionsError
from scoring.fsspec_files import FsspecFiles
from scoring.local_files import LocalFiles, can_confine, shown
from scoring.parts import Entry
from scoring.s3_files import S3Files
from scoring.selection import Selection, has_magic


class Files(Protocol):
    """Where inputs lie, and which of what lies there are meant. Pickles, and may be used from several threads."""

    def list(self) -> Iterator[Entry]:
        """Every input, as a stream, not sorted. Raises InputError."""
        ...

    def read(self, entry: Entry, max_bytes: int) -> bytes:
        """The bytes of one. Raises UnreadableError, TooLargeError, or InputError when the whole input is gone."""
        ...

    def selects(self, path: str) -> bool:
        """Whether a file at this path below the root would be listed if it were there. Asks nobody."""
        ...


@dataclass(frozen=True)
class Source:
    """The inputs of a run. Goes to worker processes and to other machines, so it pickles.

    root: what the paths of entries lie below: a folder or URL, or the list file that names them. Without credentials.
    """

    root: str
    files: Files

    def list(self) -> Iterator[Entry]:
        """Every input, as a stream: not sorted, and a path may come twice. Raises InputError."""
        return self.files.list()

    def read(self, entry: Entry, max_bytes: int) -> bytes:
        """An input's bytes.

        Raises UnreadableError or TooLargeError, which are the file's, or InputError when the input as a whole is gone
        or cannot be reached.
        """
        return self.files.read(entry, max_bytes)

    def selects(self, path: str) -> bool:
        """Whether a file at this path would be listed if it were there; nothing is looked up.

        path: below `root`, with `/` between. False for a list file: its lines say what is listed, not where it lies.
        """
        return self.files.selects(path)


def open_source(input: str, *, recursive: bool = False, include: Sequence[str] = (), confined: bool = False) -> Source:
    """Look an input up.

    input: a folder, a glob, one picture, the same as an fsspec URL, or a local list file (.txt, .lst, .list). One that
    exists as it is written is no glob. recursive: folders with all below them. include: shell patterns (`*.jpg`), see
    `Selection`. confined: a folder only, and no link is followed in it or on the way to it, whatever is swapped later;
    `root` is then free of links: check it, after opening, against what is allowed.

    Raises InputError when there is no such input, OptionsError for patterns and URLs that make no sense.
    """
    if not input or "\0" in input:
        raise InputError("the input is empty" if not input else "the input holds a zero byte")
    if isinstance(include, str):
        raise OptionsError("include is a list of patterns")
    if "://" in input:
        refuse_unsafe(input)
    if is_url(input) and (path := local_path_of(input)) is None:
        if confined:
            refuse_unconfined(input)
        return _remote(input, recursive, include, confined)
    path = local_path_of(input) if is_url(input) else input
    assert path is not None
    return _confined_folder(path, recursive, include) if confined else _local(path, recursive, include)


def _confined_folder(path: str, recursive: bool, include: Sequence[str]) -> Source:
    if not can_confine():
        raise OptionsError("this platform cannot keep a run inside a folder")
    root = os.path.realpath(path)
    files = LocalFiles(root, Selection.of_folder(recursive=recursive, include=include), confined=True)
    files.check()
    return Source(shown(root), files)


def _local(path: str, recursive: bool, include: Sequence[str]) -> Source:
    whole = _absolute(path)
    if os.path.isdir(path):  # noqa: PTH112
        files = LocalFiles(whole, Selection.of_folder(recursive=recursive, include=include))
        files.check()
        return Source(shown(whole), files)
    folder, name = os.path.split(whole)
    if os.path.lexists(path):
        if not os.path.isfile(path):  # noqa: PTH113
            raise InputError(f"{shown(whole)} is neither a folder nor a file that can be read")
        if os.path.splitext(name)[1].lower() in list_file.SUFFIXES:  # noqa: PTH122
            return Source(
                shown(whole), list_file.ListedFiles(whole, Selection.of_folder(recursive=True, include=include))
            )
        return Source(shown(folder), LocalFiles(folder, Selection.of_name(name, include)))
    if not has_magic(path):
        raise InputError(f"{shown(whole)} does not exist")
    fixed, pattern = _split_glob(path)
    root = _absolute(fixed)
    files = LocalFiles(root, Selection.of_glob(pattern, recursive=recursive, include=include))
    files.check()
    return Source(shown(root), files)


def _remote(url: str, recursive: bool, include: Sequence[str], confined: bool) -> Source:
    connection = Connection(url, shown_url(url))
    look_up = _find_s3 if protocol_of(url) in ("s3", "s3a") else _find_fsspec
    files = look_up(connection, url, recursive, include)
    if files is None and has_magic(url) and not confined and protocol_of(url) not in ("http", "https"):
        fixed, pattern = _split_glob(url)
        url, connection = fixed, connection.named(fixed)
        files = _below(connection, fixed, Selection.of_glob(pattern, recursive=recursive, include=include))
    if files is None:
        raise InputError(f"{connection.shown} does not exist")
    if confined and files.selection.exact:
        raise InputError(f"{connection.shown} is not a folder")
    return Source(shown_url(url.rpartition("/")[0] if files.selection.exact else url), files)


def _find_s3(connection: Connection, url: str, recursive: bool, include: Sequence[str]) -> S3Files | None:
    bucket, key = s3_parts(url)
    if not bucket or has_magic(bucket):
        raise InputError(f"{connection.shown} names no bucket")
    prefix = key if not key or key.endswith("/") else f"{key}/"
    files = S3Files(connection, bucket, prefix, Selection.of_folder(recursive=recursive, include=include))
    if files.has_below(prefix) or not key:
        return files
    if not key.endswith("/") and files.has(key):
        folder, slash, name = key.rpartition("/")
        return S3Files(connection, bucket, folder + slash, Selection.of_name(name, include))
    return None


def _find_fsspec(connection: Connection, url: str, recursive: bool, include: Sequence[str]) -> FsspecFiles | None:
    path = connection.path_of(url)
    kind = FsspecFiles(connection, path, Selection.of_folder(recursive=False)).kind(path)
    # To web servers a folder is a page like any other.
    if kind == "directory" or (kind == "file" and url.endswith("/")):
        return FsspecFiles(connection, path, Selection.of_folder(recursive=recursive, include=include))
    if kind == "file":
        folder, _, name = path.rpartition("/")
        return FsspecFiles(connection, folder, Selection.of_name(name, include))
    return None


def _below(connection: Connection, fixed: str, selection: Selection) -> S3Files | FsspecFiles:
    if protocol_of(fixed) in ("s3", "s3a"):
        bucket, key = s3_parts(fixed)
        return S3Files(connection, bucket, f"{key}/" if key else "", selection)
    return FsspecFiles(connection, connection.path_of(fixed), selection)


def _absolute(path: str) -> str:
    """For workers, which have other working directories. What `..` behind a link means, only the system knows."""
    return os.path.realpath(path) if ".." in path.split("/") else os.path.abspath(path)  # noqa: PTH100


def _split_glob(address: str) -> tuple[str, str]:
    """The folder before the first pattern, and the patterns."""
    steps = address.split("/")
    first = next(index for index, step in enumerate(steps) if has_magic(step))
    fixed = "/".join(steps[:first])
    return fixed or ("/" if address.startswith("/") else "."), "/".join(steps[first:])
