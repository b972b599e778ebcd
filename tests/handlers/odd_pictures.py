"""Every malformed or unusual input that we know of, with the one right answer: an error code, or width and height."""

from __future__ import annotations

import gzip
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from handlers.decode import DecodeLimits
from tests.pictures import encoded, noise

Size = tuple[int, int]


@dataclass(frozen=True)
class OddPicture:
    """`answer` is the expected error code, or the expected (width, height)."""

    make: Callable[[], bytes]
    answer: str | Size
    limits: DecodeLimits = field(default_factory=DecodeLimits)


def png(
    width: int,
    height: int,
    rows: bytes,
    *,
    bits: int = 8,
    colour: int = 0,
    chunks: Sequence[tuple[bytes, bytes]] = (),
) -> bytes:
    """A PNG put together by hand. rows: unpacked scanlines, each with its filter byte; chunks: ancillary ones."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    return b"".join(
        [
            b"\x89PNG\r\n\x1a\n",
            chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, bits, colour, 0, 0, 0)),
            *(chunk(kind, data) for kind, data in chunks),
            chunk(b"IDAT", zlib.compress(rows, 9)),
            chunk(b"IEND", b""),
        ]
    )


def exif(*entries: tuple[int, int, int, bytes]) -> bytes:
    """A little-endian EXIF block of (tag, type, count, four bytes of value) entries."""
    packed = b"".join(struct.pack("<HHI", tag, kind, count) + value for tag, kind, count, value in sorted(entries))
    return b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(entries)) + packed + struct.pack("<I", 0)


LYING = (0x0112, 3, 1, b"\x06\0\0\0")
"""The EXIF entry that says: turn me by 90° clockwise."""


def oriented(pixels: np.ndarray, orientation: int) -> np.ndarray:
    """What a camera stores when the upright picture is `pixels` and it writes `orientation` (EXIF 2.3, 4.6.4)."""
    stored = {
        1: pixels,
        2: pixels[:, ::-1],
        3: pixels[::-1, ::-1],
        4: pixels[::-1],
        5: pixels.swapaxes(0, 1),
        6: np.rot90(pixels, 1),
        7: pixels[::-1, ::-1].swapaxes(0, 1),
        8: np.rot90(pixels, -1),
    }[orientation]
    return np.ascontiguousarray(stored)


def orientation_exif(orientation: int) -> Image.Exif:
    tags = Image.Exif()
    tags[0x0112] = orientation
    return tags


def frames() -> list[Image.Image]:
    """Red, blue, green, 24×16."""
    return [Image.new("RGB", (24, 16), colour) for colour in ("red", "blue", "green")]


def animated(format: str) -> bytes:
    first, *rest = frames()
    return encoded(first, format, save_all=True, append_images=rest)


def zipped() -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("picture.png", b"\0" * 20_000_000)
    return buffer.getvalue()


def webp_header(width: int, height: int) -> bytes:
    """A lossless WebP that declares a size and holds no pixels."""
    data = b"\x2f" + struct.pack("<I", (width - 1) | (height - 1) << 14) + b"\0" * 21
    return b"RIFF" + struct.pack("<I", len(data) + 12) + b"WEBPVP8L" + struct.pack("<I", len(data)) + data


def gif_header(screen: Size, frame: Size) -> bytes:
    return (
        b"GIF89a"
        + struct.pack("<HHBBB", *screen, 0, 0, 0)
        + b","
        + struct.pack("<HHHHB", 0, 0, *frame, 0)
        + b"\x02\x02\x44\x01\x00;"
    )


def bmp_header(width: int, height: int) -> bytes:
    information = struct.pack("<IiiHHIIiiII", 40, width, height, 1, 24, 0, 0, 0, 0, 0, 0)
    return b"BM" + struct.pack("<IHHI", 54, 0, 0, 54) + information


def photo(width: int = 80, height: int = 60) -> Image.Image:
    return Image.fromarray(noise(height, width))


def grey_16(format: str) -> bytes:
    return encoded(np.arange(80 * 60, dtype=np.uint16).reshape(60, 80) * 13, format)


def file(mode: str, format: str, **options: object) -> Callable[[], bytes]:
    return lambda: encoded(photo().convert(mode), format, **options)


def cut(mode: str, format: str, part: float | int, **options: object) -> Callable[[], bytes]:
    """A file's first bytes: a share of them, or all but a negative number."""

    def make() -> bytes:
        whole = encoded(photo().convert(mode), format, **options)
        return whole[: round(len(whole) * part) if isinstance(part, float) else part]

    return make


def with_byte_flipped(find: bytes, offset: int) -> bytes:
    data = bytearray(encoded(photo()))
    data[data.index(find) + offset] ^= 1
    return bytes(data)


def raw(data: bytes) -> Callable[[], bytes]:
    return lambda: data


WHOLE = (80, 60)
SMALL = DecodeLimits(max_bytes=30_000, max_pixels=40_000, max_side_px=300)
"""Limits that the good neighbours of a batch keep."""

READABLE: dict[str, OddPicture] = {
    "JPEG": OddPicture(file("RGB", "JPEG"), WHOLE),
    "JPEG progressive": OddPicture(file("RGB", "JPEG", progressive=True), WHOLE),
    "JPEG grey": OddPicture(file("L", "JPEG"), WHOLE),
    "JPEG CMYK": OddPicture(file("CMYK", "JPEG"), WHOLE),
    "JPEG 4:4:4": OddPicture(file("RGB", "JPEG", subsampling=0), WHOLE),
    "JPEG with two pictures (MPO)": OddPicture(lambda: animated("MPO"), (24, 16)),
    "JPEG with bytes after its end": OddPicture(lambda: encoded(photo(), "JPEG") + b"PK\3\4trailing", WHOLE),
    "PNG": OddPicture(file("RGB", "PNG"), WHOLE),
    "PNG 1-bit": OddPicture(file("1", "PNG"), WHOLE),
    "PNG grey": OddPicture(file("L", "PNG"), WHOLE),
    "PNG grey alpha": OddPicture(file("LA", "PNG"), WHOLE),
    "PNG RGBA": OddPicture(file("RGBA", "PNG"), WHOLE),
    "PNG palette": OddPicture(file("P", "PNG"), WHOLE),
    "PNG palette with alpha": OddPicture(file("P", "PNG", transparency=bytes(range(256))), WHOLE),
    "PNG palette index without colour": OddPicture(
        lambda: png(3, 1, b"\0\0\1\2", colour=3, chunks=[(b"PLTE", b"abcdef")]), (3, 1)
    ),
    "PNG 16-bit grey": OddPicture(lambda: grey_16("PNG"), WHOLE),
    "PNG 16-bit RGB": OddPicture(lambda: png(2, 1, b"\0" + bytes(range(12)), bits=16, colour=2), (2, 1)),
    "PNG animated": OddPicture(lambda: animated("PNG"), (24, 16)),
    "PNG without its last four bytes": OddPicture(cut("RGB", "PNG", -4), WHOLE),
    "PNG with a ZIP behind it": OddPicture(lambda: encoded(photo()) + zipped(), WHOLE),
    "PNG with 20 MB behind its last row": OddPicture(lambda: png(2, 1, b"\0ab" + b"\0" * 20_000_000), (2, 1)),
    "PNG whose last CRC alone is wrong": OddPicture(lambda: with_byte_flipped(b"IEND", -5), WHOLE),
    "WebP lossy": OddPicture(file("RGB", "WEBP"), WHOLE),
    "WebP lossless": OddPicture(file("RGB", "WEBP", lossless=True), WHOLE),
    "WebP with alpha": OddPicture(file("RGBA", "WEBP"), WHOLE),
    "WebP animated": OddPicture(lambda: animated("WEBP"), (24, 16)),
    "BMP": OddPicture(file("RGB", "BMP"), WHOLE),
    "BMP palette": OddPicture(file("P", "BMP"), WHOLE),
    "BMP 1-bit": OddPicture(file("1", "BMP"), WHOLE),
    "BMP upside down": OddPicture(lambda: bmp_header(4, -2) + bytes(range(24)), (4, 2)),
    "GIF": OddPicture(file("P", "GIF"), WHOLE),
    "GIF transparent": OddPicture(file("P", "GIF", transparency=0), WHOLE),
    "GIF animated": OddPicture(lambda: animated("GIF"), (24, 16)),
    "TIFF": OddPicture(file("RGB", "TIFF"), WHOLE),
    "TIFF LZW": OddPicture(file("RGB", "TIFF", compression="tiff_lzw"), WHOLE),
    "TIFF JPEG": OddPicture(file("RGB", "TIFF", compression="jpeg"), WHOLE),
    "TIFF 1-bit fax": OddPicture(file("1", "TIFF", compression="group4"), WHOLE),
    "TIFF CMYK": OddPicture(file("CMYK", "TIFF"), WHOLE),
    "TIFF YCbCr": OddPicture(file("YCbCr", "TIFF"), WHOLE),
    "TIFF RGBA": OddPicture(file("RGBA", "TIFF"), WHOLE),
    "TIFF 16-bit grey": OddPicture(lambda: grey_16("TIFF"), WHOLE),
    "TIFF of three pages": OddPicture(lambda: animated("TIFF"), (24, 16)),
    **{
        f"EXIF orientation {orientation}": OddPicture(
            lambda orientation=orientation: encoded(
                oriented(noise(60, 80), orientation), "JPEG", exif=orientation_exif(orientation)
            ),
            WHOLE,
        )
        for orientation in range(1, 9)
    },
    "EXIF orientation 0": OddPicture(file("RGB", "JPEG", exif=orientation_exif(0)), WHOLE),
    "EXIF orientation 9": OddPicture(file("RGB", "JPEG", exif=orientation_exif(9)), WHOLE),
    "EXIF garbage": OddPicture(file("RGB", "JPEG", exif=b"Exif\0\0garbage"), WHOLE),
    "EXIF offset outside": OddPicture(file("RGB", "JPEG", exif=b"Exif\0\0II*\0\xff\xff\xff\xff"), WHOLE),
    "EXIF width as text": OddPicture(file("RGB", "JPEG", exif=exif(LYING, (0x0100, 2, 3, b"ab\0\0"))), (60, 80)),
    "EXIF NaN": OddPicture(file("RGB", "JPEG", exif=exif(LYING, (0x0103, 11, 1, b"\0\0\xc0\x7f"))), (60, 80)),
    "EXIF loop": OddPicture(file("RGB", "JPEG", exif=exif(LYING, (0x8769, 4, 1, b"\x08\0\0\0"))), (60, 80)),
    "1×1": OddPicture(lambda: encoded(photo(1, 1)), (1, 1)),
    "1×1 JPEG": OddPicture(lambda: encoded(photo(1, 1), "JPEG"), (1, 1)),
    "2×300": OddPicture(lambda: encoded(photo(2, 300)), (2, 300)),
    "3×5000": OddPicture(lambda: encoded(photo(3, 5000)), (3, 5000)),
    "5000×3": OddPicture(lambda: encoded(photo(5000, 3)), (5000, 3)),
    "11×11": OddPicture(lambda: encoded(photo(11, 11)), (11, 11)),
    "longest side allowed": OddPicture(lambda: encoded(photo(16_384, 1)), (16_384, 1)),
    "as many pixels as allowed": OddPicture(lambda: encoded(Image.new("L", (200, 200))), (200, 200), SMALL),
    "as long as allowed": OddPicture(lambda: encoded(photo(300, 20)), (300, 20), SMALL),
    "as many bytes as allowed": OddPicture(
        lambda: encoded(photo(), "JPEG").ljust(SMALL.max_bytes, b"\0"), WHOLE, SMALL
    ),
}  # fmt: skip

REFUSED: dict[str, OddPicture] = {
    "empty": OddPicture(raw(b""), "empty_image"),
    "one byte": OddPicture(raw(b"\xff"), "unsupported_format"),
    "zeros": OddPicture(raw(b"\0" * 5000), "unsupported_format"),
    "random bytes": OddPicture(lambda: noise(10, 10).tobytes(), "unsupported_format"),
    "text": OddPicture(raw(b"This is not an image.\n"), "unsupported_format"),
    "HTML": OddPicture(raw(b"<!doctype html><html><body>404</body></html>"), "unsupported_format"),
    "SVG": OddPicture(raw(b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"/>'), "unsupported_format"),
    "JSON": OddPicture(raw(b'{"image": "aGVsbG8="}'), "unsupported_format"),
    "data URL": OddPicture(raw(b"data:image/png;base64,iVBORw0KGgo="), "unsupported_format"),
    "PDF": OddPicture(file("RGB", "PDF"), "unsupported_format"),
    "EPS": OddPicture(file("RGB", "EPS"), "unsupported_format"),
    "ICO": OddPicture(file("RGB", "ICO"), "unsupported_format"),
    "PPM": OddPicture(file("RGB", "PPM"), "unsupported_format"),
    "TGA": OddPicture(file("RGB", "TGA"), "unsupported_format"),
    "AVIF": OddPicture(
        raw(b"\0\0\0\x20ftypavif\0\0\0\0avifmif1miafMA1B\0\0\0\xf2meta" + b"\0" * 200), "unsupported_format"
    ),
    "HEIC": OddPicture(raw(b"\0\0\0\x18ftypheic\0\0\0\0mif1heic" + b"\0" * 200), "unsupported_format"),
    "JPEG XL": OddPicture(raw(b"\0\0\0\x0cJXL \r\n\x87\n" + b"\0" * 200), "unsupported_format"),
    "JPEG 2000": OddPicture(raw(b"\0\0\0\x0cjP  \r\n\x87\n" + b"\0" * 200), "unsupported_format"),
    "ZIP bomb": OddPicture(zipped, "unsupported_format"),
    "gzip bomb": OddPicture(lambda: gzip.compress(b"\0" * 20_000_000), "unsupported_format"),
    "gzipped PNG": OddPicture(lambda: gzip.compress(encoded(photo())), "unsupported_format"),
    "RIFF that is sound": OddPicture(raw(b"RIFF\x24\0\0\0WAVEfmt " + b"\0" * 40), "unsupported_format"),
    "wrong magic": OddPicture(lambda: b"\x88" + encoded(photo())[1:], "unsupported_format"),
    "JPEG behind a byte": OddPicture(lambda: b"\0" + encoded(photo(), "JPEG"), "unsupported_format"),
    "JPEG magic alone": OddPicture(raw(b"\xff\xd8\xff"), "corrupt_image"),
    "JPEG magic and text": OddPicture(raw(b"\xff\xd8\xff\xe0 and then some text"), "corrupt_image"),
    **{
        f"JPEG cut at {part}": OddPicture(cut("RGB", "JPEG", part), "corrupt_image")
        for part in (0.002, 0.02, 0.1, 0.25, 0.5, 0.9, -2)
    },
    **{
        f"JPEG progressive cut at {part}": OddPicture(cut("RGB", "JPEG", part, progressive=True), "corrupt_image")
        for part in (0.1, 0.5, 0.9)
    },
    "PNG magic alone": OddPicture(raw(b"\x89PNG\r\n\x1a\n"), "corrupt_image"),
    **{
        f"PNG cut at {part}": OddPicture(cut("RGB", "PNG", part), "corrupt_image")
        for part in (0.001, 0.002, 0.01, 0.25, 0.5, 0.9)
    },
    "PNG header with a wrong CRC": OddPicture(lambda: with_byte_flipped(b"IHDR", 17), "corrupt_image"),
    "PNG pixels with a wrong checksum": OddPicture(lambda: with_byte_flipped(b"IEND", -9), "corrupt_image"),
    "PNG pixels altered": OddPicture(lambda: with_byte_flipped(b"IDAT", 200), "corrupt_image"),
    "PNG of no width": OddPicture(lambda: png(0, 5, b""), "corrupt_image"),
    "PNG of no height": OddPicture(lambda: png(5, 0, b""), "corrupt_image"),
    "PNG of 7 bits": OddPicture(lambda: png(5, 5, b"", bits=7), "corrupt_image"),
    "PNG with a text bomb": OddPicture(
        lambda: png(2, 1, b"\0ab", chunks=[(b"zTXt", b"k\0\0" + zlib.compress(b"a" * 20_000_000))]), "corrupt_image"
    ),
    "PNG with a profile bomb": OddPicture(
        lambda: png(2, 1, b"\0ab", chunks=[(b"iCCP", b"k\0\0" + zlib.compress(b"a" * 20_000_000))]), "corrupt_image"
    ),
    "WebP magic alone": OddPicture(raw(b"RIFF\x04\0\0\0WEBP"), "corrupt_image"),
    "WebP without pixels": OddPicture(lambda: webp_header(5, 5), "corrupt_image"),
    **{
        f"WebP cut at {part}": OddPicture(cut("RGB", "WEBP", part), "corrupt_image")
        for part in (0.005, 0.02, 0.25, 0.5, 0.9)
    },
    **{
        f"WebP lossless cut at {part}": OddPicture(cut("RGB", "WEBP", part, lossless=True), "corrupt_image")
        for part in (0.25, 0.9)
    },
    "GIF magic alone": OddPicture(raw(b"GIF89a"), "corrupt_image"),
    "GIF cut": OddPicture(cut("P", "GIF", 0.5), "corrupt_image"),
    "BMP magic alone": OddPicture(raw(b"BM"), "corrupt_image"),
    "BMP cut": OddPicture(cut("RGB", "BMP", 0.5), "corrupt_image"),
    "BMP of no size": OddPicture(lambda: bmp_header(0, 0), "corrupt_image"),
    "TIFF magic alone": OddPicture(raw(b"II*\0"), "corrupt_image"),
    "TIFF of ones": OddPicture(raw(b"MM\0*" + b"\xff" * 60), "corrupt_image"),
    "TIFF cut": OddPicture(cut("RGB", "TIFF", 0.5), "corrupt_image"),
    "TIFF LZW cut": OddPicture(cut("RGB", "TIFF", 0.5, compression="tiff_lzw"), "corrupt_image"),
    "TIFF float": OddPicture(file("F", "TIFF"), "unsupported_format"),
    "TIFF 32-bit": OddPicture(file("I", "TIFF"), "unsupported_format"),
    "PNG of 20,000×20,000": OddPicture(lambda: png(20_000, 20_000, b"", colour=2), "too_large"),
    "PNG of 2^31-1 a side": OddPicture(lambda: png(2**31 - 1, 2**31 - 1, b""), "too_large"),
    "PNG bomb": OddPicture(lambda: png(8000, 8000, b"\0" * 8_008_000, bits=1), "too_large"),
    "WebP of 16,383×16,383": OddPicture(lambda: webp_header(16_383, 16_383), "too_large"),
    "GIF screen of 65,535×65,535": OddPicture(lambda: gif_header((65_535, 65_535), (1, 1)), "too_large"),
    "GIF frame of 65,535×65,535": OddPicture(lambda: gif_header((1, 1), (65_535, 65_535)), "too_large"),
    "BMP of 100,000×100,000": OddPicture(lambda: bmp_header(100_000, 100_000), "too_large"),
    "side too long": OddPicture(lambda: encoded(photo(16_385, 1)), "too_large"),
    "over 20 MB": OddPicture(lambda: encoded(photo()).ljust(20 * 1024 * 1024 + 1, b"\0"), "too_large"),
    "over 20 MB of text": OddPicture(lambda: b"a" * (20 * 1024 * 1024 + 1), "too_large"),
    "a byte over the limit": OddPicture(
        lambda: encoded(photo(), "JPEG").ljust(SMALL.max_bytes + 1, b"\0"), "too_large", SMALL
    ),
    "a row over the limit": OddPicture(lambda: encoded(Image.new("L", (200, 201))), "too_large", SMALL),
    "a pixel too long": OddPicture(lambda: encoded(photo(301, 2)), "too_large", SMALL),
    "a pixel too high": OddPicture(lambda: encoded(photo(2, 301)), "too_large", SMALL),
}  # fmt: skip

ODD_PICTURES = {**READABLE, **REFUSED}
