"""Resident memory of the real command and its workers while it lists and scores a great many empty files."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from benchmarks.report import table

_FILES_A_FOLDER = 1_000
_SAMPLE_S = 0.2
_LISTING = "listing"


@dataclass(frozen=True)
class MemorySample:
    """One look at the processes. n_parts: that stood then. coordinator_mib, workers_mib: resident, workers together."""

    after_s: float
    n_parts: int
    coordinator_mib: float
    workers_mib: float


@dataclass(frozen=True)
class Memory:
    """All samples of a run, in order. peak_mib: of the coordinator, as the kernel saw it."""

    n_files: int
    n_parts: int
    taken_s: float
    peak_mib: float
    samples: list[MemorySample]

    def stages(self) -> list[tuple[str, MemorySample]]:
        """The last sample of the listing, the first one of scoring, and that nearest to each tenth of the parts."""
        listing = [sample for sample in self.samples if not sample.n_parts]
        scoring = [sample for sample in self.samples if sample.n_parts]
        stages = [(_LISTING, listing[-1])] if listing else []
        for tenth in range(11 if scoring else 0):
            wanted = self.n_parts * tenth / 10
            stages.append((f"{tenth * 10} %", min(scoring, key=lambda sample: abs(sample.n_parts - wanted))))
        return stages

    def as_json(self) -> dict[str, Any]:
        """The fields, with the stages instead of all samples."""
        stages = [{"stage": stage} | asdict(sample) for stage, sample in self.stages()]
        return asdict(self) | {"samples": len(self.samples), "stages": stages}


def measure_memory(n_files: int, n_workers: int, folder: Path) -> Memory:
    """Make the files in the folder, run the command on them, and look on. Needs Linux."""
    make_empty_files(n_files, folder / "files")
    out = folder / "out"
    command = [sys.executable, "-m", "scoring", str(folder / "files"), "--output", str(out), "--recursive"]
    command += ["--model", "fake", "--workers", str(n_workers), "--progress", "none"]
    samples = []
    peak_mib = 0.0
    started_s = time.perf_counter()
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            while process.poll() is None:
                time.sleep(_SAMPLE_S)
                own = _status(process.pid)
                if "VmRSS" not in own:
                    continue
                peak_mib = max(peak_mib, own["VmHWM"])
                workers_mib = sum(_status(pid).get("VmRSS", 0.0) for pid in descendants(process.pid))
                n_parts = sum(1 for _ in (out / "parts").glob("part-*"))
                samples.append(MemorySample(time.perf_counter() - started_s, n_parts, own["VmRSS"], workers_mib))
        finally:
            process.kill()
    if process.returncode != 2:
        raise RuntimeError(f"the command ended with {process.returncode}; empty files are failed files, which is 2")
    n_parts = sum(1 for _ in (out / "parts").glob("part-*"))
    return Memory(n_files, n_parts, time.perf_counter() - started_s, peak_mib, samples)


def make_empty_files(n: int, folder: Path) -> None:
    """Make `n` empty files, a thousand in each of many folders."""
    for first in range(0, n, _FILES_A_FOLDER):
        below = folder / f"{first // _FILES_A_FOLDER:06d}"
        below.mkdir(parents=True)
        for number in range(first, min(n, first + _FILES_A_FOLDER)):
            os.mknod(below / f"{number:08d}.jpg")  # half the time of opening it


def descendants(pid: int) -> list[int]:
    """The processes below one, however deep."""
    children: dict[int, list[int]] = {}
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            continue
        children.setdefault(parent, []).append(int(folder.name))
    found, open_ = [], [pid]
    while open_:
        below = children.get(open_.pop(), [])
        found += below
        open_ += below
    return found


def tree_cpu_s(pid: int) -> float:
    """The processor time that a process and all that live below it have used."""
    ticks = 0
    for each in (pid, *descendants(pid)):
        try:
            fields = Path(f"/proc/{each}/stat").read_text().rpartition(")")[2].split()
        except OSError:
            continue
        ticks += int(fields[11]) + int(fields[12])
    return ticks / os.sysconf("SC_CLK_TCK")


def _status(pid: int) -> dict[str, float]:
    """The memory lines of a process in MiB; none when it is gone."""
    try:
        lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    except OSError:
        return {}
    return {line.split(":")[0]: int(line.split()[1]) / 1024 for line in lines if line.startswith("Vm")}


def memory_table(memory: Memory) -> str:
    """A line a stage, and the peak."""
    rows: list[Sequence[object]] = [
        [stage, f"{sample.after_s:.0f}", f"{sample.coordinator_mib:.0f}", f"{sample.workers_mib:.0f}"]
        for stage, sample in memory.stages()
    ]
    rows.append(["peak of the coordinator", f"{memory.taken_s:.0f}", f"{memory.peak_mib:.0f}", ""])
    return table(["parts written", "after s", "coordinator", "workers together"], rows)
