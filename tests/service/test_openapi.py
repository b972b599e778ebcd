from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import jsonschema_rs
import pytest
from starlette.testclient import TestClient

from handlers.fakes import FAKE_LABELS
from service.problems import PROBLEMS
from tests.pictures import encoded, noise
from tests.service.conftest import MakeClient

REPOSITORY = Path(__file__).parents[2]
COMMITTED = REPOSITORY / "docs" / "openapi.json"
PICTURE = encoded(noise(60, 80))
FORM = {"files": [("images", ("a", PICTURE)), ("images", ("b", b"text"))]}


@pytest.fixture(scope="module")
def schema() -> dict[str, Any]:
    found: dict[str, Any] = json.loads(COMMITTED.read_text())
    return found


def _validate(schema: dict[str, Any], part: dict[str, Any], value: object) -> None:
    jsonschema_rs.validator_for({**part, "components": schema["components"]}).validate(value)


def test_the_committed_schema_is_what_the_command_prints_whatever_the_environment(tmp_path: Path) -> None:
    odd = {"MIEN_PORT": "no number", "MIEN_MODELS": "nobody", "PYTHONHASHSEED": "7", "LC_ALL": "C", "COLUMNS": "20"}
    environment = {**os.environ, **odd, "BENTOML_HOME": str(tmp_path)}
    printed = subprocess.run(
        [sys.executable, "-m", "service.openapi"], cwd=REPOSITORY, env=environment, capture_output=True, check=True
    ).stdout

    assert printed.decode() == COMMITTED.read_text(), "run `python -m service.openapi > docs/openapi.json`"


def test_the_service_answers_with_the_committed_schema(make_client: MakeClient, schema: dict[str, Any]) -> None:
    client = make_client(max_files=3, timeout_s=5)

    assert client.get("/openapi.json").json() == schema


def test_every_door_of_rest_is_in_the_schema(schema: dict[str, Any]) -> None:
    assert {(path, method) for path, item in schema["paths"].items() for method in item if method != "parameters"} == {
        ("/v1/analyze", "post"),
        ("/v1/analyze/batch", "post"),
        ("/v1/detect", "post"),
        ("/v1/classify", "post"),
        ("/infer", "post"),
        ("/v1/models", "get"),
        ("/v1/models/{name}", "get"),
        ("/v1/jobs", "post"),
        ("/v1/jobs", "get"),
        ("/v1/jobs/{job_id}", "get"),
        ("/v1/jobs/{job_id}", "delete"),
        ("/v1/jobs/{job_id}/results", "get"),
    }


def test_every_error_of_the_table_has_an_example_that_validates(schema: dict[str, Any]) -> None:
    seen = set()
    for path, item in schema["paths"].items():
        for method, operation in item.items():
            for status, response in operation["responses"].items() if method != "parameters" else ():
                if status.startswith("2"):
                    continue
                content = response["content"]["application/problem+json"]
                assert content["examples"], (path, status)
                for code, example in content["examples"].items():
                    _validate(schema, content["schema"], example["value"])
                    assert (example["value"]["code"], str(example["value"]["status"])) == (code, status)
                    seen.add(code)
                    assert not PROBLEMS[code].retry or "Retry-After" in response["headers"]

    assert seen | {"not_found", "method_not_allowed"} == set(PROBLEMS)


def _with_examples(value: object) -> Iterator[dict[str, Any]]:
    if isinstance(value, dict):
        if isinstance(value.get("examples"), list):
            yield value
        for child in value.values():
            yield from _with_examples(child)
    elif isinstance(value, list):
        for child in value:
            yield from _with_examples(child)


def test_every_example_is_of_its_own_schema(schema: dict[str, Any]) -> None:
    parts = list(_with_examples(schema["components"]["schemas"]))

    assert len(parts) > 20
    for part in parts:
        for example in part["examples"]:
            _validate(schema, part, example)


def test_every_reference_leads_somewhere(schema: dict[str, Any]) -> None:
    text = json.dumps(schema)
    targets = {piece.partition('"')[0] for piece in text.split('"$ref": "#/')[1:]}

    assert targets
    for target in targets:
        found = schema
        for key in target.split("/"):
            found = found[key]
    assert "HTTPValidationError" not in text


def _walk(client: TestClient) -> Iterator[tuple[str, str, httpx.Response]]:
    """An answer of every kind of every door: template of its address, method, answer."""
    for path in ("/v1/analyze", "/v1/detect", "/v1/classify"):
        for query in ("", "?landmarks=true&top_k=1", "?top_k=0&min_face_size=1"):
            for body in (PICTURE, b"", b"text", PICTURE[:90], encoded(noise(130, 20))):
                yield path, "post", client.post(path + query, content=body)
    for path in ("/v1/analyze/batch", "/v1/classify"):
        yield path, "post", client.post(path, **FORM)
        yield path, "post", client.post(f"{path}?top_k=2", **FORM)
        yield path, "post", client.post(f"{path}?model=nobody", **FORM)
        yield path, "post", client.post(path, files=[("images", ("a", b""))] * 50)
    for model_type in ("face", "emotion", "age"):
        yield "/infer", "post", client.post(f"/infer?model_type={model_type}", files={"file": PICTURE})
    yield "/infer", "post", client.post("/infer", files={"file": b"text"})
    yield "/infer", "post", client.post("/infer?model_type=face", files={"file": b""})
    yield "/infer", "post", client.post("/infer", files={"wrong": b""})
    for headers in ({}, {"X-Request-Timeout-Ms": "soon"}, {"X-Request-ID": "x" * 20_000}):
        yield "/v1/models", "get", client.get("/v1/models", headers=headers)
        for name in ("fake", "nobody"):
            yield "/v1/models/{name}", "get", client.get(f"/v1/models/{name}", headers=headers)
    for body in ({"input": "photos"}, {"input": "elsewhere"}, {"input": "photos", "model": "nobody"}, {}, []):
        yield "/v1/jobs", "post", client.post("/v1/jobs", json=body)
    (job,) = client.get("/v1/jobs").json()["jobs"]
    for query in ("", "?limit=1", "?limit=0"):
        yield "/v1/jobs", "get", client.get(f"/v1/jobs{query}")
    for job_id in (job["id"], "nothing"):
        yield "/v1/jobs/{job_id}", "get", client.get(f"/v1/jobs/{job_id}")
        yield "/v1/jobs/{job_id}/results", "get", client.get(f"/v1/jobs/{job_id}/results")
        yield "/v1/jobs/{job_id}", "delete", client.delete(f"/v1/jobs/{job_id}")


def test_every_answer_is_of_the_schema(make_client: MakeClient, schema: dict[str, Any], tmp_path: Path) -> None:
    root, jobs = tmp_path / "photos", tmp_path / "jobs"
    root.mkdir()
    client = make_client(max_image_side_px=128, scoring_roots=root, jobs_dir=jobs)
    statuses = set()
    for path, method, response in _walk(client):
        documented = schema["paths"][path][method]["responses"]
        assert str(response.status_code) in documented, (path, response.text)
        content = documented[str(response.status_code)]["content"]
        media_type = response.headers["content-type"]
        assert media_type in content, (path, media_type)
        _validate(schema, content[media_type]["schema"], response.json())
        statuses.add(response.status_code)

    assert statuses == {200, 202, 400, 403, 404, 409, 413, 415, 422}


def test_labels_of_examples_are_labels(schema: dict[str, Any]) -> None:
    (example,) = schema["components"]["schemas"]["EmotionBody"]["properties"]["probabilities"]["examples"]

    assert set(example) <= set(FAKE_LABELS)
