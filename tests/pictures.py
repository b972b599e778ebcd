"""Pictures made on the spot for tests."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image


def encoded(pixels: NDArray[Any] | Image.Image, format: str = "PNG", **options: Any) -> bytes:
    """An array (H, W), (H, W, 3) or (H, W, 4), or a Pillow image, as the bytes of a file."""
    image = pixels if isinstance(pixels, Image.Image) else Image.fromarray(pixels)
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def noise(height: int, width: int, seed: int = 0) -> NDArray[np.uint8]:
    """Uniform noise, uint8 (height, width, 3)."""
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
