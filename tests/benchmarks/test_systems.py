import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from benchmarks.scenes import astronaut, composite_scene
from benchmarks.systems import N_LABELS, Ours, Reference
from handlers.decode import decode_image
from handlers.errors import HandlerError

TWO_FACES = composite_scene(240, 180, 2)


@pytest.fixture(scope="module")
def ours(store: Path) -> Ours:
    return Ours("auto", 1)


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference(1)


@pytest.fixture(scope="module")
def faceless() -> bytes:
    buffer = io.BytesIO()
    Image.new("RGB", (240, 180), (90, 120, 150)).save(buffer, "JPEG")
    return buffer.getvalue()


def test_the_reference_stack_returns_a_row_a_face(reference: Reference, faceless: bytes) -> None:
    rows = reference.probabilities([TWO_FACES.jpeg, faceless, TWO_FACES.jpeg])
    assert [of_picture.shape for of_picture in rows] == [(2, N_LABELS), (0, N_LABELS), (2, N_LABELS)]
    np.testing.assert_allclose(np.concatenate(rows).sum(1), 1, atol=1e-5)
    (alone,) = reference.probabilities([TWO_FACES.jpeg])
    np.testing.assert_allclose(alone, rows[0], atol=1e-4)


def test_the_reference_stack_returns_no_row_without_a_face(reference: Reference, faceless: bytes) -> None:
    assert reference.analyze([faceless]) == [0]
    assert reference.detect([decode_image(faceless)]) == [0]


def test_both_find_the_same_faces_alone_and_in_batches(ours: Ours, reference: Reference) -> None:
    rgb_u8 = decode_image(TWO_FACES.jpeg)
    for system in (ours, reference):
        for n_pictures in (1, 2):
            assert system.detect([rgb_u8] * n_pictures) == [2] * n_pictures
            assert system.analyze([TWO_FACES.jpeg] * n_pictures) == [2] * n_pictures


def test_ours_does_not_time_a_failure(ours: Ours) -> None:
    with pytest.raises(HandlerError):
        ours.analyze([b"no picture"])


@pytest.mark.parametrize("call", ["detect", "analyze"])
def test_a_system_is_timed_on_the_picture_that_it_was_given(ours: Ours, call: str) -> None:
    ours.prepare(astronaut().jpeg)
    assert ours.n_faces(call) == 1
    ours.prepare(TWO_FACES.jpeg)
    assert ours.n_faces(call) == 2
    assert all(ms > 0 for ms in ours.turn(call, 0))
    assert ours.window(call, 0.01, n_pictures=2, n_threads=2) > 0
