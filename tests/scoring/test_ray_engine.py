"""The ray engine on this machine: the bytes of the local engine, whatever happens to workers and actors."""

from __future__ import annotations

import os
import signal
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from handlers.errors import ModelUnavailableError
from scoring.engine import PartRecord
from scoring.errors import EngineError, InputError, OptionsError, OutputError, StoppedError
from scoring.formats import part_name
from scoring.local_engine import LocalEngine
from scoring.output import Output
from scoring.ray_engine import RayEngine
from scoring.ray_worker import PartScorer, outcome_of, packed_part, table_of_part
from scoring.scorer import MakeScorer
from scoring.sources import open_source
from tests.scoring.in_process import RecordingProgress
from tests.scoring.noting_scorer import MakeNoting, Notes
from tests.scoring.pictures import make_folder
from tests.scoring.ray_runs import (
    CONFIG,
    StoppingProgress,
    contents,
    make_output,
    make_parts,
    named_parts,
    total,
    wait_until_gone,
)
from tests.scoring.scorers import MakeOrdered, MakeWithoutModel

if TYPE_CHECKING:
    from tests.scoring.s3 import S3, S3Server

pytest.importorskip("ray")


def ray_engine(make_scorer: Callable, output: Output, n_workers: int = 1, address: str | None = None) -> RayEngine:
    return RayEngine(make_scorer, CONFIG, output, n_workers, 30.0, address)


def local_contents(make_scorer: Callable, parts: list, folder: Path) -> dict[str, bytes]:
    output = make_output(folder)
    engine = LocalEngine(make_scorer, CONFIG, output, 1, 30.0)
    list(engine.score(parts, RecordingProgress()))
    return contents(output)


@pytest.fixture(scope="module")
def ray_here(s3_server: S3Server) -> Iterator[None]:
    """Ray runs in this process already, as in a notebook; the engine uses it, and leaves it.

    Its actors have the environment of its start: with the bucket's credentials.
    """
    import ray

    from scoring.ray_session import ray_session
    from tests.scoring.s3 import CREDENTIALS

    with pytest.MonkeyPatch.context() as patch:
        for name, value in {**CREDENTIALS, "AWS_ENDPOINT_URL": s3_server.url}.items():
            patch.setenv(name, value)
        with ray_session(None, 2):
            yield
    assert not ray.is_initialized()


# Without a Ray. These come before those with `ray_here`.


def test_without_parts_no_ray_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    assert list(ray_engine(MakeOrdered(), make_output(tmp_path / "out")).score([], RecordingProgress())) == []


def test_without_the_package_it_says_what_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    engine = ray_engine(MakeOrdered(), make_output(tmp_path / "out"))
    with pytest.raises(OptionsError, match=r"pip install 'mien\[ray\]'"):
        list(engine.score(named_parts(["ok-1"]), RecordingProgress()))


@pytest.mark.parametrize(
    ("address", "error", "match"),
    [
        ("ray://127.0.0.1:10001", OptionsError, "ray job submit"),
        ("127.0.0.1:1", EngineError, "no Ray at 127.0.0.1:1"),
        ("mien.invalid:6379", EngineError, "no Ray at mien.invalid:6379"),
        ("127.0.0.1:port", EngineError, "no Ray at 127.0.0.1:port"),
    ],
)
def test_a_wrong_address(tmp_path: Path, address: str, error: type[Exception], match: str) -> None:
    engine = ray_engine(MakeOrdered(), make_output(tmp_path / "out"), address=address)
    with pytest.raises(error, match=match):
        list(engine.score(named_parts(["ok-1"]), RecordingProgress()))


@pytest.mark.slow
def test_its_own_ray_ends_when_the_run_is_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import ray

    if ray.is_initialized():
        pytest.skip("another Ray runs in this process")
    folder = tmp_path / "a-folder-for-temporary-files-with-a-name-that-is-too-long-for-sockets"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    before = set(Path("/tmp").glob("mien-ray-*"))
    handlers = [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)]
    notes = Notes(tmp_path / "notes")
    engine = ray_engine(MakeNoting(notes, 0.1), make_output(tmp_path / "out"))
    progress = StoppingProgress(lambda so_far: so_far.scored_tally.n_inputs > 0)
    parts = named_parts(f"ok-{index}" for index in range(200))

    with pytest.raises(StoppedError):
        list(engine.score(parts, progress))

    assert 0 < progress.scored_tally.n_inputs < 100
    assert not ray.is_initialized()
    assert [signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)] == handlers
    wait_until_gone({pid for note in notes.read() for pid in (note.worker, note.parent)})
    assert set(Path("/tmp").glob("mien-ray-*")) <= before
    assert "RAY_BACKEND_LOG_LEVEL" not in os.environ


# With a Ray.


@pytest.mark.usefixtures("ray_here")
class TestWithRay:
    def test_same_bytes_as_the_local_engine(self, tmp_path: Path) -> None:
        errors = make_folder(tmp_path / "in", 200)
        source = open_source(str(tmp_path / "in"), recursive=True)
        parts = make_parts(source.list())
        output, progress = make_output(tmp_path / "ray"), RecordingProgress()
        records = list(ray_engine(MakeScorer(source, CONFIG), output, n_workers=2).score(parts, progress))

        assert contents(output) == local_contents(MakeScorer(source, CONFIG), parts, tmp_path / "local")
        assert sorted(record.name for record in records) == sorted(output.part_names())
        assert total(records) == progress.scored_tally
        assert progress.scored_tally.n_inputs == 200
        assert progress.scored_tally.errors == Counter(errors.values())
        assert progress.n_ticks > 0

    @pytest.mark.slow
    def test_same_bytes_from_a_bucket_to_a_bucket(self, s3: S3, tmp_path: Path) -> None:
        make_folder(tmp_path / "in", 24, broken_every=6)
        for file in (tmp_path / "in").rglob("*.jpg"):
            s3.put(f"in/{file.relative_to(tmp_path / 'in').as_posix()}", file.read_bytes())
        source = open_source(f"{s3.url}/in", recursive=True)
        parts = make_parts(source.list())
        output = make_output(f"{s3.url}/out")
        records = list(ray_engine(MakeScorer(source, CONFIG), output).score(parts, RecordingProgress()))

        assert contents(output) == local_contents(MakeScorer(source, CONFIG), parts, tmp_path / "local")
        assert total(records).n_inputs == 24
        assert total(records).n_failed == 4
        assert sorted(s3.keys("out/parts")) == sorted(f"out/parts/{record.name}" for record in records)

    def test_files_that_end_their_worker_are_isolated_as_in_the_local_engine(self, tmp_path: Path) -> None:
        names = [f"ok-{index}" for index in range(60)] + ["segfault-60", "exit-61", "fail-62", "corrupt-63"]
        parts = named_parts(names)
        output = make_output(tmp_path / "ray")
        notes = Notes(tmp_path / "notes")
        records = list(ray_engine(MakeNoting(notes), output).score(parts, RecordingProgress()))

        assert contents(output) == local_contents(MakeOrdered(), parts, tmp_path / "local")
        assert total(records).errors == {"worker_died": 2, "internal": 1, "corrupt_image": 1}
        assert len({note.parent for note in notes.read()}) == 1, "no actor died with its worker"

    @pytest.mark.slow
    def test_an_actor_that_dies_is_replaced(self, tmp_path: Path) -> None:
        parts = named_parts(f"ok-{index}" for index in range(80))
        output = make_output(tmp_path / "ray")
        notes = Notes(tmp_path / "notes")
        killed: list[int] = []

        def kill_one() -> None:
            killed.append(notes.wait_for(20)[-1].parent)
            os.kill(killed[0], signal.SIGKILL)

        killer = threading.Thread(target=kill_one)
        killer.start()
        records = list(ray_engine(MakeNoting(notes, 0.05), output).score(parts, RecordingProgress()))
        killer.join()

        assert contents(output) == local_contents(MakeOrdered(), parts, tmp_path / "local")
        assert sorted(record.name for record in records) == sorted(output.part_names())
        times = Counter(note.path for note in notes.read())
        twice = {path for path, n in times.items() if n > 1}
        assert len(times) == 80
        assert max(times.values()) <= 2
        assert any(twice <= {entry.path for entry in part.entries} for part in parts), "one part was repeated at most"
        assert len({note.parent for note in notes.read()}) == 2
        wait_until_gone({note.worker for note in notes.read() if note.parent == killed[0]})

    def test_a_part_that_stands_is_not_scored_again_and_a_damaged_one_is(self, tmp_path: Path) -> None:
        parts = named_parts(f"ok-{index}" for index in range(40))
        output = make_output(tmp_path / "out")
        engine = LocalEngine(MakeOrdered(), CONFIG, output, 1, 30.0)
        there = {record.name: record for record in engine.score(parts[:-1], RecordingProgress())}
        whole = contents(output)
        damaged = part_name(parts[0], CONFIG.format)
        output.write_part(damaged, whole[damaged][:-100])
        notes = Notes(tmp_path / "notes")
        engine = ray_engine(MakeNoting(notes), output)
        records = {record.name: record for record in engine.score(parts, RecordingProgress())}

        scored = sorted(entry.path for part in (parts[0], parts[-1]) for entry in part.entries)
        assert sorted(note.path for note in notes.read()) == scored
        assert len(records) == len(parts)
        assert there.items() <= records.items()
        assert whole.items() <= contents(output).items()

    def test_a_model_that_cannot_be_loaded_ends_the_run(self, tmp_path: Path) -> None:
        engine = ray_engine(MakeWithoutModel(), make_output(tmp_path / "out"))
        with pytest.raises(ModelUnavailableError, match="no model of that name") as caught:
            list(engine.score(named_parts(f"ok-{index}" for index in range(40)), RecordingProgress()))
        assert type(caught.value) is ModelUnavailableError

    def test_a_run_that_is_stopped_within_a_part_leaves_a_ray_of_others(self, tmp_path: Path) -> None:
        import ray

        notes = Notes(tmp_path / "notes")
        part = max(named_parts(f"ok-{index}" for index in range(16)), key=lambda part: len(part.entries))
        engine = ray_engine(MakeNoting(notes, 4.0), make_output(tmp_path / "out"))
        with pytest.raises(StoppedError):
            list(engine.score([part], StoppingProgress(lambda so_far: len(notes.read()) > 0)))

        wait_until_gone({pid for note in notes.read() for pid in (note.worker, note.parent)})
        assert len(notes.read()) < len(part.entries)
        assert ray.is_initialized()
        assert not [thread for thread in threading.enumerate() if thread.name == "ray-engine"]

    def test_an_iterator_that_is_closed_ends_the_work(self, tmp_path: Path) -> None:
        notes = Notes(tmp_path / "notes")
        parts = named_parts(f"ok-{index}" for index in range(200))
        records = ray_engine(MakeNoting(notes, 0.1), make_output(tmp_path / "out")).score(parts, RecordingProgress())
        next(records)
        records.close()

        wait_until_gone({pid for note in notes.read() for pid in (note.worker, note.parent)})
        assert 0 < len(notes.read()) < 100


# What travels.


def test_names_that_are_no_utf8_travel() -> None:
    import pickle
    import zlib

    [part] = named_parts([os.fsdecode(b"\xff\x00".replace(b"\0", b"0")), "zeros-at-the-end\0\0"])
    [packed] = table_of_part(packed_part(part))["part"].to_pylist()
    assert pickle.loads(zlib.decompress(packed)) == part


@pytest.fixture
def scorer_of(tmp_path: Path) -> Callable:
    return lambda make_scorer: PartScorer(make_scorer, CONFIG, make_output(tmp_path / "out"), 30.0)


def test_an_input_that_goes_away_is_an_outcome(scorer_of: Callable) -> None:
    [part] = named_parts(["ok-1", "read_lose_input-2"])
    outcome = outcome_of(scorer_of(MakeOrdered())(table_of_part(packed_part(part))))
    assert isinstance(outcome, InputError)
    assert str(outcome) == "the folder is gone"


def test_an_output_that_cannot_be_written_is_an_outcome(scorer_of: Callable, tmp_path: Path) -> None:
    [part] = named_parts(["ok-1"])
    scorer = scorer_of(MakeOrdered())
    (tmp_path / "out" / "parts").rmdir()
    (tmp_path / "out" / "parts").write_bytes(b"in the way")
    assert isinstance(outcome_of(scorer(table_of_part(packed_part(part)))), OutputError)


def test_a_bug_is_an_outcome_that_says_where(scorer_of: Callable) -> None:
    [part] = named_parts(["ok-1"])
    outcome = outcome_of(scorer_of(lambda: None)(table_of_part(packed_part(part))))  # a lambda does not pickle
    assert not isinstance(outcome, PartRecord | EngineError)
    assert "ray_worker.py" in outcome.__notes__[0]


def test_an_error_that_does_not_pickle_is_told_all_the_same(
    scorer_of: Callable, monkeypatch: pytest.MonkeyPatch
) -> None:
    class LocalError(Exception):
        pass

    def fail(*arguments: object) -> None:
        raise LocalError("of this test")

    monkeypatch.setattr("scoring.ray_worker.standing_record", fail)
    [part] = named_parts(["ok-1"])
    outcome = outcome_of(scorer_of(MakeOrdered())(table_of_part(packed_part(part))))
    assert isinstance(outcome, EngineError)
    assert str(outcome) == "scoring a part failed: LocalError: of this test"
