"""Requests that a machine made up: from the schema, from damaged pictures, and by hand over a bare socket."""

from __future__ import annotations

import asyncio
import io
import random
import socket
import struct
import zlib
from collections import Counter
from collections.abc import Iterator
from typing import Any

import httpx
import hypothesis
import psutil
import pytest
import schemathesis
from PIL import Image
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_headers_conformance,
    response_schema_conformance,
    status_code_conformance,
)
from starlette.testclient import TestClient

from service.middleware import TIMEOUT_HEADER
from tests.pictures import encoded
from tests.service.problem_checks import check_any_problem
from tests.service.server_process import RunningService

ANSWER_WITHIN_S = 10
CHECKS = [
    not_a_server_error,
    status_code_conformance,
    content_type_conformance,
    response_schema_conformance,
    response_headers_conformance,
]
OPERATIONS = [
    ("POST", "/v1/analyze"),
    ("POST", "/v1/analyze/batch"),
    ("POST", "/v1/detect"),
    ("POST", "/v1/classify"),
    ("POST", "/infer"),
    ("GET", "/v1/models"),
    ("GET", "/v1/models/{name}"),
]


def _attack(schema: schemathesis.BaseSchema, method: str, path: str, n_requests: int, **call: Any) -> Counter[int]:
    """Send requests made from the schema, right and wrong ones, and check every answer; count answers by status."""
    statuses: Counter[int] = Counter()
    for mode in GenerationMode:

        @hypothesis.seed(20_261_121)
        @hypothesis.settings(
            max_examples=n_requests,
            database=None,
            deadline=None,
            phases=[hypothesis.Phase.generate],
            suppress_health_check=list(hypothesis.HealthCheck),
        )
        @hypothesis.given(case=schema[path][method].as_strategy(generation_mode=mode))
        def attack(case: schemathesis.Case) -> None:
            # A millisecond is over before anything is done, which is a 504, and right.
            if case.headers.get(TIMEOUT_HEADER, "").isdigit():
                del case.headers[TIMEOUT_HEADER]
            answer = case.call(**call)
            case.validate_response(answer, checks=CHECKS)
            headers = [(name, value) for name, values in answer.headers.items() for value in values]
            response = httpx.Response(answer.status_code, headers=headers, content=answer.content)
            if response.status_code >= 400:
                check_any_problem(response)
            statuses[response.status_code] += 1

        attack()
    return statuses


@pytest.mark.parametrize(("method", "path"), OPERATIONS)
def test_requests_made_from_the_schema_get_answers_of_the_schema(client: TestClient, method: str, path: str) -> None:
    schema = schemathesis.openapi.from_asgi("/openapi.json", client.app)
    statuses = _attack(schema, method, path, 20)

    assert statuses.total() >= 20
    assert set(statuses) <= {200, 400, 404, 413, 415, 422}
    assert len(statuses) > 1


@pytest.mark.parametrize(("method", "path"), [("POST", "/v1/analyze"), ("POST", "/v1/classify"), ("POST", "/infer")])
def test_the_same_over_a_socket(served_fake: RunningService, method: str, path: str) -> None:
    schema = schemathesis.openapi.from_url(f"{served_fake.url}/openapi.json")
    statuses = _attack(schema, method, path, 10, timeout=ANSWER_WITHIN_S)

    assert statuses.total() >= 10
    assert set(statuses) <= {200, 400, 404, 413, 415, 422}


N_MUTANTS, N_CLIENTS = 500, 6
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "TIFF", "BMP")
LIES = (0, 1, 3, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF)


def _lengths_and_sizes(data: bytes, format: str) -> list[tuple[int, str]]:
    """Where a file says how long or large something is: offset and the number's layout for `struct`."""
    if format == "PNG":
        found, start = [(16, ">I"), (20, ">I")], 8
        while start < len(data):
            found.append((start, ">I"))
            start += 12 + int(struct.unpack_from(">I", data, start)[0])
        return found
    if format == "JPEG":
        found, start = [], 2
        while data[start + 1] != 0xDA:
            found.append((start + 2, ">H"))
            if data[start + 1] == 0xC0:
                found += [(start + 5, ">H"), (start + 7, ">H")]
            start += 2 + int(struct.unpack_from(">H", data, start + 2)[0])
        return [*found, (start + 2, ">H")]
    if format == "WEBP":
        return [(4, "<I"), (16, "<I"), (26, "<H"), (28, "<H")]
    if format == "GIF":
        return [(6, "<H"), (8, "<H"), (10, "<B"), (13 + 3 * 256 + 1, "<H")]
    if format == "TIFF":
        (folder,) = struct.unpack_from("<I", data, 4)
        (n_entries,) = struct.unpack_from("<H", data, folder)
        entries = range(folder + 2, folder + 2 + 12 * n_entries, 12)
        return [(4, "<I"), (folder, "<H"), *((at, "<I") for entry in entries for at in (entry + 4, entry + 8))]
    return [(2, "<I"), (10, "<I"), (14, "<I"), (18, "<I"), (22, "<I"), (26, "<H"), (28, "<H"), (34, "<I")]


def _flipped(data: bytearray, draws: random.Random) -> None:
    for _ in range(draws.choice((1, 5, 50))):
        data[draws.randrange(len(data))] ^= 1 << draws.randrange(8)


def _cut(data: bytearray, draws: random.Random) -> None:
    del data[draws.randrange(len(data)) :]


def _other_header(data: bytearray, draws: random.Random) -> None:
    for _ in range(draws.randint(1, 8)):
        data[draws.randrange(min(len(data), 64))] = draws.randrange(256)


def _spliced(data: bytearray, draws: random.Random) -> None:
    start, end = sorted(draws.randrange(len(data)) for _ in range(2))
    if draws.random() < 0.5:
        del data[start:end]
    else:
        data[start:start] = data[start:end]


def _with_a_lie(data: bytearray, format: str, draws: random.Random) -> None:
    offset, layout = draws.choice(_lengths_and_sizes(bytes(data), format))
    largest = 256 ** struct.calcsize(layout) - 1
    (truth,) = struct.unpack_from(layout, data, offset)
    lie = draws.choice([*LIES, truth + 1, truth - 1, truth * 2, 6000])
    struct.pack_into(layout, data, offset, min(max(lie, 0), largest))
    if format == "PNG" and draws.random() < 0.5:  # with a right checksum the lie gets past the first look
        struct.pack_into(">I", data, 29, zlib.crc32(data[12:29]))


def _mutants(picture: Image.Image) -> Iterator[tuple[str, bytes]]:
    """Damaged files, the same in every run: a name to find it by, and its bytes."""
    whole = {
        "PNG": encoded(picture),
        "JPEG": encoded(picture, "JPEG"),
        "WEBP": encoded(picture, "WEBP"),
        "GIF": encoded(picture.convert("P"), "GIF"),
        "TIFF": encoded(picture, "TIFF", compression="tiff_lzw"),
        "BMP": encoded(picture, "BMP"),
    }
    for index in range(N_MUTANTS):
        draws = random.Random(index)
        kind = FORMATS[index % len(FORMATS)]
        data = bytearray(whole[kind])
        damage = index // len(FORMATS) % 5
        if damage == 0:
            _with_a_lie(data, kind, draws)
        else:
            (_flipped, _cut, _other_header, _spliced)[damage - 1](data, draws)
        yield f"{index}-{kind}-{damage}", bytes(data)


def _process_ids(service: RunningService) -> set[int]:
    parent = psutil.Process(service.pid)
    return {parent.pid, *(child.pid for child in parent.children(recursive=True))}


def test_five_hundred_damaged_pictures_are_read_or_refused_in_time(
    served: RunningService, astronaut_png: bytes
) -> None:
    picture = Image.open(io.BytesIO(astronaut_png)).convert("RGB").resize((160, 160))
    mutants = _mutants(picture)
    answers: dict[str, httpx.Response] = {}

    async def client(http: httpx.AsyncClient) -> None:
        for name, data in mutants:
            answers[name] = await http.post(f"{served.url}/v1/analyze", content=data, headers={"X-Request-ID": name})

    async def main() -> None:
        async with httpx.AsyncClient(timeout=ANSWER_WITHIN_S) as http:
            await asyncio.gather(*(client(http) for _ in range(N_CLIENTS)))

    before = _process_ids(served)
    asyncio.run(main())
    statuses = Counter(answer.status_code for answer in answers.values())

    assert len(answers) == N_MUTANTS
    assert {
        name: answer.text for name, answer in answers.items() if answer.status_code not in (200, 413, 415, 422)
    } == {}
    assert min(statuses[status] for status in (200, 413, 415, 422)) > 0, statuses
    for answer in answers.values():
        if answer.status_code != 200:
            check_any_problem(answer)
    assert _process_ids(served) == before


def _exchange(port: int, request: bytes, hang_up: bool) -> bytes:
    """What comes back until the service closes the connection; nothing if it breaks it. hang_up: send no more bytes."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_WITHIN_S) as connection:
        try:
            connection.sendall(request)
            if hang_up:
                connection.shutdown(socket.SHUT_WR)
            while piece := connection.recv(65_536):
                received += piece
        except (ConnectionResetError, BrokenPipeError):
            pass
    return received


_HEAD = b"POST /v1/analyze HTTP/1.1\r\nHost: mien\r\nConnection: close\r\n"
_FORM = b"Content-Type: multipart/form-data; boundary="


@pytest.mark.parametrize(
    ("request_bytes", "statuses"),
    [
        (_HEAD + b"X-Long: " + b"x" * 100_000 + b"\r\nContent-Length: 0\r\n\r\n", {413}),
        (_HEAD + b"X: y\r\n" * 20_000 + b"Content-Length: 0\r\n\r\n", {413}),
        (b"POST /" + b"x" * 200_000 + b" HTTP/1.1\r\nHost: mien\r\nConnection: close\r\n\r\n", {400}),
        (_HEAD + b"Content-Length: 10\r\n\r\n123", set()),
        (_HEAD + b"Content-Length: 3\r\n\r\n1234567890", {415}),
        (_HEAD + b"Content-Length: -1\r\n\r\n", {400}),
        (_HEAD + b"Content-Length: 99999999999999999999999\r\n\r\n", {400}),
        (_HEAD + b"Content-Length: 3\r\nContent-Length: 5\r\n\r\n12345", {400}),
        (_HEAD + b"Transfer-Encoding: chunked\r\n\r\nfffffffff\r\nabc", set()),
        (_HEAD + b"Transfer-Encoding: chunked\r\n\r\nzz\r\nabc", {400}),
        (_HEAD + b"Content-Length: 0\r\n\r\n", {422}),
        (_HEAD + _FORM + b"b" * 12_000 + b"\r\nContent-Length: 3\r\n\r\n123", {400}),
        (_HEAD + _FORM + b"\r\nContent-Length: 3\r\n\r\n123", {400}),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03", {400}),
        (b"\r\n\r\n\r\n", {400}),
    ],
    ids=[
        "one long header",
        "many headers",
        "long address",
        "body cut short",
        "body longer than said",
        "negative length",
        "huge length",
        "two lengths",
        "chunk cut short",
        "chunk without a length",
        "no body",
        "long boundary",
        "no boundary",
        "TLS",
        "nothing",
    ],
)
def test_requests_made_by_hand_are_refused_or_cut_off(
    served_fake: RunningService, request_bytes: bytes, statuses: set[int]
) -> None:
    hung_up = not statuses
    answer = _exchange(served_fake.port, request_bytes, hung_up)

    if hung_up:
        assert answer == b""
    else:
        assert answer.startswith(b"HTTP/1.1 ")
        assert int(answer[9:12]) in statuses, answer[:200]
    assert httpx.get(f"{served_fake.url}/livez", timeout=ANSWER_WITHIN_S).status_code == 200


def _send_headers_without_an_end(port: int) -> None:
    megabyte = b"".join(b"X-%d: " % index + b"y" * 1000 + b"\r\n" for index in range(1000))
    with socket.create_connection(("127.0.0.1", port), timeout=ANSWER_WITHIN_S) as connection:
        connection.sendall(b"POST /v1/analyze HTTP/1.1\r\nHost: mien\r\n")
        for _ in range(64):
            connection.sendall(megabyte)


def test_headers_without_an_end_are_cut_off(served_fake: RunningService) -> None:
    with pytest.raises(ConnectionError):
        _send_headers_without_an_end(served_fake.port)

    assert httpx.get(f"{served_fake.url}/livez", timeout=ANSWER_WITHIN_S).status_code == 200
