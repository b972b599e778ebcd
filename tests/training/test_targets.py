from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from handlers.classifier import EmotionClassifier, probabilities_of
from handlers.preprocess import resize_crop
from model_store.bundle import Bundle
from model_store.manifest import EmotionManifest
from tests.training.faces import generated_faces
from training.config import TargetsConfig
from training.data import FaceSet
from training.errors import DataError
from training.evaluate import load_network
from training.targets import teacher_probabilities, training_targets
from training.votes import labels_given_votes

pytestmark = pytest.mark.usefixtures("one_thread")
FACES = generated_faces(14)
TEACHERS = np.random.default_rng(0).dirichlet(np.ones(7), 14).astype(np.float32)


def with_votes(faces: FaceSet) -> FaceSet:
    votes = np.random.default_rng(1).multinomial(10, [0.1] * 10, len(faces)).astype(np.int8)
    return replace(faces, votes=votes)


def blend(teacher_weight: float = 0.0, **config: Any) -> TargetsConfig:
    return TargetsConfig(teachers=("teacher",) if teacher_weight else (), teacher_weight=teacher_weight, **config)


def test_labels_alone_are_one_hot() -> None:
    targets = training_targets(FACES, TargetsConfig())
    assert targets.dtype == np.float32
    assert np.array_equal(targets, np.eye(7, dtype=np.float32)[FACES.labels])


def test_smoothing_shares_out_a_part_evenly() -> None:
    targets = training_targets(FACES, TargetsConfig(label_smoothing=0.14))
    assert targets[np.arange(14), FACES.labels] == pytest.approx(np.full(14, 0.86 + 0.02))
    assert np.sort(targets)[:, :-1] == pytest.approx(np.full((14, 6), 0.02))


def test_label_teachers_and_votes_have_their_shares() -> None:
    faces = with_votes(FACES)
    assert faces.votes is not None
    found = training_targets(faces, blend(0.35, votes=0.3, label_smoothing=0.07), TEACHERS)
    one_hot = np.eye(7)[faces.labels]
    expected = 0.35 * (0.93 * one_hot + 0.01) + 0.35 * TEACHERS + 0.3 * labels_given_votes(faces.votes, faces.labels, 7)
    assert found == pytest.approx(expected, abs=1e-6)
    assert found.sum(1) == pytest.approx(np.ones(14), abs=1e-5)
    assert found.min() >= 0


def test_soft_labels_of_the_data_take_the_labels_place() -> None:
    soft = replace(FACES, soft_labels=TEACHERS[::-1].copy())
    assert training_targets(soft, TargetsConfig()) == pytest.approx(TEACHERS[::-1])
    assert training_targets(soft, blend(0.5), TEACHERS) == pytest.approx(0.5 * TEACHERS[::-1] + 0.5 * TEACHERS)


@pytest.mark.parametrize("teachers", [None, TEACHERS[:-1], TEACHERS[:, :-1]])
def test_missing_answers_of_the_teachers_are_refused(teachers: Any) -> None:
    with pytest.raises(DataError, match=r"^targets\.teachers: their probabilities are missing or of other faces$"):
        training_targets(FACES, blend(0.5), teachers)


def test_missing_votes_are_refused() -> None:
    with pytest.raises(DataError, match=r"^targets\.votes: this data set has no FER\+ votes$"):
        training_targets(FACES, blend(votes=0.2))


@pytest.mark.parametrize(("side_px", "channels"), [(16, 1), (24, 1), (24, 3)])
def test_teachers_see_the_faces_at_their_own_size(side_px: int, channels: int, published: Bundle) -> None:
    faces = generated_faces(9, side_px=side_px, channels=channels)
    manifest = published.manifest
    assert isinstance(manifest, EmotionManifest)
    found = teacher_probabilities([published, published], faces, 1.7, threads=1)
    crops = [resize_crop(crop, manifest.input) for crop in faces.crops_u8]
    classifier = EmotionClassifier(manifest, load_network(published, "torch", 1), "none")
    plain, mirrored = (classifier.logits(list(views)) for views in (crops, [crop[:, ::-1].copy() for crop in crops]))
    assert found == pytest.approx(probabilities_of((plain + mirrored) / 2, 1.7), abs=1e-5)
    assert found.sum(1) == pytest.approx(np.ones(9), abs=1e-5)


def test_teachers_are_softer_at_a_higher_temperature(published: Bundle) -> None:
    sharp, soft = (teacher_probabilities([published], FACES, value, threads=1) for value in (0.5, 4.0))
    assert (sharp.max(1) > soft.max(1)).all()
    assert np.array_equal(sharp.argmax(1), soft.argmax(1))


def test_teacher_of_other_labels_is_refused(published: Bundle) -> None:
    faces = replace(FACES, label_names=FACES.label_names[::-1])
    with pytest.raises(DataError, match=r"^targets\.teachers: tiny-faces:1\.0\.0 has other labels than neutral, "):
        teacher_probabilities([published], faces, 1.0, threads=1)
