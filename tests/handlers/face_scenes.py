"""Pictures with no, one or several faces, all cut from the astronaut photograph."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

_HEAD = (150, 30, 310, 230)


def face_patch(astronaut_png: bytes, width: int, *, degrees: float = 0) -> Image.Image:
    """The astronaut's head, resized to `width` pixels and turned counter-clockwise: RGBA, the corners transparent."""
    with Image.open(io.BytesIO(astronaut_png)) as photo:
        head = photo.convert("RGBA").crop(_HEAD)
    head = head.resize((width, round(width * head.height / head.width)), Image.Resampling.BICUBIC)
    return head.rotate(degrees, Image.Resampling.BICUBIC, expand=True)


def place_faces(
    height: int, width: int, patches: Sequence[tuple[Image.Image, int, int]], background: int = 120
) -> NDArray[np.uint8]:
    """Patches on a grey gradient, each with its left and top, which may be outside: uint8 (height, width, 3)."""
    shade = (np.linspace(-40, 40, width)[None, :] + np.linspace(-20, 20, height)[:, None] + background).clip(0, 255)
    image = Image.fromarray(shade.astype(np.uint8)).convert("RGB")
    for patch, left, top in patches:
        image.paste(patch, (left, top), patch)
    return np.array(image)


def scene(astronaut_png: bytes, seed: int) -> NDArray[np.uint8]:
    """A random composite: `seed % 5` faces, scaled, turned by up to 20°, maybe cut by the frame, noisy or grey."""
    rng = np.random.default_rng(seed)
    height, width = (int(side) for side in rng.integers(180, 420, 2))
    patches = []
    for _ in range(seed % 5):
        patch = face_patch(astronaut_png, int(rng.integers(35, 200)), degrees=float(rng.uniform(-20, 20)))
        left = int(rng.integers(-patch.width // 3, width - patch.width // 2))
        top = int(rng.integers(-patch.height // 3, height - patch.height // 2))
        patches.append((patch, left, top))
    pixels = place_faces(height, width, patches, background=int(rng.integers(60, 200)))
    if seed % 3 == 1:
        pixels = np.repeat(pixels.mean(axis=2, keepdims=True), 3, axis=2).astype(np.uint8)
    if seed % 3 == 2:
        pixels = (pixels + rng.normal(0, 12, pixels.shape)).clip(0, 255).astype(np.uint8)
    return pixels
