from __future__ import annotations

import dataclasses

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.detection.boxes import suppress
from handlers.detection.mtcnn import MtcnnDetector, load_networks
from handlers.detection.screening import (
    LOGIT_MARGIN,
    are_mostly_duplicates,
    contenders,
    groups_with_ties,
    score_bounds,
)
from handlers.engines import Network, choose_engine
from model_store.servable import ServableModel
from tests.handlers.face_scenes import face_patch, place_faces

THRESHOLD, OVERLAP = 0.7, 0.7


def probabilities_of(logits: NDArray[np.float64]) -> NDArray[np.float32]:
    face = (1 / (1 + np.exp(-logits))).astype(np.float32)
    return np.stack([(1 / (1 + np.exp(logits))).astype(np.float32), face], 1)


def crowd(seed: int) -> tuple[NDArray[np.float32], NDArray[np.float64], NDArray[np.int64]]:
    """Boxes around a few places of two pictures, and face logits of which many saturate in float32."""
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 60))
    centres = rng.uniform(0, 300, (int(rng.integers(1, 6)), 2))
    corners = centres[rng.integers(0, len(centres), n)] + rng.normal(0, rng.choice([2, 8, 25]), (n, 2))
    boxes = np.concatenate([corners, corners + rng.uniform(40, 70, (n, 1))], 1).astype(np.float32)
    logits = rng.choice([rng.normal(2, 2, n), rng.normal(9, 5, n), rng.normal(17, 3, n)], axis=0)
    return boxes, logits, np.sort(rng.integers(0, 2, n))


def survivors(
    boxes: NDArray[np.float32], scores: NDArray[np.float32], group: NDArray[np.int64], rows: NDArray[np.int64]
) -> set[int]:
    rows = rows[scores[rows] > THRESHOLD]
    return {int(rows[index]) for index in suppress(boxes[rows], scores[rows], group[rows], OVERLAP, "smaller")}


@pytest.mark.parametrize("seed", range(300))
def test_contenders_and_groups_with_ties_lead_to_the_same_boxes_as_everything(seed: int) -> None:
    boxes, logits, group = crowd(seed)
    rng = np.random.default_rng(1000 + seed)
    rough = probabilities_of(logits + rng.uniform(-LOGIT_MARGIN, LOGIT_MARGIN, len(logits)) * 0.99)
    moved = boxes + rng.uniform(-0.3, 0.3, boxes.shape).astype(np.float32)
    scores = probabilities_of(logits)[:, 1]
    chosen = contenders(moved, rough, group, THRESHOLD, OVERLAP)
    tied = groups_with_ties(moved[chosen], scores[chosen], group[chosen], OVERLAP)
    rows = np.union1d(chosen, np.flatnonzero(np.isin(group, tied)))
    assert survivors(boxes, scores, group, rows) == survivors(boxes, scores, group, np.arange(len(boxes)))


def test_crowds_are_thinned_out() -> None:
    chosen = total = 0
    for seed in range(300):
        boxes, logits, group = crowd(seed)
        chosen += len(contenders(boxes, probabilities_of(logits), group, THRESHOLD, OVERLAP))
        total += len(boxes)
    assert 0 < chosen < 0.75 * total


@pytest.mark.parametrize("logit", [-30.0, -3.0, 0.0, 0.85, 3.0, 12.0, 17.0, 30.0, 90.0])
def test_bounds_hold_every_score_within_the_margin(logit: float) -> None:
    rough = probabilities_of(np.array([logit]))
    (lowest,), (highest,) = score_bounds(rough)
    for change in (-LOGIT_MARGIN, 0.0, LOGIT_MARGIN):
        assert lowest < probabilities_of(np.array([logit + change]))[0, 1] < highest
    assert highest - lowest < 0.16


def test_ties_matter_where_boxes_meet_in_one_group() -> None:
    boxes = np.array([[0, 0, 40, 40], [2, 2, 42, 42], [200, 0, 240, 40], [2, 2, 42, 42]], np.float32)
    ones, zeros = np.ones(4, np.float32), np.zeros(4, np.int64)
    assert groups_with_ties(boxes[:3], ones[:3], zeros[:3], OVERLAP).tolist() == [0]
    assert groups_with_ties(boxes[[0, 2]], ones[:2], zeros[:2], OVERLAP).tolist() == []
    assert groups_with_ties(boxes[:2], np.array([1, 0.9], np.float32), zeros[:2], OVERLAP).tolist() == []
    assert groups_with_ties(boxes, ones, np.array([0, 1, 1, 1]), OVERLAP).tolist() == [1]
    many = np.tile(np.arange(300, dtype=np.float32)[:, None] * 100, 4)
    assert groups_with_ties(many, np.ones(300, np.float32), np.full(300, 7), OVERLAP).tolist() == [7]


def test_duplicates_are_counted_by_place_and_group() -> None:
    boxes = np.tile(np.array([[0, 0, 40, 40]], np.float32), (12, 1))
    assert are_mostly_duplicates(boxes, np.zeros(12, np.int64), 12)
    assert not are_mostly_duplicates(boxes, np.repeat([0, 1], 6), 12)
    assert are_mostly_duplicates(boxes, np.repeat([0, 1], 6), 6)


def test_screened_detector_asks_less_and_finds_the_same(mtcnn_model: ServableModel, astronaut_png: bytes) -> None:
    asked = {"exact": 0, "screen": 0}

    def counting(name: str, network: Network) -> Network:
        def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            asked[name] += len(inputs)
            return network(inputs)

        return run

    networks = load_networks(choose_engine("onnxruntime"), mtcnn_model)
    plain = MtcnnDetector(dataclasses.replace(networks, onet=counting("exact", networks.onet), onet_screen=None))
    patches = [(face_patch(astronaut_png, 150), 10 + 180 * (index % 3), 20 + 220 * (index // 3)) for index in range(6)]
    pixels = place_faces(480, 640, patches)
    expected = plain.detect(pixels, 20)
    without, asked["exact"] = asked["exact"], 0
    screened = dataclasses.replace(
        networks, onet=counting("exact", networks.onet), onet_screen=counting("screen", networks.onet)
    )
    assert MtcnnDetector(screened).detect_batch([pixels, pixels[:, :330]], [20, 20])[0] == expected
    assert len(expected) == 6
    assert asked["screen"] >= without > asked["exact"] > 0
