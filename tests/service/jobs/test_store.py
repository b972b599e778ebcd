"""The folder of jobs, with other processes where a lease is at stake."""

from __future__ import annotations

import logging
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from service.jobs.records import JobState, Standing
from service.jobs.store import JobStore
from tests.service.jobs.conftest import request_for
from tests.service.server_process import REPOSITORY

_HOLD = """
import sys
from pathlib import Path
from service.jobs.store import JobStore
with JobStore(Path(sys.argv[1])).lease(sys.argv[2], "the other process") as lease:
    print(lease is not None, flush=True)
    sys.stdin.read()
"""


def _holder(store_folder: Path, job_id: str) -> subprocess.Popen[bytes]:
    """A process that holds the lease of a job, once it has said so."""
    process = subprocess.Popen(
        [sys.executable, "-c", _HOLD, str(store_folder), job_id],
        cwd=REPOSITORY,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"True\n"
    return process


def test_a_job_is_found_as_it_was_added(store: JobStore) -> None:
    request = request_for("photos/may", caller="team")
    store.add(request)

    job = store.find(request.id)

    assert job is not None
    assert (job.request, job.state, job.cancelling) == (request, JobState(), False)
    assert store.ids() == [request.id]
    assert store.standings() == {request.id: Standing("queued")}


def test_no_folder_is_no_job(store: JobStore) -> None:
    assert store.ids() == []
    assert store.standings() == {}
    assert store.find(request_for("x").id) is None


@pytest.mark.parametrize("text", ["..", "../jobs", "", ".", "/", "\0", "x" * 5000])
def test_texts_that_are_no_ids_are_no_paths(store: JobStore, text: str) -> None:
    store.make()

    assert store.find(text) is None


def test_ids_come_oldest_first_whatever_else_lies_there(store: JobStore, tmp_path: Path) -> None:
    requests = [request_for("x", id=f"2026112{day}T000000000Z-{'0' * 16}") for day in (3, 1, 2)]
    for request in requests:
        store.add(request)
    (tmp_path / "jobs" / "notes").mkdir()
    (tmp_path / "jobs" / ".new-x").mkdir()

    assert store.ids() == sorted(request.id for request in requests)


def test_a_lease_is_held_by_one_process_and_ends_with_it(store: JobStore, tmp_path: Path) -> None:
    request = request_for("x")
    store.add(request)
    holder = _holder(tmp_path / "jobs", request.id)
    try:
        with store.lease(request.id, "me") as refused:
            assert refused is None
        assert (tmp_path / "jobs" / request.id / "lease").read_text() == "the other process\n"
    finally:
        holder.kill()
        holder.communicate()

    with store.lease(request.id, "me") as lease:
        assert lease is not None
        with store.lease(request.id, "me again") as second:
            assert second is None


def test_a_removed_job_has_no_lease_even_for_who_waited_at_its_file(store: JobStore) -> None:
    request = request_for("x")
    store.add(request)
    with store.lease(request.id, "me") as lease:
        assert lease is not None
        lease.output_folder.mkdir()
        store.remove(lease)

    with store.lease(request.id, "me") as after:
        assert after is None
    assert store.find(request.id) is None
    assert store.ids() == []


def test_standings_come_oldest_first_and_final_ones_stay(store: JobStore) -> None:
    expected = {}
    for state in ("queued", "running", "succeeded", "failed", "cancelled"):
        request = request_for("x")
        store.add(request)
        with store.lease(request.id, "me") as lease:
            assert lease is not None
            lease.write(replace(lease.state(), state=state, not_before_s=7.0))  # type: ignore[arg-type]
        expected[request.id] = (state, 7.0)

    for _ in range(2):
        found = store.standings()
        assert list(found) == list(expected)
        assert {job_id: (each.state, each.not_before_s) for job_id, each in found.items()} == expected


def test_the_mark_to_cancel_is_seen_until_the_job_ends(store: JobStore) -> None:
    request = request_for("x")
    store.add(request)
    store.ask_to_cancel(request.id)

    job = store.find(request.id)
    assert job is not None
    assert job.cancelling
    with store.lease(request.id, "me") as lease:
        assert lease is not None
        assert lease.cancelled
        lease.write(JobState("cancelled"))
    ended = store.find(request.id)
    assert ended is not None
    assert not ended.cancelling


def test_a_damaged_state_queues_the_job_again_and_a_damaged_request_hides_it(store: JobStore, tmp_path: Path) -> None:
    request = request_for("x")
    store.add(request)
    (tmp_path / "jobs" / request.id / "state.json").write_bytes(b"{")
    job = store.find(request.id)
    assert job is not None
    assert job.state == JobState()

    (tmp_path / "jobs" / request.id / "job.json").write_bytes(b"")
    assert store.find(request.id) is None


def test_what_a_crash_left_is_removed_at_the_start(store: JobStore, tmp_path: Path) -> None:
    request = request_for("x")
    store.add(request)
    (tmp_path / "jobs" / ".gone-1" / "output").mkdir(parents=True)
    (tmp_path / "jobs" / ".new-2").mkdir()

    store.make()

    # One that is being made just now is left alone.
    assert {path.name for path in (tmp_path / "jobs").iterdir()} == {request.id, ".new-2"}
    assert (tmp_path / "jobs").stat().st_mode & 0o077 == 0


def test_callers_are_known_of_jobs_that_are_there(store: JobStore, tmp_path: Path) -> None:
    of_team, of_nobody, damaged = request_for("x", caller="team"), request_for("x"), request_for("x", caller="team")
    for request in (of_team, of_nobody, damaged):
        store.add(request)
    (tmp_path / "jobs" / damaged.id / "job.json").write_bytes(b"{")

    assert [store.caller_of(each.id) for each in (of_team, of_nobody, damaged)] == ["team", None, None]
    with store.lease(of_team.id, "me") as lease:
        assert lease is not None
        store.remove(lease)
    assert store.caller_of(of_team.id) is None


def test_a_job_that_cannot_be_read_is_passed_over_and_logged_once(
    store: JobStore, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    good, bad_state, bad_request = (request_for("x") for _ in range(3))
    for request in (good, bad_state, bad_request):
        store.add(request)
    (tmp_path / "jobs" / bad_state.id / "state.json").mkdir()
    (tmp_path / "jobs" / bad_request.id / "job.json").unlink()
    (tmp_path / "jobs" / bad_request.id / "job.json").mkdir()
    no_folder = request_for("x").id
    (tmp_path / "jobs" / no_folder).write_bytes(b"")

    with caplog.at_level(logging.ERROR, logger="service.jobs.store"):
        for _ in range(2):
            assert set(store.standings()) == {good.id, bad_request.id}
            assert [store.find(each) for each in (bad_state.id, bad_request.id, no_folder)] == [None] * 3

    assert sorted(record.job for record in caplog.records) == sorted(  # type: ignore[attr-defined]
        [bad_state.id, bad_request.id, no_folder]
    )
    assert store.find(good.id) is not None


def test_a_job_that_is_removed_while_it_is_looked_up_is_not_found(
    store: JobStore, tmp_path: Path, on_open: Callable[[str, Callable[[], object]], None]
) -> None:
    request = request_for("x")
    store.add(request)
    with store.lease(request.id, "me") as lease:
        assert lease is not None
        lease.write(JobState("succeeded"))
    folder = tmp_path / "jobs" / request.id
    on_open(str(folder / "state.json"), lambda: folder.rename(tmp_path / "jobs" / ".gone-1"))

    assert store.find(request.id) is None
    assert not folder.exists()


def test_a_job_whose_folder_cannot_be_synced_is_there_all_the_same(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    store.make()
    jobs, sync = (tmp_path / "jobs").stat().st_ino, os.fsync

    def failing(descriptor: int) -> None:
        if os.fstat(descriptor).st_ino == jobs:
            raise OSError("the disk is away")
        sync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    request = request_for("x")

    store.add(request)

    assert store.ids() == [request.id]
    assert "the disk is away" in caplog.text


def test_an_owner_that_cannot_be_written_does_not_cost_the_lease(store: JobStore, tmp_path: Path) -> None:
    request = request_for("x")
    store.add(request)
    # Takes a lock, and no bytes: like a full disk.
    (tmp_path / "jobs" / request.id / "lease").symlink_to("/dev/full")

    with store.lease(request.id, "me") as lease:
        assert lease is not None
