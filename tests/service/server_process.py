"""The real service as a group of processes, on a free port of loopback and in a BentoML home of its own."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

REPOSITORY = Path(__file__).parents[2]
_READY_WITHIN_S = 60
_GONE_WITHIN_S = 20
# Below the range of outgoing connections (32768 up), and different in sessions that run side by side.
_ports = iter(range(20_000 + os.getpid() % 100 * 100, 32_000))

Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[str, Labels], float]


@dataclass(frozen=True)
class RunningService:
    """A started service; `pid` is the parent of all its processes."""

    port: int
    pid: int
    log_path: Path

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def samples(self) -> Samples:
        text = httpx.get(f"{self.url}/metrics", timeout=30).raise_for_status().text
        return {
            (sample.name, frozenset(sample.labels.items())): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
        }


def total(samples: Samples, name: str, **labels: str) -> float:
    """The sum of all series of that name that carry these labels."""
    wanted = labels.items()
    return sum(value for (found, has), value in samples.items() if found == name and wanted <= set(has))


def free_port() -> int:
    """A port that nothing listens on, never given twice. (SO_REUSEPORT would let two servers share one unnoticed.)"""
    for port in _ports:
        with socket.socket() as probe:
            try:
                probe.bind(("127.0.0.1", port))
            except OSError:
                continue
        return port
    raise RuntimeError("no free port")


def home_with_models(home: Path, models: Path) -> Path:
    """Make the empty folder `home` a BentoML home with a store's folder of models.

    BentoML wipes a folder for metrics in its home at every start, so servers cannot share a home; the models they can.
    """
    (home / "models").symlink_to(models)
    return home


@contextmanager
def running_service(home: Path, *command: str, cwd: Path = REPOSITORY, **settings: str) -> Iterator[RunningService]:
    """Run `python -m <command>`, else `python -m service`, until the block ends. home: see `home_with_models`."""
    port = free_port()
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MIEN_", "BENTOML_"))}
    log_path = home / "service.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(
            [sys.executable, "-m", *(command or ("service",))],
            cwd=cwd,
            env={**inherited, **settings, "MIEN_PORT": str(port), "BENTOML_PORT": str(port), "BENTOML_HOME": str(home)},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        service = RunningService(port, process.pid, log_path)
        _wait_until_ready(service, process)
        yield service
    finally:
        process.terminate()
        try:
            process.wait(_GONE_WITHIN_S)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait_until_ready(service: RunningService, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(f"{service.url}/readyz", timeout=2).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.2)
    raise RuntimeError(f"the service did not become ready:\n{service.log_path.read_text()[-8000:]}")
