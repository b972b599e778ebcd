"""SIGTERM in the middle of traffic: what was sent is answered, what comes later is refused."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path

import httpx
import psutil
import pytest

from tests.service.server_process import RunningService, running_service

N_CLIENTS = 16
_WAIT_S = 60


async def _traffic_through_the_end(service: RunningService, picture: bytes, kept_alive: bool) -> Counter[str]:
    """What became of the last requests of clients that send one after the other until one fails."""
    limits = httpx.Limits(max_keepalive_connections=None if kept_alive else 0)
    n_answered, outcomes = Counter[int](), Counter[str]()
    everybody_is_busy = asyncio.Event()

    async def client(number: int) -> None:
        async with httpx.AsyncClient(timeout=_WAIT_S, limits=limits) as http:
            while True:
                try:
                    response = await http.post(f"{service.url}/v1/analyze", content=picture)
                except httpx.HTTPError as error:
                    outcomes[type(error).__name__] += 1
                    return
                if response.status_code != 200:
                    outcomes[str(response.status_code)] += 1
                n_answered[number] += 1
                if len(n_answered) == N_CLIENTS:
                    everybody_is_busy.set()

    clients = [asyncio.create_task(client(number)) for number in range(N_CLIENTS)]
    await asyncio.wait_for(everybody_is_busy.wait(), _WAIT_S)
    psutil.Process(service.pid).terminate()
    await asyncio.wait_for(asyncio.gather(*clients), _WAIT_S)
    return outcomes


@pytest.mark.slow  # test_faults shows the same of a service with its runners
@pytest.mark.parametrize("kept_alive", [True, False])
def test_no_request_is_lost_when_the_service_ends_under_load(
    tmp_path: Path, astronaut_png: bytes, kept_alive: bool
) -> None:
    with running_service(tmp_path, MIEN_MODELS="fake", MIEN_DETECTOR="fake", MIEN_DETECTOR_WORKERS="1") as service:
        supervisor = psutil.Process(service.pid)

        outcomes = asyncio.run(_traffic_through_the_end(service, astronaut_png, kept_alive))

        assert outcomes == {"ConnectError": N_CLIENTS}
        assert supervisor.wait(_WAIT_S) == 0
