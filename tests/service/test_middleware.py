from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from typing import Any

import httpx
import numpy as np
import pytest
from starlette.testclient import TestClient

from handlers.pipeline import FAKE
from service import metrics
from service.analyzer import Analyzer, RunnerCall
from service.logs import configure_logs
from service.problems import MEDIA_TYPE
from service.rest import build_rest_app
from service.settings import Settings
from tests.pictures import encoded, noise
from tests.service.conftest import MakeClient

LIMIT = 4096


@pytest.fixture
def small(make_client: MakeClient) -> TestClient:
    """A client of a door that takes images up to LIMIT bytes."""
    return make_client(max_image_bytes=LIMIT)


def _requests_counted(code: int) -> float:
    return metrics.REQUESTS.labels("/v1/analyze", str(code))._value.get()


def _log_lines(capsys: pytest.CaptureFixture[str]) -> list[dict[str, Any]]:
    return [json.loads(line) for line in capsys.readouterr().err.splitlines()]


def test_an_acceptable_id_of_the_caller_comes_back(client: TestClient) -> None:
    response = client.post("/v1/analyze", content=encoded(noise(64, 64)), headers={"X-Request-ID": "caller-1"})

    assert response.status_code == 200
    assert response.headers["x-request-id"] == "caller-1"


@pytest.mark.parametrize("wanted", ["x" * 129, "two words", "<script>"])
def test_another_id_is_replaced(client: TestClient, wanted: str) -> None:
    response = client.post("/v1/analyze", content=b"text", headers={"X-Request-ID": wanted})

    assert response.headers["x-request-id"] == response.json()["request_id"] != wanted
    assert len(response.json()["request_id"]) == 32


@pytest.mark.parametrize("chunked", [False, True], ids=["content-length", "chunked"])
@pytest.mark.parametrize("content_type", ["image/png", "multipart/form-data; boundary=b"])
def test_a_body_over_the_limit_is_refused(small: TestClient, content_type: str, chunked: bool) -> None:
    start = b'--b\r\nContent-Disposition: form-data; name="image"; filename="a"\r\n\r\n'
    n_chunks = (LIMIT + 64 * 1024) // 1024 + 1

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
    if chunked:
        assert _requests_counted(413) == before + 1


def test_a_chunked_body_is_read_no_further_than_the_limit() -> None:
    app = build_rest_app(Settings(models=(FAKE,), detector=FAKE, max_image_bytes=LIMIT))
    app.state.analyzer = Analyzer(Settings(models=(FAKE,)), _unused, _unused)
    received = 0
    sent: list[dict[str, Any]] = []

    async def receive() -> dict[str, Any]:
        nonlocal received
        received += 1024
        assert received < 10 * LIMIT + 64 * 1024
        return {"type": "http.request", "body": b"x" * 1024, "more_body": True}

    async def send(message: Any) -> None:
        sent.append(message)

    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/analyze",
        "root_path": "",
        "query_string": b"",
        "headers": [],
    }
    asyncio.run(app(scope, receive, send))

    assert sent[0]["status"] == 413
    assert received == LIMIT + 64 * 1024 + 1024


async def _unused(_: list[Any]) -> list[Any]:
    raise AssertionError("no runner is needed")


@pytest.mark.parametrize("over", [0, 1])
def test_the_image_limit_is_inclusive(small: TestClient, over: int) -> None:
    picture = encoded(np.zeros((20, 20, 3), np.uint8), "BMP")
    padded = picture + bytes(LIMIT + over - len(picture))

    assert small.post("/v1/analyze", content=padded).status_code == (413 if over else 200)


def test_a_log_line_names_the_request_but_holds_no_image_and_no_query(
    make_client: MakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    client = make_client()
    capsys.readouterr()
    configure_logs("debug")
    marker = b"MARK-IN-THE-IMAGE"
    client.post(
        "/v1/analyze?secret=in-the-query", content=encoded(noise(40, 40)) + marker, headers={"X-Request-ID": "r-1"}
    )
    client.get("/somewhere/private?secret=in-the-query", headers={"X-Request-ID": "r-2"})
    output = capsys.readouterr().err
    lines = [json.loads(line) for line in output.splitlines()]

    assert [(line["request_id"], line["method"], line["route"], line["status"]) for line in lines] == [
        ("r-1", "POST", "/v1/analyze", 200),
        ("r-2", "GET", "/{path:path}", 404),
    ]
    assert all(line["duration_ms"] >= 0 for line in lines)
    for hidden in (marker.decode(), "in-the-query", "private", "PNG"):
        assert hidden not in output


def test_an_unexpected_failure_is_logged_with_the_id_and_its_cause(
    make_client: MakeClient, capsys: pytest.CaptureFixture[str]
) -> None:
    async def broken(_: list[Any]) -> list[Any]:
        raise ZeroDivisionError("the cause")

    client = make_client(detect=broken)
    capsys.readouterr()
    configure_logs("info")
    client.post("/v1/analyze", content=b"x", headers={"X-Request-ID": "r-3"})
    failure, ended = _log_lines(capsys)

    assert (failure["level"], failure["request_id"]) == ("ERROR", "r-3")
    assert "ZeroDivisionError: the cause" in failure["exc_info"]
    assert (ended["status"], ended["request_id"]) == (500, "r-3")


def test_ids_do_not_leak_between_concurrent_requests(
    detect: RunnerCall, classify: RunnerCall, capsys: pytest.CaptureFixture[str]
) -> None:
    async def slow_detect(items: list[Any]) -> list[Any]:
        await asyncio.sleep(0.001 * (len(items[0].image) % 7))
        return await detect(items)

    settings = Settings(models=(FAKE,), detector=FAKE)
    app = build_rest_app(settings)
    app.state.analyzer = Analyzer(settings, slow_detect, classify)
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
