"""Folders of small distinct pictures for tests of bulk scoring: with a face, with two, without, and broken ones."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

FACE_BOX = (150, 40, 300, 190)
"""Around the face of the astronaut photograph."""

BROKEN = {
    "corrupt_image": lambda jpeg: jpeg[: len(jpeg) // 2],
    "empty_image": lambda jpeg: b"",
    "unsupported_format": lambda jpeg: b"no picture at all, " * 20,
}
"""How a picture is broken, by the code of its error."""


def make_folder(folder: Path, n: int, *, broken_every: int = 20, size_px: int = 96, seed: int = 0) -> dict[str, str]:
    """Write `n` pictures, every `broken_every`-th of them broken, into three subfolders.

    Returns the expected error code of every broken one, by its path below the folder.
    """
    face = Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png").convert("RGB").crop(FACE_BOX)
    expected = {}
    codes = sorted(BROKEN)
    for index in range(n):
        path = Path(f"batch-{index % 3}") / f"{index:05d}.jpg"
        jpeg = _picture(face, index, size_px, np.random.default_rng((seed, index)))
        if index % broken_every == broken_every - 1:
            code = codes[index // broken_every % len(codes)]
            expected[path.as_posix()] = code
            jpeg = BROKEN[code](jpeg)
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(jpeg)
    return expected


def _picture(face: Image.Image, index: int, size_px: int, random: np.random.Generator) -> bytes:
    canvas = Image.fromarray(random.integers(90, 140, (8, 8, 3), np.uint8)).resize((size_px, size_px))
    if index % 4:
        side = int(size_px * random.uniform(0.6, 0.9))
        light = random.uniform(0.7, 1.2)
        scaled = face.resize((side, side)).point(lambda value: min(255, int(value * light)))
        canvas.paste(scaled, tuple(random.integers(0, size_px - side, 2).tolist()))
    held = io.BytesIO()
    canvas.save(held, "JPEG", quality=90)
    return held.getvalue()
