"""The detector finds what `facenet_pytorch.MTCNN(keep_all=True)` finds, within the tolerances of `parity`."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest

from handlers.engines import ENGINE_NAMES
from handlers.errors import EngineUnavailableError
from handlers.pipeline import load_detector
from handlers.results import Detection
from tests.handlers.detection import parity_report
from tests.handlers.detection.parity import (
    Comparison,
    Picture,
    Reference,
    astronaut_and_composites,
    compare,
    compare_all,
    photographs,
    summarise,
)

EVERY = 4

ReferenceFaces = Callable[[Picture], list[Detection]]


@pytest.fixture(scope="module")
def reference_faces() -> ReferenceFaces:
    """The reference's faces of a picture; the slow part, so each picture's are found once."""
    reference = Reference()
    known: dict[str, list[Detection]] = {}

    def faces(picture: Picture) -> list[Detection]:
        if picture.name not in known:
            known[picture.name] = reference.detect(picture.rgb_u8)
        return known[picture.name]

    return faces


def assert_parity(comparisons: Sequence[Comparison]) -> None:
    summary = summarise(comparisons)
    different = [str(comparison) for comparison in comparisons if not comparison.is_equal]
    assert summary.is_parity, "\n".join([str(summary), *different])


def test_default_engine_finds_the_references_faces(store: Path, reference_faces: ReferenceFaces) -> None:
    pictures = chain(astronaut_and_composites(EVERY), islice(photographs(), 0, None, 3))
    assert_parity(compare_all(load_detector(), reference_faces, pictures))


@pytest.mark.slow
def test_default_engine_finds_the_references_faces_of_the_whole_corpus(
    store: Path, reference_faces: ReferenceFaces
) -> None:
    assert_parity(compare_all(load_detector(), reference_faces, chain(astronaut_and_composites(), photographs())))


@pytest.mark.parametrize("engine", [name for name in ENGINE_NAMES if name not in ("auto", "torch")])
def test_every_engine_finds_the_references_faces(store: Path, reference_faces: ReferenceFaces, engine: str) -> None:
    try:
        detector = load_detector(engine=engine)
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    assert_parity(compare_all(detector, reference_faces, astronaut_and_composites(4 * EVERY)))


def test_composites_hold_no_face_to_thirty_of_all_sizes_some_outside_the_frame(
    reference_faces: ReferenceFaces,
) -> None:
    found = [(picture.rgb_u8.shape, reference_faces(picture)) for picture in astronaut_and_composites(EVERY)]
    counts = [len(faces) for _, faces in found]
    assert counts.count(0) >= 2
    assert 25 <= max(counts) <= 30
    boxes = [(shape, face.box_px) for shape, faces in found for face in faces]
    heights = [(bottom - top) / shape[0] for shape, (_, top, _, bottom) in boxes]
    assert min(heights) < 0.05
    assert max(heights) > 0.9
    outside = [min(box) < 0 or box[2] > shape[1] or box[3] > shape[0] for shape, box in boxes]
    assert 0.05 < sum(outside) / len(outside) < 0.5


FACE = Detection((10, 20, 110, 120), 0.95, ((40, 50), (80, 50), (60, 70), (45, 95), (75, 95)))
OTHER = replace(FACE, box_px=(300, 20, 360, 90))
PICTURE = Picture("here", np.zeros((480, 640, 3), np.uint8))


def moved(face: Detection, dx: float, dy: float) -> Detection:
    """The face with its nose moved by pixels."""
    left_eye, right_eye, (x, y), *mouth = face.landmarks_px
    return replace(face, landmarks_px=(left_eye, right_eye, (x + dx, y + dy), *mouth))


def test_same_faces_in_another_order_are_equal() -> None:
    comparison = compare(PICTURE, [FACE, OTHER], [OTHER, FACE])
    assert comparison == Comparison("here", 640, 2, 2, 1.0, 0.0, 0.0)
    assert comparison.is_equal


def test_no_faces_are_equal() -> None:
    assert compare(PICTURE, [], []) == Comparison("here", 640, 0, 0, 1.0, 0.0, 0.0)


@pytest.mark.parametrize(
    ("found", "expected"), [([FACE], []), ([], [FACE]), ([FACE, OTHER], [FACE]), ([OTHER], [FACE, OTHER])]
)
def test_another_count_is_not_equal_but_what_matches_is_measured(
    found: list[Detection], expected: list[Detection]
) -> None:
    comparison = compare(PICTURE, found, expected)
    assert not comparison.count_is_equal
    assert not comparison.is_equal
    assert comparison.faces_are_equal


@pytest.mark.parametrize(
    ("face", "equal"),
    [
        (replace(FACE, box_px=(10.9, 20, 110, 120)), True),
        (replace(FACE, box_px=(11.1, 20, 110, 120)), False),
        (replace(FACE, box_px=(200, 200, 300, 300)), False),
        (moved(FACE, 0.5, -0.8), True),
        (moved(FACE, 0.8, -0.8), False),
        (replace(FACE, confidence=0.942), True),
        (replace(FACE, confidence=0.939), False),
        (replace(FACE, confidence=0.961), False),
    ],
)
def test_the_worst_pair_decides(face: Detection, equal: bool) -> None:
    comparison = compare(PICTURE, [OTHER, face], [FACE, OTHER])
    assert comparison.is_equal == equal
    assert comparison.count_is_equal


def test_each_face_is_matched_once_with_its_best() -> None:
    near = replace(FACE, box_px=(10, 20, 110, 140))
    between = replace(FACE, box_px=(10, 20, 110, 122))
    assert compare(PICTURE, [FACE, near], [between, FACE]).min_overlap == pytest.approx(102 / 120)


def test_landmarks_may_shift_further_in_larger_pictures_only() -> None:
    large = Picture("large", np.zeros((1280, 720, 3), np.uint8))
    small = Picture("small", np.zeros((100, 100, 3), np.uint8))
    assert compare(large, [moved(FACE, 1.9, 0)], [FACE]).is_equal
    assert not compare(large, [moved(FACE, 2.1, 0)], [FACE]).is_equal
    assert not compare(small, [moved(FACE, 1.1, 0)], [FACE]).is_equal


def test_one_count_in_two_hundred_may_differ_but_no_face_beyond_the_tolerances() -> None:
    equal, fewer = compare(PICTURE, [FACE], [FACE]), compare(PICTURE, [], [FACE])
    beyond = compare(PICTURE, [moved(FACE, 0, 3)], [FACE])
    assert summarise([equal] * 199 + [fewer]).is_parity
    assert not summarise([equal] * 198 + [fewer]).is_parity
    assert not summarise([equal] * 199 + [beyond]).is_parity
    summary = summarise([equal, fewer, beyond])
    assert (summary.n_pictures, summary.n_faces, summary.n_equal_counts, summary.n_unequal_faces) == (3, 3, 2, 1)
    assert summary.max_landmark_shift_px == 3


def test_report_lists_what_differs_and_fails(
    store: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    class Deaf:
        def detect(self, rgb_u8: np.ndarray, min_face_size_px: int) -> list[Detection]:
            return []

    monkeypatch.setattr(parity_report, "photographs", lambda: iter(()))
    assert parity_report.main(["--engine", "onnxruntime", "--every", "200"]) == 0
    assert capsys.readouterr().out.startswith("onnxruntime: 2 pictures with 2 faces; as many found in 2 (100.00%)")
    monkeypatch.setattr(parity_report, "load_detector", lambda engine: Deaf())
    assert parity_report.main(["--every", "200"]) == 1
    out = capsys.readouterr().out.splitlines()
    assert out[2] == "| astronaut | 512 px | 0 | 1 | 1.0000 | 0.00 px | 0.0000 |"
    assert out[3].startswith("| composite 0 | 640 px | 0 | 1 |")
