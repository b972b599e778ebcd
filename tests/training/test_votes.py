from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from training.ferplus import FERPLUS_CATEGORIES
from training.votes import labels_given_votes


def made_up() -> tuple[NDArray[np.int8], NDArray[np.int64], NDArray[np.float64]]:
    """Faces of three kinds of votes, and how often each kind carries each of three labels."""
    kinds = np.zeros((3, len(FERPLUS_CATEGORIES)), np.int8)
    kinds[0, FERPLUS_CATEGORIES.index("neutral")] = 10
    kinds[1, FERPLUS_CATEGORIES.index("happiness")] = 8
    kinds[1, FERPLUS_CATEGORIES.index("neutral")] = 2  # kind 2: nobody voted
    truth = np.array([[0.2, 0.5, 0.3], [0.9, 0.1, 0.0], [0.4, 0.3, 0.3]])
    votes, labels = [], []
    for kind, shares in zip(kinds, truth, strict=True):
        for label, share in enumerate(shares):
            n = round(200 * share)
            votes += [kind] * n
            labels += [label] * n
    return np.array(votes), np.array(labels, np.int64), np.repeat(truth, 200, axis=0)


def test_right_conditional_of_a_made_up_table() -> None:
    votes, labels, truth = made_up()
    found = labels_given_votes(votes, labels, 3)
    assert found.dtype == np.float32
    assert found.sum(1) == pytest.approx(np.ones(600), abs=1e-5)
    assert np.abs(found - truth).max() < 0.02


def test_order_of_the_faces_does_not_matter() -> None:
    votes, labels, _ = made_up()
    order = np.random.default_rng(0).permutation(len(votes))
    found, shuffled = labels_given_votes(votes, labels, 3), labels_given_votes(votes[order], labels[order], 3)
    assert np.abs(found[order] - shuffled).max() < 1e-4
    assert np.array_equal(found, labels_given_votes(votes, labels, 3))


def test_label_that_no_face_has_gets_next_to_nothing() -> None:
    votes, labels, truth = made_up()
    found = labels_given_votes(votes, labels, 4)
    assert found[:, 3].max() < 0.02
    assert np.abs(found[:, :3] - truth).max() < 0.03
