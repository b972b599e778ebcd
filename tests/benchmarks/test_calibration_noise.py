from pathlib import Path

import numpy as np
import pytest

from benchmarks.calibration_noise import calibration_noise, main
from tests.training.faces import generated_faces, parquet_rows, write_parquet


def drawn(n: int, sharpness: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (n, 4), and labels that are drawn from them."""
    rng = np.random.default_rng(1)
    logits = rng.normal(0, sharpness, (n, 4))
    probabilities = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    return probabilities, np.array([rng.choice(4, p=row) for row in probabilities])


def test_a_calibrated_model_is_within_its_own_noise() -> None:
    noise = calibration_noise(*drawn(2_000, 2.0), n_draws=200)
    assert 0 < noise.mean < noise.percentile_95
    assert noise.measured < noise.percentile_95


def test_an_overconfident_model_is_not() -> None:
    probabilities, labels = drawn(2_000, 2.0)
    sharpened = probabilities**3 / (probabilities**3).sum(1, keepdims=True)
    noise = calibration_noise(sharpened, labels, n_draws=200)
    assert noise.measured > 2 * noise.percentile_95


def test_the_noise_falls_with_the_number_of_faces() -> None:
    few, many = (calibration_noise(*drawn(n, 2.0), n_draws=100).mean for n in (400, 6_400))
    assert few == pytest.approx(4 * many, rel=0.3)  # as one over the root of their number


def test_sure_answers_have_no_noise() -> None:
    sure = np.eye(3)[[0, 1, 2, 0]]
    noise = calibration_noise(sure, np.array([0, 1, 2, 1]), n_draws=10)
    assert (noise.measured, noise.mean, noise.percentile_95) == (0.25, 0, 0)


@pytest.mark.parametrize(("n_faces", "n_draws"), [(0, 10), (5, 0)])
def test_nothing_to_draw_is_refused(n_faces: int, n_draws: int) -> None:
    with pytest.raises(ValueError, match="no draw"):
        calibration_noise(np.ones((n_faces, 1)), np.zeros(n_faces, np.int64), n_draws)


def test_the_tool_prints_a_line_a_model_and_way(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    faces = str(write_parquet(tmp_path / "faces.parquet", parquet_rows(generated_faces(21))))
    assert main(["--validation", faces, "--model", "fer2013-cnn:1.0.0", "--draws", "5"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(" | ")[:3] for line in lines[2:]] == [
        ["| fer2013-cnn:1.0.0", tta, "21"] for tta in ("none", "flip")
    ]


def test_what_is_missing_is_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--validation", str(tmp_path / "absent.parquet"), "--model", "absent"]) == 1
    err = capsys.readouterr().err
    assert err.startswith("ModelNotFoundError: no bundle absent")
    assert err.count("\n") == 1
