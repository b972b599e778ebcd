"""Area resampling from one summed-area table: every pyramid level and every face crop of a picture.

The bins are those of adaptive average pooling: output cell i of n over a length L covers the input from floor(i·L/n)
to ceil((i+1)·L/n). That is what `torch.nn.functional.interpolate(mode="area")` computes, and so what the MTCNN weights
expect.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

_CELL = 4


class AreaPooling:
    """Means over rectangles of one picture, at the cost of four look-ups a cell.

    rgb_u8: uint8 (H, W, 3). The table is uint32 and may wrap around; a difference of corners is right all the same
    as long as one cell holds fewer than 2^32 / 255 pixels, which is 16.8 million.

    A cell of the table is 16 bytes, the three channels and nothing, because numpy gathers items of 16 bytes about five
    times as fast as items of 12: they are looked at as complex numbers for that, and never computed with as such.
    """

    def __init__(self, rgb_u8: NDArray[np.uint8]) -> None:
        height, width, _ = rgb_u8.shape
        self.height, self.width = height, width
        self._table = np.zeros((height + 1, width + 1, _CELL), np.uint32)
        inner = self._table[1:, 1:, :3]
        np.cumsum(rgb_u8, axis=0, dtype=np.uint32, out=inner)
        np.cumsum(inner, axis=1, out=inner)

    def resize(self, height: int, width: int) -> NDArray[np.float32]:
        """The whole picture as float32 (3, height, width), values 0..255."""
        top, bottom = _bins(self.height, height)
        left, right = _bins(self.width, width)
        rows = (self._table[bottom] - self._table[top]).view(np.complex128)[:, :, 0]
        sums = _sums(np.take(rows, right, axis=1)) - _sums(np.take(rows, left, axis=1))
        area = (bottom - top)[:, None] * (right - left)[None, :]
        (means,) = _means(sums.reshape(1, height, width, _CELL), area[np.newaxis])
        return np.asarray(means)

    def crops(self, corners: NDArray[np.int64], size: int) -> NDArray[np.float32]:
        """Rectangles of the picture as float32 (N, 3, size, size), values 0..255.

        corners: int64 (N, 4) as left, top, right, bottom with the right and bottom edge excluded, all inside the
        picture, none empty.
        """
        left, top, right, bottom = corners.T
        row_start, row_stop = _bins((bottom - top)[:, None], size)
        column_start, column_stop = _bins((right - left)[:, None], size)
        stride = self.width + 1
        above = ((row_start + top[:, None]) * stride)[:, :, None]
        below = ((row_stop + top[:, None]) * stride)[:, :, None]
        before, after = (column_start + left[:, None])[:, None, :], (column_stop + left[:, None])[:, None, :]
        flat = self._table.view(np.complex128).reshape(-1)
        sums = _sums(np.take(flat, below + after))
        sums -= _sums(np.take(flat, above + after))
        sums -= _sums(np.take(flat, below + before))
        sums += _sums(np.take(flat, above + before))
        area = (row_stop - row_start)[:, :, None] * (column_stop - column_start)[:, None, :]
        return _means(sums.reshape(len(corners), size, size, _CELL), area)


def _sums(gathered: NDArray[np.complex128]) -> NDArray[np.uint32]:
    """Gathered cells, looked at as the sums that they are."""
    return gathered.view(np.uint32)


def _means(sums: NDArray[np.uint32], area: NDArray[np.int64]) -> NDArray[np.float32]:
    """Sums (N, h, w, cell) over areas (N, h, w) in pixels → float32 (N, 3, h, w)."""
    share = (1 / area).astype(np.float32)
    means = np.empty((len(sums), 3, *area.shape[1:]), np.float32)
    for channel in range(3):
        np.multiply(sums[..., channel], share, out=means[:, channel], casting="unsafe")
    return means


def _bins(length: int | NDArray[np.int64], n_cells: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """First pixel and one past the last pixel of each cell."""
    cells = np.arange(n_cells, dtype=np.int64)
    return cells * length // n_cells, -(-(cells + 1) * length // n_cells)
