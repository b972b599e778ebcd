"""Area resampling from one summed-area table: every pyramid level and every face crop of a picture.

The bins are those of adaptive average pooling: output cell i of n over a length L covers the input from floor(i·L/n)
to ceil((i+1)·L/n). That is what `torch.nn.functional.interpolate(mode="area")` computes, and so what the MTCNN weights
expect.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray


class AreaPooling:
    """Means over rectangles of one picture, at the cost of four look-ups a cell.

    rgb_u8: uint8 (H, W, 3). The table is uint32 and may wrap around; a difference of corners is right all the same
    as long as one cell holds fewer than 2^32 / 255 pixels, which is 16.8 million.
    """

    def __init__(self, rgb_u8: NDArray[np.uint8]) -> None:
        height, width, _ = rgb_u8.shape
        self.height, self.width = height, width
        self._table = np.zeros((height + 1, width + 1, 3), np.uint32)
        inner = self._table[1:, 1:]
        np.cumsum(rgb_u8, axis=0, dtype=np.uint32, out=inner)
        np.cumsum(inner, axis=1, out=inner)

    def resize(self, height: int, width: int) -> NDArray[np.float32]:
        """The whole picture as float32 (3, height, width), values 0..255."""
        top, bottom = _bins(self.height, height)
        left, right = _bins(self.width, width)
        upper, lower = self._table[top], self._table[bottom]
        rows = lower - upper
        sums = rows[:, right] - rows[:, left]
        area = ((bottom - top)[:, None] * (right - left)[None, :]).astype(np.float32)
        return np.ascontiguousarray((sums / area[:, :, None]).transpose(2, 0, 1), np.float32)

    def crops(self, corners: NDArray[np.int64], size: int) -> NDArray[np.float32]:
        """Rectangles of the picture as float32 (N, 3, size, size), values 0..255.

        corners: int64 (N, 4) as left, top, right, bottom with the right and bottom edge excluded, all inside the
        picture, none empty.
        """
        left, top, right, bottom = corners.T
        row_start, row_stop = _bins((bottom - top)[:, None], size)
        column_start, column_stop = _bins((right - left)[:, None], size)
        r0, r1 = (row_start + top[:, None])[:, :, None], (row_stop + top[:, None])[:, :, None]
        c0, c1 = (column_start + left[:, None])[:, None, :], (column_stop + left[:, None])[:, None, :]
        table = self._table
        sums = table[r1, c1] - table[r0, c1] - table[r1, c0] + table[r0, c0]
        area = ((r1 - r0) * (c1 - c0)).astype(np.float32)
        return np.ascontiguousarray((sums / area[..., None]).transpose(0, 3, 1, 2), np.float32)


def _bins(length: int | NDArray[np.int64], n_cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel and one past the last pixel of each cell."""
    cells = np.arange(n_cells, dtype=np.int64)
    return cells * length // n_cells, -(-(cells + 1) * length // n_cells)
