from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.fakes import FAKE_LABELS, FakeClassifier, FakeDetector
from handlers.pipeline import Pipeline
from handlers.results import Analysis
from tests.pictures import encoded, noise
from training.errors import DataError
from training.wild import called_table, find_faces, score_wild, wild_table

OTHER_NAMES = {"happy": "Happiness", "angry": "anger", "sad": "sadness", "surprise": "surprised"}


def said(pixels: NDArray[np.uint8]) -> tuple[str, float]:
    """What the pipeline that serves says of a picture's largest face, and how sure it is."""
    (analysis,) = Pipeline(FakeDetector(), FakeClassifier()).analyze([encoded(pixels)])
    assert isinstance(analysis, Analysis)
    return analysis.faces[0].emotion, analysis.faces[0].confidence


def write(root: Path, folder: str, name: str, data: bytes) -> None:
    (root / folder).mkdir(parents=True, exist_ok=True)
    (root / folder / name).write_bytes(data)


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """Twelve pictures filed as the fakes call them but two, under other names of the same emotions; and odd ones."""
    for index in range(12):
        pixels = noise(80 + index, 100, index)
        label, _ = said(pixels)
        if index < 2:
            label = FAKE_LABELS[FAKE_LABELS.index(label) - 1]
        write(tmp_path, OTHER_NAMES.get(label, label), f"{index}.png", encoded(pixels))
    write(tmp_path, "contempt", "a.png", encoded(noise(80, 80, 99)))
    write(tmp_path, "contempt", "b.png", encoded(noise(81, 80, 98)))
    write(tmp_path, "neutral", "plain.png", encoded(np.full((80, 80, 3), 9, np.uint8)))
    write(tmp_path, "neutral", "broken.png", b"no picture")
    write(tmp_path, "neutral", ".hidden.png", b"")
    return tmp_path


def test_scores_are_those_of_the_pipeline_that_serves(photos: Path) -> None:
    report = score_wild(FakeClassifier(), find_faces(FakeDetector(), photos))
    expected = [said(noise(80 + index, 100, index)) for index in range(12)]
    assert (report.n, report.n_pictures, report.n_unreadable) == (12, 15, 1)
    assert (report.n_without_face, report.n_left_out) == (1, 2)
    assert report.accuracy == pytest.approx(10 / 12)
    assert report.standard_error == pytest.approx(math.sqrt(10 / 12 * 2 / 12 / 12))
    assert report.mean_confidence == pytest.approx(np.mean([confidence for _, confidence in expected]), abs=1e-6)
    called = [label for row in report.called.values() for label, count in row.items() for _ in range(count)]
    assert sorted(called) == sorted(label for label, _ in expected)


def test_recall_of_a_folder_is_the_share_that_was_called_so(photos: Path) -> None:
    report = score_wild(FakeClassifier(), find_faces(FakeDetector(), photos))
    assert "contempt" not in report.recall
    hits = sum(report.recall[folder] * sum(row.values()) for folder, row in report.called.items())
    assert hits == pytest.approx(10)
    for folder, row in report.called.items():
        own = {other: label for label, other in OTHER_NAMES.items()}.get(folder, folder)
        assert report.recall[folder] == pytest.approx(row.get(own, 0) / sum(row.values()))
        assert list(row.values()) == sorted(row.values(), reverse=True)


def test_unreadable_files_are_named(photos: Path) -> None:
    assert find_faces(FakeDetector(), photos).unreadable == ("neutral/broken.png",)


def test_tables_have_a_line_a_model_with_its_figures(photos: Path) -> None:
    report = score_wild(FakeClassifier(), find_faces(FakeDetector(), photos), "int8")
    *_, line = wild_table([report]).splitlines()
    assert line.startswith(f"| {report.model} int8 | 12 | 83.3% | 10.8% |")
    assert line.count("|") == len(report.recall) + 7
    folder, row = next(iter(report.called.items()))
    assert f"| {sum(row.values())} | {', '.join(f'{key} {count}' for key, count in row.items())} |" in called_table(
        [report], folder
    )
    assert report.as_json()["standard_error"] == report.standard_error


def test_pictures_of_unknown_emotions_only_are_refused(tmp_path: Path) -> None:
    write(tmp_path, "contempt", "a.png", encoded(noise(80, 80, 99)))
    with pytest.raises(DataError, match="no face of angry, disgust"):
        score_wild(FakeClassifier(), find_faces(FakeDetector(), tmp_path))


def test_folder_without_pictures_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no picture in folders named after emotions"):
        find_faces(FakeDetector(), tmp_path)
