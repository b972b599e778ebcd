"""What can be wrong with one picture or one call, each with its stable code.

HandlerError                   code
├── InvalidRequestError        invalid_request     an option out of its range
├── UnsupportedFormatError     unsupported_format  not an image, or a kind that is not read
├── CorruptImageError          corrupt_image       an image that cannot be decoded
├── EmptyImageError            empty_image         zero bytes
├── TooLargeError              too_large           over the byte, pixel or side limit
├── ModelUnavailableError      model_not_found     no such model, or it cannot be loaded
├── EngineUnavailableError     engine_unavailable  the engine is not installed here
├── ExpiredError               timeout             its time was over before the work was done
└── InternalError              internal            our fault; carries no text of the cause

A picture's error is a *value* in the list of results: it is returned, not raised, so that its neighbours keep
theirs. It is an exception type all the same, so that a caller with one picture can raise it.
"""

from __future__ import annotations

from typing import ClassVar


class HandlerError(Exception):
    """Root of the tree. `code` is stable and part of the API; `detail` is one sentence for a person."""

    code: ClassVar[str] = "internal"

    def __init__(self, detail: str) -> None:
        super().__init__(detail)
        self.detail = detail

    def __eq__(self, other: object) -> bool:
        return type(other) is type(self) and isinstance(other, HandlerError) and other.detail == self.detail

    def __hash__(self) -> int:
        return hash((type(self), self.detail))


class InvalidRequestError(HandlerError):
    """An option out of its range."""

    code = "invalid_request"


class UnsupportedFormatError(HandlerError):
    """Not an image, or one of a kind that is not read."""

    code = "unsupported_format"


class CorruptImageError(HandlerError):
    """The header names an image format, but the data cannot be decoded."""

    code = "corrupt_image"


class EmptyImageError(HandlerError):
    """Zero bytes."""

    code = "empty_image"


class TooLargeError(HandlerError):
    """Over the limit of bytes, pixels or side length, found before the pixels are decoded."""

    code = "too_large"


class ModelUnavailableError(HandlerError):
    """No such model, or its files cannot be used."""

    code = "model_not_found"


class EngineUnavailableError(HandlerError):
    """The inference engine asked for is unknown or not installed."""

    code = "engine_unavailable"


class ExpiredError(HandlerError):
    """Its time was over before the work was done."""

    code = "timeout"


class InternalError(HandlerError):
    """A fault of ours while working on this picture; the cause is in the log, never in the answer."""

    code = "internal"
