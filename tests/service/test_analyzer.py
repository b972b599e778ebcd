from __future__ import annotations

import asyncio
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import aiohttp
import numpy as np
import pytest
from bentoml.exceptions import BentoMLException, InternalServerError, ServiceUnavailable

from handlers.errors import CorruptImageError, HandlerError, InternalError, ModelUnavailableError
from handlers.fakes import FakeClassifier
from handlers.pipeline import FAKE, DetectRequest, load_pipeline
from handlers.results import Analysis, DetectedPicture, Detection, Emotion
from service import metrics
from service.analyzer import CONNECTION_TRIES, Analyzer, Options, RunnerCall, call_runner
from service.problems import DeadlineError, UnavailableError, problem_of
from service.runners import ClassifyRequest
from service.settings import Settings
from tests.pictures import encoded, noise

SETTINGS = Settings(models=(FAKE,), detector=FAKE)
SECRET = "password=hunter2"


class EchoServer:
    """A TCP server that speaks just enough HTTP to send a body back, after it hung up on its first connections."""

    def __init__(self, hang_ups: int) -> None:
        self.hang_ups = hang_ups
        self.connections = 0
        self.url = ""

    @asynccontextmanager
    async def running(self) -> AsyncIterator[EchoServer]:
        server = await asyncio.start_server(self._serve, "127.0.0.1", 0)
        async with server:
            host, port = server.sockets[0].getsockname()
            self.url = f"http://{host}:{port}"
            yield self

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        head = await reader.readuntil(b"\r\n\r\n")
        length = re.search(rb"(?i)content-length: (\d+)", head)
        assert length is not None
        body = await reader.readexactly(int(length[1]))
        if self.connections > self.hang_ups:
            answer = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n%s"
            writer.write(answer % (len(body), body))
            await writer.drain()
        writer.close()


async def _call_through(server: EchoServer, items: list[Any]) -> list[Any]:
    async with server.running(), aiohttp.ClientSession() as session:

        async def call(items: list[Any]) -> list[Any]:
            async with session.post(server.url, json=items) as response:
                results: list[Any] = await response.json()
                return results

        return await call_runner("detect", call, items)


def _retries() -> float:
    return metrics.RUNNER_RETRIES.labels("detect")._value.get()


@pytest.mark.parametrize("hang_ups", range(CONNECTION_TRIES))
def test_a_lost_connection_is_tried_again(hang_ups: int) -> None:
    server, before = EchoServer(hang_ups), _retries()

    assert asyncio.run(_call_through(server, [1, "two", 3])) == [1, "two", 3]
    assert server.connections == hang_ups + 1
    assert _retries() == before + hang_ups


def test_it_gives_up_after_the_last_try() -> None:
    server = EchoServer(hang_ups=100)

    with pytest.raises(UnavailableError) as caught:
        asyncio.run(_call_through(server, [1]))
    assert server.connections == CONNECTION_TRIES
    assert isinstance(caught.value.__cause__, aiohttp.ServerDisconnectedError)


def test_a_runner_that_is_not_there_is_unavailable() -> None:
    async def main() -> None:
        server = EchoServer(hang_ups=0)
        async with server.running():
            pass
        async with aiohttp.ClientSession() as session:

            async def call(_: list[Any]) -> list[Any]:
                async with session.post(server.url):
                    return []

            await call_runner("detect", call, [1])

    with pytest.raises(UnavailableError):
        asyncio.run(main())


@pytest.mark.parametrize(
    ("raised", "expected"),
    [
        (ServiceUnavailable(SECRET), UnavailableError),
        (BentoMLException(SECRET), InternalError),
        (InternalServerError(SECRET), InternalError),
        (aiohttp.ClientError(SECRET), InternalError),
    ],
    ids=lambda value: getattr(value, "__name__", type(value).__name__),
)
def test_a_failed_runner_is_our_error_without_its_text(raised: Exception, expected: type[HandlerError]) -> None:
    calls = 0

    async def call(_: list[Any]) -> list[Any]:
        nonlocal calls
        calls += 1
        raise raised

    with pytest.raises(HandlerError) as caught:
        asyncio.run(call_runner("detect", call, [1]))
    assert type(caught.value) is expected
    assert SECRET not in problem_of(caught.value).model_dump_json() + str(caught.value)
    assert calls == 1


def test_a_runner_that_dies_while_it_answers_is_asked_again() -> None:
    failures = [aiohttp.ClientPayloadError("cut off"), aiohttp.ServerDisconnectedError()]

    async def call(items: list[Any]) -> list[Any]:
        if failures:
            raise failures.pop()
        return items

    assert asyncio.run(call_runner("detect", call, [1, 2])) == [1, 2]


@pytest.mark.parametrize("results", [[], [1], [1, 2, 3]])
def test_a_wrong_number_of_results_is_internal(results: list[int]) -> None:
    async def call(_: list[Any]) -> list[Any]:
        return results

    with pytest.raises(InternalError):
        asyncio.run(call_runner("detect", call, [1, 2]))


async def _never(_: list[Any]) -> list[Any]:
    raise AssertionError("this runner must not be called")


async def _for_ever(_: list[Any]) -> list[Any]:
    return await asyncio.Event().wait()  # type: ignore[return-value]


def test_no_items_make_no_call() -> None:
    assert asyncio.run(call_runner("classify", _never, [])) == []


def test_no_pictures_make_no_call() -> None:
    assert asyncio.run(Analyzer(SETTINGS, _never, _never).analyze([], Options())) == []


@pytest.mark.parametrize("stuck", ["detect", "classify"])
def test_the_deadline_ends_a_request_that_is_stuck(detect: RunnerCall, stuck: str) -> None:
    settings = Settings(models=(FAKE,), detector=FAKE, timeout_s=0.2)
    analyzer = Analyzer(settings, _for_ever if stuck == "detect" else detect, _for_ever)

    with pytest.raises(DeadlineError, match=r"0\.2 s"):
        asyncio.run(analyzer.analyze([encoded(noise(64, 64))], Options()))


def test_an_unknown_model_is_refused_before_any_call() -> None:
    analyzer = Analyzer(SETTINGS, _never, _never)

    with pytest.raises(ModelUnavailableError, match=r"'other' is not served here; served: fake:1\.0\.0"):
        asyncio.run(analyzer.analyze([b"x"], Options(model="other")))


class _Spec(FakeClassifier):
    def __init__(self, tag: str) -> None:
        self.tag = tag


@pytest.fixture
def several_models(monkeypatch: pytest.MonkeyPatch) -> Analyzer:
    tags = {"default": "mien:2.0.0", "mien:1.0.0": "mien:1.0.0", "other": "other:3.0.0"}
    monkeypatch.setattr("service.analyzer.describe_classifier", lambda name: _Spec(tags[name]))
    return Analyzer(Settings(models=tuple(tags)), _never, _never)


@pytest.mark.parametrize(
    ("asked", "tag"),
    [
        (None, "mien:2.0.0"),
        ("default", "mien:2.0.0"),
        ("mien:2.0.0", "mien:2.0.0"),
        ("mien", "mien:2.0.0"),
        ("mien:1.0.0", "mien:1.0.0"),
        ("other", "other:3.0.0"),
        ("other:3.0.0", "other:3.0.0"),
    ],
)
def test_a_model_is_asked_for_by_name_tag_or_bare_name(several_models: Analyzer, asked: str | None, tag: str) -> None:
    assert several_models.spec(asked).tag == tag


@pytest.mark.parametrize("asked", ["", "mie", "mien:3.0.0", "mien:", "fake", "Default"])
def test_other_names_are_not_served(several_models: Analyzer, asked: str) -> None:
    with pytest.raises(ModelUnavailableError):
        several_models.spec(asked)


def test_the_default_must_exist_when_the_process_starts(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ModelUnavailableError):
        Analyzer(Settings(models=(FAKE, "no-such-model")), _never, _never)


async def _counting_detect(requests: list[DetectRequest]) -> list[DetectedPicture | HandlerError]:
    """As many faces as the picture's bytes say; its crops carry the picture's and the face's number."""

    def detected(picture: int, n_faces: bytes) -> DetectedPicture | HandlerError:
        if n_faces == b"bad":
            return CorruptImageError(f"picture {picture}")
        faces = range(int(n_faces))
        return DetectedPicture(
            width=100 + picture,
            height=50,
            detections=tuple(Detection((face, 0, face + 1, 1), 0.9, ((0.0, 0.0),) * 5) for face in faces),
            face_crops=tuple(np.full((2, 2, 1), 10 * picture + face, np.uint8) for face in faces),
        )

    return [detected(picture, request.image) for picture, request in enumerate(requests)]


def _emotion(crop: int) -> Emotion:
    return Emotion(f"crop-{crop}", 1.0, {f"crop-{crop}": 1.0})


async def _counting_classify(requests: list[ClassifyRequest]) -> list[Emotion | HandlerError]:
    return [_emotion(int(request.crop_u8[0, 0, 0])) for request in requests]


def test_every_picture_keeps_its_own_faces_or_its_own_error() -> None:
    analyzer = Analyzer(SETTINGS, _counting_detect, _counting_classify)
    results = asyncio.run(analyzer.analyze([b"2", b"0", b"bad", b"3", b"bad", b"1"], Options()))

    assert [
        [face.emotion for face in result.faces] if isinstance(result, Analysis) else result for result in results
    ] == [
        ["crop-0", "crop-1"],
        [],
        CorruptImageError("picture 2"),
        ["crop-30", "crop-31", "crop-32"],
        CorruptImageError("picture 4"),
        ["crop-50"],
    ]
    assert [result.width for result in results if isinstance(result, Analysis)] == [100, 101, 103, 105]


def test_a_face_that_fails_makes_only_its_own_picture_an_error() -> None:
    async def classify(requests: list[ClassifyRequest]) -> list[Emotion | HandlerError]:
        return [
            InternalError("this one") if emotion.label == "crop-11" else emotion
            for emotion in [_emotion(int(request.crop_u8[0, 0, 0])) for request in requests]
        ]

    analyzer = Analyzer(SETTINGS, _counting_detect, classify)
    before, failed, after = asyncio.run(analyzer.analyze([b"1", b"2", b"1"], Options()))

    assert failed == InternalError("this one")
    assert isinstance(before, Analysis)
    assert isinstance(after, Analysis)
    assert (before.faces[0].emotion, after.faces[0].emotion) == ("crop-0", "crop-20")


def test_all_faces_and_only_faces_are_counted() -> None:
    def faces() -> float:
        return metrics.FACES_PER_PICTURE._sum.get()

    def predictions() -> float:
        return metrics.PREDICTIONS.labels("fake:1.0.0", "crop-0")._value.get()

    faces_before, predictions_before = faces(), predictions()
    analyzer = Analyzer(SETTINGS, _counting_detect, _counting_classify)
    asyncio.run(analyzer.analyze([b"2", b"bad", b"0", b"1"], Options()))

    assert faces() == faces_before + 3
    assert predictions() == predictions_before + 1


def test_both_runners_together_equal_the_pipeline(
    detect: RunnerCall, classify: RunnerCall, faceless_png: bytes
) -> None:
    images = [encoded(noise(64, 80)), b"text", faceless_png, encoded(noise(80, 64, seed=1)), b""]
    analyzer = Analyzer(SETTINGS, detect, classify)

    assert asyncio.run(analyzer.analyze(images, Options())) == load_pipeline(FAKE).analyze(images)


def test_min_face_size_reaches_the_detector(detect: RunnerCall, classify: RunnerCall) -> None:
    async def n_faces(smallest: int | None) -> int:
        options = Options(min_face_size_px=smallest)
        (result,) = await Analyzer(SETTINGS, detect, classify).analyze([encoded(noise(100, 100))], options)
        assert isinstance(result, Analysis)
        return len(result.faces)

    sizes: list[int | None] = [None, 50, 51]
    assert [asyncio.run(n_faces(size)) for size in sizes] == [1, 1, 0]
