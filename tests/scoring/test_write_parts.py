from __future__ import annotations

import dataclasses
import hashlib
import logging
from collections.abc import Iterator
from pathlib import Path

import pytest

from scoring.config import FORMATS, Format, RunConfig
from scoring.engine import PartRecord
from scoring.errors import OptionsError, OutputError
from scoring.formats import encode, part_name
from scoring.output import Output
from scoring.parts import Outcome, Part
from scoring.rows import table_of
from scoring.tally import Tally
from scoring.write_parts import standing_record, write_scored
from tests.scoring.outcomes import fake_config, made_up_part

LABELS = fake_config().labels
PARTS = [made_up_part(tuple(f"{digit}/{index}.jpg" for index in range(7)), LABELS, digit * 32) for digit in "abc"]
every_format = pytest.mark.parametrize("format", FORMATS)


@pytest.fixture
def output(tmp_path: Path) -> Output:
    output = Output(str(tmp_path / "out"))
    output.prepare()
    return output


@every_format
def test_parts_and_their_records(output: Output, format: Format):
    config = fake_config(format=format)
    records = list(write_scored(iter(PARTS), config, output))
    assert output.part_names() == {record.name for record in records}
    for record, (part, outcomes) in zip(records, PARTS, strict=True):
        assert record.name == f"part-{part.fingerprint}.{format}"
        data = output.read_part(record.name)
        table = table_of(part.entries, outcomes, config)
        assert data == encode(table, format)
        assert record.sha256 == hashlib.sha256(data).hexdigest()
        assert record.size_bytes == len(data)
        assert record.n_rows == table.num_rows
        assert record.tally == Tally.of(outcomes)


def standing(part: Part, config: RunConfig, output: Output) -> PartRecord | None:
    return standing_record(part_name(part, config.format), len(part.entries), config, output)


@every_format
def test_a_standing_part_has_the_same_record(output: Output, format: Format):
    config = fake_config(format=format)
    records = list(write_scored(PARTS, config, output))
    assert [standing(part, config, output) for part, _ in PARTS] == records


def test_a_part_stands_before_the_next_one_is_asked_for(output: Output):
    taken = []

    def scored() -> Iterator[tuple[Part, list[Outcome]]]:
        for index, pair in enumerate(PARTS):
            assert len(output.part_names()) == index
            taken.append(index)
            yield pair

    records = write_scored(scored(), fake_config(), output)
    assert taken == []
    next(records)
    assert taken == [0]
    assert len(output.part_names()) == 1
    assert len(list(records)) == 2


@pytest.mark.parametrize("n_outcomes", [0, 6, 8])
def test_other_than_one_outcome_an_entry_is_refused(output: Output, n_outcomes: int):
    part, outcomes = PARTS[0]
    with pytest.raises(ValueError, match=f"{n_outcomes} outcomes for 7 entries"):
        list(write_scored([(part, (outcomes * 2)[:n_outcomes])], fake_config(), output))
    assert output.part_names() == set()


def test_labels_without_columns_end_it_before_anything_is_scored(output: Output):
    def scored() -> Iterator[tuple[Part, list[Outcome]]]:
        pytest.fail("scored for nothing")
        yield PARTS[0]

    config = dataclasses.replace(fake_config(), labels=("sad", "Sad"))
    with pytest.raises(OptionsError, match="would share the column"):
        list(write_scored(scored(), config, output))


@every_format
def test_a_part_that_was_cut_does_not_stand(output: Output, format: Format, caplog: pytest.LogCaptureFixture):
    config = fake_config(format=format)
    part, _ = PARTS[0]
    [record] = write_scored(PARTS[:1], config, output)
    data = output.read_part(record.name)
    for length in (0, 1, len(data) // 2, len(data) - 1):
        output.write_part(record.name, data[:length])
        with caplog.at_level(logging.WARNING):
            assert standing(part, config, output) is None
        assert f"{record.name} has to be made again" in caplog.text
        caplog.clear()


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_text_that_was_cut_between_two_rows_does_not_stand(output: Output, format: Format):
    config = fake_config(format=format)
    [record] = write_scored(PARTS[:1], config, output)
    lines = output.read_part(record.name).splitlines(keepends=True)
    output.write_part(record.name, b"".join(lines[:5]))
    assert standing(PARTS[0][0], config, output) is None


@every_format
def test_another_part_under_its_name_does_not_stand(output: Output, format: Format):
    config = fake_config(format=format)
    part, outcomes = PARTS[0]
    shorter = dataclasses.replace(part, entries=part.entries[:-1])
    list(write_scored([(shorter, outcomes[:-1])], config, output))
    assert standing(part, config, output) is None


def test_a_part_that_cannot_be_had_is_an_error_and_not_a_damaged_one(output: Output):
    with pytest.raises(OutputError, match="cannot be read"):
        standing(PARTS[0][0], fake_config(), output)
