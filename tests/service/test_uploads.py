from __future__ import annotations

import asyncio
import random
import tempfile

import pytest
from fastapi import Request
from starlette.testclient import TestClient

from handlers.errors import InvalidRequestError, TooLargeError
from service.uploads import Upload, read_upload
from tests.pictures import encoded, noise
from tests.service.problem_checks import check_problem

CRLF = b"\r\n"
PICTURE = encoded(noise(40, 40))
LARGE = bytes(3 * 1024 * 1024)


def _request(body: bytes, content_type: str, chunk_bytes: int = 65_536) -> Request:
    pieces = [body[start : start + chunk_bytes] for start in range(0, len(body), chunk_bytes)]
    messages = [{"type": "http.request", "body": piece, "more_body": True} for piece in pieces]
    messages.append({"type": "http.request", "body": b"", "more_body": False})

    async def receive() -> dict[str, object]:
        return messages.pop(0)

    headers = [(b"content-type", content_type.encode())] if content_type else []
    return Request({"type": "http", "method": "POST", "path": "/", "headers": headers}, receive)


def _read(body: bytes, content_type: str = "multipart/form-data; boundary=b", max_files: int = 3) -> Upload:
    return asyncio.run(read_upload(_request(body, content_type), "image", max_files))


async def _starlettes_way(request: Request) -> object:
    return await request.form()


def _part(name: str, content: bytes, filename: str | None = None, more: bytes = b"") -> bytes:
    disposition = f'form-data; name="{name}"' + ("" if filename is None else f'; filename="{filename}"')
    return b"--b\r\nContent-Disposition: " + disposition.encode() + CRLF + more + CRLF + content + CRLF


def _form(*parts: bytes) -> bytes:
    return b"".join(parts) + b"--b--\r\n"


@pytest.mark.parametrize("content_type", ["", "image/png", "application/json", "application/x-www-form-urlencoded"])
def test_any_body_but_a_form_is_one_picture(content_type: str) -> None:
    assert _read(b"anything", content_type) == Upload((b"anything",), False, {})


def test_a_form_gives_its_files_in_order_and_its_fields() -> None:
    body = _form(_part("image", b"1", "a"), _part("top_k", b"3"), _part("image", b"", "b"), _part("image", b"2", ""))

    assert _read(body) == Upload((b"1", b"", b"2"), True, {"top_k": "3"})


@pytest.mark.parametrize("chunk_bytes", [1, 7, 100_000])
def test_it_does_not_matter_how_a_form_is_cut_into_messages(chunk_bytes: int) -> None:
    body = _form(_part("model", b"x"), _part("image", PICTURE, "a.png", b"Content-Type: image/png\r\n"))
    request = _request(body, "Multipart/Form-Data; boundary=b", chunk_bytes)

    assert asyncio.run(read_upload(request, "image", 1)) == Upload((PICTURE,), True, {"model": "x"})


def test_fields_as_bentomls_client_sends_them_are_read_as_plain_ones() -> None:
    body = _form(
        _part("image", b"1", "a"),
        _part("model", b'"fake"'),
        _part("top_k", b"3"),
        _part("min_face_size", b"null"),
        _part("landmarks", b"true"),
        _part("quote", b'"'),
    )

    assert _read(body).fields == {"model": "fake", "top_k": "3", "landmarks": "true", "quote": '"'}


def test_no_part_of_a_picture_is_ever_on_disk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    body = _form(_part("image", LARGE, "a"), _part("image", LARGE, "b"))

    assert _read(body).images == (LARGE, LARGE)
    # The same by Starlette's own way, which does write: so this test would see it.
    with pytest.raises(FileNotFoundError):
        asyncio.run(_starlettes_way(_request(body, "multipart/form-data; boundary=b")))


@pytest.mark.parametrize("n_files", [4, 500])
def test_too_many_files_are_too_large(n_files: int) -> None:
    with pytest.raises(TooLargeError, match="more files than 3"):
        _read(_form(*[_part("image", b"", "a")] * n_files))


_INNER = b"Content-Type: multipart/mixed; boundary=inner\r\n"


@pytest.mark.parametrize(
    ("content_type", "body"),
    [
        ("multipart/form-data; boundary=b", b""),
        ("multipart/form-data; boundary=b", b"--b--\r\n"),
        ("multipart/form-data; boundary=b", b"no form"),
        ("multipart/form-data; boundary=b", _part("image", b"1", "a")),
        ("multipart/form-data; boundary=b", _form(_part("image", b"1"))),
        ("multipart/form-data; boundary=b", _form(_part("image", b"1", "a"), _part("other", b"1", "a"))),
        ("multipart/form-data; boundary=b", _form(_part("image", b"1", "a"), _part("image", b"http://127.0.0.1/"))),
        ("multipart/form-data; boundary=b", _form(*[_part(f"f{n}", b"") for n in range(1000)])),
        ("multipart/form-data; boundary=b", _form(_part("image", b"1", "a"), _part("model", bytes(5000)))),
        ("multipart/form-data; boundary=b", _form(_part("x", b"1"), b"--b\r\n\r\nno headers\r\n")),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"x" * 1_000_000),
        ("multipart/form-data; boundary=b", b"--b\r\nContent-Disposition: " + b"x" * 1_000_000 + CRLF),
        ("multipart/form-data; boundary=b", b"--b\r\n" + b"A: b\r\n" * 100_000),
        ("multipart/form-data", _form(_part("image", b"1", "a"))),
        ("multipart/form-data; boundary=", _form(_part("image", b"1", "a"))),
        ("multipart/form-data; boundary=" + "b" * 10_000, _form(_part("image", b"1", "a"))),
        ("multipart/form-data; boundary=\u00fc", _form(_part("image", b"1", "a"))),
        ("multipart/form-data; boundary=b; charset=none", _form(_part("image", b"1"))),
        ("multipart/mixed; boundary=b", _form(_part("files", b"--inner\r\n\r\n1\r\n--inner--", more=_INNER))),
    ],
)
def test_a_form_that_cannot_be_read_or_has_no_file_is_an_invalid_request(content_type: str, body: bytes) -> None:
    with pytest.raises(InvalidRequestError) as caught:
        _read(body, content_type)

    assert len(caught.value.detail) < 200


def test_a_form_within_a_form_is_the_bytes_of_a_file() -> None:
    inner = b"--inner\r\n\r\n1\r\n--inner--"

    assert _read(_form(_part("image", inner, "a", _INNER))).images == (inner,)


@pytest.mark.parametrize("seed", range(5))
def test_a_damaged_form_is_read_or_refused(seed: int) -> None:
    draws = random.Random(seed)
    whole = _form(_part("model", b"x"), _part("image", PICTURE[:300], "a.png", b"Content-Type: image/png\r\n"))
    outcomes = set()
    for _ in range(200):
        damaged = bytearray(whole)
        for _ in range(draws.randint(1, 4)):
            damaged[draws.randrange(len(damaged))] = draws.randrange(256)
        try:
            outcomes.add(len(_read(bytes(damaged)).images))
        except InvalidRequestError:
            outcomes.add(0)

    assert outcomes == {0, 1}


def test_a_door_writes_nothing_to_the_temporary_folder(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/nonexistent")
    big = encoded(noise(900, 1400))
    assert len(big) > 2 * 1024 * 1024

    assert client.post("/v1/analyze", files={"image": big}).status_code == 200


def test_a_refused_form_is_a_problem(client: TestClient) -> None:
    body = _form(*[_part(f"f{n}", b"") for n in range(1000)])
    response = client.post("/v1/analyze", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})

    check_problem(response, 400, "invalid_request")
