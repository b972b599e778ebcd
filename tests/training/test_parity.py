"""What the network learns from is, byte for byte, what the same crop becomes when it is served."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from handlers.classifier import EmotionClassifier
from handlers.preprocess import normalise
from tests.model_bundles import emotion_manifest
from tests.pictures import encoded, noise
from tests.training.faces import fed_to_the_network, spec_of, tiny_experiment
from training.augment import augment
from training.config import AugmentConfig
from training.data import FER2013_LABELS, load_faces
from training.loop import train

SIZES_PX = ((48, 48), (20, 31), (200, 150), (9, 9), (97, 96))
Batch = NDArray[np.float32]


def pictures(colour: bool) -> list[NDArray[np.uint8]]:
    crops = [noise(height, width, seed) for seed, (height, width) in enumerate(SIZES_PX)]
    return crops if colour else [crop[:, :, 0] for crop in crops]


class Recorder:
    """A network that keeps what it is fed."""

    def __init__(self) -> None:
        self.batches: list[Batch] = []

    def __call__(self, inputs: Batch, /) -> tuple[Batch]:
        self.batches.append(inputs)
        return (np.zeros((len(inputs), len(FER2013_LABELS)), np.float32),)


@pytest.mark.parametrize("colour", [False, True], ids=["grey", "rgb"])
@pytest.mark.parametrize(
    ("channels", "interpolation"), [(1, "bilinear"), (3, "bilinear"), (1, "bicubic"), (3, "lanczos")]
)
def test_loop_and_service_feed_identical_bytes(channels: int, interpolation: str, colour: bool, tmp_path: Path) -> None:
    spec = spec_of(48, channels, interpolation)
    crops = pictures(colour)
    served = Recorder()
    EmotionClassifier(emotion_manifest(input=spec), served).classify(crops)

    (tmp_path / "happy").mkdir()
    for index, crop in enumerate(crops):
        (tmp_path / "happy" / f"{index}.png").write_bytes(encoded(crop))
    faces = load_faces(tmp_path, FER2013_LABELS, spec)
    experiment = tiny_experiment(input=spec.model_dump(mode="json"), optim__epochs=1, optim__batch_size=len(crops))
    with fed_to_the_network() as batches:
        train(experiment, faces, faces, tmp_path / "run", device="cpu", log=lambda line: None)
    learned, validated = (batch for batch in batches if len(batch) == len(crops))

    (expected,) = served.batches
    assert expected.dtype == learned.dtype == validated.dtype == np.float32
    assert np.array_equal(validated, expected)
    assert validated.tobytes() == expected.tobytes()
    assert sorted(face.tobytes() for face in learned) == sorted(face.tobytes() for face in expected)


@pytest.mark.parametrize("channels", [1, 3])
def test_augmentation_that_is_off_leaves_the_served_bytes(channels: int) -> None:
    spec = spec_of(48, channels)
    crops_u8 = np.stack([noise(48, 48, seed)[:, :, :channels] for seed in range(5)])
    served = Recorder()
    EmotionClassifier(emotion_manifest(input=spec), served).classify(list(crops_u8))
    unchanged = augment(torch.from_numpy(crops_u8), AugmentConfig(flip=0.0), torch.Generator().manual_seed(0))
    assert normalise(unchanged.numpy(), spec).tobytes() == served.batches[0].tobytes()
