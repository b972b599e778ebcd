"""Threads that hang hold their slots when their requests are long gone."""

from __future__ import annotations

import asyncio
import os
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from service.jobs.doors import DOORS_AT_ONCE
from service.jobs.slots import Download, Slots
from service.jobs.store import JobStore
from service.problems import OverloadedError
from tests.service.jobs.conftest import jobs_client, request_for, until
from tests.service.problem_checks import check_problem


def _is_free(slots: Slots) -> bool:
    try:
        slots.take()
    except OverloadedError:
        return False
    slots.give_back()
    return True


def test_a_door_holds_its_slot_until_its_thread_ends() -> None:
    slots, release = Slots(1, "things"), threading.Event()
    door = slots.bound(lambda: release.wait(60))
    thread = threading.Thread(target=door)
    thread.start()
    until(lambda: not _is_free(slots), "it has no slot")

    with pytest.raises(OverloadedError):
        door()

    release.set()
    thread.join()
    assert door() is True


def test_a_door_that_fails_gives_its_slot_back() -> None:
    slots = Slots(1, "things")

    def door() -> None:
        raise ValueError

    for _ in range(2):
        with pytest.raises(ValueError):
            slots.bound(door)()


def test_doors_that_hang_on_the_disk_after_their_time_are_bounded(tmp_path: Path, store: JobStore) -> None:
    # A request that is a pipe which nobody writes to: whoever reads it waits, as on a network's disk that is away.
    request = request_for("photos")
    store.add(request)
    file = tmp_path / "jobs" / request.id / "job.json"
    kept = file.read_bytes()
    file.unlink()
    os.mkfifo(file)
    client = jobs_client(jobs_dir=tmp_path / "jobs", timeout_s=0.2)
    n_before = threading.active_count()
    try:
        for _ in range(DOORS_AT_ONCE):
            check_problem(client.get(f"/v1/jobs/{request.id}"), 504, "timeout")
        for _ in range(3):
            check_problem(client.get(f"/v1/jobs/{request.id}"), 429, "overloaded")
        assert threading.active_count() - n_before <= DOORS_AT_ONCE + 4
    finally:
        file.rename(file.with_name("pipe"))
        file.write_bytes(kept)
        # Whoever waits for a writer gets one, and then the end of the file.
        os.close(os.open(file.with_name("pipe"), os.O_RDWR))
        until(lambda: client.get(f"/v1/jobs/{request.id}").status_code == 200, "they hang on")


async def _send(download: Download, cancel: threading.Event | None = None) -> list[Any]:
    sent: list[Any] = []

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError("nobody sends anything")

    async def send(message: Any) -> None:
        sent.append(message)

    task = asyncio.create_task(download({"type": "http", "asgi": {"spec_version": "2.4"}}, receive, send))
    if cancel is not None:
        await asyncio.to_thread(cancel.wait, 60)
        task.cancel()
    await asyncio.gather(task, return_exceptions=cancel is not None)
    return sent


def _download(pieces: Iterator[bytes], slots: Slots) -> Download:
    return Download(pieces, slots, media_type="text/csv", headers={})


def test_a_download_holds_a_slot_until_it_ends() -> None:
    slots = Slots(1, "things")
    free_meanwhile: list[bool] = []

    def pieces() -> Iterator[bytes]:
        for _ in range(3):
            free_meanwhile.append(_is_free(slots))
            yield b"x"

    sent = asyncio.run(_send(_download(pieces(), slots)))

    assert b"".join(message.get("body", b"") for message in sent) == b"xxx"
    assert free_meanwhile == [False] * 3
    assert _is_free(slots)


def test_one_download_too_many_is_refused_before_it_begins() -> None:
    slots = Slots(1, "things")
    slots.take()

    with pytest.raises(OverloadedError):
        asyncio.run(_send(_download(iter([b"x"]), slots)))
    slots.give_back()
    assert _is_free(slots)


def test_a_download_that_is_cut_off_holds_its_slot_until_its_thread_ends() -> None:
    slots, hanging, release = Slots(1, "things"), threading.Event(), threading.Event()

    def pieces() -> Iterator[bytes]:
        hanging.set()
        release.wait(60)
        yield b"x"

    async def main() -> None:
        await _send(_download(pieces(), slots), hanging)
        assert not _is_free(slots)
        release.set()
        await asyncio.to_thread(until, lambda: _is_free(slots), "it is never freed")

    asyncio.run(main())
