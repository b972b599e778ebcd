from __future__ import annotations

import io
import struct
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from PIL import Image

from handlers.decode import DecodeLimits, decode_image
from handlers.errors import HandlerError, TooLargeError
from tests.handlers.odd_pictures import (
    LYING,
    ODD_PICTURES,
    READABLE,
    OddPicture,
    animated,
    exif,
    orientation_exif,
    oriented,
    photo,
    png,
)
from tests.pictures import encoded, noise


@pytest.mark.filterwarnings("ignore::UserWarning")  # Pillow's, on broken TIFF directories
@pytest.mark.parametrize("picture", ODD_PICTURES.values(), ids=ODD_PICTURES.keys())
def test_every_odd_picture_decodes_to_rgb_or_has_its_code(picture: OddPicture) -> None:
    if isinstance(picture.answer, str):
        with pytest.raises(HandlerError) as caught:
            decode_image(picture.make(), picture.limits)
        detail = caught.value.detail
        assert caught.value.code == picture.answer
        assert 0 < len(detail) < 150
        assert not any(text in detail for text in ("\n", "Traceback", "/work", "site-packages", "0x", "<_io"))
    else:
        pixels = decode_image(picture.make(), picture.limits)
        assert pixels.dtype == np.uint8
        assert pixels.shape == (picture.answer[1], picture.answer[0], 3)
        assert pixels.flags.c_contiguous
        assert pixels.flags.writeable


@pytest.mark.parametrize("options", [("PNG", {}), ("BMP", {}), ("TIFF", {}), ("TIFF", {"compression": "tiff_lzw"}),
                                     ("WEBP", {"lossless": True})], ids=str)  # fmt: skip
def test_lossless_formats_give_the_exact_pixels(options: tuple[str, dict[str, object]]) -> None:
    pixels = noise(33, 47)
    np.testing.assert_array_equal(decode_image(encoded(pixels, options[0], **options[1])), pixels)


@pytest.mark.parametrize("format", ["JPEG", "WEBP"])
@pytest.mark.parametrize("progressive", [False, True])
def test_lossy_formats_come_close(format: str, progressive: bool) -> None:
    rows, columns = np.mgrid[0:64, 0:96]
    smooth = np.stack([rows * 3, columns * 2, rows + columns], axis=2).astype(np.uint8)
    decoded = decode_image(encoded(smooth, format, quality=95, progressive=progressive))
    assert np.abs(decoded.astype(int) - smooth).mean() < 3


@pytest.mark.parametrize("format", ["PNG", "WEBP", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_gives_the_same_upright_pixels(format: str, orientation: int) -> None:
    upright = noise(13, 21)
    options = {"lossless": True} if format == "WEBP" else {}
    data = encoded(oriented(upright, orientation), format, exif=orientation_exif(orientation), **options)
    np.testing.assert_array_equal(decode_image(data), upright)


@pytest.mark.parametrize("orientation", range(1, 9))
def test_every_exif_orientation_of_a_jpeg_comes_close(orientation: int) -> None:
    rows, columns = np.mgrid[0:48, 0:80]
    upright = np.stack([rows * 5, columns * 3, rows + columns], axis=2).astype(np.uint8)
    data = encoded(oriented(upright, orientation), "JPEG", quality=95, exif=orientation_exif(orientation))
    assert np.abs(decode_image(data).astype(int) - upright).mean() < 3


@pytest.mark.parametrize("format", ["PNG", "TIFF"])
@pytest.mark.parametrize("orientation", range(1, 9))
def test_16_bit_grey_keeps_its_upper_eight_bits_and_is_made_upright(format: str, orientation: int) -> None:
    upright = np.random.default_rng(1).integers(0, 65536, (9, 14), dtype=np.uint16)
    data = encoded(oriented(upright, orientation), format, exif=orientation_exif(orientation))
    np.testing.assert_array_equal(decode_image(data), np.repeat((upright >> 8)[:, :, None], 3, axis=2))


def test_16_bit_big_endian_tiff_keeps_its_upper_eight_bits() -> None:
    values = np.array([[0, 255, 256], [0x1234, 0x8000, 0xFFFF]], ">u2")
    image = Image.frombytes("I;16B", (3, 2), values.tobytes())
    assert decode_image(encoded(image, "TIFF"))[:, :, 1].tolist() == [[0, 0, 1], [0x12, 0x80, 0xFF]]


def test_16_bit_rgb_keeps_its_upper_eight_bits() -> None:
    samples = [0x0001, 0x1234, 0xFFFF, 0x8000, 0x00FF, 0x0100]
    data = png(2, 1, b"\0" + struct.pack(">6H", *samples), bits=16, colour=2)
    assert decode_image(data).tolist() == [[[0x00, 0x12, 0xFF], [0x80, 0x00, 0x01]]]


@pytest.mark.parametrize(
    "tag",
    [(0x0100, 2, 3, b"ab\0\0"), (0x011A, 2, 4, b"72/1"), (0x0103, 11, 1, struct.pack("<f", float("nan")))],
    ids=["width as text", "resolution as text", "compression NaN"],
)
def test_orientation_holds_though_another_tag_is_malformed(tag: tuple[int, int, int, bytes]) -> None:
    pixels = noise(10, 20)
    data = encoded(pixels, "PNG", exif=exif(LYING, tag))
    np.testing.assert_array_equal(decode_image(data), np.rot90(pixels, -1))


@pytest.mark.parametrize(
    "block", [b"Exif\0\0garbage", b"Exif\0\0II*\0\xff\xff\xff\xff", exif((0x0112, 2, 2, b"6\0\0\0"))]
)
def test_broken_exif_leaves_the_pixels_as_stored(block: bytes) -> None:
    pixels = noise(10, 20)
    np.testing.assert_array_equal(decode_image(encoded(pixels, "PNG", exif=block)), pixels)


WHITE = [255, 255, 255]
TRANSPARENT: dict[str, tuple[bytes, list[list[int]]]] = {
    "RGBA": (
        encoded(np.array([[[9, 8, 7, 0], [200, 100, 0, 255], [0, 0, 0, 128]]], np.uint8)),
        [WHITE, [200, 100, 0], [127, 127, 127]],
    ),
    "grey alpha": (png(2, 1, bytes([0, 50, 0, 60, 255]), colour=4), [WHITE, [60, 60, 60]]),
    "palette alpha": (
        png(2, 1, b"\0\0\1", colour=3, chunks=[(b"PLTE", bytes(range(6))), (b"tRNS", b"\0\xff")]),
        [WHITE, [3, 4, 5]],
    ),
    "grey key": (png(2, 1, b"\0\x40\x41", chunks=[(b"tRNS", b"\0\x40")]), [WHITE, [0x41] * 3]),
    "RGB key": (png(2, 1, b"\0abcdef", colour=2, chunks=[(b"tRNS", b"\0a\0b\0c")]), [WHITE, [100, 101, 102]]),
    "1-bit key": (png(2, 1, b"\0\x40", bits=1, chunks=[(b"tRNS", b"\0\1")]), [[0, 0, 0], WHITE]),
    "16-bit grey key": (
        png(2, 1, b"\0\x40\x00\x40\x01", bits=16, chunks=[(b"tRNS", b"\x40\x00")]),
        [WHITE, [0x40] * 3],
    ),
    "16-bit grey alpha": (
        png(2, 1, b"\0\x40\x00\0\0\x40\x00\xff\xff", bits=16, colour=4),
        [WHITE, [0x40] * 3],
    ),
    "WebP": (
        encoded(np.array([[[9, 8, 7, 0], [200, 100, 0, 255]]], np.uint8), "WEBP", lossless=True),
        [WHITE, [200, 100, 0]],
    ),
    "TIFF": (encoded(np.array([[[9, 8, 7, 0], [200, 100, 0, 255]]], np.uint8), "TIFF"), [WHITE, [200, 100, 0]]),
}


@pytest.mark.parametrize(("data", "row"), TRANSPARENT.values(), ids=TRANSPARENT.keys())
def test_transparency_is_laid_over_white(data: bytes, row: list[list[int]]) -> None:
    np.testing.assert_allclose(decode_image(data)[0].astype(int), row, atol=1)


def test_transparent_gif_is_laid_over_white() -> None:
    image = Image.new("P", (4, 1))
    image.putpalette([10, 20, 30, 40, 50, 60])
    image.putdata([0, 1, 0, 1])
    assert decode_image(encoded(image, "GIF", transparency=0))[0].tolist() == [WHITE, [40, 50, 60]] * 2


@pytest.mark.parametrize("format", ["JPEG", "TIFF"])
@pytest.mark.parametrize(
    ("ink", "colour"),
    [
        ((0, 0, 0, 0), WHITE),
        ((0, 255, 255, 0), [255, 0, 0]),
        ((255, 0, 0, 0), [0, 255, 255]),
        ((0, 0, 0, 255), [0] * 3),
    ],
)
def test_cmyk_gets_about_the_right_colours(format: str, ink: tuple[int, ...], colour: list[int]) -> None:
    pixels = decode_image(encoded(Image.new("CMYK", (16, 16), ink), format))
    assert np.abs(pixels.astype(int) - colour).max() <= 4


@pytest.mark.parametrize("format", ["GIF", "PNG", "WEBP", "TIFF", "MPO"])
def test_first_frame_is_the_picture(format: str) -> None:
    pixels = decode_image(animated(format)).astype(int)
    assert np.abs(pixels - [255, 0, 0]).max() <= 3


def test_grey_is_repeated_in_all_channels() -> None:
    grey = noise(7, 9)[:, :, 0]
    np.testing.assert_array_equal(decode_image(encoded(grey)), np.repeat(grey[:, :, None], 3, axis=2))


@pytest.mark.parametrize(
    "limits", [DecodeLimits(max_bytes=10), DecodeLimits(max_pixels=4799), DecodeLimits(max_side_px=79)], ids=str
)
def test_each_limit_alone_refuses_a_picture_that_the_defaults_take(limits: DecodeLimits) -> None:
    data = encoded(photo(80, 60))
    assert decode_image(data).shape == (60, 80, 3)
    with pytest.raises(TooLargeError):
        decode_image(data, limits)


def test_limits_are_inclusive() -> None:
    data = encoded(photo(80, 60))
    assert decode_image(data, DecodeLimits(len(data), 4800, 80)).shape == (60, 80, 3)


def test_too_many_pixels_are_refused_before_they_are_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    from PIL import ImageFile

    def load(self: ImageFile.ImageFile) -> None:
        raise AssertionError("pixels were decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(TooLargeError):
        decode_image(ODD_PICTURES["PNG bomb"].make())


def test_pillows_own_pixel_limit_stays_on() -> None:
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    decode_image(encoded(photo()))
    assert Image.MAX_IMAGE_PIXELS == 89_478_485
    with pytest.raises(Image.DecompressionBombError):
        Image.open(io.BytesIO(ODD_PICTURES["PNG of 20,000×20,000"].make()))


def test_threads_decode_what_one_thread_decodes() -> None:
    names = [name for name in READABLE if "16,384" not in name and "20 MB" not in name]
    files = [READABLE[name].make() for name in names]
    alone = [decode_image(data) for data in files]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(decode_image, files * 3))
    for index, pixels in enumerate(together):
        np.testing.assert_array_equal(pixels, alone[index % len(files)])
