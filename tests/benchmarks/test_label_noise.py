from __future__ import annotations

from pathlib import Path

import pytest

from benchmarks.label_noise import main
from tests.training.faces import generated_faces, parquet_rows, write_parquet


@pytest.mark.parametrize(
    ("model", "error"),
    [("absent", "ModelNotFoundError: no bundle absent"), ("fer2013-resnet:1.1.0", "DataError: both need FER+'s votes")],
)
def test_what_is_missing_is_one_line(
    model: str, error: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    faces = str(write_parquet(tmp_path / "faces.parquet", parquet_rows(generated_faces(7))))
    assert main(["--data", faces, "--validation", faces, "--model", model]) == 1
    err = capsys.readouterr().err
    assert err.startswith(error)
    assert err.count("\n") == 1
