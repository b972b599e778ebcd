"""Files of this machine's file system: listed as a stream, and read without trust in what lies at a path by then."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NoReturn

from handlers.errors import TooLargeError
from scoring.errors import InputError, UnreadableError
from scoring.parts import Entry
from scoring.selection import Selection

_OPEN_FOLDER = os.O_RDONLY | getattr(os, "O_DIRECTORY", 0)
# Passing through a folder needs no right to list it, which O_RDONLY would.
_PASS_FOLDER = getattr(os, "O_PATH", os.O_RDONLY) | getattr(os, "O_DIRECTORY", 0)
_NO_LINK = getattr(os, "O_NOFOLLOW", 0)
# A FIFO without a writer must not hold us up, and a terminal must not become ours.
_OPEN_FILE = os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_NOCTTY", 0) | getattr(os, "O_BINARY", 0)

_CHUNK_BYTES = 1 << 20
_OUR_OWN_LIMITS = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_REASONS = {
    errno.ENOENT: "there is no such file",
    errno.EACCES: "permission denied",
    errno.EPERM: "permission denied",
    errno.ELOOP: "it is a symbolic link that is not followed",
    errno.ENOTDIR: "a part of its path is not a folder",
    errno.ENXIO: "not a regular file",
    errno.EISDIR: "not a regular file",
}


def can_confine() -> bool:
    """Whether this platform can open files below a folder without following links."""
    return bool(_NO_LINK) and os.open in os.supports_dir_fd and os.scandir in os.supports_fd


def shown(path: str) -> str:
    """A path as any terminal or UTF-8 file can carry it."""
    return os.fsencode(path).decode("utf-8", "backslashreplace")


def entry_of(path: str, status: os.stat_result) -> Entry:
    """The entry of a regular file."""
    return Entry(path, status.st_size, str(status.st_mtime_ns))


def read_regular(descriptor: int, max_bytes: int) -> bytes:
    """Read an open file, at most one byte more than allowed.

    Raises UnreadableError when it is not a regular file, TooLargeError, and OSError.
    """
    status = os.fstat(descriptor)
    if not stat.S_ISREG(status.st_mode):
        raise UnreadableError("not a regular file")
    if status.st_size > max_bytes:
        raise TooLargeError(f"{status.st_size} bytes, over the limit of {max_bytes}")
    chunks: list[bytes] = []
    n_left = max_bytes + 1  # it may have grown since
    while n_left and (chunk := os.read(descriptor, min(n_left, max(status.st_size + 1, 4096), _CHUNK_BYTES))):
        chunks.append(chunk)
        n_left -= len(chunk)
    if not n_left:
        raise TooLargeError(f"over the limit of {max_bytes} bytes")
    return b"".join(chunks)


def read_file(path: str, max_bytes: int) -> bytes:
    """Read the file at a path, following links. Raises UnreadableError, TooLargeError and OSError."""
    descriptor = os.open(path, _OPEN_FILE)
    try:
        return read_regular(descriptor, max_bytes)
    finally:
        os.close(descriptor)


def why_unreadable(error: OSError | ValueError) -> UnreadableError:
    """What a row says about a file that cannot be read: no path, which may be nobody's business.

    Raises InputError when the trouble is this process's and not the file's.
    """
    if not isinstance(error, OSError) or error.errno is None:
        return UnreadableError("its name is not one of a file")
    if error.errno in _OUR_OWN_LIMITS:
        raise InputError(f"the input cannot be read: {os.strerror(error.errno)}") from error
    return UnreadableError(_REASONS.get(error.errno) or os.strerror(error.errno).lower())


@dataclass(frozen=True)
class LocalFiles:
    """Files below a folder.

    root: the absolute path of the folder. Links to folders are never followed; links to files are, unless `confined`:
    then no link is followed anywhere, not even in `root`, which must be free of them, whatever is swapped meanwhile.
    """

    root: str
    selection: Selection
    confined: bool = False

    def list(self) -> Iterator[Entry]:
        """Every file that is selected, one folder after the other, not sorted. Raises InputError.

        A file that cannot be looked at (a dangling link, say) is listed with a size of None.
        """
        pending = [("", self.selection.start())]
        while pending:
            folder, levels = pending.pop()
            descriptor = self._open_listed(folder)
            if descriptor is None:
                continue
            try:
                for name, entry in self._scan(descriptor, folder, self.selection.only_name(levels)):
                    path = f"{folder}/{name}" if folder else name
                    if entry is None:
                        below = self.selection.enter(levels, name)
                        if below:
                            pending.append((path, below))
                    elif self.selection.picks(levels, name, path):
                        yield entry
            except OSError as error:
                raise self._unlistable(folder, error) from error
            finally:
                os.close(descriptor)

    def read(self, entry: Entry, max_bytes: int) -> bytes:
        """The file's bytes. Raises UnreadableError, TooLargeError, and InputError when the whole folder is gone."""
        try:
            descriptor = self._open(entry.path, _OPEN_FILE)
            try:
                return read_regular(descriptor, max_bytes)
            finally:
                os.close(descriptor)
        except (OSError, ValueError) as error:
            reason = why_unreadable(error)
        except UnreadableError as error:
            reason = error
        self._check_root()
        raise reason

    def selects(self, path: str) -> bool:
        """Whether a file at this path would be listed if it were there."""
        return self.selection.selects(path)

    def check(self) -> None:
        """Raises InputError when the folder is not there or cannot be listed."""
        try:
            os.close(self._open("", _OPEN_FOLDER))
        except OSError as error:
            raise self._unlistable("", error) from error

    def _open_listed(self, folder: str) -> int | None:
        try:
            return self._open(folder, _OPEN_FOLDER | (_NO_LINK if folder else 0))
        except OSError as error:
            if folder and error.errno in (errno.ENOENT, errno.ENOTDIR, errno.ELOOP):
                return None  # removed, or replaced by something else, since its parent was listed
            raise self._unlistable(folder, error) from error

    def _scan(self, descriptor: int, folder: str, only_name: str | None) -> Iterator[tuple[str, Entry | None]]:
        """Names in an open folder, each with its entry, or with None when it is a folder."""
        if only_name is not None:
            try:
                status = os.stat(only_name, dir_fd=descriptor, follow_symlinks=False)
            except FileNotFoundError:
                return
            yield from self._look(descriptor, folder, only_name, stat.S_IFMT(status.st_mode))
            return
        with os.scandir(descriptor) as items:
            for item in items:
                # The kind comes with the name on most file systems: no call for folders, FIFOs and the like.
                if item.is_symlink():
                    kind = stat.S_IFLNK
                elif item.is_dir(follow_symlinks=False):
                    kind = stat.S_IFDIR
                else:
                    kind = stat.S_IFREG if item.is_file(follow_symlinks=False) else 0
                yield from self._look(descriptor, folder, item.name, kind)

    def _look(self, descriptor: int, folder: str, name: str, kind: int) -> Iterator[tuple[str, Entry | None]]:
        path = f"{folder}/{name}" if folder else name
        if kind == stat.S_IFDIR:
            yield name, None
        elif kind == stat.S_IFREG or (kind == stat.S_IFLNK and not self.confined):
            try:
                status = os.stat(name, dir_fd=descriptor, follow_symlinks=not self.confined)
            except OSError as error:
                if kind == stat.S_IFLNK or error.errno != errno.ENOENT:
                    yield name, Entry(path, None, "")
                return
            if stat.S_ISREG(status.st_mode):
                yield name, entry_of(path, status)

    def _open(self, path: str, flags: int) -> int:
        """Open what lies at a path below the root; the root itself for an empty one."""
        if not self.confined:
            try:
                return os.open(os.path.join(self.root, path) if path else self.root, flags)  # noqa: PTH118
            except OSError as error:
                if error.errno != errno.ENAMETOOLONG or "/" not in path:
                    raise
        return self._open_stepwise(path, flags)

    def _open_stepwise(self, path: str, flags: int) -> int:
        """Folder by folder, which no link and no length of the path can lead astray."""
        steps = path.split("/") if path else []
        if any(step in ("", ".", "..") for step in steps):
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT))
        if self.confined:
            start, no_link = "/", _NO_LINK
            steps = [step for step in self.root.split("/") if step] + steps
        else:
            start, no_link = self.root, 0
        descriptor = os.open(start, _PASS_FOLDER)
        try:
            for step in steps[:-1]:
                below = os.open(step, _PASS_FOLDER | _NO_LINK, dir_fd=descriptor)
                os.close(descriptor)
                descriptor = below
            return os.open(steps[-1] if steps else ".", flags | no_link, dir_fd=descriptor)
        finally:
            os.close(descriptor)

    def _check_root(self) -> None:
        """A missing file may be the first sign that all of them are: an unmounted disk leaves an empty folder."""
        try:
            descriptor = self._open("", _OPEN_FOLDER)
            try:
                with os.scandir(descriptor) as items:
                    empty = next(items, None) is None
            finally:
                os.close(descriptor)
        except OSError as error:
            self._gone(os.strerror(error.errno or errno.EIO))
        if empty:
            self._gone("the folder is empty")

    def _gone(self, reason: str) -> NoReturn:
        raise InputError(f"{shown(self.root)} is not there any more: {reason}")

    def _unlistable(self, folder: str, error: OSError) -> InputError:
        name = shown(f"{self.root}/{folder}" if folder else self.root)
        if error.errno == errno.ENOENT:
            return InputError(f"{name} does not exist")
        if error.errno == errno.ENOTDIR:
            return InputError(f"{name} is not a folder")
        return InputError(f"{name} cannot be listed: {os.strerror(error.errno or errno.EIO)}")
