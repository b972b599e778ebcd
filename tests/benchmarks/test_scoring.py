import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks import scoring
from benchmarks.scoring import ScoringRecord, write_distinct
from benchmarks.scoring_memory import Memory, MemorySample, descendants, make_empty_files
from handlers.decode import decode_image
from tests.benchmarks.finite import results_of
from tests.pictures import encoded, noise


def test_the_share_is_that_of_the_rounds_not_of_the_best_ones() -> None:
    record = ScoringRecord(
        "a picture", 1, 10, bare=[10.0, 20.0, 40.0], local=[9.5, 18.0, 20.0], bare_cpu_ms=[1.0], local_cpu_ms=[1.0]
    )

    assert record.share == pytest.approx(0.9)


def test_distinct_files_have_the_same_pixels(tmp_path: Path) -> None:
    jpeg = encoded(noise(24, 32), "JPEG")
    paths = write_distinct(jpeg, 12, tmp_path / "files")

    assert len({path.read_bytes() for path in paths}) == 12
    assert all((decode_image(path.read_bytes()) == decode_image(jpeg)).all() for path in paths)


def test_the_stages_are_the_listing_and_every_tenth() -> None:
    samples = [MemorySample(float(n), max(0, n - 3), 50.0 + n, 200.0) for n in range(104)]
    memory = Memory(1_000, 100, 104.0, 160.0, samples)
    stages = memory.stages()

    assert [stage for stage, _ in stages] == ["listing", *(f"{tenth}0 %" if tenth else "0 %" for tenth in range(11))]
    assert [sample.n_parts for _, sample in stages] == [0, 1, *range(10, 101, 10)]


def test_as_many_files_are_made_as_asked(tmp_path: Path) -> None:
    make_empty_files(2_345, tmp_path / "files")

    sizes = [path.stat().st_size for path in (tmp_path / "files").rglob("*.jpg")]
    assert sizes == [0] * 2_345


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_children_and_their_children_are_found() -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'print(1, flush=True); input()'])"
    with subprocess.Popen([sys.executable, "-c", child], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == b"1\n"
        assert len(descendants(process.pid)) == 1
        process.communicate(b"\n", timeout=30)


@pytest.mark.skipif(sys.platform != "linux", reason="needs /proc")
def test_the_tool_measures_memory(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scoring.main(["--memory", "--quick", "--json", str(tmp_path / "memory.json")])
    results = results_of(tmp_path / "memory.json")

    assert results["n_files"] == 5_000
    assert results["n_parts"] > 0
    assert results["peak_mib"] > 10
    assert all(stage["coordinator_mib"] > 10 for stage in results["stages"])
    assert "| 100 % |" in capsys.readouterr().out


def test_the_tool_measures_throughput(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scoring.main(["--quick", "--model", "fake", "--json", str(tmp_path / "scoring.json")])
    (record,) = results_of(tmp_path / "scoring.json")["records"]

    assert record["n_files"] == 12
    assert len(record["bare"]) == len(record["local"]) == 1
    assert record["share"] > 0
    assert record["local_cpu_ms"][0] > 0
    assert f"**{record['share'] * 100:.1f} %**" in capsys.readouterr().out


@pytest.mark.slow
def test_the_tool_measures_the_shipped_model(store: Path, tmp_path: Path) -> None:
    scoring.main(["--quick", "--json", str(tmp_path / "scoring.json")])
    (record,) = results_of(tmp_path / "scoring.json")["records"]

    assert record["share"] > 0
