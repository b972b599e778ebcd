from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import numpy as np
import pytest
from bentoml.exceptions import ServiceUnavailable
from starlette.testclient import TestClient

from handlers.decode import decode_image
from handlers.fakes import FAKE_LABELS, FakeClassifier
from handlers.pipeline import FAKE, classify, load_pipeline
from handlers.preprocess import resize_crop
from handlers.results import LANDMARK_NAMES, Analysis
from service.runners import DetectorRunner
from tests.pictures import encoded, noise
from tests.service.conftest import MakeClient, in_process
from tests.service.problem_checks import check_problem

SECRET = "password=hunter2"
PICTURE = encoded(noise(120, 160))
FORM = "multipart/form-data; boundary=b"


def _part(disposition: str, content: bytes = PICTURE, ending: bytes = b"\r\n--b--\r\n") -> bytes:
    return b"--b\r\nContent-Disposition: form-data; " + disposition.encode() + b"\r\n\r\n" + content + ending


def _faces(response: httpx.Response) -> list[dict[str, Any]]:
    assert response.status_code == 200, response.text
    faces: list[dict[str, Any]] = response.json()["faces"]
    return faces


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

    check_problem(client.post(f"/v1/analyze?{query}", **content), status, code)


@pytest.mark.parametrize(
    ("query", "named"),
    [("top_k=0", "top_k"), ("min_face_size=1&landmarks=x", "min_face_size"), ("model=x", "fake:1.0.0")],
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
        "no boundary",
        "another boundary",
    ],
)
def test_a_form_without_one_readable_file_is_an_invalid_request(
    client: TestClient, content_type: str, body: bytes
) -> None:
    response = client.post("/v1/analyze", content=body, headers={"Content-Type": content_type})

    check_problem(response, 400, "invalid_request")


@pytest.mark.parametrize("options", [{"json": {"image": "x"}}, {"data": {"image": "x"}}], ids=["JSON", "urlencoded"])
def test_a_body_of_another_kind_is_no_image(client: TestClient, options: dict[str, Any]) -> None:
    check_problem(client.post("/v1/analyze", **options), 415, "unsupported_format")


@pytest.mark.parametrize("method", ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROPFIND"])
@pytest.mark.parametrize("path", ["/v1/analyze", "/v1/analyze/batch", "/v1/detect", "/v1/classify", "/infer"])
def test_a_wrong_method_is_a_405(client: TestClient, path: str, method: str) -> None:
    response = client.request(method, path)

    check_problem(response, 405, "method_not_allowed")
    assert response.headers["allow"] == "POST"


def test_head_of_a_wrong_method_has_no_body(client: TestClient) -> None:
    response = client.head("/v1/analyze")

    assert (response.status_code, response.headers["allow"]) == (405, "POST")


@pytest.mark.parametrize("path", ["/nowhere", "/v1", "/v1/analyze/", "/v1/analyze/x", "/docs.json", "/%00", "/é"])
@pytest.mark.parametrize("method", ["GET", "POST", "OPTIONS", "TRACE", "PROPFIND"])
def test_an_unknown_path_is_a_404(client: TestClient, method: str, path: str) -> None:
    check_problem(client.request(method, path, follow_redirects=False), 404, "not_found")


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

    check_problem(response, status, code)
    assert SECRET not in response.text
    assert "ZeroDivision" not in response.text
    assert ("retry-after" in response.headers) == (status in (503, 504))


def _files(field: str, *pictures: bytes) -> dict[str, Any]:
    return {"files": [(field, (f"{index}.png", picture)) for index, picture in enumerate(pictures)]}


@pytest.mark.parametrize("door", ["/v1/analyze", "/v1/analyze/batch", "/v1/detect", "/v1/classify", "/infer"])
def test_a_url_is_never_opened_and_never_taken_for_a_picture(
    client: TestClient, door: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("socket.socket.connect", lambda *_: pytest.fail("somebody was called"))
    field = {"/infer": "file", "/v1/classify": "images", "/v1/analyze/batch": "images"}.get(door, "image")

    for url in ("http://127.0.0.1:9/a.png", "file:///etc/hostname", "data:image/png;base64,AAAA"):
        form = client.post(door, files={field: (None, url)})
        check_problem(form, 400, "invalid_request")
        as_json = client.post(door, json={field: url})
        assert as_json.status_code in (400, 415), as_json.text
        as_file = client.post(door, **_files(field, url.encode()))
        assert as_file.status_code == 415 or as_file.json()["results"][0]["problem"]["code"] == "unsupported_format"


def test_options_may_be_fields_of_the_form_and_those_win(client: TestClient) -> None:
    query = client.post("/v1/analyze?top_k=2&landmarks=true", content=PICTURE)
    fields = client.post("/v1/analyze?top_k=5", data={"top_k": "2", "landmarks": "true"}, **_files("image", PICTURE))

    assert len(_faces(query)[0]["probabilities"]) == 2
    assert fields.json() == query.json()


@pytest.mark.parametrize(
    ("fields", "status", "code", "named"),
    [
        ({"top_k": "0"}, 400, "invalid_request", "top_k"),
        ({"top_k": "two"}, 400, "invalid_request", "top_k"),
        ({"min_face_size": "1"}, 400, "invalid_request", "min_face_size"),
        ({"landmarks": "maybe"}, 400, "invalid_request", "landmarks"),
        ({"model": "nobody"}, 404, "model_not_found", "fake:1.0.0"),
        ({"model": "m" * 201}, 400, "invalid_request", "model"),
    ],
)
def test_a_wrong_option_in_the_form_has_its_own_code(
    client: TestClient, fields: dict[str, str], status: int, code: str, named: str
) -> None:
    response = client.post("/v1/analyze", data=fields, **_files("image", PICTURE))

    check_problem(response, status, code)
    assert named in response.json()["detail"]


def test_of_an_option_given_twice_the_last_counts(client: TestClient) -> None:
    twice = client.post("/v1/analyze?top_k=1&top_k=3", content=PICTURE)
    in_form = client.post("/v1/analyze", data={"top_k": ["1", "3"]}, **_files("image", PICTURE))

    assert len(_faces(twice)[0]["probabilities"]) == 3
    assert in_form.json() == twice.json()


@pytest.mark.parametrize("door", ["/v1/analyze", "/v1/detect"])
def test_two_files_are_too_many_for_a_door_of_one(client: TestClient, door: str) -> None:
    check_problem(client.post(door, **_files("image", PICTURE, PICTURE)), 413, "too_large")


SEVERAL = [encoded(noise(40 + index, 50, index)) for index in range(5)]


def test_a_batch_answers_in_order_with_what_each_picture_gets_alone(client: TestClient) -> None:
    sent = [SEVERAL[0], b"", SEVERAL[1], b"no image", SEVERAL[2][:50], SEVERAL[0]]
    response = client.post("/v1/analyze/batch?top_k=3&landmarks=1", **_files("images", *sent))
    singly = [client.post("/v1/analyze?top_k=3&landmarks=1", content=picture) for picture in sent]

    assert response.status_code == 200
    body = response.json()
    assert body["model"] == "fake:1.0.0"
    assert [result["index"] for result in body["results"]] == list(range(len(sent)))
    assert [alone.status_code for alone in singly] == [200, 422, 200, 415, 422, 200]
    for result, alone in zip(body["results"], singly, strict=True):
        if alone.status_code == 200:
            assert "problem" not in result
            assert {"model": "fake:1.0.0", **result["analysis"]} == alone.json()
        else:
            assert "analysis" not in result
            assert result["problem"] == {**alone.json(), "request_id": response.headers["x-request-id"]}


def test_a_batch_takes_its_options_from_the_form_too(client: TestClient) -> None:
    response = client.post("/v1/analyze/batch", data={"top_k": "1"}, **_files("images", *SEVERAL))
    labels = [
        len(face["probabilities"]) for result in response.json()["results"] for face in result["analysis"]["faces"]
    ]

    assert labels == [1] * len(SEVERAL)


def test_more_pictures_than_are_worked_on_at_once_go_in_pieces(make_client: MakeClient) -> None:
    pieces: list[int] = []

    async def detect(works: list[Any]) -> list[Any]:
        pieces.append(len(works))
        return await runner(works)

    client = make_client(detect=detect, concurrency=4, max_files=70, queue_size=8)
    runner = in_process(DetectorRunner.inner().detect)
    pictures = [encoded(noise(40 + index % 7, 60 + index // 7, index)) for index in range(70)]
    results = client.post("/v1/analyze/batch", **_files("images", *pictures)).json()["results"]

    assert pieces == [4] * 17 + [2]
    assert [(result["analysis"]["width"], result["analysis"]["height"]) for result in results] == [
        (60 + index // 7, 40 + index % 7) for index in range(70)
    ]
    for index in (0, 3, 4, 69):
        alone = client.post("/v1/analyze", content=pictures[index]).json()
        assert {"model": "fake:1.0.0", **results[index]["analysis"]} == alone


@pytest.mark.parametrize("door", ["/v1/analyze/batch", "/v1/classify"])
def test_the_number_of_files_is_limited(make_client: MakeClient, door: str) -> None:
    client = make_client(max_files=3)

    assert client.post(door, **_files("images", *SEVERAL[:3])).status_code == 200
    check_problem(client.post(door, **_files("images", *SEVERAL[:4])), 413, "too_large")
    check_problem(client.post(door, **_files("images", *[b""] * 500)), 413, "too_large")


def test_the_bytes_of_a_batch_are_limited(make_client: MakeClient) -> None:
    client = make_client(max_request_bytes=20_000)
    picture = encoded(noise(40, 40))

    assert client.post("/v1/analyze/batch", **_files("images", picture)).status_code == 200
    check_problem(client.post("/v1/analyze/batch", **_files("images", *[picture] * 5)), 413, "too_large")


@pytest.mark.parametrize("door", ["/v1/analyze/batch", "/infer"])
def test_a_raw_body_is_no_form(client: TestClient, door: str) -> None:
    check_problem(client.post(door, content=PICTURE, headers={"Content-Type": "image/png"}), 400, "invalid_request")
    check_problem(client.post(door), 400, "invalid_request")


@pytest.mark.parametrize("door", ["/v1/analyze/batch", "/v1/classify"])
def test_a_form_without_a_file_is_an_invalid_request(client: TestClient, door: str) -> None:
    empty = client.post(door, content=b"--b--\r\n", headers={"Content-Type": FORM})
    check_problem(empty, 400, "invalid_request")
    check_problem(client.post(door, **_files("image", PICTURE)), 400, "invalid_request")


def test_detect_finds_the_boxes_of_analyze(client: TestClient) -> None:
    analyzed = client.post("/v1/analyze?landmarks=true", content=PICTURE).json()
    raw = client.post("/v1/detect?landmarks=true", content=PICTURE)
    form = client.post("/v1/detect", data={"landmarks": "true"}, **_files("image", PICTURE))

    assert raw.status_code == 200
    assert raw.json() == form.json()
    assert raw.json() == {
        "width": 160,
        "height": 120,
        "faces": [
            {name: face[name] for name in ("box", "detection_confidence", "landmarks")} for face in analyzed["faces"]
        ],
    }


def test_detect_takes_min_face_size_and_leaves_landmarks_out(client: TestClient) -> None:
    (face,) = _faces(client.post("/v1/detect?min_face_size=60", content=PICTURE))

    assert set(face) == {"box", "detection_confidence"}
    assert _faces(client.post("/v1/detect?min_face_size=61", content=PICTURE)) == []


@pytest.mark.parametrize(
    ("body", "status", "code"),
    [(b"", 422, "empty_image"), (b"text", 415, "unsupported_format"), (PICTURE[:99], 422, "corrupt_image")],
)
@pytest.mark.parametrize("door", ["/v1/detect", "/v1/classify"])
def test_a_raw_body_that_is_no_picture_has_its_own_code(
    client: TestClient, door: str, body: bytes, status: int, code: str
) -> None:
    check_problem(client.post(door, content=body), status, code)


def test_classify_is_the_classifier_on_the_same_crops(client: TestClient) -> None:
    classifier = FakeClassifier()
    emotions = classify(classifier, [resize_crop(decode_image(crop), classifier.input) for crop in SEVERAL])
    expected = [
        {"emotion": emotion.label, "confidence": emotion.confidence, "probabilities": emotion.probabilities}
        for emotion in emotions
    ]
    form = client.post("/v1/classify", **_files("images", *SEVERAL)).json()
    raw = client.post("/v1/classify", content=SEVERAL[1]).json()

    assert form == {
        "model": "fake:1.0.0",
        "results": [{"index": index, "emotion": emotion} for index, emotion in enumerate(expected)],
    }
    assert raw == {"model": "fake:1.0.0", "results": [{"index": 0, "emotion": expected[1]}]}


def test_classify_takes_top_k_from_address_or_form(client: TestClient) -> None:
    raw = client.post("/v1/classify?top_k=2", content=PICTURE).json()
    form = client.post("/v1/classify", data={"top_k": "2"}, **_files("images", PICTURE)).json()

    assert len(raw["results"][0]["emotion"]["probabilities"]) == 2
    assert form == raw


def test_a_crops_error_in_a_form_is_its_result(client: TestClient) -> None:
    response = client.post("/v1/classify", **_files("images", b"", SEVERAL[0], b"text"))
    results = response.json()["results"]

    assert response.status_code == 200
    assert [set(result) for result in results] == [{"index", "problem"}, {"index", "emotion"}, {"index", "problem"}]
    assert [results[index]["problem"]["code"] for index in (0, 2)] == ["empty_image", "unsupported_format"]
    assert {results[index]["problem"]["request_id"] for index in (0, 2)} == {response.headers["x-request-id"]}


@pytest.mark.parametrize("door", ["/v1/analyze/batch", "/v1/classify"])
def test_an_unknown_model_fails_the_whole_request(client: TestClient, door: str) -> None:
    check_problem(client.post(f"{door}?model=nobody", **_files("images", PICTURE)), 404, "model_not_found")
    form = client.post(door, data={"model": "nobody"}, **_files("images", PICTURE))
    check_problem(form, 404, "model_not_found")


def test_infer_answers_boxes_as_the_older_server_did(client: TestClient) -> None:
    response = client.post("/infer?model_type=face", **_files("file", PICTURE))
    none = client.post("/infer?model_type=face", **_files("file", encoded(np.zeros((64, 64, 3), np.uint8))))

    assert response.json() == {"boxes": [[50.0, 30.0, 110.0, 90.0]]}
    assert none.json() == {"boxes": []}


@pytest.mark.parametrize("query", ["", "?model_type=emotion"])
def test_infer_answers_probabilities_as_the_older_server_did(client: TestClient, query: str) -> None:
    response = client.post(f"/infer{query}", **_files("file", PICTURE))
    classified = client.post("/v1/classify", content=PICTURE).json()["results"][0]["emotion"]["probabilities"]

    assert response.status_code == 200
    assert response.json() == {"probabilities": classified}
    assert set(response.json()["probabilities"]) == set(FAKE_LABELS)


@pytest.mark.parametrize("model_type", ["face", "emotion"])
def test_infer_refuses_what_is_no_picture(client: TestClient, model_type: str) -> None:
    door = f"/infer?model_type={model_type}"

    check_problem(client.post(door, **_files("file", b"text")), 415, "unsupported_format")
    check_problem(client.post(door, **_files("image", PICTURE)), 400, "invalid_request")
    check_problem(client.post("/infer?model_type=age", **_files("file", PICTURE)), 400, "invalid_request")
