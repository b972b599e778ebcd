"""A Ray to work on: one that runs in this process already, a cluster, or one of our own on this machine."""

from __future__ import annotations

import logging
import os
import shutil
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from handlers.cores import usable_cores
from scoring.errors import EngineError, OptionsError

_OBJECT_STORE_BYTES = 200 * 2**20
"""Ray's default is a third of the memory. What passes through are names of files and counts."""

_LONGEST_FOLDER = 40
"""Ray puts some sixty characters of its own behind it, and a socket's address ends at 107."""

_PROBE_S = 10.0

_QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",
    # Its errors are no news: it announces every retry, and for each actor that it might not be restarted.
    "RAY_BACKEND_LOG_LEVEL": "fatal",
    # It prints a stack for SIGTERM, which is the caller's to handle.
    "RAY_DISABLE_FAILURE_SIGNAL_HANDLER": "1",
    # Ray warns that it will leave this variable alone in some later release; no worker here needs a GPU.
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}

_UNNICED = {"RAY_worker_niceness": "0"}
"""Ray lowers the priority of its workers to 15; the workers of the local engine have the caller's."""


@contextmanager
def ray_session(address: str | None, n_workers: int | None) -> Iterator[int]:
    """A Ray to work on; yields for how many workers.

    A Ray that this process is connected to is used and left alone, whatever the address. Else a cluster at the address
    is joined, and left at the end; without an address Ray is started here, and ended at the end. n_workers: None is
    all cores of that Ray. Raises OptionsError without the package ray or for an address of Ray Client, EngineError
    when there is no Ray to be had.
    """
    try:
        with _environment(_QUIET):  # some of it is read once, by the import
            import ray
            import ray.data
    except ImportError as error:
        raise OptionsError("the ray engine needs the package ray: pip install 'mien[ray]'") from error
    if address is not None and address.startswith("ray://"):
        raise OptionsError(
            "ray:// is an address of Ray Client, which Ray Data does not work with: "
            "start the run on a node of the cluster with --ray-address auto, or with `ray job submit`"
        )
    if ray.is_initialized():
        yield n_workers or _cores(ray)
    elif address in (None, "local"):
        with _own_ray(ray, n_workers or usable_cores()) as n_own_workers:
            yield n_own_workers
    else:
        _probe(ray, address)
        with _environment(_QUIET):
            _start(ray, address=address)
        try:
            yield n_workers or _cores(ray)
        finally:
            ray.shutdown()


def _probe(ray: Any, address: str) -> None:
    """Ray itself tries a wrong address for a quarter of an hour. Raises EngineError. `auto` is known by Ray only."""
    host, colon, port = address.rpartition(":")
    if not colon:
        return
    hosts = [host.strip("[]")]
    if host in ("localhost", "127.0.0.1"):
        hosts.append(ray.util.get_node_ip_address())  # what Ray takes it for
    problem: Exception | None = None
    for candidate in hosts:
        try:
            socket.create_connection((candidate, int(port)), _PROBE_S).close()
            return
        except (OSError, ValueError, OverflowError) as error:
            problem = error
    raise EngineError(f"no Ray at {address}: {problem}") from problem


def _cores(ray: Any) -> int:
    return max(1, int(ray.cluster_resources().get("CPU", 1)))


@contextmanager
def _own_ray(ray: Any, n_workers: int) -> Iterator[int]:
    folder = _short_folder()
    try:
        with _environment({**_QUIET, **_UNNICED}):
            _start(
                ray,
                address="local",  # without it, Ray joins any cluster that happens to run on this machine
                num_cpus=n_workers,
                num_gpus=0,
                include_dashboard=False,
                object_store_memory=_OBJECT_STORE_BYTES,
                _temp_dir=str(folder),
            )
        try:
            yield n_workers
        finally:
            ray.shutdown()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _start(ray: Any, **options: Any) -> None:
    try:
        ray.init(logging_level=logging.ERROR, log_to_driver=False, **options)
    except Exception as error:  # Ray raises whatever it likes: ConnectionError, ValueError, RuntimeError, OSError
        ray.shutdown()
        where = "here" if options["address"] == "local" else f"at {options['address']}"
        reason = str(error).strip().partition("\n")[0] or type(error).__name__
        raise EngineError(f"no Ray {where}: {reason}") from error


def _short_folder() -> Path:
    parent = tempfile.gettempdir()
    if len(parent) > _LONGEST_FOLDER and os.name == "posix":
        parent = "/tmp"
    return Path(tempfile.mkdtemp(prefix="mien-ray-", dir=parent))


@contextmanager
def _environment(variables: dict[str, str]) -> Iterator[None]:
    """Set what is not set, for the processes that start meanwhile."""
    added = [name for name in variables if name not in os.environ]
    for name in added:
        os.environ[name] = variables[name]
    try:
        yield
    finally:
        for name in added:
            os.environ.pop(name, None)
