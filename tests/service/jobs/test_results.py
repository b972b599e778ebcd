"""The stream of a job's results beside the parts that it is made from."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from scoring.errors import OutputError
from service.jobs.records import JobState
from service.jobs.results import MEDIA_TYPES, Results, open_results
from service.jobs.schemas import ResultFormat
from service.jobs.store import JobStore
from service.jobs.worker import Worker
from service.settings import Settings
from tests.service.jobs.conftest import N_PICTURES, jobs_client, request_for


@pytest.fixture(scope="module")
def finished(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """The folder of jobs with one that succeeded, and its id."""
    folder = tmp_path_factory.mktemp("finished") / "jobs"
    store, request = JobStore(folder), request_for("photos/may")
    store.add(request)
    Worker(Settings(scoring_roots=(str(pictures),), job_part_size=8), store, lambda: False).work_once()
    job = store.find(request.id)
    assert job is not None
    assert job.state.state == "succeeded"
    return folder, request.id


@pytest.fixture(scope="module")
def parts(finished: tuple[Path, str]) -> pa.Table:
    """All rows as the parts have them, in the order of the manifest."""
    output = JobStore(finished[0]).output_folder(finished[1])
    names = [part["name"] for part in json.loads((output / "manifest.json").read_bytes())["parts"]]
    assert len(names) > 3
    return pa.concat_tables([pq.read_table(output / "parts" / name) for name in names])


def _rows(data: bytes, format: ResultFormat) -> list[dict[str, object]]:
    if format == "parquet":
        rows: list[dict[str, object]] = pq.read_table(io.BytesIO(data)).to_pylist()
        return rows
    if format == "jsonl":
        return [json.loads(line) for line in data.decode().splitlines()]
    return list(csv.DictReader(io.StringIO(data.decode(), newline="")))


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_the_file_has_the_rows_of_the_parts_in_the_order_of_the_paths(
    finished: tuple[Path, str], parts: pa.Table, format: ResultFormat
) -> None:
    client = jobs_client(jobs_dir=finished[0])

    response = client.get(f"/v1/jobs/{finished[1]}/results", params={"format": format})

    assert response.status_code == 200
    assert response.headers["content-type"] == MEDIA_TYPES[format]
    assert response.headers["content-disposition"] == f'attachment; filename="{finished[1]}.{format}"'
    rows = _rows(response.content, format)
    assert len(rows) == parts.num_rows
    assert [row["path"] for row in rows] == parts["path"].to_pylist() == sorted(parts["path"].to_pylist())
    assert len({row["path"] for row in rows}) == N_PICTURES
    for row, expected in zip(rows, parts.to_pylist(), strict=True):
        assert list(row) == list(expected)
        for name, value in expected.items():
            if format == "csv" and not isinstance(value, str):
                found: object = float(row[name]) if row[name] else None  # type: ignore[arg-type]
            else:
                found = row[name]
            assert found == (pytest.approx(value, rel=1e-6) if isinstance(value, float) else value), name


def test_parquet_is_what_the_parts_are(finished: tuple[Path, str], parts: pa.Table) -> None:
    data = jobs_client(jobs_dir=finished[0]).get(f"/v1/jobs/{finished[1]}/results").content
    file = pq.ParquetFile(io.BytesIO(data))

    assert file.read().equals(parts)
    assert file.schema_arrow.metadata == parts.schema.metadata
    assert file.metadata.row_group(0).column(0).compression == "ZSTD"


def test_one_part_is_in_memory_at_a_time() -> None:
    table = pa.table({"path": [f"{index:06d}" for index in range(1000)]})
    n_read = 0

    def read(name: str) -> pa.Table:
        nonlocal n_read
        n_read += 1
        return table

    for kind in MEDIA_TYPES:
        n_read = 0
        stream = Results([f"{n}" for n in range(50)], read).stream(kind)
        first = next(stream)
        assert n_read <= 2
        rest = list(stream)
        assert n_read == 50
        assert max(map(len, [first, *rest])) <= 64 * 1024
        assert len(_rows(b"".join([first, *rest]), kind)) == 50_000


@pytest.mark.parametrize("format", MEDIA_TYPES)
def test_a_part_that_is_gone_breaks_the_answer_off(finished: tuple[Path, str], format: ResultFormat) -> None:
    results = open_results(JobStore(finished[0]).output_folder(finished[1]))
    assert results is not None
    damaged = Results([*results.names, "part-gone.parquet"], results.read)

    with pytest.raises(OutputError):
        list(damaged.stream(format))


def test_an_unfinished_output_has_no_results(store: JobStore) -> None:
    request = request_for("photos/may")
    store.add(request)
    store.output_folder(request.id).mkdir()

    assert open_results(store.output_folder(request.id)) is None
    assert JobState().finished is False
