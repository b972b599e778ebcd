from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.results import Box, Detection
from training.detector_jitter import jitter_table, measure_jitter
from training.errors import DataError
from training.wild import Portrait


class BrightDetector:
    """Finds the bounding box of what is brighter than half, `right` pixels too far to the right and `scale` too big."""

    def __init__(self, right: float = 0.0, wider_on_small: float = 1.0) -> None:
        self.right, self.wider_on_small = right, wider_on_small

    def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
        rows, columns = np.nonzero(rgb_u8[:, :, 0] > 127)
        if not len(rows):
            return []
        left, top, right, bottom = columns.min(), rows.min(), columns.max() + 1, rows.max() + 1
        grow = (self.wider_on_small - 1) * (right - left) / 2 if rgb_u8.shape[1] < 200 else 0.0
        box: Box = (left - grow + self.right, top - grow, right + grow + self.right, bottom + grow)
        return [Detection(box, 1.0, ())]


def portrait(detector: BrightDetector) -> Portrait:
    picture = np.zeros((200, 200, 3), np.uint8)
    picture[60:140, 50:130] = 255
    (face,) = detector.detect(picture, 20)
    return Portrait("happy/a.png", "happy", picture, face)


def test_detector_that_is_always_right_does_not_jitter() -> None:
    *_, overall = measure_jitter(BrightDetector(), [portrait(BrightDetector())])
    assert (overall.version, overall.n, overall.n_lost) == ("all", 11, 0)
    assert overall.scale == pytest.approx((1, 1, 1), abs=0.03)
    assert overall.shift_x == pytest.approx((0, 0, 0), abs=0.02)
    assert overall.shift_y == pytest.approx((0, 0, 0), abs=0.02)


def test_bias_to_one_side_shows_twice_in_the_mirrored_picture() -> None:
    detector = BrightDetector(right=8)
    jitters = {jitter.version: jitter for jitter in measure_jitter(detector, [portrait(detector)])}
    assert jitters["mirrored"].shift_x[1] == pytest.approx(-2 * 8 / 80)
    assert jitters["shifted"].shift_x == pytest.approx((0, 0, 0), abs=1e-9)
    assert jitters["compressed"].shift_x == pytest.approx((0, 0, 0), abs=0.02)


def test_bigger_boxes_in_small_pictures_show_as_scale() -> None:
    detector = BrightDetector(wider_on_small=1.2)
    jitters = {jitter.version: jitter for jitter in measure_jitter(detector, [portrait(detector)])}
    assert jitters["rescaled"].scale[2] == pytest.approx(1.2, abs=0.03)
    assert jitters["shifted"].scale == pytest.approx((1, 1, 1))


def test_faces_that_are_not_found_again_are_counted() -> None:
    class Fickle(BrightDetector):
        def detect(self, rgb_u8: NDArray[np.uint8], min_face_size_px: int) -> list[Detection]:
            return [] if rgb_u8.shape[1] < 200 else super().detect(rgb_u8, min_face_size_px)

    overall = measure_jitter(Fickle(), [portrait(BrightDetector())])[-1]
    assert (overall.n, overall.n_lost) == (8, 3)
    assert f"| all | {overall.n} | {overall.n_lost} |" in jitter_table([overall])


def test_portraits_without_faces_are_refused() -> None:
    with pytest.raises(DataError, match="no portrait with a face"):
        measure_jitter(BrightDetector(), [Portrait("a", "happy", np.zeros((9, 9, 3), np.uint8), None)])
