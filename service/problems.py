"""The one error table: a stable code → HTTP status and title, as `application/problem+json` (RFC 9457)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from fastapi.responses import JSONResponse
from pydantic import BaseModel, Field

from handlers.errors import HandlerError
from service.request_context import current_request_id

MEDIA_TYPE = "application/problem+json"
_RETRY_AFTER_S = 1


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
    "too_large": _Row(413, "The request is over a limit"),
    "unsupported_format": _Row(415, "This is not an image of a supported format"),
    "corrupt_image": _Row(422, "The image cannot be decoded"),
    "empty_image": _Row(422, "The image is empty"),
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


class UnavailableError(ServiceError):
    """A runner cannot be reached, or sheds load."""

    code: ClassVar[str] = "unavailable"


class DeadlineError(ServiceError):
    """The request's time is over."""

    code: ClassVar[str] = "timeout"


class Problem(BaseModel):
    """The body of every error."""

    type: str = Field(examples=["urn:mien:problem:corrupt_image"])
    title: str = Field(examples=[PROBLEMS["corrupt_image"].title])
    status: int = Field(examples=[422])
    detail: str = Field(examples=["the image cannot be decoded (OSError)"])
    code: str = Field(examples=["corrupt_image"])
    request_id: str = Field(examples=["2f1c8e5c6f0b4f0e9a57d8f2f3c2a1b0"])


def problem_of(error: HandlerError) -> Problem:
    """The body for an error. A code that the table lacks is a fault of ours, and answered as one."""
    code = error.code if error.code in PROBLEMS else "internal"
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


def problem_response(error: HandlerError) -> JSONResponse:
    """The HTTP response for an error."""
    problem = problem_of(error)
    headers = {"Retry-After": str(_RETRY_AFTER_S)} if PROBLEMS[problem.code].retry else {}
    if isinstance(error, MethodNotAllowedError):
        headers["Allow"] = error.allow
    return JSONResponse(problem.model_dump(), problem.status, headers, MEDIA_TYPE)
