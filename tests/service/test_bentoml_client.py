"""BentoML's own client, of its release that the service is pinned to, against the real processes."""

from __future__ import annotations

import asyncio
import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import bentoml
import httpx
import pytest
from bentoml.exceptions import BentoMLException, InvalidArgument, NotFound

from tests.pictures import encoded, noise
from tests.service.problem_checks import check_problem
from tests.service.server_process import RunningService

PICTURES = [encoded(noise(60 + 10 * index, 80, index)) for index in range(3)]


@pytest.fixture
def client(served_fake: RunningService) -> Iterator[bentoml.SyncHTTPClient]:
    with bentoml.SyncHTTPClient(served_fake.url, server_ready_timeout=30) as found:
        yield found


@pytest.fixture
def paths(tmp_path: Path) -> list[Path]:
    found = [tmp_path / f"{index}.png" for index in range(len(PICTURES))]
    for path, picture in zip(found, PICTURES, strict=True):
        path.write_bytes(picture)
    return found


@pytest.fixture
def listener() -> Iterator[Callable[[], str]]:
    """Calls `listener()` return a URL on loopback; at the end of the test it fails if anybody came."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield lambda: f"http://127.0.0.1:{server.getsockname()[1]}/picture.png"
        server.settimeout(0.3)
        with pytest.raises(TimeoutError):
            server.accept()


def _direct(service: RunningService, door: str, **request: Any) -> dict[str, Any]:
    found: dict[str, Any] = httpx.post(f"{service.url}{door}", timeout=30, **request).raise_for_status().json()
    return found


def test_analyze_takes_a_path(client: Any, served_fake: RunningService, paths: list[Path]) -> None:
    assert client.analyze(image=paths[0]) == _direct(served_fake, "/v1/analyze", content=PICTURES[0])


def test_options_arrive(client: Any, served_fake: RunningService, paths: list[Path]) -> None:
    answer = client.analyze(image=paths[0], model="fake:1.0.0", top_k=2, min_face_size=20, landmarks=True)
    query = {"model": "fake:1.0.0", "top_k": 2, "min_face_size": 20, "landmarks": True}

    assert answer == _direct(served_fake, "/v1/analyze", params=query, content=PICTURES[0])
    assert len(answer["faces"][0]["probabilities"]) == 2
    assert len(answer["faces"][0]["landmarks"]) == 5
    assert client.analyze(image=paths[0], model=None, top_k=None, landmarks=False) == client.analyze(image=paths[0])
    assert client.analyze(image=paths[0], min_face_size=31)["faces"] == []


def test_the_other_doors_too(client: Any, served_fake: RunningService, paths: list[Path]) -> None:
    files = [("images", path.read_bytes()) for path in paths]

    assert client.analyze_batch(images=paths, top_k=1) == _direct(
        served_fake, "/v1/analyze/batch", params={"top_k": 1}, files=files
    )
    assert client.classify(images=paths) == _direct(served_fake, "/v1/classify", files=files)
    assert client.detect(image=paths[1], landmarks=True) == _direct(
        served_fake, "/v1/detect", params={"landmarks": True}, content=PICTURES[1]
    )


@pytest.mark.parametrize(
    ("options", "raised", "status", "code"),
    [
        ({"top_k": 0}, InvalidArgument, 400, "invalid_request"),
        ({"landmarks": "maybe"}, InvalidArgument, 400, "invalid_request"),
        ({"model": "nobody"}, NotFound, 404, "model_not_found"),
    ],
)
def test_an_error_is_its_exception_with_the_problem_in_it(
    client: Any, paths: list[Path], options: dict[str, Any], raised: type[BentoMLException], status: int, code: str
) -> None:
    with pytest.raises(raised) as caught:
        client.analyze(image=paths[0], **options)

    assert caught.value.error_code == status
    assert json.loads(str(caught.value))["code"] == code


def test_a_file_that_is_no_picture_is_an_exception(client: Any, tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("no picture")

    with pytest.raises(BentoMLException, match="unsupported_format") as caught:
        client.analyze(image=tmp_path / "text.png")

    assert caught.value.error_code == 415


def test_a_url_given_to_the_client_is_opened_by_nobody(
    client: Any, paths: list[Path], listener: Callable[[], str]
) -> None:
    # With no file beside it the client makes a plain form of it, which is no picture; else a multipart form.
    with pytest.raises(BentoMLException) as alone:
        client.analyze(image=listener())
    with pytest.raises(InvalidArgument):
        client.analyze_batch(images=[listener()])
    with pytest.raises(InvalidArgument):
        client.analyze_batch(images=[paths[0], listener()])

    assert alone.value.error_code == 415


@pytest.mark.parametrize(
    ("door", "field"),
    [
        ("/v1/analyze", "image"),
        ("/v1/analyze/batch", "images"),
        ("/v1/detect", "image"),
        ("/v1/classify", "images"),
        ("/infer", "file"),
        ("/infer?model_type=face", "file"),
    ],
)
def test_no_door_opens_a_url(
    served_fake: RunningService, door: str, field: str, listener: Callable[[], str], tmp_path: Path
) -> None:
    (tmp_path / "a.png").write_bytes(PICTURES[0])
    for url in (listener(), (tmp_path / "a.png").as_uri(), str(tmp_path / "a.png")):
        address = f"{served_fake.url}{door}"
        check_problem(httpx.post(address, files={field: (None, url)}, timeout=30), 400, "invalid_request")
        in_json = httpx.post(address, json={field: url}, timeout=30)
        in_list = httpx.post(address, json={field: [url]}, timeout=30)
        as_body = httpx.post(address, content=url.encode(), headers={"Content-Type": "image/png"}, timeout=30)
        for response in (in_json, in_list, as_body):
            assert response.status_code in (400, 415), response.text
        by_query = httpx.post(address, params={field: url, "url": url}, timeout=30)
        assert by_query.status_code in (400, 422), by_query.text


def test_the_asynchronous_client_too(served_fake: RunningService, paths: list[Path]) -> None:
    async def main() -> tuple[Any, Any]:
        async with bentoml.AsyncHTTPClient(served_fake.url, server_ready_timeout=30) as found:
            one, several = await asyncio.gather(
                found.analyze(image=paths[0], top_k=1), found.analyze_batch(images=paths)
            )
            with pytest.raises(NotFound):
                await found.analyze(image=paths[0], model="nobody")
            return one, several

    one, several = asyncio.run(main())

    assert one == _direct(served_fake, "/v1/analyze", params={"top_k": 1}, content=PICTURES[0])
    assert [result["index"] for result in several["results"]] == [0, 1, 2]
