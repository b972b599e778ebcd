import itertools
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from handlers.errors import CorruptImageError, ExpiredError, InternalError, ModelUnavailableError
from handlers.results import Analysis
from scoring.crew import Crew, ScorerLike
from scoring.errors import EngineError, InputError, StoppedError, WorkerDiedError
from scoring.parts import Entry, Outcome, Part
from scoring.tally import Tally
from tests.scoring.scorers import MakeAfterwards, MakeOrdered, MakeSlowly, MakeWithoutModel, MakeWitness, expected

ROOT = Path(__file__).parents[2]
PLAIN = [f"plain-{number}" for number in range(60)]


class Heard:
    """A progress that counts. stop_after: files after which `tick` stops the run."""

    def __init__(self, stop_after: int | None = None) -> None:
        self.tally, self.n_ticks, self._stop_after = Tally(), 0, stop_after

    def listed(self, n_entries: int, *, done: bool) -> None:
        raise AssertionError("a crew lists nothing")

    def standing(self, tally: Tally) -> None:
        raise AssertionError("a crew takes nothing over")

    def scored(self, tally: Tally) -> None:
        self.tally.add(tally)

    def tick(self) -> None:
        self.n_ticks += 1
        if self._stop_after is not None and self.tally.n_inputs >= self._stop_after:
            raise StoppedError("enough")


def cut(paths: Iterable[str], sizes: Iterable[int] = (10,)) -> Iterator[Part]:
    left, sizes = iter(paths), itertools.cycle(sizes)
    for index in itertools.count():
        entries = tuple(Entry(path, None, "") for path in itertools.islice(left, next(sizes)))
        if not entries:
            return
        yield Part(index, f"{index:032x}", entries)


def score(
    paths: Iterable[str],
    make_scorer: Callable[[], ScorerLike] = MakeOrdered(),  # noqa: B008
    *,
    n_workers: int = 2,
    file_timeout_s: float = 60.0,
    sizes: Iterable[int] = (10,),
    progress: Heard | None = None,
) -> dict[str, Outcome]:
    """Outcomes by path; every file must be answered once, and none may be left running."""
    progress = progress or Heard()
    outcomes: dict[str, Outcome] = {}
    with Crew(make_scorer, n_workers, file_timeout_s=file_timeout_s) as crew:
        for part, of_part in crew.score(cut(paths, sizes), progress):
            for entry, outcome in zip(part.entries, of_part, strict=True):
                assert entry.path not in outcomes
                outcomes[entry.path] = outcome
    assert not workers_of(os.getpid())
    assert progress.tally == Tally.of(outcomes.values())
    return outcomes


def workers_of(pid: int) -> list[int]:
    """The workers of any crew of this process that live, by their ids."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            parent_pid = int((folder / "stat").read_text().rpartition(")")[2].split()[1])
            command = (folder / "cmdline").read_bytes()
        except (FileNotFoundError, ProcessLookupError):
            continue
        if parent_pid == pid and b"scoring.crew_worker" in command:  # a zombie has no command
            found.append(int(folder.name))
    return found


def until(is_so: Callable[[], object], patience_s: float = 60.0) -> None:
    deadline_s = time.monotonic() + patience_s
    while not is_so():
        assert time.monotonic() < deadline_s, "it never came"
        time.sleep(0.02)


@contextmanager
def killed_at_last(process: subprocess.Popen[bytes]) -> Iterator[None]:
    try:
        yield
    finally:
        process.kill()


@pytest.mark.parametrize("n_workers", [1, 2, 3])
def test_every_file_of_uneven_parts_has_its_own_outcome(n_workers: int) -> None:
    paths = [f"{'corrupt' if number % 7 == 0 else 'plain'}-{number}" for number in range(3000)]
    outcomes = score(paths, n_workers=n_workers, sizes=(1, 300, 7, 64))
    assert outcomes.keys() == set(paths)
    for path, outcome in outcomes.items():
        assert outcome == (CorruptImageError("not a picture") if path.startswith("corrupt") else expected(path))


def test_an_undisturbed_run_scores_nothing_twice_and_one_part_with_all_workers(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    score(PLAIN, MakeOrdered(0.02, journal), n_workers=3, sizes=(len(PLAIN),))
    judged = [line.split() for line in journal.read_text().splitlines() if line.startswith("judge")]
    assert sorted(path for _, _, path in judged) == sorted(PLAIN)
    assert len({pid for _, pid, _ in judged}) == 3


def test_files_are_read_ahead_but_a_few_only(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    score(PLAIN, MakeOrdered(0.005, journal), n_workers=1)
    doings = [line.partition(" ")[0] for line in journal.read_text().splitlines()]
    ahead = list(itertools.accumulate(1 if doing == "read" else -1 for doing in doings))
    assert 2 <= max(ahead) <= 5


def test_no_parts_start_no_worker() -> None:
    with Crew(MakeOrdered(), 2, file_timeout_s=60) as crew:
        assert list(crew.score([], Heard())) == []
        assert not workers_of(os.getpid())


def test_files_that_kill_their_workers_are_found_and_nobody_else_suffers() -> None:
    paths = ["exit-0", *PLAIN[:30], "segfault-1", "kill-2", *PLAIN[30:], "leave-3", "read_exit-4"]
    outcomes = score(paths)
    assert outcomes.keys() == set(paths)
    for path, outcome in outcomes.items():
        assert outcome == expected(path) if path in PLAIN else isinstance(outcome, WorkerDiedError), path


def test_when_every_file_kills_the_run_still_ends() -> None:
    outcomes = score([f"exit-{number}" for number in range(6)])
    assert len(outcomes) == 6
    assert len(set(outcomes.values())) == 1  # deterministic to the letter
    assert all(isinstance(outcome, WorkerDiedError) for outcome in outcomes.values())


def test_an_innocent_suspect_gets_its_result(tmp_path: Path) -> None:
    outcomes = score([*PLAIN, "once_kill-7"], MakeOrdered(0.0, tmp_path / "journal"))
    assert outcomes == {path: expected(path) for path in [*PLAIN, "once_kill-7"]}


def test_a_file_that_was_killed_for_want_of_memory_gets_a_second_try_in_quiet(tmp_path: Path) -> None:
    paths = ["lonely-7", *PLAIN, "lonely-8"]
    assert score(paths, MakeOrdered(0.05, tmp_path / "journal")) == {path: expected(path) for path in paths}


def test_workers_killed_from_outside_lose_nothing() -> None:
    paths = [f"plain-{number}" for number in range(600)]
    seen: dict[str, Outcome] = {}
    n_killed = 0
    with Crew(MakeOrdered(0.002), 2, file_timeout_s=60) as crew:
        for part, outcomes in crew.score(cut(paths, [50]), Heard()):
            seen.update(zip((entry.path for entry in part.entries), outcomes, strict=True))
            if len(seen) in (100, 200, 350):
                for pid in workers_of(os.getpid()):
                    os.kill(pid, signal.SIGKILL)
                    n_killed += 1
    assert n_killed >= 3
    assert seen == {path: expected(path) for path in paths}


def test_files_that_take_too_long_are_given_up() -> None:
    slow = ["hang-0", "hang_with_lock-1", "read_hang-2"]
    outcomes = score([*PLAIN[:30], *slow, *PLAIN[30:]], n_workers=3, file_timeout_s=2.0)
    assert [outcomes.pop(path) for path in slow] == [ExpiredError("no result after 2 s")] * 3
    assert outcomes == {path: expected(path) for path in PLAIN}


def test_loading_takes_as_long_as_it_takes() -> None:
    outcomes = score(PLAIN[:3], MakeSlowly(2.5), n_workers=1, file_timeout_s=2.0)
    assert outcomes == {path: expected(path) for path in PLAIN[:3]}


def test_a_bug_is_an_outcome_and_a_log_line(caplog: pytest.LogCaptureFixture) -> None:
    bugs = ["fail-0", "use_memory-0", "lose_input-0", "read_fail-0", "read_use_memory-0"]
    outcomes = score([*PLAIN[:30], *bugs, *PLAIN[30:]], n_workers=1)
    for path in bugs:
        assert isinstance(outcomes.pop(path), InternalError)
        [line] = [record.getMessage() for record in caplog.records if f" {path} " in record.getMessage()]
        assert "Traceback" in line
    assert outcomes == {path: expected(path) for path in PLAIN}
    assert {(record.levelno, record.name) for record in caplog.records} == {(logging.ERROR, "scoring.crew_worker")}


def test_what_a_worker_prints_stays_out_of_our_output(capfd: pytest.CaptureFixture[str]) -> None:
    score(["print-1", "plain-2"], n_workers=1)
    assert capfd.readouterr() == ("", "")


def test_a_native_crash_is_logged_with_what_it_printed(caplog: pytest.LogCaptureFixture) -> None:
    score(["segfault-2"], n_workers=1)
    first, second = (record.getMessage() for record in caplog.records)
    assert "SIGSEGV" in first
    assert "segfault-2" in second
    assert "string_at" in second


def test_an_input_that_is_gone_ends_the_run() -> None:
    with pytest.raises(InputError, match="the folder is gone"):
        score([*PLAIN, "read_lose_input-0"])
    assert not workers_of(os.getpid())


def test_a_missing_model_ends_the_run_as_itself() -> None:
    with pytest.raises(ModelUnavailableError, match="no model of that name"):
        score(PLAIN, MakeWithoutModel())


@pytest.mark.parametrize(
    ("order", "cause", "n_workers"),
    [("exit", "exit code 3", 2), ("kill", "signal SIGKILL", 1), ("fail", "KeyError: 'a bug'", 1)],
)
def test_workers_that_never_load_end_the_run_with_the_cause(
    order: str, cause: str, n_workers: int, tmp_path: Path
) -> None:
    counter = tmp_path / "loads"
    with pytest.raises(EngineError, match=cause):
        score(PLAIN, MakeAfterwards(order, 1000, counter), n_workers=n_workers)
    assert counter.stat().st_size <= 2 + n_workers
    assert not workers_of(os.getpid())


def test_two_deaths_while_loading_are_survived(tmp_path: Path) -> None:
    counter = tmp_path / "loads"
    outcomes = score(PLAIN, MakeAfterwards("kill", 2, counter), n_workers=1)
    assert outcomes == {path: expected(path) for path in PLAIN}
    assert counter.stat().st_size == 3


def test_stopping_in_a_tick_ends_all_workers_soon() -> None:
    with Crew(MakeOrdered(0.01), 2, file_timeout_s=60) as crew:
        begun = crew.score(cut((f"plain-{number}" for number in itertools.count()), [50]), Heard(stop_after=100))
        next(begun)
        assert len(workers_of(os.getpid())) == 2
        with pytest.raises(StoppedError):
            list(begun)
        assert not workers_of(os.getpid())


def test_ticks_come_while_nothing_else_does() -> None:
    progress = Heard()
    score(["hang-0"], n_workers=1, file_timeout_s=2.0, progress=progress)
    assert progress.n_ticks >= 4


def test_a_crew_keeps_its_workers_from_call_to_call() -> None:
    with Crew(MakeOrdered(), 2, file_timeout_s=60) as crew:
        assert len(list(crew.score(cut(PLAIN), Heard()))) == 6
        workers = workers_of(os.getpid())
        assert len(list(crew.score(cut(PLAIN), Heard()))) == 6
        assert workers_of(os.getpid()) == workers


def test_closing_the_iterator_forgets_the_work_and_the_crew_can_go_on() -> None:
    with Crew(MakeOrdered(0.001), 2, file_timeout_s=60) as crew:
        begun = crew.score(cut(f"plain-{number}" for number in itertools.count()), Heard())
        next(begun)
        with pytest.raises(RuntimeError, match="one caller"):
            next(crew.score(cut(PLAIN), Heard()))
        begun.close()
        assert not workers_of(os.getpid())
        progress = Heard()
        scored = [outcome for _, outcomes in crew.score(cut(PLAIN), progress) for outcome in outcomes]
        assert sorted(outcome.width for outcome in scored if isinstance(outcome, Analysis)) == list(range(60))
        assert progress.tally.n_inputs == 60


def test_an_error_of_the_parts_comes_out() -> None:
    def parts() -> Iterator[Part]:
        yield from cut(PLAIN)
        raise InputError("the listing broke")

    with Crew(MakeOrdered(), 2, file_timeout_s=60) as crew:
        with pytest.raises(InputError, match="the listing broke"):
            list(crew.score(parts(), Heard()))
        assert not workers_of(os.getpid())


def test_outside_its_with_block_a_crew_does_not_hang() -> None:
    crew = Crew(MakeOrdered(), 1, file_timeout_s=60)
    with pytest.raises(RuntimeError, match="with"):
        next(crew.score(cut(PLAIN), Heard()))


def test_parts_are_taken_only_as_far_as_there_is_work_for() -> None:
    n_taken = n_most = 0

    def parts() -> Iterator[Part]:
        nonlocal n_taken
        for part in cut((f"plain-{number}" for number in itertools.count()), [100]):
            n_taken += 1
            yield part

    with Crew(MakeOrdered(0.001), 2, file_timeout_s=60) as crew:
        for n_done, _ in enumerate(crew.score(parts(), Heard()), 1):
            n_most = max(n_most, n_taken - n_done)
            time.sleep(0.05)  # slower than the workers
            if n_done == 20:
                break
    assert n_most <= 14


def test_workers_go_on_while_the_caller_is_busy_with_a_part(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    with Crew(MakeOrdered(0.001, journal), 2, file_timeout_s=60) as crew:
        begun = crew.score(cut(PLAIN), Heard())
        next(begun)
        until(lambda: journal.read_text().count("judge") == len(PLAIN))
        assert len(list(begun)) == 5


def test_a_worker_is_nice_single_threaded_and_the_first_to_be_killed() -> None:
    with Crew(MakeWitness(), 1, file_timeout_s=60, niceness=3) as crew:
        [(_, [outcome])] = crew.score(cut(["x"]), Heard())
    own = int(Path("/proc/self/oom_score_adj").read_text())
    assert outcome == Analysis(os.nice(0) + 3, max(500, own), ())


def test_no_worker_outlives_a_killed_parent(tmp_path: Path) -> None:
    journal = tmp_path / "journal"
    code = f"""
from pathlib import Path
from tests.scoring.scorers import MakeOrdered
from tests.scoring.test_crew import Crew, Heard, cut
with Crew(MakeOrdered(0.0, Path({str(journal)!r})), 2, file_timeout_s=60) as crew:
    list(crew.score(cut(["hang_with_lock-0", "read_hang-1"]), Heard()))
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as parent, killed_at_last(parent):
        until(lambda: journal.exists() and len(journal.read_text().splitlines()) == 3)
        workers = workers_of(parent.pid)
        assert len(workers) == 2
    until(lambda: not any(Path(f"/proc/{pid}").exists() for pid in workers))


@pytest.mark.parametrize(("n_workers", "file_timeout_s"), [(0, 1.0), (1, 0.0)])
def test_a_crew_of_nobody_is_refused(n_workers: int, file_timeout_s: float) -> None:
    with pytest.raises(ValueError, match="needs"):
        Crew(MakeOrdered(), n_workers, file_timeout_s=file_timeout_s)
