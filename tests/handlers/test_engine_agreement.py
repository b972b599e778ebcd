from pathlib import Path

import numpy as np
import pytest

from handlers import Analysis, Face, Pipeline, load_pipeline
from tests.boxes import overlap


@pytest.fixture(scope="module")
def pipelines(store: Path) -> tuple[Pipeline, Pipeline]:
    return load_pipeline(engine="onnxruntime"), load_pipeline(engine="torch")


def _assert_same_face(first: Face, second: Face) -> None:
    assert overlap(first.box_px, second.box_px) >= 0.99
    assert first.detection_confidence == pytest.approx(second.detection_confidence, abs=0.01)
    assert np.abs(np.subtract(first.landmarks_px, second.landmarks_px)).max() < 1
    assert list(first.probabilities) == list(second.probabilities)
    differences = np.subtract(list(first.probabilities.values()), list(second.probabilities.values()))
    assert np.abs(differences).max() <= 1e-3


def _assert_agreement(pipelines: tuple[Pipeline, Pipeline], images: list[bytes]) -> int:
    n_faces = 0
    for first, second in zip(*(pipeline.analyze(images) for pipeline in pipelines), strict=True):
        assert isinstance(first, Analysis)
        assert isinstance(second, Analysis)
        assert len(first.faces) == len(second.faces)
        for ours, reference in zip(first.faces, second.faces, strict=True):
            _assert_same_face(ours, reference)
        n_faces += len(first.faces)
    return n_faces


def test_engines_agree_on_the_astronaut(pipelines: tuple[Pipeline, Pipeline], astronaut_png: bytes) -> None:
    assert _assert_agreement(pipelines, [astronaut_png]) == 1


def test_engines_agree_on_every_shared_photo(pipelines: tuple[Pipeline, Pipeline], shared_photos: list[Path]) -> None:
    assert _assert_agreement(pipelines, [photo.read_bytes() for photo in shared_photos]) >= len(shared_photos) * 0.9
