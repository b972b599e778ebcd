from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from tests.training.faces import write_votes
from training.errors import DataError
from training.ferplus import (
    FERPLUS_CATEGORIES,
    FERPLUS_EMOTIONS,
    NO_EMOTION_WINS,
    NOBODY_VOTED,
    VOTES_DISAGREE,
    columns_of_emotions,
    emotion_shares,
    read_votes,
)


def cast(**votes: int) -> np.ndarray:
    """One face's votes by category; `nf` is not-a-face."""
    names = [*FERPLUS_CATEGORIES[:9], "nf"]
    row = np.zeros((1, 10), np.int8)
    for name, count in votes.items():
        row[0, names.index(name)] = count
    return row


MAJORITY = [
    pytest.param(cast(neutral=10), "neutral", id="all agree"),
    pytest.param(cast(neutral=5, sadness=4, fear=1), "neutral", id="over half once the single vote is gone"),
    pytest.param(cast(neutral=5, sadness=5), VOTES_DISAGREE, id="half is not more than half"),
    pytest.param(cast(neutral=4, sadness=3, anger=3), VOTES_DISAGREE, id="most, but under half"),
    pytest.param(cast(neutral=3, sadness=2, anger=1, fear=1, disgust=1, contempt=1, unknown=1), "neutral", id="3 of 5"),
    pytest.param(cast(unknown=6, neutral=4), NO_EMOTION_WINS, id="unknown wins"),
    pytest.param(cast(nf=10), NO_EMOTION_WINS, id="not a face"),
    pytest.param(cast(unknown=4, neutral=3, sadness=3), NO_EMOTION_WINS, id="unknown leads without a majority"),
    pytest.param(cast(unknown=4, neutral=4, sadness=2), VOTES_DISAGREE, id="unknown ties"),
    pytest.param(cast(), NOBODY_VOTED, id="nobody"),
    pytest.param(cast(**dict.fromkeys(FERPLUS_CATEGORIES[:9], 1), nf=1), VOTES_DISAGREE, id="single votes only"),
]


@pytest.mark.parametrize(("votes", "expected"), MAJORITY)
def test_majority(votes: np.ndarray, expected: str) -> None:
    said = emotion_shares(votes, "ferplus-majority")
    if expected in FERPLUS_EMOTIONS:
        assert said.reasons == (None,)
        assert said.shares.tolist() == [[float(name == expected) for name in FERPLUS_EMOTIONS]]
    else:
        assert said.reasons == (expected,)
        assert not said.shares.any()


DISTRIBUTION = [
    pytest.param(cast(happiness=10), {"happiness": 1}, id="all agree"),
    pytest.param(cast(happiness=8, neutral=2), {"happiness": 1}, id="three quarters end it"),
    pytest.param(cast(neutral=7, anger=2, fear=1), {"neutral": 1}, id="three quarters of what is left end it"),
    pytest.param(cast(neutral=7, anger=3), {"neutral": 0.7, "anger": 0.3}, id="under three quarters go on"),
    pytest.param(cast(neutral=4, anger=4, sadness=2), {"neutral": 0.5, "anger": 0.5}, id="equal ones together"),
    pytest.param(cast(neutral=4, anger=3, sadness=3), {"neutral": 0.4, "anger": 0.3, "sadness": 0.3}, id="three"),
    pytest.param(cast(neutral=4, anger=2, sadness=2, fear=2), VOTES_DISAGREE, id="four by a tie are too many"),
    pytest.param(cast(neutral=2, anger=2, sadness=2, fear=2, disgust=2), VOTES_DISAGREE, id="five"),
    pytest.param(cast(neutral=5, unknown=3, anger=2), VOTES_DISAGREE, id="unknown ends it, half is not enough"),
    pytest.param(cast(neutral=6, unknown=2, anger=2), {"neutral": 0.75, "anger": 0.25}, id="beside unknown"),
    pytest.param(cast(neutral=6, unknown=3, fear=1), {"neutral": 1}, id="unknown is not taken"),
    pytest.param(cast(unknown=4, neutral=3, anger=3), NO_EMOTION_WINS, id="unknown comes first"),
    pytest.param(cast(nf=10), NO_EMOTION_WINS, id="not a face"),
    pytest.param(cast(), NOBODY_VOTED, id="nobody"),
]


@pytest.mark.parametrize(("votes", "expected"), DISTRIBUTION)
def test_distribution(votes: np.ndarray, expected: dict[str, float] | str) -> None:
    said = emotion_shares(votes, "ferplus-distribution")
    if isinstance(expected, str):
        assert said.reasons == (expected,)
        assert not said.shares.any()
    else:
        assert said.reasons == (None,)
        assert said.shares[0] == pytest.approx([expected.get(name, 0) for name in FERPLUS_EMOTIONS])


def test_a_face_with_a_majority_has_a_distribution_with_the_same_winner() -> None:
    votes = np.random.default_rng(0).multinomial(10, (0.3, 0.2, *[0.05] * 6, 0.15, 0.05), 3000).astype(np.int8)
    majority, distribution = (emotion_shares(votes, rule) for rule in ("ferplus-majority", "ferplus-distribution"))
    decided = [index for index, reason in enumerate(majority.reasons) if reason is None]
    assert len(decided) > 200
    assert all(distribution.reasons[index] is None for index in decided)
    assert np.array_equal(majority.shares[decided].argmax(1), distribution.shares[decided].argmax(1))
    kept = [reason is None for reason in distribution.reasons]
    assert sum(kept) > len(decided)
    assert np.allclose(distribution.shares.sum(1), kept)


def test_own_labels_are_no_rule() -> None:
    with pytest.raises(ValueError, match="need no votes"):
        emotion_shares(cast(neutral=10), "label")


def test_labels_may_be_in_any_order_and_in_this_projects_names() -> None:
    ours = ("angry", "contempt", "disgust", "fear", "happy", "neutral", "sad", "surprise")
    assert [ours[column] for column in columns_of_emotions(ours)] == [
        "neutral", "happy", "surprise", "sad", "angry", "disgust", "fear", "contempt",
    ]  # fmt: skip
    assert columns_of_emotions(FERPLUS_EMOTIONS) == list(range(8))


@pytest.mark.parametrize(
    "labels",
    [FERPLUS_EMOTIONS[:7], (*FERPLUS_EMOTIONS, "shy"), (*FERPLUS_EMOTIONS[:7], "shy")],
    ids=["seven", "nine", "another"],
)
def test_labels_that_are_not_the_eight_emotions_are_refused(labels: tuple[str, ...]) -> None:
    with pytest.raises(DataError, match="labels from FER\\+ are neutral, happiness"):
        columns_of_emotions(labels)


def test_votes_file_is_read_in_order(tmp_path: Path) -> None:
    rows = [("Training", tuple(range(10))), ("PublicTest", (0, 0, 0, 0, 0, 0, 0, 0, 0, 10))]
    assert read_votes(write_votes(tmp_path / "fer2013new.csv", rows)) == rows


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Usage,neutral\nTraining,10\n", "expected the columns Usage, neutral, happiness"),
        ("Usage,Image name,{names}\nTraining,a.png,1,1,1,1,1,1,1,1,1\n", "row 0: invalid literal"),
        ("Usage,Image name,{names}\nTraining,a.png,1,1,1,1,1,1,1,1,1,1\nTraining,,0,0,x,0,0,0,0,0,0,0\n", "row 1: inv"),
        ("Usage,Image name,{names}\nTraining,a.png,-1,0,0,0,0,0,0,0,0,0\n", "row 0: votes .* expected 0 to 10"),
        ("Usage,Image name,{names}\nTraining,a.png,200,0,0,0,0,0,0,0,0,0\n", "row 0: votes .* expected 0 to 10"),
    ],
    ids=["columns", "short row", "no number", "negative", "too many"],
)
def test_votes_file_that_is_none_is_refused(text: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "fer2013new.csv"
    path.write_text(text.replace("{names}", ",".join([*FERPLUS_CATEGORIES[:9], "NF"])))
    with pytest.raises(DataError, match=message) as caught:
        read_votes(path)
    assert str(path) in str(caught.value)


def test_votes_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="No such file"):
        read_votes(tmp_path / "fer2013new.csv")
