from pathlib import Path

import pytest

from benchmarks import latency
from benchmarks.floor import AS_RUN, BY_THE_BOOK, CLASSIFIER
from benchmarks.stages import COUNTS, STAGES
from tests.benchmarks.finite import results_of


@pytest.mark.slow
def test_the_tool_measures_everything(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    latency.main(["--quick", "--json", str(tmp_path / "latency.json")])
    results = results_of(tmp_path / "latency.json")
    (record,) = results["records"]
    for system in ("ours", "reference"):
        assert record["n_found"][system] == record["n_faces"] == 2
        for threads in ("1", "2"):
            assert all(record["median_ms"][system][threads][call] > 0 for call in ("detect", "analyze"))
    assert all(record["ratio"][call][threads] > 0 for call in ("detect", "analyze") for threads in ("1", "2"))
    assert tuple(record["stage_ms"]) == STAGES
    assert tuple(record["n_candidates"]) == COUNTS
    assert {*AS_RUN, *BY_THE_BOOK, CLASSIFIER} <= set(record["floor_ms"])
    assert record["floor_by_the_book_ms"]["detect"] == pytest.approx(
        sum(record["floor_ms"][name] for name in BY_THE_BOOK)
    )
    printed = capsys.readouterr().out
    for name in (*STAGES, *record["floor_ms"], "**whole**", record["picture"], "×**"):
        assert name in printed
