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

429, 503 and lost connections are tried again, as a call can be repeated without harm unless its method says that it
cannot: after the time that
`Retry-After` names, else after a random one (exponential backoff, full jitter). A wait that would not end within
`timeout_s` is not begun.

It imports no part of the server but the schemas, so it runs where BentoML is not installed.
"""

from __future__ import annotations

import asyncio
import json
import math
import os
import time
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import aclosing, closing, contextmanager
from pathlib import Path
from typing import BinaryIO, Self, TypeVar
from urllib.parse import quote

import httpx

from service.client_exchange import (
    Again,
    Call,
    Exchange,
    MienError,
    OverloadedError,
    Query,
    RequestError,
    Rules,
    ServerError,
    TransportError,
    UnavailableError,
    checked_url,
    credentials,
)
from service.jobs.schemas import JobBody, JobsBody, ResultFormat
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
        self._rules = Rules(timeout_s, retries, clock)
        self._sleep = sleep
        self._http = httpx.Client(base_url=checked_url(base_url), headers=credentials(api_key), transport=transport)

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

    def create_job(
        self,
        input: str,
        *,
        model: str | None = None,
        recursive: bool = True,
        include: Sequence[str] = (),
        min_face_size: int | None = None,
    ) -> JobBody:
        """Score a folder or prefix of a bucket in the background; see `POST /v1/jobs`.

        input: below a root of the service, as in `photos/may`. include: shell patterns of file names. A call whose
        connection was lost is not sent again: the job may have been made.
        """
        return self._run(_create_job(input, model, recursive, include, min_face_size))

    def job(self, job_id: str) -> JobBody:
        """How far a job is."""
        return self._run(_job(job_id))

    def jobs(self, *, limit: int | None = None, after: str | None = None) -> JobsBody:
        """A page of one's own jobs, newest first. after: `next_after` of the page before."""
        return self._run(_jobs(limit, after))

    def wait_for_job(self, job_id: str, *, wait_s: float = math.inf, poll_s: float = 1.0) -> JobBody:
        """Ask every `poll_s` until the job has succeeded, failed or been cancelled, and return it as it is then.

        Raises MienError with the code `timeout` when that takes longer than `wait_s`.
        """
        end_s = self._rules.clock() + wait_s
        while not is_finished(job := self.job(job_id)):
            if self._rules.clock() + poll_s > end_s:
                raise _still_unfinished(job)
            self._sleep(poll_s)
        return job

    def job_results(self, job_id: str, path: os.PathLike[str] | str, *, format: ResultFormat = "parquet") -> None:
        """Save the results of a job that succeeded in a file, which appears or is replaced when it is whole.

        It may take as long as it wants; only each wait for bytes is bounded by `timeout_s`. Raises OSError when the
        file cannot be written.
        """
        exchange = Exchange(_results(job_id, format), self._rules)
        while True:
            outcome: httpx.Response | Exception
            try:
                with closing(self._http.send(exchange.request(self._http), stream=True)) as answer:
                    if answer.is_success:
                        with whole_file(path) as file:
                            for piece in answer.iter_bytes():
                                file.write(piece)
                        return
                    answer.read()
                    outcome = answer
            except httpx.RequestError as error:
                outcome = error
            self._sleep(exchange.pause_after(outcome))

    def cancel_job(self, job_id: str) -> JobBody:
        """End a job that is not finished, soon; one that is stays as it is."""
        return self._run(_cancel_job(job_id))

    def remove_job(self, job_id: str) -> bool:
        """Remove a finished job and its results. False: it was not finished, and has been cancelled instead.

        A call whose connection was lost is not sent again: the first may have cancelled what the second would remove.
        """
        return self._run(_remove_job(job_id))

    def ready(self) -> bool:
        """Whether the service takes requests now, asked once; no answer is False. Raises RequestError on a 4xx."""
        try:
            return self._run(_READY)
        except RequestError:
            raise
        except MienError:
            return False

    def _run(self, call: Call[T]) -> T:
        exchange = Exchange(call, self._rules)
        while True:
            outcome: httpx.Response | Exception
            try:
                outcome = self._http.send(exchange.request(self._http))
            except httpx.RequestError as error:
                outcome = error
            settled = exchange.settle(outcome)
            if not isinstance(settled, Again):
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
        self._rules = Rules(timeout_s, retries, clock)
        self._sleep = sleep
        self._http = httpx.AsyncClient(
            base_url=checked_url(base_url), headers=credentials(api_key), transport=transport
        )

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

    async def create_job(
        self,
        input: str,
        *,
        model: str | None = None,
        recursive: bool = True,
        include: Sequence[str] = (),
        min_face_size: int | None = None,
    ) -> JobBody:
        """See `Client.create_job`."""
        return await self._run(_create_job(input, model, recursive, include, min_face_size))

    async def job(self, job_id: str) -> JobBody:
        """See `Client.job`."""
        return await self._run(_job(job_id))

    async def jobs(self, *, limit: int | None = None, after: str | None = None) -> JobsBody:
        """See `Client.jobs`."""
        return await self._run(_jobs(limit, after))

    async def wait_for_job(self, job_id: str, *, wait_s: float = math.inf, poll_s: float = 1.0) -> JobBody:
        """See `Client.wait_for_job`."""
        end_s = self._rules.clock() + wait_s
        while not is_finished(job := await self.job(job_id)):
            if self._rules.clock() + poll_s > end_s:
                raise _still_unfinished(job)
            await self._sleep(poll_s)
        return job

    async def job_results(self, job_id: str, path: os.PathLike[str] | str, *, format: ResultFormat = "parquet") -> None:
        """See `Client.job_results`."""
        exchange = Exchange(_results(job_id, format), self._rules)
        while True:
            outcome: httpx.Response | Exception
            try:
                async with asyncio.timeout(exchange.left_s()):
                    answer = await self._http.send(exchange.request(self._http), stream=True)
                async with aclosing(answer):
                    if answer.is_success:
                        with whole_file(path) as file:
                            async for piece in answer.aiter_bytes():
                                await asyncio.to_thread(file.write, piece)
                        return
                    await answer.aread()
                    outcome = answer
            except (httpx.RequestError, TimeoutError) as error:
                outcome = error
            await self._sleep(exchange.pause_after(outcome))

    async def cancel_job(self, job_id: str) -> JobBody:
        """See `Client.cancel_job`."""
        return await self._run(_cancel_job(job_id))

    async def remove_job(self, job_id: str) -> bool:
        """See `Client.remove_job`."""
        return await self._run(_remove_job(job_id))

    async def ready(self) -> bool:
        """See `Client.ready`."""
        try:
            return await self._run(_READY)
        except RequestError:
            raise
        except MienError:
            return False

    async def _run(self, call: Call[T]) -> T:
        exchange = Exchange(call, self._rules)
        while True:
            outcome: httpx.Response | Exception
            try:
                async with asyncio.timeout(exchange.left_s()):
                    outcome = await self._http.send(exchange.request(self._http))
            except (httpx.RequestError, TimeoutError) as error:
                outcome = error
            settled = exchange.settle(outcome)
            if not isinstance(settled, Again):
                return settled
            await self._sleep(settled.wait_s)


def _analyze(
    image: Image, model: str | None, top_k: int | None, min_face_size: int | None, landmarks: bool
) -> Call[AnalysisBody]:
    query = _query(model=model, top_k=top_k, min_face_size=min_face_size, landmarks=landmarks)
    return Call("POST", "/v1/analyze", AnalysisBody.model_validate_json, query, body=_read(image))


def _analyze_batch(
    images: Sequence[Image], model: str | None, top_k: int | None, min_face_size: int | None, landmarks: bool
) -> Call[list[AnalysisBody | Problem]]:
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
    return Call("POST", "/v1/analyze/batch", parse, query, files=files)


def _detect(image: Image, min_face_size: int | None, landmarks: bool) -> Call[DetectionBody]:
    query = _query(min_face_size=min_face_size, landmarks=landmarks)
    return Call("POST", "/v1/detect", DetectionBody.model_validate_json, query, body=_read(image))


def _classify(crops: Sequence[Image], model: str | None, top_k: int | None) -> Call[list[EmotionBody | Problem]]:
    files = [_read(crop) for crop in crops]

    def parse(body: bytes) -> list[EmotionBody | Problem]:
        results = ClassificationBody.model_validate_json(body).results
        _check_order([result.index for result in results], len(files))
        return [_either(result.emotion, result.problem) for result in results]

    return Call("POST", "/v1/classify", parse, _query(model=model, top_k=top_k), files=files)


def _models() -> Call[list[ModelSummary]]:
    return Call("GET", "/v1/models", lambda body: ModelsBody.model_validate_json(body).models)


def _model(name: str) -> Call[ModelBody]:
    return Call("GET", f"/v1/models/{quote(name, safe=':')}", ModelBody.model_validate_json)


def _create_job(
    input: str, model: str | None, recursive: bool, include: Sequence[str], min_face_size: int | None
) -> Call[JobBody]:
    wanted = {"input": input, "model": model, "recursive": recursive, "include": list(include)}
    body = json.dumps({**wanted, "min_face_size": min_face_size}).encode()
    parse = JobBody.model_validate_json
    return Call("POST", "/v1/jobs", parse, body=body, content_type="application/json", harmless=False)


def _job(job_id: str) -> Call[JobBody]:
    return Call("GET", _job_path(job_id), JobBody.model_validate_json)


def _jobs(limit: int | None, after: str | None) -> Call[JobsBody]:
    return Call("GET", "/v1/jobs", JobsBody.model_validate_json, _query(limit=limit, after=after))


def _cancel_job(job_id: str) -> Call[JobBody]:
    return Call("DELETE", _job_path(job_id), JobBody.model_validate_json, _query(keep_finished=True))


def _remove_job(job_id: str) -> Call[bool]:
    return Call("DELETE", _job_path(job_id), lambda body: not body, harmless=False)


def _results(job_id: str, format: ResultFormat) -> Call[bytes]:
    return Call("GET", f"{_job_path(job_id)}/results", bytes, _query(format=format))


def _job_path(job_id: str) -> str:
    return f"/v1/jobs/{quote(job_id, safe='')}"


def is_finished(job: JobBody) -> bool:
    """Whether nothing will change any more."""
    return job.state not in ("queued", "running")


def _still_unfinished(job: JobBody) -> MienError:
    return MienError(f"job {job.id} is still {job.state}", code="timeout")


@contextmanager
def whole_file(path: os.PathLike[str] | str) -> Iterator[BinaryIO]:
    """A file to write that has its name only once the block has ended well."""
    target = Path(path)
    new = target.with_name(f".{target.name}.{os.getpid()}.part")
    try:
        with new.open("wb") as file:
            yield file
        new.replace(target)
    finally:
        new.unlink(missing_ok=True)


_READY = Call("GET", "/readyz", lambda _: True, repeatable=False)


def _read(image: Image) -> bytes:
    if isinstance(image, bytes):
        return image
    if isinstance(image, os.PathLike):
        return Path(image).read_bytes()
    raise TypeError(f"an image is bytes or a path, not {type(image).__name__}")


def _query(**options: str | int | bool | None) -> Query:
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
