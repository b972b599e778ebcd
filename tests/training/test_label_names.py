from __future__ import annotations

import pytest

from training.ferplus import FERPLUS_EMOTIONS
from training.label_names import FANE_LABELS, FER2013_LABELS, canonical_label, matching_label


@pytest.mark.parametrize(
    ("name", "labels", "expected"),
    [
        ("happy", FER2013_LABELS, "happy"),
        ("Happy", FER2013_LABELS, "happy"),
        ("happiness", FER2013_LABELS, "happy"),
        ("Happiness", FER2013_LABELS, "happy"),
        ("happy", FERPLUS_EMOTIONS, "happiness"),
        ("anger", ("Angry", "Happy"), "Angry"),
        ("anger", ("happy", "anger", "angry"), "anger"),
        ("ANGER", ("angry", "anger"), "anger"),
        ("sadness", FANE_LABELS, "sad"),
        ("shy", FANE_LABELS, "shy"),
        ("contempt", FER2013_LABELS, None),
        ("joy", FER2013_LABELS, None),
    ],
)
def test_matching_label(name: str, labels: tuple[str, ...], expected: str | None) -> None:
    assert matching_label(name, labels) == expected


def test_seven_labels_mean_the_same_in_every_list() -> None:
    for label in FER2013_LABELS:
        there = matching_label(label, FERPLUS_EMOTIONS)
        assert there is not None
        assert matching_label(there, FER2013_LABELS) == label
        assert matching_label(there, FANE_LABELS) == label


def test_all_names_of_an_expression_have_one_spelling() -> None:
    assert {canonical_label(name) for name in ("happy", "Happiness", "HAPPY")} == {"happy"}
    assert canonical_label("Bored") == "bored"
