from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.results import Detection
from tests.training.faces import generated_faces
from training.data import FaceSet
from training.error_analysis import (
    Answers,
    Confusion,
    by_agreement,
    by_confidence,
    by_pose,
    by_sharpness,
    by_twin,
    commonest_confusions,
    confusion_table,
    part_table,
    sharpness,
    turned,
)


def answers(faces: FaceSet, right: list[bool], confidence: list[float] | None = None) -> Answers:
    """The classifier calls the label, or the next one, with that confidence."""
    n, n_classes = len(faces), len(faces.label_names)
    sure = np.full(n, 0.5) if confidence is None else np.array(confidence)
    probabilities = np.repeat((1 - sure)[:, None] / (n_classes - 1), n_classes, 1)
    called = (faces.labels + ~np.array(right)) % n_classes
    probabilities[np.arange(n), called] = sure
    return Answers(faces, probabilities.astype(np.float32))


def with_crops(crops: NDArray[np.uint8]) -> FaceSet:
    n = len(crops)
    return FaceSet(crops, np.arange(n) % 7, tuple(map(str, range(n))), tuple("abcdefg"), ())


def test_commonest_confusions_come_first_and_none_is_empty() -> None:
    confusion = np.array([[5, 3, 2], [0, 9, 1], [0, 0, 4]])
    assert commonest_confusions(confusion, ["a", "b", "c"], 9) == [
        Confusion("a", "b", 3, 0.3),
        Confusion("a", "c", 2, 0.2),
        Confusion("b", "c", 1, 0.1),
    ]
    assert len(commonest_confusions(confusion, ["a", "b", "c"], 1)) == 1


def test_sharpness_falls_with_blur_and_not_with_contrast() -> None:
    noise = np.random.default_rng(0).integers(80, 160, (1, 16, 16, 1)).astype(np.uint8)
    blurred = ((noise + np.roll(noise, 1, 1).astype(int) + np.roll(noise, 1, 2) + np.roll(noise, 2, 1)) // 4).astype(
        np.uint8
    )
    dull = (noise // 4 + 90).astype(np.uint8)
    flat = np.full_like(noise, 7)
    values = sharpness(np.concatenate([noise, blurred, dull, flat]))
    assert values[1] < values[0] / 2
    assert values[2] == pytest.approx(values[0], rel=0.1)
    assert values[3] == 0


def test_quarters_of_the_faces_by_sharpness() -> None:
    rng = np.random.default_rng(0)
    stripes = [np.kron(rng.integers(0, 255, (16 // side, 16 // side)), np.ones((side, side))) for side in (8, 4, 2, 1)]
    faces = with_crops(np.array(stripes, np.uint8)[:, :, :, None])
    parts = by_sharpness(answers(faces, [False, True, True, True]))
    assert [(part.n, part.accuracy) for part in parts] == [(1, 0.0), (1, 1.0), (1, 1.0), (1, 1.0)]


def detection(nose: tuple[float, float], left: tuple[float, float], right: tuple[float, float]) -> Detection:
    return Detection((0, 0, 10, 10), 1.0, (left, right, nose, (0, 9), (9, 9)))


@pytest.mark.parametrize(
    ("nose", "right_eye", "expected"),
    [
        ((5, 7), (8, 2), 0.0),
        ((5, 2), (8, 2), 0.0),
        ((8, 7), (8, 2), 1.0),
        ((2, 9), (8, 2), 1.0),
        ((6.5, 0), (8, 2), 0.5),
        ((0.5, 6.5), (8, 8), 0.5),  # tilted by 45 °: half way to the left eye, then at right angles to the eyes
        ((3, 3), (2, 2), np.inf),
    ],
)
def test_turned_is_the_nose_along_the_eyes(
    nose: tuple[float, float], right_eye: tuple[float, float], expected: float
) -> None:
    assert turned(detection(nose, (2, 2), right_eye)) == pytest.approx(expected)


class DetectorByBrightness:
    """The nose is at the right eye for a white crop, between the eyes for a grey one; a black crop has no face."""

    def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
        level = int(rgb_u8.max())
        return [detection((5 + 3 * (level == 255), 7), (2, 2), (8, 2))] if level else []


def test_parts_by_pose() -> None:
    crops = np.zeros((4, 8, 8, 1), np.uint8)
    crops[:2], crops[2] = 255, 100
    parts = by_pose(answers(with_crops(crops), [True, False, True, False]), DetectorByBrightness())
    assert [part.n for part in parts] == [1, 0, 2, 1]
    assert [part.accuracy for part in parts] == pytest.approx([1.0, np.nan, 0.5, 0.0], nan_ok=True)


def test_parts_by_the_annotators_agreement() -> None:
    faces = generated_faces(5)
    votes = np.zeros((5, 10), np.int8)
    votes[0, 0], votes[1, 3], votes[1, 4], votes[2, :4], votes[3, 2], votes[3, 0] = 10, 9, 1, 2, 7, 3
    parts = by_agreement(answers(FaceSet(**{**vars(faces), "votes": votes}), [True, True, False, True, False]))
    assert [(part.kind, part.n) for part in parts] == [
        ("agreed 0 to 50 %", 1),
        ("agreed 50 to 70 %", 0),
        ("agreed 70 to 90 %", 1),
        ("agreed 90 to 100 %", 2),
        ("nobody voted", 1),
    ]
    assert [part.accuracy for part in parts if part.n] == [0.0, 1.0, 1.0, 0.0]
    assert by_agreement(answers(faces, [True] * 5)) == []


def test_parts_by_confidence_say_how_sure_the_classifier_was() -> None:
    parts = by_confidence(answers(generated_faces(4), [False, True, True, True], [0.3, 0.4, 0.5, 0.9]))
    assert [(part.n, part.accuracy) for part in parts if part.n] == [(1, 0.0), (2, 1.0), (1, 1.0)]
    assert [part.confidence for part in parts if part.n] == pytest.approx([0.3, 0.45, 0.9])


def test_parts_by_twin() -> None:
    training = with_crops(np.arange(3, dtype=np.uint8)[:, None, None, None] * np.ones((1, 4, 4, 1), np.uint8))
    crops = np.concatenate([training.crops_u8[:2], np.full((1, 4, 4, 1), 9, np.uint8)])
    faces = FaceSet(crops, np.array([0, 5, 1]), tuple("xyz"), tuple("abcdefg"), ())
    parts = by_twin(answers(faces, [True, False, True]), training)
    assert [(part.n, part.accuracy) for part in parts] == [(1, 1.0), (1, 0.0), (1, 1.0)]


def test_tables_are_markdown_with_a_dash_for_an_empty_part() -> None:
    parts = by_confidence(answers(generated_faces(1), [True], [0.9]))
    assert part_table("confidence", parts).splitlines()[-1] == "| sure 80 to 100 % | 1 | 100.0% | 90.0% |"
    assert part_table("confidence", parts).splitlines()[2] == "| sure 0 to 40 % | 0 | – | – |"
    assert confusion_table([Confusion("a", "b", 3, 0.25)]).splitlines()[-1] == "| a | b | 3 | 25.0% |"
