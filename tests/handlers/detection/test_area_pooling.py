from __future__ import annotations

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch.nn.functional import interpolate

from handlers.detection.area_pooling import AreaPooling, table_size
from tests.pictures import noise


def reference(rgb_u8: NDArray[np.uint8], size: int) -> NDArray[np.float64]:
    """A crop as facenet-pytorch makes it: torch's area interpolation, then centred."""
    image = torch.from_numpy(rgb_u8.copy()).permute(2, 0, 1)[None].double()
    return (interpolate(image, (size, size), mode="area")[0].numpy() - 127.5) / 128


def crops(pooling: AreaPooling, corners: NDArray[np.int64], size: int) -> NDArray[np.float32]:
    out = np.full((len(corners), 3, size, size), np.nan, np.float32)
    pooling.crops_into(corners, out)
    return out


@pytest.mark.parametrize("size", [1, 12, 24, 48])
@pytest.mark.parametrize("seed", range(8))
def test_crops_are_torchs_area_interpolation(seed: int, size: int) -> None:
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(1, 140, 2))
    picture = noise(height, width, seed)
    left, top = rng.integers(0, width, 12), rng.integers(0, height, 12)
    right, bottom = rng.integers(left + 1, width + 1), rng.integers(top + 1, height + 1)
    corners = np.stack([left, top, right, bottom], axis=1)
    corners[0] = 0, 0, width, height
    for crop, (x0, y0, x1, y1) in zip(crops(AreaPooling(picture), corners, size), corners, strict=True):
        np.testing.assert_allclose(crop, reference(picture[y0:y1, x0:x1], size), atol=1e-6)


def test_crop_of_the_same_size_is_the_picture_itself() -> None:
    picture = noise(24, 24)
    (crop,) = crops(AreaPooling(picture), np.array([[0, 0, 24, 24]]), 24)
    np.testing.assert_allclose(crop * 128 + 127.5, picture.transpose(2, 0, 1), atol=1e-4)


def test_no_corners_are_no_crops() -> None:
    assert crops(AreaPooling(noise(9, 9)), np.empty((0, 4), np.int64), 24).shape == (0, 3, 24, 24)


def test_table_is_kept_in_the_buffer_and_nothing_beyond_it_is_touched() -> None:
    picture, corners = noise(13, 17), np.array([[2, 1, 17, 13]])
    size = table_size(13, 17)
    buffer = np.full(size + 5, 7, np.uint32)
    pooling = AreaPooling(picture, buffer)
    assert np.shares_memory(pooling.table, buffer)
    assert (buffer[size:] == 7).all()
    np.testing.assert_array_equal(pooling.table, AreaPooling(picture).table)
    np.testing.assert_array_equal(crops(pooling, corners, 24), crops(AreaPooling(picture), corners, 24))


@pytest.mark.parametrize("view", ["transposed", "mirrored", "every other", "read-only"])
def test_picture_may_lie_in_memory_in_any_way(view: str) -> None:
    picture = noise(30, 40)
    if view == "transposed":
        picture = picture.transpose(1, 0, 2)
    elif view == "mirrored":
        picture = picture[:, ::-1]
    elif view == "every other":
        picture = picture[::2, ::2]
    else:
        picture.flags.writeable = False
    np.testing.assert_array_equal(AreaPooling(picture).table, AreaPooling(picture.copy()).table)


def test_table_that_wraps_around_gives_the_same_means() -> None:
    picture = np.full((4200, 4200, 3), 255, np.uint8)
    picture[-300:, -200:] = noise(300, 200)
    assert int(picture[:, :, 0].sum(dtype=np.uint64)) > 2**32
    pooling = AreaPooling(picture)
    corners = np.array([[4000, 3900, 4200, 4200], [4100, 4150, 4190, 4199], [3990, 3890, 4010, 3910]])
    expected = crops(AreaPooling(picture[3800:, 3900:]), corners - [3900, 3800, 3900, 3800], 24)
    np.testing.assert_array_equal(crops(pooling, corners, 24), expected)
    (whole,) = crops(pooling, np.array([[0, 0, 4200, 4200]]), 42)
    np.testing.assert_allclose(whole[:, :39], (255 - 127.5) / 128, atol=1e-6)
    np.testing.assert_allclose(whole, reference(picture, 42), atol=1e-6)
