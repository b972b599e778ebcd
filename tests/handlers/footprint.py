"""Analyses many varied pictures in a process of its own, and prints what that took as one line of JSON.

    python -m tests.handlers.footprint <folder of pictures> --pictures 2000

Needs MTCNN and an emotion model in the store of BENTOML_HOME. Sizes are resident memory in MiB.
"""

from __future__ import annotations

import argparse
import io
import json
import sys
import time
from collections.abc import Iterator
from itertools import chain, islice
from pathlib import Path
from typing import Any

import numpy as np
import psutil
from PIL import Image

from handlers import Analysis, HandlerError, load_pipeline

CHECKED_AT = (1, 100, 300, 500, 1000, 1500, 2000, 4000, 8000)
LARGEST_PX = (1280, 1024)
LARGEST_AT = (1, 2, 3)
"""So early that what is kept between pictures does not grow later."""

_JPEG, _PNG, _WEBP = ("JPEG", {"quality": 85}), ("PNG", {"compress_level": 1}), ("WEBP", {"method": 0})
_BMP, _TIFF, _GIF = (("BMP", {}), ("TIFF", {}), ("GIF", {}))
KINDS: tuple[tuple[tuple[str, dict[str, Any]], str], ...] = (
    *((kind, "RGB") for kind in (_JPEG, _JPEG, _PNG, _WEBP, _BMP, _TIFF, _GIF)),
    *((kind, "L") for kind in (_JPEG, _PNG, _TIFF)),
    *((kind, "RGBA") for kind in (_PNG, _WEBP)),
    (_PNG, "P"),
    (_JPEG, "CMYK"),
)


def varied(folder: Path, n: int) -> Iterator[bytes]:
    """Parts of the folder's pictures in random sizes from 64 to 640 px, formats and modes; some large, some cut off."""
    rng, sources = np.random.default_rng(0), sorted(folder.iterdir())
    for index in range(n):
        width, height = (int(side) for side in np.exp(rng.uniform(np.log(64), np.log(640), 2)))
        if index in LARGEST_AT or index % 40 == 5:
            width, height = LARGEST_PX
        (file_format, options), mode = KINDS[rng.integers(len(KINDS))]
        buffer = io.BytesIO()
        with Image.open(sources[rng.integers(len(sources))]) as source:
            left, top = rng.uniform(0, 0.3, 2) * source.size
            right, bottom = rng.uniform(0.7, 1, 2) * source.size
            part = source.convert("RGB").resize((width, height), box=(left, top, right, bottom))
        part.convert(mode).save(buffer, file_format, **options)
        data = buffer.getvalue()
        yield data[: len(data) // 3] if index % 50 == 10 else data


def batches(images: Iterator[bytes], most: int) -> Iterator[list[bytes]]:
    """One to so many pictures at a time, as the service merges them."""
    rng = np.random.default_rng(1)
    while batch := list(islice(images, int(rng.integers(1, most + 1)))):
        yield batch


def resident_mib() -> float:
    return round(psutil.Process().memory_info().rss / 2**20, 1)


def n_compiled() -> int:
    """How many numba kernels were compiled in this process, not loaded from the cache."""
    from handlers.detection import kernels

    return sum(sum(kernel.stats.cache_misses.values()) for kernel in vars(kernels).values() if hasattr(kernel, "stats"))


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m tests.handlers.footprint")
    parser.add_argument("folder", type=Path)
    parser.add_argument("--pictures", type=int, default=2000)
    parser.add_argument("--batch", type=int, default=4, help="most pictures at a time")
    parser.add_argument("--engine", default="openvino")
    options = parser.parse_args()

    images = varied(options.folder, options.pictures)
    first = [next(images)]
    started = time.perf_counter()
    pipeline = load_pipeline(engine=options.engine)
    loaded = time.perf_counter()
    pipeline.analyze(first)
    seconds = {"loading": loaded - started, "first_result": time.perf_counter() - loaded}
    n_compiled_first = n_compiled()
    n_pictures = n_errors = n_faces = 0
    resident = {}
    for batch in chain([first], batches(images, options.batch)):
        results = pipeline.analyze(batch)
        n_errors += sum(isinstance(result, HandlerError) for result in results)
        n_faces += sum(len(result.faces) for result in results if isinstance(result, Analysis))
        before, n_pictures = n_pictures, n_pictures + len(batch)
        resident |= {number: resident_mib() for number in CHECKED_AT if before < number <= n_pictures}
    measured = {
        "pictures": n_pictures,
        "errors": n_errors,
        "faces": n_faces,
        "torch": "torch" in sys.modules,
        "resident_mib": resident,
        "seconds": seconds,
        "compiled_until_the_first_result": n_compiled_first,
        "compiled_later": n_compiled() - n_compiled_first,
    }
    print(json.dumps(measured))


if __name__ == "__main__":
    main()
