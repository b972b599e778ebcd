from __future__ import annotations

import csv
import hashlib
import io
import json
import os
import subprocess
import sys

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from handlers.errors import CorruptImageError
from handlers.results import Analysis, Face
from scoring.config import FORMATS, Format
from scoring.errors import OutputError
from scoring.formats import encode, is_part_name, part_name, tally_of
from scoring.parts import Entry, Part
from scoring.rows import schema, table_of
from scoring.tally import Tally
from tests.scoring.outcomes import NASTY_PATHS, face, fake_config, made_up

CONFIG = fake_config()
every_format = pytest.mark.parametrize("format", FORMATS)


def a_table(paths: tuple[str, ...] = NASTY_PATHS) -> pa.Table:
    return table_of(*made_up(paths, CONFIG.labels), CONFIG)


def decoded(data: bytes, format: Format) -> list[dict[str, object]]:
    """The rows by readers that are not the writers: the standard library's for text."""
    if format == "parquet":
        return pq.read_table(io.BytesIO(data)).to_pylist()
    if format == "jsonl":
        return [json.loads(line) for line in data.decode().split("\n")[:-1]]
    columns = {field.name: field for field in schema(CONFIG.labels)}
    return [
        {name: typed(value, columns[name].type) for name, value in row.items()}
        for row in csv.DictReader(io.StringIO(data.decode(), newline=""), strict=True)
    ]


def typed(text: str, kind: pa.DataType) -> object:
    if text == "":
        return None
    return text if pa.types.is_string(kind) else int(text) if pa.types.is_integer(kind) else float(text)


def as_float32(rows: list[dict[str, object]]) -> list[dict[str, object]]:
    return [{k: float(np.float32(v)) if isinstance(v, float) else v for k, v in row.items()} for row in rows]


@every_format
def test_rows_survive(format: Format):
    table = a_table()
    assert as_float32(decoded(encode(table, format), format)) == table.to_pylist()


@every_format
@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    path=st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]), min_size=1),
    number=st.floats(width=32, allow_nan=False, allow_infinity=False),
)
def test_any_path_and_any_number_survive(format: Format, path: str, number: float):
    labels = CONFIG.labels
    box = (number, -number, number, number)
    odd = Face(box, 0.5, ((number, 0.1),) * 5, labels[0], 0.1, dict.fromkeys(labels, 0.1))
    table = table_of([Entry(path, 1, "")], [Analysis(2, 1, (odd,))], CONFIG)
    [row] = as_float32(decoded(encode(table, format), format))
    assert row["path"] == path
    assert [row[f"box_{side}"] for side in ("left", "top", "right", "bottom")] == list(box)


@pytest.mark.parametrize("format", ["csv", "jsonl"])
def test_numbers_have_the_digits_of_a_float32_and_no_more(format: Format):
    one = Face((0.1, 1e-10, 16777216.0, 1 / 3), 0.1, ((0.1, 0.1),) * 5, "happy", 0.1, dict.fromkeys(CONFIG.labels, 0.1))
    data = encode(table_of([Entry("a", 1, "")], [Analysis(2, 1, (one,))], CONFIG), format).decode()
    assert "0.1000" not in data
    for digits in ("0.1", "1e-10", "16777216", "0.33333334"):
        assert digits in data


@every_format
def test_the_same_rows_are_the_same_bytes_in_every_process(format: Format):
    code = f"""
import hashlib
from scoring.formats import encode
from scoring.rows import table_of
from tests.scoring.outcomes import NASTY_PATHS, fake_config, made_up
config = fake_config()
print(hashlib.sha256(encode(table_of(*made_up(NASTY_PATHS, config.labels), config), {format!r})).hexdigest())
"""
    environment = {**os.environ, "PYTHONHASHSEED": "77", "TZ": "Pacific/Apia", "OMP_NUM_THREADS": "1"}
    there = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True)
    assert there.stdout.strip() == hashlib.sha256(encode(a_table(), format)).hexdigest()


def test_what_kind_of_parquet_it_is():
    data = encode(a_table(), "parquet")
    file = pq.ParquetFile(io.BytesIO(data))
    assert file.metadata.num_row_groups == 1
    assert file.metadata.format_version == "2.6"
    assert set(file.metadata.metadata) == {b"mien.labels"}
    assert json.loads(file.metadata.metadata[b"mien.labels"]) == list(CONFIG.labels)
    for index in range(file.metadata.num_columns):
        column = file.metadata.row_group(0).column(index)
        assert column.compression == "ZSTD"
        assert column.statistics.null_count is not None
    # pyarrow knows no optional field of ours as such; what matters to readers are names and types.
    assert [(f.name, f.type) for f in file.schema_arrow] == [(f.name, f.type) for f in schema(CONFIG.labels)]


def test_a_part_is_one_row_group_however_many_its_rows():
    data = encode(a_table(tuple(f"{index}.jpg" for index in range(3000))), "parquet")
    assert pq.ParquetFile(io.BytesIO(data)).metadata.num_row_groups == 1


def test_csv_is_a_header_and_lines():
    lines = encode(a_table(("a.jpg", "b.jpg")), "csv").decode().split("\n")
    assert lines[0] == ",".join(f'"{name}"' for name in schema(CONFIG.labels).names)
    assert lines[2].startswith('"b.jpg","no_face",,641,480,,,')
    assert lines[-1] == ""
    assert len(lines) == 4


def test_json_lines_have_every_key_in_every_line():
    for line in encode(a_table(), "jsonl").split(b"\n")[:-1]:
        assert list(json.loads(line)) == schema(CONFIG.labels).names


@every_format
def test_counts_come_back(format: Format):
    entries, outcomes = made_up(tuple(f"{index}.jpg" for index in range(40)), CONFIG.labels)
    table = table_of(entries, outcomes, CONFIG)
    assert tally_of(encode(table, format), format) == (Tally.of(outcomes), table.num_rows)


@every_format
@pytest.mark.parametrize(
    "outcome", [Analysis(2, 1, ()), CorruptImageError("cut"), Analysis(2, 1, (face(CONFIG.labels),))]
)
def test_counts_of_one_input(format: Format, outcome: Analysis | CorruptImageError):
    table = table_of([Entry("a", 1, "")], [outcome], CONFIG)
    assert tally_of(encode(table, format), format) == (Tally.of([outcome]), 1)


@every_format
def test_counts_of_two_paths_that_are_shown_alike(format: Format):
    entries = [Entry("a\udcff", 1, ""), Entry("a\\xff", 1, "")]
    assert entries[0].shown_path == entries[1].shown_path
    outcomes = [Analysis(2, 1, (face(CONFIG.labels, seed),)) for seed in (1, 2)]
    tally, _ = tally_of(encode(table_of(entries, outcomes, CONFIG), format), format)
    assert tally.n_inputs == 2


@every_format
def test_a_part_that_was_cut_anywhere_is_noticed(format: Format):
    table = a_table(NASTY_PATHS[3:9])
    data = encode(table, format)
    borders = []
    for length in range(len(data)):
        try:
            _, n_rows = tally_of(data[:length], format)
        except OutputError:
            continue
        assert n_rows < table.num_rows
        borders.append(length)
    if format == "parquet":
        assert borders == []
    else:  # text that ends with a row looks whole, and only its count of inputs gives it away
        assert len(borders) <= table.num_rows


@pytest.mark.parametrize("column", ["status", "error_code", "face_index", "emotion"])
def test_a_changed_byte_in_parquet_is_noticed(column: str):
    data = bytearray(encode(a_table(), "parquet"))
    row_group = pq.ParquetFile(io.BytesIO(data)).metadata.row_group(0)
    [chunk] = [
        row_group.column(i) for i in range(row_group.num_columns) if row_group.column(i).path_in_schema == column
    ]
    start = chunk.dictionary_page_offset or chunk.data_page_offset
    data[start + chunk.total_compressed_size - 3] ^= 1
    with pytest.raises(OutputError):
        tally_of(bytes(data), "parquet")


@every_format
@pytest.mark.parametrize(
    "data", [b"", b"\n", b"PAR1", b"PAR1PAR1", b"\x89PNG\r\n\x1a\n" * 40, b"{}\n", b"[1]\n", b"a,b\n1,2\n"]
)
def test_a_foreign_file_is_noticed(format: Format, data: bytes):
    with pytest.raises(OutputError, match="damaged or was not written by Mien"):
        tally_of(data, format)


@every_format
def test_a_part_of_another_format_is_noticed(format: Format):
    for other in FORMATS:
        if other != format:
            with pytest.raises(OutputError):
                tally_of(encode(a_table(), other), format)


@every_format
def test_a_table_with_other_columns_is_noticed(format: Format):
    for table in (
        a_table().drop_columns(["path"]),
        a_table().rename_columns([name.upper() for name in schema(CONFIG.labels).names]),
    ):
        with pytest.raises(OutputError, match="other columns"):
            tally_of(encode(table.replace_schema_metadata({}), format), format)


@every_format
@pytest.mark.parametrize(("column", "value"), [("status", "fine"), ("status", "ok"), ("emotion", "happy")])
def test_columns_that_contradict_each_other_are_noticed(format: Format, column: str, value: str):
    table = a_table()
    index = table.schema.get_field_index(column)
    table = table.set_column(index, table.schema.field(column), pa.array([value] * table.num_rows))
    with pytest.raises(OutputError, match="contradict"):
        tally_of(encode(table, format), format)


@every_format
def test_names(format: Format):
    name = part_name(Part(3, "0123456789abcdef" * 2, ()), format)
    assert name == f"part-0123456789abcdef0123456789abcdef.{format}"
    assert is_part_name(name)


@pytest.mark.parametrize(
    "name",
    [
        "part-1.csv",
        f"part-{'0' * 32}.txt",
        f"part-{'0' * 32}.csv.gz",
        f".part-{'0' * 32}.csv",
        f"part-{'0' * 32}.csv\n",
        f"part-{'A' * 32}.csv",
    ],
)
def test_names_that_are_not_ours(name: str):
    assert not is_part_name(name)
