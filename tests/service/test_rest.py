from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from bentoml.exceptions import ServiceUnavailable
from starlette.testclient import TestClient

from handlers.fakes import FAKE_LABELS
from handlers.pipeline import FAKE, load_pipeline
from handlers.results import LANDMARK_NAMES, Analysis
from service.problems import MEDIA_TYPE
from tests.pictures import encoded, noise
from tests.service.conftest import MakeClient

SECRET = "password=hunter2"
PICTURE = encoded(noise(120, 160))
FORM = "multipart/form-data; boundary=b"


def _part(disposition: str, content: bytes = PICTURE, ending: bytes = b"\r\n--b--\r\n") -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + content + ending


def _faces(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    faces: list[dict[str, Any]] = response.json()["faces"]
    return faces


def _check_problem(response: httpx.Response, status: int, code: str) -> None:
    assert (response.status_code, response.json()["code"]) == (status, code), response.text
    assert response.headers["content-type"] == MEDIA_TYPE
    assert response.json()["status"] == status
    assert response.json()["request_id"] == response.headers["x-request-id"] != ""


def test_the_answer_is_the_pipelines_result(client: TestClient) -> None:
    (expected,) = load_pipeline(FAKE).analyze([PICTURE])
    assert isinstance(expected, Analysis)
    (face,) = expected.faces

    assert client.post("/v1/analyze", content=PICTURE).json() == {
        "model": "fake:1.0.0",
        "width": 160,
        "height": 120,
        "faces": [
            {
                "box": dict(zip(("left", "top", "right", "bottom"), face.box_px, strict=True)),
                "detection_confidence": face.detection_confidence,
                "emotion": face.emotion,
                "confidence": face.confidence,
                "probabilities": face.probabilities,
            }
        ],
    }


@pytest.mark.parametrize("content_type", ["image/png", "application/octet-stream", "image/jpeg; charset=binary", None])
def test_a_form_and_a_raw_body_give_the_same_answer(client: TestClient, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}
    raw = client.post("/v1/analyze", content=PICTURE, headers=headers)
    form = client.post("/v1/analyze", files={"image": ("face.png", PICTURE)}, data={"another": "field"})

    assert raw.status_code == 200
    assert raw.json() == form.json()


def test_probabilities_sum_to_one_and_come_likeliest_first(client: TestClient) -> None:
    (face,) = _faces(client.post("/v1/analyze", content=PICTURE))
    values = list(face["probabilities"].values())

    assert set(face["probabilities"]) == set(FAKE_LABELS)
    assert sum(values) == pytest.approx(1, abs=1e-5)
    assert values == sorted(values, reverse=True)
    assert next(iter(face["probabilities"].items())) == (face["emotion"], face["confidence"])


@pytest.mark.parametrize("top_k", [1, 3, 7, 100])
def test_top_k_keeps_the_likeliest_labels_as_they_are(client: TestClient, top_k: int) -> None:
    (every,) = _faces(client.post("/v1/analyze", content=PICTURE))
    (some,) = _faces(client.post("/v1/analyze", params={"top_k": top_k}, content=PICTURE))

    assert list(some["probabilities"].items()) == list(every["probabilities"].items())[:top_k]


@pytest.mark.parametrize(("landmarks", "wanted"), [("true", True), ("1", True), ("false", False), ("0", False)])
def test_landmarks_come_only_when_asked_for(client: TestClient, landmarks: str, wanted: bool) -> None:
    (face,) = _faces(client.post("/v1/analyze", params={"landmarks": landmarks}, content=PICTURE))

    assert ("landmarks" in face) == wanted
    if wanted:
        assert tuple(face["landmarks"]) == LANDMARK_NAMES
        box = face["box"]
        for point in face["landmarks"].values():
            assert box["left"] < point["x"] < box["right"]
            assert box["top"] < point["y"] < box["bottom"]


@pytest.mark.parametrize(("min_face_size", "n_faces"), [(12, 1), (60, 1), (61, 0), (10_000, 0)])
def test_smaller_faces_than_min_face_size_are_left_out(client: TestClient, min_face_size: int, n_faces: int) -> None:
    response = client.post("/v1/analyze", params={"min_face_size": min_face_size}, content=PICTURE)

    assert len(_faces(response)) == n_faces


@pytest.mark.parametrize("model", ["fake", "fake:1.0.0"])
def test_the_model_is_chosen_by_name_or_tag_and_answered_by_tag(client: TestClient, model: str) -> None:
    response = client.post("/v1/analyze", params={"model": model}, content=PICTURE)

    assert response.json()["model"] == "fake:1.0.0"


def test_a_picture_without_a_face_is_an_empty_list(client: TestClient) -> None:
    assert _faces(client.post("/v1/analyze", content=encoded(np.zeros((30, 30, 3), np.uint8)))) == []


@pytest.mark.parametrize(
    ("query", "body", "status", "code"),
    [
        ("", b"", 422, "empty_image"),
        ("", b"no image at all", 415, "unsupported_format"),
        ("", b"%PDF-1.7", 415, "unsupported_format"),
        ("", PICTURE[: len(PICTURE) // 2], 422, "corrupt_image"),
        ("", encoded(noise(101, 100)), 413, "too_large"),
        ("model=nobody", PICTURE, 404, "model_not_found"),
        ("model=", PICTURE, 404, "model_not_found"),
        ("top_k=0", PICTURE, 400, "invalid_request"),
        ("top_k=101", PICTURE, 400, "invalid_request"),
        ("top_k=many", PICTURE, 400, "invalid_request"),
        ("min_face_size=11", PICTURE, 400, "invalid_request"),
        ("min_face_size=-20", PICTURE, 400, "invalid_request"),
        ("min_face_size=10001", PICTURE, 400, "invalid_request"),
        ("landmarks=maybe", PICTURE, 400, "invalid_request"),
    ],
)
@pytest.mark.parametrize("form", [False, True], ids=["raw", "form"])
def test_what_is_wrong_has_its_own_code(
    make_client: MakeClient, query: str, body: bytes, status: int, code: str, form: bool
) -> None:
    client = make_client(max_image_side_px=160, max_image_pixels=10_000 if code == "too_large" else 20_000)
    content: dict[str, Any] = {"files": {"image": ("a", body)}} if form else {"content": body}

    _check_problem(client.post(f"/v1/analyze?{query}", **content), status, code)


@pytest.mark.parametrize(
    ("query", "named"), [("top_k=0", "top_k"), ("min_face_size=1&landmarks=x", "min_face_size"), ("model=x", "'x'")]
)
def test_the_detail_names_the_parameter(client: TestClient, query: str, named: str) -> None:
    assert named in client.post(f"/v1/analyze?{query}", content=PICTURE).json()["detail"]


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        (FORM, b""),
        (FORM, b"no form at all"),
        (FORM, _part('name="picture"; filename="a.png"')),
        (FORM, _part('name="image"', b"text")),
        (FORM, _part('name="image"')),
        (FORM, _part('name="image"; filename="a.png"', ending=b"")),
        (FORM, _part('filename="a.png"')),
        (FORM, _part('name="image"; filename="a"', ending=b"\r\n") + _part('name="image"; filename="b"')),
        ("multipart/form-data", _part('name="image"; filename="a.png"')),
        ("multipart/form-data; boundary=other", _part('name="image"; filename="a.png"')),
    ],
    ids=[
        "no parts",
        "no form",
        "another field",
        "text for a file",
        "bytes without a file name",
        "cut short",
        "no name",
        "two files",
        "no boundary",
        "another boundary",
    ],
)
def test_a_form_without_one_readable_file_is_an_invalid_request(
    client: TestClient, content_type: str, body: bytes
) -> None:
    response = client.post("/v1/analyze", content=body, headers={"Content-Type": content_type})

    _check_problem(response, 400, "invalid_request")


@pytest.mark.parametrize("options", [{"json": {"image": "x"}}, {"data": {"image": "x"}}], ids=["JSON", "urlencoded"])
def test_a_body_of_another_kind_is_no_image(client: TestClient, options: dict[str, Any]) -> None:
    _check_problem(client.post("/v1/analyze", **options), 415, "unsupported_format")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
def test_a_wrong_method_is_a_405(client: TestClient, method: str) -> None:
    response = client.request(method, "/v1/analyze")
    _check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/analyze/", "/v1/analyze/x", "/openapi.json", "//", "/%00"])
@pytest.mark.parametrize("method", ["GET", "POST"])
def test_an_unknown_path_is_a_404(client: TestClient, method: str, path: str) -> None:
    _check_problem(client.request(method, path, follow_redirects=False), 404, "not_found")


async def _overloaded(_: list[Any]) -> list[Any]:
    raise ServiceUnavailable(SECRET)


async def _broken(_: list[Any]) -> list[Any]:
    raise ZeroDivisionError(SECRET)


async def _short(_: list[Any]) -> list[Any]:
    return []


async def _for_ever(_: list[Any]) -> list[Any]:
    return await asyncio.Event().wait()  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("runner", "status", "code"),
    [
        (_overloaded, 503, "unavailable"),
        (_broken, 500, "internal"),
        (_short, 500, "internal"),
        (_for_ever, 504, "timeout"),
    ],
)
@pytest.mark.parametrize("stage", ["detect", "classify"])
def test_a_failing_runner_is_a_problem_without_its_text(
    make_client: MakeClient, stage: str, runner: Callable[..., Any], status: int, code: str
) -> None:
    client = make_client(timeout_s=0.2 if runner is _for_ever else 30, **{stage: runner})
    response = client.post("/v1/analyze", content=PICTURE)

    _check_problem(response, status, code)
    assert SECRET not in response.text
    assert "ZeroDivision" not in response.text
    assert ("retry-after" in response.headers) == (status in (503, 504))
