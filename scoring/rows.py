"""Outcomes to the rows of a part: one a face, one for a picture without a face, one for a file that failed."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from itertools import chain
from typing import Any

import pyarrow as pa

from handlers.errors import HandlerError
from handlers.results import LANDMARK_NAMES, Face
from scoring.config import RunConfig
from scoring.errors import OptionsError
from scoring.parts import Entry, Outcome

OK, NO_FACE, ERROR = "ok", "no_face", "error"
"""The values of the column `status`."""

_INPUT_FIELDS = (
    pa.field("path", pa.string(), nullable=False),
    pa.field("status", pa.string(), nullable=False),
    pa.field("error_code", pa.string()),
    pa.field("width", pa.int32()),
    pa.field("height", pa.int32()),
    pa.field("face_index", pa.int32()),
)
_BOX_NAMES = tuple(f"box_{side}" for side in ("left", "top", "right", "bottom"))
_POINT_NAMES = tuple(f"{name}_{axis}" for name in LANDMARK_NAMES for axis in ("x", "y"))
_MODEL_NAMES = ("model", "model_version", "model_digest")
_PROBABILITY = "probability_"


def schema(labels: Sequence[str]) -> pa.Schema:
    """The columns of a part for a model with these labels, of types that every reader has: string, int32, float32.

    The metadata's `mien.labels` is the labels in their own spelling, a JSON list in the order of the probabilities.
    Raises OptionsError where two labels would share a column.
    """
    columns = [probability_column(label) for label in labels]
    for column in columns:
        if columns.count(column) > 1:
            twins = [label for label in labels if probability_column(label) == column]
            raise OptionsError(f"the model's labels {', '.join(map(repr, twins))} would share the column {column}")
    return pa.schema(
        [
            *_INPUT_FIELDS,
            *(pa.field(name, pa.float32()) for name in (*_BOX_NAMES, *_POINT_NAMES, "detection_confidence")),
            pa.field("emotion", pa.string()),
            *(pa.field(name, pa.float32()) for name in ("confidence", *columns)),
            *(pa.field(name, pa.string(), nullable=False) for name in _MODEL_NAMES),
        ],
        metadata={"mien.labels": json.dumps(list(labels))},
    )


def probability_column(label: str) -> str:
    """The column of a label's probability: small letters, and `_` for whatever is not a-z, 0-9 or `_`."""
    return _PROBABILITY + re.sub("[^a-z0-9_]", "_", label.lower())


def has_our_columns(names: Sequence[str]) -> bool:
    """Whether these are the columns of a part, whatever its model's labels."""
    ours = schema(()).names
    n_before = len(ours) - len(_MODEL_NAMES)
    n_labels = len(names) - len(ours)
    return (
        n_labels >= 0
        and [*names[:n_before], *names[n_before + n_labels :]] == ours
        and all(name.startswith(_PROBABILITY) for name in names[n_before : n_before + n_labels])
    )


def table_of(entries: Sequence[Entry], outcomes: Sequence[Outcome], config: RunConfig) -> pa.Table:
    """The rows of these entries in their order, a picture's faces in the order of its analysis.

    Raises OptionsError as `schema` does, and ValueError unless there is one outcome an entry.
    """
    if len(entries) != len(outcomes):
        raise ValueError(f"{len(outcomes)} outcomes for {len(entries)} entries")
    columns = schema(config.labels)
    no_face: tuple[None, ...] = (None,) * (len(columns) - len(_INPUT_FIELDS) - len(_MODEL_NAMES))
    rows: list[tuple[Any, ...]] = []
    for entry, outcome in zip(entries, outcomes, strict=True):
        path = entry.shown_path
        if isinstance(outcome, HandlerError):
            rows.append((path, ERROR, outcome.code, None, None, None, *no_face))
        elif not outcome.faces:
            rows.append((path, NO_FACE, None, outcome.width, outcome.height, None, *no_face))
        else:
            rows.extend(
                (path, OK, None, outcome.width, outcome.height, index, *_face_values(face, config.labels))
                for index, face in enumerate(outcome.faces)
            )
    name, _, version = config.model.partition(":")
    values: list[Sequence[Any]] = [*zip(*rows, strict=True)] or [()] * (len(columns) - len(_MODEL_NAMES))
    values.extend([value] * len(rows) for value in (name, version, config.model_digest))
    arrays = [pa.array(column, field.type) for column, field in zip(values, columns, strict=True)]
    return pa.Table.from_arrays(arrays, schema=columns)


def _face_values(face: Face, labels: Sequence[str]) -> tuple[float | str, ...]:
    return (
        *face.box_px,
        *chain.from_iterable(face.landmarks_px),
        face.detection_confidence,
        face.emotion,
        face.confidence,
        *(face.probabilities[label] for label in labels),
    )
