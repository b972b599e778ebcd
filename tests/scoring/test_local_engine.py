import os
from dataclasses import replace
from pathlib import Path

import pytest

from scoring.config import RunConfig, resolve_config
from scoring.engine import PartRecord
from scoring.errors import EngineError, OutputError, StoppedError
from scoring.formats import encode, part_name
from scoring.local_engine import LocalEngine
from scoring.output import Output
from scoring.parts import Entry, Part, cut_parts
from scoring.rows import table_of
from scoring.scorer import MakeScorer
from scoring.sources import open_source
from scoring.tally import Tally
from tests.pictures import encoded, noise
from tests.scoring.scorers import MakeAfterwards, MakeOrdered
from tests.scoring.test_crew import Heard, workers_of

PART_SIZE = 8


@pytest.fixture
def config() -> RunConfig:
    return resolve_config("fake", format="jsonl", part_size=PART_SIZE)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    output = Output(str(tmp_path / "out"))
    output.prepare()
    return output


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    folder = tmp_path / "photos"
    folder.mkdir()
    for number in range(60):
        data = encoded(noise(40 + number, 60, seed=number), "JPEG")
        (folder / f"{number:02}.jpg").write_bytes(data if number % 10 else data[:50])
    return folder


def parts_of(paths: list[str], config: RunConfig) -> list[Part]:
    return list(cut_parts((Entry(path, None, "") for path in paths), config.part_size, config.fingerprint))


def engine_of(make_scorer: object, config: RunConfig, output: Output) -> LocalEngine:
    return LocalEngine(make_scorer, config, output, n_workers=2, file_timeout_s=60.0)  # type: ignore[arg-type]


def test_parts_are_those_of_a_bare_pipeline_to_the_byte(folder: Path, config: RunConfig, output: Output) -> None:
    source = open_source(str(folder))
    make_scorer = MakeScorer(source, config)
    parts = list(cut_parts(sorted(source.list(), key=lambda entry: entry.sort_key), PART_SIZE, config.fingerprint))
    progress = Heard()
    records = list(engine_of(make_scorer, config, output).score(parts, progress))

    pipeline = config.load_pipeline()
    for part in parts:
        outcomes = [pipeline.analyze([(folder / entry.path).read_bytes()])[0] for entry in part.entries]
        data = encode(table_of(part.entries, outcomes, config), config.format)
        assert output.read_part(part_name(part, config.format)) == data
    assert {record.name for record in records} == {part_name(part, config.format) for part in parts}
    assert len(parts) > 2
    total = Tally()
    for record in records:
        total.add(record.tally)
    assert total == progress.tally
    assert (total.n_inputs, total.n_failed) == (60, 6)
    assert not workers_of(os.getpid())


def test_a_file_that_kills_its_worker_is_a_row_like_others(config: RunConfig, output: Output) -> None:
    paths = [*(f"plain-{number}" for number in range(30)), "segfault-1"]
    total = Tally()
    for record in engine_of(MakeOrdered(), config, output).score(parts_of(paths, config), Heard()):
        total.add(record.tally)
    assert (total.n_inputs, total.errors) == (31, {"worker_died": 1})
    rows = b"".join(output.read_part(name) for name in output.part_names()).splitlines()
    assert len(rows) == 31
    assert sum(b'"worker_died"' in row for row in rows) == 1


def test_a_record_is_there_as_soon_as_its_part_stands_and_closing_ends_the_rest(
    config: RunConfig, output: Output
) -> None:
    paths = [f"plain-{number}" for number in range(2000)]
    records = engine_of(MakeOrdered(0.005), config, output).score(parts_of(paths, config), Heard())
    first = next(records)
    assert isinstance(first, PartRecord)
    assert first.name in output.part_names()
    assert workers_of(os.getpid())
    records.close()
    assert not workers_of(os.getpid())
    assert len(output.part_names()) == 1


def test_a_stop_ends_the_workers_and_keeps_what_stands(config: RunConfig, output: Output) -> None:
    paths = [f"plain-{number}" for number in range(2000)]
    records = []
    with pytest.raises(StoppedError):
        records.extend(engine_of(MakeOrdered(0.002), config, output).score(parts_of(paths, config), Heard(100)))
    assert not workers_of(os.getpid())
    assert 0 < len(output.part_names()) < len(parts_of(paths, config))


def test_an_output_that_cannot_be_written_ends_the_workers(config: RunConfig, tmp_path: Path) -> None:
    output = Output(str(tmp_path / "out"))
    (tmp_path / "out").write_text("a file where the folder should be")
    with pytest.raises(OutputError):
        list(engine_of(MakeOrdered(), config, output).score(parts_of(["plain-1"], config), Heard()))
    assert not workers_of(os.getpid())


def test_workers_that_cannot_load_end_the_run(config: RunConfig, output: Output, tmp_path: Path) -> None:
    engine = replace(engine_of(MakeAfterwards("exit", 99, tmp_path / "loads"), config, output), n_workers=1)
    with pytest.raises(EngineError, match="exit code 3"):
        list(engine.score(parts_of(["plain-1"], config), Heard()))
    assert output.part_names() == set()
