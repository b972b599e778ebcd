"""`python -m benchmarks.latency`: how long one picture takes, beside facenet-pytorch and the reference stack.

For each picture, in turns within one run: detection and the whole path from bytes to result, ours and the reference's,
each on one and on two compute threads in a process of its own; the time of each of our stages; and the bare networks.
Prints Markdown tables of medians and ratios, and writes JSON.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.anatomy import Anatomy
from benchmarks.latency_record import (
    CALLS,
    OURS,
    REFERENCE,
    THREADS,
    LatencyRecord,
    counts_table,
    floor_table,
    parts_table,
    ratio_table,
)
from benchmarks.report import FOLDER, command_line, heading, machine, write_json
from benchmarks.scenes import Scene, all_scenes, small_scenes
from benchmarks.systems import Ours, Reference
from benchmarks.timing import middle_mean, rounds_for
from benchmarks.workers import Worker
from handlers.engines import ENGINE_NAMES, choose_engine


@dataclass(frozen=True)
class Effort:
    """How long to measure.

    scene_s: seconds for each picture, within the limits of rounds. turn_s: a turn repeats its call until so many
    seconds have passed. settle_s: pause between processes, as their threads may still be spinning.
    """

    scene_s: float = 8.0
    least_rounds: int = 4
    most_rounds: int = 25
    turn_s: float = 0.05
    settle_s: float = 0.01


QUICK = Effort(scene_s=0, least_rounds=1, turn_s=0)


@dataclass(frozen=True)
class Contestants:
    """The processes: each system by name and threads, and ours taken apart."""

    systems: dict[tuple[str, int], Worker]
    anatomy: Worker

    def wait(self) -> None:
        """Return when all are loaded, so that none loads while another is at work."""
        for worker in (*self.systems.values(), self.anatomy):
            worker.wait()

    def prepare(self, scene: Scene) -> None:
        """Give each the picture."""
        for worker in (*self.systems.values(), self.anatomy):
            worker.run("prepare", scene.jpeg)


def measure(engine: str, scenes: Sequence[Scene], effort: Effort) -> list[LatencyRecord]:
    """One record a picture."""
    with ExitStack() as stack, tempfile.TemporaryDirectory(prefix="mien-bench-") as folder:
        loads: dict[tuple[str, int], Callable[[], object]] = {}
        for threads in THREADS:
            loads[OURS, threads] = partial(Ours, engine, threads)
            loads[REFERENCE, threads] = partial(Reference, threads)
        contestants = Contestants(
            {name: stack.enter_context(Worker(load)) for name, load in loads.items()},
            stack.enter_context(Worker(partial(Anatomy, engine, Path(folder)))),
        )
        contestants.wait()
        return [measure_scene(contestants, scene, effort) for scene in scenes]


def measure_scene(contestants: Contestants, scene: Scene, effort: Effort) -> LatencyRecord:
    """All turns on one picture."""
    contestants.prepare(scene)
    times: dict[tuple[str, int, str], list[float]] = defaultdict(list)
    floors: dict[str, list[float]] = defaultdict(list)
    stages: list[dict[str, float]] = []
    n_rounds, done = effort.least_rounds, 0
    while done < n_rounds:
        began = time.perf_counter()
        for (system, threads), worker in contestants.systems.items():
            time.sleep(effort.settle_s)
            for call in CALLS:
                times[system, threads, call] += worker.run("turn", call, effort.turn_s)
        time.sleep(effort.settle_s)
        stages += contestants.anatomy.run("stages", effort.turn_s)
        for name, values in contestants.anatomy.run("floor", effort.turn_s / 5).items():
            floors[name] += values
        done += 1
        if done == 1:
            n_rounds = rounds_for(time.perf_counter() - began, effort.scene_s, effort.least_rounds, effort.most_rounds)
    return LatencyRecord(
        picture=scene.name,
        width=scene.width,
        height=scene.height,
        n_faces=scene.n_faces,
        rounds=done,
        n_found={name: contestants.systems[name, 1].run("n_faces", "detect") for name in (OURS, REFERENCE)},
        median_ms={
            system: {
                threads: {call: statistics.median(times[system, threads, call]) for call in CALLS}
                for threads in THREADS
            }
            for system in (OURS, REFERENCE)
        },
        stage_ms=middle_mean(stages),
        n_candidates=contestants.anatomy.run("counts"),
        floor_ms={name: statistics.median(values) for name, values in floors.items()},
    )


def tables(records: Sequence[LatencyRecord]) -> str:
    """All of it as Markdown."""
    parts = [
        "Detection, medians:",
        ratio_table(records, "detect"),
        "Bytes to result; the reference stack is Pillow, facenet-pytorch, EfficientNet-B0 (random weights) in torch:",
        ratio_table(records, "analyze"),
        "The floor on one thread, ms. Detection:",
        floor_table(records, "detect"),
        "Bytes to result:",
        floor_table(records, "analyze"),
        "Where the time goes on one thread, means between the quartiles; then the bare networks, medians:",
        parts_table(records),
        "Candidates:",
        counts_table(records),
    ]
    found = [record for record in records if set(record.n_found.values()) != {record.n_faces}]
    parts += [f"{record.picture}, {record.n_faces} faces: found {record.n_found}" for record in found]
    return "\n\n".join(parts)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.latency", description=__doc__)
    parser.add_argument("--engine", default="auto", choices=[name for name in ENGINE_NAMES if name != "torch"])
    parser.add_argument("--seconds", type=float, default=Effort.scene_s, help="for each picture")
    parser.add_argument("--json", type=Path, help=f"default: {FOLDER}/latency-ENGINE.json")
    parser.add_argument("--quick", action="store_true", help="one small picture, one round: does it work at all?")
    options = parser.parse_args(arguments)
    at_start = machine()
    effort = QUICK if options.quick else Effort(scene_s=options.seconds)
    scenes = small_scenes() if options.quick else all_scenes()
    engine = choose_engine(options.engine).name
    records = measure(engine, scenes, effort)
    print(f"# Latency, {engine}\n\n{heading(at_start)}\n\n{tables(records)}\n")
    results: dict[str, Any] = {
        "engine": engine,
        "effort": asdict(effort),
        "records": [record.as_json() for record in records],
    }
    path = options.json or FOLDER / f"latency-{engine}.json"
    write_json(path, command_line("benchmarks.latency", arguments), at_start, results)


if __name__ == "__main__":
    main()
