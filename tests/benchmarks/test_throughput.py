from pathlib import Path

import pytest

from benchmarks import throughput
from benchmarks.throughput import WAYS, ThroughputRecord
from tests.benchmarks.finite import results_of


def test_the_best_way_of_each_is_compared() -> None:
    record = ThroughputRecord("a picture", 1, "detect", [10.0, 30.0, 20.0, 5.0, 6.0, 4.0])
    assert record.best("ours") == (WAYS[1], 30.0)
    assert record.best("reference") == (WAYS[4], 6.0)
    assert record.ratio == 5


def test_every_way_keeps_two_cores_busy() -> None:
    assert all(way.n_processes * way.compute_threads * way.calling_threads == 2 for way in WAYS)
    assert len({str(way) for way in WAYS if way.system == "ours"}) == 3
    assert len({str(way) for way in WAYS if way.system == "reference"}) == 3


@pytest.mark.slow
def test_the_tool_measures_every_way(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    throughput.main(["--quick", "--json", str(tmp_path / "throughput.json")])
    records = results_of(tmp_path / "throughput.json")["records"]
    assert [record["call"] for record in records] == ["detect", "analyze"]
    printed = capsys.readouterr().out
    for record in records:
        assert len(record["rates"]) == len(WAYS)
        assert all(rate > 0 for rate in record["rates"])
        assert record["ratio"] > 0
        assert f"({record['best']['ours']})" in printed
