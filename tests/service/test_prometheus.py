"""A real Prometheus scrapes the real service and answers the queries of docs/metrics.md."""

from __future__ import annotations

import asyncio
import math
import re
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import aiohttp
import httpx
import pytest

from service.metrics import STAGES
from tests.service.server_process import REPOSITORY, RunningService, free_port, total

_UP_WITHIN_S = 60
_ANSWERED_WITHIN_S = 90
P95_BY_STAGE = "histogram_quantile(0.95, sum by (le, stage) (rate(mien_stage_seconds_bucket[1m])))"

needs_prometheus = pytest.mark.skipif(
    shutil.which("prometheus") is None or shutil.which("promtool") is None,
    reason="prometheus and promtool are not installed: tools/prometheus.sh",
)


@dataclass(frozen=True)
class Prometheus:
    """One that is running and scrapes the service every second."""

    url: str

    def ask(self, query: str) -> list[dict[str, Any]]:
        """The series of the answer at this moment. Raises httpx.HTTPStatusError for a query that is wrong."""
        response = httpx.get(f"{self.url}/api/v1/query", params={"query": query}, timeout=30)
        result: list[dict[str, Any]] = response.raise_for_status().json()["data"]["result"]
        return result

    def is_up(self) -> bool:
        """Whether the last scrape of the service succeeded."""
        try:
            return [series["value"][1] for series in self.ask("up{job='mien'}")] == ["1"]
        except (httpx.TransportError, httpx.HTTPStatusError):
            return False


@contextmanager
def running_prometheus(service: RunningService, folder: Path) -> Iterator[Prometheus]:
    """Run `prometheus` on a free port of loopback with its data in the folder, until the block ends."""
    port = free_port()
    configuration = folder / "prometheus.yml"
    configuration.write_text(
        f"""
global:
  scrape_interval: 1s
  scrape_timeout: 1s
scrape_configs:
  - job_name: mien
    static_configs:
      - targets: ["127.0.0.1:{service.port}"]
"""
    )
    command = [
        "prometheus",
        f"--config.file={configuration}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address=127.0.0.1:{port}",
    ]
    log_path = folder / "prometheus.log"
    with log_path.open("wb") as log:
        process = subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=subprocess.STDOUT)
    try:
        prometheus = Prometheus(f"http://127.0.0.1:{port}")
        end = time.monotonic() + _UP_WITHIN_S
        while not prometheus.is_up():
            if time.monotonic() > end or process.poll() is not None:
                raise RuntimeError(f"prometheus does not scrape the service:\n{log_path.read_text()[-4000:]}")
            time.sleep(0.2)
        yield prometheus
    finally:
        process.terminate()
        try:
            process.wait(20)
        except subprocess.TimeoutExpired:
            process.kill()
            process.wait()


@pytest.fixture(scope="module")
def prometheus(served_fake: RunningService, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Prometheus]:
    """A Prometheus that knows the service since before its first picture of this module."""
    with running_prometheus(served_fake, tmp_path_factory.mktemp("prometheus")) as running:
        yield running


def analyze(service: RunningService, picture: bytes) -> None:
    httpx.post(f"{service.url}/v1/analyze", content=picture, timeout=30).raise_for_status()


def documented_queries() -> list[str]:
    return re.findall(r"```promql\n(.*?)```", (REPOSITORY / "docs" / "metrics.md").read_text(), re.DOTALL)


@needs_prometheus
def test_prometheus_answers_a_p95_for_every_stage(
    prometheus: Prometheus, served_fake: RunningService, astronaut_png: bytes
) -> None:
    # A rate needs two scrapes and a rise between them, so the traffic goes on until every stage has one.
    answered: dict[str, float] = {}
    end = time.monotonic() + _ANSWERED_WITHIN_S
    while answered.keys() != set(STAGES) and time.monotonic() < end:
        analyze(served_fake, astronaut_png)
        time.sleep(0.1)
        quantiles = {series["metric"]["stage"]: float(series["value"][1]) for series in prometheus.ask(P95_BY_STAGE)}
        answered = {stage: seconds for stage, seconds in quantiles.items() if not math.isnan(seconds)}

    assert answered.keys() == set(STAGES)
    assert all(0 < seconds <= 30 for seconds in answered.values())


@needs_prometheus
def test_prometheus_understands_every_documented_query(prometheus: Prometheus) -> None:
    queries = documented_queries()

    for query in queries:
        prometheus.ask(query)

    assert queries


@needs_prometheus
def test_promtool_finds_nothing_to_complain_of(served_fake: RunningService, astronaut_png: bytes) -> None:
    analyze(served_fake, astronaut_png)
    exposition = httpx.get(f"{served_fake.url}/metrics", timeout=30).raise_for_status()

    checked = subprocess.run(
        ["promtool", "check", "metrics"], input=exposition.content, capture_output=True, timeout=60
    )

    assert exposition.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert b"mien_requests_total" in exposition.content
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


def test_a_request_that_is_turned_away_counts_under_its_problem_code(served_fake: RunningService) -> None:
    before = total(served_fake.samples(), "mien_rejections_total", reason="too_large")

    refused = httpx.get(f"{served_fake.url}/v1/models", headers={"X-Filler": "x" * 20_000}, timeout=30)

    assert (refused.status_code, refused.json()["code"]) == (413, "too_large")
    # Counted just after the answer has gone out.
    end = time.monotonic() + 10
    while time.monotonic() < end:
        risen = total(served_fake.samples(), "mien_rejections_total", reason="too_large") - before
        if risen:
            break
        time.sleep(0.1)
    assert risen == 1


def test_ten_thousand_unknown_addresses_add_no_series(served_fake: RunningService, astronaut_png: bytes) -> None:
    n_addresses, n_clients = 10_000, 32

    async def ask(session: aiohttp.ClientSession, address: str) -> int:
        async with session.get(f"{served_fake.url}/{address}") as response:
            await response.read()
            return response.status

    async def ask_all(addresses: list[str]) -> list[int]:
        waiting = iter(addresses)
        connector = aiohttp.TCPConnector(limit=n_clients)
        async with aiohttp.ClientSession(connector=connector, timeout=aiohttp.ClientTimeout(60)) as session:

            async def client() -> list[int]:
                return [await ask(session, address) for address in waiting]

            return [
                status
                for statuses in await asyncio.gather(*(client() for _ in range(n_clients)))
                for status in statuses
            ]

    # Whatever a first picture and a first unknown address make is there before the count.
    analyze(served_fake, astronaut_png)
    asyncio.run(ask_all(["never-seen", "v1/never-seen", "v1/models/never-seen"]))
    before = served_fake.samples().keys()
    statuses = asyncio.run(ask_all([f"{'v1/' * (index % 2)}{index:x}/lost-{index}" for index in range(n_addresses)]))

    assert len(statuses) == n_addresses
    assert set(statuses) == {404}
    assert served_fake.samples().keys() == before
