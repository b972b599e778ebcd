"""Every engine gives the torch engine's results, and the int8 network those of the fp32 one, on many kinds of faces."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import chain, islice
from pathlib import Path

import numpy as np
import pytest

from handlers import Analysis, Face, HandlerError, load_pipeline
from handlers.engines import ENGINE_NAMES, choose_engine
from handlers.errors import EngineUnavailableError
from model_store import registry
from model_store.manifest import EmotionManifest
from tests.boxes import overlap
from tests.handlers.detection.parity import astronaut_and_composites, photographs
from tests.pictures import encoded

MIN_SAME_EMOTIONS = 0.9
MAX_MEAN_INT8_DIFFERENCE = 0.01
"""Of a probability."""

Results = Sequence[Analysis | HandlerError]


@pytest.fixture(scope="module")
def images() -> list[bytes]:
    """The astronaut, some composites, and every third of the shared photographs where there are any."""
    return [
        encoded(picture.rgb_u8) for picture in chain(astronaut_and_composites(16), islice(photographs(), 0, None, 3))
    ]


@pytest.fixture(scope="module")
def torch_results(store: Path, images: list[bytes]) -> Iterator[Results]:
    import torch

    before = torch.get_num_threads()
    yield load_pipeline(engine="torch", precision="fp32").analyze(images)
    torch.set_num_threads(before)


@pytest.fixture(scope="module", params=[name for name in ENGINE_NAMES if name not in ("auto", "torch")])
def engine(request: pytest.FixtureRequest) -> str:
    try:
        choose_engine(request.param)
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    return request.param


@pytest.fixture(scope="module")
def fp32_results(store: Path, images: list[bytes], engine: str) -> Results:
    return load_pipeline(engine=engine, precision="fp32").analyze(images)


def pairs_of_faces(results: Results, expected: Results) -> Iterator[tuple[Face, Face]]:
    """The faces of both; there must be as many of them in every picture, and in the same places."""
    for first, second in zip(results, expected, strict=True):
        assert isinstance(first, Analysis)
        assert isinstance(second, Analysis)
        for face, other in zip(first.faces, second.faces, strict=True):
            assert overlap(face.box_px, other.box_px) >= 0.99
            assert face.detection_confidence == pytest.approx(other.detection_confidence, abs=0.01)
            assert np.abs(np.subtract(face.landmarks_px, other.landmarks_px)).max() < 1
            assert list(face.probabilities) == list(other.probabilities)
            yield face, other


def differences(face: Face, other: Face) -> np.ndarray:
    """Of the probabilities, absolute."""
    return np.abs(np.subtract(list(face.probabilities.values()), list(other.probabilities.values())))


def test_every_engine_agrees_with_torch_on_every_picture(fp32_results: Results, torch_results: Results) -> None:
    pairs = list(pairs_of_faces(fp32_results, torch_results))
    assert len(pairs) >= 50
    assert max(differences(*pair).max() for pair in pairs) <= 1e-3


def test_int8_sees_the_same_faces_and_nearly_the_same_emotions(
    fp32_results: Results, images: list[bytes], engine: str
) -> None:
    manifest = registry.load_default("emotion-classification").manifest
    if not isinstance(manifest, EmotionManifest) or manifest.int8 is None:
        pytest.skip(f"{manifest.tag} has no int8 network")
    pairs = list(pairs_of_faces(load_pipeline(engine=engine, precision="int8").analyze(images), fp32_results))
    assert len(pairs) >= 50
    assert np.mean([face.emotion == other.emotion for face, other in pairs]) >= MIN_SAME_EMOTIONS
    assert 0 < np.mean([differences(*pair) for pair in pairs]) <= MAX_MEAN_INT8_DIFFERENCE
