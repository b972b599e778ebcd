from __future__ import annotations

import io
import json
import logging
import math
import time
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
    ExpiredError,
    HandlerError,
    InternalError,
    InvalidRequestError,
    ModelUnavailableError,
    TooLargeError,
    UnsupportedFormatError,
)
from handlers.fakes import FakeClassifier, FakeDetector
from handlers.pipeline import FAKE, DetectRequest, load_classifier
from handlers.preprocess import resize_crop
from handlers.results import DetectedPicture, Detection, Emotion
from service import metrics, work
from service.logs import configure_logs
from service.request_context import current_request_id, enter_request, leave_request, set_deadline
from service.settings import Settings
from service.work import ClassifyRequest, DetectionStage, EmotionStage, Work
from tests.pictures import encoded, noise

Environment = Callable[..., None]
SPEC = FakeClassifier()
SECRET = "password=hunter2"


def _request(image: bytes, min_face_size_px: int = 20) -> DetectRequest:
    return DetectRequest(image, min_face_size_px, SPEC.face_crop, SPEC.input)


def _crop(seed: int) -> NDArray[np.uint8]:
    return noise(48, 48, seed)[:, :, :1]


def _work(request: object, *, expired: bool = False, request_id: str = "r", sent_s: float | None = None) -> Work:
    now_s = time.monotonic()
    return Work(request, now_s if sent_s is None else sent_s, now_s if expired else math.inf, request_id, None)


def _run(stage: Callable[[Sequence[Work]], list[Any]], requests: Sequence[object]) -> list[Any]:
    return stage([_work(request) for request in requests])


@pytest.fixture
def detection(fake_environment: None) -> DetectionStage:
    return DetectionStage(Settings())


@pytest.fixture
def emotion(fake_environment: None) -> EmotionStage:
    return EmotionStage(Settings())


def test_work_carries_the_id_and_the_deadline_of_the_current_request() -> None:
    token = enter_request("the-id")
    try:
        set_deadline(12.5)
        carried = Work.of("request")
        set_deadline(math.inf)
    finally:
        leave_request(token)

    assert (carried.request, carried.request_id, carried.deadline_s, carried.trace) == ("request", "the-id", 12.5, None)
    assert carried.sent_s <= time.monotonic()


@pytest.mark.parametrize(("from_now_s", "expired"), [(-1.0, True), (0.0, True), (60.0, False), (math.inf, False)])
def test_work_expires_at_its_deadline(from_now_s: float, expired: bool) -> None:
    now_s = time.monotonic()

    assert Work("request", now_s, now_s + from_now_s, "r", None).expired is expired


def test_good_and_bad_pictures_keep_their_order(detection: DetectionStage) -> None:
    png = encoded(noise(90, 60))
    images = (b"", encoded(noise(40, 50)), png[: len(png) // 2], b"text", png, encoded(noise(70, 80)))
    results = _run(detection, [_request(image) for image in images])

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


@pytest.mark.parametrize("size", [-1, 0, 11])
def test_an_invalid_min_face_size_is_the_error_of_its_own_item(detection: DetectionStage, size: int) -> None:
    image = encoded(noise(96, 96))
    before, refused, after = _run(detection, [_request(image), _request(image, size), _request(image, 12)])

    assert isinstance(refused, InvalidRequestError)
    assert [len(picture.detections) for picture in (before, after)] == [1, 1]


def test_every_item_has_its_own_options(detection: DetectionStage) -> None:
    image = encoded(noise(100, 100))
    results = _run(detection, [_request(image, size) for size in (51, 50, 51)])

    assert [len(picture.detections) for picture in results] == [0, 1, 0]


def test_the_limits_come_from_the_settings(environment: Environment) -> None:
    environment(detector=FAKE, max_image_pixels="1000")
    images = [encoded(noise(20, 50)), encoded(noise(20, 51))]
    small, large = _run(DetectionStage(Settings()), [_request(image) for image in images])

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

    monkeypatch.setattr(work, "load_detector", load("detect", FakeDetector))
    monkeypatch.setattr(work, "load_classifier", load("classify", FakeClassifier))
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
    DetectionStage(Settings())
    EmotionStage(Settings())

    settings = DetectionSettings(min_face_size_px=33, thresholds=(0.5, 0.6, 0.8), max_side_px=640)
    assert loaded == {
        "detect": (("faces", "openvino"), {"threads": 2, "settings": settings}),
        "classify": (("moods", "openvino"), {"threads": 2, "tta": "flip", "precision": "int8"}),
    }


class _RecordingDetector(FakeDetector):
    def __init__(self) -> None:
        self.widths: list[list[int]] = []

    def detect_batch(
        self, pictures: Sequence[NDArray[np.uint8]], min_face_sizes_px: Sequence[int]
    ) -> list[list[Detection]]:
        self.widths.append([picture.shape[1] for picture in pictures])
        return super().detect_batch(pictures, min_face_sizes_px)


@pytest.fixture
def recording(detection: DetectionStage) -> _RecordingDetector:
    detector = _RecordingDetector()
    detection._detector = detector
    return detector


def test_pictures_that_were_merged_are_searched_together(
    detection: DetectionStage, recording: _RecordingDetector
) -> None:
    images = [encoded(noise(90, 60 + index)) for index in range(4)]
    results = _run(detection, [_request(image) for image in (*images[:2], b"", *images[2:])])

    assert recording.widths == [[60, 61, 62, 63]]
    assert [type(result) for result in results] == [*[DetectedPicture] * 2, EmptyImageError, *[DetectedPicture] * 2]


def test_a_picture_that_nobody_waits_for_is_not_worked_on(
    detection: DetectionStage, recording: _RecordingDetector
) -> None:
    works = [_work(_request(encoded(noise(90, 60 + index))), expired=index in (0, 2)) for index in range(4)]
    results = detection(works)

    assert recording.widths == [[61, 63]]
    assert [type(result) for result in results] == [ExpiredError, DetectedPicture] * 2
    assert [result.width for result in results if isinstance(result, DetectedPicture)] == [61, 63]


def test_a_batch_that_nobody_waits_for_reaches_no_detector(
    detection: DetectionStage, recording: _RecordingDetector
) -> None:
    results = detection([_work(_request(encoded(noise(90, 60))), expired=True) for _ in range(3)])

    assert recording.widths == []
    assert [type(result) for result in results] == [ExpiredError] * 3


def test_a_picture_that_breaks_the_detector_leaves_its_neighbours_alone(detection: DetectionStage) -> None:
    class Broken(FakeDetector):
        def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
            if rgb_u8.shape[1] == 61:
                raise RuntimeError(SECRET)
            return super().detect(rgb_u8, min_face_size_px)

    detection._detector = Broken()
    images = [encoded(noise(90, 60 + index)) for index in range(3)]
    before, broken, after = _run(detection, [_request(image) for image in images])

    assert (before.width, after.width) == (60, 62)
    assert isinstance(broken, InternalError)
    assert SECRET not in broken.detail


@pytest.mark.parametrize("stage", ["detection", "emotion"])
def test_no_items_are_no_results(request: pytest.FixtureRequest, stage: str) -> None:
    assert request.getfixturevalue(stage)([]) == []


class _OtherClassifier(FakeClassifier):
    tag = "other:1.0.0"
    labels = tuple(f"other-{label}" for label in FakeClassifier.labels)

    def __init__(self) -> None:
        self.calls: list[int] = []

    def classify(self, crops_u8: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.calls.append(len(crops_u8))
        return super().classify(crops_u8)


@pytest.fixture
def other(monkeypatch: pytest.MonkeyPatch) -> _OtherClassifier:
    """A second model, known as `other:1.0.0`."""
    classifier = _OtherClassifier()

    def load(model: str, engine: str, **options: Any) -> Classifier:
        return classifier if model.startswith("other") else load_classifier(model, engine, **options)

    monkeypatch.setattr(work, "load_classifier", load)
    return classifier


@pytest.mark.parametrize("models", ["fake,other", "fake"], ids=["both at start", "one at need"])
def test_mixed_models_are_batched_apart_and_put_back_in_order(
    environment: Environment, other: _OtherClassifier, models: str
) -> None:
    environment(models=models)
    tags = [other.tag, SPEC.tag, SPEC.tag, other.tag, SPEC.tag, other.tag]
    requests = [ClassifyRequest(_crop(seed), tag) for seed, tag in enumerate(tags)]
    results = _run(EmotionStage(Settings()), requests)

    expected = FakeClassifier().classify([_crop(seed) for seed in range(len(tags))])
    assert all(isinstance(result, Emotion) for result in results)
    assert [result.label.startswith("other-") for result in results] == [tag == other.tag for tag in tags]
    assert [list(result.probabilities.values()) for result in results] == expected.tolist()
    assert other.calls == [3]


def test_a_model_that_was_loaded_at_need_is_kept(environment: Environment, monkeypatch: pytest.MonkeyPatch) -> None:
    environment(models=FAKE)
    n_loaded = 0

    def load(model: str, engine: str, **options: Any) -> Classifier:
        nonlocal n_loaded
        n_loaded += 1
        return FakeClassifier() if model == FAKE else _OtherClassifier()

    monkeypatch.setattr(work, "load_classifier", load)
    stage = EmotionStage(Settings())
    for seed in range(3):
        _run(stage, [ClassifyRequest(_crop(seed), _OtherClassifier.tag)])

    assert n_loaded == 2


def test_an_unknown_model_is_the_error_of_its_own_items(empty_store: object, emotion: EmotionStage) -> None:
    tags = ["nobody:1.0.0", SPEC.tag, "nobody:1.0.0", SPEC.tag]
    results = _run(emotion, [ClassifyRequest(_crop(seed), tag) for seed, tag in enumerate(tags)])

    assert [type(result) for result in results] == [ModelUnavailableError, Emotion, ModelUnavailableError, Emotion]


def test_a_model_that_cannot_be_loaded_is_the_error_of_its_own_items(
    emotion: EmotionStage, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def load(*_: object, **__: object) -> Classifier:
        raise OSError(SECRET)

    monkeypatch.setattr(work, "load_classifier", load)
    tags = ["broken:1.0.0", SPEC.tag]
    broken, good = _run(emotion, [ClassifyRequest(_crop(seed), tag) for seed, tag in enumerate(tags)])

    assert isinstance(good, Emotion)
    assert isinstance(broken, InternalError)
    assert SECRET not in broken.detail
    assert "broken:1.0.0 cannot be loaded" in caplog.text


@pytest.mark.parametrize(("tta", "mirrors_agree"), [("none", False), ("flip", True)])
def test_flip_augmentation_makes_a_face_and_its_mirror_image_equal(
    environment: Environment, store: object, tta: str, mirrors_agree: bool
) -> None:
    environment(models="fer2013-resnet", detector=FAKE, tta=tta)
    tag, crop = load_classifier("fer2013-resnet").tag, _crop(0)
    crops = [crop, crop[:, ::-1].copy()]
    first, second = _run(EmotionStage(Settings()), [ClassifyRequest(face, tag) for face in crops])

    assert (first.probabilities == pytest.approx(second.probabilities, abs=1e-5)) is mirrors_agree


class _FussyClassifier(FakeClassifier):
    def classify(self, crops_u8: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        if any(crop.shape != (48, 48, 1) for crop in crops_u8):
            raise ValueError(SECRET)
        return super().classify(crops_u8)


def test_a_crop_that_breaks_the_model_leaves_its_neighbours_alone(emotion: EmotionStage) -> None:
    emotion._classifiers[SPEC.tag] = _FussyClassifier()
    good, bad = _crop(0), noise(7, 9)
    before, broken, after = _run(emotion, [ClassifyRequest(crop, SPEC.tag) for crop in (good, bad, good)])

    assert isinstance(before, Emotion)
    assert after == before
    assert isinstance(broken, InternalError)
    assert SECRET not in broken.detail


def test_a_face_that_nobody_waits_for_is_not_worked_on(environment: Environment, other: _OtherClassifier) -> None:
    environment(models="other")
    works = [_work(ClassifyRequest(_crop(seed), other.tag), expired=seed % 2 == 0) for seed in range(5)]
    results = EmotionStage(Settings())(works)

    assert [type(result) for result in results] == [ExpiredError, Emotion, ExpiredError, Emotion, ExpiredError]
    assert other.calls == [2]


def test_a_face_may_come_as_an_image_file(emotion: EmotionStage) -> None:
    pixels = noise(90, 60)
    of_file, of_crop = _run(
        emotion,
        [
            ClassifyRequest(encoded(pixels), SPEC.tag),
            ClassifyRequest(resize_crop(pixels, SPEC.input), SPEC.tag),
        ],
    )

    assert of_file == of_crop


def test_a_face_file_that_cannot_be_read_is_the_error_of_its_own_item(emotion: EmotionStage) -> None:
    png = encoded(noise(90, 60))
    faces = [png, b"", png[: len(png) // 2], b"text", _crop(0)]
    results = _run(emotion, [ClassifyRequest(face, SPEC.tag) for face in faces])

    assert [type(result) for result in results] == [
        Emotion,
        EmptyImageError,
        CorruptImageError,
        UnsupportedFormatError,
        Emotion,
    ]


def test_the_error_of_a_face_file_does_not_keep_the_picture_alive(emotion: EmotionStage) -> None:
    (error,) = _run(emotion, [ClassifyRequest(b"text", SPEC.tag)])

    assert isinstance(error, HandlerError)
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def test_the_limits_hold_for_face_files_too(environment: Environment) -> None:
    environment(models=FAKE, max_image_side_px="64")
    faces = [encoded(noise(64, 64)), encoded(noise(65, 64))]
    small, large = _run(EmotionStage(Settings()), [ClassifyRequest(face, SPEC.tag) for face in faces])

    assert isinstance(small, Emotion)
    assert isinstance(large, TooLargeError)


@pytest.mark.parametrize("n_requests", [1, 3, 9])
def test_log_lines_of_a_batch_name_every_request_that_it_works_for(
    detection: DetectionStage, capsys: pytest.CaptureFixture[str], n_requests: int
) -> None:
    class Broken(FakeDetector):
        def detect_batch(self, *_: object) -> list[list[Detection]]:
            raise RuntimeError

    detection._detector = Broken()
    ids = [f"{index:032x}" for index in range(n_requests)]
    capsys.readouterr()
    configure_logs("info")
    # Each request has two pictures in the batch, and is named once.
    detection([_work(_request(encoded(noise(30, 30))), request_id=request_id) for request_id in [*ids, *ids]])
    lines = [json.loads(line) for line in io.StringIO(capsys.readouterr().err)]

    assert lines
    assert {line["request_id"] for line in lines} == {"+".join(ids)}
    assert current_request_id() == ""


def test_a_batch_that_fails_leaves_no_ids_behind(detection: DetectionStage, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object, **__: object) -> list[Any]:
        raise RuntimeError

    monkeypatch.setattr(work, "detect_pictures", broken)

    with pytest.raises(RuntimeError):
        detection([_work(_request(b""))])
    assert current_request_id() == ""


def test_sizes_and_waits_and_work_are_measured(detection: DetectionStage, emotion: EmotionStage) -> None:
    def figures() -> dict[str, float]:
        waits = {name: metrics.STAGE_SECONDS.labels(name)._sum.get() for name in ("detect_wait", "classify_wait")}
        worked = {
            name: sum(bucket.get() for bucket in metrics.STAGE_SECONDS.labels(name)._buckets)
            for name in ("decode", "detect", "classify")
        }
        sizes = {"pictures": metrics.BATCH_PICTURES._sum.get(), "faces": metrics.BATCH_FACES._sum.get()}
        return waits | worked | sizes

    before = figures()
    long_ago_s = time.monotonic() - 100
    detection([_work(_request(encoded(noise(64, 64))), sent_s=long_ago_s) for _ in range(3)])
    emotion([_work(ClassifyRequest(_crop(0), SPEC.tag), sent_s=long_ago_s) for _ in range(5)])
    change = {name: value - before[name] for name, value in figures().items()}

    assert (change["pictures"], change["faces"]) == (3, 5)
    assert 300 <= change["detect_wait"] < 330
    assert 500 <= change["classify_wait"] < 550
    assert all(change[name] >= 1 for name in ("decode", "detect", "classify"))


def test_a_clock_that_is_a_little_behind_counts_as_no_wait(detection: DetectionStage) -> None:
    before_s = metrics.STAGE_SECONDS.labels("detect_wait")._sum.get()

    detection([_work(_request(b""), sent_s=time.monotonic() + 50)])

    assert metrics.STAGE_SECONDS.labels("detect_wait")._sum.get() == before_s


@pytest.mark.parametrize(
    ("stage", "changes"),
    [(DetectionStage, {"detector": "no-such-detector"}), (EmotionStage, {"models": "no-such-model"})],
)
def test_a_stage_is_not_built_without_its_model(
    environment: Environment, empty_store: object, stage: Callable[[Settings], object], changes: dict[str, str]
) -> None:
    environment(**changes)

    with pytest.raises(ModelUnavailableError, match="no-such"):
        stage(Settings())


def test_loading_a_model_is_logged(fake_environment: None, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)

    EmotionStage(Settings())

    assert f"loaded {SPEC.tag}" in caplog.messages
