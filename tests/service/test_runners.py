from __future__ import annotations

import asyncio
import math
import pickle
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from handlers.errors import CorruptImageError, EmptyImageError, ExpiredError, HandlerError, ModelUnavailableError
from handlers.fakes import FakeClassifier
from handlers.pipeline import FAKE, DetectRequest
from handlers.results import DetectedPicture, Emotion
from service.analyzer import RunnerCall
from service.runners import DetectorRunner, EmotionRunner, pickled
from service.settings import Settings
from service.work import ClassifyRequest, DetectionStage, EmotionStage, Work
from tests.pictures import encoded, noise

Environment = Callable[..., None]
SPEC = FakeClassifier()


def _work(request: object, deadline_s: float = math.inf) -> Work:
    return Work(request, time.monotonic(), deadline_s, "r", None)


def _picture(image: bytes, deadline_s: float = math.inf) -> Work:
    return _work(DetectRequest(image, 20, SPEC.face_crop, SPEC.input), deadline_s)


def _run(call: RunnerCall, works: list[Any]) -> list[Any]:
    return asyncio.run(call(works))  # type: ignore[arg-type]


@pytest.fixture
def pictures() -> list[Work]:
    """Good ones, bad ones, and one that nobody waits for."""
    good = encoded(noise(90, 60))
    images = (good, b"", encoded(noise(40, 50)), good[: len(good) // 2])
    return [*(_picture(image) for image in images), _picture(good, deadline_s=0.0), _picture(good)]


@pytest.fixture
def faces() -> list[Work]:
    """Crops and files of crops, good and bad ones."""
    requests: list[Any] = [noise(48, 48)[:, :, :1], encoded(noise(60, 60)), b"text", noise(48, 48, 1)[:, :, :1]]
    return [_work(ClassifyRequest(face, SPEC.tag)) for face in requests]


def test_the_detector_runner_answers_what_its_stage_does(detect: RunnerCall, pictures: list[Work]) -> None:
    results = _run(detect, pictures)
    expected = DetectionStage(Settings())(pictures)

    assert [type(result) for result in results] == [
        DetectedPicture,
        EmptyImageError,
        DetectedPicture,
        CorruptImageError,
        ExpiredError,
        DetectedPicture,
    ]
    for result, wanted in zip(results, expected, strict=True):
        if isinstance(wanted, HandlerError):
            assert result == wanted
        else:
            assert (result.width, result.height) == (wanted.width, wanted.height)
            assert result.detections == wanted.detections
            assert [crop.tolist() for crop in result.face_crops] == [crop.tolist() for crop in wanted.face_crops]


def test_the_emotion_runner_answers_what_its_stage_does(classify: RunnerCall, faces: list[Work]) -> None:
    results = _run(classify, faces)

    assert results == EmotionStage(Settings())(faces)
    assert [isinstance(result, Emotion) for result in results] == [True, True, False, True]


def test_a_detected_picture_survives_pickling_with_its_pixels(detect: RunnerCall) -> None:
    (picture,) = _run(detect, [_picture(encoded(noise(96, 96)))])

    (crop,) = picture.face_crops
    assert (crop.dtype, crop.shape) == (np.uint8, (48, 48, 1))
    assert len(picture.detections) == 1
    assert pickle.loads(pickle.dumps(picture)).face_crops[0].tolist() == crop.tolist()


def test_work_survives_pickling_with_all_that_it_carries() -> None:
    sent = Work(("image", 3), 1.5, 2.5, "the-id", {"traceparent": "00-1-2-01"})

    received = pickle.loads(pickle.dumps(sent))

    assert vars(received) == vars(sent)


@pytest.mark.parametrize("kind", HandlerError.__subclasses__(), ids=lambda kind: kind.__name__)
def test_every_error_survives_pickling(kind: type[HandlerError]) -> None:
    received = pickle.loads(pickle.dumps(kind("what happened")))

    assert (type(received), received.code, received.detail) == (kind, kind.code, "what happened")


def test_values_go_to_a_runner_as_bytes_and_come_back_as_values() -> None:
    sent: list[bytes] = []

    async def double(items: list[bytes]) -> list[bytes]:
        sent.extend(items)
        return [pickle.dumps(pickle.loads(item) * 2) for item in items]

    assert asyncio.run(pickled(double)([1, "a", (2,)])) == [2, "aa", (2, 2)]
    assert all(isinstance(item, bytes) for item in sent)


@pytest.mark.parametrize("runner", ["detect", "classify"])
def test_no_items_are_no_results(request: pytest.FixtureRequest, runner: str) -> None:
    assert _run(request.getfixturevalue(runner), []) == []


@pytest.mark.parametrize(
    ("runner", "environment_changes"),
    [(DetectorRunner, {"detector": "no-such-detector"}), (EmotionRunner, {"models": "no-such-model"})],
)
def test_a_runner_does_not_start_without_its_model(
    environment: Environment, empty_store: object, runner: Any, environment_changes: dict[str, str]
) -> None:
    environment(**environment_changes)

    with pytest.raises(ModelUnavailableError, match="no-such"):
        runner.inner()


def test_a_runner_starts_on_the_fakes_without_any_store(environment: Environment, empty_store: object) -> None:
    environment(models=FAKE, detector=FAKE)

    assert DetectorRunner.inner().detect([]) == []
    assert EmotionRunner.inner().classify([]) == []
