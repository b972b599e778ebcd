from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.results import Detection
from model_store.manifest import FaceCropSpec
from tests.training.faces import generated_faces, spec_of
from training import levers
from training.data import FER2013_LABELS, FaceSet
from training.errors import DataError
from training.levers import (
    LEVERS,
    PRIOR_OFFSETS,
    Framing,
    lever_scores_of_faces,
    lever_scores_of_portraits,
    lever_table,
    prior_scores,
    prior_table,
)
from training.wild import Portrait

SIDE_PX = 48


class BrightnessClassifier:
    """Calls bright crops happy and dark ones neutral."""

    tag = "bright:1.0.0"
    labels: tuple[str, ...] = FER2013_LABELS
    input = spec_of(SIDE_PX)
    face_crop = FaceCropSpec(scale=1.0, shift_x=0.0, shift_y=0.0, alignment="none")

    def classify(self, crops_u8: Sequence[NDArray[np.uint8]]) -> NDArray[np.float32]:
        rows = np.full((len(crops_u8), len(self.labels)), 0.02, np.float32)
        for row, crop in zip(rows, crops_u8, strict=True):
            assert crop.shape == (SIDE_PX, SIDE_PX, 1)
            row[self.labels.index("happy" if crop.mean() > 128 else "neutral")] = 0.88
        return rows


def grey_faces(*values: int) -> FaceSet:
    """One face of each grey, bright ones labelled happy, the others neutral."""
    crops = np.stack([np.full((SIDE_PX, SIDE_PX, 1), value, np.uint8) for value in values])
    labels = np.array([FER2013_LABELS.index("happy" if value > 128 else "neutral") for value in values])
    return FaceSet(crops, labels, tuple(map(str, values)), FER2013_LABELS, ())


def test_untouched_faces_come_first_then_every_strength_and_framing() -> None:
    scores = lever_scores_of_faces(BrightnessClassifier(), grey_faces(60, 100, 200))
    assert (scores[0].lever, scores[0].accuracy, scores[0].neutral_recall) == ("none", 1.0, 1.0)
    assert len(scores) == 1 + sum(len(lever.strengths) for lever in LEVERS) + len(levers.FRAMINGS)
    assert len({(score.lever, score.strength) for score in scores}) == len(scores)


def test_accuracy_and_neutral_recall_are_of_the_spoiled_faces() -> None:
    scores = lever_scores_of_faces(BrightnessClassifier(), grey_faces(60, 100, 200))
    brighter = next(score for score in scores if (score.lever, score.strength) == ("brighter by", "80"))
    assert brighter.accuracy == pytest.approx(1 / 3)  # both neutral faces are bright now
    assert brighter.neutral_recall == 0


def test_spoiled_crops_keep_shape_and_type_and_leave_the_original_alone() -> None:
    for channels in (1, 3):
        crop = generated_faces(1, side_px=SIDE_PX, channels=channels).crops_u8[0]
        before = crop.copy()
        for lever in LEVERS:
            for strength in lever.strengths:
                changed = lever.spoil(crop, strength, np.random.default_rng(0))
                assert (changed.shape, changed.dtype) == (crop.shape, np.uint8)
                assert not np.array_equal(changed, crop), (lever.name, strength)
        assert np.array_equal(crop, before)


@pytest.mark.parametrize("name", ["blur, sigma px", "seen at px", "JPEG quality", "noise, sigma"])
def test_later_strengths_change_more(name: str) -> None:
    lever = next(lever for lever in LEVERS if lever.name == name)
    crop = generated_faces(1, side_px=SIDE_PX).crops_u8[0]
    changes = [
        np.abs(lever.spoil(crop, strength, np.random.default_rng(0)).astype(int) - crop).mean()
        for strength in lever.strengths
    ]
    assert changes == sorted(changes)


def test_wrong_box_around_a_bare_crop_repeats_its_edge() -> None:
    crop = np.tile(np.arange(SIDE_PX, dtype=np.uint8)[None, :, None], (SIDE_PX, 1, 1))
    moved = levers._reframed(crop, Framing(shift_x=0.25))
    assert np.array_equal(moved[:, : SIDE_PX * 3 // 4], crop[:, SIDE_PX // 4 :])
    assert (moved[:, SIDE_PX * 3 // 4 :] == SIDE_PX - 1).all()
    assert np.array_equal(levers._reframed(crop, Framing()), crop)


def test_wrong_box_in_a_photograph_shows_what_is_there() -> None:
    photo = np.zeros((200, 200, 3), np.uint8)
    photo[76:124, 76:124] = 90  # the face, and bright surroundings to its right
    photo[76:124, 124:] = 250
    face = Detection((76.0, 76.0, 124.0, 124.0), 1.0, ())
    scores = lever_scores_of_portraits(BrightnessClassifier(), [Portrait("neutral/a", "neutral", photo, face)])
    by_name = {(score.lever, score.strength): score.accuracy for score in scores}
    assert by_name["none", ""] == 1
    moved = levers._cut_wrongly(
        Portrait("neutral/a", "neutral", photo, face), Framing(shift_x=0.5), BrightnessClassifier()
    )
    assert moved[:, : SIDE_PX // 2].max() == 90
    assert moved[:, SIDE_PX // 2 :].min() == 250


def test_prior_moves_ties_and_no_more_than_its_odds() -> None:
    names = BrightnessClassifier.labels
    probabilities = np.full((3, 7), 0.05, np.float32)
    neutral, happy = names.index("neutral"), names.index("happy")
    probabilities[:, happy] = 0.5
    probabilities[:, neutral] = (0.4, 0.25, 0.05)
    labels = np.array([neutral, neutral, happy])
    scores = {score.offset: score for score in prior_scores(BrightnessClassifier(), probabilities, labels)}
    assert tuple(scores) == PRIOR_OFFSETS
    assert scores[0.0].accuracy == pytest.approx(1 / 3)
    assert scores[0.4].neutral_recall == 0.5  # 0.4 e^0.4 > 0.5 > 0.25 e^0.4
    assert scores[0.8].accuracy == 1  # 0.25 e^0.8 > 0.5
    assert "| +0.8 | 100.0% | 100.0% |" in prior_table({"photos": list(scores.values())})


def test_table_has_two_columns_a_data_set() -> None:
    scores = lever_scores_of_faces(BrightnessClassifier(), grey_faces(60, 200))
    lines = lever_table({"photos": scores, "validation": scores}).splitlines()
    assert len(lines) == len(scores) + 2
    assert {line.count("|") for line in lines} == {7}


def test_faces_with_other_labels_are_refused() -> None:
    faces = grey_faces(60)
    other = FaceSet(faces.crops_u8, faces.labels, faces.names, (*FER2013_LABELS[:-1], "contempt"), ())
    with pytest.raises(DataError, match="the faces have the labels"):
        lever_scores_of_faces(BrightnessClassifier(), other)
