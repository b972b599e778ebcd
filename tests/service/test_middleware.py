from __future__ import annotations

import asyncio
import json
import logging
import math
import time
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from handlers.errors import ExpiredError
from service import metrics
from service.admission import Admission
from service.api_keys import ApiKeys
from service.logs import configure_logs
from service.middleware import SECURITY_HEADERS, App, Message, Policy, RequestMiddleware
from service.problems import MEDIA_TYPE
from service.request_context import current_deadline_s
from service.settings import Settings
from service.work import DetectionStage, Work
from tests.pictures import encoded, noise
from tests.service.conftest import MakeClient

LIMIT = 4096
FORM_BYTES = 64 * 1024
WITHIN_S = 30
KEY, OPERATOR_KEY = "caller-0123456789abcdef", "operator-0123456789abcdef"
PICTURE = encoded(noise(64, 64))
Main = Callable[[], Coroutine[Any, Any, None]]


@pytest.fixture
def small(make_client: MakeClient) -> TestClient:
    """A client of a door that takes images up to LIMIT bytes."""
    return make_client(max_image_bytes=LIMIT)


@pytest.fixture
def guarded(make_client: MakeClient, tmp_path: Path) -> TestClient:
    """A client of a door with keys for two callers."""
    path = tmp_path / "keys"
    path.write_text(f"caller {KEY}\noperator {OPERATOR_KEY} metrics\n")
    return make_client(api_keys_file=str(path))


class Caller:
    """One request at the level of ASGI: a test says what comes in when, and sees what is sent."""

    def __init__(
        self,
        app: App,
        path: str = "/work",
        method: str = "POST",
        headers: dict[str, str] | None = None,
        query: bytes = b"",
    ) -> None:
        raw = [(name.lower().encode(), value.encode("latin-1")) for name, value in (headers or {}).items()]
        self.scope = {
            "type": "http",
            "method": method,
            "path": path,
            "root_path": "",
            "query_string": query,
            "headers": raw,
        }
        self._app = app
        self._incoming: asyncio.Queue[Message] = asyncio.Queue()
        self.sent: list[Message] = []
        self.n_received = 0
        self.sends_slowly = False
        self.hangs_up_after = 0
        self.task: asyncio.Task[None] | None = None

    def start(self) -> asyncio.Task[None]:
        self.task = asyncio.create_task(self._app(self.scope, self._receive, self._send))
        return self.task

    def body(self, body: bytes = b"x", more: bool = False) -> Caller:
        self._incoming.put_nowait({"type": "http.request", "body": body, "more_body": more})
        return self

    def hang_up(self) -> None:
        self._incoming.put_nowait({"type": "http.disconnect"})

    async def answer(self) -> int:
        """Send the request, if it is not sent yet, and return the status of its answer."""
        await asyncio.wait_for(self.task or self.start(), WITHIN_S)
        return self.status

    @property
    def status(self) -> int:
        status: int = self.sent[0]["status"]
        return status

    @property
    def headers(self) -> dict[str, str]:
        return {name.decode(): value.decode() for name, value in self.sent[0]["headers"]}

    @property
    def code(self) -> str:
        code: str = json.loads(b"".join(message.get("body", b"") for message in self.sent[1:]))["code"]
        return code

    async def _receive(self) -> Message:
        message = await self._incoming.get()
        self.n_received += 1
        return message

    async def _send(self, message: Message) -> None:
        self.sent.append(message)
        if len(self.sent) == self.hangs_up_after:
            self.hang_up()
        if self.sends_slowly:
            for _ in range(5):
                await asyncio.sleep(0)


class Door:
    """An application that reads its body, waits while `closed`, and answers 200."""

    def __init__(self) -> None:
        self.opened = asyncio.Event()
        self.opened.set()
        self.n_begun = self.n_cancelled = 0
        self.deadline_s = math.nan

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        more = scope["method"] == "POST"
        while more:
            message = await receive()
            if message["type"] == "http.disconnect":
                return
            more = message.get("more_body", False)
        self.n_begun += 1
        self.deadline_s = current_deadline_s()
        try:
            await self.opened.wait()
        except asyncio.CancelledError:
            self.n_cancelled += 1
            raise
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"done"})


def _around(door: App, admission: Admission | None = None, **policy: Any) -> RequestMiddleware:
    chosen: dict[str, Any] = {
        "timeout_s": 60.0,
        "max_header_bytes": 2048,
        "work_paths": {"/work": LIMIT},
        "max_body_bytes": 100,
        **policy,
    }
    return RequestMiddleware(door, Policy(**chosen), ApiKeys(None), admission or Admission(1, 0, 1.0, 10**9))


def _assert_idle(admission: Admission) -> None:
    assert (admission._requests, admission._pending_bytes, admission._working, admission._waiting) == (0, 0, 0, 0)


def _run(main: Main) -> None:
    asyncio.run(asyncio.wait_for(main(), 2 * WITHIN_S))


async def _until(true: Callable[[], bool]) -> None:
    async with asyncio.timeout(WITHIN_S):
        while not true():
            await asyncio.sleep(0.001)


def _requests_counted(status: int, route: str = "/v1/analyze") -> float:
    return metrics.REQUESTS.labels(route, str(status))._value.get()


def _log_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


async def _unused(_: list[Any]) -> list[Any]:
    raise AssertionError("no runner is needed")


# Ids and log lines


def test_an_acceptable_id_of_the_caller_comes_back(client: TestClient) -> None:
    response = client.post("/v1/analyze", content=PICTURE, headers={"X-Request-ID": "caller-1"})

    assert response.status_code == 200
    assert response.headers["x-request-id"] == "caller-1"


@pytest.mark.parametrize("wanted", ["x" * 129, "two words", "<script>"])
def test_another_id_is_replaced(client: TestClient, wanted: str) -> None:
    response = client.post("/v1/analyze", content=b"text", headers={"X-Request-ID": wanted})

    assert response.headers["x-request-id"] == response.json()["request_id"] != wanted
    assert len(response.json()["request_id"]) == 32


def test_a_log_line_names_the_request_but_holds_no_image_no_query_and_no_key(
    guarded: TestClient, capsys: pytest.CaptureFixture[str]
) -> None:
    capsys.readouterr()
    configure_logs("debug")
    marker = b"MARK-IN-THE-IMAGE"
    guarded.post(
        "/v1/analyze?secret=in-the-query",
        content=encoded(noise(40, 40)) + marker,
        headers={"X-Request-ID": "r-1", "X-API-Key": KEY},
    )
    guarded.get(
        "/somewhere/private?secret=in-the-query", headers={"X-Request-ID": "r-2", "Authorization": f"Bearer {KEY}"}
    )
    guarded.get("/somewhere/private", headers={"X-Request-ID": "r-3", "X-API-Key": "not-" + KEY})
    output = capsys.readouterr().err
    lines = [json.loads(line) for line in output.splitlines()]

    assert [
        (line["request_id"], line["method"], line["route"], line["status"], line.get("caller")) for line in lines
    ] == [
        ("r-1", "POST", "/v1/analyze", 200, "caller"),
        ("r-2", "GET", "unmatched", 404, "caller"),
        ("r-3", "GET", "unmatched", 401, None),
    ]
    assert all(line["duration_ms"] >= 0 for line in lines)
    for hidden in (marker.decode(), "in-the-query", "private", "PNG", KEY):
        assert hidden not in output


def test_an_unexpected_failure_is_logged_with_the_id_and_its_cause(
    make_client: MakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(_: list[Any]) -> list[Any]:
        raise ZeroDivisionError("a secret")

    client = make_client(detect=broken)
    capsys.readouterr()
    configure_logs("info")
    response = client.post("/v1/analyze", content=b"x", headers={"X-Request-ID": "r-3"})
    failure, ended = _log_lines(capsys)

    assert (response.status_code, response.json()["code"], response.headers["content-type"]) == (
        500,
        "internal",
        MEDIA_TYPE,
    )
    assert "a secret" not in response.text
    assert (failure["level"], failure["request_id"]) == ("ERROR", "r-3")
    assert "ZeroDivisionError: a secret" in failure["exception"]
    assert (ended["status"], ended["request_id"]) == (500, "r-3")


def test_ids_do_not_leak_between_concurrent_requests(
    make_client: MakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    seen: list[tuple[int, str]] = []

    async def slow(works: list[Work]) -> list[Any]:
        n_bytes = len(works[0].request.image)
        await asyncio.sleep(0.001 * (n_bytes % 7))
        seen.append((n_bytes, works[0].request_id))
        return DetectionStage(settings)(works)

    app = make_client(detect=slow).app
    settings = Settings()
    capsys.readouterr()
    configure_logs("info")
    ids = [f"id-{index}" for index in range(40)]

    async def main() -> list[httpx.Response]:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mien") as client:
            return await asyncio.gather(
                *(
                    client.post("/v1/analyze", content=b"x" * index, headers={"X-Request-ID": request_id})
                    for index, request_id in enumerate(ids)
                )
            )

    responses = asyncio.run(main())

    assert [response.headers["x-request-id"] for response in responses] == ids
    assert [response.json()["request_id"] for response in responses] == ids
    assert sorted(line["request_id"] for line in _log_lines(capsys)) == sorted(ids)
    assert sorted(seen) == list(enumerate(ids))


# Bodies


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=b"])
def test_a_body_over_the_limit_is_refused(small: TestClient, content_type: str, chunked: bool) -> None:
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    n_chunks = (LIMIT + FORM_BYTES) // 1024 + 1

    def chunks() -> Iterator[bytes]:
        yield start
        for _ in range(n_chunks):
            yield b"x" * 1024

    before = _requests_counted(413)
    response = small.post(
        "/v1/analyze",
        content=chunks() if chunked else b"".join(chunks()),
        headers={"Content-Type": content_type, "X-Request-ID": "big"},
    )

    assert ("content-length" in response.request.headers) == (not chunked)
    assert (response.status_code, response.headers["content-type"]) == (413, MEDIA_TYPE)
    assert (response.json()["code"], response.json()["request_id"]) == ("too_large", "big")
    assert response.headers["x-request-id"] == "big"
    assert _requests_counted(413) == before + 1


def test_a_chunked_body_is_read_no_further_than_the_limit(make_client: MakeClient) -> None:
    app = make_client(detect=_unused, max_image_bytes=LIMIT).app

    async def main() -> None:
        caller = Caller(app, "/v1/analyze")
        for _ in range(200):
            caller.body(b"x" * 1024, more=True)

        assert await caller.answer() == 413
        assert caller.n_received == (LIMIT + FORM_BYTES) // 1024 + 1

    _run(main)


@pytest.mark.parametrize("over", [0, 1])
def test_the_image_limit_is_inclusive(small: TestClient, over: int) -> None:
    picture = encoded(np.zeros((20, 20, 3), np.uint8), "BMP")
    padded = picture + bytes(LIMIT + over - len(picture))

    assert small.post("/v1/analyze", content=padded).status_code == (413 if over else 200)


@pytest.mark.parametrize(("path", "limit"), [("/work", LIMIT), ("/other", 100)])
@pytest.mark.parametrize("over", [0, 1])
def test_every_address_has_a_limit_of_bytes(path: str, limit: int, over: int) -> None:
    async def main() -> None:
        declared = Caller(_around(Door()), path, headers={"Content-Length": str(limit + over)}).body(bytes(limit))
        assert await declared.answer() == (413 if over else 200)
        assert declared.n_received == (0 if over else 1)

        undeclared = Caller(_around(Door()), path).body(bytes(limit), more=True).body(bytes(over))
        assert await undeclared.answer() == (413 if over else 200)

    _run(main)


@pytest.mark.parametrize("length", ["", "-1", "1.5", "ten", "²", "9" * 1500])
def test_a_strange_length_is_no_failure_of_ours(length: str) -> None:
    async def main() -> None:
        caller = Caller(_around(Door()), headers={"Content-Length": length}).body()
        assert await caller.answer() == 200

        too_long = Caller(_around(Door()), headers={"Content-Length": length}).body(bytes(LIMIT + 1))
        assert await too_long.answer() == 413

    _run(main)


@pytest.mark.parametrize("where", ["path", "query", "header", "many headers"])
def test_headers_and_address_together_have_a_limit(where: str) -> None:
    async def status(n_bytes: int) -> int:
        caller = {
            "path": lambda: Caller(_around(Door()), "/" + "x" * (n_bytes - 1)),
            "query": lambda: Caller(_around(Door()), "/", query=b"x" * (n_bytes - 1)),
            "header": lambda: Caller(_around(Door()), "/", headers={"a": "x" * (n_bytes - 2)}),
            "many headers": lambda: Caller(
                _around(Door()), "/", headers={f"{index:03}": "x" for index in range((n_bytes - 1) // 4)}
            ),
        }[where]()
        answer = await caller.body().answer()
        assert answer == 200 or (caller.code, caller.n_received) == ("too_large", 0)
        return answer

    async def main() -> None:
        assert await status(2048) == 200
        assert await status(2048 + 5) == 413

    _run(main)


# Deadlines


@pytest.mark.parametrize("wanted", ["0", "", "-5", "1.5", "1e3", "soon", "+5", " 5 5", "1" * 10, "²", "0x10", "000"])
def test_a_timeout_that_is_no_whole_number_of_milliseconds_is_refused(client: TestClient, wanted: str) -> None:
    response = client.post("/v1/analyze", content=PICTURE, headers={"X-Request-Timeout-Ms": wanted.encode("latin-1")})

    assert (response.status_code, response.json()["code"]) == (400, "invalid_request")
    assert response.json()["detail"].startswith("X-Request-Timeout-Ms: ")


@pytest.mark.parametrize(
    ("wanted", "timeout_s"), [(None, 60.0), ("5000", 5.0), ("60000", 60.0), ("60001", 60.0), ("999999999", 60.0)]
)
def test_the_deadline_is_the_callers_but_never_later_than_ours(wanted: str | None, timeout_s: float) -> None:
    door = Door()

    async def main() -> None:
        headers = {} if wanted is None else {"X-Request-Timeout-Ms": wanted}
        before_s = time.monotonic()
        assert await Caller(_around(door), headers=headers).body().answer() == 200
        assert before_s + timeout_s <= door.deadline_s <= time.monotonic() + timeout_s

    _run(main)


def test_a_request_whose_time_is_over_gets_504_and_the_runner_drops_its_work(make_client: MakeClient) -> None:
    works: list[Work] = []
    cancelled = 0

    async def stuck(arrived: list[Work]) -> list[Any]:
        nonlocal cancelled
        works.extend(arrived)
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            cancelled += 1
            raise
        return []

    client = make_client(detect=stuck)
    response = client.post("/v1/analyze", content=PICTURE, headers={"X-Request-Timeout-Ms": "50"})

    assert (response.status_code, response.json()["code"]) == (504, "timeout")
    assert response.headers["retry-after"] == "1"
    assert cancelled == 1
    assert [type(result) for result in DetectionStage(Settings())(works)] == [ExpiredError]


def test_the_setting_ends_a_request_that_names_no_time(make_client: MakeClient) -> None:
    async def stuck(_: list[Work]) -> list[Any]:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    response = make_client(detect=stuck, timeout_s=0.05).post("/v1/analyze", content=PICTURE)

    assert (response.status_code, response.json()["code"]) == (504, "timeout")


def test_a_caller_who_sends_the_body_too_slowly_gets_504_and_holds_nothing() -> None:
    admission = Admission(1, 0, 1.0, 10**9)
    app = _around(Door(), admission, timeout_s=0.05)

    async def main() -> None:
        slow = Caller(app).body(b"x", more=True)
        assert await slow.answer() == 504
        assert slow.code == "timeout"
        _assert_idle(admission)

    _run(main)


def test_an_expired_picture_is_a_timeout_for_its_caller_too(make_client: MakeClient) -> None:
    async def late(works: list[Work]) -> list[Any]:
        return [ExpiredError("the request's time was over before its turn")] * len(works)

    response = make_client(detect=late).post("/v1/analyze", content=PICTURE)

    assert (response.status_code, response.json()["code"]) == (504, "timeout")


# Callers who hang up


def test_a_caller_who_hangs_up_ends_the_work_and_frees_the_place(
    make_client: MakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    events: list[str] = []

    async def detect(works: list[Work]) -> list[Any]:
        if works[0].request_id == "next":
            return [ExpiredError("reached")]
        events.append("begun")
        try:
            await asyncio.Event().wait()
        except asyncio.CancelledError:
            events.append("cancelled")
            raise
        return []

    app = make_client(detect=detect, concurrency=1, queue_size=0).app
    capsys.readouterr()
    configure_logs("info")
    before = _requests_counted(499)

    async def main() -> None:
        caller = Caller(app, "/v1/analyze", headers={"X-Request-ID": "gone"}).body(PICTURE)
        task = caller.start()
        await _until(lambda: events == ["begun"])
        busy = Caller(app, "/v1/analyze", headers={"X-Request-ID": "busy"}).body(PICTURE)
        assert await busy.answer() == 429

        caller.hang_up()
        await asyncio.wait_for(task, WITHIN_S)
        assert events == ["begun", "cancelled"]
        assert task.cancelling() == 0

        following = Caller(app, "/v1/analyze", headers={"X-Request-ID": "next"}).body(PICTURE)
        assert await following.answer() == 504

    _run(main)
    assert _requests_counted(499) == before + 1
    assert [(line["request_id"], line["status"], line["level"]) for line in _log_lines(capsys)] == [
        ("busy", 429, "INFO"),
        ("gone", 499, "INFO"),
        ("next", 504, "INFO"),
    ]


def test_a_caller_who_hangs_up_while_waiting_frees_the_place_in_the_queue(make_client: MakeClient) -> None:
    opened: list[asyncio.Event] = []

    async def detect(works: list[Work]) -> list[Any]:
        await opened[0].wait()
        return [ExpiredError("reached")] * len(works)

    app = make_client(detect=detect, concurrency=1, queue_size=1, queue_timeout_ms=60_000).app

    async def main() -> None:
        opened.append(asyncio.Event())
        working, waiting = (Caller(app, "/v1/analyze").body(PICTURE) for _ in range(2))
        queued = metrics.QUEUED._value.get()
        working.start()
        waiting.start()
        await _until(lambda: metrics.QUEUED._value.get() == queued + 1)

        waiting.hang_up()
        await _until(lambda: metrics.QUEUED._value.get() == queued)
        assert await waiting.answer() == 499
        another = Caller(app, "/v1/analyze").body(PICTURE)
        another.start()
        await _until(lambda: metrics.QUEUED._value.get() == queued + 1)

        opened[0].set()
        assert [await working.answer(), await another.answer()] == [504, 504]

    _run(main)


@pytest.mark.parametrize("door", ["/v1/analyze", "/v1/analyze/batch", "/infer"])
@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=b"])
def test_a_caller_who_hangs_up_within_the_body_is_no_failure_of_ours(
    make_client: MakeClient, door: str, content_type: str, caplog: pytest.LogCaptureFixture
) -> None:
    app = make_client(detect=_unused).app
    before = _requests_counted(499, door)

    async def main() -> None:
        caller = Caller(app, door, headers={"Content-Type": content_type}).body(b"--b\r\n", more=True)
        caller.hang_up()
        assert await caller.answer() == 499

    _run(main)
    assert _requests_counted(499, door) == before + 1
    assert not [record for record in caplog.records if record.levelno > logging.INFO]


@pytest.mark.parametrize("n_messages", [1, 2])
def test_a_caller_who_hangs_up_at_the_end_is_no_failure_of_ours(n_messages: int) -> None:
    admission = Admission(1, 0, 1.0, 10**9)

    async def main() -> None:
        caller = Caller(_around(Door(), admission)).body()
        caller.sends_slowly, caller.hangs_up_after = True, n_messages

        assert await caller.answer() == 200
        assert len(caller.sent) == n_messages
        _assert_idle(admission)

    _run(main)


@pytest.mark.parametrize("after_timeout_s", [-0.02, 0.0, 0.02])
def test_a_caller_who_hangs_up_as_the_time_ends_is_answered_once(after_timeout_s: float) -> None:
    admission, timeout_s = Admission(1, 0, 1.0, 10**9), 0.1
    door = Door()

    async def main() -> None:
        door.opened.clear()
        caller = Caller(_around(door, admission, timeout_s=timeout_s)).body()
        caller.sends_slowly = True
        loop = asyncio.get_running_loop()
        task = caller.start()
        await _until(lambda: door.n_begun == 1)
        loop.call_later(timeout_s + after_timeout_s, caller.hang_up)

        # The loop stands still until both are due, so that they happen in one round of it.
        end_s = loop.time() + 2 * timeout_s
        while loop.time() < end_s:
            pass
        assert await caller.answer() in (499, 504)
        assert [message["type"] for message in caller.sent] == ["http.response.start", "http.response.body"]
        assert task.cancelling() == 0
        _assert_idle(admission)

    _run(main)


def test_a_caller_who_hangs_up_during_a_refusal_breaks_nothing() -> None:
    admission = Admission(1, 0, 1.0, 10**9)
    door = Door()

    async def main() -> None:
        door.opened.clear()
        caller = Caller(_around(door, admission, timeout_s=0.05)).body()
        caller.sends_slowly, caller.hangs_up_after = True, 1
        task = caller.start()

        assert await caller.answer() == 504
        assert len(caller.sent) == 2
        assert task.cancelling() == 0
        _assert_idle(admission)

    _run(main)


def test_a_server_that_stops_cancels_a_request_as_it_wants() -> None:
    admission, door = Admission(1, 0, 1.0, 10**9), Door()

    async def main() -> None:
        door.opened.clear()
        caller = Caller(_around(door, admission)).body()
        task = caller.start()
        await _until(lambda: door.n_begun == 1)
        task.cancel()

        with pytest.raises(asyncio.CancelledError):
            await task
        assert caller.sent == []
        _assert_idle(admission)

    _run(main)


def test_nobody_watches_a_caller_who_has_been_answered() -> None:
    async def main() -> None:
        before = asyncio.all_tasks()
        for _ in range(20):
            assert await Caller(_around(Door())).body().answer() == 200
        await asyncio.sleep(0)
        assert asyncio.all_tasks() == before

    _run(main)


def test_an_answer_that_fails_half_way_breaks_the_connection() -> None:
    async def half(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        raise ZeroDivisionError

    async def main() -> None:
        caller = Caller(_around(half), method="GET")
        with pytest.raises(RuntimeError, match="after the answer had begun"):
            await caller.answer()
        assert len(caller.sent) == 1

    _run(main)


# Too much work


@asynccontextmanager
async def _busy(app: App, door: Door, n_requests: int) -> AsyncIterator[Sequence[Caller]]:
    """So many requests under way."""
    door.opened.clear()
    callers = [Caller(app, headers={"Content-Length": "1000"}).body(bytes(1000)) for _ in range(n_requests)]
    for caller in callers:
        caller.start()
    await _until(lambda: door.n_begun == n_requests)
    yield callers
    door.opened.set()
    assert [await caller.answer() for caller in callers] == [200] * n_requests


def test_work_that_finds_no_place_is_refused_before_its_body_is_read() -> None:
    admission, door = Admission(1, 1, 1.0, 10**9), Door()
    app = _around(door, admission)

    async def main() -> None:
        async with _busy(app, door, 2):
            refused = Caller(app).body()
            assert await refused.answer() == 429
            assert (refused.code, refused.n_received, refused.headers["retry-after"]) == ("overloaded", 0, "1")
        assert await Caller(app).body().answer() == 200
        _assert_idle(admission)

    _run(main)


@pytest.mark.parametrize(
    ("headers", "status"),
    [({"Content-Length": "1000"}, 200), ({"Content-Length": "1001"}, 429), ({}, 429)],
    ids=["fits", "declares too many", "declares none, so it may have the limit's"],
)
def test_work_whose_bytes_find_no_place_is_refused_before_its_body_is_read(
    headers: dict[str, str], status: int
) -> None:
    admission, door = Admission(10, 10, 1.0, 2000), Door()
    app = _around(door, admission)

    async def main() -> None:
        async with _busy(app, door, 1):
            caller = Caller(app, headers=headers).body(bytes(1000))
            task = caller.start()
            await _until(lambda: door.n_begun == 2 or task.done())
        assert await caller.answer() == status
        assert caller.n_received == (1 if status == 200 else 0)
        _assert_idle(admission)

    _run(main)


@pytest.mark.parametrize(("method", "path"), [("GET", "/work"), ("POST", "/other"), ("GET", "/other")])
def test_what_is_no_work_is_answered_however_busy_it_is(method: str, path: str) -> None:
    door = Door()
    app = _around(door, Admission(1, 0, 1.0, 10**9))

    async def main() -> None:
        async with _busy(app, door, 1):
            door.opened.set()
            assert await Caller(app, path, method).body().answer() == 200

    _run(main)


def test_every_kind_of_end_gives_its_place_back(make_client: MakeClient) -> None:
    failing = False

    async def detect(works: list[Work]) -> list[Any]:
        if failing:
            raise ZeroDivisionError
        return DetectionStage(Settings())(works)

    client = make_client(detect=detect, concurrency=1, queue_size=0)
    for _ in range(3):
        failing = False
        assert client.post("/v1/analyze", content=PICTURE).status_code == 200
        assert client.post("/v1/analyze", content=b"text").status_code == 415
        assert client.post("/v1/analyze?top_k=0", content=PICTURE).status_code == 400
        assert client.post("/v1/analyze?model=nobody", content=PICTURE).status_code == 404
        failing = True
        assert client.post("/v1/analyze", content=PICTURE).status_code == 500


# Keys


@pytest.mark.parametrize(
    "headers",
    [
        {"X-API-Key": KEY},
        {"Authorization": f"Bearer {KEY}"},
        {"Authorization": f"bearer   {KEY} "},
        {"X-API-Key": KEY, "Authorization": "Basic dXNlcjpwYXNz"},
    ],
)
def test_a_key_is_taken_from_either_header(guarded: TestClient, headers: dict[str, str]) -> None:
    assert guarded.post("/v1/analyze", content=PICTURE, headers=headers).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"X-API-Key": ""},
        {"X-API-Key": KEY + "x"},
        {"X-API-Key": "é" * 16},
        {"Authorization": KEY},
        {"Authorization": f"Basic {KEY}"},
        {"Authorization": "Bearer"},
        {"Authorization": f"Bearer {KEY} {KEY}"},
        {"X-API-Key": "wrong", "Authorization": f"Bearer {KEY}"},
    ],
)
@pytest.mark.parametrize(
    ("method", "path"), [("POST", "/v1/analyze"), ("GET", "/v1/models"), ("GET", "/metrics"), ("GET", "/nowhere")]
)
def test_without_a_known_key_nothing_is_told(
    guarded: TestClient, method: str, path: str, headers: dict[str, str]
) -> None:
    raw = {name: value.encode("latin-1") for name, value in headers.items()}
    response = guarded.request(method, path, content=PICTURE, headers=raw)

    assert (response.status_code, response.json()["code"]) == (401, "unauthenticated")
    assert response.headers["www-authenticate"] == "Bearer"
    assert KEY not in response.text


def test_a_key_without_the_scope_is_forbidden(guarded: TestClient) -> None:
    for path, key, status in (
        ("/metrics", OPERATOR_KEY, 200),
        ("/metrics", KEY, 403),
        ("/v1/models", KEY, 200),
        ("/v1/models", OPERATOR_KEY, 403),
        ("/nowhere", OPERATOR_KEY, 403),
    ):
        response = guarded.get(path, headers={"X-API-Key": key})
        assert response.status_code == status, path
        if status == 403:
            assert response.json()["code"] == "forbidden"
            assert "www-authenticate" not in response.headers


@pytest.mark.parametrize("path", ["/livez", "/healthz", "/docs", "/openapi.json"])
def test_probes_and_the_description_need_no_key(guarded: TestClient, path: str) -> None:
    assert guarded.get(path).status_code == 200
    assert guarded.get("/readyz").json()["code"] == "unavailable"


def test_without_a_key_no_byte_of_the_body_is_read_and_no_place_is_taken(
    make_client: MakeClient, tmp_path: Path
) -> None:
    path = tmp_path / "keys"
    path.write_text(f"caller {KEY}\n")
    app = make_client(detect=_unused, api_keys_file=str(path), concurrency=1, queue_size=0).app

    async def main() -> None:
        for _ in range(3):
            caller = Caller(app, "/v1/analyze").body(PICTURE)
            assert await caller.answer() == 401
            assert caller.n_received == 0

    _run(main)


# Headers of every answer


@pytest.mark.parametrize(
    ("method", "path", "headers", "status"),
    [
        ("POST", "/v1/analyze", {}, 200),
        ("POST", "/v1/analyze?top_k=0", {}, 400),
        ("POST", "/v1/analyze", {"X-Request-Timeout-Ms": "never"}, 400),
        ("POST", "/v1/analyze", {"X-Large": "x" * 20_000}, 413),
        ("POST", "/v1/analyze", {"Content-Length": str(10**12)}, 413),
        ("GET", "/v1/analyze", {}, 405),
        ("GET", "/v1/models", {}, 200),
        ("GET", "/livez", {}, 200),
        ("GET", "/readyz", {}, 503),
        ("GET", "/metrics", {}, 200),
        ("GET", "/docs", {}, 200),
        ("GET", "/nowhere", {}, 404),
        ("HEAD", "/nowhere", {}, 404),
        ("OPTIONS", "/v1/analyze", {}, 405),
    ],
)
def test_every_answer_has_the_headers_for_security_and_an_id(
    client: TestClient, method: str, path: str, headers: dict[str, str], status: int
) -> None:
    response = client.request(method, path, content=PICTURE, headers=headers)

    assert response.status_code == status
    assert len(response.headers["x-request-id"]) == 32
    for name, value in SECURITY_HEADERS.items():
        if path != "/docs" or name != "Content-Security-Policy":
            assert response.headers[name] == value
    assert "default-src 'none'" in response.headers["Content-Security-Policy"]
    if status >= 400 and method != "HEAD":
        assert response.headers["content-type"] == MEDIA_TYPE


@pytest.mark.parametrize("status", [401, 429, 500, 504])
def test_so_have_the_answers_of_a_service_in_trouble(make_client: MakeClient, tmp_path: Path, status: int) -> None:
    async def broken(_: list[Any]) -> list[Any]:
        raise ZeroDivisionError

    async def stuck(_: list[Any]) -> list[Any]:
        return await asyncio.Event().wait()  # type: ignore[return-value]

    path = tmp_path / "keys"
    path.write_text(f"caller {KEY}\n")
    client = {
        401: lambda: make_client(api_keys_file=str(path)),
        429: lambda: make_client(detect=stuck, concurrency=1, queue_timeout_ms=1),
        500: lambda: make_client(detect=broken),
        504: lambda: make_client(detect=stuck, timeout_s=0.05),
    }[status]()
    app = client.app

    async def main() -> None:
        async with httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://mien") as asked:
            held = asyncio.create_task(asked.post("/v1/analyze", content=PICTURE))
            await asyncio.sleep(0.01)
            response = await asked.post("/v1/analyze", content=PICTURE)
            held.cancel()
            await asyncio.gather(held, return_exceptions=True)
        assert response.status_code == status
        assert response.headers["content-type"] == MEDIA_TYPE
        assert response.headers["x-request-id"] == response.json()["request_id"]
        assert {name: response.headers[name] for name in SECURITY_HEADERS} == SECURITY_HEADERS

    _run(main)


def test_an_application_may_say_more_exactly_what_its_page_may_do() -> None:
    async def page(scope: Any, receive: Any, send: Any) -> None:
        await send(
            {"type": "http.response.start", "status": 200, "headers": [(b"content-security-policy", b"page's own")]}
        )
        await send({"type": "http.response.body", "body": b""})

    async def main() -> None:
        caller = Caller(_around(page), method="GET")
        await caller.answer()
        assert caller.headers["content-security-policy"] == "page's own"
        assert caller.headers["x-frame-options"] == "DENY"

    _run(main)


@pytest.mark.parametrize("kind", ["lifespan", "websocket"])
def test_what_is_no_request_is_left_to_the_application(kind: str) -> None:
    seen: list[Any] = []

    async def record(*arguments: Any) -> None:
        seen.append(arguments)

    async def main() -> None:
        scope, receive, send = {"type": kind}, _unused, _unused
        await _around(record)(scope, receive, send)  # type: ignore[arg-type]
        assert seen == [(scope, receive, send)]

    _run(main)


def test_an_address_that_nobody_knows_makes_no_series_of_its_own(client: TestClient) -> None:
    client.get("/one-that-nobody-knows")
    client.get("/another", headers={"X-Large": "x" * 20_000})

    routes = {sample.labels["route"] for metric in metrics.REQUESTS.collect() for sample in metric.samples}
    assert "unmatched" in routes
    assert not {route for route in routes if "nobody" in route or "another" in route}
