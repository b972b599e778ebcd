"""The names that data sets give the same expression: which label a class folder or a row means."""

from __future__ import annotations

from collections.abc import Sequence

FER2013_LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""The original label order of FER2013 (Goodfellow et al., 2013), which the Parquet and CSV layouts use."""

FANE_LABELS = ("angry", "confused", "disgust", "fear", "happy", "neutral", "sad", "shy", "surprise")
"""The nine class folders of FANE (Kaggle: furcifer/fane-facial-expressions-and-emotion-dataset)."""

SYNONYMS = (
    ("angry", "anger"),
    ("confused", "confusion"),
    ("contempt", "contemptuous"),
    ("disgust", "disgusted"),
    ("fear", "fearful"),
    ("happy", "happiness"),
    ("sad", "sadness"),
    ("surprise", "surprised"),
)
"""Names that stand for one expression. Labels that hold the very name wanted are never taken for another."""


def canonical_label(name: str) -> str:
    """One spelling for all names of an expression: its first synonym, or the name itself, in small letters."""
    lower = name.casefold()
    return next((names[0] for names in SYNONYMS if lower in names), lower)


def matching_label(name: str, label_names: Sequence[str]) -> str | None:
    """The one of `label_names` that `name` means: itself, else in other letters' case, else a synonym; None if none."""
    if name in label_names:
        return name
    lower = name.casefold()
    group = next((names for names in SYNONYMS if lower in names), ())
    for wanted in (lower, *group):
        for label in label_names:
            if label.casefold() == wanted:
                return label
    return None
