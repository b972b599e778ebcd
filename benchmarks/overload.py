"""`python -m benchmarks.overload`: ten times the load that the service sustains, for half a minute.

Exits with 1 unless every answer is a 200 or a 429, the 99th percentile of the accepted stays under three times the
unloaded one plus the bound of the queue, and memory stays bounded.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import psutil

from benchmarks.load import Answers, Load
from benchmarks.report import FOLDER, command_line, heading, machine, table, write_json
from benchmarks.scenes import composite_scene
from benchmarks.workers import Worker
from service.local import LocalService, running_service
from service.settings import Settings

TIMES = 10
MOST_GROWTH_MIB = 400


@dataclass(frozen=True)
class Overload:
    """What was measured. sustained: good answers a second of eight clients. memory_mib: resident, of all processes."""

    unloaded_p99_s: float
    sustained: float
    offered: float
    statuses: dict[str, int]
    accepted_rate: float
    accepted_p50_s: float
    accepted_p99_s: float
    queue_bound_s: float
    memory_before_mib: float
    memory_peak_mib: float

    @property
    def bound_s(self) -> float:
        """What the 99th percentile of the accepted may be."""
        return 3 * self.unloaded_p99_s + self.queue_bound_s

    def failures(self) -> list[str]:
        """What is not as it should be."""
        found = []
        if others := set(self.statuses) - {"200", "429"}:
            found.append(f"other answers than 200 and 429: {', '.join(sorted(others))}")
        if self.accepted_p99_s > self.bound_s:
            found.append(f"p99 of the accepted is {self.accepted_p99_s:.2f} s, over {self.bound_s:.2f} s")
        if self.memory_peak_mib > self.memory_before_mib + MOST_GROWTH_MIB:
            found.append(f"memory grew from {self.memory_before_mib:.0f} to {self.memory_peak_mib:.0f} MiB")
        return found


def measure(service: LocalService, picture: bytes, seconds: float, queue_bound_s: float) -> Overload:
    """Load a service that is up."""
    with Worker(Load) as client:
        client.run("prepare", service.url, picture)
        client.run("closed", 8, 2.0)  # let the batching learn
        unloaded: Answers = client.run("closed", 1, max(3.0, seconds / 3))
        sustained: Answers = client.run("closed", 8, max(3.0, seconds / 3))
        before_mib = peak_mib = _resident_mib(service)
        offered = TIMES * sustained.rate
        client.ask("open", offered, seconds)
        while not client.answered(0.5):
            peak_mib = max(peak_mib, _resident_mib(service))
        answers: Answers = client.answer()
    return Overload(
        unloaded.quantile_s(0.99),
        sustained.rate,
        offered,
        dict(answers.statuses),
        answers.rate,
        answers.quantile_s(0.5),
        answers.quantile_s(0.99),
        queue_bound_s,
        before_mib,
        peak_mib,
    )


def _resident_mib(service: LocalService) -> float:
    parent = psutil.Process(service.pid)
    return sum(process.memory_info().rss for process in [parent, *parent.children(recursive=True)]) / 2**20


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.overload", description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--json", type=Path, help=f"default: {FOLDER}/overload.json")
    options = parser.parse_args(arguments)
    at_start = machine()
    picture = composite_scene(640, 480, 6).jpeg
    queue_bound_s = Settings().queue_timeout_ms / 1000
    with (
        tempfile.TemporaryDirectory(prefix="mien-bench-") as folder,
        running_service(Path(folder) / "service.log", os.environ) as service,
    ):
        result = measure(service, picture, options.seconds, queue_bound_s)
    rows: list[list[object]] = [
        ["unloaded p99", f"{result.unloaded_p99_s * 1000:.0f} ms"],
        ["sustained by 8 clients", f"{result.sustained:.1f} a second"],
        ["offered", f"{result.offered:.0f} a second for {options.seconds:g} s"],
        ["answers", ", ".join(f"{status}: {count}" for status, count in sorted(result.statuses.items()))],
        ["accepted", f"{result.accepted_rate:.1f} a second"],
        [
            "p50 and p99 of the accepted",
            f"{result.accepted_p50_s * 1000:.0f} and {result.accepted_p99_s * 1000:.0f} ms",
        ],
        ["bound: 3 × unloaded p99 + queue", f"{result.bound_s * 1000:.0f} ms"],
        ["resident memory, before and peak", f"{result.memory_before_mib:.0f} and {result.memory_peak_mib:.0f} MiB"],
    ]
    print(f"# Overload\n\n{heading(at_start)}; 640×480, 6 faces\n\n{table(['what', 'measured'], rows)}\n")
    path = options.json or FOLDER / "overload.json"
    write_json(path, command_line("benchmarks.overload", arguments), at_start, asdict(result))
    if failures := result.failures():
        sys.exit("; ".join(failures))


if __name__ == "__main__":
    main()
