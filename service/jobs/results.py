"""The results of a finished job as one file, made part by part while it is sent: Parquet, CSV or JSON lines."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import TYPE_CHECKING, Any

from service.jobs.schemas import ResultFormat

if TYPE_CHECKING:
    import pyarrow as pa

MEDIA_TYPES: dict[ResultFormat, str] = {
    "parquet": "application/vnd.apache.parquet",
    "csv": "text/csv; charset=utf-8; header=present",
    "jsonl": "application/x-ndjson",
}
_PIECE_BYTES = 64 * 1024


@dataclass(frozen=True)
class Results:
    """The parts of a job that succeeded, in the order of its inputs. read: a part's name → its rows."""

    names: Sequence[str]
    read: Callable[[str], pa.Table]

    def stream(self, format: ResultFormat) -> Iterator[bytes]:
        """The bytes of the file in pieces of 64 KiB at most; one part is in memory. Raises OutputError, ValueError."""
        tables = map(self.read, self.names)
        parts = _parquet(tables) if format == "parquet" else _text(tables, format)
        for part in parts:
            for start in range(0, len(part), _PIECE_BYTES):
                yield part[start : start + _PIECE_BYTES]


def open_results(folder: Path) -> Results | None:
    """The results in an output folder, None when they are not complete. Raises OutputError."""
    # Here, as most API processes never need them: 40 MB.
    import pyarrow as pa
    import pyarrow.parquet as pq

    from scoring.output import Output

    output = Output(str(folder))
    manifest = output.finished()
    if manifest is None:
        return None

    def read(name: str) -> Any:
        return pq.ParquetFile(pa.BufferReader(output.read_part(name))).read(use_threads=False)

    return Results([part["name"] for part in manifest["parts"]], read)


def _parquet(tables: Iterator[pa.Table]) -> Iterator[bytes]:
    """One file with a row group a part. A job that succeeded has a part, as an input without files is an error."""
    import pyarrow as pa

    from scoring.formats import parquet_writer

    collected = _Collected()
    first = next(tables)
    with (
        pa.PythonFile(collected, mode="w") as sink,
        parquet_writer(sink, first.schema) as writer,
    ):
        for table in chain([first], tables):
            writer.write_table(table)
            yield collected.take()
        writer.add_key_value_metadata(first.schema.metadata or {})
    yield collected.take()


def _text(tables: Iterator[pa.Table], format: ResultFormat) -> Iterator[bytes]:
    """The text of every part, with the header of the first one only."""
    from scoring.formats import encode

    for index, table in enumerate(tables):
        text = encode(table, format)
        # No name of a column has a line end.
        yield text.partition(b"\n")[2] if format == "csv" and index else text


class _Collected:
    """A file to write to whose bytes are taken away as they come."""

    closed = False

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: Any) -> int:
        """Take bytes in."""
        self._held += data
        return len(data)

    def flush(self) -> None:
        """Nothing is held back."""

    def close(self) -> None:
        """Nothing to do."""

    def take(self) -> bytes:
        """What has come since the last time."""
        taken = bytes(self._held)
        self._held.clear()
        return taken
