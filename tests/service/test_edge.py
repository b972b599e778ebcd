"""The whole HTTP side in one process: what holds at every address."""

from __future__ import annotations

import asyncio
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.testclient import TestClient

from service.edge import EdgeMiddleware
from service.middleware import SECURITY_HEADERS
from service.operations import OPEN_PATHS
from tests.pictures import encoded, noise
from tests.service.conftest import MakeClient
from tests.service.problem_checks import check_any_problem, check_problem

PICTURE = encoded(noise(60, 60))
DOORS = {
    "/v1/analyze": "image",
    "/v1/analyze/batch": "images",
    "/v1/detect": "image",
    "/v1/classify": "images",
    "/infer": "file",
}
PAGE = "https://page.example"
PREFLIGHT = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
KEYS = "alice alice-0123456789abcdef infer\nprometheus prometheus-0123456789abcdef metrics\n"


@pytest.fixture
def guarded(make_client: MakeClient, tmp_path: Path) -> TestClient:
    (tmp_path / "keys").write_text(KEYS)
    return make_client(api_keys_file=str(tmp_path / "keys"))


def _bearer(name: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {name}-0123456789abcdef"}


def _answers(client: TestClient) -> list[httpx.Response]:
    return [
        client.request(method, path, follow_redirects=False)
        for path in [*DOORS, *OPEN_PATHS, "/metrics", "/v1/models", "/v1/models/nobody", "/nowhere"]
        for method in ("GET", "POST", "PUT", "OPTIONS", "TRACE", "PROPFIND")
    ]


def test_every_answer_has_an_id_and_security_headers_and_every_error_is_a_problem(client: TestClient) -> None:
    answers = _answers(client)

    assert {answer.status_code for answer in answers} == {200, 307, 400, 404, 405, 422, 503}
    for answer in answers:
        assert answer.headers["x-request-id"]
        for name in SECURITY_HEADERS:
            assert name in answer.headers, (answer.url, name)
        if answer.status_code >= 400:
            check_any_problem(answer)


def test_no_address_of_bentoml_is_reached(client: TestClient) -> None:
    for path in ("/docs.json", "/static_content/index.css", "/detect", "/__metrics", "/is_ready"):
        check_problem(client.get(path), 404, "not_found")


@pytest.mark.parametrize("door", DOORS)
def test_a_failure_that_nobody_expected_is_a_problem_without_its_text(make_client: MakeClient, door: str) -> None:
    async def broken(_: list[Any]) -> list[Any]:
        raise ZeroDivisionError("a secret")

    client = make_client(detect=broken, classify=broken)
    response = client.post(door, files={DOORS[door]: PICTURE}, headers={"X-Request-ID": "mine"})

    check_problem(response, 500, "internal")
    assert response.headers["x-request-id"] == "mine"
    assert "secret" not in response.text


@pytest.mark.parametrize("path", ["/v1/analyze", "/v1/models", "/livez", "/nowhere"])
def test_headers_and_address_are_limited(client: TestClient, path: str) -> None:
    check_problem(client.get(path, headers={"X-Long": "x" * 100_000}), 413, "too_large")
    check_problem(client.get(path, headers={f"X-{index}": "x" * 100 for index in range(200)}), 413, "too_large")
    check_problem(client.get(f"{path}?{'x' * 20_000}"), 413, "too_large")


@pytest.mark.parametrize("door", DOORS)
def test_every_door_has_a_limit_of_bytes(make_client: MakeClient, door: str) -> None:
    client = make_client(max_image_bytes=2000, max_request_bytes=70_000)

    check_problem(client.post(door, files={DOORS[door]: bytes(80_000)}), 413, "too_large")
    check_problem(client.post(door, content=iter([bytes(40_000)] * 2)), 413, "too_large")


@pytest.mark.parametrize("path", ["/livez", "/v1/models", "/nowhere"])
def test_other_addresses_take_no_large_body(client: TestClient, path: str) -> None:
    check_problem(client.post(path, content=bytes(70_000)), 413, "too_large")


def test_every_door_wants_a_key_and_the_pages_of_the_operator_none(guarded: TestClient) -> None:
    for path, field in DOORS.items():
        check_problem(guarded.post(path, files={field: PICTURE}), 401, "unauthenticated")
        assert guarded.post(path, files={field: PICTURE}, headers=_bearer("alice")).status_code == 200
        check_problem(guarded.post(path, files={field: PICTURE}, headers=_bearer("prometheus")), 403, "forbidden")
    for path in ("/v1/models", "/v1/models/fake", "/nowhere", "/docs/other"):
        check_problem(guarded.get(path), 401, "unauthenticated")
    for path in OPEN_PATHS:
        assert guarded.get(path, follow_redirects=False).status_code in (200, 307, 503)


def test_metrics_want_a_scope_of_their_own(guarded: TestClient) -> None:
    check_problem(guarded.get("/metrics"), 401, "unauthenticated")
    check_problem(guarded.get("/metrics", headers=_bearer("alice")), 403, "forbidden")
    assert guarded.get("/metrics", headers=_bearer("prometheus")).status_code == 200


def test_a_different_spelling_of_an_address_is_no_way_around_a_key(guarded: TestClient) -> None:
    for path in (
        "/v1//models",
        "/V1/models",
        "/v1/models%2f",
        "/livez/../v1/models",
        "/docs/..%2f..%2fmetrics",
        "/v1/models;x",
    ):
        response = guarded.get(path)
        assert response.status_code in (401, 404), path


def test_other_pages_may_not_call_the_service_by_default(client: TestClient) -> None:
    plain = client.post("/v1/analyze", content=PICTURE, headers={"Origin": PAGE})
    preflight = client.options("/v1/analyze", headers=PREFLIGHT)

    assert plain.status_code == 200
    check_problem(preflight, 405, "method_not_allowed")
    for response in (plain, preflight):
        assert not [name for name in response.headers if name.startswith("access-control-")]


def test_the_pages_of_the_setting_may_call_the_service(make_client: MakeClient) -> None:
    client = make_client(cors_origins=f"https://other.example, {PAGE}")
    wanted = "authorization,content-type,x-api-key,x-request-id,x-request-timeout-ms"
    preflight = client.options("/v1/analyze", headers={**PREFLIGHT, "Access-Control-Request-Headers": wanted})
    plain = client.post("/v1/analyze", content=PICTURE, headers={"Origin": PAGE})
    error = client.post("/v1/analyze", content=b"", headers={"Origin": PAGE})
    early_error = client.post("/v1/analyze", headers={"Origin": PAGE, "X-Long": "x" * 20_000})

    assert preflight.status_code == 200
    assert "POST" in preflight.headers["access-control-allow-methods"]
    assert set(wanted.split(",")) <= set(preflight.headers["access-control-allow-headers"].lower().split(", "))
    check_problem(error, 422, "empty_image")
    check_problem(early_error, 413, "too_large")
    for response in (preflight, plain, error, early_error):
        assert response.headers["access-control-allow-origin"] == PAGE
        assert "access-control-allow-credentials" not in response.headers
        assert response.headers["x-request-id"]
    assert "Retry-After" in plain.headers["access-control-expose-headers"]


def test_every_page_may_call_the_service_when_the_setting_is_a_star(make_client: MakeClient) -> None:
    response = make_client(cors_origins="*").get("/v1/models", headers={"Origin": "https://anybody.example"})

    assert response.headers["access-control-allow-origin"] == "*"
    assert "access-control-allow-credentials" not in response.headers


@pytest.mark.parametrize(
    "headers",
    [
        {**PREFLIGHT, "Origin": "https://stranger.example"},
        {**PREFLIGHT, "Access-Control-Request-Method": "PUT"},
        {**PREFLIGHT, "Access-Control-Request-Headers": "x-strange"},
    ],
)
def test_a_refused_preflight_is_a_problem(make_client: MakeClient, headers: dict[str, str]) -> None:
    response = make_client(cors_origins=PAGE).options("/v1/analyze", headers={**headers, "X-Request-ID": "mine"})

    check_problem(response, 400, "invalid_request")
    assert response.headers["x-request-id"] == "mine"
    assert response.headers.get("access-control-allow-origin") is None


def test_a_strangers_page_gets_an_answer_that_its_browser_hides(make_client: MakeClient) -> None:
    response = make_client(cors_origins=PAGE).get("/v1/models", headers={"Origin": "https://stranger.example"})

    assert "access-control-allow-origin" not in response.headers


def test_preflights_need_no_key_but_calls_do(make_client: MakeClient, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text(KEYS)
    client = make_client(api_keys_file=str(tmp_path / "keys"), cors_origins=PAGE)
    refused = client.post("/v1/analyze", content=PICTURE, headers={"Origin": PAGE})

    assert client.options("/v1/analyze", headers=PREFLIGHT).status_code == 200
    check_problem(refused, 401, "unauthenticated")
    assert refused.headers["access-control-allow-origin"] == PAGE


def test_start_and_stop_go_to_bentoml_and_all_the_rest_to_the_edge() -> None:
    reached: list[tuple[str, str]] = []

    def application(name: str) -> Any:
        async def app(scope: MutableMapping[str, Any], receive: Any, send: Any) -> None:
            reached.append((name, scope["type"]))

        return app

    middleware = EdgeMiddleware(application("bentoml"), application("edge"))
    for kind in ("lifespan", "http", "websocket"):
        asyncio.run(middleware({"type": kind}, None, None))  # type: ignore[arg-type]

    assert reached == [("bentoml", "lifespan"), ("edge", "http"), ("edge", "websocket")]
