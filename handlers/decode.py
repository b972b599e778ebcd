"""Image bytes → RGB pixels, with every limit checked before the pixels are decoded."""

from __future__ import annotations

import io
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import ExifTags, Image, UnidentifiedImageError

from handlers.errors import (
    CorruptImageError,
    EmptyImageError,
    HandlerError,
    TooLargeError,
    UnsupportedFormatError,
)

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "GIF", "TIFF")
_TRANSPARENT_BACKGROUND = (255, 255, 255)
_UPRIGHT_BY_ORIENTATION = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


@dataclass(frozen=True)
class DecodeLimits:
    """What a picture may cost. All limits are inclusive.

    Pillow's own pixel limit (89 million to warn, twice that to refuse) stays switched on behind these.
    """

    max_bytes: int = 20 * 1024 * 1024
    max_pixels: int = 50_000_000
    max_side_px: int = 16_384


def decode_image(data: bytes, limits: DecodeLimits | None = None) -> NDArray[np.uint8]:
    """Decode one picture.

    data: the bytes of a JPEG, PNG, WebP, BMP, GIF (first frame) or TIFF (first page) file.
    Returns uint8 (H, W, 3) in RGB order, upright: the EXIF orientation is applied. 16-bit grey keeps its upper
    eight bits, CMYK is converted, transparent pixels are laid over white.
    Raises EmptyImageError, TooLargeError, UnsupportedFormatError or CorruptImageError.
    """
    limits = limits or DecodeLimits()
    if not data:
        raise EmptyImageError("the image has no bytes")
    if len(data) > limits.max_bytes:
        raise TooLargeError(f"{len(data)} bytes, the limit is {limits.max_bytes}")
    try:
        with Image.open(io.BytesIO(data), formats=FORMATS) as image:
            _check_size(image.size, limits)
            return _to_upright_rgb(image)
    except HandlerError:
        raise
    except (Image.DecompressionBombError, Image.DecompressionBombWarning):
        raise TooLargeError(f"more pixels than the limit of {limits.max_pixels}") from None
    except UnidentifiedImageError:
        if _has_known_signature(data):
            raise CorruptImageError("the header of the image is broken") from None
        raise UnsupportedFormatError(f"not an image in one of the formats {', '.join(FORMATS)}") from None
    except MemoryError:
        raise TooLargeError("the image does not fit in memory") from None
    except Exception as error:  # Pillow's plugins raise a dozen unrelated types on bad data
        raise CorruptImageError(f"the image cannot be decoded ({type(error).__name__})") from error


def _check_size(size: tuple[int, int], limits: DecodeLimits) -> None:
    width, height = size
    if width < 1 or height < 1:
        raise CorruptImageError(f"the image is {width}×{height} pixels")
    if width * height > limits.max_pixels:
        raise TooLargeError(f"{width}×{height} pixels, the limit is {limits.max_pixels} in all")
    if max(width, height) > limits.max_side_px:
        raise TooLargeError(f"{width}×{height} pixels, the limit is {limits.max_side_px} a side")


def _to_upright_rgb(image: Image.Image) -> NDArray[np.uint8]:
    image.load()
    image = _upright(image)
    if image.mode.startswith("I;16"):
        grey_u16 = np.asarray(image, np.uint16)
        grey = (grey_u16 >> 8).astype(np.uint8)
        if isinstance(transparent := image.info.get("transparency"), int):
            grey[grey_u16 == transparent] = _TRANSPARENT_BACKGROUND[0]
        return np.repeat(grey[:, :, np.newaxis], 3, axis=2)
    if image.mode in ("I", "F"):
        raise UnsupportedFormatError("32-bit integer and floating-point pixels have no defined range")
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        canvas = Image.new("RGBA", rgba.size, (*_TRANSPARENT_BACKGROUND, 255))
        image = Image.alpha_composite(canvas, rgba)
    return np.array(image.convert("RGB"))


def _upright(image: Image.Image) -> Image.Image:
    # Not ImageOps.exif_transpose: it writes the EXIF back, and fails when any other tag cannot be written. Pillow's
    # TIFF plugin has applied and dropped the orientation by now.
    try:
        method = _UPRIGHT_BY_ORIENTATION.get(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # broken EXIF says nothing about the pixels, which decoded well
        return image
    return image if method is None else image.transpose(method)


def _has_known_signature(data: bytes) -> bool:
    starts = (b"\xff\xd8\xff", b"\x89PNG\r\n\x1a\n", b"BM", b"GIF87a", b"GIF89a", b"II*\x00", b"MM\x00*")
    return data.startswith(starts) or (data[:4] == b"RIFF" and data[8:12] == b"WEBP")
