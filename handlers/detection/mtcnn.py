"""The MTCNN cascade (Zhang et al., 2016) on any engine's networks, with the results of `facenet_pytorch.MTCNN`.

P-Net proposes boxes on every level of a pyramid, R-Net and O-Net refine and prune them, O-Net adds the landmarks. The
last two run over the candidates of several pictures at once.
"""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from handlers.detection import largest_first
from handlers.detection.area_pooling import AreaPooling, table_size
from handlers.detection.boxes import Boxes, clip_to_pixels, regress, suppress, to_squares
from handlers.detection.kernels import MAX_LEVEL_WIDTH_PX
from handlers.detection.proposals import CELL_PX, ProposalNetworks, Proposals, load_proposal_networks
from handlers.detection.screening import are_mostly_duplicates, contenders, groups_with_ties
from handlers.detection.settings import DetectionSettings
from handlers.engines import Engine, InputShape, Network
from handlers.results import Detection
from model_store.servable import ServableModel

RgbPicture = NDArray[np.uint8]

_RNET_PX, _ONET_PX = 24, 48
_ONET_OVERLAP = 0.7
# The columns of O-Net's outputs, end to end.
_OFFSETS, _POINTS, _PROBABILITIES, _FACE = slice(0, 4), slice(4, 14), slice(14, 16), 15

_SCREEN_FROM, _SCREEN_DUPLICATES = 16, 6
"""How many candidates, and how many a face, make it worth while to look at them in bfloat16 first."""

MOST_REFINED = 2_000
"""How many candidates of one picture go on to O-Net, the best by R-Net's score, and so how many faces it can have.

A bound on what one picture can cost: ten times what ordinary pictures were seen to have (docs/detection.md).
"""

_REFINE_BATCH = 64
_KEPT_TABLE_NUMBERS = 6_500_000  # a table of 1920×1080, 26 MB; larger ones are not kept for the next picture


@dataclass(frozen=True)
class MtcnnNetworks:
    """The cascade's networks: P-Net in its parts, R-Net and O-Net, and O-Net in bfloat16 where that is faster."""

    proposal: ProposalNetworks
    rnet: Network
    onet: Network
    onet_screen: Network | None = None


def load_networks(engine: Engine, model: ServableModel) -> MtcnnNetworks:
    """The networks of a registered MTCNN. Raises ModelUnavailableError."""
    onet_shape = InputShape((3, _ONET_PX, _ONET_PX))
    return MtcnnNetworks(
        load_proposal_networks(engine, model),
        rnet=engine.load(model, "rnet", InputShape((3, _RNET_PX, _RNET_PX), (1, 4, 16))),
        onet=engine.load(model, "onet", onet_shape),
        onet_screen=engine.load(model, "onet", onet_shape, "bf16") if engine.has_bf16 else None,
    )


class MtcnnDetector:
    """The cascade. Keeps nothing between calls but buffers, one set a thread.

    settings: its smallest face is not used here but by who calls.
    """

    def __init__(self, networks: MtcnnNetworks, settings: DetectionSettings | None = None) -> None:
        self._proposals = Proposals(networks.proposal)
        self._networks = networks
        self._settings = settings or DetectionSettings()
        self._own = threading.local()

    def detect(self, rgb_u8: RgbPicture, min_face_size_px: int) -> list[Detection]:
        """Faces of at least about `min_face_size_px` in a picture, uint8 (H, W, 3) RGB, the largest first."""
        return self.detect_batch([rgb_u8], [min_face_size_px])[0]

    def detect_batch(self, pictures: Sequence[RgbPicture], min_face_sizes_px: Sequence[int]) -> list[list[Detection]]:
        """Faces of each picture, in order; see `Detector.detect_batch`. Takes 12 bytes a pixel of all pictures."""
        poolings = self._pool(pictures)
        candidates = []
        for pooling, min_face_size_px in zip(poolings, min_face_sizes_px, strict=True):
            scales = pyramid_scales(pooling.height, pooling.width, min_face_size_px, self._settings)
            found = np.empty((0, 4), np.float32)
            if scales:
                found = self._proposals(pooling, scales, self._settings.thresholds[0])
            candidates.append(_squares_with_pixels(found, pooling))
        picture_of = np.repeat(np.arange(len(pictures)), [len(found) for found in candidates])
        boxes = np.concatenate([np.empty((0, 4), np.float32), *candidates])
        if len(boxes):  # an engine need not take an empty batch
            boxes, picture_of = self._refine(poolings, boxes, picture_of)
        if not len(boxes):
            return [[] for _ in pictures]
        return self._describe(poolings, boxes, picture_of)

    def _pool(self, pictures: Sequence[RgbPicture]) -> list[AreaPooling]:
        """The pictures' tables, in this thread's buffer if they fit."""
        sizes = [table_size(picture.shape[0], picture.shape[1]) for picture in pictures]
        if sum(sizes) > _KEPT_TABLE_NUMBERS:
            return [AreaPooling(picture) for picture in pictures]
        buffer: NDArray[np.uint32] | None = getattr(self._own, "tables", None)
        if buffer is None or len(buffer) < sum(sizes):
            buffer = self._own.tables = np.empty(sum(sizes), np.uint32)
        starts = np.cumsum([0, *sizes])
        return [AreaPooling(picture, buffer[start:]) for picture, start in zip(pictures, starts, strict=False)]

    def _refine(
        self, poolings: list[AreaPooling], boxes: Boxes, picture_of: NDArray[np.int64]
    ) -> tuple[Boxes, NDArray[np.int64]]:
        """R-Net on the candidates → fewer and better squares (N, 4), MOST_REFINED a picture, and each one's picture."""
        offsets, probabilities = _run_on_crops(self._networks.rnet, poolings, boxes, picture_of, _RNET_PX)
        passed = probabilities[:, 1] > self._settings.thresholds[1]
        boxes, scores, offsets = boxes[passed], probabilities[passed, 1], offsets[passed]
        picture_of = picture_of[passed]
        keep = suppress(boxes, scores, picture_of, 0.7, "union")
        boxes, picture_of = regress(boxes[keep], offsets[keep], edge=1.0), picture_of[keep]
        squares = [  # one picture's boxes are in the order of their scores
            _squares_with_pixels(boxes[picture_of == index][:MOST_REFINED], pooling)
            for index, pooling in enumerate(poolings)
        ]
        return np.concatenate(squares), np.repeat(np.arange(len(poolings)), [len(found) for found in squares])

    def _describe(
        self, poolings: list[AreaPooling], boxes: Boxes, picture_of: NDArray[np.int64]
    ) -> list[list[Detection]]:
        """O-Net on the survivors → the faces of each picture, with landmarks."""
        faces: list[list[Detection]] = [[] for _ in poolings]
        outputs = self._onet_outputs(poolings, boxes, picture_of)
        passed = outputs[:, _FACE] > self._settings.thresholds[2]  # not a number does not pass
        boxes, picture_of, outputs = boxes[passed], picture_of[passed], outputs[passed]
        points = outputs[:, _POINTS].reshape(-1, 2, 5).transpose(0, 2, 1)
        landmarks = points * (boxes[:, 2:] - boxes[:, :2] + 1)[:, None] + boxes[:, None, :2] - 1
        boxes, scores = regress(boxes, outputs[:, _OFFSETS], edge=1.0), outputs[:, _FACE]
        for index in suppress(boxes, scores, picture_of, _ONET_OVERLAP, "smaller"):
            left, top, right, bottom = (float(side) for side in boxes[index])
            faces[picture_of[index]].append(
                Detection(
                    box_px=(left, top, right, bottom),
                    confidence=float(scores[index]),
                    landmarks_px=tuple((float(x), float(y)) for x, y in landmarks[index]),
                )
            )
        return [largest_first(found) for found in faces]

    def _onet_outputs(
        self, poolings: list[AreaPooling], boxes: Boxes, picture_of: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """O-Net's outputs end to end, float32 (N, 16); not a number for boxes that cannot become a face."""

        def compute(network: Network, rows: NDArray[np.int64]) -> NDArray[np.float32]:
            return np.hstack(_run_on_crops(network, poolings, boxes[rows], picture_of[rows], _ONET_PX))

        exact, screen, everything = self._networks.onet, self._networks.onet_screen, np.arange(len(boxes))
        if (
            screen is None
            or len(boxes) < _SCREEN_FROM
            or not are_mostly_duplicates(boxes, picture_of, _SCREEN_DUPLICATES)
        ):
            return compute(exact, everything)
        rough = compute(screen, everything)
        moved = regress(boxes, rough[:, _OFFSETS], edge=1.0)
        threshold = self._settings.thresholds[2]
        chosen = contenders(moved, rough[:, _PROBABILITIES], picture_of, threshold, _ONET_OVERLAP)
        outputs = np.full_like(rough, np.nan)
        if len(chosen):
            outputs[chosen] = compute(exact, chosen)
            tied = groups_with_ties(moved[chosen], outputs[chosen, _FACE], picture_of[chosen], _ONET_OVERLAP)
            rest = np.setdiff1d(np.flatnonzero(np.isin(picture_of, tied)), chosen)
            if len(rest):
                outputs[rest] = compute(exact, rest)
        return outputs


def pyramid_scales(height: int, width: int, min_face_size_px: int, settings: DetectionSettings) -> list[float]:
    """Scales at which P-Net's 12-px cell covers faces from the smallest wanted to the whole picture."""
    longer = max(height, width)
    scale = CELL_PX / min_face_size_px
    if longer > settings.max_side_px:
        scale *= settings.max_side_px / longer
    scale = min(scale, (MAX_LEVEL_WIDTH_PX - 1) / longer)
    shorter = min(height, width) * scale
    scales = []
    while shorter >= CELL_PX:
        scales.append(scale)
        scale *= settings.pyramid_factor
        shorter *= settings.pyramid_factor
    return scales


def _squares_with_pixels(boxes: Boxes, pooling: AreaPooling) -> Boxes:
    """The boxes made square, without those that have no pixel inside the picture (facenet-pytorch fails on them)."""
    squares = to_squares(boxes)
    left, top, right, bottom = clip_to_pixels(squares, pooling.width, pooling.height).T
    with_pixels: Boxes = squares[(right > left) & (bottom > top)]
    return with_pixels


def _run_on_crops(
    network: Network, poolings: list[AreaPooling], boxes: Boxes, picture_of: NDArray[np.int64], size_px: int
) -> tuple[NDArray[np.float32], ...]:
    """Run a network on the crops of at least one box; the outputs have a row a box."""
    parts = []
    for start in range(0, len(boxes), _REFINE_BATCH):
        part = slice(start, start + _REFINE_BATCH)
        crops = np.empty((len(boxes[part]), 3, size_px, size_px), np.float32)
        for index in np.unique(picture_of[part]):
            mine, pooling = np.flatnonzero(picture_of[part] == index), poolings[index]
            corners = clip_to_pixels(boxes[part][mine], pooling.width, pooling.height)
            pooling.crops_into(corners, crops[mine[0] : mine[-1] + 1])  # one picture's boxes are neighbours
        parts.append(network(crops))
    return tuple(np.concatenate(outputs) for outputs in zip(*parts, strict=True))
