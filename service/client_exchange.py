"""How the Python client asks: errors, attempts, waits. Nothing here sends or sleeps, so it serves both clients."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Generic, TypeVar

import httpx

from service.schemas import Problem

T = TypeVar("T")
Query = dict[str, str | int | bool]

_LONGEST_TIMEOUT_S = 86_400
_MOST_RETRIES = 100
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0


class MienError(Exception):
    """Root of the tree.

    code: of the service's error table, or `connection_failed`, `timeout`, `unknown`. status: of the HTTP answer, None
    without one. problem: the body of the answer, None when it was not Mien's. retry_after_s: what the answer asked
    callers to wait.
    """

    def __init__(
        self,
        detail: str,
        *,
        code: str = "unknown",
        status: int | None = None,
        problem: Problem | None = None,
        retry_after_s: float | None = None,
    ) -> None:
        super().__init__(detail)
        self.code = code
        self.status = status
        self.problem = problem
        self.retry_after_s = retry_after_s


class RequestError(MienError):
    """4xx: the request will not do as it is."""


class OverloadedError(MienError):
    """429: the service refuses what is over its capacity, or over the caller's share of it."""


class UnavailableError(MienError):
    """503: the service starts, stops, or lost a runner."""


class ServerError(MienError):
    """Any other answer that is no result: the service failed, or something else answered in its place."""


class TransportError(MienError):
    """No whole answer came."""


@dataclass(frozen=True)
class Call(Generic[T]):
    """What one method asks for. parse: the body of a 2xx answer → the method's result; raises ValueError.

    repeatable: may be sent again at all; harmless: also when it is unknown whether the last one arrived.
    """

    method: str
    path: str
    parse: Callable[[bytes], T]
    query: Query = field(default_factory=dict)
    body: bytes | None = None
    content_type: str = "application/octet-stream"
    files: list[bytes] = field(default_factory=list)
    repeatable: bool = True
    harmless: bool = True


@dataclass(frozen=True)
class Rules:
    """The arguments of a client. Raises ValueError for one out of its range."""

    timeout_s: float
    retries: int
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s <= _LONGEST_TIMEOUT_S:
            raise ValueError(f"timeout_s must be over 0 and at most {_LONGEST_TIMEOUT_S}, not {self.timeout_s}")
        if not 0 <= self.retries <= _MOST_RETRIES:
            raise ValueError(f"retries must be 0 to {_MOST_RETRIES}, not {self.retries}")


@dataclass(frozen=True)
class Again:
    """Send the call once more after this wait."""

    wait_s: float


class Exchange(Generic[T]):
    """One call with all its attempts: what to send, and what an outcome means. Neither sends nor sleeps."""

    def __init__(self, call: Call[T], rules: Rules) -> None:
        self._call = call
        self._clock = rules.clock
        self._end_s = rules.clock() + rules.timeout_s
        self._retries_left = rules.retries if call.repeatable else 0
        self._next_backoff_s = _FIRST_BACKOFF_S

    def left_s(self) -> float:
        """Seconds until the call's time is over; never less than 1 ms, as a sleep may have taken too long."""
        return max(0.001, self._end_s - self._clock())

    def request(self, http: httpx.Client | httpx.AsyncClient) -> httpx.Request:
        """The next attempt."""
        call, left_s = self._call, self.left_s()
        headers = {"X-Request-Timeout-Ms": str(round(left_s * 1000))}
        if call.body is not None:
            headers["Content-Type"] = call.content_type
        files = [("images", (str(index), file, "application/octet-stream")) for index, file in enumerate(call.files)]
        return http.build_request(
            call.method,
            call.path,
            params=call.query,
            headers=headers,
            content=call.body,
            files=files or None,
            timeout=left_s,
        )

    def settle(self, outcome: httpx.Response | Exception) -> T | Again:
        """The result, or when to try again. Raises MienError when that is not worth it."""
        if isinstance(outcome, httpx.Response) and outcome.is_success:
            return self._result(outcome)
        error = _refusal(outcome) if isinstance(outcome, httpx.Response) else _failure(outcome)
        lost = error.code == "connection_failed" and self._call.harmless
        may_pass = lost or isinstance(error, OverloadedError | UnavailableError)
        wait_s = random.uniform(0, self._next_backoff_s) if error.retry_after_s is None else error.retry_after_s
        if not may_pass or not self._retries_left or wait_s >= self._end_s - self._clock():
            raise error from (outcome if isinstance(outcome, Exception) else None)
        self._retries_left -= 1
        self._next_backoff_s = min(2 * self._next_backoff_s, _LONGEST_BACKOFF_S)
        return Again(wait_s)

    def pause_after(self, outcome: httpx.Response | Exception) -> float:
        """Seconds to wait before the call is sent once more. Raises MienError when that is not worth it."""
        settled = self.settle(outcome)
        assert isinstance(settled, Again), "the answer was a success"
        return settled.wait_s

    def _result(self, answer: httpx.Response) -> T:
        try:
            return self._call.parse(answer.content)
        except ValueError as error:
            raise ServerError(f"the answer is not Mien's: {error}", status=answer.status_code) from error


def _refusal(response: httpx.Response) -> MienError:
    status = response.status_code
    try:
        problem = Problem.model_validate_json(response.content)
    except ValueError:
        problem = None
    kind: type[MienError]
    if status == 429:
        kind = OverloadedError
    elif status == 503:
        kind = UnavailableError
    elif 400 <= status < 500:
        kind = RequestError
    else:
        kind = ServerError
    return kind(
        f"{status} {problem.code}: {problem.detail} (request {problem.request_id})" if problem else f"{status}",
        code=problem.code if problem else "unknown",
        status=status,
        problem=problem,
        retry_after_s=_retry_after_s(response.headers),
    )


def _failure(error: Exception) -> TransportError:
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return TransportError("no answer in time", code="timeout")
    return TransportError(f"no answer: {error or type(error).__name__}", code="connection_failed")


def _retry_after_s(headers: httpx.Headers) -> float | None:
    """Seconds from a `Retry-After` header, which holds either these or a date; None without a readable one."""
    text = headers.get("Retry-After", "").strip()
    if text.isdecimal():
        return float(text)
    until = _date(text)
    if until is None:
        return None
    # The server's own clock, where it says it, since ours may be off.
    now = _date(headers.get("Date", "")) or datetime.now(UTC)
    return max(0.0, (until - now).total_seconds())


def _date(text: str) -> datetime | None:
    try:
        moment = parsedate_to_datetime(text)
    except ValueError:
        return None
    return moment if moment.tzinfo else moment.replace(tzinfo=UTC)


def checked_url(base_url: str) -> str:
    """The address as it is. Raises ValueError for one that is none of HTTP's."""
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"base_url must begin with http:// or https://, not {base_url!r}")
    return base_url


def credentials(api_key: str | None) -> dict[str, str]:
    """The headers of a key. Raises ValueError, without the key, for one that no header can carry."""
    if api_key is None:
        return {}
    # Checked here, since the HTTP library puts a header that it refuses into its message.
    if not api_key or not api_key.isascii() or any(not "!" <= character <= "~" for character in api_key):
        raise ValueError("api_key must be printable ASCII without spaces or line ends")
    return {"Authorization": f"Bearer {api_key}"}
