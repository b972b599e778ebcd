"""`python -m benchmarks.service`: what the service adds to the bare pipeline, in both topologies.

Two bare pipelines in two processes, the service with runners and the service inline are up at the same time and get
short windows in turns, on the same picture and the same two cores; the client's own process takes its share of them,
too. Prints Markdown tables and writes JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load import Answers, Load
from benchmarks.report import FOLDER, command_line, heading, machine, table, write_json
from benchmarks.scenes import Scene, composite_scene
from benchmarks.systems import Ours
from benchmarks.workers import Worker
from service.local import LocalService, running_service

BARE = "bare pipeline, two processes"
PATIENT = {"MIEN_QUEUE_TIMEOUT_MS": "60000"}
TOPOLOGIES = {
    "runners": {"MIEN_TOPOLOGY": "runners", "MIEN_DETECTOR_WORKERS": "2", **PATIENT},
    "inline": {"MIEN_TOPOLOGY": "inline", "MIEN_API_WORKERS": "2", **PATIENT},
}
CONCURRENCIES = (1, 8, 16, 32)
SETTLE_S = 0.2


def measure(scene: Scene, windows: int, window_s: float) -> tuple[dict[str, Any], dict[str, Any]]:
    """Rates and latencies by system and concurrency, and what each service needed to start and holds in memory."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="mien-bench-")))
        services = {
            name: stack.enter_context(running_service(folder / f"{name}.log", {**os.environ, **settings}))
            for name, settings in TOPOLOGIES.items()
        }
        bare = [stack.enter_context(Worker(partial(Ours, "auto", 1))) for _ in range(2)]
        client = stack.enter_context(Worker(Load))
        for worker in bare:
            worker.run("prepare", scene.jpeg)
        rates: dict[str, list[float]] = defaultdict(list)
        busy_s: dict[str, Counter[str]] = defaultdict(Counter)
        latencies: dict[str, list[Answers]] = defaultdict(list)
        for _ in range(windows):
            for worker in bare:
                worker.ask("window", "analyze", window_s, 1, 1)
            rates[BARE].append(sum(worker.answer() for worker in bare))
            for concurrency in CONCURRENCIES:
                for name, service in services.items():
                    time.sleep(SETTLE_S)
                    client.run("prepare", service.url, scene.jpeg)
                    before_s = _processor_s(service)
                    answers: Answers = client.run("closed", concurrency, window_s)
                    busy_s[f"{name} {concurrency}"] += _processor_s(service) - before_s
                    rates[f"{name} {concurrency}"].append(answers.rate)
                    latencies[f"{name} {concurrency}"].append(answers)
        results = {
            name: {"rate": statistics.fmean(each)} | _latencies(latencies.get(name, [])) for name, each in rates.items()
        }
        for name, seconds in busy_s.items():
            n_pictures = sum(results[name]["statuses"].values())
            results[name]["processor_ms"] = {each: 1000 * total / n_pictures for each, total in seconds.items()}
        return results, {name: _footprint(service) for name, service in services.items()}


def _latencies(windows: Sequence[Answers]) -> dict[str, Any]:
    if not windows:
        return {}
    together = Answers()
    for answers in windows:
        together.statuses += answers.statuses
        together.latencies_s += answers.latencies_s
    return {
        "p50_ms": together.quantile_s(0.5) * 1000,
        "p99_ms": together.quantile_s(0.99) * 1000,
        "statuses": dict(together.statuses),
    }


def _processes(service: LocalService) -> list[tuple[str, psutil.Process]]:
    parent = psutil.Process(service.pid)
    processes = [("supervisor", parent)]
    for child in parent.children():
        words = child.cmdline()
        processes.append((words[words.index("--service-name") + 1], child))
    return processes


def _processor_s(service: LocalService) -> Counter[str]:
    """Seconds of processor time by kind of process."""
    seconds: Counter[str] = Counter()
    for name, process in _processes(service):
        times = process.cpu_times()
        seconds[name] += times.user + times.system
    return seconds


def _footprint(service: LocalService) -> dict[str, Any]:
    """Seconds from start to ready, and MiB of memory of each process: resident (RSS), and its own alone (USS)."""
    processes = _processes(service)
    return {
        "start_s": service.start_s,
        "rss_mib": [(name, process.memory_info().rss / 2**20) for name, process in processes],
        "uss_mib": [(name, process.memory_full_info().uss / 2**20) for name, process in processes],
    }


def rates_table(results: dict[str, Any]) -> str:
    """The table of rates and latencies."""
    bare = results[BARE]["rate"]
    rows: list[list[object]] = [[BARE, "", f"{bare:.1f}", "", "", ""]]
    for name, result in results.items():
        if name != BARE:
            topology, concurrency = name.split()
            cells = [f"{result['rate']:.1f}", f"{result['rate'] / bare:.0%}"]
            rows.append([topology, concurrency, *cells, f"{result['p50_ms']:.0f}", f"{result['p99_ms']:.0f}"])
    return table(
        ["system", "requests at once", "pictures a second", "of the bare pipeline", "p50, ms", "p99, ms"], rows
    )


def processor_table(results: dict[str, Any]) -> str:
    """Where the processor time of a picture goes, by process."""
    rows = [
        [name, ", ".join(f"{each} {ms:.1f}" for each, ms in result["processor_ms"].items() if ms >= 0.05)]
        for name, result in results.items()
        if name != BARE
    ]
    bare = f"{2000 / results[BARE]['rate']:.1f} in all, both cores"
    return table(["topology, requests at once", "processor time of a picture, ms"], [[BARE, bare], *rows])


def footprint_table(footprints: dict[str, Any]) -> str:
    """The table of start times and memory."""
    rows = [
        [
            name,
            f"{each['start_s']:.1f}",
            ", ".join(f"{process} {rss:.0f}" for process, rss in each["rss_mib"]),
            f"{sum(uss for _, uss in each['uss_mib']):.0f}",
        ]
        for name, each in footprints.items()
    ]
    return table(["topology", "start to ready, s", "resident, MiB", "own pages of all, MiB"], rows)


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the tables, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.service", description=__doc__)
    parser.add_argument("--faces", type=int, default=1, help="in the picture of 640×480")
    parser.add_argument("--windows", type=int, default=3, help="for each system and concurrency")
    parser.add_argument("--seconds", type=float, default=4.0, help="of a window")
    parser.add_argument("--json", type=Path, help=f"default: {FOLDER}/service.json")
    options = parser.parse_args(arguments)
    at_start = machine()
    results, footprints = measure(composite_scene(640, 480, options.faces), options.windows, options.seconds)
    print(
        f"# The service beside the bare pipeline\n\n{heading(at_start)}; 640×480, {options.faces} faces; "
        f"{options.windows} windows of {options.seconds:g} s each in turns\n\n{rates_table(results)}\n\n"
        f"{processor_table(results)}\n\n{footprint_table(footprints)}\n"
    )
    path = options.json or FOLDER / "service.json"
    write_json(
        path, command_line("benchmarks.service", arguments), at_start, {"results": results, "footprints": footprints}
    )


if __name__ == "__main__":
    main()
