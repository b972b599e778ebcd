from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import interpolate

from handlers.detection.area_pooling import AreaPooling
from tests.pictures import noise


def reference(rgb_u8: np.ndarray, height: int, width: int) -> np.ndarray:
    image = torch.from_numpy(rgb_u8.copy()).permute(2, 0, 1)[None].double()
    return interpolate(image, (height, width), mode="area")[0].numpy()


@pytest.mark.parametrize("seed", range(40))
def test_resize_is_torchs_area_interpolation(seed: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 90, 2))
    new_height, new_width = (int(side) for side in rng.integers(1, 140, 2))
    picture = noise(height, width, seed)
    resized = AreaPooling(picture).resize(new_height, new_width)
    assert resized.dtype == np.float32
    assert resized.flags.c_contiguous
    np.testing.assert_allclose(resized, reference(picture, new_height, new_width), atol=1e-4)


@pytest.mark.parametrize("size", [12, 24, 48])
@pytest.mark.parametrize("seed", range(8))
def test_crops_are_torchs_area_interpolation(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    picture = noise(120, 90, seed)
    left, top = rng.integers(0, 89, 30), rng.integers(0, 119, 30)
    right, bottom = rng.integers(left + 1, 91), rng.integers(top + 1, 121)
    corners = np.stack([left, top, right, bottom], axis=1)
    crops = AreaPooling(picture).crops(corners, size)
    assert crops.shape == (30, 3, size, size)
    for crop, (x0, y0, x1, y1) in zip(crops, corners, strict=True):
        np.testing.assert_allclose(crop, reference(picture[y0:y1, x0:x1], size, size), atol=1e-4)


def test_same_size_is_the_picture_itself() -> None:
    picture = noise(17, 23)
    np.testing.assert_array_equal(AreaPooling(picture).resize(17, 23), picture.transpose(2, 0, 1))


def test_no_corners_are_no_crops() -> None:
    assert AreaPooling(noise(9, 9)).crops(np.empty((0, 4), np.int64), 24).shape == (0, 3, 24, 24)


def test_table_that_wraps_around_gives_the_same_means() -> None:
    picture = np.full((4200, 4200, 3), 255, np.uint8)
    picture[-300:, -200:] = noise(300, 200)
    assert int(picture[:, :, 0].sum(dtype=np.uint64)) > 2**32
    pooling = AreaPooling(picture)
    corners = np.array([[4000, 3900, 4200, 4200], [4100, 4150, 4190, 4199], [3990, 3890, 4010, 3910]])
    expected = AreaPooling(picture[3800:, 3900:]).crops(corners - [3900, 3800, 3900, 3800], 24)
    np.testing.assert_array_equal(pooling.crops(corners, 24), expected)
    small = pooling.resize(42, 42)
    assert (small[:, :39] == 255).all()
    np.testing.assert_allclose(small[:, 39:, 40:], reference(picture[-300:, -200:], 3, 2), atol=1e-3)
