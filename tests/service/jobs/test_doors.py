"""The job doors in one process, with the work done by hand or not at all."""

from __future__ import annotations

import logging
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY
from starlette.testclient import TestClient

from service.jobs.doors import DOWNLOADS_AT_ONCE
from service.jobs.records import JobState
from service.jobs.store import JobStore
from service.jobs.worker import Worker
from service.settings import Settings
from tests.service.jobs.conftest import jobs_client, request_for
from tests.service.problem_checks import check_problem

NAMED = {"a": "key-of-team-a-0001", "b": "key-of-team-b-0002", "plain": "key-without-jobs-3"}
KEYS = f"a {NAMED['a']} infer,jobs\nb {NAMED['b']} jobs\nplain {NAMED['plain']}\n"


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    (tmp_path / "photos" / "may").mkdir(parents=True)
    return tmp_path / "photos"


@pytest.fixture
def client(photos: Path, tmp_path: Path) -> TestClient:
    return jobs_client(scoring_roots=(str(photos),), jobs_dir=tmp_path / "jobs", max_jobs=3)


@pytest.fixture
def shared(photos: Path, tmp_path: Path) -> TestClient:
    """With API keys."""
    (tmp_path / "keys").write_text(KEYS)
    return jobs_client(
        scoring_roots=(str(photos),),
        jobs_dir=tmp_path / "jobs",
        api_keys_file=tmp_path / "keys",
        max_jobs_per_caller=2,
        max_finished_jobs=3,
    )


def _create(client: TestClient, name: str = "", **body: Any) -> dict[str, Any]:
    response = client.post("/v1/jobs", json={"input": "photos/may", **body}, headers=_as(name))
    assert response.status_code == 202, response.text
    created: dict[str, Any] = response.json()
    return created


def _as(name: str) -> dict[str, str]:
    return {"X-API-Key": NAMED[name]} if name else {}


def _set(store: JobStore, job_id: str, **changes: Any) -> None:
    with store.lease(job_id, "the test") as lease:
        assert lease is not None
        lease.write(replace(lease.state(), **changes))


def test_a_job_is_taken_with_its_options_and_its_address(client: TestClient) -> None:
    response = client.post(
        "/v1/jobs",
        json={"input": "photos/may", "model": "fake", "recursive": False, "include": ["*.jpg"], "min_face_size": 30},
    )

    job = response.json()
    assert response.status_code == 202
    assert response.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["cancelling"], job["error"]) == ("queued", False, None)
    assert (job["input"], job["model"], job["recursive"]) == ("photos/may", "fake:1.0.0", False)
    assert (job["include"], job["min_face_size"]) == (["*.jpg"], 30)
    assert (job["started_at"], job["finished_at"]) == (None, None)
    assert set(job["progress"].values()) <= {0, None}
    assert client.get(response.headers["location"]).json() == job


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [
        ({}, 400, "invalid_request"),
        ({"input": 7}, 400, "invalid_request"),
        ({"input": None}, 400, "invalid_request"),
        ({"input": ["photos"]}, 400, "invalid_request"),
        ({"input": "photos", "recursiv": True}, 400, "invalid_request"),
        ({"input": "photos", "recursive": "false"}, 400, "invalid_request"),
        ({"input": "photos", "include": "*.jpg"}, 400, "invalid_request"),
        ({"input": "photos", "include": ["x"] * 33}, 400, "invalid_request"),
        ({"input": "photos", "include": ["x" * 201]}, 400, "invalid_request"),
        ({"input": "photos", "min_face_size": 11}, 400, "invalid_request"),
        ({"input": "photos", "min_face_size": 20.5}, 400, "invalid_request"),
        ({"input": "photos", "model": "nobody"}, 404, "model_not_found"),
        ({"input": "photos/june"}, 400, "invalid_request"),
        ({"input": "x" * 70_000}, 413, "too_large"),
        ([], 400, "invalid_request"),
    ],
)
def test_a_wrong_job_is_refused_and_not_kept(client: TestClient, body: object, status: int, code: str) -> None:
    check_problem(client.post("/v1/jobs", json=body), status, code)

    assert client.get("/v1/jobs").json() == {"jobs": [], "next_after": None}


@pytest.mark.parametrize("content_type", ["text/plain", "multipart/form-data", "application/octet-stream", ""])
def test_only_json_makes_a_job_so_that_no_page_can(client: TestClient, content_type: str) -> None:
    headers = {"Content-Type": content_type} if content_type else {}

    check_problem(client.post("/v1/jobs", content=b'{"input": "photos"}', headers=headers), 400, "invalid_request")


def test_deep_json_is_refused(client: TestClient) -> None:
    body = b'{"input":' + b"[" * 30_000 + b"]" * 30_000 + b"}"

    check_problem(
        client.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"}), 400, "invalid_request"
    )


def test_unfinished_jobs_are_bounded(client: TestClient, store: JobStore) -> None:
    first = _create(client)
    for _ in range(2):
        _create(client)

    refused = client.post("/v1/jobs", json={"input": "photos"})
    check_problem(refused, 429, "overloaded")
    _set(store, first["id"], state="succeeded")

    assert client.post("/v1/jobs", json={"input": "photos"}).status_code == 202


def test_one_caller_leaves_room_for_the_others(shared: TestClient, store: JobStore) -> None:
    first = _create(shared, "a")
    _create(shared, "a")

    check_problem(shared.post("/v1/jobs", json={"input": "photos"}, headers=_as("a")), 429, "overloaded")
    _create(shared, "b")
    _set(store, first["id"], state="failed")
    _create(shared, "a")


def test_finished_jobs_are_bounded_and_none_is_removed_unasked(shared: TestClient, store: JobStore) -> None:
    finished = []
    for state in ("succeeded", "failed", "cancelled"):
        finished.append(_create(shared, "a")["id"])
        _set(store, finished[-1], state=state)

    refused = shared.post("/v1/jobs", json={"input": "photos"}, headers=_as("a"))
    check_problem(refused, 429, "overloaded")
    assert "remove" in refused.json()["detail"]
    assert [job["id"] for job in shared.get("/v1/jobs", headers=_as("a")).json()["jobs"]] == finished[::-1]
    _create(shared, "b")

    assert shared.delete(f"/v1/jobs/{finished[0]}", headers=_as("a")).status_code == 204
    _create(shared, "a")


def test_a_list_reads_the_files_of_its_page_only(
    shared: TestClient, store: JobStore, tmp_path: Path, opened: list[str]
) -> None:
    of_a, of_b = (
        [request_for("photos", caller=name, id=f"202611{day}T00000000{n}Z-{'0' * 16}") for n in range(5)]
        for name, day in (("a", 20), ("b", 21))
    )
    for request in (*of_a, *of_b):
        store.add(request)
    page = {"limit": 2}
    first = shared.get("/v1/jobs", params=page, headers=_as("a")).json()
    opened.clear()

    assert shared.get("/v1/jobs", params=page, headers=_as("a")).json() == first

    assert [job["id"] for job in first["jobs"]] == [of_a[4].id, of_a[3].id]
    read = {Path(path).parent.name for path in opened if path.startswith(str(tmp_path / "jobs"))}
    assert read == {of_a[4].id, of_a[3].id}


def test_without_roots_jobs_are_listed_and_none_is_taken(tmp_path: Path, store: JobStore) -> None:
    request = request_for("photos")
    store.add(request)
    client = jobs_client(jobs_dir=tmp_path / "jobs")

    check_problem(client.post("/v1/jobs", json={"input": "photos"}), 403, "forbidden")
    assert [job["id"] for job in client.get("/v1/jobs").json()["jobs"]] == [request.id]


def test_without_a_folder_there_are_no_jobs() -> None:
    client = jobs_client(scoring_roots=("s3://bucket",))

    check_problem(client.post("/v1/jobs", json={"input": "s3://bucket"}), 403, "forbidden")
    assert client.get("/v1/jobs").json() == {"jobs": [], "next_after": None}
    check_problem(client.get(f"/v1/jobs/{request_for('x').id}"), 404, "job_not_found")


def test_pages_hold_every_job_once_newest_first(client: TestClient, store: JobStore) -> None:
    requests = [request_for("photos", id=f"20261121T00000000{n}Z-{'0' * 16}") for n in range(7)]
    for request in requests:
        store.add(request)

    found: list[str] = []
    after: str | None = ""
    n_pages = 0
    while after is not None:
        page = client.get("/v1/jobs", params={"limit": 3, **({"after": after} if after else {})}).json()
        found += [job["id"] for job in page["jobs"]]
        after, n_pages = page["next_after"], n_pages + 1

    assert found == [request.id for request in reversed(requests)]
    assert n_pages == 3
    assert len(client.get("/v1/jobs").json()["jobs"]) == 7
    for wrong in ("0", "101", "x"):
        check_problem(client.get("/v1/jobs", params={"limit": wrong}), 400, "invalid_request")


@pytest.mark.parametrize(
    "job_id", ["20261121T161513042Z-5f1e0c7a9b3d2846", "x", "..", "%2e%2e", "%2e%2e%2fjobs", "a b"]
)
@pytest.mark.parametrize(("method", "below"), [("GET", ""), ("DELETE", ""), ("GET", "/results")])
def test_what_is_no_job_is_not_found(client: TestClient, job_id: str, method: str, below: str) -> None:
    response = client.request(method, f"/v1/jobs/{job_id}{below}")

    assert response.status_code in (404, 405), response.text
    assert response.json()["code"] in ("job_not_found", "not_found", "method_not_allowed")


def test_a_waiting_job_is_cancelled_at_once_and_then_removed(client: TestClient, tmp_path: Path) -> None:
    job = _create(client)

    cancelled = client.delete(f"/v1/jobs/{job['id']}")
    assert (cancelled.status_code, cancelled.json()["state"]) == (202, "cancelled")
    assert cancelled.json()["finished_at"] is not None
    check_problem(client.get(f"/v1/jobs/{job['id']}/results"), 409, "job_not_finished")

    removed = client.delete(f"/v1/jobs/{job['id']}")
    assert (removed.status_code, removed.content) == (204, b"")
    check_problem(client.get(f"/v1/jobs/{job['id']}"), 404, "job_not_found")
    check_problem(client.delete(f"/v1/jobs/{job['id']}"), 404, "job_not_found")
    assert list((tmp_path / "jobs").iterdir()) == []


def test_a_job_in_work_is_asked_to_end(client: TestClient, store: JobStore) -> None:
    job = _create(client)
    with store.lease(job["id"], "the worker") as lease:
        assert lease is not None
        lease.write(replace(lease.state(), state="running"))

        response = client.delete(f"/v1/jobs/{job['id']}")

        assert response.status_code == 202
        assert (response.json()["state"], response.json()["cancelling"]) == ("running", True)
        assert lease.cancelled


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_waiting_job_is_cancelled_on_a_full_disk(photos: Path, tmp_path: Path) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "none", str(disk)], check=False)
    if mount.returncode:
        pytest.skip("may not mount")
    try:
        client = jobs_client(scoring_roots=(str(photos),), jobs_dir=disk / "jobs")
        job = _create(client)
        with suppress(OSError), (disk / "ballast").open("wb", buffering=0) as ballast:
            while ballast.write(b"x" * 4096):
                pass

        response = client.delete(f"/v1/jobs/{job['id']}")

        assert response.status_code == 202, response.text
        assert (response.json()["state"], response.json()["cancelling"]) == ("queued", True)
        (disk / "ballast").unlink()
        settings = Settings(scoring_roots=(str(photos),))
        assert Worker(settings, JobStore(disk / "jobs"), lambda: False).work_once()
        assert client.get(f"/v1/jobs/{job['id']}").json()["state"] == "cancelled"
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_job_that_is_cancelled_while_it_waits_is_counted_and_logged(
    client: TestClient, caplog: pytest.LogCaptureFixture
) -> None:
    job = _create(client)
    n_before = _n_cancelled()

    with caplog.at_level(logging.INFO, logger="service.jobs"):
        client.delete(f"/v1/jobs/{job['id']}")

    assert _n_cancelled() == n_before + 1
    (line,) = [record for record in caplog.records if record.message == "job ends"]
    assert (line.job, line.state) == (job["id"], "cancelled")  # type: ignore[attr-defined]


def _n_cancelled() -> float:
    return REGISTRY.get_sample_value("mien_job_seconds_count", {"state": "cancelled"}) or 0.0


def test_a_failed_job_says_why(client: TestClient, store: JobStore) -> None:
    job = _create(client)
    _set(store, job["id"], state="failed", error_code="input_error", error_detail="gone")

    assert client.get(f"/v1/jobs/{job['id']}").json()["error"] == {"code": "input_error", "detail": "gone"}
    check_problem(client.get(f"/v1/jobs/{job['id']}/results"), 409, "job_not_finished")


def test_results_that_are_missing_are_a_fault_of_ours(client: TestClient, store: JobStore) -> None:
    job = _create(client)
    _set(store, job["id"], state="succeeded")

    check_problem(client.get(f"/v1/jobs/{job['id']}/results"), 500, "internal")
    check_problem(client.get(f"/v1/jobs/{job['id']}/results?format=xml"), 400, "invalid_request")


def test_results_that_are_removed_while_they_are_looked_up_are_those_of_no_job(
    client: TestClient, store: JobStore, tmp_path: Path, on_open: Callable[[str, Callable[[], object]], None]
) -> None:
    job = _create(client)
    _set(store, job["id"], state="succeeded")
    folder = tmp_path / "jobs" / job["id"]
    (folder / "output").mkdir()
    for name in ("_SUCCESS", "summary.json", "manifest.json"):
        (folder / "output" / name).write_bytes(b"{}")
    on_open(str(folder / "output" / "manifest.json"), lambda: folder.rename(tmp_path / "jobs" / ".gone-1"))

    check_problem(client.get(f"/v1/jobs/{job['id']}/results"), 404, "job_not_found")


def test_downloads_are_bounded(client: TestClient, store: JobStore, tmp_path: Path) -> None:
    job = _create(client)
    _set(store, job["id"], state="succeeded")
    output = tmp_path / "jobs" / job["id"] / "output"
    output.mkdir()
    for name, content in (("_SUCCESS", ""), ("summary.json", "{}"), ("manifest.json", '{"parts": []}')):
        (output / name).write_text(content)
    app: Any = client.app
    downloads = app.state.job_desk.downloads
    for _ in range(DOWNLOADS_AT_ONCE):
        downloads.take()

    check_problem(client.get(f"/v1/jobs/{job['id']}/results?format=csv"), 429, "overloaded")
    downloads.give_back()

    for _ in range(2):
        assert client.get(f"/v1/jobs/{job['id']}/results?format=csv").status_code == 200


def test_callers_see_their_own_jobs_only(shared: TestClient, store: JobStore) -> None:
    of_a, of_b = _create(shared, "a"), _create(shared, "b")
    of_nobody = request_for("photos")
    store.add(of_nobody)

    assert [job["id"] for job in shared.get("/v1/jobs", headers=_as("a")).json()["jobs"]] == [of_a["id"]]
    assert [job["id"] for job in shared.get("/v1/jobs", headers=_as("b")).json()["jobs"]] == [of_b["id"]]
    for job_id in (of_b["id"], of_nobody.id):
        for method, below in (("GET", ""), ("DELETE", ""), ("GET", "/results")):
            check_problem(shared.request(method, f"/v1/jobs/{job_id}{below}", headers=_as("a")), 404, "job_not_found")
    assert shared.get(f"/v1/jobs/{of_b['id']}", headers=_as("b")).json()["state"] == "queued"


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("POST", "/v1/jobs"),
        ("GET", "/v1/jobs"),
        ("GET", "/v1/jobs/x"),
        ("DELETE", "/v1/jobs/x"),
        ("GET", "/v1/jobs/x/results"),
    ],
)
def test_every_door_wants_the_scope_jobs(shared: TestClient, method: str, path: str) -> None:
    check_problem(shared.request(method, path), 401, "unauthenticated")
    check_problem(shared.request(method, path, headers=_as("plain")), 403, "forbidden")


def test_a_key_for_jobs_alone_opens_nothing_else(shared: TestClient) -> None:
    check_problem(shared.get("/v1/models", headers=_as("b")), 403, "forbidden")
    check_problem(shared.get("/metrics", headers=_as("b")), 403, "forbidden")


@pytest.mark.parametrize(
    ("method", "path", "allowed"),
    [("PUT", "/v1/jobs", "GET, POST"), ("POST", "/v1/jobs/x", "DELETE, GET"), ("POST", "/v1/jobs/x/results", "GET")],
)
def test_an_address_names_all_its_methods(client: TestClient, method: str, path: str, allowed: str) -> None:
    response = client.request(method, path)

    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == allowed


def test_an_unstarted_job_has_no_state_yet() -> None:
    assert JobState().state == "queued"
