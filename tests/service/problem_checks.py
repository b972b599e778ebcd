"""What holds for every error of every door."""

from __future__ import annotations

import httpx

from service.middleware import SECURITY_HEADERS
from service.problems import MEDIA_TYPE, PROBLEMS


def check_problem(response: httpx.Response, status: int, code: str) -> None:
    """The answer is this problem, as complete as all are."""
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    check_any_problem(response)


def check_any_problem(response: httpx.Response) -> None:
    """The answer is a problem of the table, with an id and the security headers."""
    assert response.headers["content-type"] == MEDIA_TYPE, response.text
    problem = response.json()
    assert set(problem) == {"type", "title", "status", "detail", "code", "request_id"}
    assert problem["status"] == response.status_code == PROBLEMS[problem["code"]].status
    assert problem["type"] == f"urn:mien:problem:{problem['code']}"
    assert problem["title"] == PROBLEMS[problem["code"]].title
    assert problem["detail"]
    assert problem["request_id"] == response.headers["x-request-id"] != ""
    assert {name: response.headers.get(name) for name in SECURITY_HEADERS} == SECURITY_HEADERS
    assert ("retry-after" in response.headers) == PROBLEMS[problem["code"]].retry
    assert ("allow" in response.headers) == (response.status_code == 405)
