"""The only folder that the service writes: its layout, its lock, and the environment that keeps workers in it."""

from __future__ import annotations

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

# macOS takes 103 bytes, Linux 107; one limit, so that what works on one works on the other.
MAX_SOCKET_PATH_BYTES = 103
_LOCK = "lock"
# What a new volume holds before anybody has written to it.
_NOBODYS = {"lost+found"}


class StateError(Exception):
    """The state folder cannot be used; the message names MIEN_STATE_DIR."""


@dataclass(frozen=True)
class StateFolder:
    """A state folder that this process owns.

    `run/` has the sockets, `metrics/` the counters of all processes, `bentoml/` the workers' BENTOML_HOME, `tmp/` their
    temporary files, and `numba/` the compiled kernels where they cannot lie beside their source.
    """

    path: Path

    @property
    def metrics(self) -> Path:
        """Folder of prometheus-client's files, one and more a process."""
        return self.path / "metrics"

    def socket_path(self, name: str) -> Path:
        """Where the unix socket `name` lies. Raises StateError when the system takes no path of that length."""
        path = self.path / "run" / f"{name}.sock"
        if len(os.fsencode(path)) > MAX_SOCKET_PATH_BYTES:
            raise StateError(
                f"MIEN_STATE_DIR: {self.path} is too long, a socket's path in it would have more than "
                f"{MAX_SOCKET_PATH_BYTES} bytes"
            )
        return path

    def environment(self) -> dict[str, str]:
        """The environment variables that make BentoML, prometheus-client, tempfile and numba write here only."""
        variables = {
            "BENTOML_HOME": str(self.path / "bentoml"),
            "PROMETHEUS_MULTIPROC_DIR": str(self.metrics),
            "TMPDIR": str(self.path / "tmp"),
        }
        if "NUMBA_CACHE_DIR" not in os.environ and not _kernels_can_be_cached():
            variables["NUMBA_CACHE_DIR"] = str(self.path / "numba")
        return variables


@contextmanager
def owned_state_folder(wanted: Path | None, store: Path) -> Iterator[StateFolder]:
    """Own a state folder until the block ends, with what an earlier owner left in `run`, `metrics` and `tmp` removed.

    wanted: made when it is missing; None is a private temporary folder, removed in the end.
    store: the BentoML home whose models the workers see.
    Raises StateError when another process owns the folder, or it cannot be made or holds something else.
    """
    with ExitStack() as owned:
        if wanted is None:
            path = Path(tempfile.mkdtemp(prefix="mien-"))
            owned.callback(shutil.rmtree, path, ignore_errors=True)
        else:
            path = wanted.absolute()
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            _check_that_it_is_ours(path)
            lock = owned.enter_context((path / _LOCK).open("a"))
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            _lay_out(path, store)
        except BlockingIOError:
            raise StateError(f"MIEN_STATE_DIR: another service uses {path}") from None
        except OSError as error:
            raise StateError(f"MIEN_STATE_DIR: {path} cannot be used: {error}") from error
        yield StateFolder(path)


def _check_that_it_is_ours(path: Path) -> None:
    # Folders in it are emptied, which nobody wants of /var or a home by a slip in a setting.
    found = {entry.name for entry in path.iterdir()} - _NOBODYS
    if found and _LOCK not in found:
        raise StateError(f"MIEN_STATE_DIR: {path} is not empty, and no state folder of Mien; name an empty or new one")


def _lay_out(path: Path, store: Path) -> None:
    for name in ("run", "metrics", "tmp"):
        shutil.rmtree(path / name, ignore_errors=True)
        (path / name).mkdir(mode=0o700)
    home = path / "bentoml"
    home.mkdir(mode=0o700, exist_ok=True)
    if home.resolve() != store.resolve():
        _link_models(home / "models", store / "models")


def _link_models(link: Path, models: Path) -> None:
    if link.is_symlink():
        link.unlink()
    elif link.is_dir():
        link.rmdir()  # BentoML's own, empty, from a start when the store was not there yet
    if models.is_dir():
        link.symlink_to(models.absolute())


def _kernels_can_be_cached() -> bool:
    spec = find_spec("handlers")
    assert spec is not None
    assert spec.submodule_search_locations is not None
    folder = Path(spec.submodule_search_locations[0]) / "detection"
    cache = folder / "__pycache__"
    return os.access(cache if cache.is_dir() else folder, os.W_OK)
