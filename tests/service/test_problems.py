from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

import service.problems
from handlers.errors import ExpiredError, HandlerError
from service import metrics
from service.problems import (
    MEDIA_TYPE,
    PROBLEMS,
    ForbiddenError,
    MethodNotAllowedError,
    OverloadedError,
    UnauthenticatedError,
    UnavailableError,
    problem_of,
    problem_response,
)
from service.request_context import enter_request, leave_request
from service.schemas import Problem

# The contract with callers, written down a second time on purpose.
STATUS_BY_CODE = {
    "invalid_request": 400,
    "unauthenticated": 401,
    "forbidden": 403,
    "not_found": 404,
    "model_not_found": 404,
    "job_not_found": 404,
    "method_not_allowed": 405,
    "job_not_finished": 409,
    "too_large": 413,
    "unsupported_format": 415,
    "corrupt_image": 422,
    "empty_image": 422,
    "overloaded": 429,
    "internal": 500,
    "unavailable": 503,
    "timeout": 504,
}
ANSWERED_AS_INTERNAL = {"engine_unavailable"}
SECRET = "password=hunter2"


def _tree(root: type[HandlerError]) -> Iterator[type[HandlerError]]:
    yield root
    for child in root.__subclasses__():
        if child.__module__ in ("handlers.errors", service.problems.__name__):
            yield from _tree(child)


ERRORS = list(dict.fromkeys(_tree(HandlerError)))


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_every_error_of_the_tree_has_its_status_and_code(kind: type[HandlerError]) -> None:
    code = "internal" if kind.code in ANSWERED_AS_INTERNAL else kind.code
    response = problem_response(kind("what happened"))
    body = json.loads(bytes(response.body))

    assert response.status_code == body["status"] == STATUS_BY_CODE[code]
    assert body["code"] == code


def test_the_table_holds_no_code_that_nothing_raises() -> None:
    assert set(PROBLEMS) == {kind.code for kind in ERRORS} - ANSWERED_AS_INTERNAL == set(STATUS_BY_CODE)


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_only_an_internal_error_hides_its_text(kind: type[HandlerError]) -> None:
    problem = problem_of(kind(SECRET))

    assert (SECRET in problem.model_dump_json()) == (problem.code != "internal")


def test_an_unknown_code_is_answered_as_internal() -> None:
    class Novel(HandlerError):
        code = "novel"

    problem = problem_of(Novel(SECRET))

    assert (problem.code, problem.status) == ("internal", 500)
    assert SECRET not in problem.model_dump_json()


@pytest.mark.parametrize("kind", ERRORS, ids=lambda kind: kind.__name__)
def test_only_a_passing_failure_says_when_to_try_again(kind: type[HandlerError]) -> None:
    response = problem_response(kind("busy"))

    assert ("retry-after" in response.headers) == (kind in (UnavailableError, OverloadedError, ExpiredError))
    assert response.headers.get("retry-after", "1").isdigit()


@pytest.mark.parametrize(("kind", "counted_as"), [(OverloadedError, "overloaded"), (HandlerError, "internal")])
def test_an_error_that_is_answered_is_counted_once_by_its_code(kind: type[HandlerError], counted_as: str) -> None:
    counter = metrics.REJECTIONS.labels(counted_as)
    before = counter._value.get()

    problem_response(kind("busy"))

    assert counter._value.get() == before + 1


def test_who_is_overloaded_says_for_how_long() -> None:
    assert problem_response(OverloadedError("busy", 17)).headers["retry-after"] == "17"


def test_who_needs_a_key_is_told_how_to_send_it_and_who_has_one_is_not() -> None:
    assert problem_response(UnauthenticatedError("no key")).headers["www-authenticate"] == "Bearer"
    assert "www-authenticate" not in problem_response(ForbiddenError("not with this key")).headers


def test_who_uses_a_wrong_method_is_told_the_right_ones() -> None:
    assert problem_response(MethodNotAllowedError("no", "GET, HEAD")).headers["allow"] == "GET, HEAD"


def test_the_body_is_an_rfc_9457_problem_with_code_and_request_id() -> None:
    token = enter_request("the-id")
    try:
        response = problem_response(UnavailableError("the detect runner is overloaded"))
    finally:
        leave_request(token)

    assert response.headers["content-type"] == MEDIA_TYPE
    assert json.loads(bytes(response.body)) == {
        "type": "urn:mien:problem:unavailable",
        "title": PROBLEMS["unavailable"].title,
        "status": 503,
        "detail": "the detect runner is overloaded",
        "code": "unavailable",
        "request_id": "the-id",
    }
    assert set(Problem.model_fields) == {"type", "title", "status", "detail", "code", "request_id"}
