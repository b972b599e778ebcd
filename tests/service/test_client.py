from __future__ import annotations

import asyncio
import inspect
import json
import pickle
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from email.message import Message
from email.parser import BytesParser
from pathlib import Path
from typing import Any, Literal

import httpx
import pytest

from service.client import (
    AsyncClient,
    Client,
    MienError,
    OverloadedError,
    RequestError,
    ServerError,
    TransportError,
    UnavailableError,
)
from service.schemas import AnalysisBody, EmotionBody, Problem
from tests.pictures import encoded, noise
from tests.service.server_process import REPOSITORY, RunningService, free_port

URL = "http://mien.test"
PICTURE = encoded(noise(120, 160))
BOX = {"left": 1.0, "top": 2.0, "right": 30.0, "bottom": 40.0}
DETECTED = {"box": BOX, "detection_confidence": 0.99}
EMOTION = {"emotion": "happy", "confidence": 0.9, "probabilities": {"happy": 0.9, "sad": 0.1}}
PICTURE_BODY = {"width": 160, "height": 120, "faces": [{**DETECTED, **EMOTION}]}
ANALYSIS = {"model": "fake:1.0.0", **PICTURE_BODY}
SUMMARY = {"name": "fake", "version": "1.0.0", "default": True, "labels": ["happy", "sad"], "evaluations": []}

Handler = Callable[[httpx.Request], httpx.Response]
Use = Callable[[Any], Any]


class Clock:
    """A clock that moves when somebody sleeps on it."""

    def __init__(self) -> None:
        self.now_s = 1000.0
        self.waits_s: list[float] = []

    def __call__(self) -> float:
        return self.now_s

    def sleep(self, wait_s: float) -> None:
        self.waits_s.append(wait_s)
        self.now_s += wait_s

    async def sleep_async(self, wait_s: float) -> None:
        self.sleep(wait_s)


class Caller:
    """Uses either client in the same way, on a server that is a function: `caller(handler, lambda mien: …)`."""

    def __init__(self, kind: Literal["sync", "async"]) -> None:
        self.kind = kind
        self.clock = Clock()

    def __call__(self, handler: Handler, use: Use, **options: Any) -> Any:
        transport = httpx.MockTransport(handler)
        return self.reach(URL, use, transport=transport, clock=self.clock, sleep=self._sleep, **options)

    def reach(self, url: str, use: Use, **options: Any) -> Any:
        if self.kind == "async":
            return asyncio.run(_use_async(use, url, options))
        with Client(url, **options) as mien:
            return use(mien)

    @property
    def _sleep(self) -> Callable[[float], Awaitable[None] | None]:
        return self.clock.sleep_async if self.kind == "async" else self.clock.sleep


async def _use_async(use: Use, url: str, options: dict[str, Any]) -> Any:
    async with AsyncClient(url, **options) as mien:
        return await use(mien)


@pytest.fixture(params=["sync", "async"])
def caller(request: pytest.FixtureRequest) -> Caller:
    return Caller(request.param)


class Script:
    """A server that gives these answers in turn, the last one for ever, and keeps the requests."""

    def __init__(self, *answers: httpx.Response | Exception) -> None:
        self.answers = list(answers)
        self.requests: list[httpx.Request] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.requests.append(request)
        answer = self.answers[0] if len(self.answers) == 1 else self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return httpx.Response(answer.status_code, headers=answer.headers, content=answer.content)


def _problem(status: int, code: str, **headers: str) -> httpx.Response:
    body = Problem(type=f"urn:mien:problem:{code}", title="t", status=status, detail="d", code=code, request_id="r-1")
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return httpx.Response(status, headers=named, json=body.model_dump())


def _overloaded(**headers: str) -> httpx.Response:
    return _problem(429, "overloaded", **headers)


def _ok(body: object = ANALYSIS) -> httpx.Response:
    return httpx.Response(200, json=body)


def _analyze(mien: Any) -> Any:
    return mien.analyze(PICTURE)


def _parts(request: httpx.Request) -> list[Message]:
    head = b"Content-Type: " + request.headers["content-type"].encode() + b"\r\n\r\n"
    form = BytesParser().parsebytes(head + request.content)
    assert form.get_content_type() == "multipart/form-data"
    return form.get_payload()  # type: ignore[return-value]


def test_both_clients_have_the_same_methods_with_the_same_arguments() -> None:
    def signatures(kind: type) -> dict[str, object]:
        methods = inspect.getmembers(kind, inspect.isfunction)
        return {name: inspect.signature(method) for name, method in methods if not name.startswith("_")}

    assert signatures(Client) == signatures(AsyncClient)
    assert {"analyze", "analyze_batch", "detect", "classify", "models", "model", "ready"} < set(signatures(Client))


def test_analyze_sends_the_picture_as_the_body_and_returns_the_typed_answer(caller: Caller) -> None:
    server = Script(_ok())

    analysis = caller(
        server, lambda mien: mien.analyze(PICTURE, model="fake", top_k=2, min_face_size=40, landmarks=True)
    )

    (request,) = server.requests
    assert analysis == AnalysisBody.model_validate(ANALYSIS)
    assert (request.method, request.url.path) == ("POST", "/v1/analyze")
    assert dict(request.url.params) == {"model": "fake", "top_k": "2", "min_face_size": "40", "landmarks": "true"}
    assert request.content == PICTURE
    assert request.headers["content-type"] == "application/octet-stream"


def test_options_that_are_left_out_are_left_to_the_service(caller: Caller) -> None:
    server = Script(_ok())

    caller(server, _analyze)

    assert set(server.requests[0].url.params) <= {"landmarks"}


def test_a_path_is_read(caller: Caller, tmp_path: Path) -> None:
    server = Script(_ok())
    (tmp_path / "photo.png").write_bytes(PICTURE)

    caller(server, lambda mien: mien.analyze(tmp_path / "photo.png"))

    assert server.requests[0].content == PICTURE


def test_a_url_is_no_picture(caller: Caller) -> None:
    server = Script(_ok())

    with pytest.raises(TypeError, match="bytes or a path, not str"):
        caller(server, lambda mien: mien.analyze("http://127.0.0.1/photo.png"))

    assert server.requests == []


def test_the_key_and_the_timeout_are_sent(caller: Caller) -> None:
    server = Script(_ok())

    caller(server, _analyze, api_key="s3cret", timeout_s=2.5)

    assert server.requests[0].headers["authorization"] == "Bearer s3cret"
    assert server.requests[0].headers["x-request-timeout-ms"] == "2500"


def test_no_key_sends_no_credentials(caller: Caller) -> None:
    server = Script(_ok())

    caller(server, _analyze)

    assert "authorization" not in server.requests[0].headers


def test_a_path_in_the_base_url_is_kept(caller: Caller) -> None:
    server = Script(_ok())

    caller.reach(f"{URL}/behind/a/gateway", _analyze, transport=httpx.MockTransport(server))

    assert server.requests[0].url.path == "/behind/a/gateway/v1/analyze"


def test_a_batch_returns_a_result_or_a_problem_a_picture_in_order(caller: Caller) -> None:
    problem = _problem(422, "corrupt_image").json()
    results = [{"index": 0, "analysis": PICTURE_BODY}, {"index": 1, "problem": problem}]
    server = Script(_ok({"model": "fake:1.0.0", "results": results}))

    found = caller(server, lambda mien: mien.analyze_batch([PICTURE, b"broken"], top_k=1))

    (request,) = server.requests
    assert found == [AnalysisBody.model_validate(ANALYSIS), Problem.model_validate(problem)]
    assert (request.url.path, request.url.params["top_k"]) == ("/v1/analyze/batch", "1")
    assert [part.get_param("name", header="content-disposition") for part in _parts(request)] == ["images"] * 2
    assert [part.get_filename() for part in _parts(request)] == ["0", "1"]
    assert PICTURE in request.content


def test_classify_returns_an_expression_or_a_problem_a_crop_in_order(caller: Caller) -> None:
    problem = _problem(422, "empty_image").json()
    results = [{"index": 0, "problem": problem}, {"index": 1, "emotion": EMOTION}]
    server = Script(_ok({"model": "fake:1.0.0", "results": results}))

    found = caller(server, lambda mien: mien.classify([b"", PICTURE], model="fake:1.0.0"))

    (request,) = server.requests
    assert found == [Problem.model_validate(problem), EmotionBody.model_validate(EMOTION)]
    assert (request.url.path, dict(request.url.params)) == ("/v1/classify", {"model": "fake:1.0.0"})
    assert len(_parts(request)) == 2


@pytest.mark.parametrize("method", ["analyze_batch", "classify"])
@pytest.mark.parametrize("indices", [[1, 0], [0], [0, 1, 2]])
def test_results_out_of_order_or_count_are_refused(caller: Caller, method: str, indices: list[int]) -> None:
    results = [{"index": index, "analysis": PICTURE_BODY, "emotion": EMOTION} for index in indices]
    server = Script(_ok({"model": "fake:1.0.0", "results": results}))

    with pytest.raises(ServerError, match="not Mien's"):
        caller(server, lambda mien: getattr(mien, method)([PICTURE, PICTURE]))


@pytest.mark.parametrize("method", ["analyze_batch", "classify"])
def test_no_pictures_have_no_results(caller: Caller, method: str) -> None:
    server = Script(_problem(400, "invalid_request"))

    assert caller(server, lambda mien: getattr(mien, method)([])) == []
    assert server.requests == []


def test_an_item_with_neither_result_nor_problem_is_refused(caller: Caller) -> None:
    server = Script(_ok({"model": "fake:1.0.0", "results": [{"index": 0}]}))

    with pytest.raises(ServerError, match="not Mien's"):
        caller(server, lambda mien: mien.classify([PICTURE]))


def test_detect_asks_for_landmarks_unless_told_otherwise(caller: Caller) -> None:
    server = Script(_ok({"width": 160, "height": 120, "faces": [DETECTED]}))

    detection = caller(server, lambda mien: mien.detect(PICTURE))
    caller(server, lambda mien: mien.detect(PICTURE, landmarks=False, min_face_size=30))

    assert (detection.width, detection.faces[0].box.right) == (160, 30.0)
    assert [request.url.path for request in server.requests] == ["/v1/detect"] * 2
    assert [dict(request.url.params) for request in server.requests] == [
        {"landmarks": "true"},
        {"landmarks": "false", "min_face_size": "30"},
    ]


def test_models_are_listed(caller: Caller) -> None:
    server = Script(_ok({"models": [SUMMARY]}))

    (summary,) = caller(server, lambda mien: mien.models())

    assert (summary.name, summary.default) == ("fake", True)
    assert (server.requests[0].method, server.requests[0].url.path) == ("GET", "/v1/models")


def test_a_models_name_cannot_leave_its_place_in_the_address(caller: Caller) -> None:
    server = Script(_ok({**SUMMARY, "manifest": None, "card": None}))

    caller(server, lambda mien: mien.model("fake:1.0.0"))
    caller(server, lambda mien: mien.model("../a?b#c"))

    raw_paths = [request.url.raw_path for request in server.requests]
    assert raw_paths == [b"/v1/models/fake:1.0.0", b"/v1/models/..%2Fa%3Fb%23c"]


@pytest.mark.parametrize(
    ("answer", "ready"),
    [
        (httpx.Response(200, text="ready"), True),
        (httpx.Response(503), False),
        (httpx.Response(500), False),
        (httpx.ConnectError("refused"), False),
    ],
)
def test_ready_asks_once_and_says_what_came(caller: Caller, answer: httpx.Response | Exception, ready: bool) -> None:
    server = Script(answer)

    assert caller(server, lambda mien: mien.ready()) is ready

    assert [request.url.path for request in server.requests] == ["/readyz"]
    assert caller.clock.waits_s == []


def test_ready_at_a_wrong_address_is_an_error(caller: Caller) -> None:
    with pytest.raises(RequestError):
        caller(Script(_problem(404, "not_found")), lambda mien: mien.ready())


@pytest.mark.parametrize("refusal", [_overloaded(Retry_After="2"), _problem(503, "unavailable", Retry_After="2")])
def test_a_refusal_that_may_pass_is_tried_again_after_the_time_it_names(
    caller: Caller, refusal: httpx.Response
) -> None:
    server = Script(refusal, refusal, _ok())

    analysis = caller(server, _analyze)

    assert analysis.model == "fake:1.0.0"
    assert caller.clock.waits_s == [2.0, 2.0]
    assert [request.content for request in server.requests] == [PICTURE] * 3


def test_a_batch_is_sent_whole_again(caller: Caller) -> None:
    results = [{"index": 0, "analysis": PICTURE_BODY}]
    server = Script(_overloaded(), _ok({"model": "fake:1.0.0", "results": results}))

    caller(server, lambda mien: mien.analyze_batch([PICTURE]))

    first, second = server.requests
    assert PICTURE in first.content
    assert PICTURE in second.content


@pytest.mark.parametrize(
    ("retry_after", "wait_s"),
    [
        ("Sat, 21 Nov 2026 12:00:03 GMT", 3.0),
        ("Saturday, 21-Nov-26 12:00:03 GMT", 3.0),
        ("Sat, 21 Nov 2026 12:00:03 -0000", 3.0),
        ("Sat, 21 Nov 2026 11:59:00 GMT", 0.0),
        ("0", 0.0),
    ],
)
def test_retry_after_may_be_a_date_on_the_servers_clock(caller: Caller, retry_after: str, wait_s: float) -> None:
    server = Script(_overloaded(Retry_After=retry_after, Date="Sat, 21 Nov 2026 12:00:00 GMT"), _ok())

    caller(server, _analyze)

    assert caller.clock.waits_s == [wait_s]


@pytest.mark.parametrize("retry_after", ["soon", "-1", "1.5", "²", "Sat, 99 Nov 2026 12:00:03 GMT", ""])
def test_a_retry_after_that_cannot_be_read_counts_as_none(caller: Caller, retry_after: str) -> None:
    refusal = _overloaded()
    refusal.headers = httpx.Headers([(b"Retry-After", retry_after.encode())])

    with pytest.raises(OverloadedError) as caught:
        caller(Script(refusal), _analyze, retries=0)

    assert caught.value.retry_after_s is None


def test_without_retry_after_the_wait_is_random_below_a_bound_that_doubles(caller: Caller) -> None:
    series = []
    for _ in range(200):
        caller.clock.waits_s.clear()
        caller(Script(_overloaded(), _overloaded(), _overloaded(), _ok()), _analyze)
        series.append(tuple(caller.clock.waits_s))

    for bound_s, waits_s in zip((0.1, 0.2, 0.4), zip(*series, strict=True), strict=True):
        assert 0 <= min(waits_s) < bound_s / 4
        assert bound_s * 3 / 4 < max(waits_s) <= bound_s


def test_the_backoff_stops_growing(caller: Caller) -> None:
    with pytest.raises(OverloadedError):
        caller(Script(_overloaded()), _analyze, retries=100, timeout_s=86_400)

    assert len(caller.clock.waits_s) == 100
    assert max(caller.clock.waits_s) <= 5


@pytest.mark.parametrize("retries", [0, 1, 3])
def test_it_is_tried_again_as_often_as_told(caller: Caller, retries: int) -> None:
    server = Script(_problem(503, "unavailable"))

    with pytest.raises(UnavailableError):
        caller(server, _analyze, retries=retries)

    assert len(server.requests) == 1 + retries


@pytest.mark.parametrize("retry_after", ["30", "31", "9" * 5000])
def test_a_wait_that_does_not_fit_is_not_begun(caller: Caller, retry_after: str) -> None:
    server = Script(_overloaded(Retry_After=retry_after), _ok())

    with pytest.raises(OverloadedError) as caught:
        caller(server, _analyze, timeout_s=30)

    assert caught.value.retry_after_s == float(retry_after)
    assert caller.clock.waits_s == []
    assert len(server.requests) == 1


def test_the_deadline_is_that_of_the_whole_call(caller: Caller) -> None:
    server = Script(_overloaded(Retry_After="2"))

    with pytest.raises(OverloadedError):
        caller(server, _analyze, timeout_s=5)

    assert [request.headers["x-request-timeout-ms"] for request in server.requests] == ["5000", "3000", "1000"]
    assert [request.extensions["timeout"]["read"] for request in server.requests] == [5, 3, 1]


def test_a_sleep_that_takes_too_long_leaves_a_valid_request(caller: Caller) -> None:
    server = Script(_overloaded(Retry_After="1"), _overloaded())
    sleep = caller.clock.sleep
    caller.clock.sleep = lambda wait_s: sleep(wait_s + 60)  # type: ignore[method-assign]

    with pytest.raises(OverloadedError):
        caller(server, _analyze, timeout_s=5)

    assert [request.headers["x-request-timeout-ms"] for request in server.requests] == ["5000", "1"]


@pytest.mark.parametrize(
    ("status", "code", "kind"),
    [
        (400, "invalid_request", RequestError),
        (401, "unauthenticated", RequestError),
        (404, "model_not_found", RequestError),
        (422, "corrupt_image", RequestError),
        (500, "internal", ServerError),
        (504, "timeout", ServerError),
    ],
)
def test_other_errors_are_raised_at_once_with_all_that_the_service_said(
    caller: Caller, status: int, code: str, kind: type[MienError]
) -> None:
    server = Script(_problem(status, code, Retry_After="1"))

    with pytest.raises(MienError, match=f"{status} {code}: d .request r-1.") as caught:
        caller(server, _analyze)

    error = caught.value
    assert type(error) is kind
    assert (error.status, error.code, error.retry_after_s) == (status, code, 1.0)
    assert error.problem == Problem.model_validate(_problem(status, code).json())
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "lost", [httpx.ConnectError("refused"), httpx.ReadError("reset"), httpx.RemoteProtocolError("disconnected")]
)
def test_a_lost_connection_is_tried_again(caller: Caller, lost: Exception) -> None:
    server = Script(lost, lost, _ok())

    assert caller(server, _analyze).model == "fake:1.0.0"
    assert len(server.requests) == 3


def test_a_connection_that_stays_lost_is_a_transport_error(caller: Caller) -> None:
    with pytest.raises(TransportError, match="refused") as caught:
        caller(Script(httpx.ConnectError("refused")), _analyze)

    assert (caught.value.code, caught.value.status, caught.value.problem) == ("connection_failed", None, None)
    assert isinstance(caught.value.__cause__, httpx.ConnectError)
    assert len(caller.clock.waits_s) == 3


def test_no_answer_in_time_is_not_tried_again(caller: Caller) -> None:
    server = Script(httpx.ReadTimeout("slow"))

    with pytest.raises(TransportError) as caught:
        caller(server, _analyze)

    assert caught.value.code == "timeout"
    assert len(server.requests) == 1


@pytest.mark.parametrize("status", [200, 302, 502])
def test_an_answer_of_something_else_is_a_server_error(caller: Caller, status: int) -> None:
    page = httpx.Response(status, headers={"Location": "http://elsewhere.test"}, html="<p>a gateway</p>")

    with pytest.raises(ServerError) as caught:
        caller(Script(page), _analyze)

    assert (caught.value.status, caught.value.code, caught.value.problem) == (status, "unknown", None)


def test_a_gateways_503_is_tried_again(caller: Caller) -> None:
    assert caller(Script(httpx.Response(503, text="no endpoints"), _ok()), _analyze).model == "fake:1.0.0"


def test_an_error_crosses_to_another_process() -> None:
    problem = Problem.model_validate(_problem(429, "overloaded").json())
    error = OverloadedError("full", code="overloaded", status=429, problem=problem, retry_after_s=1.0)

    copy = pickle.loads(pickle.dumps(error))

    assert type(copy) is OverloadedError
    assert (str(copy), vars(copy)) == (str(error), vars(error))


@pytest.mark.parametrize("kind", [Client, AsyncClient])
@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"base_url": "127.0.0.1:3000"}, "base_url"),
        ({"base_url": "file:///etc"}, "base_url"),
        ({"timeout_s": 0}, "timeout_s"),
        ({"timeout_s": float("nan")}, "timeout_s"),
        ({"timeout_s": float("inf")}, "timeout_s"),
        ({"retries": -1}, "retries"),
        ({"retries": 101}, "retries"),
        ({"api_key": "s3cret\n"}, "api_key"),
        ({"api_key": "s3cret é"}, "api_key"),
        ({"api_key": ""}, "api_key"),
    ],
)
def test_a_wrong_argument_is_refused_by_name(kind: Callable[..., object], options: dict[str, Any], name: str) -> None:
    with pytest.raises(ValueError, match=name) as caught:
        kind(**{"base_url": URL, **options})

    assert "s3cret" not in str(caught.value)


def test_importing_it_loads_no_server() -> None:
    code = "import sys, service.client; print(*sys.modules)"

    done = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, timeout=60)

    assert done.returncode == 0, done.stderr
    loaded = set(done.stdout.split())
    assert "httpx" in loaded
    assert not loaded & {"bentoml", "torch", "numba", "fastapi", "starlette", "onnxruntime", "openvino", "aiohttp"}


@contextmanager
def _socket_server(answer: Callable[[socket.socket], None]) -> Iterator[str]:
    """A server of raw sockets on loopback that hands every connection to `answer`, in a thread each."""
    listener = socket.create_server(("127.0.0.1", free_port()))

    def serve() -> None:
        while True:
            try:
                connection, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connection,), daemon=True).start()

    threading.Thread(target=serve, daemon=True).start()
    try:
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()


def test_a_server_that_says_nothing_is_given_up(caller: Caller) -> None:
    asked = threading.Event()

    def silent(connection: socket.socket) -> None:
        with connection:
            asked.set()
            while connection.recv(65536):
                pass

    with _socket_server(silent) as url, pytest.raises(TransportError) as caught:
        caller.reach(url, _analyze, timeout_s=0.3)

    assert asked.is_set()
    assert caught.value.code == "timeout"


def test_the_async_client_gives_up_a_server_that_trickles() -> None:
    over = threading.Event()

    def trickle(connection: socket.socket) -> None:
        with connection:
            connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 1000000\r\n\r\n")
            while not over.wait(0.05):
                try:
                    connection.sendall(b" ")
                except OSError:
                    return

    try:
        with _socket_server(trickle) as url, pytest.raises(TransportError) as caught:
            Caller("async").reach(url, _analyze, timeout_s=0.5)
    finally:
        over.set()

    assert caught.value.code == "timeout"


def test_a_connection_that_the_server_dropped_is_made_anew(caller: Caller) -> None:
    connections: list[int] = []
    body = json.dumps(ANALYSIS).encode()

    def answer(connection: socket.socket) -> None:
        connections.append(len(connections))
        with connection:
            request = b""
            while PICTURE not in request:
                request += connection.recv(65536)
            if len(connections) > 1:
                connection.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: %d\r\n\r\n" % len(body) + body)

    with _socket_server(answer) as url:
        assert caller.reach(url, _analyze).model == "fake:1.0.0"

    assert len(connections) == 2


def test_the_real_service_answers_every_method(caller: Caller, served_fake: RunningService) -> None:
    def ask(use: Use) -> Any:
        return caller.reach(served_fake.url, use)

    assert ask(lambda mien: mien.ready()) is True
    analysis = ask(lambda mien: mien.analyze(PICTURE, top_k=2, landmarks=True))
    assert (analysis.model, analysis.width, analysis.height) == ("fake:1.0.0", 160, 120)
    (face,) = analysis.faces
    assert len(face.probabilities) == 2
    assert face.landmarks is not None

    first, second = ask(lambda mien: mien.analyze_batch([PICTURE, b"broken"], top_k=2, landmarks=True))
    assert first == analysis
    assert second.code == "unsupported_format"

    (found,) = ask(lambda mien: mien.detect(PICTURE)).faces
    assert (found.box, found.landmarks) == (face.box, face.landmarks)

    empty, expression = ask(lambda mien: mien.classify([b"", PICTURE], top_k=1))
    assert empty.code == "empty_image"
    assert list(expression.probabilities) == [expression.emotion]

    (summary,) = ask(lambda mien: mien.models())
    assert f"{summary.name}:{summary.version}" == "fake:1.0.0"
    assert ask(lambda mien: mien.model("fake")).labels == summary.labels


def test_the_real_services_errors_have_its_codes(caller: Caller, served_fake: RunningService) -> None:
    with pytest.raises(RequestError) as unknown_model:
        caller.reach(served_fake.url, lambda mien: mien.analyze(PICTURE, model="nobody"))
    with pytest.raises(RequestError) as corrupt:
        caller.reach(served_fake.url, lambda mien: mien.analyze(PICTURE[:500]))

    assert (unknown_model.value.status, unknown_model.value.code) == (404, "model_not_found")
    assert (corrupt.value.status, corrupt.value.code) == (422, "corrupt_image")
    assert corrupt.value.problem is not None
    assert corrupt.value.problem.request_id
