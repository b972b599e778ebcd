from __future__ import annotations

import re
from html.parser import HTMLParser
from urllib.parse import urljoin

import pytest
from starlette.testclient import TestClient

from service.middleware import SECURITY_HEADERS
from service.operations import METRICS_PATH, OPEN_PATHS
from tests.pictures import encoded, noise
from tests.service.problem_checks import check_problem

PICTURE = encoded(noise(60, 60))


class _Links(HTMLParser):
    """The addresses that a page makes a browser open."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.found: list[str] = []
        self.inline = False
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        values = dict(attrs)
        self.found += [values[name] or "" for name in ("src", "href", "action", "data") if name in values]
        self.inline |= tag == "style" or (tag == "script" and "src" not in values)


def test_the_bare_address_leads_to_the_page(client: TestClient) -> None:
    response = client.get("/", follow_redirects=False)

    assert (response.status_code, response.headers["location"]) == (307, "docs")
    assert client.get("/").text == client.get("/docs").text


def test_the_page_asks_nobody_but_this_service(client: TestClient) -> None:
    page = client.get("/docs")
    links = _Links(page.text)

    assert page.headers["content-type"] == "text/html; charset=utf-8"
    assert len(links.found) >= 4
    assert not links.inline
    for link in links.found:
        assert not link.startswith("/"), "absolute paths break behind a proxy's prefix"
        assert "//" not in link
        asset = client.get(urljoin("/docs", link))
        assert asset.status_code == 200, link
        assert len(asset.content) > 50
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy
    assert "http" not in policy
    assert "googletagmanager" not in page.text


def test_the_page_shows_our_schema_and_sends_it_to_no_validator(client: TestClient) -> None:
    start = client.get("/docs/init.js")

    assert start.headers["content-type"].startswith("text/javascript")
    assert 'url: "openapi.json"' in start.text
    assert "validatorUrl: null" in start.text
    assert client.get(urljoin("/docs", "openapi.json")).json()["info"]["title"] == "Mien"


def test_the_page_can_render_schemas_of_our_version(client: TestClient) -> None:
    script = client.get("/docs/swagger-ui-bundle.js").text
    version = re.search(r'PACKAGE_VERSION:"(\d+)\.', script)

    assert client.get("/openapi.json").json()["openapi"].startswith("3.1.")
    assert version is not None
    assert int(version[1]) >= 5, "Swagger UI 4 shows nothing but an error for OpenAPI 3.1"


def test_its_style_sheet_loads_nothing(client: TestClient) -> None:
    sheet = client.get("/docs/swagger-ui.css").text

    assert "@import" not in sheet
    assert not [part for part in sheet.split("url(")[1:] if not part.lstrip("\"'").startswith("data:")]


@pytest.mark.parametrize("name", ["index.html", "swagger-ui.js.map", "..%2f..%2fapp.py", "%2e%2e", "init.js.map"])
def test_no_other_file_is_given_away(client: TestClient, name: str) -> None:
    check_problem(client.get(f"/docs/{name}"), 404, "not_found")


@pytest.mark.parametrize("path", ["/livez", "/healthz"])
def test_liveness_is_this_process_alone(client: TestClient, path: str) -> None:
    response = client.get(path)

    assert (response.status_code, response.json()) == (200, {"status": "alive"})


def test_readiness_is_what_is_known(client: TestClient) -> None:
    check_problem(client.get("/readyz"), 503, "unavailable")

    client.app.state.readiness.ready = True  # type: ignore[attr-defined]
    response = client.get("/readyz")

    assert (response.status_code, response.json()) == (200, {"status": "ready"})


def test_not_ready_before_anything_is_built(client: TestClient) -> None:
    del client.app.state.readiness  # type: ignore[attr-defined]

    check_problem(client.get("/readyz"), 503, "unavailable")


def test_metrics_are_prometheus_text(client: TestClient) -> None:
    client.post("/v1/analyze", content=PICTURE)
    response = client.get("/metrics")

    assert response.headers["content-type"].startswith("text/plain; version=")
    assert "mien_requests_total" in response.text


@pytest.mark.parametrize("path", sorted(OPEN_PATHS | {METRICS_PATH}))
def test_head_is_get_without_the_body(client: TestClient, path: str) -> None:
    client.app.state.readiness.ready = True  # type: ignore[attr-defined]
    get, head = client.get(path, follow_redirects=False), client.head(path, follow_redirects=False)

    assert get.status_code == head.status_code
    assert get.status_code in (200, 307)
    assert get.headers["content-type"] == head.headers["content-type"] if "content-type" in get.headers else True
    for name in SECURITY_HEADERS:
        assert name in get.headers


@pytest.mark.parametrize("path", sorted(OPEN_PATHS | {METRICS_PATH}))
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "PROPFIND"])
def test_these_addresses_are_only_read(client: TestClient, method: str, path: str) -> None:
    response = client.request(method, path, follow_redirects=False)

    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "GET, HEAD"


def test_bentomls_schema_knows_files_as_uploads_only(client: TestClient) -> None:
    routes = {route["name"]: route for route in client.get("/schema.json").json()["routes"]}

    assert {name: route["route"] for name, route in routes.items()} == {
        "analyze": "/v1/analyze",
        "analyze_batch": "/v1/analyze/batch",
        "detect": "/v1/detect",
        "classify": "/v1/classify",
    }
    schema = client.get("/openapi.json").json()
    for route in routes.values():
        (field,) = route["input"]["required"]
        operation = schema["paths"][route["route"]]["post"]
        options = {parameter["name"] for parameter in operation["parameters"]}
        assert set(route["input"]["properties"]) == {field, *options}
        form = operation["requestBody"]["content"]["multipart/form-data"]["schema"]
        assert set(form["properties"]) == set(route["input"]["properties"])
        assert form["required"] == [field]
