"""Inputs that would lead out of the roots, through the real doors: each is refused, and says nothing of outside."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
from starlette.testclient import TestClient

from tests.service.jobs.conftest import jobs_client
from tests.service.problem_checks import check_problem

ATTACKS = {
    "parent": "../secret",
    "parent in the middle": "photos/../secret",
    "parent far down": "photos/may/../../secret",
    "parent at the end": "photos/..",
    "parent that stays inside": "photos/may/../may",
    "dot": "photos/./may",
    "bare dot": ".",
    "hidden folder": "photos/.hidden",
    "hidden folder of a bucket": "s3://bucket/prefix/.hidden/x",
    "empty part": "photos//may",
    "empty": "",
    "only a slash": "/",
    "absolute": "/etc",
    "absolute path of a root": "{root}",
    "absolute path below a root": "{root}/may",
    "absolute path outside": "{outside}",
    "two slashes": "//etc",
    "home": "~root",
    "home of nobody": "~",
    "windows drive": "C:\\Windows",
    "windows parent": "photos\\..\\secret",
    "unc": "\\\\host\\share",
    "link out of the root": "photos/link",
    "folder behind a link out": "photos/link/inner",
    "link that stays inside": "photos/inside",
    "link to itself": "photos/loop",
    "single picture": "photos/may/picture.png",
    "list of files": "photos/list.txt",
    "pipe": "photos/pipe",
    "escaped parent": "photos/%2e%2e/secret",
    "parent escaped twice": "photos/%252e%252e/secret",
    "escaped slashes": "photos%2f..%2fsecret",
    "escaped zero byte": "photos/may%00",
    "escaped without end": "photos/%2525252525252e",
    "zero byte": "photos/may\0.png",
    "line end": "photos/may\n/etc",
    "half a character": "photos/\ud800",
    "pattern": "photos/*",
    "pattern of one": "photos/[m]ay",
    "pattern in a bucket": "s3://bucket/prefix/*",
    "too long": "photos/" + "x/" * 2000,
    "part too long": "photos/" + "x" * 300,
    "look-alike letter": "\u0440hotos/may",
    "look-alike dots": "photos/\u2024\u2024/secret",
    "look-alike slash": "photos\uff0f..\uff0fsecret",
    "other case": "Photos/may",
    "longer name": "photosx",
    "file address": "file://{outside}",
    "file address of a root": "file://{root}/may",
    "web": "http://169.254.169.254/latest/meta-data",
    "web with a key": "https://user:pass@example.org/",
    "memory": "memory://secret",
    "other protocol": "gs://bucket/prefix",
    "other bucket": "s3://other/prefix",
    "bucket alone": "s3://bucket",
    "beside the prefix": "s3://bucket/other",
    "longer prefix": "s3://bucket/prefixes",
    "parent in a bucket": "s3://bucket/prefix/../other",
    "escaped parent in a bucket": "s3://bucket/prefix/%2E%2E/other",
    "bucket in capitals": "s3://BUCKET/prefix",
    "protocol in capitals": "S3://bucket/prefix",
    "no bucket": "s3:///prefix",
    "one slash": "s3:/bucket/prefix",
    "no slash": "s3:bucket/prefix",
    "credentials": "s3://key:secret@bucket/prefix",
    "user": "s3://user@bucket/prefix",
    "port": "s3://bucket:9000/prefix",
    "query": "s3://bucket/prefix?endpoint_url=http://127.0.0.1",
    "fragment": "s3://bucket/prefix#x",
    "chain": "simplecache::s3://bucket/prefix",
    "chain of an archive": "zip://a.zip::s3://bucket/prefix",
    "chain at the end": "s3://bucket/prefix::file:///etc",
}


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the root `photos`, which has the traps of the table in it, and a secret beside it."""
    world = tmp_path_factory.mktemp("world")
    root = world / "photos"
    for folder in (root / "may", root / ".hidden", world / "secret" / "inner"):
        folder.mkdir(parents=True)
        (folder / "picture.png").write_bytes(b"secret")
    (root / "link").symlink_to(world / "secret")
    (root / "inside").symlink_to("may")
    (root / "loop").symlink_to("loop")
    (root / "list.txt").write_text(f"{world}/secret/inner/picture.png\n")
    os.mkfifo(root / "pipe")
    return world


@pytest.fixture(scope="module")
def client(world: Path) -> TestClient:
    return jobs_client(scoring_roots=(str(world / "photos"), "s3://bucket/prefix"), jobs_dir=world / "jobs")


def test_the_table_is_long_enough() -> None:
    assert len(set(ATTACKS.values())) == len(ATTACKS) >= 30


@pytest.mark.parametrize("attack", ATTACKS)
def test_it_is_refused_and_nothing_is_kept(client: TestClient, world: Path, attack: str) -> None:
    text = ATTACKS[attack].replace("{root}", str(world / "photos")).replace("{outside}", str(world / "secret"))

    response = client.post(
        "/v1/jobs", content=json.dumps({"input": text}), headers={"Content-Type": "application/json"}
    )

    status = response.status_code
    assert status in (400, 403), response.text
    check_problem(response, status, {400: "invalid_request", 403: "forbidden"}[status])
    detail = response.json()["detail"]
    assert str(world) not in detail
    assert "s3://bucket" not in detail
    assert _jobs(client) == []


@pytest.mark.parametrize("pattern", ["../*", "/etc/*", "may/../../secret/*", "\0", "x\n", ""])
def test_no_pattern_leads_out(client: TestClient, pattern: str) -> None:
    response = client.post("/v1/jobs", json={"input": "photos", "include": [pattern]})

    check_problem(response, 400, "invalid_request")
    assert _jobs(client) == []


@pytest.mark.parametrize(
    ("there", "missing"),
    [
        ("{outside}", "{outside}-not"),
        ("file://{outside}", "file://{outside}-not"),
        ("s3://other/prefix", "s3://another/prefix"),
        ("photos/link", "photos/lost"),
        ("photos/link/inner", "photos/link/lost."),
        ("photos/may/picture.png", "photos/may/picture.jpg"),
    ],
)
def test_the_answer_does_not_tell_what_exists(client: TestClient, world: Path, there: str, missing: str) -> None:
    answers = []
    for text in (there, missing):
        asked = text.replace("{outside}", str(world / "secret"))
        body = client.post("/v1/jobs", json={"input": asked}).json()
        answers.append((body["code"], body["detail"].replace(asked, "INPUT")))

    assert answers[0] == answers[1]


@pytest.mark.parametrize(
    "input", ["photos", "photos/", "photos/may", "photos/may/", "s3://bucket/prefix", "s3://bucket/prefix/a"]
)
def test_what_lies_in_a_root_is_taken(client: TestClient, input: str) -> None:
    response = client.post("/v1/jobs", json={"input": input})

    assert response.status_code == 202, response.text
    assert response.json()["input"] == input.removesuffix("/")
    assert client.delete(response.headers["Location"]).status_code == 202
    assert client.delete(response.headers["Location"]).status_code == 204


def _jobs(client: TestClient) -> list[object]:
    jobs: list[object] = client.get("/v1/jobs").json()["jobs"]
    return jobs
