"""`python -m benchmarks.throughput`: pictures a second on two cores, beside facenet-pytorch and the reference stack.

Each way of using two cores gets short windows of all processes at once, the ways in alternation. "At its best" is the
fastest way of each. Prints Markdown tables and writes JSON.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.latency_record import CALLS, OURS, REFERENCE
from benchmarks.report import FOLDER, command_line, heading, machine, ratio, table, write_json
from benchmarks.scenes import Scene, composite_scene, small_scenes
from benchmarks.systems import Ours, Reference
from benchmarks.workers import Worker
from handlers.engines import ENGINE_NAMES, choose_engine

BATCH = 4
"""Pictures of one call where a way says batches; facenet-pytorch was no faster with 8."""

SETTLE_S = 0.1


@dataclass(frozen=True)
class Way:
    """One way of keeping two cores busy.

    compute_threads: of one call. calling_threads: that make calls in each process. n_pictures: of one call.
    """

    system: str
    n_processes: int
    compute_threads: int = 1
    calling_threads: int = 1
    n_pictures: int = 1

    def __str__(self) -> str:
        processes = "one process" if self.n_processes == 1 else "two processes"
        threads = ", two compute threads" if self.compute_threads == 2 else ""
        threads += ", two calling threads" if self.calling_threads == 2 else ""
        return processes + threads + (f", batches of {self.n_pictures}" if self.n_pictures > 1 else "")


WAYS = (
    Way(OURS, 2),
    Way(OURS, 1, calling_threads=2),
    Way(OURS, 2, n_pictures=BATCH),
    Way(REFERENCE, 2),
    Way(REFERENCE, 1, compute_threads=2),
    Way(REFERENCE, 2, n_pictures=BATCH),
)


@dataclass(frozen=True)
class ThroughputRecord:
    """One picture and call. rates: mean pictures a second of each way, in the order of `WAYS`."""

    picture: str
    n_faces: int
    call: str
    rates: list[float]

    def best(self, system: str) -> tuple[Way, float]:
        """The fastest way of a system."""
        own = [(way, rate) for way, rate in zip(WAYS, self.rates, strict=True) if way.system == system]
        return max(own, key=lambda pair: pair[1])

    @property
    def ratio(self) -> float:
        """Ours at its best over the reference at its best."""
        return self.best(OURS)[1] / self.best(REFERENCE)[1]

    def as_json(self) -> dict[str, Any]:
        """The fields, and what is derived from them."""
        best = {system: str(self.best(system)[0]) for system in (OURS, REFERENCE)}
        return asdict(self) | {"ways": [f"{way.system}: {way}" for way in WAYS], "best": best, "ratio": self.ratio}


def measure(engine: str, scenes: Sequence[Scene], windows: int, window_s: float) -> list[ThroughputRecord]:
    """One record a picture and call."""
    with ExitStack() as stack:
        processes = {way: _processes(way, engine, stack) for way in _distinct(WAYS)}
        for worker in (worker for workers in processes.values() for worker in workers):
            worker.wait()
        records = []
        for scene in scenes:
            for workers in processes.values():
                _on_all(workers, "prepare", scene.jpeg)
            for call in CALLS:
                rates: dict[Way, list[float]] = defaultdict(list)
                for _ in range(windows):
                    for way in WAYS:
                        time.sleep(SETTLE_S)
                        workers = processes[_distinct([way])[0]]
                        results = _on_all(workers, "window", call, window_s, way.n_pictures, way.calling_threads)
                        rates[way].append(sum(results))
                means = [statistics.fmean(rates[way]) for way in WAYS]
                records.append(ThroughputRecord(scene.name, scene.n_faces, call, means))
        return records


def _distinct(ways: Sequence[Way]) -> list[Way]:
    """The ways without what does not need processes of their own."""
    return list(dict.fromkeys(Way(way.system, way.n_processes, way.compute_threads) for way in ways))


def _processes(way: Way, engine: str, stack: ExitStack) -> list[Worker]:
    loads: dict[str, Callable[[], object]] = {
        OURS: partial(Ours, engine, way.compute_threads),
        REFERENCE: partial(Reference, way.compute_threads),
    }
    return [stack.enter_context(Worker(loads[way.system])) for _ in range(way.n_processes)]


def _on_all(workers: Sequence[Worker], method: str, *arguments: object) -> list[Any]:
    """A call on all at the same time."""
    for worker in workers:
        worker.ask(method, *arguments)
    return [worker.answer() for worker in workers]


def ratio_table(records: Sequence[ThroughputRecord]) -> str:
    """Each system at its best."""
    rows = []
    for record in records:
        (our_way, ours), (their_way, theirs) = record.best(OURS), record.best(REFERENCE)
        what = "detection" if record.call == "detect" else "bytes → result"
        cells = [f"{ours:.1f} ({our_way})", f"{theirs:.1f} ({their_way})", ratio(record.ratio)]
        rows.append([record.picture, record.n_faces, what, *cells])
    return table(["picture", "faces", "what", "ours at its best", "reference at its best", "ratio"], rows)


def ways_table(records: Sequence[ThroughputRecord]) -> str:
    """Pictures a second of every way."""
    head = ["pictures a second", *(f"{each.picture}, {each.n_faces}, {each.call}" for each in records)]
    rows = [
        [f"{way.system}: {way}", *(f"{record.rates[index]:.1f}" for record in records)]
        for index, way in enumerate(WAYS)
    ]
    return table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--engine", default="auto", choices=[name for name in ENGINE_NAMES if name != "torch"])
    parser.add_argument("--windows", type=int, default=2, help="for each way, picture and call")
    parser.add_argument("--seconds", type=float, default=2.5, help="of a window")
    parser.add_argument("--json", type=Path, help=f"default: {FOLDER}/throughput-ENGINE.json")
    parser.add_argument("--quick", action="store_true", help="one small picture, one call a window: does it work?")
    options = parser.parse_args(arguments)
    if options.quick:
        options.windows, options.seconds = 1, 0.0
    scenes = small_scenes() if options.quick else [composite_scene(640, 480, n_faces) for n_faces in (1, 6)]
    at_start = machine()
    engine = choose_engine(options.engine).name
    records = measure(engine, scenes, options.windows, options.seconds)
    print(
        f"# Throughput on two cores, {engine}\n\n{heading(at_start)}; pictures a second, "
        f"{options.windows} windows of {options.seconds:g} s each in alternation\n\n{ratio_table(records)}\n\n"
        f"{ways_table(records)}\n"
    )
    path = options.json or FOLDER / f"throughput-{engine}.json"
    results: dict[str, Any] = {
        "engine": engine,
        "windows": options.windows,
        "window_s": options.seconds,
        "records": [record.as_json() for record in records],
    }
    write_json(path, command_line("benchmarks.throughput", arguments), at_start, results)


if __name__ == "__main__":
    main()
