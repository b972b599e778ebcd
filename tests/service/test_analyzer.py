from __future__ import annotations

import asyncio
import math
import re
import time
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
from service.admission import Admission
from service.analyzer import CONNECTION_TRIES, Analyzer, Options, RunnerCall, call_runner
from service.problems import OverloadedError, UnavailableError, problem_of
from service.request_context import set_deadline
from service.settings import Settings
from service.work import ClassifyRequest, Work
from tests.pictures import encoded, noise
from tests.service.conftest import make_admission

SETTINGS = Settings(models=(FAKE,), detector=FAKE)
SECRET = "password=hunter2"


def _analyzer(detect: RunnerCall, classify: RunnerCall, settings: Settings = SETTINGS) -> Analyzer:
    return Analyzer(settings, make_admission(settings), detect, classify)


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

        async def call(works: list[Work]) -> list[Any]:
            async with session.post(server.url, json=[work.request for work in works]) as response:
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

    async def call(works: list[Work]) -> list[Any]:
        if failures:
            raise failures.pop()
        return [work.request for work in works]

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
    assert asyncio.run(_analyzer(_never, _never).analyze([], Options())) == []


@pytest.mark.parametrize("stuck", ["detect", "classify"])
def test_a_request_that_is_cancelled_gives_its_turn_back(detect: RunnerCall, stuck: str) -> None:
    admission = make_admission(SETTINGS)
    analyzer = Analyzer(SETTINGS, admission, _for_ever if stuck == "detect" else detect, _for_ever)

    async def main() -> None:
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(0.1):
                await analyzer.analyze([encoded(noise(64, 64))], Options())
        async with asyncio.timeout(1), admission.turn(SETTINGS.n_concurrent):
            pass

    asyncio.run(main())


def test_an_unknown_model_is_refused_before_any_call() -> None:
    analyzer = _analyzer(_never, _never)

    with pytest.raises(ModelUnavailableError, match=r"not served here; served: fake:1\.0\.0$"):
        asyncio.run(analyzer.analyze([b"x"], Options(model="other")))


class _Spec(FakeClassifier):
    def __init__(self, tag: str) -> None:
        self.tag = tag


@pytest.fixture
def several_models(monkeypatch: pytest.MonkeyPatch) -> Analyzer:
    tags = {"default": "mien:2.0.0", "mien:1.0.0": "mien:1.0.0", "other": "other:3.0.0"}
    monkeypatch.setattr("service.analyzer.describe_classifier", lambda name: _Spec(tags[name]))
    return _analyzer(_never, _never, Settings(models=tuple(tags)))


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


def test_every_model_must_exist_when_the_process_starts(empty_store: object) -> None:
    with pytest.raises(ModelUnavailableError):
        _analyzer(_never, _never, Settings(models=(FAKE, "no-such-model")))


async def _counting_detect(works: list[Work]) -> list[DetectedPicture | HandlerError]:
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

    requests: list[DetectRequest] = [work.request for work in works]
    return [detected(picture, request.image) for picture, request in enumerate(requests)]


def _emotion(crop: int) -> Emotion:
    return Emotion(f"crop-{crop}", 1.0, {f"crop-{crop}": 1.0})


def _number(work: Work) -> int:
    request: ClassifyRequest = work.request
    assert isinstance(request.face, np.ndarray)
    return int(request.face[0, 0, 0])


async def _counting_classify(works: list[Work]) -> list[Emotion | HandlerError]:
    return [_emotion(_number(work)) for work in works]


def test_every_picture_keeps_its_own_faces_or_its_own_error() -> None:
    analyzer = _analyzer(_counting_detect, _counting_classify)
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
    async def classify(works: list[Work]) -> list[Emotion | HandlerError]:
        return [InternalError("this one") if _number(work) == 11 else _emotion(_number(work)) for work in works]

    analyzer = _analyzer(_counting_detect, classify)
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
    analyzer = _analyzer(_counting_detect, _counting_classify)
    asyncio.run(analyzer.analyze([b"2", b"bad", b"0", b"1"], Options()))

    assert faces() == faces_before + 3
    assert predictions() == predictions_before + 1


def test_both_runners_together_equal_the_pipeline(
    detect: RunnerCall, classify: RunnerCall, faceless_png: bytes
) -> None:
    images = [encoded(noise(64, 80)), b"text", faceless_png, encoded(noise(80, 64, seed=1)), b""]
    analyzer = _analyzer(detect, classify)

    assert asyncio.run(analyzer.analyze(images, Options())) == load_pipeline(FAKE).analyze(images)


def test_min_face_size_reaches_the_detector(detect: RunnerCall, classify: RunnerCall) -> None:
    async def n_faces(smallest: int | None) -> int:
        options = Options(min_face_size_px=smallest)
        (result,) = await _analyzer(detect, classify).analyze([encoded(noise(100, 100))], options)
        assert isinstance(result, Analysis)
        return len(result.faces)

    sizes: list[int | None] = [None, 50, 51]
    assert [asyncio.run(n_faces(size)) for size in sizes] == [1, 1, 0]


def test_more_pictures_than_may_be_in_work_are_done_in_pieces_and_in_order() -> None:
    settings = Settings(models=(FAKE,), detector=FAKE, concurrency=4)
    admission = make_admission(settings)
    pieces: list[int] = []

    async def detect(works: list[Work]) -> list[Any]:
        pieces.append(len(works))
        assert admission._working == 4
        return [CorruptImageError(work.request.image.decode()) for work in works]

    names = [str(picture) for picture in range(70)]
    analyzer = Analyzer(settings, admission, detect, _never)
    results = asyncio.run(analyzer.analyze([name.encode() for name in names], Options()))

    assert results == [CorruptImageError(name) for name in names]
    assert pieces == [4] * 17 + [2]
    assert admission._working == 0


def test_a_call_waits_for_its_turn_or_is_turned_away() -> None:
    settings = Settings(models=(FAKE,), detector=FAKE, concurrency=2, queue_size=1)

    async def main() -> None:
        opened = asyncio.Event()

        async def slow(works: list[Work]) -> list[Any]:
            await opened.wait()
            return await _counting_detect(works)

        analyzer = _analyzer(slow, _never, settings)
        calls = [asyncio.create_task(analyzer.analyze([b"0"] * n, Options())) for n in (2, 1, 1)]
        (turned_away,), _ = await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED)
        assert turned_away is calls[2]
        assert isinstance(turned_away.exception(), OverloadedError)

        opened.set()
        assert [len(results) for results in await asyncio.gather(*calls[:2])] == [2, 1]

    asyncio.run(main())


def test_both_halves_alone_equal_the_whole(detect: RunnerCall, classify: RunnerCall) -> None:
    analyzer = _analyzer(detect, classify)
    picture = encoded(noise(64, 80))

    async def main() -> None:
        (whole,) = await analyzer.analyze([picture], Options())
        (half,) = await analyzer.detect([picture], Options())
        assert isinstance(whole, Analysis)
        assert isinstance(half, DetectedPicture)
        assert [face.box_px for face in whole.faces] == [detection.box_px for detection in half.detections]

        (emotion,) = await analyzer.classify([encoded(half.face_crops[0][:, :, 0])], None)
        assert isinstance(emotion, Emotion)
        assert emotion.probabilities == whole.faces[0].probabilities

    asyncio.run(main())


@pytest.mark.parametrize("asked", ["mien:1.0.0", "other", None])
def test_faces_go_to_the_model_that_was_asked_for(several_models: Analyzer, asked: str | None) -> None:
    tag = several_models.spec(asked).tag
    asked_for: list[str] = []

    async def classify(works: list[Work]) -> list[Any]:
        asked_for.extend(work.request.model for work in works)
        return [_emotion(0)] * len(works)

    several_models._detect_call, several_models._classify_call = _counting_detect, classify

    async def main() -> None:
        await several_models.analyze([b"2"], Options(model=asked))
        await several_models.classify([b"image"], asked)

    asyncio.run(main())
    assert asked_for == [tag] * 3


def test_work_has_the_deadline_of_its_request() -> None:
    deadlines_s: list[float] = []

    async def detect(works: list[Work]) -> list[Any]:
        deadlines_s.extend(work.deadline_s for work in works)
        return [CorruptImageError("x")] * len(works)

    async def main() -> None:
        set_deadline(123.0)
        await _analyzer(detect, _never).analyze([b"1", b"2"], Options())

    asyncio.run(main())
    assert deadlines_s == [123.0, 123.0]


def test_the_proof_uses_every_model_past_the_admission_and_counts_as_success(several_models: Analyzer) -> None:
    asked_for: list[str] = []

    async def classify(works: list[Work]) -> list[Any]:
        asked_for.extend(work.request.model for work in works)
        return [_emotion(0)] * len(works)

    several_models._detect_call, several_models._classify_call = _counting_detect, classify
    several_models._admission = Admission(concurrency=0, queue_size=0, queue_timeout_s=1, max_pending_bytes=1)
    assert several_models.last_success_s == -math.inf

    asyncio.run(several_models.prove(b"0"))

    assert asked_for == ["mien:2.0.0", "mien:1.0.0", "other:3.0.0"]
    assert 0 < time.monotonic() - several_models.last_success_s < 60


@pytest.mark.parametrize("failing", ["detect", "classify"])
def test_the_proof_fails_with_what_stands_in_its_way(failing: str) -> None:
    async def fail(works: list[Work]) -> list[Any]:
        return [InternalError("no")] * len(works)

    async def classify(works: list[Work]) -> list[Any]:
        return [_emotion(0)] * len(works)

    analyzer = _analyzer(fail if failing == "detect" else _counting_detect, fail if failing == "classify" else classify)

    with pytest.raises(InternalError, match="no"):
        asyncio.run(analyzer.prove(b"0"))
    assert analyzer.last_success_s == -math.inf
