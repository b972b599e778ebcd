"""Jobs in the service as it is deployed: real processes, the Python client, a restart in the middle."""

from __future__ import annotations

import asyncio
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from pathlib import Path

import httpx
import psutil
import pyarrow.parquet as pq
import pytest

from service.client import AsyncClient, Client, MienError, RequestError
from service.jobs.store import JobStore
from tests.service.jobs.conftest import N_PICTURES, WAIT_S, until
from tests.service.server_process import RunningService, running_service

KEYS = "a key-of-team-a-0001 infer,jobs,metrics\nb key-of-team-b-0002 jobs\n"
Start = Callable[..., AbstractContextManager[RunningService]]


@pytest.fixture(scope="module")
def start(tmp_path_factory: pytest.TempPathFactory, pictures: Path, slow_pictures: Path) -> Start:
    """Run the service on the fakes with jobs, in one state folder: `with start(MIEN_TIMEOUT_S="2"):`."""
    folder = tmp_path_factory.mktemp("jobs-service")
    (folder / "keys").write_text(KEYS)

    def start(**settings: str) -> AbstractContextManager[RunningService]:
        home = folder / f"home-{len(list(folder.iterdir()))}"
        home.mkdir()
        return running_service(
            home,
            **{
                "MIEN_MODELS": "fake",
                "MIEN_DETECTOR": "fake",
                "MIEN_TOPOLOGY": "inline",
                "MIEN_STATE_DIR": str(folder / "state"),
                "MIEN_SCORING_ROOTS": f"{pictures},slow={slow_pictures}",
                "MIEN_JOB_PART_SIZE": "8",
                "MIEN_JOB_NICENESS": "0",
                "MIEN_API_KEYS_FILE": str(folder / "keys"),
                **settings,
            },
        )

    return start


@pytest.fixture(scope="module")
def service(start: Start) -> Iterator[RunningService]:
    with start(MIEN_TIMEOUT_S="2") as running:
        yield running


@pytest.fixture(scope="module")
def job_id(service: RunningService) -> str:
    """A job over `photos/may` that succeeded."""
    with _client(service) as mien:
        job = mien.create_job("photos/may", include=["*.jpg"])
        done = mien.wait_for_job(job.id, wait_s=WAIT_S, poll_s=0.2)
    assert (done.state, done.progress.files_done, done.progress.files_failed) == ("succeeded", N_PICTURES, 3)
    assert done.progress.files_total == N_PICTURES
    return done.id


def _client(service: RunningService, team: str = "a") -> Client:
    return Client(service.url, api_key={"a": "key-of-team-a-0001", "b": "key-of-team-b-0002"}[team])


def _jobs_process(service: RunningService) -> psutil.Process:
    (found,) = [
        child for child in psutil.Process(service.pid).children() if child.cmdline()[-2:] == ["-m", "service.jobs"]
    ]
    return found


def test_results_are_saved_whole_in_every_format(service: RunningService, job_id: str, tmp_path: Path) -> None:
    with _client(service) as mien:
        mien.job_results(job_id, tmp_path / "rows.parquet")
        mien.job_results(job_id, tmp_path / "rows.csv", format="csv")
        mien.job_results(job_id, tmp_path / "rows.jsonl", format="jsonl")

    table = pq.read_table(tmp_path / "rows.parquet")
    assert len(set(table["path"].to_pylist())) == N_PICTURES
    assert (tmp_path / "rows.csv").read_bytes().count(b"\n") == table.num_rows + 1
    assert (tmp_path / "rows.jsonl").read_bytes().count(b"\n") == table.num_rows
    assert {path.name for path in tmp_path.iterdir()} == {"rows.parquet", "rows.csv", "rows.jsonl"}


def test_the_async_client_does_the_same(service: RunningService, job_id: str, tmp_path: Path) -> None:
    async def main() -> None:
        async with AsyncClient(service.url, api_key="key-of-team-a-0001") as mien:
            assert (await mien.wait_for_job(job_id)).id == job_id
            assert [job.id for job in (await mien.jobs(limit=1)).jobs] == [job_id]
            await mien.job_results(job_id, tmp_path / "rows.csv", format="csv")
            assert (await mien.cancel_job(job_id)).state == "succeeded"
            with pytest.raises(RequestError) as unknown:
                await mien.job_results("nothing", tmp_path / "nothing.csv")
            assert unknown.value.code == "job_not_found"

    asyncio.run(main())
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_another_caller_sees_nothing(service: RunningService, job_id: str) -> None:
    with _client(service, "b") as other:
        assert other.jobs().jobs == []
        for ask in (other.job, other.cancel_job, other.remove_job):
            with pytest.raises(RequestError) as refused:
                ask(job_id)
            assert refused.value.code == "job_not_found"
    with _client(service) as mine:
        assert mine.job(job_id).state == "succeeded"


def test_a_download_outlasts_the_time_of_a_request_as_long_as_it_is_read(service: RunningService, job_id: str) -> None:
    with socket.create_connection(("127.0.0.1", service.port)) as connection:
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        head = f"GET /v1/jobs/{job_id}/results?format=jsonl HTTP/1.1\r\nHost: mien\r\nX-API-Key: key-of-team-a-0001\r\n"
        connection.sendall(f"{head}Connection: close\r\n\r\n".encode())
        received = b""
        # Slower than the limit of 2 s in all, while others are answered at once.
        for _ in range(6):
            received += connection.recv(2048)
            assert httpx.get(f"{service.url}/livez", timeout=WAIT_S).status_code == 200
            time.sleep(0.5)
        while piece := connection.recv(65536):
            received += piece

    assert received.startswith(b"HTTP/1.1 200 ")
    assert received.endswith(b"0\r\n\r\n")


def test_a_running_job_is_cancelled_over_http_and_kept_until_it_is_removed(service: RunningService) -> None:
    with _client(service) as mien:
        job = mien.create_job("slow/many")
        until(lambda: mien.job(job.id).progress.files_done > 0, "nothing is scored")
        asked = mien.cancel_job(job.id)
        assert asked.cancelling or asked.state == "cancelled"
        ended = mien.wait_for_job(job.id, wait_s=WAIT_S, poll_s=0.1)
        assert ended.state == "cancelled"
        assert 0 < ended.progress.files_done < ended.progress.files_total
        with pytest.raises(RequestError) as refused:
            mien.job_results(job.id, "unused")
        assert (refused.value.status, refused.value.code) == (409, "job_not_finished")
        assert mien.remove_job(job.id) is True
        with pytest.raises(RequestError):
            mien.job(job.id)


def test_metrics_and_log_tell_of_jobs(service: RunningService, job_id: str) -> None:
    text = httpx.get(f"{service.url}/metrics", headers={"X-API-Key": "key-of-team-a-0001"}, timeout=WAIT_S).text

    assert 'mien_job_files_total{status="error"}' in text
    assert 'mien_job_seconds_count{state="succeeded"}' in text
    assert job_id not in text
    with _client(service) as mien:
        until(lambda: _counted(service) == Counter(job.state for job in mien.jobs().jobs), "jobs are counted wrong")
    assert _counted(service)["succeeded"] >= 1
    log = service.log_path.read_text()
    assert f'"job": "{job_id}"' in log
    assert "job begins" in log
    assert "job ends" in log


def _counted(service: RunningService) -> Counter[str]:
    text = httpx.get(f"{service.url}/metrics", headers={"X-API-Key": "key-of-team-a-0001"}, timeout=WAIT_S).text
    found = re.findall(r'^mien_jobs\{state="([a-z]+)"\} ([0-9.]+)$', text, re.MULTILINE)
    return +Counter({state: int(float(n)) for state, n in found})


def test_waiting_ends_when_the_time_is_over(service: RunningService) -> None:
    with _client(service) as mien:
        job = mien.create_job("slow/many")
        with pytest.raises(MienError) as late:
            mien.wait_for_job(job.id, wait_s=0.0)
        assert late.value.code == "timeout"
        mien.cancel_job(job.id)


def test_a_service_that_ends_in_the_middle_goes_on_after_its_restart(start: Start, service: RunningService) -> None:
    # Two services may not share a state folder.
    settings = {"MIEN_STATE_DIR": str(service.log_path.parent.parent / "other")}
    with start(**settings) as first, _client(first) as mien:
        job = mien.create_job("slow/many", include=["00[0-3]*"])
        until(lambda: mien.job(job.id).progress.files_done > 20, "nothing is scored")
        _jobs_process(first).kill()
        until(lambda: mien.job(job.id).progress.files_resumed > 0, "the next process does not go on")
    assert '"clean": true' in first.log_path.read_text()
    left = JobStore(Path(settings["MIEN_STATE_DIR"]) / "jobs").find(job.id)
    assert left is not None
    assert (left.state.state, left.state.n_attempts) == ("queued", 0)
    with start(**settings) as second, _client(second) as mien:
        done = mien.wait_for_job(job.id, wait_s=WAIT_S, poll_s=0.2)
        assert (done.state, done.progress.files_done) == ("succeeded", 400)
