"""FER+ (Barsoum et al., 2016): the votes of ten annotators as labels of eight emotions.

Both rules are those of the paper and of Microsoft's reader (github.com/microsoft/FERPlus, src/ferplus.py), which names
them "majority" and "crossentropy". A category with a single vote is taken for a slip and loses it; "the votes" below
are the rest.

* Majority: the category with more than half of the votes.
* Distribution: categories are taken in order of their votes, equal ones together, until those taken hold three
  quarters of the votes or are three. Reaching "unknown" or "not a face" ends it, without taking that. The emotions
  taken must be at most three and hold more than half of the votes; the label is their votes' share among themselves.

A face that yields no emotion is left out, as the paper does; `Shares.reasons` says why. A face that is scored has the
majority label, whichever rule its training set follows.
"""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from training.errors import DataError
from training.label_names import matching_label

FERPLUS_CATEGORIES = (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "not-a-face",
)  # fmt: skip
"""The order of the ten vote columns."""

FERPLUS_EMOTIONS = FERPLUS_CATEGORIES[:8]
VOTES_FILE = "fer2013new.csv"
"""Microsoft's name of the file of votes, a row for each row of `fer2013.csv`."""

LabelsFrom = Literal["label", "ferplus-majority", "ferplus-distribution"]
"""Where a face's label comes from: the data set's own words, or FER+'s votes by one of the two rules."""

NOBODY_VOTED = "FER+: nobody voted"
NO_EMOTION_WINS = "FER+: unknown or not a face wins"
VOTES_DISAGREE = "FER+: the votes disagree"

_VOTES_HEADER = (*FERPLUS_CATEGORIES[:9], "NF")
_N_EMOTIONS = len(FERPLUS_EMOTIONS)
_ANNOTATORS = 10
_MOST_EMOTIONS = 3
_ENOUGH = 0.75


@dataclass(frozen=True)
class Shares:
    """What the votes say of each face.

    shares: float32 (N, 8) in the order of FERPLUS_EMOTIONS; a row sums to 1, or is zeros for a face that is left out.
    reasons: why it is left out, None for the others.
    """

    shares: NDArray[np.float32]
    reasons: tuple[str | None, ...]


def emotion_shares(votes: NDArray[np.int8], labels_from: LabelsFrom) -> Shares:
    """Votes as labels by the rule of `labels_from`.

    votes: int8 (N, 10) in the order of FERPLUS_CATEGORIES. Raises ValueError for "label", which is no rule of FER+.
    """
    if labels_from == "label":
        raise ValueError("the data set's own labels need no votes")
    rule = _majority if labels_from == "ferplus-majority" else _distribution
    shares = np.zeros((len(votes), _N_EMOTIONS), np.float32)
    reasons: list[str | None] = []
    for index, cast in enumerate(votes.astype(np.int64)):
        kept = np.where(cast > 1, cast, 0)
        taken = rule(kept)
        if taken is not None:
            shares[index] = taken / taken.sum()
            reasons.append(None)
        elif not cast.any():
            reasons.append(NOBODY_VOTED)
        else:
            wins_none = kept[_N_EMOTIONS:].max() > kept[:_N_EMOTIONS].max()
            reasons.append(NO_EMOTION_WINS if wins_none else VOTES_DISAGREE)
    return Shares(shares, tuple(reasons))


def columns_of_emotions(label_names: Sequence[str]) -> list[int]:
    """For each of FERPLUS_EMOTIONS its place in `label_names`, which may use this project's names (angry, happy, sad).

    Raises DataError unless the labels are the eight emotions, in any order.
    """
    found = [matching_label(emotion, label_names) for emotion in FERPLUS_EMOTIONS]
    if None in found or len(label_names) != _N_EMOTIONS:
        raise DataError(
            f"labels {', '.join(label_names)}: labels from FER+ are {', '.join(FERPLUS_EMOTIONS)}, in any order"
        )
    return [label_names.index(label) for label in found if label is not None]


def read_votes(path: Path) -> list[tuple[str, tuple[int, ...]]]:
    """Usage and ten votes of every row of Microsoft's `fer2013new.csv`.

    Raises DataError for a file that cannot be read or has other columns, or a vote that is no number from 0 to 10.
    """
    rows: list[tuple[str, tuple[int, ...]]] = []
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.DictReader(file)
            if not {"Usage", *_VOTES_HEADER} <= set(reader.fieldnames or ()):
                raise DataError(f"{path}: expected the columns Usage, {', '.join(_VOTES_HEADER)}")
            for row in reader:
                rows.append((row["Usage"], _votes_of(path, len(rows), row)))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from None
    return rows


def _votes_of(path: Path, number: int, row: dict[str, str]) -> tuple[int, ...]:
    try:
        votes = tuple(int(row[column] or "") for column in _VOTES_HEADER)
    except ValueError as error:
        raise DataError(f"{path}: row {number}: {error}") from None
    if min(votes) < 0 or max(votes) > _ANNOTATORS:
        raise DataError(f"{path}: row {number}: votes {votes}, expected 0 to {_ANNOTATORS}")
    return votes


def _majority(kept: NDArray[np.int64]) -> NDArray[np.int64] | None:
    winner = int(kept.argmax())
    if winner >= _N_EMOTIONS or 2 * kept[winner] <= kept.sum():
        return None
    return np.where(np.arange(_N_EMOTIONS) == winner, kept[:_N_EMOTIONS], 0)


def _distribution(kept: NDArray[np.int64]) -> NDArray[np.int64] | None:
    taken = np.zeros(_N_EMOTIONS, np.int64)
    for count in sorted(set(kept[kept > 0].tolist()), reverse=True):
        if taken.sum() >= _ENOUGH * kept.sum() or np.count_nonzero(taken) >= _MOST_EMOTIONS:
            break
        taken[kept[:_N_EMOTIONS] == count] = count
        if count in kept[_N_EMOTIONS:]:
            break
    if np.count_nonzero(taken) > _MOST_EMOTIONS or 2 * taken.sum() <= kept.sum():
        return None
    return taken
