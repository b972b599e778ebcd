"""The real service as a group of processes, on a free port of loopback and in a BentoML home of its own."""

from __future__ import annotations

import itertools
import os
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from prometheus_client.parser import text_string_to_metric_families

from service import local

REPOSITORY = Path(__file__).parents[2]
# Below the range of outgoing connections (32768 up), and different in sessions that run side by side.
_numbers = itertools.count()
_ports = iter(range(20_000 + os.getpid() % 100 * 100, 32_000))

Labels = frozenset[tuple[str, str]]
Samples = dict[tuple[str, Labels], float]


class RunningService(local.LocalService):
    """A started service and its metrics."""

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
    """Run `python -m <command>`, else `python -m service`, until the block ends. home: see `home_with_models`.

    Its queue is patient unless told otherwise: a slow machine is no reason for a 429.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith(("MIEN_", "BENTOML_"))}
    environment = {**inherited, "MIEN_QUEUE_TIMEOUT_MS": "60000", **settings, "BENTOML_HOME": str(home)}
    log_path = home / f"service-{next(_numbers)}.log"
    with local.running_service(
        log_path, environment, command=command or ("service",), port=free_port(), cwd=cwd
    ) as service:
        yield RunningService(service.port, service.pid, service.log_path, service.start_s)
