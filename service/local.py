"""The service as a child process of this one, on a port of loopback: for the demo, benchmarks and tests."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx

_GONE_WITHIN_S = 40


class StartError(RuntimeError):
    """The service did not become ready; the text is the end of its log."""


@dataclass(frozen=True)
class LocalService:
    """A service that was ready. pid: of the parent of all its processes. start_s: from its start until it was ready."""

    port: int
    pid: int
    log_path: Path
    start_s: float

    @property
    def url(self) -> str:
        """Base address."""
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    """A port of loopback that nothing listened on a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_service(
    log_path: Path,
    environment: Mapping[str, str],
    *,
    command: Sequence[str] = ("service",),
    port: int | None = None,
    cwd: Path | None = None,
    within_s: float = 60,
) -> Iterator[LocalService]:
    """Run `python -m <command>` until the block ends, and yield it once it is ready.

    environment: all of its variables but the port's. Raises StartError when it ends, or is not ready within `within_s`.
    It gets SIGTERM in the end.
    """
    port = port or free_port()
    started = time.monotonic()
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *command],
            cwd=cwd,
            env={**environment, "MIEN_PORT": str(port), "BENTOML_PORT": str(port)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        while not is_ready(f"http://127.0.0.1:{port}"):
            if process.poll() is not None or time.monotonic() > started + within_s:
                raise StartError(f"the service did not become ready:\n{log_path.read_text(errors='replace')[-8000:]}")
            time.sleep(0.1)
        yield LocalService(port, process.pid, log_path, time.monotonic() - started)
    finally:
        process.terminate()
        try:
            process.wait(_GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def is_ready(url: str) -> bool:
    """True once pictures get through."""
    try:
        return httpx.get(f"{url}/readyz", timeout=2).status_code == 200
    except httpx.TransportError:
        return False
