from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.decode import decode_image
from handlers.detection import check_min_face_size, largest_first
from handlers.detection.mtcnn import MtcnnDetector, MtcnnSettings, boxes_of_cells, pyramid_scales
from handlers.detection.reference import ReferenceDetector
from handlers.engines import Network, choose_engine
from handlers.errors import InvalidRequestError
from handlers.results import Detection
from model_store.servable import ServableModel
from tests.boxes import overlap
from tests.handlers.detection.parity import Reference
from tests.handlers.face_scenes import face_patch, place_faces, scene
from tests.pictures import noise


@pytest.fixture(scope="module")
def reference() -> Reference:
    return Reference()


@pytest.fixture(scope="module")
def astronaut(astronaut_png: bytes) -> np.ndarray:
    return decode_image(astronaut_png)


def areas(faces: Sequence[Detection]) -> list[float]:
    return [(f.box_px[2] - f.box_px[0]) * (f.box_px[3] - f.box_px[1]) for f in faces]


def test_astronaut_has_a_face_with_its_landmarks_in_place(detector: MtcnnDetector, astronaut: np.ndarray) -> None:
    (face,) = detector.detect(astronaut, 20)
    left, top, right, bottom = face.box_px
    assert 150 < left < right < 310
    assert 30 < top < bottom < 230
    left_eye, right_eye, nose, mouth_left, mouth_right = face.landmarks_px
    assert left_eye[0] < nose[0] < right_eye[0]
    assert left_eye[1] < nose[1] < mouth_left[1]
    assert mouth_left[0] < mouth_right[0]


def test_faces_come_largest_first(detector: MtcnnDetector, astronaut_png: bytes) -> None:
    found = [areas(detector.detect(scene(astronaut_png, seed), 20)) for seed in range(20)]
    assert found == [sorted(each, reverse=True) for each in found]
    assert {0, 1, 2, 3} <= {len(each) for each in found}


def test_reference_detector_is_the_reference(
    mtcnn_model: ServableModel, reference: Reference, two_faces: bytes
) -> None:
    pixels = decode_image(two_faces)
    ours = ReferenceDetector(mtcnn_model)
    assert ours.detect(pixels, 20) == reference.detect(pixels)
    assert ours.detect(noise(19, 19), 20) == []
    assert ours.detect(np.zeros((60, 60, 3), np.uint8), 20) == []


@pytest.mark.parametrize(
    "shape", [(1, 1), (11, 11), (19, 400), (400, 19), (3, 5000), (1, 20)], ids=lambda shape: "×".join(map(str, shape))
)
def test_picture_smaller_than_the_smallest_face_has_none(detector: MtcnnDetector, shape: tuple[int, int]) -> None:
    assert pyramid_scales(*shape, 20, MtcnnSettings()) == []
    assert detector.detect(noise(*shape), 20) == []


@pytest.mark.parametrize("shape", [(20, 20), (20, 33), (21, 900), (64, 64)])
@pytest.mark.parametrize("value", [0, 128, 255])
def test_flat_picture_has_no_face(detector: MtcnnDetector, shape: tuple[int, int], value: int) -> None:
    assert detector.detect(np.full((*shape, 3), value, np.uint8), 20) == []


def test_no_network_is_asked_about_nothing(mtcnn_model: ServableModel, astronaut: np.ndarray) -> None:
    asked: dict[str, list[int]] = {"pnet": [], "rnet": [], "onet": []}

    def recording(name: str, network: Network) -> Network:
        def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            asked[name].append(len(inputs))
            return network(inputs)

        return run

    networks = choose_engine("onnxruntime").load(mtcnn_model)
    detector = MtcnnDetector({name: recording(name, network) for name, network in networks.items()})
    pictures = [np.full((64, 64, 3), 90, np.uint8), astronaut, *(noise(60, 80, seed) for seed in range(20))]
    assert [len(detector.detect(picture, 20)) for picture in pictures[:2]] == [0, 1]
    for picture in pictures[2:]:
        detector.detect(picture, 20)
    assert min(map(min, asked.values())) >= 1
    assert len(asked["onet"]) < len(asked["rnet"]) < len(pictures)  # both kinds of early end were seen


def test_scales_fall_by_the_factor_until_the_cell_covers_the_picture() -> None:
    scales = pyramid_scales(200, 300, 20, MtcnnSettings())
    assert scales[0] == 0.6
    np.testing.assert_allclose(np.divide(scales[1:], scales[:-1]), 0.709)
    assert 12 <= 200 * scales[-1] < 12 / 0.709


def test_large_picture_gets_no_level_over_the_limit() -> None:
    settings = MtcnnSettings(max_level_side_px=300)
    assert pyramid_scales(500, 400, 20, settings) == pyramid_scales(500, 400, 20, MtcnnSettings())
    assert pyramid_scales(3000, 1000, 20, settings)[0] == 0.1
    assert pyramid_scales(1000, 3000, 20, settings)[0] == 0.1


def test_large_picture_still_has_its_large_faces(
    mtcnn_model: ServableModel, detector: MtcnnDetector, astronaut_png: bytes
) -> None:
    pixels = place_faces(
        900, 700, [(face_patch(astronaut_png, 400), 20, 40), (face_patch(astronaut_png, 50), 560, 700)]
    )
    networks = choose_engine("onnxruntime").load(mtcnn_model)
    limited = MtcnnDetector(networks, MtcnnSettings(max_level_side_px=180))
    everything, (large,) = detector.detect(pixels, 20), limited.detect(pixels, 20)
    assert len(everything) == 2
    assert overlap(large.box_px, everything[0].box_px) > 0.85


def test_min_face_size_leaves_out_the_smaller_faces(detector: MtcnnDetector, astronaut_png: bytes) -> None:
    pixels = place_faces(
        400, 500, [(face_patch(astronaut_png, 220), 10, 60), (face_patch(astronaut_png, 50), 380, 120)]
    )
    large, small = detector.detect(pixels, 20)
    assert small.box_px[2] - small.box_px[0] < 60 < large.box_px[2] - large.box_px[0]
    (only,) = detector.detect(pixels, 80)
    assert overlap(only.box_px, large.box_px) > 0.85
    assert detector.detect(pixels, 399) == []


@pytest.mark.parametrize(("value", "size"), [(None, 20), (12, 12), (500, 500)])
def test_min_face_size_in_range(value: int | None, size: int) -> None:
    assert check_min_face_size(value) == size


@pytest.mark.parametrize("value", [11, 0, -1])
def test_min_face_size_out_of_range(value: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"not {value}"):
        check_min_face_size(value)


def test_threads_find_what_one_thread_finds(detector: MtcnnDetector, astronaut_png: bytes) -> None:
    scenes = [scene(astronaut_png, seed) for seed in range(8)]
    sizes = [20, 40] * 4
    alone = [detector.detect(pixels, size) for pixels, size in zip(scenes, sizes, strict=True)]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(detector.detect, scenes * 2, sizes * 2))
    assert together == alone * 2


def test_picture_is_left_as_it_was(detector: MtcnnDetector, astronaut: np.ndarray) -> None:
    pixels = astronaut.copy()
    pixels.flags.writeable = False
    detector.detect(pixels, 40)
    np.testing.assert_array_equal(pixels, astronaut)


def test_no_cell_is_no_box() -> None:
    boxes, scores, offsets = boxes_of_cells(np.zeros((4, 5, 6), np.float32), np.zeros((5, 6), np.float32), 0.5, 0.6)
    assert (boxes.shape, scores.shape, offsets.shape) == ((0, 4), (0,), (0, 4))


def test_cells_become_boxes_of_the_picture() -> None:
    probability = np.zeros((5, 6), np.float32)
    probability[2, 3] = 0.6
    regression = np.arange(4 * 30, dtype=np.float32).reshape(4, 5, 6)
    boxes, scores, offsets = boxes_of_cells(regression, probability, 0.5, 0.6)
    assert boxes.tolist() == [[14, 10, 36, 32]]
    assert scores.tolist() == [np.float32(0.6)]
    assert offsets.tolist() == [[15, 45, 75, 105]]


def test_largest_comes_first_and_equals_by_confidence() -> None:
    boxes = [((0, 0, 2, 2), 0.9), ((0, 0, 3, 3), 0.7), ((5, 5, 8, 8), 0.8)]
    faces = [Detection(box, confidence, ()) for box, confidence in boxes]
    assert [face.confidence for face in largest_first(faces)] == [0.8, 0.7, 0.9]
