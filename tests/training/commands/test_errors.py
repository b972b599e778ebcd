from __future__ import annotations

from pathlib import Path

import pytest

from handlers.fakes import FakeDetector
from model_store.bundle import Bundle
from model_store.manifest import EmotionManifest
from tests.training.conftest import FinishedRun
from tests.training.faces import parquet_rows, write_parquet
from training.__main__ import main


def test_errors_of_a_bundle(
    published: Bundle,
    finished_run: FinishedRun,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setattr("handlers.pipeline.load_detector", FakeDetector)
    manifest = published.manifest
    assert isinstance(manifest, EmotionManifest)
    faces = finished_run.validation_set
    data = str(write_parquet(tmp_path / "validation.parquet", parquet_rows(faces)))
    for scores in manifest.evaluations:
        arguments = ["--model", manifest.tag, "--bundles", str(published.folder.parents[1]), "--tta", scores.tta]
        assert main(["errors", *arguments, "--data", data, "--training", data]) == 0
        first, _, *tables = capsys.readouterr().out.splitlines()
        assert first == (
            f"{manifest.tag} on validation.parquet, {len(faces)} faces, TTA {scores.tta}: {scores.accuracy:.2%}"
        )
        text = "\n".join(tables)
        confusions, *parts = text.split("\n\n")
        errors = sum(int(row.split("|")[3]) for row in confusions.splitlines()[2:])
        assert 0 < errors <= round((1 - scores.accuracy) * len(faces))
        titles = [part.split("|")[1].strip() for part in parts]
        assert titles == ["sharpness", "pose", "confidence", "the same pixels"], "these faces have no votes"
        for part in parts:
            assert sum(int(row.split("|")[2]) for row in part.splitlines()[2:]) == len(faces)
        assert f"| a training face with this label | {len(faces)} |" in parts[-1]
