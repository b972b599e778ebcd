"""The pictures that are measured, as JPEG bytes: a photograph, and composites with so many faces of one size."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

JPEG_QUALITY = 92

_HEAD_AND_SHOULDERS = (120, 0, 340, 260)  # in astronaut.png


@dataclass(frozen=True)
class Scene:
    """A picture and how many faces are in it."""

    name: str
    width: int
    height: int
    n_faces: int
    jpeg: bytes


def astronaut() -> Scene:
    """The astronaut photograph of scikit-image (NASA, public domain), 512×512 px."""
    with _photograph() as photograph:
        return Scene("astronaut", *photograph.size, 1, _jpeg(photograph))


def scene(width: int, height: int, n_faces: int) -> bytes:
    """A JPEG of `width` × `height` px with the astronaut's head and shoulders pasted `n_faces` times on a gradient."""
    with _photograph() as photograph:
        head = photograph.crop(_HEAD_AND_SHOULDERS)
    columns = round(math.sqrt(n_faces * 4 / 3))
    rows = -(-n_faces // columns)
    cell_w, cell_h = width // columns, height // rows
    share = min(cell_w / head.width, cell_h / head.height) * (0.8 if n_faces > 1 else 0.5)
    head = head.resize((int(head.width * share), int(head.height * share)), Image.Resampling.LANCZOS)
    gradient = np.linspace(60, 180, height, dtype=np.uint8)[:, None, None]
    canvas = Image.fromarray(np.broadcast_to(gradient, (height, width, 3)).copy())
    for index in range(n_faces):
        row, column = divmod(index, columns)
        corner = (column * cell_w + (cell_w - head.width) // 2, row * cell_h + (cell_h - head.height) // 2)
        canvas.paste(head, corner)
    return _jpeg(canvas)


def composite_scene(width: int, height: int, n_faces: int) -> Scene:
    """`scene` with its name."""
    return Scene(f"{width}×{height}", width, height, n_faces, scene(width, height, n_faces))


def all_scenes() -> list[Scene]:
    """The astronaut, and 1, 6 and 20 faces at three sizes."""
    sizes = ((640, 480), (1280, 720), (1920, 1080))
    return [astronaut(), *(composite_scene(*size, n_faces) for size in sizes for n_faces in (1, 6, 20))]


def small_scenes() -> list[Scene]:
    """One scene that every tool is done with in a moment."""
    return [composite_scene(240, 180, 2)]


def _photograph() -> Image.Image:
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png") as file:
        return file.convert("RGB")


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=JPEG_QUALITY)
    return buffer.getvalue()
