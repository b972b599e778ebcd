"""The run itself, with an engine that counts, in this process."""

from __future__ import annotations

import dataclasses
import itertools
import json
import random
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from handlers.errors import ExpiredError, InternalError
from scoring.config import RunConfig, resolve_config
from scoring.errors import RETRIABLE, EngineError, InputError, OptionsError, OutputError, StoppedError, WorkerDiedError
from scoring.formats import tally_of
from scoring.output import Output
from scoring.parts import Entry, Outcome
from scoring.run import RunResult, ScoringJob, Shard, run
from scoring.sources import open_source
from tests.scoring.in_process import InProcessEngine, RecordingProgress
from tests.scoring.pictures import make_folder

N = 240


class Bench:
    """One folder of pictures and one output, run as often as a test likes."""

    def __init__(self, folder: Path, output: Path) -> None:
        self.folder, self.out = folder, output
        self.config: RunConfig = resolve_config("fake", part_size=16)
        self.progress = RecordingProgress()
        self.scored: list[str] = []
        self.include: tuple[str, ...] = ()

    def run(self, *, shard: Shard | None = None, stop_at_part: int | None = None) -> RunResult:
        source = open_source(str(self.folder), recursive=True, include=self.include)
        output = Output(str(self.out))
        self.progress = RecordingProgress()

        def before(index: int) -> None:
            if index == stop_at_part:
                raise StoppedError("stopped")

        engine = InProcessEngine(source, self.config, output, before)
        try:
            return run(ScoringJob(source, output, self.config, shard), engine, self.progress)
        finally:
            self.scored = engine.scored

    def files(self) -> dict[str, bytes]:
        return {
            path.relative_to(self.out).as_posix(): path.read_bytes() for path in self.out.rglob("*") if path.is_file()
        }

    @property
    def parts(self) -> set[str]:
        return {name for name in self.files() if name.startswith("parts/")}


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    folder = tmp_path_factory.mktemp("pictures")
    return folder, make_folder(folder, N)


@pytest.fixture
def bench(pictures: tuple[Path, dict[str, str]], tmp_path: Path) -> Bench:
    return Bench(pictures[0], tmp_path / "out")


@pytest.fixture
def own(bench: Bench, tmp_path: Path) -> Bench:
    """A bench whose pictures a test may change."""
    folder = tmp_path / "pictures"
    make_folder(folder, N)
    bench.folder = folder
    return bench


@pytest.fixture(scope="module")
def undisturbed(pictures: tuple[Path, dict[str, str]], tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    bench = Bench(pictures[0], tmp_path_factory.mktemp("out") / "out")
    bench.run()
    return bench.files()


def test_every_input_is_in_exactly_one_place(bench: Bench, pictures: tuple[Path, dict[str, str]]) -> None:
    import pyarrow.parquet as pq

    result = bench.run()
    rows = [row for name in bench.parts for row in pq.read_table(bench.out / name).to_pylist()]
    by_path = {path: list(own) for path, own in itertools.groupby(sorted(rows, key=key), lambda row: row["path"])}
    assert sorted(by_path) == sorted(path.relative_to(bench.folder).as_posix() for path in bench.folder.rglob("*.jpg"))
    assert {path: own[0]["error_code"] for path, own in by_path.items() if own[0]["status"] == "error"} == pictures[1]
    assert all(len(own) == 1 for own in by_path.values() if own[0]["status"] != "ok")
    assert sorted(bench.scored) == sorted(by_path)
    assert result.complete
    assert result.tally.n_inputs == bench.progress.n_listed == N
    assert result.tally == bench.progress.scored_tally
    assert result.tally.n_failed == len(pictures[1])


def key(row: dict[str, object]) -> tuple[str, int]:
    return str(row["path"]), int(str(row["face_index"] or 0))


def test_manifest_and_summary_say_what_the_parts_hold(bench: Bench) -> None:
    import hashlib

    result = bench.run()
    files = bench.files()
    manifest, summary = json.loads(files["manifest.json"]), json.loads(files["summary.json"])
    assert files["_SUCCESS"] == b""
    assert {f"parts/{part['name']}" for part in manifest["parts"]} == bench.parts
    for part in manifest["parts"]:
        data = files[f"parts/{part['name']}"]
        tally, n_rows = tally_of(data, "parquet")
        assert part["sha256"] == hashlib.sha256(data).hexdigest()
        assert (part["size_bytes"], part["n_rows"], part["n_inputs"]) == (len(data), n_rows, tally.n_inputs)
    firsts = [part["first_path"] for part in manifest["parts"]]
    assert firsts == sorted(firsts)
    assert summary == result.summary
    assert summary["inputs"] == N
    assert sum(summary["emotions"].values()) == summary["faces"] == result.tally.n_faces
    assert sum(summary["errors"].values()) == summary["inputs_failed"] == result.tally.n_failed
    assert summary["inputs_with_faces"] + summary["inputs_without_a_face"] + summary["inputs_failed"] == N


def test_a_second_run_does_nothing(bench: Bench) -> None:
    bench.run()
    before = written_at(bench.out)
    result = bench.run()
    assert bench.scored == []
    assert written_at(bench.out) == before
    assert result.n_standing_parts == result.n_parts > 5
    assert bench.progress.standing_tally == result.tally


def written_at(out: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in out.rglob("*") if path.is_file() and path.name != "_lock"}


@pytest.mark.parametrize("stop_at_part", [0, 1, 7])
def test_a_stopped_run_goes_on_to_the_same_bytes(
    bench: Bench, stop_at_part: int, undisturbed: dict[str, bytes]
) -> None:
    with pytest.raises(StoppedError):
        bench.run(stop_at_part=stop_at_part)
    assert len(bench.parts) == stop_at_part
    assert "_SUCCESS" not in bench.files()
    first = bench.scored
    result = bench.run()
    assert result.n_standing_parts == stop_at_part
    assert sorted(first + bench.scored) == sorted({*first, *bench.scored})
    assert len(first + bench.scored) == N
    assert bench.files() == undisturbed


def test_a_finished_output_is_reopened_before_anything_changes(own: Bench) -> None:
    own.run()
    (own.folder / "batch-0" / "00000.jpg").write_bytes(b"changed")
    with pytest.raises(StoppedError):
        own.run(stop_at_part=0)
    assert {"_SUCCESS", "summary.json", "manifest.json"}.isdisjoint(own.files())


def test_an_added_and_a_removed_and_a_changed_picture_cost_their_parts_only(own: Bench) -> None:
    n_parts = own.run().n_parts
    (own.folder / "batch-1" / "00001-again.jpg").write_bytes((own.folder / "batch-1" / "00001.jpg").read_bytes())
    (own.folder / "batch-2" / "00005.jpg").unlink()
    (own.folder / "batch-0" / "00003.jpg").write_bytes(b"changed")
    result = own.run()
    assert result.n_parts - result.n_standing_parts <= 9
    assert result.n_parts >= n_parts - 2
    assert result.tally.n_inputs == N
    assert own.parts == {f"parts/{part['name']}" for part in json.loads(own.files()["manifest.json"])["parts"]}


@pytest.mark.parametrize("change", [{"format": "csv"}, {"tta": "flip"}, {"part_size": 7}, {"model_digest": "0" * 64}])
def test_a_changed_config_starts_anew(bench: Bench, change: dict[str, object]) -> None:
    bench.run()
    before = bench.parts
    bench.config = dataclasses.replace(bench.config, **change)  # type: ignore[arg-type]
    if "model_digest" in change:
        bench.config = dataclasses.replace(bench.config, model_digest="fake", model="fake:2.0.0")
    assert bench.run().n_standing_parts == 0
    assert len(bench.scored) == N
    assert before.isdisjoint(bench.parts)
    assert "_SUCCESS" in bench.files()


@pytest.mark.parametrize("damage", ["truncate", "empty", "foreign"])
def test_a_damaged_part_is_made_again(bench: Bench, damage: str, undisturbed: dict[str, bytes]) -> None:
    bench.run()
    path = bench.out / sorted(bench.parts)[2]
    data = path.read_bytes()
    path.write_bytes({"truncate": data[:-100], "empty": b"", "foreign": b"PAR1 and so on PAR1"}[damage])
    result = bench.run()
    assert result.n_parts - result.n_standing_parts == 1
    assert bench.files() == undisturbed


def test_a_part_with_the_rows_of_another_is_made_again(bench: Bench, undisturbed: dict[str, bytes]) -> None:
    bench.run()
    by_size = sorted((bench.out / name for name in bench.parts), key=lambda path: path.stat().st_size)
    by_size[0].write_bytes(by_size[-1].read_bytes())
    bench.run()
    assert bench.files() == undisturbed


def test_what_could_not_be_read_is_tried_again(own: Bench) -> None:
    hidden = own.folder / "batch-1" / "00001.jpg"
    away = hidden.with_name("away")
    hidden.rename(away)
    hidden.symlink_to(away.name)
    away.rename(own.folder.parent / "away")
    first = own.run()
    assert first.tally.errors["unreadable"] == 1
    second = own.run()
    assert second.n_parts - second.n_standing_parts == 1
    assert "batch-1/00001.jpg" in own.scored
    (own.folder.parent / "away").rename(away)
    third = own.run()
    assert third.tally.errors["unreadable"] == 0
    assert third.complete


def test_what_another_shard_could_not_read_keeps_nobody_from_finishing(own: Bench) -> None:
    (own.folder / "batch-1" / "dangling.jpg").symlink_to("nowhere")
    results = [own.run(shard=Shard(index, 2)) for index in (0, 1)]
    assert results[-1].complete
    assert results[-1].summary is not None
    assert results[-1].summary["errors"]["unreadable"] == 1


@pytest.mark.parametrize("seed", range(3))
def test_shards_in_any_order_end_as_one_run_does(bench: Bench, seed: int, undisturbed: dict[str, bytes]) -> None:
    order = list(range(4))
    random.Random(seed).shuffle(order)
    scored: list[str] = []
    for place, index in enumerate(order):
        result = bench.run(shard=Shard(index, 4))
        scored += bench.scored
        assert bench.progress.n_listed == len(bench.scored) == result.tally.n_inputs
        assert result.complete == (place == 3)
        assert ("_SUCCESS" in bench.files()) == (place == 3)
    assert len(scored) == len(set(scored)) == N
    assert bench.files() == undisturbed


def test_more_shards_than_parts(bench: Bench, undisturbed: dict[str, bytes]) -> None:
    results = [bench.run(shard=Shard(index, 40)) for index in range(40)]
    # The last shards have nothing to do, and find all parts there.
    assert [result.complete for result in results].count(True) >= 1
    assert results[-1].complete
    assert results[-1].n_parts == 0
    assert bench.files() == undisturbed


def test_a_part_of_another_shard_that_is_damaged_keeps_the_output_unfinished(
    bench: Bench, undisturbed: dict[str, bytes]
) -> None:
    bench.run(shard=Shard(0, 2))
    damaged = bench.out / sorted(bench.parts)[0]
    damaged.write_bytes(b"")
    assert not bench.run(shard=Shard(1, 2)).complete
    assert bench.run(shard=Shard(0, 2)).complete
    assert bench.files() == undisturbed


@pytest.mark.parametrize(("index", "n"), [(-1, 2), (2, 2), (0, 0), (5, 3)])
def test_shards_that_make_no_sense(index: int, n: int) -> None:
    with pytest.raises(OptionsError):
        Shard(index, n)


def test_an_empty_folder_is_an_error(bench: Bench, tmp_path: Path) -> None:
    bench.folder = tmp_path / "empty"
    bench.folder.mkdir()
    with pytest.raises(InputError, match="nothing to score"):
        bench.run()


def test_one_run_at_a_time(bench: Bench) -> None:
    output = Output(str(bench.out))
    output.prepare()
    with output.lock(shared=False), pytest.raises(OutputError):
        bench.run()
    with output.lock(shared=True):
        with pytest.raises(OutputError):
            bench.run()
        bench.run(shard=Shard(0, 2))


def test_inputs_named_twice_are_scored_once(bench: Bench, tmp_path: Path) -> None:
    paths = sorted(bench.folder.rglob("*.jpg"))[:30]
    listed = tmp_path / "list.txt"
    listed.write_text("".join(f"{path}\n" for path in [*paths, *paths[:5]]))
    bench.folder = listed
    result = bench.run()
    assert result.n_repeated == 5
    assert result.tally.n_inputs == len(bench.scored) == 30


def test_ticks_while_parts_are_taken_over(bench: Bench) -> None:
    n_parts = bench.run().n_parts
    bench.run()
    assert bench.progress.n_ticks >= n_parts


def test_stopping_while_parts_are_taken_over(bench: Bench) -> None:
    bench.run()

    class Stopping(RecordingProgress):
        def tick(self) -> None:
            raise StoppedError("stopped")

    source, output = open_source(str(bench.folder), recursive=True), Output(str(bench.out))
    with pytest.raises(StoppedError):
        run(
            ScoringJob(source, output, bench.config),
            InProcessEngine(source, bench.config, output),
            Stopping(),
        )
    assert "_SUCCESS" in bench.files()


def test_an_engine_that_leaves_parts_out_finishes_nothing(bench: Bench) -> None:
    source, output = open_source(str(bench.folder), recursive=True), Output(str(bench.out))

    class Early(InProcessEngine):
        def score(self, parts, progress) -> Iterator[object]:  # type: ignore[no-untyped-def, override]
            yield from super().score(itertools.islice(parts, 3), progress)

    with pytest.raises(EngineError):
        run(ScoringJob(source, output, bench.config), Early(source, bench.config, output), bench.progress)
    assert len(bench.parts) == 3
    assert "_SUCCESS" not in bench.files()


def test_closing_the_engine_is_not_forgotten(bench: Bench) -> None:
    closed = []
    source, output = open_source(str(bench.folder), recursive=True), Output(str(bench.out))

    class Engine(InProcessEngine):
        def score(self, parts, progress) -> Iterator[object]:  # type: ignore[no-untyped-def, override]
            try:
                yield from super().score(parts, progress)
            finally:
                closed.append(True)

    def fail(index: int) -> None:
        if index == 2:
            raise OutputError("full")

    with pytest.raises(OutputError):
        run(ScoringJob(source, output, bench.config), Engine(source, bench.config, output, fail), bench.progress)
    assert closed == [True]


def test_an_output_in_the_input_that_is_not_among_the_inputs(own: Bench) -> None:
    own.include = ("*.jpg",)
    own.out = own.folder / "out"
    assert own.run().complete
    assert own.run().n_standing_parts > 5


def test_an_output_in_a_bucket_that_is_the_input(own: Bench) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    memory.put(str(own.folder), "/photos", recursive=True)
    source, output = open_source("memory://photos", recursive=True), Output("memory://photos/out")
    engine = InProcessEngine(source, own.config, output)
    with pytest.raises(OptionsError, match="lies in the input"):
        run(ScoringJob(source, output, own.config), engine, own.progress)
    assert engine.scored == []
    memory.rm("/photos", recursive=True)


def test_a_finished_output_of_another_input_is_kept(own: Bench, tmp_path: Path) -> None:
    own.run()
    before = own.files()
    own.folder = own.folder / "batch-1"
    with pytest.raises(OptionsError, match="results of"):
        own.run()
    assert own.files() == before


def test_a_part_that_another_run_removed_is_missed(own: Bench) -> None:
    """Else the manifest would name a part that is not there."""
    source, output = open_source(str(own.folder), recursive=True), Output(str(own.out))
    own.run()
    (own.folder / "batch-0" / "00000.jpg").write_bytes(b"changed")

    class Losing(InProcessEngine):
        def score(self, parts, progress) -> Iterator[object]:  # type: ignore[no-untyped-def, override]
            for record in super().score(parts, progress):
                yield record
                output.remove_part(record.name)

    result = run(ScoringJob(source, output, own.config), Losing(source, own.config, output), own.progress)
    assert not result.complete
    assert "_SUCCESS" not in own.files()


def test_an_input_named_less_often_than_before_is_noted(bench: Bench, tmp_path: Path) -> None:
    paths = sorted(bench.folder.rglob("*.jpg"))[:30]
    listed = tmp_path / "list.txt"
    bench.folder = listed
    for more, expected in ((paths[:3], 3), ([], 0)):
        listed.write_text("".join(f"{path}\n" for path in [*paths, *more]))
        bench.run()
        assert json.loads(bench.files()["summary.json"])["inputs_named_more_than_once"] == expected


@pytest.mark.parametrize(("code", "by_default"), [("timeout", True), ("worker_died", False), ("internal", False)])
def test_failures_that_may_be_the_machines_are_tried_again(own: Bench, code: str, by_default: bool) -> None:
    kinds = {"timeout": ExpiredError, "worker_died": WorkerDiedError, "internal": InternalError}
    source, output = open_source(str(own.folder), recursive=True), Output(str(own.out))

    class Failing(InProcessEngine):
        def _score(self, entry: Entry) -> Outcome:
            return kinds[code]("x") if entry.path == "batch-0/00000.jpg" else super()._score(entry)

    run(ScoringJob(source, output, own.config), Failing(source, own.config, output), own.progress)
    result = own.run()
    assert result.tally.errors[code] == (0 if by_default else 1)
    again = run(
        ScoringJob(source, output, own.config, retried=RETRIABLE),
        InProcessEngine(source, own.config, output),
        own.progress,
    )
    assert again.tally.errors[code] == 0
    assert again.complete


def test_files_at_another_address_are_other_files(own: Bench) -> None:
    import fsspec

    memory = fsspec.filesystem("memory")
    parts = []
    for folder in ("one", "two"):
        memory.put(str(own.folder), f"/{folder}", recursive=True)
        own.out = own.folder.parent / f"out-{folder}"
        source, output = open_source(f"memory://{folder}", recursive=True), Output(str(own.out))
        run(ScoringJob(source, output, own.config), InProcessEngine(source, own.config, output), own.progress)
        parts.append(own.parts)
        memory.rm(f"/{folder}", recursive=True)
    assert parts[0].isdisjoint(parts[1])


def test_it_can_be_stopped_while_the_listing_waits(own: Bench) -> None:
    source, output = open_source(str(own.folder), recursive=True), Output(str(own.out))
    waiting = threading.Event()

    class Slow:
        root = source.root

        def list(self) -> Iterator[Entry]:
            yield from source.list()
            waiting.wait(60)

        def selects(self, path: str) -> bool:
            return source.selects(path)

    class Stopping(RecordingProgress):
        def tick(self) -> None:
            raise StoppedError("stopped")

    engine = InProcessEngine(source, own.config, output)
    with pytest.raises(StoppedError):
        run(ScoringJob(Slow(), output, own.config), engine, Stopping())  # type: ignore[arg-type]
    waiting.set()


@pytest.mark.parametrize("inside", ["out", "batch-0/out", "a/b/out"])
def test_an_output_within_the_input_is_refused(own: Bench, inside: str) -> None:
    own.out = own.folder / inside
    for _ in range(2):
        with pytest.raises(OptionsError, match="lies in the input"):
            own.run()
    assert own.scored == []


def test_an_output_behind_a_link_into_the_input_is_refused(own: Bench, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(own.folder)
    own.out = tmp_path / "link" / "out"
    with pytest.raises(OptionsError, match="lies in the input"):
        own.run()


def test_an_output_beside_the_input_with_a_name_that_begins_alike(own: Bench) -> None:
    own.out = Path(f"{own.folder}-scored")
    assert own.run().complete


def test_an_output_that_goes_away_is_no_damaged_part(own: Bench) -> None:
    own.run()
    (part, *_) = sorted(own.out / name for name in own.parts)
    part.unlink()
    part.mkdir()
    with pytest.raises(OutputError):
        own.run()
