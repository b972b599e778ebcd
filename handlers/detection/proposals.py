"""P-Net over the image pyramid: candidate boxes, as the reference finds them, at a fraction of its cost.

1. The first convolution and pooling are computed while the pyramid is built, in one pass (`kernels.pnet_features`).
2. The rest of P-Net runs over all levels in bfloat16, where the processor has it, as a screen: it only has to be right
   about which cells are *not* faces, so its threshold is lower by a margin.
3. The few cells that pass the screen are computed again in float32, and only these numbers are used.
"""

from __future__ import annotations

import math
import threading
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file

from handlers.detection.area_pooling import AreaPooling
from handlers.detection.boxes import Boxes, best, regress, suppress
from handlers.detection.kernels import cells_over, patches_of, pnet_features
from handlers.detection.tiles import CHANNELS, REACH, TILE_SHAPE, TileLayout
from handlers.engines import Engine, InputShape, Network
from model_store.servable import ServableModel

CELL_PX, STRIDE_PX = 12, 2

SCREEN_MARGIN = 0.3
"""How far below the threshold the screen's logit may be. Of the cells over it, none was seen more than 0.12 too low."""

MOST_CELLS, MOST_CANDIDATES = 40_000, 15_000
"""How many cells of one picture are looked at exactly, and how many candidates go on to R-Net: those that score best.

A bound on what one picture can cost, four times what any ordinary picture was seen to have (docs/detection.md): a
picture full of tiny faces has 170,000 cells, of which the suppression would have to compare each with each.
"""

_KEPT_TILES = 200  # those of 1920×1080, 21 MB; more are not kept for the next picture


@dataclass(frozen=True)
class Stem:
    """P-Net's first convolution and its PReLU: weight (10, 3, 3, 3), bias (10,), slope (10,), all float32."""

    weight: NDArray[np.float32]
    bias: NDArray[np.float32]
    slope: NDArray[np.float32]


@dataclass(frozen=True)
class ProposalNetworks:
    """P-Net in three parts: its stem, and its tail as a screen for tiles and exactly for single cells."""

    stem: Stem
    screen: Network
    exact: Network


def load_proposal_networks(engine: Engine, model: ServableModel) -> ProposalNetworks:
    """P-Net of a registered MTCNN. Raises ModelUnavailableError."""
    weights = load_file(model.bundle.weights)
    names = ("conv1.weight", "conv1.bias", "prelu1.weight")
    return ProposalNetworks(
        Stem(*(np.ascontiguousarray(weights[f"pnet.{name}"]) for name in names)),
        engine.load(model, "pnet_screen", InputShape(TILE_SHAPE, (1,)), "bf16"),
        engine.load(model, "pnet_tail", InputShape((CHANNELS, REACH + 1, REACH + 1), (64,))),
    )


class Proposals:
    """Finds the candidate boxes of a picture."""

    def __init__(self, networks: ProposalNetworks) -> None:
        self._networks = networks
        self._own = threading.local()

    def __call__(self, pooling: AreaPooling, scales: list[float], threshold: float) -> Boxes:
        """Boxes float32 (N, 4) in picture pixels, after regression and suppression, MOST_CANDIDATES at most.

        scales: of the pyramid's levels.
        """
        tiles, layout = self._features(pooling, scales)
        cells, positions = self._screened(tiles, layout, threshold)
        if not len(cells):
            return np.empty((0, 4), np.float32)
        scores, offsets = self._exact(tiles, positions)
        passed = scores >= np.float32(threshold)
        cells, scores, offsets = cells[passed], scores[passed], offsets[passed]
        boxes = boxes_of_cells(cells, np.asarray(scales, np.float32)[cells[:, 0]])
        keep = suppress(boxes, scores, cells[:, 0], 0.5, "union")
        keep = keep[best(scores[keep], MOST_CANDIDATES)]
        boxes, scores, offsets = boxes[keep], scores[keep], offsets[keep]
        keep = suppress(boxes, scores, np.zeros(len(boxes), np.int64), 0.7, "union")
        return regress(boxes[keep], offsets[keep], edge=0.0)

    def _features(self, pooling: AreaPooling, scales: list[float]) -> tuple[NDArray[np.float32], TileLayout]:
        """The features of all levels as tiles, float32 (n, *TILE_SHAPE)."""
        levels = [(int(pooling.height * scale + 1), int(pooling.width * scale + 1)) for scale in scales]
        layout = TileLayout([((height - 1) // 2, (width - 1) // 2) for height, width in levels])
        tiles = self._tiles(layout.n_tiles)
        stem = self._networks.stem
        for (height, width), start in zip(levels, layout.starts, strict=True):
            pnet_features(pooling.table, height, width, stem.weight, stem.bias, stem.slope, tiles, start, REACH)
        return tiles, layout

    def _screened(
        self, tiles: NDArray[np.float32], layout: TileLayout, threshold: float
    ) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Cells that are worth another look, and their positions in the tiles; see `TileLayout.cells`."""
        least = math.log(threshold / (1 - threshold)) - SCREEN_MARGIN
        (logits,) = self._networks.screen(tiles)
        found = np.empty((logits.size, 3), np.int64)
        cells, positions = layout.cells(found[: cells_over(logits, least, found)])
        tile, row, column = positions.T
        keep = best(logits[tile, 0, row, column], MOST_CELLS)
        return cells[keep], positions[keep]

    def _exact(
        self, tiles: NDArray[np.float32], positions: NDArray[np.int64]
    ) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
        """Face probability (N,) and box offsets (N, 4) at positions in the tiles."""
        patches = np.empty((len(positions), CHANNELS, REACH + 1, REACH + 1), np.float32)
        patches_of(tiles, positions, patches)
        (outputs,) = self._networks.exact(patches)
        outputs = outputs[:, :, 0, 0]
        return 1 / (1 + np.exp(outputs[:, 0] - outputs[:, 1])), outputs[:, 2:]

    def _tiles(self, n_tiles: int) -> NDArray[np.float32]:
        """This thread's tiles; what no band covers holds what was there before, and comes to nothing."""
        kept: NDArray[np.float32] | None = getattr(self._own, "tiles", None)
        if kept is None or len(kept) < n_tiles:
            kept = np.zeros((n_tiles, *TILE_SHAPE), np.float32)
            if n_tiles <= _KEPT_TILES:
                self._own.tiles = kept
        return kept[:n_tiles]


def boxes_of_cells(cells: NDArray[np.int64], scales: NDArray[np.float32]) -> Boxes:
    """P-Net's cells as boxes in picture pixels: cells int64 (N, 3) as level, row, column; scales (N,) → (N, 4)."""
    corners = cells[:, :0:-1].astype(np.float32) * STRIDE_PX
    return np.floor(np.concatenate([corners + 1, corners + CELL_PX], 1) / scales[:, None])
