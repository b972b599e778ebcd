"""The process that works on jobs: real processes on one folder of jobs, ended in every way."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import REGISTRY

from scoring.tally import Tally
from service.jobs.records import FINISHED, JobState
from service.jobs.store import JobStore
from service.jobs.worker import MAX_ATTEMPTS, MAX_PUT_OFFS, Worker
from service.settings import Settings
from tests.scoring.conftest import s3, s3_server  # noqa: F401
from tests.scoring.s3 import S3
from tests.service.jobs.conftest import N_PICTURES, WAIT_S, request_for, until

StartWorker = Callable[..., subprocess.Popen[bytes]]


def _state(store: JobStore, job_id: str) -> JobState:
    job = store.find(job_id)
    assert job is not None
    return job.state


def _end_of(store: JobStore, job_id: str) -> JobState:
    until(lambda: _state(store, job_id).finished, "the job does not end")
    return _state(store, job_id)


def _files(store: JobStore, job_id: str) -> dict[str, bytes]:
    folder = store.output_folder(job_id)
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and path.name != "_lock"
    }


def _n_parts(store: JobStore, job_id: str) -> int:
    return len(list((store.output_folder(job_id) / "parts").glob("part-*")))


def _in_process(store: JobStore, roots: Path, **changes: Any) -> Worker:
    settings = Settings(scoring_roots=(str(roots),), job_part_size=8, **changes)
    return Worker(settings, store, lambda: False)


def test_a_job_is_done_and_counted(store: JobStore, pictures: Path, start_worker: StartWorker) -> None:
    request = request_for("photos/may")
    store.add(request)
    start_worker()

    state = _end_of(store, request.id)

    assert (state.state, state.error_code) == ("succeeded", None)
    assert (state.n_listed, state.listed, state.n_standing) == (N_PICTURES, True, 0)
    assert (state.tally.n_inputs, state.tally.n_failed) == (N_PICTURES, 3)
    assert state.tally.emotions.total() == state.tally.n_faces > 0
    assert state.tally.errors.total() == 3
    assert state.started_s is not None
    assert state.finished_s is not None
    assert request.created_s <= state.started_s <= state.finished_s
    assert "_SUCCESS" in _files(store, request.id)


def test_a_killed_workers_job_is_taken_over_and_ends_with_the_bytes_of_an_undisturbed_one(
    store: JobStore, slow_pictures: Path, start_worker: StartWorker
) -> None:
    undisturbed, killed = (request_for("photos/many", include=("000*",)) for _ in range(2))
    roots = {"MIEN_SCORING_ROOTS": str(slow_pictures)}
    store.add(undisturbed)
    first, second = start_worker(**roots), start_worker(**roots)
    assert _end_of(store, undisturbed.id).state == "succeeded"

    store.add(killed)
    until(lambda: _n_parts(store, killed.id) >= 2, "no part is done")
    lease = store.output_folder(killed.id).parent / "lease"
    victim, heir = (first, second) if lease.read_text().endswith(f" {first.pid}\n") else (second, first)
    assert lease.read_text().endswith(f" {victim.pid}\n")
    victim.kill()
    victim.wait()
    n_stood = _n_parts(store, killed.id)
    state = _end_of(store, killed.id)

    assert state.state == "succeeded"
    assert state.n_standing >= 8
    assert n_stood >= 2
    assert lease.read_text().endswith(f" {heir.pid}\n")
    assert _files(store, killed.id) == _files(store, undisturbed.id)


def test_a_worker_that_is_told_to_stop_leaves_its_job_to_the_next(
    store: JobStore, slow_pictures: Path, start_worker: StartWorker
) -> None:
    request = request_for("photos/many", include=("000*",))
    store.add(request)
    first = start_worker(MIEN_SCORING_ROOTS=str(slow_pictures))
    until(lambda: _n_parts(store, request.id) >= 2, "no part is done")

    first.send_signal(signal.SIGTERM)

    assert first.wait(WAIT_S) == 0
    state = _state(store, request.id)
    assert (state.state, state.n_attempts) == ("queued", 0)
    assert state.tally.n_inputs > 0
    start_worker(MIEN_SCORING_ROOTS=str(slow_pictures))
    after = _end_of(store, request.id)
    assert (after.state, after.tally.n_inputs) == ("succeeded", 100)
    assert after.n_standing > 0
    assert after.started_s == state.started_s


def test_a_running_job_is_cancelled_and_the_next_one_begins(
    store: JobStore, slow_pictures: Path, start_worker: StartWorker
) -> None:
    cancelled, following = request_for("photos/many"), request_for("photos/many", include=("0000*",))
    store.add(cancelled)
    start_worker(MIEN_SCORING_ROOTS=str(slow_pictures))
    until(lambda: _n_parts(store, cancelled.id) >= 1, "no part is done")
    store.add(following)

    store.ask_to_cancel(cancelled.id)

    state = _end_of(store, cancelled.id)
    assert state.state == "cancelled"
    assert state.finished_s is not None
    assert "_SUCCESS" not in _files(store, cancelled.id)
    assert _end_of(store, following.id).tally.n_inputs == 10


def test_a_folder_swapped_for_a_link_after_the_job_was_taken_is_not_read(store: JobStore, tmp_path: Path) -> None:
    root, secret = tmp_path / "photos", tmp_path / "secret"
    for folder in (root, secret):
        folder.mkdir()
    (secret / "picture.png").write_bytes(b"secret")
    (root / "may").symlink_to(secret)
    request = request_for("photos/may")
    store.add(request)

    assert _in_process(store, root).work_once()

    state = _state(store, request.id)
    assert (state.state, state.error_code) == ("failed", "input_error")
    assert state.n_listed == 0


@pytest.mark.parametrize(
    ("input", "model", "code"),
    [
        ("photos/empty", "fake:1.0.0", "input_error"),
        ("photos/gone", "fake:1.0.0", "input_error"),
        ("photos/may", "nobody:1.0.0", "model_not_found"),
        ("others/may", "fake:1.0.0", "forbidden"),
        ("photos/../x", "fake:1.0.0", "invalid_request"),
    ],
)
def test_a_job_that_cannot_be_done_fails_with_a_code_and_no_path(
    store: JobStore, tmp_path: Path, empty_store: Path, input: str, model: str, code: str
) -> None:
    root = tmp_path / "photos"
    for name in ("empty", "may"):
        (root / name).mkdir(parents=True)
    (root / "may" / "a.jpg").write_bytes(b"x")
    request = request_for(input, model=model)
    store.add(request)
    worker = _in_process(store, root)

    assert worker.work_once()
    assert not worker.work_once()

    state = _state(store, request.id)
    assert (state.state, state.error_code) == ("failed", code)
    assert state.error_detail
    assert "/" not in state.error_detail.replace("`..`", "")


def test_a_job_whose_processes_keep_dying_fails_and_does_not_hold_up_the_queue(store: JobStore, pictures: Path) -> None:
    deadly, following = request_for("photos/may"), request_for("photos/may", model="nobody:1")
    for request in (deadly, following):
        store.add(request)
    with store.lease(deadly.id, "dead") as lease:
        assert lease is not None
        lease.write(JobState("running", started_s=1.0, n_attempts=MAX_ATTEMPTS, n_parts=0))
    worker = _in_process(store, pictures)

    assert worker.work_once()
    assert (_state(store, deadly.id).state, _state(store, deadly.id).error_code) == ("failed", "internal")
    assert worker.work_once()
    assert _state(store, following.id).state == "failed"


def test_deaths_are_forgiven_when_a_part_was_done_between(
    store: JobStore, pictures: Path, start_worker: StartWorker
) -> None:
    request = request_for("photos/may")
    store.add(request)
    with store.lease(request.id, "dead") as lease:
        assert lease is not None
        lease.write(JobState("running", started_s=1.0, n_attempts=MAX_ATTEMPTS, n_parts=1))
    start_worker()

    assert _end_of(store, request.id).state == "succeeded"


def test_each_death_counts_one_attempt(store: JobStore, tmp_path: Path, start_worker: StartWorker) -> None:
    # A folder whose listing hangs: nothing is ever done.
    (tmp_path / "photos" / "may").mkdir(parents=True)
    (tmp_path / "photos" / "may" / "a.jpg").write_bytes(b"x")
    request = request_for("photos/may")
    store.add(request)
    hangs = tmp_path / "sitecustomize.py"
    hangs.write_text(
        "import os, sys\nif '--multiprocessing-fork' in sys.argv or 'scoring.crew' in ' '.join(sys.orig_argv):\n"
        "    import time; time.sleep(600)\n"
    )
    for n in (1, 2):
        worker = start_worker(MIEN_SCORING_ROOTS=str(tmp_path / "photos"), PYTHONPATH=str(tmp_path))
        until(lambda n=n: _state(store, request.id).n_attempts == n, "no attempt")  # type: ignore[misc]
        worker.kill()
        worker.wait()

    assert _state(store, request.id).state == "running"


@pytest.mark.skipif(os.geteuid() != 0, reason="needs root to mount a small file system")
def test_a_full_disk_puts_a_job_off_and_it_ends_once_there_is_room(
    pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    mount = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=256k", "none", str(disk)], check=False)
    if mount.returncode:
        pytest.skip("may not mount")
    try:
        store = JobStore(disk / "jobs")
        request = request_for("photos/may")
        store.add(request)
        ballast = disk / "ballast"
        ballast.write_bytes(b"x" * 150_000)
        worker = _in_process(store, pictures)
        monkeypatch.setattr("service.jobs.worker.RETRY_S", 0.0)

        assert worker.work_once()
        put_off = _state(store, request.id)
        ballast.unlink()
        # What was not written may have been noticed at any place, the job's own state included.
        assert put_off.state in ("queued", "running")

        assert worker.work_once()
        state = _state(store, request.id)
        assert (state.state, state.error_code, state.tally.n_inputs) == ("succeeded", None, N_PICTURES)
    finally:
        subprocess.run(["umount", "-l", str(disk)], check=True)


def test_an_input_that_went_away_midway_is_tried_again(store: JobStore, tmp_path: Path, pictures: Path) -> None:
    root = tmp_path / "photos"
    root.mkdir()
    request = request_for("photos/may")
    store.add(request)
    parts = store.output_folder(request.id) / "parts"
    parts.mkdir(parents=True)
    (parts / f"part-{'0' * 32}.parquet").write_bytes(b"from before")
    worker = _in_process(store, root)

    assert worker.work_once()
    state = _state(store, request.id)
    assert (state.state, state.error_code) == ("queued", "input_error")
    # Not at once.
    assert not worker.work_once()


def _input_that_is_away(store: JobStore, root: Path, **state: Any) -> str:
    """A job with a part done, or put off before, whose input is not there."""
    root.mkdir()
    request = request_for("photos/may")
    store.add(request)
    with store.lease(request.id, "before") as lease:
        assert lease is not None
        lease.write(JobState(**{"started_s": 1.0, "n_put_off": 1, **state}))
    return request.id


def test_an_input_may_be_away_for_many_tries_and_then_come_back(
    store: JobStore, tmp_path: Path, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = _input_that_is_away(store, tmp_path / "photos")
    monkeypatch.setattr("service.jobs.worker.RETRY_S", 0.0)
    worker = _in_process(store, tmp_path / "photos")

    for _ in range(MAX_ATTEMPTS + 2):
        assert worker.work_once()
    state = _state(store, job_id)
    assert (state.state, state.error_code, state.n_attempts, state.n_put_off) == (
        "queued",
        "input_error",
        0,
        MAX_ATTEMPTS + 3,
    )

    shutil.copytree(pictures / "may", tmp_path / "photos" / "may")
    assert worker.work_once()
    assert _state(store, job_id).state == "succeeded"


def test_a_job_that_was_put_off_waits_for_every_replica_and_for_no_wrong_clock(
    store: JobStore, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = _input_that_is_away(store, tmp_path / "photos")
    assert _in_process(store, tmp_path / "photos").work_once()

    replica = _in_process(JobStore(tmp_path / "jobs"), tmp_path / "photos")
    assert not replica.work_once()

    with store.lease(job_id, "a replica whose clock is an hour ahead") as lease:
        assert lease is not None
        state = lease.state()
        assert state.not_before_s is not None
        lease.write(replace(state, not_before_s=state.not_before_s + 3600))
    assert replica.work_once()
    assert _state(store, job_id).n_put_off == 3


def test_a_job_is_not_put_off_for_ever(store: JobStore, tmp_path: Path) -> None:
    job_id = _input_that_is_away(store, tmp_path / "photos", n_put_off=MAX_PUT_OFFS)

    assert _in_process(store, tmp_path / "photos").work_once()

    assert (_state(store, job_id).state, _state(store, job_id).error_code) == ("failed", "input_error")


def test_a_request_that_cannot_be_read_is_no_attempt(store: JobStore, tmp_path: Path, pictures: Path) -> None:
    request = request_for("photos/may", include=("0000*",))
    store.add(request)
    file = tmp_path / "jobs" / request.id / "job.json"
    file.rename(file.with_name("kept"))
    file.mkdir()

    assert _in_process(store, pictures).work_once()

    with store.lease(request.id, "me") as lease:
        assert lease is not None
        assert (lease.state().state, lease.state().n_attempts, lease.state().n_put_off) == ("queued", 0, 1)


def test_callers_take_turns(store: JobStore, pictures: Path, empty_store: Path) -> None:
    # Jobs that fail at once, as nobody has their model.
    requests = [request_for("photos/may", caller=caller, model="nobody:1") for caller in ("a", "a", "a", "b", "c", "b")]
    for request in requests:
        store.add(request)
    worker = _in_process(store, pictures)

    done: list[str] = []
    while worker.work_once():
        done += [each.id for each in requests if _state(store, each.id).finished and each.id not in done]

    first, second, third, of_b, of_c, late_of_b = (request.id for request in requests)
    assert done == [first, of_b, of_c, second, late_of_b, third]


def test_a_folder_that_cannot_be_used_does_not_stop_the_others(
    store: JobStore, tmp_path: Path, pictures: Path, empty_store: Path
) -> None:
    no_lease, bad_state, good = (request_for("photos/may", model="nobody:1") for _ in range(3))
    for request in (no_lease, bad_state, good):
        store.add(request)
    (tmp_path / "jobs" / no_lease.id / "lease").mkdir()
    (tmp_path / "jobs" / bad_state.id / "state.json").mkdir()
    (tmp_path / "jobs" / request_for("x").id).write_bytes(b"")
    worker = _in_process(store, pictures)

    while worker.work_once():
        pass

    assert _state(store, good.id).state == "failed"
    assert _state(store, no_lease.id).state == "queued"


def test_jobs_are_counted_while_one_runs(store: JobStore, pictures: Path) -> None:
    running, waiting = request_for("photos/may", include=("0000*",)), request_for("photos/may")
    store.add(running)
    counted: list[tuple[float | None, float | None]] = []

    def stopping() -> bool:
        if len(store.ids()) == 1:
            store.add(waiting)
        counted.append((_counted("running"), _counted("queued")))
        return False

    worker = Worker(Settings(scoring_roots=(str(pictures),)), store, stopping)

    assert worker.work_once()

    assert counted[-1] == (1, 1)
    assert (_counted("succeeded"), _counted("running"), _counted("queued")) == (1, 0, 1)


def _counted(state: str) -> float | None:
    return REGISTRY.get_sample_value("mien_jobs", {"state": state})


def test_a_prefix_of_a_bucket_is_scored_and_nothing_beside_it(
    store: JobStore,
    pictures: Path,
    s3: S3,  # noqa: F811
) -> None:
    originals = sorted(path for path in (pictures / "may").rglob("*") if path.is_file())
    for index, original in enumerate(originals[:10]):
        s3.put(f"prefix/may/{index}.jpg", original.read_bytes())
        s3.put(f"prefixes/{index}.jpg", original.read_bytes())
    root = f"s3://{s3.bucket}/prefix"
    request = request_for(f"{root}/may")
    store.add(request)
    worker = Worker(Settings(scoring_roots=(root,)), store, lambda: False)

    assert worker.work_once()

    state = _state(store, request.id)
    assert (state.state, state.tally.n_inputs) == ("succeeded", 10)


def test_a_finished_job_is_never_taken_again(store: JobStore, pictures: Path) -> None:
    for name in FINISHED:
        request = request_for("photos/may")
        store.add(request)
        with store.lease(request.id, "me") as lease:
            assert lease is not None
            lease.write(replace(JobState(), state=name, tally=Tally(n_inputs=1)))

    assert not _in_process(store, pictures).work_once()
