"""What the tests of the ray engine share: parts of named files and their bytes, without models."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path

from scoring.config import resolve_config
from scoring.engine import PartRecord
from scoring.errors import StoppedError
from scoring.output import Output
from scoring.parts import Entry, Part, cut_parts
from scoring.tally import Tally
from tests.scoring.in_process import RecordingProgress

CONFIG = resolve_config("fake", part_size=8)


def make_output(where: Path | str) -> Output:
    output = Output(str(where))
    output.prepare()
    return output


def make_parts(entries: Iterable[Entry]) -> list[Part]:
    return list(cut_parts(sorted(entries, key=lambda entry: entry.sort_key), CONFIG.part_size, CONFIG.fingerprint))


def named_parts(names: Iterable[str]) -> list[Part]:
    return make_parts(Entry(name, 1, "") for name in names)


def contents(output: Output) -> dict[str, bytes]:
    return {name: output.read_part(name) for name in output.part_names()}


def total(records: Iterable[PartRecord]) -> Tally:
    tally = Tally()
    for record in records:
        tally.add(record.tally)
    return tally


def wait_until_gone(pids: Iterable[int]) -> None:
    """Within half a minute, or the test fails."""
    left = set(pids)
    for _ in range(300):
        left = {pid for pid in left if _is_there(pid)}
        if not left:
            return
        time.sleep(0.1)
    raise AssertionError(f"processes {sorted(left)} are still there")


def _is_there(pid: int) -> bool:
    try:
        os.kill(pid, 0)
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (OSError, IndexError):
        return False


class StoppingProgress(RecordingProgress):
    """Somebody stops the run as soon as this is so."""

    def __init__(self, when: Callable[[StoppingProgress], bool]) -> None:
        super().__init__()
        self._when = when

    def tick(self) -> None:
        super().tick()
        if self._when(self):
            raise StoppedError("stopped by the test")
