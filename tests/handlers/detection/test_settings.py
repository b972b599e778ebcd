from __future__ import annotations

from typing import Any

import pytest

from handlers.detection.settings import DetectionSettings, check_min_face_size
from handlers.errors import InvalidRequestError

NAN = float("nan")


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("min_face_size_px", 11),
        ("min_face_size_px", 0),
        ("min_face_size_px", -20),
        ("thresholds", ()),
        ("thresholds", (0.6, 0.7)),
        ("thresholds", (0.6, 0.7, 0.7, 0.7)),
        ("thresholds", (0.0, 0.7, 0.7)),
        ("thresholds", (0.6, 1.0, 0.7)),
        ("thresholds", (0.6, 0.7, -0.1)),
        ("thresholds", (0.6, NAN, 0.7)),
        ("pyramid_factor", 0.0),
        ("pyramid_factor", 0.099),
        ("pyramid_factor", 0.951),
        ("pyramid_factor", 1.0),
        ("pyramid_factor", NAN),
        ("max_side_px", 11),
        ("max_side_px", 0),
        ("max_side_px", -1),
    ],
)
def test_value_out_of_its_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=f"^{name} must be") as caught:
        DetectionSettings(**{name: value})
    assert str(value) in str(caught.value)


@pytest.mark.parametrize(
    "values",
    [
        {"min_face_size_px": 12},
        {"thresholds": (0.001, 0.5, 0.999)},
        {"pyramid_factor": 0.1},
        {"pyramid_factor": 0.95},
        {"max_side_px": 12},
    ],
)
def test_value_at_the_end_of_its_range_is_taken(values: dict[str, Any]) -> None:
    settings = DetectionSettings(**values)
    assert {name: getattr(settings, name) for name in values} == values


def test_defaults_are_facenet_pytorchs() -> None:
    from facenet_pytorch import MTCNN

    theirs, ours = MTCNN(), DetectionSettings()
    assert list(ours.thresholds) == theirs.thresholds
    assert (ours.min_face_size_px, ours.pyramid_factor) == (theirs.min_face_size, theirs.factor)


@pytest.mark.parametrize(("value", "size"), [(None, 20), (12, 12), (500, 500)])
def test_min_face_size_in_range(value: int | None, size: int) -> None:
    assert check_min_face_size(value) == size


def test_min_face_size_of_none_is_the_default_that_is_given() -> None:
    assert [check_min_face_size(value, 33) for value in (None, 15)] == [33, 15]


@pytest.mark.parametrize("value", [11, 0, -1])
def test_min_face_size_out_of_range(value: int) -> None:
    with pytest.raises(InvalidRequestError, match=f"not {value}"):
        check_min_face_size(value)
