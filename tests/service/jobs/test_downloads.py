"""The time limit of an answer that may last: for each of its pieces, not for all of them."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest

from service.admission import Admission
from service.api_keys import ApiKeys
from service.jobs.doors import is_download
from service.middleware import Policy, RequestMiddleware

TIMEOUT_S = 0.4


def _ask(path: str, pauses_s: list[float], before_s: float = 0.0) -> tuple[list[dict[str, Any]], Exception | None]:
    """The messages of an answer that waits before it begins and before each of its pieces, and what broke it off."""
    sent: list[dict[str, Any]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        await asyncio.sleep(before_s)
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for pause_s in pauses_s:
            await asyncio.sleep(pause_s)
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
        await send({"type": "http.response.body", "body": b"", "more_body": False})

    async def receive() -> dict[str, Any]:
        await asyncio.sleep(60)
        raise AssertionError("nobody sends anything")

    async def send(message: Any) -> None:
        sent.append(message)

    middleware = RequestMiddleware(
        app,
        Policy(timeout_s=TIMEOUT_S, max_header_bytes=10_000, is_download=is_download),
        ApiKeys(None),
        Admission(1, 1, 1, 1 << 20),
    )
    scope = {"type": "http", "method": "GET", "path": path, "query_string": b"", "headers": []}
    try:
        asyncio.run(middleware(scope, receive, send))
    except RuntimeError as error:
        return sent, error
    return sent, None


def test_a_download_may_last_longer_than_a_request() -> None:
    sent, error = _ask("/v1/jobs/x/results", [TIMEOUT_S / 4] * 8)

    assert error is None
    assert sum(len(message.get("body", b"")) for message in sent) == 8


def test_any_other_answer_may_not() -> None:
    sent, error = _ask("/v1/jobs/x", [TIMEOUT_S / 4] * 8)

    assert error is not None
    assert sent[-1]["more_body"]


def test_a_download_that_stands_still_is_broken_off() -> None:
    sent, error = _ask("/v1/jobs/x/results", [0, 0, 20 * TIMEOUT_S])

    assert error is not None
    assert len(sent) == 3


def test_a_download_that_does_not_begin_in_time_is_a_problem() -> None:
    sent, error = _ask("/v1/jobs/x/results", [], before_s=20 * TIMEOUT_S)

    assert error is None
    assert sent[0]["status"] == 504


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/v1/jobs/20261121T161513042Z-5f1e0c7a9b3d2846/results", True),
        ("/v1/jobs", False),
        ("/v1/jobs/x", False),
        ("/v1/analyze", False),
        ("/results", False),
    ],
)
def test_only_results_are_downloads(path: str, expected: bool) -> None:
    assert is_download(path) is expected
