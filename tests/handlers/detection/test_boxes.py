from __future__ import annotations

import numpy as np
import pytest
import torch
from facenet_pytorch.models.utils import detect_face
from torchvision.ops import nms

from handlers.detection.boxes import clip_to_pixels, non_maximum_suppression, regress, to_squares

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


@pytest.mark.parametrize("whole", [False, True], ids=["any", "whole pixels"])
@pytest.mark.parametrize("threshold", [0.5, 0.7])
@pytest.mark.parametrize("seed", SEEDS)
def test_union_is_torchvisions_nms(seed: int, threshold: float, whole: bool) -> None:
    boxes, scores = random_boxes(seed, whole=whole)
    expected = nms(torch.from_numpy(boxes), torch.from_numpy(scores), threshold).tolist()
    assert non_maximum_suppression(boxes, scores, threshold, "union").tolist() == expected


@pytest.mark.parametrize("whole", [False, True], ids=["any", "whole pixels"])
@pytest.mark.parametrize("threshold", [0.3, 0.5, 0.7])
@pytest.mark.parametrize("seed", SEEDS)
def test_smaller_is_facenets_nms(seed: int, threshold: float, whole: bool) -> None:
    boxes, scores = random_boxes(seed, whole=whole)
    expected = detect_face.nms_numpy(boxes, scores, threshold, "Min").tolist()
    assert non_maximum_suppression(boxes, scores, threshold, "smaller").tolist() == expected


@pytest.mark.parametrize(("overlap", "kept"), [("union", 0), ("smaller", 2)])
def test_of_equal_boxes_the_first_or_the_last_stays(overlap: str, kept: int) -> None:
    boxes = np.array([[0, 0, 10, 10]] * 3, np.float32)
    assert non_maximum_suppression(boxes, np.full(3, 0.9, np.float32), 0.5, overlap).tolist() == [kept]


@pytest.mark.parametrize("overlap", ["union", "smaller"])
def test_suppressing_among_no_boxes(overlap: str) -> None:
    kept = non_maximum_suppression(np.empty((0, 4), np.float32), np.empty(0, np.float32), 0.5, overlap)
    assert kept.tolist() == []


def test_suppressed_box_suppresses_nothing() -> None:
    boxes = np.array([[0, 0, 10, 10], [0, 4, 10, 14], [0, 8, 10, 18]], np.float32)
    scores = np.array([0.9, 0.8, 0.7], np.float32)
    assert non_maximum_suppression(boxes, scores, 0.4, "union").tolist() == [0, 2]


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
