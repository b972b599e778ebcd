"""The real command over 2,000 pictures: killed, resumed, with a file that kills, through Ray.

With the fake models always, which decode really; with the real ones when slow tests are asked for.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
import zlib
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.scoring.pictures import make_folder

N = 2_000
INSTRUMENT = Path(__file__).parent / "instrument"
DEADLINE_S = 240

pytestmark = pytest.mark.timeout(600)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("pictures")
    return folder, make_folder(folder, N)


class Command:
    """One run of `python -m scoring` that notes what its workers judge."""

    def __init__(
        self, model: str, folder: Path, out: Path, log: Path, *options: str, killer: bytes | None = None
    ) -> None:
        self.out, self._log = out, log
        log.unlink(missing_ok=True)
        environment = {**os.environ, "PYTHONPATH": str(INSTRUMENT), "MIEN_TEST_JUDGED": str(log)}
        if killer is not None:
            environment["MIEN_TEST_KILLER"] = str(zlib.crc32(killer))
        self.process = subprocess.Popen(
            [
                sys.executable,
                "-m",
                "scoring",
                str(folder),
                "--output",
                str(out),
                "--recursive",
                *OPTIONS,
                model,
                *options,
            ],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    def end(self) -> str:
        """What it printed, once it has ended."""
        return self.process.communicate(timeout=DEADLINE_S)[0]

    def kill_when(self, is_time: Callable[[], bool]) -> None:
        """SIGKILL to the run; its workers must notice by themselves."""
        until = time.monotonic() + DEADLINE_S
        while not is_time():
            assert self.process.poll() is None, self.end()
            assert time.monotonic() < until
            time.sleep(0.01)
        self.process.send_signal(signal.SIGKILL)
        self.end()

    def judged(self) -> Counter[int]:
        """How often each picture was judged, by its checksum."""
        return Counter(int(line) for line in self._log.read_text().split())

    @property
    def parts(self) -> list[Path]:
        return sorted((self.out / "parts").glob("part-*"))

    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.out).as_posix(): path.read_bytes()
            for path in sorted(self.out.rglob("*"))
            if path.is_file()
        }


OPTIONS = ("--workers", "2", "--part-size", "64", "--progress", "plain", "--model")


@pytest.fixture(scope="module", params=["fake", pytest.param("default", marks=pytest.mark.slow)])
def model(request: pytest.FixtureRequest) -> str:
    if request.param != "fake":
        request.getfixturevalue("store")
    return str(request.param)


@pytest.fixture(scope="module")
def undisturbed(pictures: tuple[Path, dict[str, str]], model: str, tmp_path_factory: pytest.TempPathFactory) -> Command:
    folder = tmp_path_factory.mktemp("undisturbed")
    command = Command(model, pictures[0], folder / "out", folder / "judged")
    printed = command.end()
    assert command.process.returncode == 2, printed
    return command


def rows_of(parts: list[Path]) -> list[dict[str, object]]:
    import pyarrow.parquet as pq

    return [row for part in parts for row in pq.read_table(part).to_pylist()]


def checksums(folder: Path, paths: set[str]) -> set[int]:
    return {zlib.crc32((folder / path).read_bytes()) for path in paths}


def test_an_undisturbed_run_scores_each_picture_once(
    pictures: tuple[Path, dict[str, str]], undisturbed: Command
) -> None:
    folder, broken = pictures
    rows = rows_of(undisturbed.parts)
    assert {row["path"] for row in rows} == {path.relative_to(folder).as_posix() for path in folder.rglob("*.jpg")}
    assert {row["path"]: row["error_code"] for row in rows if row["status"] == "error"} == broken
    assert len(broken) == N // 20
    summary = json.loads(undisturbed.files()["summary.json"])
    assert summary["inputs"] == N
    assert summary["faces"] > N / 2
    files = Counter(zlib.crc32(path.read_bytes()) for path in folder.rglob("*.jpg"))
    assert undisturbed.judged() == files


def test_killed_in_the_middle_and_resumed_it_ends_with_the_same_bytes(
    model: str, pictures: tuple[Path, dict[str, str]], undisturbed: Command, tmp_path: Path
) -> None:
    n_parts = len(undisturbed.parts)
    first = Command(model, pictures[0], tmp_path / "out", tmp_path / "judged-1")
    first.kill_when(lambda: len(first.parts) >= n_parts // 2)
    standing = [part.name for part in first.parts]
    assert n_parts // 2 <= len(standing) < n_parts
    assert "_SUCCESS" not in first.files()
    in_standing = {str(row["path"]) for row in rows_of(first.parts)}

    second = Command(model, pictures[0], tmp_path / "out", tmp_path / "judged-2")
    assert second.end()
    assert second.process.returncode == 2
    assert second.files() == undisturbed.files()
    judged = second.judged()
    again = checksums(pictures[0], in_standing - set(pictures[1])) & set(judged)
    assert not again, "pictures of parts that stood were scored again"
    assert sum(judged.values()) == N - len(in_standing)
    assert max(first.judged().values()) <= 1 + N // 60  # the empty files have one checksum


def test_a_file_that_kills_its_worker_is_reported_and_all_others_are_scored(
    model: str, pictures: tuple[Path, dict[str, str]], undisturbed: Command, tmp_path: Path
) -> None:
    victim = "batch-1/00760.jpg"
    killer = (pictures[0] / victim).read_bytes()
    command = Command(model, pictures[0], tmp_path / "out", tmp_path / "judged", killer=killer)
    printed = command.end()
    assert command.process.returncode == 2, printed
    rows = {(row["path"], row["face_index"]): row for row in rows_of(command.parts)}
    expected = {(row["path"], row["face_index"]): row for row in rows_of(undisturbed.parts) if row["path"] != victim}
    died = rows.pop((victim, None))
    assert (died["status"], died["error_code"]) == ("error", "worker_died")
    assert rows == expected
    assert command.judged()[zlib.crc32(killer)] == 2
    assert "worker_died" in printed


@pytest.mark.slow
def test_ray_ends_with_the_same_bytes(
    model: str, pictures: tuple[Path, dict[str, str]], undisturbed: Command, tmp_path: Path
) -> None:
    command = Command(model, pictures[0], tmp_path / "out", tmp_path / "judged", "--engine", "ray")
    printed = command.end()
    assert command.process.returncode == 2, printed
    assert command.files() == undisturbed.files()
