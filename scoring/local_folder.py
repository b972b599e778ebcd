"""A folder on this machine's file systems, whose files appear whole, and stay when the power fails."""

from __future__ import annotations

import contextlib
import errno
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from scoring.errors import OutputError

_logger = logging.getLogger(__name__)
_TEMPORARY = ".writing-"
_NO_LOCKS_HERE = {errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL}


class LocalFolder:
    """See `scoring.output.Folder`.

    A file is written under a temporary name, which begins with a dot so that readers of data sets pass it over, and
    which its writer holds locked: one that nobody holds is left over from a process that died.
    """

    def __init__(self, path: Path) -> None:
        self._path = path

    def prepare(self, below: str) -> None:
        """See `Folder`."""
        with self._explained("written"):
            (self._path / below).mkdir(parents=True, exist_ok=True)
        with contextlib.suppress(OSError):  # a folder that may not be read cannot be told to keep what it holds
            _sync_folder(self._path.parent)
        probe = f"{_TEMPORARY}probe-{secrets.token_hex(4)}"  # cleaned away if this process dies here
        self.write(probe, b"probe\n")
        self.remove(probe)
        with self._explained("written"):  # asked only: a run that finds nothing to do leaves even its time alone
            effective = os.access in os.supports_effective_ids
            if not os.access(self._path / below, os.W_OK | os.X_OK, effective_ids=effective):
                raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

    def names(self, below: str = "") -> list[str]:
        """See `Folder`."""
        with self._explained("read"):
            try:
                return [path.name for path in (self._path / below).iterdir()]
            except FileNotFoundError:
                return []

    def read(self, name: str) -> bytes:
        """See `Folder`."""
        with self._explained("read"):
            return (self._path / name).read_bytes()

    def write(self, name: str, data: bytes) -> None:
        """See `Folder`."""
        with self._explained("written"):
            _write(self._path / name, data)

    def remove(self, name: str) -> None:
        """See `Folder`."""
        with self._explained("written"):
            (self._path / name).unlink(missing_ok=True)

    def clean(self, below: str) -> None:
        """See `Folder`."""
        for folder in ("", below):
            for name in self.names(folder):
                if name.startswith(_TEMPORARY):
                    with self._explained("written"):
                        _remove_if_left_over(self._path / folder / name)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise OutputError(f"the output folder {self._path} cannot be {verb}: {_cause(error)}") from error


def _write(target: Path, data: bytes) -> None:
    temporary, file = _begin_temporary(target.parent)
    try:
        with file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
            temporary.replace(target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _sync_folder(target.parent)


def _begin_temporary(folder: Path) -> tuple[Path, BinaryIO]:
    """An open temporary file that this process holds locked. Where there are no locks none is ever cleaned away."""
    while True:
        path = folder / f"{_TEMPORARY}{secrets.token_hex(8)}"
        file = path.open("xb")
        try:
            _flock(file.fileno(), shared=False)
            path.stat()
        except OSError as error:
            if error.errno in _NO_LOCKS_HERE:
                return path, file
            file.close()
            if error.errno not in (errno.EWOULDBLOCK, errno.ENOENT):
                path.unlink(missing_ok=True)
                raise
            # A cleaner came between the making of the file and its lock; it removes it.
        else:
            return path, file


def _sync_folder(folder: Path) -> None:
    if os.name == "nt":
        return
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.EBADF):  # some network file systems cannot
            raise
    finally:
        os.close(descriptor)


def _remove_if_left_over(temporary: Path) -> None:
    try:
        with temporary.open("r+b") as file:
            _flock(file.fileno(), shared=False)
            temporary.unlink()
    except FileNotFoundError:
        pass
    except OSError as error:
        if error.errno not in {errno.EWOULDBLOCK, *_NO_LOCKS_HERE}:
            raise


@contextmanager
def locked(path: Path, *, shared: bool) -> Iterator[None]:
    """Hold a lock on this file, which is made and left there; the kernel lets go of it when the process ends.

    On a file system without locks a warning is logged and nothing is held. Raises OutputError when another process
    holds it.
    """
    folder = path.parent
    try:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise OutputError(f"the output folder {folder} cannot be written: {_cause(error)}") from error
    try:
        try:
            _flock(descriptor, shared=shared)
        except OSError as error:
            if error.errno == errno.EWOULDBLOCK:
                raise OutputError(f"another run works in the output folder {folder}") from error
            if error.errno not in _NO_LOCKS_HERE:
                raise OutputError(f"the output folder {folder} cannot be locked: {_cause(error)}") from error
            _logger.warning("%s cannot be locked (%s): see to it that no other run works there", folder, _cause(error))
        yield
    finally:
        os.close(descriptor)


def _flock(descriptor: int, *, shared: bool) -> None:
    """Raises OSError: EWOULDBLOCK when another holds it, one of `_NO_LOCKS_HERE` where there are none."""
    try:
        import fcntl
    except ImportError as error:
        raise OSError(errno.ENOSYS, "this platform has no flock") from error
    fcntl.flock(descriptor, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)


def _cause(error: OSError) -> str:
    text = os.strerror(error.errno) if error.errno else str(error)
    return text[:1].lower() + text[1:]
