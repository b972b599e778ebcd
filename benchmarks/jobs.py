"""`python -m benchmarks.jobs`: what callers of the service feel of a job that runs meanwhile.

One service with one job over a folder of pictures. Short windows of interactive requests alternate: in every second
one the processes of the job are stopped (SIGSTOP), so that both kinds see the same machine in the same minutes. Prints
a Markdown table and writes JSON.
"""

from __future__ import annotations

import argparse
import os
import statistics
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import psutil

from benchmarks.load import Answers, Load
from benchmarks.report import FOLDER, command_line, heading, machine, table, write_json
from benchmarks.scenes import composite_scene
from benchmarks.workers import Worker
from service.client import Client
from service.local import LocalService, running_service

LOW_RATE = 2.0
"""Requests a second of the first kind of load, whatever comes of them."""

LOADS = {f"{LOW_RATE:g} a second": ("open", LOW_RATE), "one at a time": ("closed", 1), "4 at once": ("closed", 4)}
SETTLE_S = 0.5

_N_FILES = 20_000
_START_S = 120.0


def measure(
    windows: int, window_s: float, niceness: int, n_files: int = _N_FILES, **variables: str
) -> dict[str, dict[str, Any]]:
    """Latencies by load, without and with a job, and the job's rates. variables: of the service, over its defaults."""
    picture = composite_scene(640, 480, 1).jpeg
    with tempfile.TemporaryDirectory(prefix="mien-bench-") as name:
        folder = Path(name)
        _make_pictures(folder / "photos", picture, n_files)
        environment = {
            **os.environ,
            "MIEN_SCORING_ROOTS": str(folder / "photos"),
            "MIEN_JOB_NICENESS": str(niceness),
            "MIEN_QUEUE_TIMEOUT_MS": "60000",
            **variables,
        }
        latencies: dict[tuple[str, bool], list[Answers]] = defaultdict(list)
        rates: dict[str, list[float]] = defaultdict(list)
        with (
            running_service(folder / "service.log", environment) as service,
            Worker(Load) as client,
            Client(service.url) as mien,
        ):
            client.run("prepare", service.url, picture)
            client.run("closed", 4, 1.0)
            job_id = mien.create_job("photos").id
            _wait_until_scored(mien, job_id)
            for _ in range(windows):
                rates["alone"].append(_rate_of_job(mien, job_id, window_s))
                for load, (method, amount) in LOADS.items():
                    with _stopped(_job_processes(service)):
                        time.sleep(SETTLE_S)
                        latencies[load, False].append(client.run(method, amount, window_s))
                    time.sleep(SETTLE_S)
                    client.ask(method, amount, window_s)
                    rates[load].append(_rate_of_job(mien, job_id, window_s))
                    latencies[load, True].append(client.answer())
            mien.cancel_job(job_id)
    found: dict[str, dict[str, Any]] = {"alone": {"job_rate": statistics.fmean(rates["alone"])}}
    for load in LOADS:
        found[load] = {
            "without": _quantiles(latencies[load, False]),
            "with": _quantiles(latencies[load, True]),
            "job_rate": statistics.fmean(rates[load]),
        }
    return found


def latency_table(results: dict[str, dict[str, Any]]) -> str:
    """p50 and p95 without and with the job, their ratios, and what the job got done meanwhile."""
    rows: list[list[object]] = []
    for load, each in results.items():
        if load == "alone":
            rows.append(["none", "", "", "", "", "", "", f"{each['job_rate']:.1f}"])
            continue
        without, meanwhile = each["without"], each["with"]
        row: list[object] = [load]
        for name in ("p50_ms", "p95_ms"):
            row += [f"{without[name]:.0f}", f"{meanwhile[name]:.0f}", f"{meanwhile[name] / without[name]:.2f}"]
        rows.append([*row, f"{each['job_rate']:.1f}"])
    return table(
        [
            "interactive requests",
            "p50 without, ms",
            "with a job, ms",
            "ratio",
            "p95 without, ms",
            "with a job, ms",
            "ratio",
            "the job's files a second",
        ],
        rows,
    )


def _make_pictures(folder: Path, picture: bytes, n: int) -> None:
    folder.mkdir()
    first = folder / "000000.jpg"
    first.write_bytes(picture)
    for index in range(1, n):
        (folder / f"{index:06d}.jpg").hardlink_to(first)


def _wait_until_scored(mien: Client, job_id: str) -> None:
    end_s = time.monotonic() + _START_S
    while not mien.job(job_id).progress.files_done:
        if time.monotonic() > end_s:
            raise RuntimeError(f"the job does not begin: {mien.job(job_id)}")
        time.sleep(0.2)


def _rate_of_job(mien: Client, job_id: str, seconds: float) -> float:
    """Files a second over about so many seconds, between two moments at which the job has told how far it is."""
    started_s, before = time.monotonic(), mien.job(job_id).progress.files_done
    time.sleep(seconds)
    return (mien.job(job_id).progress.files_done - before) / (time.monotonic() - started_s)


def _job_processes(service: LocalService) -> list[psutil.Process]:
    for child in psutil.Process(service.pid).children():
        if child.cmdline()[-1] == "service.jobs":
            return [child, *child.children(recursive=True)]
    raise RuntimeError("no process works on jobs")


@contextmanager
def _stopped(processes: Sequence[psutil.Process]) -> Iterator[None]:
    for process in processes:
        process.suspend()
    try:
        yield
    finally:
        for process in processes:
            process.resume()


def _quantiles(windows: Sequence[Answers]) -> dict[str, Any]:
    together = Answers()
    for answers in windows:
        together.statuses += answers.statuses
        together.latencies_s += answers.latencies_s
    return {
        "p50_ms": together.quantile_s(0.5) * 1000,
        "p95_ms": together.quantile_s(0.95) * 1000,
        "statuses": dict(together.statuses),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print the table, write the JSON."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.jobs", description=__doc__)
    parser.add_argument("--windows", type=int, default=6, help="for each load, without and with the job")
    parser.add_argument("--seconds", type=float, default=5.0, help="of a window")
    parser.add_argument("--niceness", type=int, default=19, help="of the job, MIEN_JOB_NICENESS")
    parser.add_argument("--json", type=Path, help=f"default: {FOLDER}/jobs.json")
    options = parser.parse_args(arguments)
    at_start = machine()
    results = measure(options.windows, options.seconds, options.niceness)
    print(
        f"# Interactive requests while a job runs\n\n{heading(at_start)}; 640×480, one face; niceness "
        f"{options.niceness}; {options.windows} windows of {options.seconds:g} s each in turns\n\n"
        f"{latency_table(results)}\n"
    )
    write_json(
        options.json or FOLDER / "jobs.json",
        command_line("benchmarks.jobs", arguments),
        at_start,
        {"results": results},
    )


if __name__ == "__main__":
    main()
