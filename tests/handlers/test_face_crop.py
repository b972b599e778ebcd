from __future__ import annotations

import numpy as np
import pytest

from handlers.face_crop import crop_square_px, cut_face
from handlers.results import Box
from model_store.manifest import FaceCropSpec
from tests.pictures import noise


def geometry(scale: float = 1.0, shift_x: float = 0.0, shift_y: float = 0.0) -> FaceCropSpec:
    return FaceCropSpec(scale=scale, shift_x=shift_x, shift_y=shift_y, alignment="none")


@pytest.mark.parametrize(
    ("box", "spec", "square"),
    [
        ((10, 20, 30, 40), geometry(), (10, 20, 20)),
        ((10, 20, 30, 60), geometry(), (0, 20, 40)),
        ((10, 20, 50, 40), geometry(), (10, 10, 40)),
        ((10, 20, 30, 40), geometry(scale=2), (0, 10, 40)),
        ((10, 20, 30, 40), geometry(scale=0.5), (15, 25, 10)),
        ((10, 20, 30, 40), geometry(shift_x=0.5), (20, 20, 20)),
        ((10, 20, 30, 40), geometry(shift_y=-0.25), (10, 15, 20)),
        ((10, 20, 30, 60), geometry(shift_x=0.25, shift_y=0.25), (10, 30, 40)),
        ((-10, -20, 10, 0), geometry(), (-10, -20, 20)),
        ((5.0, 5.0, 5.1, 5.1), geometry(), (5, 5, 1)),
    ],
)
def test_square_follows_the_manifests_geometry(box: Box, spec: FaceCropSpec, square: tuple[int, int, int]) -> None:
    assert crop_square_px(box, spec) == square


def test_square_inside_is_the_pictures_own_pixels() -> None:
    picture = noise(50, 60)
    np.testing.assert_array_equal(cut_face(picture, (10, 20, 30, 40), geometry()), picture[20:40, 10:30])


@pytest.mark.parametrize(
    "box",
    [(-7, 10, 13, 30), (50, 10, 70, 30), (10, -9, 30, 11), (10, 45, 30, 65), (-30, -30, 90, 90), (-50, -50, -30, -30),
     (200, 10, 220, 30), (40, 30, 60, 50)],
)  # fmt: skip
def test_what_lies_outside_repeats_the_edge(box: Box) -> None:
    picture = noise(50, 60)
    left, top, side = crop_square_px(box, geometry())
    padded = np.pad(picture, ((300, 300), (300, 300), (0, 0)), mode="edge")
    expected = padded[top + 300 : top + 300 + side, left + 300 : left + 300 + side]
    np.testing.assert_array_equal(cut_face(picture, box, geometry()), expected)


@pytest.mark.parametrize("seed", range(20))
def test_crop_is_always_a_whole_square(seed: int) -> None:
    rng = np.random.default_rng(seed)
    picture = noise(*(int(side) for side in rng.integers(1, 40, 2)))
    left, top = rng.uniform(-60, 60, 2)
    width, height = rng.uniform(0.01, 80, 2)
    spec = geometry(rng.uniform(0.3, 3), rng.uniform(-0.9, 0.9), rng.uniform(-0.9, 0.9))
    box = (float(left), float(top), float(left + width), float(top + height))
    crop = cut_face(picture, box, spec)
    assert crop.dtype == np.uint8
    assert crop.shape == (crop_square_px(box, spec)[2],) * 2 + (3,)
