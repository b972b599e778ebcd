"""`python -m benchmarks.scoring`: bulk scoring on two cores beside the sum of two bare pipelines, and its memory.

Both score the same files in the same run, in turns. A bare pipeline is a process that does nothing but read files and
call `Pipeline.analyze` on each. The processor time of a file is told beside the rates, as it depends less on what else
the machine does; that of the local engine includes the handing out of files, and the rows and their writing.
`--memory` measures the other thing instead, see `benchmarks.scoring_memory`. Prints Markdown tables and writes JSON.
Needs Linux.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from benchmarks.report import FOLDER, command_line, heading, machine, table, write_json
from benchmarks.scenes import Scene, composite_scene, small_scenes
from benchmarks.scoring_memory import measure_memory, memory_table, tree_cpu_s
from benchmarks.workers import Worker
from handlers.pipeline import load_pipeline
from handlers.results import Analysis
from scoring.config import resolve_config
from scoring.display import Meter
from scoring.local_engine import LocalEngine
from scoring.output import Output
from scoring.run import ScoringJob, run
from scoring.scorer import MakeScorer
from scoring.sources import open_source
from scoring.tally import Tally

N_WORKERS = 2
TARGET = 0.9
PART_SIZE = 64

_SETTLE_S = 0.2


class BarePipeline:
    """A pipeline, and files that it scores one after the other."""

    def __init__(self, model: str) -> None:
        self._pipeline = load_pipeline(model)

    def score(self, paths: Sequence[Path]) -> tuple[int, float, float]:
        """How many faces were found, and the seconds that it took, by the clock and of the processor."""
        started_s, cpu_started_s = time.perf_counter(), time.process_time()
        n_faces = 0
        for path in paths:
            (result,) = self._pipeline.analyze([path.read_bytes()])
            assert isinstance(result, Analysis), result
            n_faces += len(result.faces)
        return n_faces, time.perf_counter() - started_s, time.process_time() - cpu_started_s


@dataclass(frozen=True)
class Turn:
    """One way over all files. rate: files a second. cpu_ms: processor time of a file, of all processes together."""

    rate: float
    cpu_ms: float
    n_faces: int


@dataclass(frozen=True)
class _Count:
    n_scored: int
    at_s: float
    cpu_s: float


class _Stopwatch:
    """A run's progress, of which the time between the first and the last count is kept: workers load before it."""

    def __init__(self) -> None:
        self.meter = Meter()
        self._counts: list[_Count] = []

    def listed(self, n_entries: int, *, done: bool) -> None:
        self.meter.listed(n_entries, done=done)

    def standing(self, tally: Tally) -> None:
        raise AssertionError("a fresh output has no parts")

    def scored(self, tally: Tally) -> None:
        self.meter.scored(tally)
        if not self._counts or self.meter.n_scored == self.meter.n_listed:
            self._counts.append(_Count(self.meter.n_scored, time.perf_counter(), tree_cpu_s(os.getpid())))

    def tick(self) -> None:
        pass

    @property
    def turn(self) -> Turn:
        """A count comes after its files, so those of the first one are left out with their time."""
        first, last = self._counts[0], self._counts[-1]
        n_files, seconds = last.n_scored - first.n_scored, last.at_s - first.at_s
        if n_files == 0:  # so few files that they came in one count
            return Turn(self.meter.overall_rate or 0.0, last.cpu_s * 1000 / last.n_scored, 0)
        return Turn(n_files / seconds, (last.cpu_s - first.cpu_s) * 1000 / n_files, 0)


@dataclass(frozen=True)
class ScoringRecord:
    """One kind of picture. bare, local: files a second of each round; bare is the sum of two processes.

    bare_cpu_ms, local_cpu_ms: processor time of a file in each round.
    """

    picture: str
    n_faces: int
    n_files: int
    bare: list[float]
    local: list[float]
    bare_cpu_ms: list[float]
    local_cpu_ms: list[float]

    @property
    def share(self) -> float:
        """The local engine's rate over that of the bare pipelines: the median of the rounds' own shares."""
        return statistics.median(local / bare for local, bare in zip(self.local, self.bare, strict=True))

    def as_json(self) -> dict[str, Any]:
        """The fields, and what is derived from them."""
        return asdict(self) | {"share": self.share}


def measure(model: str, scenes: Sequence[Scene], n_files: int, rounds: int, folder: Path) -> list[ScoringRecord]:
    """One record a scene. folder: where the files and the outputs go."""
    with ExitStack() as stack:
        workers = [stack.enter_context(Worker(partial(BarePipeline, model))) for _ in range(N_WORKERS)]
        records = []
        for scene in scenes:
            paths = write_distinct(scene.jpeg, n_files, folder / f"{scene.width}-{scene.n_faces}")
            _bare_turn(workers, paths[: 4 * N_WORKERS])
            bare: list[Turn] = []
            local: list[Turn] = []
            for number in range(rounds):
                out = folder / f"out-{scene.width}-{scene.n_faces}-{number}"
                # Whoever came second in one round is first in the next, so that a drift of the machine favours nobody.
                for is_bare in (True, False) if number % 2 else (False, True):
                    time.sleep(_SETTLE_S)
                    if is_bare:
                        bare.append(_bare_turn(workers, paths))
                    else:
                        local.append(_local_turn(model, paths[0].parent, out))
                assert bare[-1].n_faces == local[-1].n_faces, "both found the same"
            rates = ([turn.rate for turn in turns] for turns in (bare, local))
            cpu_ms = ([turn.cpu_ms for turn in turns] for turns in (bare, local))
            records.append(ScoringRecord(scene.name, scene.n_faces, n_files, *rates, *cpu_ms))
        return records


def write_distinct(jpeg: bytes, n: int, folder: Path) -> list[Path]:
    """Write `n` files of the same pixels and different bytes: each has its number in a JPEG comment."""
    folder.mkdir(parents=True)
    paths = []
    for number in range(n):
        comment = str(number).encode()
        path = folder / f"{number:05d}.jpg"
        path.write_bytes(jpeg[:2] + b"\xff\xfe" + (len(comment) + 2).to_bytes(2, "big") + comment + jpeg[2:])
        paths.append(path)
    return paths


def _bare_turn(workers: Sequence[Worker], paths: Sequence[Path]) -> Turn:
    shares = [paths[index :: len(workers)] for index in range(len(workers))]
    for worker, share in zip(workers, shares, strict=True):
        worker.ask("score", share)
    answers = [worker.answer() for worker in workers]
    rate = sum(len(share) / seconds for share, (_, seconds, _) in zip(shares, answers, strict=True))
    cpu_s = sum(cpu_s for _, _, cpu_s in answers)
    return Turn(rate, cpu_s * 1000 / len(paths), sum(n_faces for n_faces, _, _ in answers))


def _local_turn(model: str, folder: Path, out: Path) -> Turn:
    source, config, output = open_source(str(folder)), resolve_config(model, part_size=PART_SIZE), Output(str(out))
    engine = LocalEngine(MakeScorer(source, config), config, output, N_WORKERS, file_timeout_s=300)
    watch = _Stopwatch()
    result = run(ScoringJob(source, output, config), engine, watch)
    assert result.complete
    assert not result.tally.n_failed
    return replace(watch.turn, n_faces=result.tally.n_faces)


def rates_table(records: Sequence[ScoringRecord]) -> str:
    """Medians over the rounds."""
    head = ["picture", "faces", "two bare pipelines, files/s", "local, two workers, files/s", "share", "processor time"]
    rows = [
        [
            record.picture,
            record.n_faces,
            f"{statistics.median(record.bare):.1f} ({min(record.bare):.1f}–{max(record.bare):.1f})",
            f"{statistics.median(record.local):.1f} ({min(record.local):.1f}–{max(record.local):.1f})",
            f"**{record.share * 100:.1f} %**",
            f"{statistics.median(record.bare_cpu_ms):.1f} → {statistics.median(record.local_cpu_ms):.1f} ms a file",
        ]
        for record in records
    ]
    return table(head, rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.scoring", description=__doc__)
    parser.add_argument("--model", default="default", help="of the throughput; memory is that of the fake one")
    parser.add_argument("--rounds", type=int, default=5, help="each of both ways over all files")
    parser.add_argument("--files", type=int, help="default: 300, with --memory 1,000,000")
    parser.add_argument("--memory", action="store_true", help="resident memory over a million empty files, instead")
    parser.add_argument("--json", type=Path, help=f"default: {FOLDER}/scoring.json or {FOLDER}/scoring-memory.json")
    parser.add_argument("--quick", action="store_true", help="a few files: does it work?")
    options = parser.parse_args(arguments)
    at_start = machine()
    command = command_line("benchmarks.scoring", arguments)
    with tempfile.TemporaryDirectory(prefix="mien-bench-") as name:
        if options.memory:
            n_files = options.files or (5_000 if options.quick else 1_000_000)
            memory = measure_memory(n_files, N_WORKERS, Path(name))
            print(
                f"# Memory of bulk scoring\n\n{heading(at_start)}; {n_files:,} empty files, `--model fake`, "
                f"{N_WORKERS} workers; resident MiB\n\n{memory_table(memory)}\n"
            )
            results: dict[str, Any] = memory.as_json()
        else:
            scenes = small_scenes() if options.quick else [composite_scene(640, 480, n_faces) for n_faces in (1, 6)]
            rounds, n_files = (1, options.files or 12) if options.quick else (options.rounds, options.files or 300)
            records = measure(options.model, scenes, n_files, rounds, Path(name))
            print(
                f"# Throughput of bulk scoring\n\n{heading(at_start)}; medians of {rounds} rounds in turns "
                f"over {n_files} files each (lowest–highest); target {TARGET * 100:.0f} %\n\n{rates_table(records)}\n"
            )
            results = {"rounds": rounds, "target": TARGET, "records": [record.as_json() for record in records]}
        path = options.json or FOLDER / ("scoring-memory.json" if options.memory else "scoring.json")
        write_json(path, command, at_start, results)


if __name__ == "__main__":
    main()
