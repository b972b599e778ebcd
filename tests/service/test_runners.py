from __future__ import annotations

import asyncio
import pickle
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.classifier import Classifier
from handlers.detection.settings import DetectionSettings
from handlers.errors import (
    CorruptImageError,
    EmptyImageError,
    InternalError,
    InvalidRequestError,
    ModelUnavailableError,
    TooLargeError,
    UnsupportedFormatError,
)
from handlers.fakes import FakeClassifier, FakeDetector
from handlers.pipeline import FAKE, DetectRequest, load_classifier
from handlers.results import DetectedPicture, Detection, Emotion
from service import runners
from service.analyzer import RunnerCall
from service.runners import ClassifyRequest, DetectorRunner, EmotionRunner
from tests.pictures import encoded, noise
from tests.service.conftest import in_process

Environment = Callable[..., None]
SPEC = FakeClassifier()


def _request(image: bytes, min_face_size_px: int = 20) -> DetectRequest:
    return DetectRequest(image, min_face_size_px, SPEC.face_crop, SPEC.input)


def _crop(seed: int) -> NDArray[np.uint8]:
    return noise(48, 48, seed)[:, :, :1]


def _run(call: RunnerCall, requests: list[Any]) -> list[Any]:
    return asyncio.run(call(requests))  # type: ignore[arg-type]


def test_good_and_bad_pictures_keep_their_order(detect: RunnerCall) -> None:
    png = encoded(noise(90, 60))
    results = _run(
        detect,
        [
            _request(image)
            for image in (b"", encoded(noise(40, 50)), png[: len(png) // 2], b"text", png, encoded(noise(70, 80)))
        ],
    )

    assert [type(result) for result in results] == [
        EmptyImageError,
        DetectedPicture,
        CorruptImageError,
        UnsupportedFormatError,
        DetectedPicture,
        DetectedPicture,
    ]
    assert [(picture.width, picture.height) for picture in results if isinstance(picture, DetectedPicture)] == [
        (50, 40),
        (60, 90),
        (80, 70),
    ]


def test_a_detected_picture_survives_pickling_with_its_pixels(detect: RunnerCall) -> None:
    (picture,) = _run(detect, [_request(encoded(noise(96, 96)))])

    (crop,) = picture.face_crops
    assert (crop.dtype, crop.shape) == (np.uint8, (48, 48, 1))
    assert len(picture.detections) == 1
    assert pickle.loads(pickle.dumps(picture)).face_crops[0].tolist() == crop.tolist()


@pytest.mark.parametrize("size", [-1, 0, 11])
def test_an_invalid_min_face_size_is_the_error_of_its_own_item(detect: RunnerCall, size: int) -> None:
    image = encoded(noise(96, 96))
    before, refused, after = _run(detect, [_request(image), _request(image, size), _request(image, 12)])

    assert isinstance(refused, InvalidRequestError)
    assert [len(picture.detections) for picture in (before, after)] == [1, 1]


def test_every_item_has_its_own_options(detect: RunnerCall) -> None:
    image = encoded(noise(100, 100))

    assert [len(picture.detections) for picture in _run(detect, [_request(image, size) for size in (51, 50, 51)])] == [
        0,
        1,
        0,
    ]


def test_the_limits_come_from_the_settings(environment: Environment) -> None:
    environment(detector=FAKE, max_image_pixels="1000")
    small, large = _run(
        in_process(DetectorRunner.inner().detect),
        [_request(encoded(noise(20, 50))), _request(encoded(noise(20, 51)))],
    )

    assert isinstance(small, DetectedPicture)
    assert isinstance(large, TooLargeError)


def test_the_engine_and_its_options_come_from_the_settings(
    environment: Environment, monkeypatch: pytest.MonkeyPatch
) -> None:
    loaded: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {}

    def load(stage: str, fake: Any) -> Callable[..., Any]:
        def record(*arguments: Any, **options: Any) -> Any:
            loaded[stage] = arguments, options
            return fake()

        return record

    monkeypatch.setattr(runners, "load_detector", load("detect", FakeDetector))
    monkeypatch.setattr(runners, "load_classifier", load("classify", FakeClassifier))
    environment(
        detector="faces",
        models="moods",
        engine="openvino",
        precision="int8",
        threads="2",
        tta="flip",
        min_face_size_px="33",
        detection_thresholds="0.5,0.6,0.8",
        detection_max_side_px="640",
    )
    DetectorRunner.inner()
    EmotionRunner.inner()

    settings = DetectionSettings(min_face_size_px=33, thresholds=(0.5, 0.6, 0.8), max_side_px=640)
    assert loaded == {
        "detect": (("faces", "openvino"), {"threads": 2, "settings": settings}),
        "classify": (("moods", "openvino"), {"threads": 2, "tta": "flip", "precision": "int8"}),
    }


def test_pictures_that_were_merged_are_searched_together(environment: Environment) -> None:
    environment(detector=FAKE)
    runner = DetectorRunner.inner()
    asked: list[list[int]] = []

    class Recording(FakeDetector):
        def detect_batch(
            self, pictures: Sequence[NDArray[np.uint8]], min_face_sizes_px: Sequence[int]
        ) -> list[list[Detection]]:
            asked.append([picture.shape[1] for picture in pictures])
            return super().detect_batch(pictures, min_face_sizes_px)

    runner._detector = Recording()
    images = [encoded(noise(90, 60 + index)) for index in range(4)]
    results = _run(in_process(runner.detect), [_request(image) for image in (*images[:2], b"", *images[2:])])

    assert asked == [[60, 61, 62, 63]]
    assert [type(result) for result in results] == [*[DetectedPicture] * 2, EmptyImageError, *[DetectedPicture] * 2]


def test_a_picture_that_breaks_the_detector_leaves_its_neighbours_alone(environment: Environment) -> None:
    environment(detector=FAKE)
    runner = DetectorRunner.inner()

    class Broken(FakeDetector):
        def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
            if rgb_u8.shape[1] == 61:
                raise RuntimeError("this one")
            return super().detect(rgb_u8, min_face_size_px)

    runner._detector = Broken()
    images = [encoded(noise(90, 60 + index)) for index in range(3)]
    before, broken, after = _run(in_process(runner.detect), [_request(image) for image in images])

    assert (before.width, after.width) == (60, 62)
    assert broken == InternalError("detection failed on this picture")


@pytest.mark.parametrize("runner", ["detect", "classify"])
def test_no_items_are_no_results(request: pytest.FixtureRequest, runner: str) -> None:
    assert _run(request.getfixturevalue(runner), []) == []


class _OtherClassifier(FakeClassifier):
    tag = "other:1.0.0"
    labels = tuple(f"other-{label}" for label in FakeClassifier.labels)
    calls: list[int]

    def __init__(self) -> None:
        self.calls = []

    def classify(self, crops_u8: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.calls.append(len(crops_u8))
        return super().classify(crops_u8)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> _OtherClassifier:
    """A second model, known to the runner as `other:1.0.0`."""
    classifier = _OtherClassifier()

    def load(model: str, engine: str, **options: Any) -> Classifier:
        return classifier if model.startswith("other") else load_classifier(model, engine, **options)

    monkeypatch.setattr(runners, "load_classifier", load)
    return classifier


@pytest.mark.parametrize("models", ["fake,other", "fake"], ids=["both at start", "one at need"])
def test_mixed_models_are_batched_apart_and_put_back_in_order(
    environment: Environment, other: _OtherClassifier, models: str
) -> None:
    environment(models=models)
    classify = in_process(EmotionRunner.inner().classify)
    tags = [other.tag, SPEC.tag, SPEC.tag, other.tag, SPEC.tag, other.tag]
    results = _run(classify, [ClassifyRequest(_crop(seed), tag) for seed, tag in enumerate(tags)])

    expected = FakeClassifier().classify([_crop(seed) for seed in range(len(tags))])
    assert all(isinstance(result, Emotion) for result in results)
    assert [result.label.startswith("other-") for result in results] == [tag == other.tag for tag in tags]
    assert [list(result.probabilities.values()) for result in results] == expected.tolist()
    assert other.calls == [3]


def test_an_unknown_model_is_the_error_of_its_own_items(
    environment: Environment, store: object, fake_environment: None
) -> None:
    classify = in_process(EmotionRunner.inner().classify)
    tags = ["nobody:1.0.0", SPEC.tag, "nobody:1.0.0", SPEC.tag]
    results = _run(classify, [ClassifyRequest(_crop(seed), tag) for seed, tag in enumerate(tags)])

    assert [type(result) for result in results] == [ModelUnavailableError, Emotion, ModelUnavailableError, Emotion]


@pytest.mark.parametrize(("tta", "mirrors_agree"), [("none", False), ("flip", True)])
def test_flip_augmentation_makes_a_face_and_its_mirror_image_equal(
    environment: Environment, store: object, tta: str, mirrors_agree: bool
) -> None:
    environment(models="fer2013-resnet", detector=FAKE, tta=tta)
    classify = in_process(EmotionRunner.inner().classify)
    tag, crop = load_classifier("fer2013-resnet").tag, _crop(0)
    first, second = _run(classify, [ClassifyRequest(crop, tag), ClassifyRequest(crop[:, ::-1].copy(), tag)])

    assert (first.probabilities == pytest.approx(second.probabilities, abs=1e-5)) is mirrors_agree


def test_a_crop_that_fails_leaves_its_neighbours_alone(classify: RunnerCall) -> None:
    good: Any = _crop(0)
    bad: Any = None
    results = _run(classify, [ClassifyRequest(crop, SPEC.tag) for crop in (good, bad, good)])

    assert isinstance(results[0], Emotion)
    assert results[2] == results[0]
    assert getattr(results[1], "code", None) == "internal"


@pytest.mark.parametrize(
    ("runner", "environment_changes"),
    [(DetectorRunner, {"detector": "no-such-detector"}), (EmotionRunner, {"models": "no-such-model"})],
)
def test_a_runner_does_not_start_without_its_model(
    environment: Environment, store: object, runner: Any, environment_changes: dict[str, str]
) -> None:
    environment(**environment_changes)

    with pytest.raises(ModelUnavailableError, match="no-such"):
        runner.inner()
