from __future__ import annotations

import dataclasses
import json

import numpy as np
import pyarrow as pa
import pytest

from handlers.errors import CorruptImageError
from handlers.results import Analysis
from scoring.errors import OptionsError
from scoring.parts import Entry
from scoring.rows import has_our_columns, probability_column, schema, table_of
from tests.scoring.outcomes import NASTY_PATHS, face, fake_config, made_up

COLUMNS_OF_INPUT = ["path", "status", "error_code", "width", "height", "face_index"]
COLUMNS_OF_FACE = [
    *("box_left", "box_top", "box_right", "box_bottom"),
    *("left_eye_x", "left_eye_y", "right_eye_x", "right_eye_y", "nose_x", "nose_y"),
    *("mouth_left_x", "mouth_left_y", "mouth_right_x", "mouth_right_y"),
    *("detection_confidence", "emotion", "confidence", "probability_sad", "probability_happy"),
]
COLUMNS_OF_MODEL = ["model", "model_version", "model_digest"]
LABELS = ("sad", "happy")


def a_config(**changes: object):
    return dataclasses.replace(fake_config(), model="resnet:1.2.0", model_digest="d" * 64, labels=LABELS, **changes)


def test_columns_and_their_types():
    columns = schema(LABELS)
    assert columns.names == COLUMNS_OF_INPUT + COLUMNS_OF_FACE + COLUMNS_OF_MODEL
    strings = {"path", "status", "error_code", "emotion", "model", "model_version", "model_digest"}
    for field in columns:
        if field.name in strings:
            assert field.type == pa.string()
        elif field.name in {"width", "height", "face_index"}:
            assert field.type == pa.int32()
        else:
            assert field.type == pa.float32()
    assert [field.name for field in columns if not field.nullable] == ["path", "status", *COLUMNS_OF_MODEL]
    assert json.loads(columns.metadata[b"mien.labels"]) == ["sad", "happy"]


def test_a_face_is_a_row_in_the_order_given():
    faces = (face(LABELS, 1), face(LABELS, 2), face(LABELS, 3))
    rows = table_of([Entry("a.jpg", 1, "")], [Analysis(640, 480, faces)], a_config()).to_pylist()
    assert [row["face_index"] for row in rows] == [0, 1, 2]
    for row, given in zip(rows, faces, strict=True):
        assert {name: row[name] for name in COLUMNS_OF_INPUT[:-1]} == {
            "path": "a.jpg",
            "status": "ok",
            "error_code": None,
            "width": 640,
            "height": 480,
        }
        points = [coordinate for point in given.landmarks_px for coordinate in point]
        numbers = [*given.box_px, *points, given.detection_confidence, given.emotion, given.confidence]
        expected = [value if isinstance(value, str) else float(np.float32(value)) for value in numbers]
        assert [row[name] for name in COLUMNS_OF_FACE[:-2]] == expected
        assert row["probability_happy"] == float(np.float32(given.probabilities["happy"]))
        assert row["probability_sad"] == float(np.float32(given.probabilities["sad"]))
        assert [row[name] for name in COLUMNS_OF_MODEL] == ["resnet", "1.2.0", "d" * 64]


def test_a_picture_without_a_face_is_a_row():
    [row] = table_of([Entry("a.jpg", 1, "")], [Analysis(3, 2, ())], a_config()).to_pylist()
    assert [row[name] for name in COLUMNS_OF_INPUT] == ["a.jpg", "no_face", None, 3, 2, None]
    assert [row[name] for name in COLUMNS_OF_FACE] == [None] * len(COLUMNS_OF_FACE)
    assert [row[name] for name in COLUMNS_OF_MODEL] == ["resnet", "1.2.0", "d" * 64]


def test_a_failed_input_is_a_row():
    [row] = table_of([Entry("a.jpg", 1, "")], [CorruptImageError("cut")], a_config()).to_pylist()
    assert [row[name] for name in COLUMNS_OF_INPUT] == ["a.jpg", "error", "corrupt_image", None, None, None]
    assert [row[name] for name in COLUMNS_OF_FACE] == [None] * len(COLUMNS_OF_FACE)
    assert [row[name] for name in COLUMNS_OF_MODEL] == ["resnet", "1.2.0", "d" * 64]


def test_every_input_appears_in_the_order_of_the_entries():
    config = fake_config()
    entries, outcomes = made_up(NASTY_PATHS, config.labels)
    paths = table_of(entries, outcomes, config)["path"].to_pylist()
    assert list(dict.fromkeys(paths)) == [entry.shown_path for entry in entries]
    assert "no-utf8-\\xff.jpg" in paths


def test_probabilities_go_by_label_and_not_by_the_order_they_come_in():
    given = face(LABELS)
    turned = dataclasses.replace(given, probabilities=dict(reversed(given.probabilities.items())))
    tables = [table_of([Entry("a", 1, "")], [Analysis(1, 1, (one,))], a_config()) for one in (given, turned)]
    assert tables[0] == tables[1]


def test_no_entries_make_an_empty_table():
    table = table_of([], [], a_config())
    assert table.num_rows == 0
    assert table.schema == schema(LABELS)


def test_an_outcome_too_few_is_refused():
    with pytest.raises(ValueError, match="1 outcomes for 2 entries"):
        table_of([Entry("a", 1, ""), Entry("b", 1, "")], [Analysis(1, 1, ())], a_config())


@pytest.mark.parametrize(
    ("label", "column"),
    [
        ("happy", "probability_happy"),
        ("Happy", "probability_happy"),
        ("very happy!", "probability_very_happy_"),
        ("größe", "probability_gr__e"),
        ("a,b\n", "probability_a_b_"),
        ("", "probability_"),
    ],
)
def test_a_label_with_odd_characters(label: str, column: str):
    assert probability_column(label) == column
    assert column in schema([label, "other"]).names


@pytest.mark.parametrize("labels", [("a b", "a-b"), ("Sad", "happy", "sad"), ("x", "x")])
def test_labels_that_would_share_a_column_are_refused(labels: tuple[str, ...]):
    with pytest.raises(OptionsError, match="would share the column probability_"):
        schema(labels)


def test_our_columns_are_known_whatever_the_labels():
    assert has_our_columns(schema(()).names)
    assert has_our_columns(schema(("x", "y", "z")).names)
    ours = schema(LABELS).names
    for foreign in ([], ours[1:], ours[:-1], [*ours, "more"], ours[::-1], ["a", *ours[1:]]):
        assert not has_our_columns(foreign)
    assert not has_our_columns([name.replace("probability_", "p_") for name in ours])
