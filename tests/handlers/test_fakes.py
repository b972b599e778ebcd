from __future__ import annotations

import numpy as np
import pytest

from handlers.fakes import FAKE_LABELS, FakeClassifier, FakeDetector
from tests.pictures import noise


def test_detector_finds_one_face_in_the_middle() -> None:
    (face,) = FakeDetector().detect(noise(100, 160), 20)
    assert face.box_px == (55, 25, 105, 75)
    assert len(face.landmarks_px) == 5
    assert all(55 < x < 105 and 25 < y < 75 for x, y in face.landmarks_px)


@pytest.mark.parametrize(
    ("pixels", "smallest"),
    [(np.full((100, 100, 3), 7, np.uint8), 20), (noise(38, 38), 20), (noise(100, 100), 51), (noise(1, 1), 12)],
    ids=["one colour", "too small", "asked for larger", "one pixel"],
)
def test_detector_finds_none(pixels: np.ndarray, smallest: int) -> None:
    assert FakeDetector().detect(pixels, smallest) == []


def test_classifier_is_a_function_of_the_pixels() -> None:
    crops = [noise(48, 48, seed=seed)[:, :, :1] for seed in range(6)]
    rows = FakeClassifier().classify(crops)
    assert rows.shape == (6, len(FAKE_LABELS))
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows.sum(axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(FakeClassifier().classify(crops[::-1]), rows[::-1])
    assert len({row.tobytes() for row in rows}) == 6


def test_classifier_of_nothing() -> None:
    assert FakeClassifier().classify([]).shape == (0, 7)
