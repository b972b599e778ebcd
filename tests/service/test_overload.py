"""More load than the service can take. Times and the full half minute: `python -m benchmarks.overload`."""

from __future__ import annotations

import asyncio
from pathlib import Path

import httpx
import pytest

from benchmarks.overload import measure
from benchmarks.scenes import composite_scene
from service.client import AsyncClient, OverloadedError
from tests.service.server_process import home_with_models, running_service, total

SECONDS = 5.0


@pytest.fixture(scope="module")
def impatient(store: Path, tmp_path_factory: pytest.TempPathFactory):
    """The service on the real models, with a short queue."""
    home = home_with_models(tmp_path_factory.mktemp("impatient"), store / "models")
    with running_service(home, MIEN_QUEUE_SIZE="8", MIEN_QUEUE_TIMEOUT_MS="500", MIEN_CONCURRENCY="4") as service:
        yield service


@pytest.mark.slow
def test_ten_times_the_sustainable_load_is_answered_with_200_and_429_in_bounded_memory(impatient) -> None:
    result = measure(impatient, composite_scene(640, 480, 6).jpeg, SECONDS, queue_bound_s=0.5)

    assert set(result.statuses) == {"200", "429"}
    assert result.statuses["429"] > result.statuses["200"]
    assert result.memory_peak_mib < result.memory_before_mib + 400
    after = impatient.samples()
    assert total(after, "mien_rejections_total", reason="overloaded") >= result.statuses["429"]
    assert total(after, "mien_pictures_queued") == total(after, "mien_pictures_in_progress") == 0


def test_a_refusal_says_when_to_come_back_and_the_client_does(impatient, astronaut_png: bytes) -> None:
    async def main() -> tuple[list[httpx.Response], int]:
        async with httpx.AsyncClient(base_url=impatient.url, timeout=60) as http:
            responses = await asyncio.gather(*(http.post("/v1/analyze", content=astronaut_png) for _ in range(64)))
        async with AsyncClient(impatient.url, timeout_s=60, retries=50) as client:
            answers = await asyncio.gather(*(client.analyze(astronaut_png) for _ in range(24)), return_exceptions=True)
        return responses, sum(isinstance(answer, OverloadedError) for answer in answers)

    responses, n_given_up = asyncio.run(main())
    refused = [response for response in responses if response.status_code == 429]

    assert refused
    assert {response.status_code for response in responses} == {200, 429}
    assert all(int(response.headers["retry-after"]) >= 1 for response in refused)
    assert {response.json()["code"] for response in refused} == {"overloaded"}
    assert n_given_up == 0
