"""Where the features of all pyramid levels lie, so that levels of any size go through a network of one input shape.

A level is cut into bands of `BAND_ROWS` rows of output cells. The bands of all levels lie side by side in one long
strip, and the strip is cut into tiles of `TILE_COLUMNS` columns of cells. A tile holds `REACH` rows and columns more,
of the next band and tile, as the network's kernels reach over them: so a cell is what it would be if its level went
through whole.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CHANNELS = 10
REACH = 4
"""Features that P-Net's tail takes in beyond a cell, by its two 3×3 convolutions."""

BAND_ROWS, TILE_COLUMNS = 16, 128
TILE_SHAPE = (CHANNELS, BAND_ROWS + REACH, TILE_COLUMNS + REACH)


class TileLayout:
    """The bands of the levels of one picture.

    level_shapes: rows and columns of each level's features, at least 5 of both. starts: the column of the strip at
    which each level's bands begin, one band after the other. n_tiles: tiles that cover the strip.
    """

    def __init__(self, level_shapes: list[tuple[int, int]]) -> None:
        shapes = np.array(level_shapes, np.int64)
        n_bands = -(-(shapes[:, 0] - REACH) // BAND_ROWS)
        self._level = np.repeat(np.arange(len(shapes)), n_bands)
        self._first_row = BAND_ROWS * (np.arange(len(self._level)) - np.repeat(np.cumsum(n_bands) - n_bands, n_bands))
        self._width = shapes[self._level, 1]
        self._column = np.cumsum(self._width) - self._width
        self._n_rows = shapes[self._level, 0] - REACH
        self.starts: list[int] = self._column[self._first_row == 0].tolist()
        self.n_tiles = int(-(-(self._width.sum() - REACH) // TILE_COLUMNS))

    def cells(self, positions: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Which cells lie at positions in the tiles, level by level and row by row.

        positions: int64 (N, 3) as tile, row, column. Returns the cells, int64 (M, 3) as level, row, column, and the
        position of each, int64 (M, 3); positions between bands and beyond a level's last row are left out.
        """
        strip_column = positions[:, 0] * TILE_COLUMNS + positions[:, 2]
        band = np.searchsorted(self._column, strip_column, side="right") - 1
        row, column = positions[:, 1] + self._first_row[band], strip_column - self._column[band]
        inside = np.flatnonzero((column < self._width[band] - REACH) & (row < self._n_rows[band]))
        level = self._level[band]
        order = inside[np.lexsort((column[inside], row[inside], level[inside]))]
        return np.stack([level[order], row[order], column[order]], 1), positions[order]
