from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace

import pytest

from scoring.tally import Tally
from service.jobs.records import JobRequest, JobState, is_job_id, new_job_id
from tests.service.jobs.conftest import request_for


def test_ids_are_ids_and_none_comes_twice() -> None:
    ids = [new_job_id() for _ in range(1000)]

    assert all(map(is_job_id, ids))
    assert len(set(ids)) == len(ids)
    assert [each[:20] for each in ids] == sorted(each[:20] for each in ids)


@pytest.mark.parametrize(
    "text", ["", "..", "a/b", "20261121T161513042Z-5f1e0c7a9b3d284", "20261121T161513042Z-5f1e0c7a9b3d284G"]
)
def test_nothing_else_is_an_id(text: str) -> None:
    assert not is_job_id(text)
    assert not is_job_id(f"{new_job_id()}{text or chr(10)}")


def test_requests_and_states_are_read_as_they_were_written() -> None:
    request = request_for("photos/ä", caller="team", include=("*.jpg",), min_face_size_px=40)
    tally = Tally(5, 1, 2, 3, Counter(happy=2, sad=1), Counter(corrupt_image=2))
    state = JobState("failed", 1.5, 2.5, 7, True, 2, tally, 3.25, 1, 4, "internal", "why")

    assert JobRequest.from_json(request.to_json()) == request
    assert JobState.from_json(state.to_json()) == state
    assert JobState.from_json(JobState().to_json()) == JobState()


def test_fields_of_a_newer_version_are_passed_over() -> None:
    newer = {**json.loads(JobState().to_json()), "mood": "good"}

    assert JobState.from_json(json.dumps(newer).encode()) == JobState()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b'{"state": "odd", "tally": {"emotions": {}, "errors": {}}}', b'{"state": 1}']
)
def test_what_is_no_state_or_request_is_an_error(data: bytes) -> None:
    for kind in (JobState, JobRequest):
        with pytest.raises(ValueError):
            kind.from_json(data)


@pytest.mark.parametrize(
    ("state", "finished"),
    [("queued", False), ("running", False), ("succeeded", True), ("failed", True), ("cancelled", True)],
)
def test_three_states_are_final(state: str, finished: bool) -> None:
    assert replace(JobState(), state=state).finished is finished  # type: ignore[arg-type]
