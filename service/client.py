"""The Python client of the REST door, sync and async, with one set of rules for both.

    with Client("http://127.0.0.1:3000") as mien:
        for face in mien.analyze(Path("photo.jpg"), top_k=3).faces:
            print(face.emotion, face.confidence)

Errors:

    MienError                 has `code`, `status`, `problem`, `retry_after_s`
    ├── RequestError          4xx     the same request will be refused again; `code` says why
    ├── OverloadedError       429     too much at once
    ├── UnavailableError      503     the service cannot answer at the moment
    ├── ServerError           others  500 `internal`, 504 `timeout`, or an answer that is not Mien's
    └── TransportError        none    no answer: `connection_failed`, or `timeout` when `timeout_s` was over

A picture of a batch that cannot be read is no exception: its `Problem` stands in its place in the results.

429, 503 and lost connections are tried again, as every call can be repeated without harm: after the time that
`Retry-After` names, else after a random one (exponential backoff, full jitter). A wait that would not end within
`timeout_s` is not begun.

It imports no part of the server but the schemas, so it runs where BentoML is not installed.
"""

from __future__ import annotations

import asyncio
import os
import random
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from pathlib import Path
from typing import Generic, Self, TypeVar
from urllib.parse import quote

import httpx

from service.schemas import (
    AnalysisBody,
    BatchBody,
    ClassificationBody,
    DetectionBody,
    EmotionBody,
    ModelBody,
    ModelsBody,
    ModelSummary,
    Problem,
)

__all__ = [
    "AsyncClient",
    "Client",
    "Image",
    "MienError",
    "OverloadedError",
    "RequestError",
    "ServerError",
    "TransportError",
    "UnavailableError",
]

T = TypeVar("T")
Image = bytes | os.PathLike[str]
"""An image file: its bytes, or where it lies on this machine. Never a URL."""

_LONGEST_TIMEOUT_S = 86_400
_MOST_RETRIES = 100
_FIRST_BACKOFF_S = 0.1
_LONGEST_BACKOFF_S = 5.0
_Query = dict[str, str | int | bool]


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


class Client:
    """The service from synchronous code; threads may share one. Close it, or use it as a context manager.

    base_url: where the service is, such as `http://127.0.0.1:3000`. api_key: sent as a bearer token. timeout_s: for a
    whole call with its retries, from when its pictures have been read; the service gets told, and stops working on it
    then. A single attempt may last longer than that only when the network delivers in pieces: each wait for a
    connection or for bytes may last what was left when the attempt began (`AsyncClient` cuts these off too).
    retries: how often a call is sent again at most, up to 100. transport: another way to the server, with its own
    certificates for instance. clock and sleep: seconds of a monotonic clock, and waiting for some.

    Raises ValueError for an argument out of its range. Every method raises MienError (see the module), and those that
    take pictures OSError for one that cannot be read.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        transport: httpx.BaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._rules = _Rules(timeout_s, retries, clock)
        self._sleep = sleep
        self._http = httpx.Client(base_url=_checked(base_url), headers=_credentials(api_key), transport=transport)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the connections."""
        self._http.close()

    def analyze(
        self,
        image: Image,
        *,
        model: str | None = None,
        top_k: int | None = None,
        min_face_size: int | None = None,
        landmarks: bool = False,
    ) -> AnalysisBody:
        """Faces and expressions of one picture.

        model: a served name or `name:version`, the service's first if left out. top_k: keep the likeliest labels only.
        min_face_size: smallest face looked for, in pixels. landmarks: add the five points of each face.
        """
        return self._run(_analyze(image, model, top_k, min_face_size, landmarks))

    def analyze_batch(
        self,
        images: Sequence[Image],
        *,
        model: str | None = None,
        top_k: int | None = None,
        min_face_size: int | None = None,
        landmarks: bool = False,
    ) -> list[AnalysisBody | Problem]:
        """A result or a problem a picture, in order. Options: see `analyze`. The service limits how many at once."""
        if not images:
            return []
        return self._run(_analyze_batch(images, model, top_k, min_face_size, landmarks))

    def detect(self, image: Image, *, min_face_size: int | None = None, landmarks: bool = True) -> DetectionBody:
        """Faces of one picture without their expressions. Options: see `analyze`."""
        return self._run(_detect(image, min_face_size, landmarks))

    def classify(
        self, crops: Sequence[Image], *, model: str | None = None, top_k: int | None = None
    ) -> list[EmotionBody | Problem]:
        """An expression or a problem a face crop, in order. Options: see `analyze`."""
        if not crops:
            return []
        return self._run(_classify(crops, model, top_k))

    def models(self) -> list[ModelSummary]:
        """What is served, the model that answers by default first."""
        return self._run(_models())

    def model(self, name: str) -> ModelBody:
        """All about one served model, by name or `name:version`."""
        return self._run(_model(name))

    def ready(self) -> bool:
        """Whether the service takes requests now, asked once; no answer is False. Raises RequestError on a 4xx."""
        try:
            return self._run(_READY)
        except RequestError:
            raise
        except MienError:
            return False

    def _run(self, call: _Call[T]) -> T:
        exchange = _Exchange(call, self._rules)
        while True:
            outcome: httpx.Response | Exception
            try:
                outcome = self._http.send(exchange.request(self._http))
            except httpx.RequestError as error:
                outcome = error
            settled = exchange.settle(outcome)
            if not isinstance(settled, _Again):
                return settled
            self._sleep(settled.wait_s)


class AsyncClient:
    """The service from asyncio; tasks of one event loop may share one. See `Client`, whose methods these are.

    Every call ends within `timeout_s`, waiting for one of the 100 connections included. Pictures are read in a thread.
    """

    def __init__(
        self,
        base_url: str,
        *,
        api_key: str | None = None,
        timeout_s: float = 30.0,
        retries: int = 3,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._rules = _Rules(timeout_s, retries, clock)
        self._sleep = sleep
        self._http = httpx.AsyncClient(base_url=_checked(base_url), headers=_credentials(api_key), transport=transport)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def close(self) -> None:
        """See `Client.close`."""
        await self._http.aclose()

    async def analyze(
        self,
        image: Image,
        *,
        model: str | None = None,
        top_k: int | None = None,
        min_face_size: int | None = None,
        landmarks: bool = False,
    ) -> AnalysisBody:
        """See `Client.analyze`."""
        call = await asyncio.to_thread(_analyze, image, model, top_k, min_face_size, landmarks)
        return await self._run(call)

    async def analyze_batch(
        self,
        images: Sequence[Image],
        *,
        model: str | None = None,
        top_k: int | None = None,
        min_face_size: int | None = None,
        landmarks: bool = False,
    ) -> list[AnalysisBody | Problem]:
        """See `Client.analyze_batch`."""
        if not images:
            return []
        call = await asyncio.to_thread(_analyze_batch, images, model, top_k, min_face_size, landmarks)
        return await self._run(call)

    async def detect(self, image: Image, *, min_face_size: int | None = None, landmarks: bool = True) -> DetectionBody:
        """See `Client.detect`."""
        return await self._run(await asyncio.to_thread(_detect, image, min_face_size, landmarks))

    async def classify(
        self, crops: Sequence[Image], *, model: str | None = None, top_k: int | None = None
    ) -> list[EmotionBody | Problem]:
        """See `Client.classify`."""
        if not crops:
            return []
        return await self._run(await asyncio.to_thread(_classify, crops, model, top_k))

    async def models(self) -> list[ModelSummary]:
        """See `Client.models`."""
        return await self._run(_models())

    async def model(self, name: str) -> ModelBody:
        """See `Client.model`."""
        return await self._run(_model(name))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        try:
            return await self._run(_READY)
        except RequestError:
            raise
        except MienError:
            return False

    async def _run(self, call: _Call[T]) -> T:
        exchange = _Exchange(call, self._rules)
        while True:
            outcome: httpx.Response | Exception
            try:
                async with asyncio.timeout(exchange.left_s()):
                    outcome = await self._http.send(exchange.request(self._http))
            except (httpx.RequestError, TimeoutError) as error:
                outcome = error
            settled = exchange.settle(outcome)
            if not isinstance(settled, _Again):
                return settled
            await self._sleep(settled.wait_s)


@dataclass(frozen=True)
class _Call(Generic[T]):
    """What one method asks for. parse: the body of a 2xx answer → the method's result; raises ValueError."""

    method: str
    path: str
    parse: Callable[[bytes], T]
    query: _Query = field(default_factory=dict)
    body: bytes | None = None
    files: list[bytes] = field(default_factory=list)
    repeatable: bool = True


def _analyze(
    image: Image, model: str | None, top_k: int | None, min_face_size: int | None, landmarks: bool
) -> _Call[AnalysisBody]:
    query = _query(model=model, top_k=top_k, min_face_size=min_face_size, landmarks=landmarks)
    return _Call("POST", "/v1/analyze", AnalysisBody.model_validate_json, query, body=_read(image))


def _analyze_batch(
    images: Sequence[Image], model: str | None, top_k: int | None, min_face_size: int | None, landmarks: bool
) -> _Call[list[AnalysisBody | Problem]]:
    files = [_read(image) for image in images]

    def parse(body: bytes) -> list[AnalysisBody | Problem]:
        batch = BatchBody.model_validate_json(body)
        _check_order([result.index for result in batch.results], len(files))
        pictures = [_either(result.analysis, result.problem) for result in batch.results]
        return [
            picture
            if isinstance(picture, Problem)
            else AnalysisBody(model=batch.model, width=picture.width, height=picture.height, faces=picture.faces)
            for picture in pictures
        ]

    query = _query(model=model, top_k=top_k, min_face_size=min_face_size, landmarks=landmarks)
    return _Call("POST", "/v1/analyze/batch", parse, query, files=files)


def _detect(image: Image, min_face_size: int | None, landmarks: bool) -> _Call[DetectionBody]:
    query = _query(min_face_size=min_face_size, landmarks=landmarks)
    return _Call("POST", "/v1/detect", DetectionBody.model_validate_json, query, body=_read(image))


def _classify(crops: Sequence[Image], model: str | None, top_k: int | None) -> _Call[list[EmotionBody | Problem]]:
    files = [_read(crop) for crop in crops]

    def parse(body: bytes) -> list[EmotionBody | Problem]:
        results = ClassificationBody.model_validate_json(body).results
        _check_order([result.index for result in results], len(files))
        return [_either(result.emotion, result.problem) for result in results]

    return _Call("POST", "/v1/classify", parse, _query(model=model, top_k=top_k), files=files)


def _models() -> _Call[list[ModelSummary]]:
    return _Call("GET", "/v1/models", lambda body: ModelsBody.model_validate_json(body).models)


def _model(name: str) -> _Call[ModelBody]:
    return _Call("GET", f"/v1/models/{quote(name, safe=':')}", ModelBody.model_validate_json)


_READY = _Call("GET", "/readyz", lambda _: True, repeatable=False)


def _read(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, os.PathLike):
        return Path(image).read_bytes()
    raise TypeError(f"an image is bytes or a path, not {type(image).__name__}")


def _query(**options: str | int | bool | None) -> _Query:
    return {name: value for name, value in options.items() if value is not None}


def _check_order(indices: list[int], n_sent: int) -> None:
    if indices != list(range(n_sent)):
        raise ValueError(f"results for {indices} to {n_sent} pictures")


def _either(result: T | None, problem: Problem | None) -> T | Problem:
    if result is not None:
        return result
    if problem is not None:
        return problem
    raise ValueError("an item is neither a result nor a problem")


@dataclass(frozen=True)
class _Rules:
    timeout_s: float
    retries: int
    clock: Callable[[], float]

    def __post_init__(self) -> None:
        if not 0 < self.timeout_s <= _LONGEST_TIMEOUT_S:
            raise ValueError(f"timeout_s must be over 0 and at most {_LONGEST_TIMEOUT_S}, not {self.timeout_s}")
        if not 0 <= self.retries <= _MOST_RETRIES:
            raise ValueError(f"retries must be 0 to {_MOST_RETRIES}, not {self.retries}")


@dataclass(frozen=True)
class _Again:
    """Send the call once more after this wait."""

    wait_s: float


class _Exchange(Generic[T]):
    """One call with all its attempts: what to send, and what an outcome means. Neither sends nor sleeps."""

    def __init__(self, call: _Call[T], rules: _Rules) -> None:
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
            headers["Content-Type"] = "application/octet-stream"
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

    def settle(self, outcome: httpx.Response | Exception) -> T | _Again:
        """The result, or when to try again. Raises MienError when that is not worth it."""
        if isinstance(outcome, httpx.Response) and outcome.is_success:
            return self._result(outcome)
        error = _refusal(outcome) if isinstance(outcome, httpx.Response) else _failure(outcome)
        may_pass = isinstance(error, OverloadedError | UnavailableError) or error.code == "connection_failed"
        wait_s = random.uniform(0, self._next_backoff_s) if error.retry_after_s is None else error.retry_after_s
        if not may_pass or not self._retries_left or wait_s >= self._end_s - self._clock():
            raise error from (outcome if isinstance(outcome, Exception) else None)
        self._retries_left -= 1
        self._next_backoff_s = min(2 * self._next_backoff_s, _LONGEST_BACKOFF_S)
        return _Again(wait_s)

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


def _checked(base_url: str) -> str:
    if not base_url.startswith(("http://", "https://")):
        raise ValueError(f"base_url must begin with http:// or https://, not {base_url!r}")
    return base_url


def _credentials(api_key: str | None) -> dict[str, str]:
    if api_key is None:
        return {}
    # Checked here, since the HTTP library puts a header that it refuses into its message.
    if not api_key or not api_key.isascii() or any(not "!" <= character <= "~" for character in api_key):
        raise ValueError("api_key must be printable ASCII without spaces or line ends")
    return {"Authorization": f"Bearer {api_key}"}
