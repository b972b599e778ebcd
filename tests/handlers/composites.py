"""Generated pictures with known make-up, 0 to 30 faces each, from what scikit-image's wheel ships.

Faces: the astronaut's head, and the hundred 25×25 grey faces of `lfw_subset.npy` for the smaller ones. A seed decides
everything. Sizes, face counts and defects are each taken in turn from a cycle whose length shares no factor with the
others or with 2, so that every n-th composite, for n a power of 2, has the same variety as all of them.
"""

from __future__ import annotations

import functools
import io
import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

SIZES_PX = (  # width, height
    *((640, 480),) * 5,
    (480, 640),
    (641, 477),
    (1280, 720),
    (333, 501),
    (320, 240),
    (161, 120),
)
FACE_COUNTS = (1, 3, 0, 6, 2, 12, 1, 30, 4, 1, 20, 2, 8)
DEFECTS = ((), ("noise",), ("grey",), ("jpeg",), ("tone",), ("grey", "noise"), ("tone", "jpeg"))

SMALLEST_FACE_PX = 22
"""Width of the smallest face placed, a little more than the smallest that a detector at its default looks for."""

_BACKGROUNDS = ("brick.png", "chelsea.png", "coffee.png", "grass.png", "gravel.png", "moon.png", "rocket.jpg")
_HEAD = (150, 30, 310, 230)  # in astronaut.png, with hair and neck
_HEAD_WIDTHS_A_FACE = 1.8  # the head's cut-out is this much wider than the face in it
_N_LFW_FACES = 100  # the array's second hundred are no faces
_LARGEST_LFW_FACE_PX = 80  # larger, 25 px of detail are a blur


def composite(seed: int) -> NDArray[np.uint8]:
    """Faces of random size, turned by up to 20°, some partly outside the frame, on a background: uint8 (H, W, 3)."""
    rng = np.random.default_rng(seed)
    width, height = SIZES_PX[seed % len(SIZES_PX)]
    image = _background(rng, width, height)
    n_faces = FACE_COUNTS[seed % len(FACE_COUNTS)]
    if n_faces:
        _place_faces(rng, image, n_faces)
    for defect in DEFECTS[seed % len(DEFECTS)]:
        image = _with_defect(rng, image, defect)
    return np.array(image)


def _background(rng: np.random.Generator, width: int, height: int) -> Image.Image:
    """A part of a photograph or texture, or, one time in four, a gradient: RGB of that size in pixels."""
    if rng.random() < 0.25:
        columns, rows = np.linspace(0, 1, width)[None, :, None], np.linspace(0, 1, height)[:, None, None]
        start, to_right, down = rng.uniform(0, 255, (3, 3))
        return Image.fromarray(
            (start + columns * (to_right - start) + rows * (down - start)).clip(0, 255).astype(np.uint8)
        )
    source = _photograph(_BACKGROUNDS[rng.integers(len(_BACKGROUNDS))])
    return ImageOps.fit(source, (width, height), centering=tuple(rng.random(2)))


def _place_faces(rng: np.random.Generator, image: Image.Image, n_faces: int) -> None:
    """Paste each face into its own cell of a grid; up to a third of it may reach over the cell's edge."""
    width, height = image.size
    n_columns = min(math.ceil(math.sqrt(n_faces * width / height)), n_faces)
    n_rows = math.ceil(n_faces / n_columns)
    cell_width, cell_height = width / n_columns, height / n_rows
    largest = max(min(cell_width, cell_height * 0.8), SMALLEST_FACE_PX)
    for cell in rng.permutation(n_columns * n_rows)[:n_faces]:
        face_width = float(np.exp(rng.uniform(math.log(SMALLEST_FACE_PX), math.log(largest))))
        patch = _face(rng, face_width).rotate(rng.uniform(-20, 20), Image.Resampling.BICUBIC, expand=True)
        row, column = divmod(int(cell), n_columns)
        spare_x, spare_y = cell_width - patch.width, cell_height - patch.height
        left = column * cell_width + _between(rng, -patch.width / 3, spare_x + patch.width / 3)
        top = row * cell_height + _between(rng, -patch.height / 3, spare_y + patch.height / 3)
        image.paste(patch, (round(left), round(top)), patch)


def _between(rng: np.random.Generator, a: float, b: float) -> float:
    return float(rng.uniform(min(a, b), max(a, b)))


def _face(rng: np.random.Generator, face_width_px: float) -> Image.Image:
    """One of the faces, maybe mirrored, that wide: RGBA."""
    if face_width_px <= _LARGEST_LFW_FACE_PX and rng.random() < 0.6:
        patch = _lfw_face(int(rng.integers(_N_LFW_FACES)))
        width = face_width_px
    else:
        patch = _photograph("astronaut.png").crop(_HEAD)
        width = face_width_px * _HEAD_WIDTHS_A_FACE
    if rng.random() < 0.5:
        patch = ImageOps.mirror(patch)
    size = (round(width), round(width * patch.height / patch.width))
    return patch.convert("RGBA").resize(size, Image.Resampling.BICUBIC)


def _with_defect(rng: np.random.Generator, image: Image.Image, defect: str) -> Image.Image:
    pixels = np.asarray(image, np.float64)
    if defect == "grey":
        return image.convert("L").convert("RGB")
    if defect == "jpeg":
        buffer = io.BytesIO()
        image.save(buffer, "JPEG", quality=int(rng.integers(15, 70)))
        return Image.open(buffer).convert("RGB")
    if defect == "noise":
        pixels = pixels + rng.normal(0, rng.uniform(4, 25), pixels.shape)
    elif defect == "tone":
        pixels = (pixels - 128) * rng.uniform(0.4, 1.6) + 128 + rng.uniform(-60, 60)
    else:
        raise ValueError(f"no defect {defect!r}")
    return Image.fromarray(pixels.round().clip(0, 255).astype(np.uint8))


@functools.cache
def _photograph(name: str) -> Image.Image:
    with Image.open(_data_folder() / name) as photograph:
        return photograph.convert("RGB")


@functools.cache
def _lfw_faces() -> NDArray[np.uint8]:
    faces = np.load(_data_folder() / "lfw_subset.npy")[:_N_LFW_FACES]
    return np.asarray((faces * 255).round(), np.uint8)


def _lfw_face(index: int) -> Image.Image:
    return Image.fromarray(_lfw_faces()[index])


def _data_folder() -> Path:
    import skimage

    return Path(skimage.__file__).parent / "data"
