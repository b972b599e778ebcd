"""Processes killed and stopped under load: every answer is right, or an honest refusal."""

from __future__ import annotations

import asyncio
import json
import os
import signal
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import psutil
import pytest

from tests.pictures import encoded, noise
from tests.service.server_process import RunningService, home_with_models, running_service

N_REQUESTS, N_CLIENTS = 500, 16

FAKES = {"MIEN_MODELS": "fake", "MIEN_DETECTOR": "fake"}


@pytest.fixture(scope="module")
def pictures() -> list[bytes]:
    """Large enough that some are always in work, each with an answer of its own."""
    return [encoded(noise(480, 500 + index, seed=index), "JPEG") for index in range(8)]


@pytest.fixture
def home(tmp_path: Path) -> Path:
    """A BentoML home without a model: the fakes need none."""
    models = tmp_path / "no-models"
    models.mkdir()
    return home_with_models(tmp_path, models)


@pytest.fixture(
    params=[pytest.param({}, marks=pytest.mark.slow), {"BENTOML_CONTAINERIZED": "1"}], ids=["plain", "container"]
)
def service(request: pytest.FixtureRequest, home: Path) -> Iterator[RunningService]:
    """The real processes, as BentoML's own image would run them: there its process manager replaces nobody."""
    with running_service(home, **FAKES, **request.param) as running:
        yield running


def _runner_pids(service: RunningService, name: str) -> set[int]:
    pids = set()
    for child in psutil.Process(service.pid).children():
        try:
            words = child.cmdline()
        except psutil.Error:
            continue
        if name in words:
            pids.add(child.pid)
    return pids


async def _analyze_many(
    url: str, pictures: list[bytes], singly: list[dict[str, object]], at: dict[int, Callable[[], None]]
) -> Counter[str]:
    """Send the pictures in turn from many clients; what the answers were. at: what to do before which request."""
    outcomes: Counter[str] = Counter()
    todo = iter(range(N_REQUESTS))

    async with httpx.AsyncClient(base_url=url, timeout=60) as http:

        async def client() -> None:
            for number in todo:
                if number in at:
                    at[number]()
                which = number % len(pictures)
                response = await http.post("/v1/analyze", content=pictures[which])
                right = response.status_code == 200 and response.json() == singly[which]
                refused = response.status_code == 503 and response.json()["code"] == "unavailable"
                outcomes["right" if right else "refused" if refused else f"wrong: {response.text[:200]}"] += 1

        await asyncio.gather(*(client() for _ in range(N_CLIENTS)))
    return outcomes


def test_killed_runners_make_no_wrong_answer_and_are_back_by_themselves(
    service: RunningService, pictures: list[bytes]
) -> None:
    singly = [httpx.post(f"{service.url}/v1/analyze", content=picture, timeout=60).json() for picture in pictures]
    assert len({repr(answer) for answer in singly}) == len(pictures), "a mix-up would not show"
    before = {name: _runner_pids(service, name) for name in ("mien_detector", "mien_emotion")}
    killed: set[str] = set()

    def kill(name: str) -> Callable[[], None]:
        def at_once() -> None:
            killed.add(name)
            for pid in before[name]:
                os.kill(pid, signal.SIGKILL)

        return at_once

    outcomes = asyncio.run(
        _analyze_many(service.url, pictures, singly, {100: kill("mien_detector"), 300: kill("mien_emotion")})
    )

    assert killed == set(before)
    assert set(outcomes) <= {"right", "refused"}
    assert outcomes["right"] > N_REQUESTS - 3 * 2 * N_CLIENTS
    for name, pids in before.items():
        assert _runner_pids(service, name).isdisjoint(pids)
        assert len(_runner_pids(service, name)) == len(pids)
    again = asyncio.run(_analyze_many(service.url, pictures, singly, {}))
    assert again == {"right": N_REQUESTS}


def test_sigterm_under_load_answers_all_that_was_accepted(home: Path, pictures: list[bytes]) -> None:
    outcomes: dict[str, str] = {}

    async def load(service: RunningService) -> None:
        stop_after = 100
        gone = asyncio.Event()

        async def client(http: httpx.AsyncClient, index: int) -> None:
            number = 0
            while not gone.is_set():
                request_id = f"c{index}-{number}"
                number += 1
                try:
                    response = await http.post(
                        "/v1/analyze", content=pictures[index % len(pictures)], headers={"X-Request-ID": request_id}
                    )
                    outcomes[request_id] = str(response.status_code)
                except httpx.TransportError as error:
                    outcomes[request_id] = type(error).__name__
                    gone.set()
                if len(outcomes) == stop_after:
                    os.kill(service.pid, signal.SIGTERM)

        async with httpx.AsyncClient(base_url=service.url, timeout=60) as http:
            await asyncio.gather(*(client(http, index) for index in range(N_CLIENTS)))

    with running_service(home, **FAKES) as service:
        process = psutil.Process(service.pid)
        children = process.children(recursive=True)
        asyncio.run(load(service))
        _, alive = psutil.wait_procs([process, *children], timeout=30)
        with pytest.raises(httpx.ConnectError):
            httpx.get(f"{service.url}/livez")
        log = service.log_path.read_text()

    assert not [each for each in alive if each.status() != psutil.STATUS_ZOMBIE]
    lines = [json.loads(line) for line in log.splitlines() if line.startswith("{")]
    accepted = {line["request_id"]: line["status"] for line in lines if line["message"] == "request"}
    unanswered = [request_id for request_id, outcome in outcomes.items() if not outcome.isdigit()]
    assert {outcome for outcome in outcomes.values() if outcome.isdigit()} == {"200"}
    assert unanswered, "the load went on until the service was gone"
    assert not set(unanswered) & set(accepted), "these were accepted, and got no answer"
    assert [line for line in lines if "exception" in line] == []
