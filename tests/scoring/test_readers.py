"""The tools that people use read the same parts and agree; the code of docs/scoring.md runs."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd
import polars as pl
import pyarrow as pa
import pyarrow.dataset
import pytest

from handlers.errors import CorruptImageError
from handlers.results import Analysis
from scoring.config import Format
from scoring.output import Output
from scoring.parts import Entry, Outcome, Part
from scoring.rows import schema, table_of
from scoring.write_parts import write_scored
from tests.scoring.outcomes import NASTY_PATHS, fake_config, made_up

DOCUMENT = (Path(__file__).parents[2] / "docs" / "scoring.md").read_text()
OURS = "".join(re.findall(r"^## (?:The output folder|Columns)\n.*?(?=^## |\Z)", DOCUMENT, re.M | re.S))
Row = tuple[Any, ...]

CONFIG = fake_config()
COLUMNS = schema(CONFIG.labels).names


def scored_parts() -> list[tuple[Part, list[Outcome]]]:
    """Parts with everything, with no face at all, and with errors only: columns of nothing but nulls are a trap."""
    entries, outcomes = made_up(NASTY_PATHS, CONFIG.labels)
    more = tuple(Entry(f"more/{index}.jpg", 1, "") for index in range(6))
    faceless: list[Outcome] = [Analysis(640, 480, ())] * 3
    failed: list[Outcome] = [CorruptImageError("cut")] * 3
    return [
        (Part(0, "c" * 32, entries[:7]), outcomes[:7]),
        (Part(1, "b" * 32, entries[7:]), outcomes[7:]),
        (Part(2, "d" * 32, more[:3]), faceless),
        (Part(3, "a" * 32, more[3:]), failed),
    ]


def expected() -> list[Row]:
    tables = [table_of(part.entries, outcomes, CONFIG) for part, outcomes in scored_parts()]
    return compared(pa.concat_tables(tables).to_pylist())


def compared(rows: Iterable[dict[str, Any]]) -> list[Row]:
    """Rows in one order, with a reader's kinds of nothing and of numbers made alike."""
    plain = [tuple(plain_value(row[name]) for name in COLUMNS) for row in rows]
    return sorted(plain, key=lambda row: (row[0], -1 if row[5] is None else row[5]))


def plain_value(value: Any) -> Any:
    if value is None or value is pd.NA or (isinstance(value, float) and math.isnan(value)):
        return None
    return value if isinstance(value, str) else float(np.float32(value))


@pytest.fixture
def results(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[Format], Path]:
    """Makes a finished output, `results`, in the current folder; a half-written part lies in it."""
    monkeypatch.chdir(tmp_path)

    def make(format: Format) -> Path:
        output = Output("results")
        output.prepare()
        records = list(write_scored(scored_parts(), fake_config(format=format), output))
        output.finish({"parts": [{"name": record.name} for record in records]}, {})
        (tmp_path / "results" / "parts" / ".writing-0123456789abcdef").write_bytes(b"half")
        return tmp_path / "results" / "parts"

    return make


def by_pandas(sql_or_rows: pd.DataFrame) -> list[Row]:
    return compared(sql_or_rows.astype(object).to_dict("records"))


def by_duckdb(relation: duckdb.DuckDBPyRelation) -> list[Row]:
    return compared(dict(zip(relation.columns, row, strict=True)) for row in relation.fetchall())


def code_of(language: str, word: str) -> str:
    """The one block of the document in this language that has this word in it."""
    [block] = [block for block in re.findall(rf"```{language}\n(.*?)```", OURS, re.S) if word in block]
    return block


def rows_of(code: str) -> Any:
    names: dict[str, Any] = {"Path": Path}
    exec(code, names)
    return names["rows"]


def test_parquet(results: Callable[[Format], Path]):
    results("parquet")
    assert by_pandas(rows_of(code_of("py", "pd.read_parquet"))) == expected()
    assert compared(rows_of(code_of("py", "pl.read_parquet")).to_dicts()) == expected()
    assert by_duckdb(duckdb.sql("SELECT * FROM 'results/parts/*.parquet'")) == expected()


def test_parquet_by_the_manifest_is_in_the_order_of_the_inputs(results: Callable[[Format], Path]):
    results("parquet")
    paths = rows_of(code_of("py", "manifest.json"))["path"].to_pylist()
    assert list(dict.fromkeys(paths)) == [entry.shown_path for part, _ in scored_parts() for entry in part.entries]


def test_parquet_has_the_same_types_for_all(results: Callable[[Format], Path]):
    folder = results("parquet")
    kinds = {"string": ("VARCHAR", pl.String), "int32": ("INTEGER", pl.Int32), "float": ("FLOAT", pl.Float32)}
    by_sql = duckdb.sql("SELECT * FROM 'results/parts/*.parquet'")
    by_polars = pl.read_parquet("results/parts/*.parquet").schema
    by_arrow = pyarrow.dataset.dataset(folder).schema
    for field, sql_type in zip(schema(CONFIG.labels), by_sql.types, strict=True):
        assert (str(sql_type), by_polars[field.name]) == kinds[str(field.type)]
        assert by_arrow.field(field.name).type == field.type


def test_duckdb_aggregates_it(results: Callable[[Format], Path]):
    results("parquet")
    counted = duckdb.sql(code_of("sql", "GROUP BY")).fetchall()
    emotions = pd.read_parquet("results/parts").emotion.value_counts()
    assert {emotion: n for emotion, n, _ in counted} == emotions.to_dict()
    assert [n for _, n, _ in counted] == sorted(emotions, reverse=True)


def test_csv(results: Callable[[Format], Path]):
    results("csv")
    assert by_pandas(rows_of(code_of("py", "pd.read_csv"))) == expected()
    assert by_duckdb(duckdb.sql(code_of("sql", "read_csv"))) == expected()
    kinds = {"string": pl.String, "int32": pl.Int32, "float": pl.Float32}
    types = {field.name: kinds[str(field.type)] for field in schema(CONFIG.labels)}
    assert compared(pl.read_csv("results/parts/*.csv", schema=types).to_dicts()) == expected()


def test_json_lines(results: Callable[[Format], Path]):
    results("jsonl")
    frames = [pd.read_json(file, lines=True, dtype=False) for file in Path("results/parts").glob("*.jsonl")]
    assert by_pandas(pd.concat(frames)) == expected()
    assert compared(rows_of(code_of("py", "read_ndjson")).to_dicts()) == expected()
    assert by_duckdb(duckdb.sql(code_of("sql", "read_json"))) == expected()


def test_spark(results: Callable[[Format], Path]):
    pytest.importorskip("pyspark", reason="pyspark is not installed")
    results("parquet")
    found = rows_of(code_of("py", "pyspark"))
    assert compared(row.asDict() for row in found.collect()) == expected()


def test_every_block_of_code_is_tried_here():
    blocks = re.findall(r"```(\w+)\n", OURS)
    assert blocks.count("py") == 6
    assert blocks.count("sql") == 3
    assert "python" not in blocks  # those are run against the service by tests/test_documents.py


def test_the_table_of_columns_is_the_schema():
    table = OURS[OURS.index("## Columns") :]
    documented = re.findall(r"^\| `(\w+|probability_<label>)` \| (\w+) \|.*\| (.*?) \|$", table, re.M)
    columns = [(field.name, str(field.type).replace("float", "float32")) for field in schema(("<label>",))]
    assert [(name.replace("<label>", "_label_"), kind) for name, kind, _ in documented] == columns
    never_null = [name for name, _, null in documented if null == "never"]
    assert never_null == [field.name for field in schema(()) if not field.nullable]


def test_the_files_named_are_those_that_stand(results: Callable[[Format], Path]):
    folder = results("parquet").parent
    with Output("results").lock(shared=False):
        pass
    described = re.findall(r"^  (\S+?)(?:/\S+)? {2,}\S", OURS[: OURS.index("The folder is the database")], re.M)
    assert sorted(described) == sorted(path.name for path in folder.iterdir())
    assert json.loads((folder / "manifest.json").read_text())
