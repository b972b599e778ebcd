from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import pytest

from tests.training.faces import generated_faces, parquet_rows, spec_of, write_parquet, write_voted_parquet
from training.commands.splits import add_split, load_split
from training.data import FER2013_LABELS, FaceSet
from training.ferplus import FERPLUS_EMOTIONS, LabelsFrom

VOTES = [(7, 3, 0, 0, 0, 0, 0, 0, 0, 0), (0, 5, 5, 0, 0, 0, 0, 0, 0, 0), None]


def load(
    name: str, path: Path, *arguments: str, labels: tuple[str, ...] = FERPLUS_EMOTIONS, source: LabelsFrom = "label"
) -> FaceSet:
    parser = argparse.ArgumentParser()
    add_split(parser, name, "faces")
    options = parser.parse_args([f"--{name}", str(path), *arguments])
    return load_split(options, name, labels, spec_of(), labels_from=source)


@pytest.fixture
def voted(tmp_path: Path) -> Path:
    return write_voted_parquet(tmp_path / "voted.parquet", parquet_rows(generated_faces(3)), VOTES)


def test_own_labels_unless_told_otherwise(voted: Path) -> None:
    assert len(load("data", voted, labels=FER2013_LABELS)) == 3


def test_configuration_decides_and_the_option_overrides(voted: Path) -> None:
    assert load("data", voted, source="ferplus-majority").labels.tolist() == [0]
    assert len(load("data", voted, "--data-labels", "ferplus-majority")) == 1
    again = load("data", voted, "--data-labels", "label", labels=FER2013_LABELS, source="ferplus-distribution")
    assert again.soft_labels is None
    assert len(again) == 3


def test_validation_faces_of_a_distribution_get_the_majority_label(voted: Path) -> None:
    training = load("data", voted, source="ferplus-distribution")
    assert training.soft_labels is not None
    assert np.allclose(training.soft_labels[:, :3], [[0.7, 0.3, 0], [0, 0.5, 0.5]])
    validation = load("validation", voted, source="ferplus-distribution")
    assert validation.soft_labels is None
    assert validation.labels.tolist() == [0]
    asked = load("validation", voted, "--validation-labels", "ferplus-distribution", source="ferplus-majority")
    assert asked.soft_labels is not None


def test_what_is_left_out_is_said(voted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    load("data", voted, source="ferplus-majority")
    assert capsys.readouterr().err.splitlines() == [
        "left out 1 faces: FER+: nobody voted",
        "left out 1 faces: FER+: the votes disagree",
    ]
    rows = [*parquet_rows(generated_faces(3)), ("broken.png", b"broken", 1)]
    load("data", write_parquet(tmp_path / "plain.parquet", rows), labels=FER2013_LABELS)
    assert capsys.readouterr().err.startswith("left out broken.png: unsupported_format")
