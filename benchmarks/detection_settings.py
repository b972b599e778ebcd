"""`python -m benchmarks.detection_settings`: what each setting of detection costs and gains, as Markdown.

Time: the median of calls in turns on two pictures, one thread. Recall: of the faces that the default settings find, on
generated pictures and photographs, the share that other settings find too (IoU of at least 0.5), for all faces and for
sure ones (a confidence of 0.9 or more); and how many faces they find beyond these.
"""

from __future__ import annotations

import argparse
import statistics
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from benchmarks.report import FOLDER, command_line, heading, machine, milliseconds, table, write_json
from benchmarks.scenes import scene
from benchmarks.timing import turn_ms
from handlers.decode import decode_image
from handlers.detection import Detector
from handlers.detection.settings import DetectionSettings
from handlers.engines import ENGINE_NAMES, choose_engine
from handlers.pipeline import load_detector
from handlers.results import Detection
from tests.boxes import overlap
from tests.handlers.composites import composite

DEFAULT = DetectionSettings()
CHOICES = {
    "defaults": DEFAULT,
    **{f"smallest face {size} px": DetectionSettings(min_face_size_px=size) for size in (30, 40, 60, 80)},
    **{
        "thresholds {}, {}, {}".format(*thresholds): DetectionSettings(thresholds=thresholds)
        for thresholds in ((0.5, 0.6, 0.6), (0.7, 0.7, 0.7), (0.7, 0.8, 0.9), (0.8, 0.9, 0.95))
    },
    **{f"longer side {side} px": DetectionSettings(max_side_px=side) for side in (1280, 640, 320)},
    **{f"pyramid factor {factor}": DetectionSettings(pyramid_factor=factor) for factor in (0.6, 0.5)},
}
TIMED = ((640, 480, 6), (1920, 1080, 6))  # width, height, faces

SURE = 0.9
SAME_FACE_OVERLAP = 0.5

_N_COMPOSITES, _N_LARGE = 200, 20
_LARGE_WIDTH, _LARGE_HEIGHT, _COLUMNS, _ROWS = 1920, 1080, 3, 2
_PHOTOS = Path(__file__).parents[2] / "shared" / "data" / "photos"

Picture = NDArray[np.uint8]


@dataclass(frozen=True)
class Agreement:
    """What some settings find on a set of pictures beside the defaults. Counts of faces."""

    n_expected: int
    n_found: int
    n_sure_expected: int
    n_sure_found: int
    n_more: int

    def __str__(self) -> str:
        shares = _share(self.n_sure_found, self.n_sure_expected), _share(self.n_found, self.n_expected)
        return f"{', '.join(shares)}, {self.n_more}"


@dataclass(frozen=True)
class Row:
    """One choice of settings: milliseconds by picture, agreement by set of pictures."""

    choice: str
    median_ms: dict[str, float]
    agreement: dict[str, Agreement]


def measure(
    detectors: dict[str, Detector], timed: dict[str, Picture], sets: dict[str, list[Picture]], rounds: int
) -> list[Row]:
    """One row a choice of `CHOICES`; `detectors` has one for each."""
    times = {name: _medians_ms(detectors, picture, rounds) for name, picture in timed.items()}
    expected = {name: _found(detectors["defaults"], DEFAULT, pictures) for name, pictures in sets.items()}
    return [
        Row(
            choice,
            {name: by_choice[choice] for name, by_choice in times.items()},
            {name: agree(_found(detectors[choice], settings, sets[name]), expected[name]) for name in sets},
        )
        for choice, settings in CHOICES.items()
    ]


def agree(found: Sequence[Sequence[Detection]], expected: Sequence[Sequence[Detection]]) -> Agreement:
    """Match each picture's faces one to one, the surest of the expected first."""
    n_matched = n_sure_matched = 0
    for ours, theirs in zip(found, expected, strict=True):
        left = list(ours)
        for face in sorted(theirs, key=lambda each: -each.confidence):
            best = max(left, key=lambda each: overlap(each.box_px, face.box_px), default=None)
            if best is None or overlap(best.box_px, face.box_px) < SAME_FACE_OVERLAP:
                continue
            left.remove(best)
            n_matched += 1
            n_sure_matched += face.confidence >= SURE
    return Agreement(
        n_expected=sum(map(len, expected)),
        n_found=n_matched,
        n_sure_expected=sum(face.confidence >= SURE for faces in expected for face in faces),
        n_sure_found=n_sure_matched,
        n_more=sum(map(len, found)) - n_matched,
    )


def large_composite(index: int) -> Picture:
    """Six composites side by side, 1920×1080 px: many faces, most of them small for the picture."""
    cell_w, cell_h = _LARGE_WIDTH // _COLUMNS, _LARGE_HEIGHT // _ROWS
    canvas = np.full((_LARGE_HEIGHT, _LARGE_WIDTH, 3), 128, np.uint8)
    for cell in range(_COLUMNS * _ROWS):
        part = composite(index * _COLUMNS * _ROWS + cell)[:cell_h, :cell_w]
        row, column = divmod(cell, _COLUMNS)
        top, left = row * cell_h, column * cell_w
        canvas[top : top + part.shape[0], left : left + part.shape[1]] = part
    return canvas


def photographs() -> Iterator[Picture]:
    """Those of ../shared/data/photos; none where that folder is absent."""
    for path in sorted(_PHOTOS.glob("*/*")):
        yield decode_image(path.read_bytes())


def settings_table(rows: Sequence[Row]) -> str:
    """Times with their ratio to the defaults', and of each set: sure faces, all faces, more faces."""
    default = rows[0]
    lines = []
    for row in rows:
        times = [f"{milliseconds(ms)} ({ms / default.median_ms[name]:.2f})" for name, ms in row.median_ms.items()]
        lines.append([row.choice, *times, *row.agreement.values()])
    return table(["settings", *(f"{name}, ms" for name in default.median_ms), *default.agreement], lines)


def _medians_ms(detectors: dict[str, Detector], picture: Picture, rounds: int) -> dict[str, float]:
    times: dict[str, list[float]] = defaultdict(list)
    for warm_up in (True, *[False] * rounds):
        for choice, detector in detectors.items():
            smallest = CHOICES[choice].min_face_size_px
            values = turn_ms(partial(detector.detect, picture, smallest), 0)
            times[choice] += [] if warm_up else values
    return {choice: statistics.median(values) for choice, values in times.items()}


def _found(detector: Detector, settings: DetectionSettings, pictures: Sequence[Picture]) -> list[list[Detection]]:
    return [detector.detect(picture, settings.min_face_size_px) for picture in pictures]


def _share(part: int, whole: int) -> str:
    return f"{100 * part / whole:.1f} %" if whole else "–"


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.detection_settings", description=__doc__)
    parser.add_argument("--engine", default="auto", choices=[name for name in ENGINE_NAMES if name != "torch"])
    parser.add_argument("--rounds", type=int, default=15, help="turns of each choice on each timed picture")
    parser.add_argument("--json", type=Path, help=f"default: {FOLDER}/detection-settings-ENGINE.json")
    parser.add_argument("--quick", action="store_true", help="few pictures, one round: does it work at all?")
    options = parser.parse_args(arguments)
    if options.quick:
        options.rounds = 1
    at_start = machine()
    engine = choose_engine(options.engine).name
    detectors = {choice: load_detector(engine=engine, settings=settings) for choice, settings in CHOICES.items()}
    sizes = TIMED[:1] if options.quick else TIMED
    timed = {f"{width}×{height}, {n} faces": decode_image(scene(width, height, n)) for width, height, n in sizes}
    sets = {"composites": [composite(seed) for seed in range(4 if options.quick else _N_COMPOSITES)]}
    if not options.quick:
        sets["1920×1080 composites"] = [large_composite(index) for index in range(_N_LARGE)]
        sets |= {"photographs": photos} if (photos := list(photographs())) else {}
    rows = measure(detectors, timed, sets, options.rounds)
    counts = "; ".join(
        f"{len(pictures)} {name} with {rows[0].agreement[name].n_expected} faces, "
        f"{rows[0].agreement[name].n_sure_expected} of them sure"
        for name, pictures in sets.items()
    )
    print(
        f"# Settings of detection, {engine}\n\n{heading(at_start)}; {options.rounds} rounds, one thread; {counts}. "
        f"Of each set: sure faces found, all faces found, more faces\n\n{settings_table(rows)}\n"
    )
    path = options.json or FOLDER / f"detection-settings-{engine}.json"
    results: dict[str, Any] = {"engine": engine, "rounds": options.rounds, "rows": [asdict(row) for row in rows]}
    write_json(path, command_line("benchmarks.detection_settings", arguments), at_start, results)


if __name__ == "__main__":
    main()
