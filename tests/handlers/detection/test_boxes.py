from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from facenet_pytorch.models.utils import detect_face
from torchvision.ops import nms

from handlers.detection.boxes import Overlap, best, clip_to_pixels, regress, suppress, to_squares

SEEDS = range(25)


def random_boxes(seed: int, *, whole: bool) -> tuple[np.ndarray, np.ndarray]:
    """Up to 200 crowded boxes with scores; for every other seed the scores take few values, so that many are equal."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 200))
    corners, sides = rng.uniform(-10, 60, (n, 2)), rng.uniform(1, 40, (n, 2))
    boxes = np.concatenate([corners, corners + sides], axis=1).astype(np.float32)
    scores = rng.random(n, np.float32)
    if seed % 2:
        scores = np.round(scores * 5) / np.float32(5)
    return np.floor(boxes) if whole else boxes, scores.astype(np.float32)


def torchvisions(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    return nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).tolist()


def facenets(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> list[int]:
    return detect_face.nms_numpy(boxes, scores, threshold, "Min").tolist()


ORACLES: dict[Overlap, Callable[[np.ndarray, np.ndarray, float], list[int]]] = {
    "union": torchvisions,
    "smaller": facenets,
}


def one_group(boxes: np.ndarray) -> np.ndarray:
    return np.zeros(len(boxes), np.int64)


@pytest.mark.parametrize("whole", [False, True], ids=["any", "whole pixels"])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("overlap", ORACLES)
@pytest.mark.parametrize("seed", SEEDS)
def test_suppress_is_the_references_nms(seed: int, overlap: Overlap, threshold: float, whole: bool) -> None:
    boxes, scores = random_boxes(seed, whole=whole)
    expected = ORACLES[overlap](boxes, scores, threshold)
    assert suppress(boxes, scores, one_group(boxes), threshold, overlap).tolist() == expected


@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("overlap", ORACLES)
@pytest.mark.parametrize("seed", SEEDS)
def test_groups_are_suppressed_apart_and_come_in_order(seed: int, overlap: Overlap, threshold: float) -> None:
    boxes, scores = random_boxes(seed, whole=True)
    group = np.sort(np.random.default_rng(seed).choice([0, 2, 3, 9], len(boxes)))
    expected = [
        int(members[index])
        for members in (np.flatnonzero(group == each) for each in np.unique(group))
        for index in ORACLES[overlap](boxes[members], scores[members], threshold)
    ]
    assert suppress(boxes, scores, group, threshold, overlap).tolist() == expected


@pytest.mark.parametrize("overlap", ORACLES)
def test_equal_boxes_of_two_groups_both_stay(overlap: Overlap) -> None:
    boxes = np.array([[0, 0, 10, 10]] * 2, np.float32)
    scores = np.array([0.7, 0.9], np.float32)
    assert suppress(boxes, scores, np.array([0, 1]), 0.5, overlap).tolist() == [0, 1]
    assert suppress(boxes, scores, np.array([1, 1]), 0.5, overlap).tolist() == [1]


@pytest.mark.parametrize(
    ("overlap", "second"), [("union", [0, 0, 4, 8]), ("smaller", [4, 0, 11, 7])], ids=["union", "smaller"]
)
def test_an_overlap_of_just_the_threshold_stays(overlap: Overlap, second: list[int]) -> None:
    boxes = np.array([[0, 0, 8, 8] if overlap == "union" else [0, 0, 7, 7], second], np.float32)
    scores = np.array([0.9, 0.8], np.float32)
    assert ORACLES[overlap](boxes, scores, 0.5) == [0, 1]
    assert suppress(boxes, scores, one_group(boxes), 0.5, overlap).tolist() == [0, 1]
    assert suppress(boxes, scores, one_group(boxes), 0.499, overlap).tolist() == [0]


@pytest.mark.parametrize(("overlap", "kept"), [("union", 0), ("smaller", 2)])
def test_of_equal_boxes_the_first_or_the_last_stays(overlap: Overlap, kept: int) -> None:
    boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
    assert suppress(boxes, np.full(3, 0.9, np.float32), one_group(boxes), 0.5, overlap).tolist() == [kept]


@pytest.mark.parametrize("overlap", ORACLES)
def test_suppressing_among_no_boxes(overlap: Overlap) -> None:
    boxes = np.empty((0, 4), np.float32)
    assert suppress(boxes, np.empty(0, np.float32), one_group(boxes), 0.5, overlap).tolist() == []


def test_suppressed_box_suppresses_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert suppress(boxes, scores, one_group(boxes), 0.4, "union").tolist() == [0, 2]


@pytest.mark.parametrize("seed", SEEDS)
def test_regress_is_facenets_bbreg(seed: int) -> None:
    boxes, _ = random_boxes(seed, whole=False)
    offsets = np.random.default_rng(seed).normal(0, 0.2, boxes.shape).astype(np.float32)
    expected = detect_face.bbreg(torch.from_numpy(boxes.copy()), torch.from_numpy(offsets)).numpy()
    np.testing.assert_allclose(regress(boxes, offsets, edge=1.0), expected, atol=1e-4)


def test_regress_without_the_edge_takes_the_plain_side() -> None:
    boxes, offsets = np.array([[10, 20, 30, 60]], np.float32), np.array([[0.5, 0.25, -0.5, 1]], np.float32)
    assert regress(boxes, offsets, edge=0.0).tolist() == [[20, 30, 20, 100]]


@pytest.mark.parametrize("seed", SEEDS)
def test_to_squares_is_facenets_rerec(seed: int) -> None:
    boxes, _ = random_boxes(seed, whole=False)
    squares = to_squares(boxes)
    np.testing.assert_array_equal(squares, detect_face.rerec(torch.from_numpy(boxes.copy())).numpy())
    np.testing.assert_allclose(squares[:, 2] - squares[:, 0], squares[:, 3] - squares[:, 1], atol=1e-4)


@pytest.mark.parametrize("seed", SEEDS)
def test_clip_to_pixels_is_facenets_pad(seed: int) -> None:
    boxes, _ = random_boxes(seed, whole=False)
    top, bottom, left, right = detect_face.pad(torch.from_numpy(boxes.copy()), 50, 40)
    expected = np.stack([left - 1, top - 1, right, bottom], axis=1)
    np.testing.assert_array_equal(clip_to_pixels(boxes, 50, 40), expected)


def test_clipped_box_is_inside_or_empty() -> None:
    boxes = np.array([[-5, -5, -1, -1], [60, 5, 70, 15], [-9, -9, 99, 99], [0.9, 0.9, 1.9, 1.9]], np.float32)
    corners = clip_to_pixels(boxes, 50, 40)
    empty = (corners[:, 2] <= corners[:, 0]) | (corners[:, 3] <= corners[:, 1])
    assert empty.tolist() == [True, True, False, False]
    assert corners[2:].tolist() == [[0, 0, 50, 40], [0, 0, 1, 1]]


@pytest.mark.parametrize(
    ("most", "expected"), [(0, []), (1, [1]), (2, [1, 3]), (3, [0, 1, 3]), (4, [0, 1, 2, 3]), (9, [0, 1, 2, 3, 4])]
)
def test_best_are_the_highest_where_they_stand_and_of_equals_the_first(most: int, expected: list[int]) -> None:
    scores = np.array([0.5, 0.9, 0.5, 0.8, 0.5], np.float32)

    assert best(scores, most).tolist() == expected


@pytest.mark.parametrize("seed", SEEDS)
def test_suppressing_only_the_best_leaves_the_best_of_what_all_leave(seed: int) -> None:
    """So a bound before the suppression adds no box and moves none, it only ends the list earlier."""
    boxes, scores = random_boxes(seed, whole=True)
    all_left = suppress(boxes, scores, one_group(boxes), 0.5, "union").tolist()

    chosen = best(scores, len(boxes) // 3)
    left = chosen[suppress(boxes[chosen], scores[chosen], one_group(chosen), 0.5, "union")].tolist()

    assert left == all_left[: len(left)]
    assert set(all_left[len(left) :]).isdisjoint(chosen.tolist())
