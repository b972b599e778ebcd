from pathlib import Path

import pytest

from benchmarks import detection_settings
from benchmarks.detection_settings import CHOICES, Agreement, agree, large_composite
from handlers.results import Box, Detection
from tests.benchmarks.finite import results_of


def _faces(*boxes: tuple[Box, float]) -> list[Detection]:
    return [Detection(box, confidence, ()) for box, confidence in boxes]


A, NEAR_A, B, C = (0.0, 0.0, 10.0, 10.0), (1.0, 0.0, 11.0, 10.0), (50.0, 0.0, 60.0, 10.0), (0.0, 50.0, 10.0, 60.0)


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        (_faces((A, 0.99), (B, 0.8)), Agreement(2, 2, 1, 1, 0)),
        (_faces((NEAR_A, 0.7)), Agreement(2, 1, 1, 1, 0)),
        (_faces((B, 0.99), (C, 0.99)), Agreement(2, 1, 1, 0, 1)),
        (_faces((A, 0.9), (NEAR_A, 0.9)), Agreement(2, 1, 1, 1, 1)),
        ([], Agreement(2, 0, 1, 0, 0)),
    ],
)
def test_faces_are_matched_one_to_one(found: list[Detection], expected: Agreement) -> None:
    assert agree([found], [_faces((A, 0.95), (B, 0.8))]) == expected


def test_a_set_without_faces_agrees() -> None:
    assert str(agree([[]], [[]])) == "–, –, 0"


def test_a_large_composite_is_large() -> None:
    assert large_composite(0).shape == (1080, 1920, 3)


@pytest.mark.slow
def test_the_tool_measures_every_choice(store: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    detection_settings.main(["--quick", "--json", str(tmp_path / "settings.json")])
    rows = results_of(tmp_path / "settings.json")["rows"]
    assert [row["choice"] for row in rows] == list(CHOICES)
    printed = capsys.readouterr().out
    for row in rows:
        assert all(ms > 0 for ms in row["median_ms"].values())
        assert f"| {row['choice']} |" in printed
    (defaults,) = rows[0]["agreement"].values()
    assert defaults["n_found"] == defaults["n_expected"] > 0
    assert defaults["n_more"] == 0
