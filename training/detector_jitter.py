"""How much a detector's box moves when the same picture comes again: smaller, shifted, mirrored, compressed."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter

from handlers.detection import Detector
from handlers.detection.settings import DetectionSettings
from handlers.results import Box
from training.errors import DataError
from training.wild import Portrait

Picture = NDArray[np.uint8]
_SCALES = (0.6, 0.75, 0.9, 1.1, 1.3)
_SHIFTS_PX = ((3, 5), (7, 2), (11, 11))
_JPEG_QUALITY = 40
_BLUR_SIGMA_PX = 1.0
_SAME_FACE_IOU = 0.3


@dataclass(frozen=True)
class Jitter:
    """How the box of one kind of version differs from the original's, over `n` pictures whose face was found again.

    scale: the ratio of the longer sides. shift_x, shift_y: between the centres, in longer sides of the original's box.
    Each is a triple of the 5th percentile, the median and the 95th.
    """

    version: str
    n: int
    n_lost: int
    scale: tuple[float, float, float]
    shift_x: tuple[float, float, float]
    shift_y: tuple[float, float, float]


def measure_jitter(detector: Detector, portraits: Sequence[Portrait]) -> list[Jitter]:
    """One `Jitter` a kind of version, and one over all of them, last.

    Raises DataError when no portrait has a face that is found again.
    """
    found: dict[str, list[tuple[float, float, float]]] = {}
    n_lost: Counter[str] = Counter()
    for portrait in portraits:
        if portrait.face is None:
            continue
        original = portrait.face.box_px
        for version in _versions(portrait.rgb_u8):
            detections = detector.detect(version.rgb_u8, DetectionSettings().min_face_size_px)
            boxes = [version.in_original(detection.box_px) for detection in detections]
            overlaps = [_iou(box, original) for box in boxes]
            if max(overlaps, default=0.0) < _SAME_FACE_IOU:
                n_lost[version.kind] += 1
            else:
                match = boxes[int(np.argmax(overlaps))]
                found.setdefault(version.kind, []).append(_difference(original, match))
    if not found:
        raise DataError("no portrait with a face that is found again")
    found["all"] = [values for rows in found.values() for values in rows]
    n_lost["all"] = n_lost.total()
    return [_jitter(kind, rows, n_lost[kind]) for kind, rows in found.items()]


@dataclass(frozen=True, eq=False)
class _Version:
    """A changed picture. A place x in it is `factor × x + offset` in the original, for both axes."""

    kind: str
    rgb_u8: Picture
    factors: tuple[float, float] = (1.0, 1.0)
    offsets: tuple[float, float] = (0.0, 0.0)

    def in_original(self, box_px: Box) -> Box:
        left, right = sorted(self.factors[0] * x + self.offsets[0] for x in box_px[::2])
        top, bottom = sorted(self.factors[1] * y + self.offsets[1] for y in box_px[1::2])
        return left, top, right, bottom


def _versions(rgb_u8: Picture) -> Iterator[_Version]:
    height, width = rgb_u8.shape[:2]
    image = Image.fromarray(rgb_u8)
    for scale in _SCALES:
        size = (max(1, round(width * scale)), max(1, round(height * scale)))
        resized = np.asarray(image.resize(size, Image.Resampling.BICUBIC))
        yield _Version("rescaled", resized, (width / size[0], height / size[1]))
    for right, down in _SHIFTS_PX:
        moved = np.pad(rgb_u8, ((down, 0), (right, 0), (0, 0)), mode="edge")
        yield _Version("shifted", moved, offsets=(-right, -down))
    yield _Version("mirrored", np.ascontiguousarray(rgb_u8[:, ::-1]), (-1.0, 1.0), (width, 0.0))
    file = io.BytesIO()
    image.save(file, "JPEG", quality=_JPEG_QUALITY)
    yield _Version("compressed", np.asarray(Image.open(file)))
    yield _Version("blurred", np.asarray(image.filter(ImageFilter.GaussianBlur(_BLUR_SIGMA_PX))))


def _iou(first: Box, second: Box) -> float:
    width = min(first[2], second[2]) - max(first[0], second[0])
    height = min(first[3], second[3]) - max(first[1], second[1])
    shared = max(0.0, width) * max(0.0, height)
    areas = [(box[2] - box[0]) * (box[3] - box[1]) for box in (first, second)]
    return shared / (sum(areas) - shared)


def _difference(first: Box, second: Box) -> tuple[float, float, float]:
    sides = [max(box[2] - box[0], box[3] - box[1]) for box in (first, second)]
    moved = [(second[axis] + second[axis + 2] - first[axis] - first[axis + 2]) / 2 / sides[0] for axis in (0, 1)]
    return sides[1] / sides[0], moved[0], moved[1]


def _jitter(kind: str, rows: list[tuple[float, float, float]], n_lost: int) -> Jitter:
    low, median, high = np.percentile(np.array(rows), (5, 50, 95), axis=0)
    scale, shift_x, shift_y = ((float(low[i]), float(median[i]), float(high[i])) for i in range(3))
    return Jitter(kind, len(rows), n_lost, scale, shift_x, shift_y)


def jitter_table(jitters: Sequence[Jitter]) -> str:
    """Markdown: a line a kind of version."""
    lines = ["| version | n | lost | scale | shift right | shift down |", "|---|---|---|---|---|---|"]
    for jitter in jitters:
        cells = " | ".join(
            f"{low:.3f} … {high:.3f}" if index == 0 else f"{low:+.3f} … {high:+.3f}"
            for index, (low, _, high) in enumerate((jitter.scale, jitter.shift_x, jitter.shift_y))
        )
        lines.append(f"| {jitter.version} | {jitter.n} | {jitter.n_lost} | {cells} |")
    return "\n".join(lines)
