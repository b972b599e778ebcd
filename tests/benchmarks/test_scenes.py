from pathlib import Path

import pytest

from benchmarks.scenes import Scene, all_scenes, small_scenes
from handlers.decode import decode_image
from handlers.detection import Detector
from handlers.pipeline import load_detector

SCENES = [*all_scenes(), *small_scenes()]


@pytest.fixture(scope="module")
def detector(store: Path) -> Detector:
    return load_detector()


def test_the_astronaut_and_one_six_and_twenty_faces_at_three_sizes() -> None:
    assert [(scene.width, scene.height, scene.n_faces) for scene in all_scenes()] == [
        (512, 512, 1),
        *((640, 480, n) for n in (1, 6, 20)),
        *((1280, 720, n) for n in (1, 6, 20)),
        *((1920, 1080, n) for n in (1, 6, 20)),
    ]


@pytest.mark.parametrize("scene", SCENES, ids=lambda scene: f"{scene.name}, {scene.n_faces}")
def test_a_scene_has_the_size_and_the_faces_that_it_says(detector: Detector, scene: Scene) -> None:
    rgb_u8 = decode_image(scene.jpeg)
    assert rgb_u8.shape == (scene.height, scene.width, 3)
    faces = detector.detect(rgb_u8, 20)
    assert len(faces) == scene.n_faces
    assert all(face.confidence > 0.9 for face in faces)
