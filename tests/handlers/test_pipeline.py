from __future__ import annotations

import logging
import os
import pickle
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers import errors, load_pipeline
from handlers.decode import DecodeLimits, decode_image
from handlers.detection.mtcnn import MtcnnDetector
from handlers.detection.settings import DetectionSettings
from handlers.errors import (
    CorruptImageError,
    EmptyImageError,
    EngineUnavailableError,
    ExpiredError,
    HandlerError,
    InternalError,
    InvalidRequestError,
    ModelUnavailableError,
)
from handlers.fakes import FAKE_LABELS, FakeClassifier, FakeDetector
from handlers.pipeline import DetectRequest, Pipeline, classify, detect_pictures, load_classifier, load_detector
from handlers.results import Analysis, DetectedPicture, Detection
from tests.model_bundles import LABELS
from tests.pictures import encoded, noise

SECRET = "the password is swordfish"
FAKES = Pipeline(FakeDetector(), FakeClassifier())


def picture(seed: int) -> bytes:
    return encoded(noise(60, 80 + seed, seed=seed))


@dataclass
class FailingDetector(FakeDetector):
    """Raises on pictures of one width."""

    width: int

    def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
        if rgb_u8.shape[1] == self.width:
            raise RuntimeError(SECRET)
        return super().detect(rgb_u8, min_face_size_px)


@dataclass
class FailingClassifier(FakeClassifier):
    """Raises, or returns a row too few, whenever the crop of one checksum is in the batch."""

    guilty: bytes
    short: bool = False
    batches: list[int] = field(default_factory=list)

    def classify(self, crops_u8: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        self.batches.append(len(crops_u8))
        rows = super().classify(crops_u8)
        if all(crop.tobytes() != self.guilty for crop in crops_u8):
            return rows
        if self.short:
            return rows[:-1]
        raise RuntimeError(SECRET)


def assert_same_result(result: Analysis | HandlerError, expected: Analysis | HandlerError) -> None:
    """The networks may round differently in a batch of another size; nothing else may differ, least of all a crop."""
    if isinstance(result, HandlerError) or isinstance(expected, HandlerError):
        assert result == expected
        return
    assert (result.width, result.height, len(result.faces)) == (expected.width, expected.height, len(expected.faces))
    for face, other in zip(result.faces, expected.faces, strict=True):
        np.testing.assert_allclose(face.box_px, other.box_px, atol=0.001)
        np.testing.assert_allclose(face.landmarks_px, other.landmarks_px, atol=0.001)
        assert face.detection_confidence == pytest.approx(other.detection_confidence, abs=1e-6)
        assert (face.emotion, face.probabilities) == (other.emotion, other.probabilities)


def crop_of(data: bytes) -> NDArray[np.uint8]:
    seen: list[NDArray[np.uint8]] = []

    class Recorder(FakeClassifier):
        def classify(self, crops_u8: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            seen.extend(crops_u8)
            return super().classify(crops_u8)

    Pipeline(FakeDetector(), Recorder()).analyze([data])
    return seen[0]


def test_one_result_an_input_in_order() -> None:
    batch = [picture(3), b"", picture(1), b"text", encoded(np.zeros((5, 5), np.uint8)), picture(2)]
    results = FAKES.analyze(batch)
    assert [type(result) for result in results] == [
        Analysis, EmptyImageError, Analysis, errors.UnsupportedFormatError, Analysis, Analysis,
    ]  # fmt: skip
    widths = [result.width for result in results if isinstance(result, Analysis)]
    assert widths == [83, 81, 5, 82]
    assert results == [FAKES.analyze([data])[0] for data in batch]


def test_no_picture_is_no_result() -> None:
    assert FAKES.analyze([]) == []


def test_no_face_is_an_empty_tuple() -> None:
    (result,) = FAKES.analyze([encoded(np.full((50, 40, 3), 9, np.uint8))])
    assert result == Analysis(40, 50, ())


def test_face_holds_every_label_and_the_best_one() -> None:
    (result,) = FAKES.analyze([picture(0)])
    assert isinstance(result, Analysis)
    (face,) = result.faces
    assert tuple(face.probabilities) == FAKE_LABELS
    assert sum(face.probabilities.values()) == pytest.approx(1, abs=1e-6)
    assert face.confidence == max(face.probabilities.values()) == face.probabilities[face.emotion]
    assert len(face.landmarks_px) == 5


@dataclass
class RecordingDetector(FakeDetector):
    """Remembers the widths of the pictures that it was asked about together, and their smallest faces."""

    widths: list[list[int]] = field(default_factory=list)
    sizes_px: list[list[int]] = field(default_factory=list)

    def detect_batch(
        self, pictures: Sequence[NDArray[np.uint8]], min_face_sizes_px: Sequence[int]
    ) -> list[list[Detection]]:
        self.widths.append([picture.shape[1] for picture in pictures])
        self.sizes_px.append(list(min_face_sizes_px))
        return super().detect_batch(pictures, min_face_sizes_px)


def request(image: bytes, min_face_size_px: int = 20) -> DetectRequest:
    spec = FakeClassifier()
    return DetectRequest(image, min_face_size_px, spec.face_crop, spec.input)


def test_detector_that_raises_harms_its_picture_only_and_tells_nothing() -> None:
    batch = [picture(seed) for seed in range(4)]
    results = Pipeline(FailingDetector(width=82), FakeClassifier()).analyze(batch)
    assert results == [*FAKES.analyze(batch[:2]), InternalError("detection failed on this picture"),
                       *FAKES.analyze(batch[3:])]  # fmt: skip
    assert SECRET not in repr(results)


@pytest.mark.parametrize("n_lost", [1, 4], ids=["one too few", "none at all"])
def test_detector_that_loses_count_harms_no_picture_that_it_counts_alone(n_lost: int) -> None:
    class Short(FakeDetector):
        def detect_batch(
            self, pictures: Sequence[NDArray[np.uint8]], min_face_sizes_px: Sequence[int]
        ) -> list[list[Detection]]:
            found = super().detect_batch(pictures, min_face_sizes_px)
            return found if len(found) == 1 else found[:-n_lost]

    batch = [picture(seed) for seed in range(4)]
    assert Pipeline(Short(), FakeClassifier()).analyze(batch) == FAKES.analyze(batch)


def test_face_that_cannot_be_cut_out_harms_its_picture_only() -> None:
    class Elsewhere(FakeDetector):
        def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
            (face,) = super().detect(rgb_u8, min_face_size_px)
            return [replace(face, box_px=(float("nan"),) * 4) if rgb_u8.shape[1] == 81 else face]

    batch = [picture(seed) for seed in range(3)]
    results = Pipeline(Elsewhere(), FakeClassifier()).analyze(batch)
    expected: list[Analysis | HandlerError] = FAKES.analyze(batch)
    expected[1] = InternalError("detection failed on this picture")
    assert results == expected


def test_decoder_that_raises_harms_its_picture_only(monkeypatch: pytest.MonkeyPatch) -> None:
    def decode(data: bytes, limits: DecodeLimits) -> NDArray[np.uint8]:
        if data == b"guilty":
            raise RuntimeError(SECRET)
        return decode_image(data, limits)

    monkeypatch.setattr("handlers.pipeline.decode_image", decode)
    results = FAKES.analyze([picture(0), b"guilty", picture(1)])
    assert [type(result) for result in results] == [Analysis, InternalError, Analysis]
    assert SECRET not in repr(results)


@pytest.mark.parametrize(
    ("widths", "together"),
    [
        ([1000, 1000, 2000, 80, 81], [[1000, 1000, 2000], [80, 81]]),  # a million pixels are still one group
        ([1000, 1000, 2001, 80], [[1000, 1000], [2001, 80]]),
        ([4100, 80, 81, 4000, 82], [[4100], [80, 81], [4000], [82]]),
        ([80] * 50, [[80] * 50]),
    ],
    ids=["just fits", "does not fit", "larger than a group", "small"],
)
def test_pictures_are_searched_together_up_to_a_million_pixels(widths: list[int], together: list[list[int]]) -> None:
    detector = RecordingDetector()
    requests = [request(encoded(np.full((250, width), 7, np.uint8))) for width in widths]
    results = detect_pictures(detector, requests, DecodeLimits())
    assert detector.widths == together
    assert [result.width for result in results if isinstance(result, DetectedPicture)] == widths


def test_a_request_that_cannot_be_read_is_not_searched_and_keeps_its_place() -> None:
    detector = RecordingDetector()
    images = [b"", picture(0), b"text", picture(1), picture(2)[:60], picture(3)]
    results = detect_pictures(detector, [request(image, 20 + at) for at, image in enumerate(images)], DecodeLimits())
    assert [isinstance(result, HandlerError) for result in results] == [True, False] * 3
    assert (detector.widths, detector.sizes_px) == ([[80, 81, 83]], [[21, 23, 25]])


def test_requests_that_cannot_be_read_ask_the_detector_nothing() -> None:
    detector = RecordingDetector()
    assert len(detect_pictures(detector, [request(b""), request(b"text")], DecodeLimits())) == 2
    assert detect_pictures(detector, [], DecodeLimits()) == []
    assert detector.widths == []


EXPIRED = ExpiredError("its time was over before the work on it began")


def test_a_request_that_expires_before_its_picture_is_decoded_costs_nothing() -> None:
    detector, observed = RecordingDetector(), []
    requests = [request(image) for image in (picture(0), b"", picture(2), b"text", picture(4))]

    results = detect_pictures(
        detector,
        requests,
        DecodeLimits(),
        expired=lambda index: index in (1, 2, 3),
        observe=lambda stage, seconds: observed.append(stage),
    )

    assert results[1:4] == [EXPIRED] * 3
    assert [type(result) for result in results[::4]] == [DetectedPicture] * 2
    assert detector.widths == [[80, 84]]
    assert observed == ["decode", "decode", "detect", "detect"]


def test_a_request_that_expires_before_its_group_is_searched_is_left_out_of_it() -> None:
    detector, asked = RecordingDetector(), []

    def expired(index: int) -> bool:
        asked.append(index)
        return index == 1 and asked.count(1) == 2

    results = detect_pictures(detector, [request(picture(seed)) for seed in range(3)], DecodeLimits(), expired=expired)

    assert asked == [0, 1, 2, 0, 1, 2]
    assert [type(result) for result in results] == [DetectedPicture, ExpiredError, DetectedPicture]
    assert [result.width for result in results if isinstance(result, DetectedPicture)] == [80, 82]
    assert detector.widths == [[80, 82]]


def test_each_group_is_asked_about_when_its_turn_comes() -> None:
    detector = RecordingDetector()
    requests = [request(encoded(np.full((500, 1100 + at), 7, np.uint8))) for at in range(4)]

    results = detect_pictures(detector, requests, DecodeLimits(), expired=lambda _: len(detector.widths) == 2)

    assert detector.widths == [[1100], [1101]]
    assert [type(result) for result in results] == [DetectedPicture] * 2 + [ExpiredError] * 2


def test_requests_that_have_all_expired_ask_the_detector_nothing() -> None:
    detector, asked = RecordingDetector(), []

    def expired(index: int) -> bool:
        asked.append(index)
        return len(asked) > 2

    results = detect_pictures(detector, [request(picture(0)), request(picture(1))], DecodeLimits(), expired=expired)

    assert results == [EXPIRED] * 2
    assert detector.widths == []


def test_times_are_told_for_each_picture_decoded_and_in_equal_shares_for_each_one_searched() -> None:
    observed: list[tuple[str, float]] = []
    wide = encoded(np.full((500, 1100), 7, np.uint8))

    detect_pictures(
        FakeDetector(),
        [request(image) for image in (picture(0), b"text", picture(1), wide, wide)],
        DecodeLimits(),
        observe=lambda stage, seconds: observed.append((stage, seconds)),
    )

    assert [stage for stage, _ in observed] == ["decode"] * 5 + ["detect"] * 4
    assert observed[5] == observed[6] == observed[7] != observed[8]
    assert min(seconds for _, seconds in observed) > 0


def test_times_of_a_group_that_had_to_be_searched_one_by_one_are_told_once() -> None:
    observed: list[str] = []

    detect_pictures(
        FailingDetector(width=81),
        [request(picture(seed)) for seed in range(3)],
        DecodeLimits(),
        observe=lambda stage, seconds: observed.append(stage),
    )

    assert observed == ["decode"] * 3 + ["detect"] * 3


@pytest.mark.parametrize("size", [11, 0, -3])
def test_min_face_size_out_of_range_is_the_error_of_its_own_request(size: int) -> None:
    results = detect_pictures(
        FakeDetector(), [request(picture(0)), request(picture(1), size), request(picture(2), 12)], DecodeLimits()
    )
    assert [type(result) for result in results] == [DetectedPicture, InvalidRequestError, DetectedPicture]


def test_real_detector_finds_in_a_group_what_it_finds_alone(
    detector: MtcnnDetector, one_face: bytes, two_faces: bytes
) -> None:
    none = encoded(np.full((60, 60, 3), 90, np.uint8))
    requests = [request(image, size) for size in (20, 90) for image in (two_faces, none, one_face, b"", two_faces)]
    results = detect_pictures(detector, requests, DecodeLimits())
    for result, alone in zip(results, requests, strict=True):
        (expected,) = detect_pictures(detector, [alone], DecodeLimits())
        assert type(result) is type(expected)
        if isinstance(result, DetectedPicture) and isinstance(expected, DetectedPicture):
            boxes, expected_boxes = ([face.box_px for face in each.detections] for each in (result, expected))
            assert len(boxes) == len(expected_boxes)
            np.testing.assert_allclose(boxes, expected_boxes, atol=0.001)
            np.testing.assert_array_equal(result.face_crops, expected.face_crops)
    counts = [len(result.detections) for result in results if isinstance(result, DetectedPicture)]
    assert counts == [2, 0, 1, 2, 1, 0, 1, 1]


@pytest.mark.parametrize("short", [False, True], ids=["raises", "a row too few"])
@pytest.mark.parametrize("guilty", range(4))
def test_classifier_that_fails_harms_the_guilty_picture_only(guilty: int, short: bool) -> None:
    batch = [picture(seed) for seed in range(4)]
    classifier = FailingClassifier(crop_of(batch[guilty]).tobytes(), short)
    results = Pipeline(FakeDetector(), classifier).analyze(batch)
    expected: list[Analysis | HandlerError] = FAKES.analyze(batch)
    expected[guilty] = InternalError("classification failed on this face")
    assert results == expected
    assert SECRET not in repr(results)
    assert classifier.batches == [4, 1, 1, 1, 1]


@pytest.mark.parametrize("rows", [np.ones((3, 6), np.float32), np.ones((4, 7), np.float32), np.ones(3, np.float32)])
def test_probabilities_of_another_shape_are_an_error_for_each_crop(rows: NDArray[np.float32]) -> None:
    class Wrong(FakeClassifier):
        def classify(self, crops_u8: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
            return rows

    crops = [noise(48, 48, seed=seed)[:, :, :1] for seed in range(3)]
    assert classify(Wrong(), crops) == [InternalError("classification failed on this face")] * 3


def test_rows_never_shift_between_pictures(detector: MtcnnDetector, one_face: bytes, two_faces: bytes) -> None:
    pipeline = Pipeline(detector, FakeClassifier())
    none = encoded(np.full((60, 60, 3), 90, np.uint8))
    batch = [two_faces, none, b"", one_face, none, one_face[:500], two_faces, one_face]
    results = pipeline.analyze(batch)
    for result, data in zip(results, batch, strict=True):
        assert_same_result(result, pipeline.analyze([data])[0])
    counts = [len(result.faces) if isinstance(result, Analysis) else -1 for result in results]
    assert counts == [2, 0, -1, 1, 0, -1, 2, 1]


@pytest.mark.parametrize("value", [11, 0, -20])
def test_min_face_size_below_what_the_network_sees_is_refused(value: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"at least 12 px, not {value}"):
        FAKES.analyze([picture(0)], min_face_size_px=value)


def test_min_face_size_reaches_the_detector() -> None:
    data = encoded(noise(60, 60))
    assert [len(FAKES.analyze([data], min_face_size_px=size)[0].faces) for size in (12, 30, 31)] == [1, 1, 0]


def test_min_face_size_of_the_pipeline_is_its_default() -> None:
    data, pipeline = encoded(noise(60, 60)), Pipeline(FakeDetector(), FakeClassifier(), min_face_size_px=31)
    assert [len(pipeline.analyze([data], min_face_size_px=size)[0].faces) for size in (None, 30)] == [0, 1]


def test_limits_reach_the_decoder() -> None:
    small = Pipeline(FakeDetector(), FakeClassifier(), DecodeLimits(max_side_px=80))
    results = small.analyze([picture(0), picture(1)])
    assert isinstance(results[0], Analysis)
    assert isinstance(results[1], errors.TooLargeError)


@pytest.mark.parametrize("cut", [False, True], ids=["no image", "cut off"])
def test_an_error_that_is_kept_keeps_nothing_of_its_picture(cut: bool) -> None:
    """A bulk job holds many results: 200 pictures of 1.2 MB that were cut off held 580 MB."""
    (error,) = FAKES.analyze([picture(0)[:500] if cut else b"text"])
    assert isinstance(error, HandlerError)
    assert (error.__traceback__, error.__cause__, error.__context__) == (None, None, None)


def test_results_pickle() -> None:
    results = FAKES.analyze([picture(0), b"", b"text", picture(1)])
    assert pickle.loads(pickle.dumps(results)) == results


@pytest.mark.parametrize("error", [HandlerError, *HandlerError.__subclasses__()])
def test_errors_pickle_are_values_and_have_a_stable_code(error: type[HandlerError]) -> None:
    value = error("a detail")
    again = pickle.loads(pickle.dumps(value))
    assert again == value
    assert (type(again), again.code, again.detail, str(again)) == (error, error.code, "a detail", "a detail")
    assert hash(again) == hash(value)
    assert value != error("another detail")
    assert value != type("Other", (HandlerError,), {})("a detail")


def test_codes_are_the_documented_ones() -> None:
    codes = {error.code for error in HandlerError.__subclasses__() if error.__module__ == "handlers.errors"}
    assert codes == {
        "invalid_request", "unsupported_format", "corrupt_image", "empty_image", "too_large", "timeout",
        "model_not_found", "engine_unavailable", "internal",
    }  # fmt: skip
    assert CorruptImageError.code == "corrupt_image"


def test_detected_picture_refuses_crops_without_detections() -> None:
    with pytest.raises(ValueError, match="0 detections but 1 crops"):
        DetectedPicture(5, 5, (), (noise(5, 5),))


def test_fake_model_needs_no_store(empty_store: Path) -> None:
    pipeline = load_pipeline("fake")
    assert pipeline.analyze([picture(0)]) == FAKES.analyze([picture(0)])


def test_default_pipeline_is_the_registered_default(both_models: Path, one_face: bytes) -> None:
    pipeline = load_pipeline(engine="onnxruntime", limits=DecodeLimits(max_side_px=500))
    assert (pipeline.classifier.tag, pipeline.limits.max_side_px) == ("tiny:1.0.0", 500)
    (result,) = pipeline.analyze([one_face])
    assert isinstance(result, Analysis)
    assert [tuple(face.probabilities) for face in result.faces] == [LABELS]
    assert load_pipeline("tiny:1.0.0", "onnxruntime").analyze([one_face]) == [result]


def test_flip_changes_the_scores_and_not_the_boxes(both_models: Path, one_face: bytes) -> None:
    (plain,), (flipped,) = (load_pipeline(tta=tta).analyze([one_face]) for tta in ("none", "flip"))
    assert isinstance(plain, Analysis)
    assert isinstance(flipped, Analysis)
    assert plain.faces[0].box_px == flipped.faces[0].box_px
    assert plain.faces[0].probabilities != flipped.faces[0].probabilities


def test_detection_settings_reach_the_detector_and_the_pipeline(both_models: Path, two_faces: bytes) -> None:
    def n_faces(detection: DetectionSettings | None) -> int:
        (result,) = load_pipeline(detection=detection).analyze([two_faces])
        assert isinstance(result, Analysis)
        return len(result.faces)

    choices = [
        None,
        DetectionSettings(min_face_size_px=90),
        DetectionSettings(thresholds=(0.6, 0.7, 0.9999999)),
        DetectionSettings(max_side_px=25),
    ]
    assert [n_faces(detection) for detection in choices] == [2, 1, 0, 0]
    assert load_pipeline(detection=choices[1]).min_face_size_px == 90
    assert load_pipeline("fake", detection=choices[1]).min_face_size_px == 90


@pytest.mark.parametrize(
    ("name", "engine", "chosen"),
    [
        ("tiny", "auto", "fp32"),
        ("tiny-int8", "openvino", "int8"),
        ("tiny-int8", "onnxruntime", "int8"),
        ("tiny-int8", "torch", "fp32"),
    ],
)
def test_auto_precision_is_int8_where_the_model_and_the_engine_have_it(
    both_models: Path, caplog: pytest.LogCaptureFixture, name: str, engine: str, chosen: str
) -> None:
    crops = [noise(32, 32, seed)[:, :, :1] for seed in range(5)]
    with caplog.at_level(logging.INFO, "handlers.pipeline"):
        automatic = load_classifier(name, engine).classify(crops)
    assert f"{name}:1.0.0: precision auto: chose {chosen}" in [record.getMessage() for record in caplog.records]
    np.testing.assert_array_equal(automatic, load_classifier(name, engine, precision=chosen).classify(crops))


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_int8_is_another_network_with_nearly_the_same_probabilities(both_models: Path, engine: str) -> None:
    crops = [noise(32, 32, seed)[:, :, :1] for seed in range(20)]
    fp32, int8 = (
        load_classifier("tiny-int8", engine, precision=precision).classify(crops) for precision in ("fp32", "int8")
    )
    assert 0 < np.abs(fp32 - int8).max() < 0.05


@pytest.mark.parametrize(
    ("model", "engine", "message"),
    [
        ("tiny", "openvino", r"tiny:1\.0\.0 has no int8 network"),
        ("tiny", "onnxruntime", r"tiny:1\.0\.0 has no int8 network"),
        ("tiny-int8", "torch", "the torch engine runs no int8 networks"),
    ],
)
def test_int8_that_cannot_be_had_is_an_unavailable_model(
    both_models: Path, model: str, engine: str, message: str
) -> None:
    with pytest.raises(ModelUnavailableError, match=message):
        load_classifier(model, engine, precision="int8")


@pytest.mark.parametrize(
    ("model", "engine", "error", "message"),
    [
        ("unknown", "auto", ModelUnavailableError, "unknown is not registered"),
        ("tiny:1.0", "auto", ModelUnavailableError, r"tiny:1\.0 is not registered"),
        ("mtcnn", "auto", ModelUnavailableError, r"mtcnn:1\.0\.0 is not an emotion classifier"),
        ("default", "tensorflow", EngineUnavailableError, "'tensorflow' is none of auto"),
    ],
)
def test_pipeline_that_cannot_be_loaded(
    both_models: Path, model: str, engine: str, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        load_pipeline(model, engine)


def test_emotion_model_is_no_detector(both_models: Path) -> None:
    with pytest.raises(ModelUnavailableError, match=r"tiny:1\.0\.0 is not a face detector"):
        load_detector("tiny")


def test_altered_model_is_unavailable(both_models: Path) -> None:
    path = next(both_models.glob("tiny/*/serving/classifier.onnx"))
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ModelUnavailableError, match="recorded"):
        load_classifier("tiny")


def test_empty_store_has_no_default(empty_store: Path) -> None:
    with pytest.raises(ModelUnavailableError, match="no face-detection model is registered"):
        load_pipeline()


def run_python(program: str, home: Path) -> str:
    environment = {**os.environ, "BENTOML_HOME": str(home)}
    done = subprocess.run(
        [sys.executable, "-c", program], env=environment, capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1]


HEAVY = "sorted({'torch', 'torchvision', 'timm', 'facenet_pytorch', 'onnx', 'skimage'} & set(sys.modules))"


def test_importing_handlers_imports_neither_torch_nor_bentoml(tmp_path: Path) -> None:
    program = f"import sys, handlers; print({HEAVY}, 'bentoml' in sys.modules)"
    assert run_python(program, tmp_path) == "[] False"


@pytest.mark.parametrize("engine", ["openvino", "onnxruntime"])
def test_pipeline_works_without_torch(both_models: Path, one_face: bytes, tmp_path: Path, engine: str) -> None:
    (tmp_path / "face.jpg").write_bytes(one_face)
    program = f"""
import sys
from pathlib import Path
from handlers import load_pipeline
(result,) = load_pipeline(engine={engine!r}).analyze([Path({str(tmp_path / "face.jpg")!r}).read_bytes()])
print(len(result.faces), {HEAVY})
"""
    assert run_python(program, both_models.parent) == "1 []"
