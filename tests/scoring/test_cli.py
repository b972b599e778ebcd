"""The command: whole runs in real processes, and what ends before a run in this one."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from scoring.cli import main
from scoring.output import Output
from tests.scoring.pictures import make_folder
from tests.scoring.terminal import REPOSITORY, on_terminal

N_PICTURES = 60
PARTS = ("--part-size", "8")


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty pictures in three folders, three of them broken."""
    folder = tmp_path_factory.mktemp("photos")
    make_folder(folder, N_PICTURES)
    return folder


@pytest.fixture(scope="module")
def slow_photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two hundred names of a few larger pictures: a second of work or more."""
    folder = tmp_path_factory.mktemp("slow")
    make_folder(folder / "made", 8, broken_every=9, size_px=400)
    made = sorted((folder / "made").rglob("*.jpg"))
    for index in range(200):
        (folder / f"{index:03d}.jpg").hardlink_to(made[index % len(made)])
    shutil.rmtree(folder / "made")
    return folder


@pytest.fixture(scope="module")
def slow_whole(slow_photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of an undisturbed run over the slow pictures."""
    out = tmp_path_factory.mktemp("slow-whole") / "out"
    assert score(slow_photos, out, *PARTS).returncode == 0
    return out


@pytest.fixture(scope="module")
def whole_run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[subprocess.CompletedProcess[str], Path]:
    """An undisturbed run over all pictures, and its output."""
    out = tmp_path_factory.mktemp("whole") / "out"
    return score(photos, out, "--recursive", *PARTS), out


@pytest.fixture(scope="module")
def whole(whole_run: tuple[subprocess.CompletedProcess[str], Path]) -> Path:
    """The output of an undisturbed run over all pictures."""
    return whole_run[1]


def command(source: object, out: object, *options: str) -> list[str]:
    return [sys.executable, "-m", "scoring", str(source), "--output", str(out), "--model", "fake", *options]


def score(
    source: object, out: object, *options: str, variables: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command(source, out, "--workers", "1", *options),
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        timeout=120,
        env={**os.environ, **(variables or {})},
    )


def files_of(out: Path) -> dict[str, bytes]:
    """The bytes of every file of an output, but those of the lock."""
    return {
        path.relative_to(out).as_posix(): path.read_bytes()
        for path in out.rglob("*")
        if path.is_file() and path.name != "_lock"
    }


def parts_of(out: Path) -> list[Path]:
    return sorted(out.glob("parts/part-*"))


def summary_of(out: Path) -> dict[str, object]:
    summary: dict[str, object] = json.loads((out / "summary.json").read_text())
    return summary


def in_session(session: int) -> list[int]:
    """The live processes of a session, zombies left out."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            state, _, _, of = (folder / "stat").read_text().rpartition(")")[2].split()[:4]
        except OSError:
            continue
        if int(of) == session and state != "Z":
            found.append(int(folder.name))
    return found


def test_a_run_with_broken_files_ends_with_2_and_says_what_became_of_all(
    whole_run: tuple[subprocess.CompletedProcess[str], Path],
) -> None:
    done, out = whole_run

    assert done.returncode == 2, done.stderr
    assert (out / "_SUCCESS").exists()
    summary = summary_of(out)
    assert summary["inputs"] == N_PICTURES
    assert summary["errors"] == {"corrupt_image": 1, "empty_image": 1, "unsupported_format": 1}
    table = [re.split(r" {2,}", line.strip()) for line in done.stdout.splitlines()]
    assert ["inputs", "60"] in table
    assert ["failed", "3", "5.0 %"] in table
    assert ["empty_image", "1", "33.3 %"] in table
    assert f"{len(parts_of(out))} parts in {out}/parts" in done.stdout


def test_lines_are_plain_where_no_terminal_is(
    whole_run: tuple[subprocess.CompletedProcess[str], Path], photos: Path
) -> None:
    done, out = whole_run

    first, *others = done.stderr.splitlines()
    assert first == f"scoring {photos} with fake:1.0.0 (fake, fp32): local engine, 1 worker, parquet to {out}"
    assert "0 of 60 files (0.0 %), 0 faces, 0 errors" in others
    assert "\x1b" not in done.stderr + done.stdout
    assert "\r" not in done.stderr + done.stdout


def test_a_run_in_which_every_file_is_scored_ends_with_0(photos: Path, tmp_path: Path) -> None:
    done = score(photos / "batch-0", out := tmp_path / "out", "--include", "*0.jpg")

    assert done.returncode == 0, done.stderr
    assert summary_of(out)["inputs"] == 2  # 00000 and 00030
    assert summary_of(out)["inputs_failed"] == 0


def test_nothing_but_the_table_is_said_when_progress_is_not_wanted(photos: Path, tmp_path: Path) -> None:
    done = score(photos, tmp_path / "out", "--recursive", "--progress", "none")

    assert done.returncode == 2
    assert done.stderr == ""
    assert "inputs" in done.stdout


def test_a_terminal_gets_a_bar_and_a_table(photos: Path, tmp_path: Path) -> None:
    ended = on_terminal(command(photos, tmp_path / "out", "--recursive", "--workers", "1", *PARTS))

    assert ended.code == 2, ended.written
    assert "━" in ended.written
    assert "100 %" in ended.written
    assert "60 of 60 files" in ended.written
    assert ended.written.rindex("\x1b[?25h") > ended.written.rindex("\x1b[?25l"), "the cursor is back"
    assert "empty_image" in ended.written.rpartition("60 of 60 files")[2], "the table comes last"


def test_the_same_command_again_takes_everything_over(photos: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, out := tmp_path / "out")
    before = {path: path.stat().st_mtime_ns for path in [*parts_of(out), out / "_SUCCESS"]}
    done = score(photos, out, "--recursive", *PARTS)

    assert done.returncode == 2, "the failed files are still failed"
    assert re.search(r"taken over from an earlier run +60 +100.0 %", done.stdout)
    assert "nothing was left to score" in done.stdout
    assert {path: path.stat().st_mtime_ns for path in [*parts_of(out), out / "_SUCCESS"]} == before


@pytest.mark.parametrize("lost", ["_SUCCESS", "manifest.json", "summary.json", "parts"])
def test_what_is_lost_is_made_again(photos: Path, whole: Path, tmp_path: Path, lost: str) -> None:
    shutil.copytree(whole, out := tmp_path / "out")
    for path in parts_of(out)[:2] if lost == "parts" else [out / lost]:
        path.unlink()
    assert score(photos, out, "--recursive", *PARTS).returncode == 2

    assert files_of(out) == files_of(whole)


def test_another_format_replaces_the_parts(photos: Path, whole: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, out := tmp_path / "out")
    done = score(photos, out, "--recursive", *PARTS, "--format", "jsonl")

    assert done.returncode == 2, done.stderr
    assert {path.suffix for path in parts_of(out)} == {".jsonl"}
    rows = [json.loads(line) for path in parts_of(out) for line in path.read_text().splitlines()]
    assert len({row["path"] for row in rows}) == N_PICTURES
    assert (out / "_SUCCESS").exists()


def test_shards_in_any_order_make_what_one_run_makes_and_the_last_one_finishes(
    photos: Path, whole: Path, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    for options, index in ((("--shard", "2/3"), None), (("--shards", "3"), "0")):
        done = score(
            *(photos, out, "--recursive", *PARTS, *options), variables={"JOB_COMPLETION_INDEX": index} if index else {}
        )
        assert done.returncode in (0, 2), done.stderr
        assert "this shard is done" in done.stdout
        assert not (out / "_SUCCESS").exists()
    done = score(photos, out, "--recursive", *PARTS, "--shard", "1/3")

    assert done.returncode in (0, 2), done.stderr
    assert "this shard is done" not in done.stdout
    assert files_of(out) == files_of(whole)


class Refused:
    """The command in this process, which must end with 1 and one line that says why."""

    def __init__(self, capsys: pytest.CaptureFixture[str]) -> None:
        self._capsys = capsys

    def __call__(self, said: str, source: object, out: object, *options: str) -> None:
        try:
            code = main([str(source), "--output", str(out), "--model", "fake", "--workers", "1", *options])
        except SystemExit as ended:
            code = ended.code
        printed = self._capsys.readouterr()
        assert code == 1
        assert printed.out == ""
        lines = [line for line in printed.err.splitlines() if not line.startswith("scoring ")]
        assert len(lines) == 1, printed.err
        assert lines[0].startswith("error: ")
        assert said in lines[0]


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Refused:
    return Refused(capsys)


@pytest.mark.parametrize(
    ("index", "said"),
    [(None, "JOB_COMPLETION_INDEX, which is not set"), ("first", "'first'"), ("-1", "'-1'"), ("3", "shard 3/3")],
)
def test_an_index_that_is_missing_or_out_of_range_is_named(
    photos: Path, tmp_path: Path, refused: Refused, monkeypatch: pytest.MonkeyPatch, index: str | None, said: str
) -> None:
    if index is None:
        monkeypatch.delenv("JOB_COMPLETION_INDEX", raising=False)
    else:
        monkeypatch.setenv("JOB_COMPLETION_INDEX", index)
    refused(said, photos, tmp_path / "out", "--shards", "3")

    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--ray-address", "auto"], "--ray-address goes with --engine ray"),
        (["--engine", "ray", "--nice", "5"], "--nice goes with --engine local"),
        (["--workers", "none"], "--workers"),
        (["--shard", "3/3"], "shard 3/3"),
    ],
)
def test_options_that_make_no_sense_end_with_1_and_change_nothing(
    photos: Path, tmp_path: Path, refused: Refused, options: list[str], said: str
) -> None:
    refused(said, photos, tmp_path / "out", *options)

    assert not (tmp_path / "out").exists()


def test_a_glob_that_the_shell_has_expanded_is_explained(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expanded = sorted(map(str, photos.rglob("*.jpg")))

    assert main([*expanded, "--output", str(tmp_path / "out")]) == 1
    assert capsys.readouterr().err.startswith("error: one INPUT at a time, not 60; put a glob in quotes")


def test_an_input_that_is_not_there_is_named(tmp_path: Path, refused: Refused) -> None:
    refused("absent", tmp_path / "absent", tmp_path / "out")


def test_an_empty_folder_is_an_error_not_a_success(tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "photos").mkdir()
    refused("nothing to score", tmp_path / "photos", tmp_path / "out", "--progress", "none")

    assert not (tmp_path / "out" / "_SUCCESS").exists()


def test_an_unknown_model_is_named(photos: Path, tmp_path: Path, refused: Refused) -> None:
    refused("nobody:1.0.0", photos, tmp_path / "out", "--model", "nobody:1.0.0")


def test_an_output_that_another_run_holds_is_left_alone(
    photos: Path, whole: Path, tmp_path: Path, refused: Refused
) -> None:
    shutil.copytree(whole, out := tmp_path / "out")
    before = files_of(out)
    with Output(str(out)).lock(shared=False):
        refused(str(out), photos, out, "--recursive", "--format", "csv")

    assert files_of(out) == before


def test_a_folder_with_other_things_in_it_is_no_output(photos: Path, tmp_path: Path, refused: Refused) -> None:
    (tmp_path / "thesis.txt").write_text("years of work")
    refused(str(tmp_path), photos, tmp_path)

    assert [path.name for path in tmp_path.iterdir()] == ["thesis.txt"]


def test_a_fault_of_ours_is_not_dressed_up(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def broken(self: Output) -> None:
        raise ZeroDivisionError("a bug")

    monkeypatch.setattr(Output, "prepare", broken)
    with pytest.raises(ZeroDivisionError):
        main([str(photos), "--output", str(tmp_path / "out"), "--model", "fake"])


@pytest.fixture
def started(slow_photos: Path, tmp_path: Path) -> Iterator["subprocess.Popen[str]"]:
    """A run that has just written its first parts, in a session of its own."""
    with subprocess.Popen(
        command(slow_photos, tmp_path / "out", *PARTS, "--workers", "1"),
        cwd=REPOSITORY,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        try:
            for _ in range(6_000):
                if len(parts_of(tmp_path / "out")) >= 2 or process.poll() is not None:
                    break
                time.sleep(0.01)
            yield process
        finally:
            for number in in_session(process.pid):
                os.kill(number, signal.SIGKILL)


@pytest.mark.parametrize("how", ["terminated", "interrupted", "killed"])
def test_a_run_that_is_stopped_goes_on_where_it_was(
    slow_photos: Path, slow_whole: Path, tmp_path: Path, started: "subprocess.Popen[str]", how: str
) -> None:
    out = tmp_path / "out"
    if how == "interrupted":
        os.killpg(started.pid, signal.SIGINT)  # as a terminal does: the workers get it, too
    else:
        os.kill(started.pid, signal.SIGTERM if how == "terminated" else signal.SIGKILL)
    printed, said = started.communicate(timeout=60)

    assert printed == ""
    if how == "killed":
        assert started.returncode == -signal.SIGKILL
    else:
        assert started.returncode == 1
        assert said.splitlines()[-1] == "stopped; the same command goes on from here"
        assert "Traceback" not in said
    assert all_ended(started.pid), "workers outlive the run"
    standing = {path: path.stat().st_mtime_ns for path in parts_of(out)}
    assert standing
    assert not (out / "_SUCCESS").exists()

    done = score(slow_photos, out, *PARTS)

    assert done.returncode == 0, done.stderr
    assert files_of(out) == files_of(slow_whole)
    assert {path: path.stat().st_mtime_ns for path in standing} == standing, "nothing is scored twice"
    taken_over = re.search(r"taken over from an earlier run +(\d+)", done.stdout)
    assert taken_over
    assert 0 < int(taken_over[1]) < 200


def all_ended(session: int) -> bool:
    for _ in range(1_000):
        if not in_session(session):
            return True
        time.sleep(0.01)
    return False


@pytest.mark.parametrize("ending", ["2>&1 | head -c 1 >/dev/null", ">/dev/full", ">&- 2>&-"])
def test_a_run_outlives_whoever_reads_what_it_says(photos: Path, tmp_path: Path, ending: str) -> None:
    line = shlex.join(command(photos / "batch-0", tmp_path / "out", "--workers", "1"))
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {line} {ending}"], cwd=REPOSITORY, capture_output=True, text=True, timeout=120
    )

    assert done.returncode == 2, done.stderr
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert (tmp_path / "out" / "_SUCCESS").exists()


def test_names_that_are_no_text_are_scored_and_shown_harmlessly(photos: Path, tmp_path: Path) -> None:
    folder = tmp_path / os.fsdecode(b"odd \x1b[31m \xe9")
    folder.mkdir()
    shutil.copy(photos / "batch-0" / "00000.jpg", folder / os.fsdecode(b"caf\xe9\n.jpg"))
    done = score(folder, tmp_path / "out", "--format", "csv")

    assert done.returncode == 0, done.stderr
    assert "odd \\x1b[31m \\xe9" in done.stderr
    assert "\x1b" not in done.stderr + done.stdout
