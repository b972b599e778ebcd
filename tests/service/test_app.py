"""The service as it is deployed: real processes, real sockets, once on the fakes and once on the real models."""

from __future__ import annotations

import asyncio
import io
import socket
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest
from PIL import Image

from handlers.fakes import FAKE_LABELS
from handlers.pipeline import FAKE
from service import metrics
from service.edge import build_rest_app
from service.problems import MEDIA_TYPE, PROBLEMS
from service.settings import Settings
from tests.boxes import overlap
from tests.pictures import encoded
from tests.service.server_process import RunningService, Samples, running_service, total

ASTRONAUT_BOX = (177.0, 66.0, 274.0, 190.0)
N_CLIENTS = 32

Answer = tuple[int, dict[str, Any]]


@pytest.fixture(params=["served_fake", "served"])
def service(request: pytest.FixtureRequest) -> RunningService:
    running: RunningService = request.getfixturevalue(request.param)
    return running


@pytest.fixture(scope="module")
def pictures(astronaut_png: bytes, faceless_png: bytes) -> dict[str, bytes]:
    """Small pictures, each with an answer of its own."""
    astronaut = Image.open(io.BytesIO(astronaut_png)).convert("RGB")
    small, smaller = astronaut.resize((160, 160)), astronaut.resize((128, 128))
    two = Image.new("RGB", (260, 130))
    two.paste(smaller, (0, 0))
    two.paste(smaller.transpose(Image.Transpose.FLIP_LEFT_RIGHT), (131, 0))
    faceless = Image.open(io.BytesIO(faceless_png)).resize((160, 120))
    return {
        "face.jpg": encoded(small, "JPEG"),
        "mirrored.png": encoded(small.transpose(Image.Transpose.FLIP_LEFT_RIGHT)),
        "smaller.webp": encoded(smaller, "WEBP"),
        "two.jpg": encoded(two, "JPEG", quality=95),
        "faceless.png": encoded(faceless),
        "corrupt.png": encoded(small)[:5000],
        "text.txt": b"no image",
        "empty": b"",
    }


def _answer(response: httpx.Response) -> Answer:
    body = response.json()
    body.pop("request_id", None)
    return response.status_code, body


def _numbers(value: object, path: str = "") -> dict[str, object]:
    """The leaves of an answer by their paths, so that `pytest.approx` can compare them."""
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else None
    if items is None:
        return {path: value}
    leaves: dict[str, object] = {f"{path}#": len(value)}  # type: ignore[arg-type]
    for key, child in items:
        leaves |= _numbers(child, f"{path}/{key}")
    return leaves


def _same(answer: Answer, expected: Answer) -> bool:
    # An emotion model's last bits depend on the size of the batch it was asked in.
    return answer[0] == expected[0] and bool(_numbers(answer[1]) == pytest.approx(_numbers(expected[1]), abs=1e-4))


def _rise(service: RunningService, before: Samples, name: str, **labels: str) -> float:
    return total(service.samples(), name, **labels) - total(before, name, **labels)


@pytest.mark.parametrize("path", ["/livez", "/readyz"])
def test_the_probes_answer(service: RunningService, path: str) -> None:
    assert httpx.get(service.url + path, timeout=30).status_code == 200


def test_one_face_with_seven_probabilities_by_form_and_by_raw_body(
    service: RunningService, request: pytest.FixtureRequest, astronaut_png: bytes
) -> None:
    url = f"{service.url}/v1/analyze"
    raw = httpx.post(url, content=astronaut_png, timeout=30)
    form = httpx.post(url, files={"image": ("astronaut.png", astronaut_png)}, timeout=30)

    assert raw.status_code == 200
    assert _same(_answer(form), _answer(raw))
    assert (raw.json()["width"], raw.json()["height"]) == (512, 512)
    (face,) = raw.json()["faces"]
    assert set(face["probabilities"]) == set(FAKE_LABELS)
    assert sum(face["probabilities"].values()) == pytest.approx(1, abs=1e-5)
    if request.node.callspec.params["service"] == "served":
        box = face["box"]
        assert overlap((box["left"], box["top"], box["right"], box["bottom"]), ASTRONAUT_BOX) > 0.6


@pytest.mark.parametrize(
    ("service", "n_requests"),
    [
        ("served", 500),
        pytest.param("served", 2000, marks=pytest.mark.slow),
        pytest.param("served_fake", 2000, marks=pytest.mark.slow),
    ],
    indirect=["service"],
)
def test_many_requests_of_many_clients_get_the_answers_of_single_ones(
    service: RunningService, n_requests: int, pictures: dict[str, bytes]
) -> None:
    url = f"{service.url}/v1/analyze"
    singly = {name: _answer(httpx.post(url, content=data, timeout=30)) for name, data in pictures.items()}
    assert Counter(status for status, _ in singly.values()) == {200: 5, 422: 2, 415: 1}
    assert len({repr(answer) for answer in singly.values()}) == len(pictures), "a mix-up would not show"
    todo = iter(range(n_requests))
    names = list(pictures)
    wrong: list[tuple[str, Answer]] = []

    async def client(http: httpx.AsyncClient) -> int:
        done = 0
        for index in todo:
            name = names[index % len(names)]
            # Two kinds of body, so that both ways in are under load.
            body: dict[str, Any] = (
                {"files": {"image": pictures[name]}} if index % 3 == 0 else {"content": pictures[name]}
            )
            response = await http.post(url, headers={"X-Request-ID": f"load-{index}"}, **body)
            answer = _answer(response)
            if not _same(answer, singly[name]) or response.headers["x-request-id"] != f"load-{index}":
                wrong.append((name, answer))
            done += 1
        return done

    async def main() -> int:
        async with httpx.AsyncClient(timeout=60) as http:
            return sum(await asyncio.gather(*(client(http) for _ in range(N_CLIENTS))))

    before = service.samples()
    assert asyncio.run(main()) == n_requests
    assert wrong == []

    # The runners saw fewer batches than requests: adaptive batching works.
    for items in ("pictures", "faces"):
        batches = _rise(service, before, f"mien_batch_{items}_count")
        assert 0 < batches < _rise(service, before, f"mien_batch_{items}_sum")


def test_the_inline_topology_gives_the_same_answers_with_fewer_processes(
    served_fake: RunningService, pictures: dict[str, bytes], tmp_path: Path
) -> None:
    (tmp_path / "models").mkdir()

    def answers(service: RunningService) -> dict[str, Answer]:
        url = f"{service.url}/v1/analyze"
        return {name: _answer(httpx.post(url, content=data, timeout=30)) for name, data in pictures.items()}

    with running_service(tmp_path, MIEN_MODELS=FAKE, MIEN_DETECTOR=FAKE, MIEN_TOPOLOGY="inline") as inline:
        assert len(psutil.Process(inline.pid).children()) == 1
        assert answers(inline) == answers(served_fake)
        assert total(inline.samples(), "mien_stage_seconds_count", stage="detect") > 0


def test_metrics_rise_by_exactly_what_was_sent(service: RunningService, pictures: dict[str, bytes]) -> None:
    sent = ["face.jpg", "face.jpg", "two.jpg", "faceless.png", "corrupt.png", "empty", "text.txt"]
    before = service.samples()
    responses = [
        httpx.post(f"{service.url}/v1/analyze", content=pictures[name], timeout=30, headers={"X-Request-ID": name})
        for name in sent
    ]
    n_lost = 3
    for index in range(n_lost):
        httpx.get(f"{service.url}/lost/{index}", timeout=30)
    answered = [response.json()["faces"] for response in responses if response.status_code == 200]
    found = [face for faces in answered for face in faces]
    with_faces = sum(bool(faces) for faces in answered)

    def risen() -> dict[str, float]:
        after = service.samples()

        def rise(name: str, **labels: str) -> float:
            return total(after, name, **labels) - total(before, name, **labels)

        return {
            "ok": rise("mien_requests_total", route="/v1/analyze", code="200"),
            "422": rise("mien_requests_total", route="/v1/analyze", code="422"),
            "415": rise("mien_requests_total", route="/v1/analyze", code="415"),
            "404": rise("mien_requests_total", code="404"),
            "all": rise("mien_requests_total", route="/v1/analyze") + rise("mien_requests_total", route="unmatched"),
            "pictures": rise("mien_faces_per_picture_count"),
            "faces": rise("mien_faces_per_picture_sum"),
            "predictions": rise("mien_predictions_total"),
            "detect": rise("mien_stage_seconds_count", stage="detect_call"),
            "classify": rise("mien_stage_seconds_count", stage="classify_call"),
        }

    expected = {
        "ok": 4,
        "422": 2,
        "415": 1,
        "404": n_lost,
        "all": len(sent) + n_lost,
        "pictures": 4,
        "faces": len(found),
        "predictions": len(found),
        "detect": len(sent),
        "classify": with_faces,
    }
    # A request is counted just after its answer has gone out.
    for _ in range(20):
        if risen() == expected:
            break
        time.sleep(0.1)
    assert risen() == expected


def test_our_metrics_take_labels_from_closed_sets_only(service: RunningService, pictures: dict[str, bytes]) -> None:
    for index in range(3):
        httpx.post(
            f"{service.url}/v1/analyze",
            params={"model": f"odd-{index}", "top_k": index},
            content=pictures["face.jpg"],
            headers={"X-Request-ID": f"odd-{index}"},
            timeout=30,
        )
        httpx.request(f"ODD{index}", f"{service.url}/odd-{index}", timeout=30)
    tag = httpx.post(f"{service.url}/v1/analyze", content=pictures["face.jpg"], timeout=30).json()["model"]
    allowed = {
        "route": {"unmatched", *(route.path for route in build_rest_app(Settings()).routes)},
        "code": {"200", "499", *(str(row.status) for row in PROBLEMS.values())},
        "reason": set(PROBLEMS),
        "stage": {*metrics.STAGES, "detect", "classify"},
        "worker": {"api", "detector", "emotion"},
        "model": {tag},
        "emotion": set(FAKE_LABELS),
    }
    ours = [
        (name, labels)
        for name, labels in service.samples()
        if name.startswith("mien_") and name not in ("mien_model_info", "mien_build_info")
    ]

    assert {name for name, _ in ours} >= {"mien_requests_total", "mien_predictions_total", "mien_stage_seconds_count"}
    for name, labels in ours:
        for label, value in labels:
            assert label == "le" or value in allowed[label], (name, label, value)


def test_an_unknown_path_makes_no_series_of_its_own(served_fake: RunningService) -> None:
    httpx.get(f"{served_fake.url}/never-seen-before", timeout=30)

    assert "/never-seen-before" not in {value for _, labels in served_fake.samples() for _, value in labels}


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [("GET", "/nowhere", 404), ("GET", "/v1/analyze", 405), ("GET", "/static_content/index.css", 404)],
)
def test_what_is_not_there_is_a_problem_too(served_fake: RunningService, method: str, path: str, status: int) -> None:
    response = httpx.request(method, served_fake.url + path, timeout=30)

    assert (response.status_code, response.headers["content-type"]) == (status, MEDIA_TYPE)


def _raw_exchange(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        connection.sendall(request)
        return connection.recv(65536)


def test_a_declared_body_over_the_limit_is_refused_before_it_is_sent(served_fake: RunningService) -> None:
    head = b"POST /v1/analyze HTTP/1.1\r\nHost: mien\r\nContent-Type: image/png\r\nContent-Length: 99999999\r\n\r\n"

    assert _raw_exchange(served_fake.port, head).startswith(b"HTTP/1.1 413 ")


def test_a_chunked_body_over_the_limit_is_refused(served_fake: RunningService) -> None:
    def chunks() -> Iterator[bytes]:
        for _ in range(30):
            yield bytes(1024 * 1024)

    response = httpx.post(f"{served_fake.url}/v1/analyze", content=chunks(), timeout=30)

    assert (response.status_code, response.json()["code"]) == (413, "too_large")


def test_requests_at_the_edge_of_keep_alive_all_succeed(
    served_fake: RunningService, pictures: dict[str, bytes]
) -> None:
    # uvicorn closes connections that were idle for 5 s unless told otherwise, while BentoML's client holds on to them.
    async def burst() -> list[int]:
        async with httpx.AsyncClient(timeout=30) as http:  # new connections of our own, so that only theirs are old
            url, content = f"{served_fake.url}/v1/analyze", pictures["face.jpg"]
            responses = await asyncio.gather(*(http.post(url, content=content) for _ in range(16)))
            return [response.status_code for response in responses]

    for idle_s in (0, 5.01):
        time.sleep(idle_s)
        assert asyncio.run(burst()) == [200] * 16, f"after {idle_s} s"


def _processes(service: RunningService) -> list[psutil.Process]:
    parent = psutil.Process(service.pid)
    processes = [parent, *parent.children(recursive=True)]
    assert len(processes) >= 4, "the parent, the API and two runners"
    return processes


def test_only_the_api_port_takes_requests_and_only_on_loopback(service: RunningService) -> None:
    listening = {
        process.pid: [
            connection.laddr
            for connection in process.net_connections("inet")
            if connection.status == psutil.CONN_LISTEN or connection.type == socket.SOCK_DGRAM
        ]
        for process in _processes(service)
    }
    addresses = {address for found in listening.values() for address in found}

    assert {(address.ip, address.port) for address in addresses} == {("127.0.0.1", service.port)}


@pytest.mark.skipif(sys.platform != "linux", reason="reads /proc")
def test_no_process_of_the_service_loads_torch(service: RunningService) -> None:
    for process in _processes(service):
        libraries = Path(f"/proc/{process.pid}/maps").read_text()
        assert "python" in libraries
        assert "libtorch" not in libraries, process.cmdline()


def test_no_request_left_a_traceback_in_the_log(service: RunningService, pictures: dict[str, bytes]) -> None:
    httpx.post(f"{service.url}/v1/analyze", content=pictures["face.jpg"], headers={"X-Request-ID": "last"}, timeout=30)
    for _ in range(20):
        log = service.log_path.read_text()
        if '"last"' in log:
            break
        time.sleep(0.1)

    assert '"request_id": "last"' in log
    assert "Traceback" not in log
    assert "/v1/analyze?" not in log
