"""A part's rows to the bytes of its file, and back to counts: Parquet, CSV, JSON lines.

The same rows give the same bytes, always: no file holds a time, a host or an order that may differ.
"""

from __future__ import annotations

import io
import json
import re
from collections import Counter
from collections.abc import Callable
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv as pa_csv
import pyarrow.parquet as pq

from scoring.config import FORMATS, Format
from scoring.errors import OutputError
from scoring.parts import Part
from scoring.rows import ERROR, NO_FACE, OK, has_our_columns
from scoring.tally import Tally

_PART_NAME = re.compile(rf"part-[0-9a-f]{{32}}\.({'|'.join(FORMATS)})")
_COUNTED = {"status": pa.string(), "error_code": pa.string(), "face_index": pa.int32(), "emotion": pa.string()}


def part_name(part: Part, format: Format) -> str:
    """The name of the part's file: it says all that its bytes depend on."""
    return f"part-{part.fingerprint}.{format}"


def is_part_name(name: str) -> bool:
    """Whether some run could have given a part this name, in whatever format."""
    return _PART_NAME.fullmatch(name) is not None


def encode(table: pa.Table, format: Format) -> bytes:
    """The file of these rows, in UTF-8 where it is text; numbers in the fewest digits that give the same float32.

    Parquet: zstd, one row group, with a checksum a page. CSV: a header, LF, empty for null. JSON lines: every key in
    every line, null where there is nothing.
    """
    sink = io.BytesIO()
    match format:
        case "parquet":
            _write_parquet(table, sink)
        case "csv":
            pa_csv.write_csv(table, sink)
        case "jsonl":
            _write_json_lines(table, sink)
    return sink.getvalue()


def tally_of(data: bytes, format: Format) -> tuple[Tally, int]:
    """The counts of a part's file, and its number of rows. An input with several faces counts once.

    Raises OutputError for what `encode` has not written, or not to its end. Text that was cut between two rows is
    whole as far as can be seen here. The number of inputs gives it away, but not between two faces of the last input;
    writes are atomic, so only damage from outside cuts there.
    """
    read: dict[Format, Callable[[bytes], pa.Table]] = {
        "parquet": _read_parquet,
        "csv": _read_csv,
        "jsonl": _read_json_lines,
    }
    try:
        table = read[format](data)
    except (pa.ArrowException, OSError, ValueError, KeyError, TypeError) as error:
        raise OutputError(f"a part is damaged or was not written by Mien: {error}") from error
    return _tally(table), table.num_rows


def _tally(table: pa.Table) -> Tally:
    statuses = _counts(table["status"])
    n_faces = statuses.pop(OK, 0)
    n_faceless, n_failed = statuses.pop(NO_FACE, 0), statuses.pop(ERROR, 0)
    emotions, errors = _counts(table["emotion"]), _counts(table["error_code"])
    # Told apart by their first face, not by their paths: two that are no UTF-8 may be shown alike.
    n_with_faces = _counts(table["face_index"]).get(0, 0)
    if statuses or emotions.total() != n_faces or errors.total() != n_failed or bool(n_faces) != bool(n_with_faces):
        raise OutputError("a part is damaged or was not written by Mien: its columns contradict each other")
    return Tally(n_with_faces + n_faceless + n_failed, n_faceless, n_failed, n_faces, emotions, errors)


def _counts(column: pa.ChunkedArray) -> Counter[Any]:
    return Counter({pair["values"]: pair["counts"] for pair in pc.value_counts(column.drop_null()).to_pylist()})


def parquet_writer(sink: Any, schema: pa.Schema) -> pq.ParquetWriter:
    """A writer of rows to a file-like `sink`, as a part has them; its caller adds the schema's metadata at the end."""
    return pq.ParquetWriter(
        sink,
        schema,
        version="2.6",
        compression="zstd",
        use_dictionary=[field.name for field in schema if pa.types.is_string(field.type) and field.name != "path"],
        write_statistics=True,
        write_page_checksum=True,
        store_schema=False,  # Arrow's own copy of the schema: no reader needs it, but it takes our metadata with it
    )


def _write_parquet(table: pa.Table, sink: io.BytesIO) -> None:
    with parquet_writer(sink, table.schema) as writer:
        writer.write_table(table, row_group_size=max(table.num_rows, 1))
        writer.add_key_value_metadata(table.schema.metadata or {})


def _read_parquet(data: bytes) -> pa.Table:
    with pq.ParquetFile(pa.BufferReader(data), page_checksum_verification=True) as file:
        _check_columns(file.schema_arrow.names)
        return file.read(columns=list(_COUNTED), use_threads=False).cast(pa.schema(_COUNTED))


def _read_csv(data: bytes) -> pa.Table:
    _check_end(data)
    table = pa_csv.read_csv(
        pa.BufferReader(data),
        # In one block: a block's border may fall inside a quoted value, and the parts are small.
        pa_csv.ReadOptions(use_threads=False, block_size=len(data) + 1),
        pa_csv.ParseOptions(newlines_in_values=True),
        pa_csv.ConvertOptions(column_types=_COUNTED, strings_can_be_null=True, quoted_strings_can_be_null=False),
    )
    _check_columns(table.column_names)
    return table.select(list(_COUNTED))


def _write_json_lines(table: pa.Table, sink: io.BytesIO) -> None:
    columns = [_shortest(column).to_pylist() for column in table.columns]
    encoder = json.JSONEncoder(ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    for row in zip(*columns, strict=True):
        sink.write(encoder.encode(dict(zip(table.column_names, row, strict=True))).encode() + b"\n")


def _shortest(column: pa.ChunkedArray) -> pa.ChunkedArray:
    """A float32 column as float64 with the same digits: 0.1, where the exact value is 0.10000000149…"""
    if pa.types.is_float32(column.type):
        return column.cast(pa.string()).cast(pa.float64())
    return column


def _read_json_lines(data: bytes) -> pa.Table:
    _check_end(data)
    rows = [json.loads(line) for line in data.split(b"\n")[:-1]]
    for names in {tuple(row) for row in rows}:
        _check_columns(list(names))
    return pa.table({name: pa.array([row[name] for row in rows], kind) for name, kind in _COUNTED.items()})


def _check_end(data: bytes) -> None:
    if not data.endswith(b"\n"):
        raise ValueError("its last line has no end")


def _check_columns(names: list[str]) -> None:
    if not has_our_columns(names):
        raise ValueError("it has other columns")
