"""`python -m benchmarks.detection`: Mien beside facenet-pytorch, interleaved in one run.

For each picture size and number of faces: our detector, `facenet_pytorch.MTCNN`, and the whole path from bytes to
result against Pillow + facenet-pytorch + the same emotion network in torch. One thread each. Prints medians in ms and
ratios, and writes JSON.
"""

from __future__ import annotations

import argparse
import io
import json
import platform
import statistics
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import skimage
from PIL import Image

from handlers.decode import decode_image
from handlers.pipeline import Pipeline, load_pipeline

MIN_FACE_SIZE_PX = 20
SCENES = ((640, 480, 1), (640, 480, 6), (1280, 720, 6))


def scene(width: int, height: int, n_faces: int) -> bytes:
    """A JPEG of `width` × `height` px with the astronaut's head and shoulders pasted `n_faces` times on a gradient."""
    with Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png") as file:
        head = file.convert("RGB").crop((120, 0, 340, 260))
    columns = 3 if n_faces > 1 else 1
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
    buffer = io.BytesIO()
    canvas.save(buffer, "JPEG", quality=92)
    return buffer.getvalue()


def interleaved_ms(calls: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Median milliseconds of each call, taken in turns so that a busy machine slows all of them alike."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for call in calls.values():
        call()
    for _ in range(rounds):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            times[name].append((time.perf_counter() - started) * 1000)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(ours: Pipeline, theirs: Pipeline, rounds: int) -> list[dict[str, object]]:
    """One record a scene: milliseconds of each, ratios, and how many faces each found."""
    records = []
    for width, height, n_faces in SCENES:
        image = scene(width, height, n_faces)
        rgb_u8 = decode_image(image)
        times = interleaved_ms(
            {
                "detect": lambda rgb=rgb_u8: ours.detector.detect(rgb, MIN_FACE_SIZE_PX),
                "detect_reference": lambda rgb=rgb_u8: theirs.detector.detect(rgb, MIN_FACE_SIZE_PX),
                "whole": lambda data=image: ours.analyze([data]),
                "whole_reference": lambda data=image: theirs.analyze([data]),
            },
            rounds,
        )
        records.append(
            {
                "picture": f"{width}×{height}",
                "faces": n_faces,
                "found": len(ours.detector.detect(rgb_u8, MIN_FACE_SIZE_PX)),
                "found_reference": len(theirs.detector.detect(rgb_u8, MIN_FACE_SIZE_PX)),
                **{f"{name}_ms": round(value, 2) for name, value in times.items()},
                "detect_ratio": round(times["detect_reference"] / times["detect"], 2),
                "whole_ratio": round(times["whole_reference"] / times["whole"], 2),
            }
        )
    return records


def main() -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--json", type=Path, default=Path(".state/bench-detection.json"))
    options = parser.parse_args()
    records = measure(load_pipeline(engine="onnxruntime"), load_pipeline(engine="torch"), options.rounds)
    print("medians in ms, one thread each; the reference is facenet-pytorch's MTCNN with the same emotion net in torch")
    print("| picture | faces | found, reference | detect | reference | ratio | bytes → result | reference | ratio |")
    print("|---|---|---|---|---|---|---|---|---|")
    for entry in records:
        print(
            f"| {entry['picture']} | {entry['faces']} | {entry['found']}, {entry['found_reference']} "
            f"| {entry['detect_ms']} | {entry['detect_reference_ms']} | **{entry['detect_ratio']}×** "
            f"| {entry['whole_ms']} | {entry['whole_reference_ms']} | **{entry['whole_ratio']}×** |"
        )
    options.json.parent.mkdir(parents=True, exist_ok=True)
    options.json.write_text(json.dumps({"machine": platform.processor(), "records": records}, indent=2) + "\n")


if __name__ == "__main__":
    main()
