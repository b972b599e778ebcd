from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from handlers.preprocess import normalise, preprocess, resize_crop
from model_store.manifest import InputSpec
from tests.pictures import noise


def spec(channels: int = 1, size_px: int = 48, interpolation: str = "bilinear") -> InputSpec:
    values = {1: ((0.51,), (0.26,)), 3: ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))}[channels]
    return InputSpec(size_px=size_px, channels=channels, mean=values[0], std=values[1], interpolation=interpolation)


CROPS = {
    "larger": noise(90, 90),
    "smaller": noise(11, 11),
    "one pixel": noise(1, 1),
    "oblong": noise(20, 130),
    "grey": noise(60, 60)[:, :, 0],
    "grey with a channel": noise(60, 60)[:, :, :1],
    "the size already": noise(48, 48),
    "a view": noise(200, 200)[::2, 10:110],
}


@pytest.mark.parametrize("crop", CROPS.values(), ids=CROPS.keys())
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_resizing_twice_is_resizing_once(crop: np.ndarray, channels: int, interpolation: str) -> None:
    wanted = spec(channels, interpolation=interpolation)
    once = resize_crop(crop, wanted)
    assert once.dtype == np.uint8
    assert once.shape == (48, 48, channels)
    np.testing.assert_array_equal(resize_crop(once, wanted), once)


@pytest.mark.parametrize("size", [48, 31, 100])
def test_replicated_grey_is_the_same_as_grey(size: int) -> None:
    grey = noise(size, size)[:, :, 0]
    from_rgb = resize_crop(np.repeat(grey[:, :, None], 3, axis=2), spec(1))
    np.testing.assert_array_equal(from_rgb, resize_crop(grey, spec(1)))


def test_every_grey_value_survives_replication() -> None:
    values = np.arange(256, dtype=np.uint8).reshape(16, 16)
    rgb = np.repeat(values[:, :, None], 3, axis=2)
    np.testing.assert_array_equal(resize_crop(rgb, spec(1, size_px=16))[:, :, 0], values)


def test_colour_becomes_grey_by_the_luma_of_itu_r_601() -> None:
    rgb = noise(16, 16)
    luma = rgb @ np.array([0.299, 0.587, 0.114])
    np.testing.assert_allclose(resize_crop(rgb, spec(1, size_px=16))[:, :, 0], luma, atol=0.51 + 1e-3)


def test_grey_crop_for_a_colour_model_is_repeated() -> None:
    grey = noise(48, 48)[:, :, 0]
    np.testing.assert_array_equal(resize_crop(grey, spec(3)), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize("interpolation", ["bilinear", "bicubic", "lanczos"])
def test_resampling_is_pillows(interpolation: str) -> None:
    crop = noise(77, 77)
    expected = Image.fromarray(crop).resize((48, 48), getattr(Image.Resampling, interpolation.upper()))
    np.testing.assert_array_equal(resize_crop(crop, spec(3, interpolation=interpolation)), np.asarray(expected))


def test_shrinking_a_checkerboard_gives_grey_not_aliases() -> None:
    board = (np.indices((480, 480)).sum(axis=0) % 2 * 255).astype(np.uint8)
    assert np.ptp(resize_crop(board, spec(1))) <= 4


@pytest.mark.parametrize("channels", [1, 3])
def test_normalise_is_the_formula(channels: int) -> None:
    wanted = spec(channels, size_px=16)
    batch = np.arange(2 * 16 * 16 * channels, dtype=np.int64).astype(np.uint8).reshape(2, 16, 16, channels)
    expected = (batch.astype(np.float64) / 255 - np.array(wanted.mean)) / np.array(wanted.std)
    result = normalise(batch, wanted)
    assert result.dtype == np.float32
    assert result.flags.c_contiguous
    np.testing.assert_allclose(result, expected.transpose(0, 3, 1, 2), atol=1e-6, rtol=0)


@pytest.mark.parametrize("channels", [1, 3])
def test_a_crops_row_does_not_depend_on_its_batch(channels: int) -> None:
    wanted = spec(channels)
    crops = list(CROPS.values())
    together = preprocess(crops, wanted)
    assert together.shape == (len(crops), channels, 48, 48)
    for row, crop in zip(together, crops, strict=True):
        np.testing.assert_array_equal(row, preprocess([crop], wanted)[0])
    np.testing.assert_array_equal(preprocess(crops[::-1], wanted), together[::-1])


def test_no_crops_are_an_empty_batch() -> None:
    assert preprocess([], spec(3)).shape == (0, 3, 48, 48)


def test_input_is_left_as_it_was() -> None:
    crop = noise(48, 48)
    crop.flags.writeable = False
    preprocess([crop, crop], spec(3))
    np.testing.assert_array_equal(crop, noise(48, 48))


@pytest.mark.parametrize(
    "crop",
    [
        noise(9, 9).astype(np.float32),
        noise(9, 9).astype(np.int64),
        noise(9, 9) > 100,
        noise(9, 9)[None],
        noise(9, 9)[0, :, 0],
        noise(9, 9)[:, :, :2],
        np.zeros((9, 9, 4), np.uint8),
        np.zeros((0, 9, 3), np.uint8),
        np.zeros((9, 0), np.uint8),
    ],
    ids=["float", "int64", "bool", "4-d", "1-d", "2 channels", "4 channels", "no rows", "no columns"],
)
def test_wrong_crop_is_refused_with_its_type_or_shape(crop: np.ndarray) -> None:
    with pytest.raises(ValueError, match=r"crop (dtype|shape)"):
        resize_crop(crop, spec())
    with pytest.raises(ValueError, match=r"crop (dtype|shape)"):
        preprocess([noise(9, 9), crop], spec())


@pytest.mark.parametrize("dtype", [np.float32, np.int64])
@pytest.mark.parametrize("channels", [1, 3])
def test_wrong_dtype_is_refused_even_when_the_crop_has_the_size_already(dtype: type, channels: int) -> None:
    with pytest.raises(ValueError, match="crop dtype"):
        preprocess([np.full((48, 48, channels), 0.5, dtype)], spec(channels))


@pytest.mark.parametrize(
    "batch",
    [
        np.zeros((2, 48, 48, 1), np.float32),
        np.zeros((48, 48, 1), np.uint8),
        np.zeros((2, 48, 48, 3), np.uint8),
        np.zeros((2, 1, 48, 48), np.uint8),
    ],
    ids=["float", "no batch", "channels", "channels first"],
)
def test_wrong_batch_is_refused(batch: np.ndarray) -> None:
    with pytest.raises(ValueError, match="expected uint8"):
        normalise(batch, spec())
