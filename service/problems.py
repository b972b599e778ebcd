"""The one error table: a stable code → HTTP status and title, as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from starlette.responses import Response

from handlers.errors import HandlerError
from service import metrics
from service.request_context import current_request_id
from service.schemas import Problem

MEDIA_TYPE = "application/problem+json"
RETRY_AFTER_S = 1


@dataclass(frozen=True)
class _Row:
    status: int
    title: str
    retry: bool = False


PROBLEMS: dict[str, _Row] = {
    "invalid_request": _Row(400, "The request is not valid"),
    "not_found": _Row(404, "There is nothing at this address"),
    "method_not_allowed": _Row(405, "This address does not take this method"),
    "model_not_found": _Row(404, "There is no such model"),
    "job_not_found": _Row(404, "There is no such job"),
    "job_not_finished": _Row(409, "The job has no results yet"),
    "too_large": _Row(413, "The request is over a limit"),
    "unsupported_format": _Row(415, "This is not an image of a supported format"),
    "corrupt_image": _Row(422, "The image cannot be decoded"),
    "empty_image": _Row(422, "The image is empty"),
    "unauthenticated": _Row(401, "An API key is needed"),
    "forbidden": _Row(403, "This is not allowed"),
    "overloaded": _Row(429, "The service has more work than it can take", retry=True),
    "internal": _Row(500, "The service failed"),
    "unavailable": _Row(503, "The service cannot answer at the moment", retry=True),
    "timeout": _Row(504, "The request took too long", retry=True),
}


class ServiceError(HandlerError):
    """A failure of the service rather than of one picture; same shape, same table."""


class NotFoundError(ServiceError):
    """No route."""

    code: ClassVar[str] = "not_found"


class MethodNotAllowedError(ServiceError):
    """A route, but not for this method. allow: the methods it has, for the header that RFC 9110 wants."""

    code: ClassVar[str] = "method_not_allowed"

    def __init__(self, detail: str, allow: str = "") -> None:
        super().__init__(detail)
        self.allow = allow


class UnauthenticatedError(ServiceError):
    """No API key, or one that is not known."""

    code: ClassVar[str] = "unauthenticated"


class ForbiddenError(ServiceError):
    """A known API key without the scope that this address needs, or an input that nobody may read."""

    code: ClassVar[str] = "forbidden"


class JobNotFoundError(ServiceError):
    """No job of that id, or one of another caller."""

    code: ClassVar[str] = "job_not_found"


class JobNotFinishedError(ServiceError):
    """The results of a job that has none: it is not finished, failed, or was cancelled."""

    code: ClassVar[str] = "job_not_finished"


class OverloadedError(ServiceError):
    """More work than the queue takes. retry_after_s: when it may be worth trying again, in whole seconds."""

    code: ClassVar[str] = "overloaded"

    def __init__(self, detail: str, retry_after_s: int = RETRY_AFTER_S) -> None:
        super().__init__(detail)
        self.retry_after_s = retry_after_s


class UnavailableError(ServiceError):
    """A runner cannot be reached, or sheds load."""

    code: ClassVar[str] = "unavailable"


def problem_of(error: HandlerError) -> Problem:
    """The body for an error that is answered now, which is counted. A code that the table lacks is a fault of ours."""
    code = error.code if error.code in PROBLEMS else "internal"
    metrics.REJECTIONS.labels(code).inc()
    detail = "the cause is in the service's log under the request id" if code == "internal" else error.detail
    row = PROBLEMS[code]
    return Problem(
        type=f"urn:mien:problem:{code}",
        title=row.title,
        status=row.status,
        detail=detail,
        code=code,
        request_id=current_request_id(),
    )


def problem_response(error: HandlerError) -> Response:
    """The HTTP response for an error."""
    problem = problem_of(error)
    headers = {}
    if PROBLEMS[problem.code].retry:
        headers["Retry-After"] = str(error.retry_after_s if isinstance(error, OverloadedError) else RETRY_AFTER_S)
    if isinstance(error, MethodNotAllowedError):
        headers["Allow"] = error.allow
    if isinstance(error, UnauthenticatedError):
        headers["WWW-Authenticate"] = "Bearer"
    return Response(problem.model_dump_json(), problem.status, headers, MEDIA_TYPE)
