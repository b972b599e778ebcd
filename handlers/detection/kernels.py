"""The detector's inner loops, compiled by numba: what numpy can only do with a temporary array a step.

They are compiled when this module is imported and kept in numba's cache, beside this file or in NUMBA_CACHE_DIR, so
that only the first import on a processor takes seconds; where no cache can be written every import does. None is
compiled later: arrays of another type or not C-contiguous are refused with a TypeError. All release the GIL and work on
arrays that the caller owns.
"""

from __future__ import annotations

import numpy as np
from numba import types
from numpy.typing import NDArray

from handlers.compiling import compiled

CENTRE, GAIN = np.float32(127.5), np.float32(1 / 128)
"""A pixel value 0..255 enters the networks as (value - CENTRE) * GAIN, as they were trained."""

MAX_LEVEL_WIDTH_PX = 1600
"""Widest pyramid level that `pnet_features` takes."""

# A row of a pyramid level is kept as its even and its odd pixels, each this far from the next. A constant, so that
# the compiler sees that the rows do not overlap and keeps the loops over them in vector registers.
_ROW = MAX_LEVEL_WIDTH_PX // 2 + 16
_LANES = 16
_ROWS = 4

_PICTURE = types.Array(types.uint8, 3, "C", readonly=True)


def _f4(n_dimensions: int) -> types.Array:
    return types.Array(types.float32, n_dimensions, "C")


def _u4(n_dimensions: int) -> types.Array:
    return types.Array(types.uint32, n_dimensions, "C")


def _f8(n_dimensions: int) -> types.Array:
    return types.Array(types.float64, n_dimensions, "C")


def _i8(n_dimensions: int) -> types.Array:
    return types.Array(types.int64, n_dimensions, "C")


@compiled(types.void(_PICTURE, _u4(3)))
def summed_area(rgb_u8: NDArray[np.uint8], table: NDArray[np.uint32]) -> None:
    """Sums of all pixels above and to the left: uint8 (H, W, 3) → table uint32 (H + 1, W + 1, 3), may wrap around."""
    height, width, _ = rgb_u8.shape
    table[0, :, :] = 0
    for y in range(height):
        red, green, blue = np.uint32(0), np.uint32(0), np.uint32(0)
        table[y + 1, 0, :] = 0
        for x in range(width):
            red += np.uint32(rgb_u8[y, x, 0])
            green += np.uint32(rgb_u8[y, x, 1])
            blue += np.uint32(rgb_u8[y, x, 2])
            table[y + 1, x + 1, 0] = table[y, x + 1, 0] + red
            table[y + 1, x + 1, 1] = table[y, x + 1, 1] + green
            table[y + 1, x + 1, 2] = table[y, x + 1, 2] + blue


@compiled(types.void(_u4(3), _i8(2), types.float32, types.float32, _f4(4)))
def crop_means(
    table: NDArray[np.uint32],
    corners: NDArray[np.int64],
    centre: np.float32,
    gain: np.float32,
    out: NDArray[np.float32],
) -> None:
    """Area-resample rectangles of a picture: out[i] = (means of rectangle i - centre) * gain.

    table: of `summed_area`. corners: int64 (N, 4) as left, top, right, bottom with right and bottom excluded, inside
    the picture and not empty. out: float32 (N, 3, h, w). The bins are those of adaptive average pooling: cell i of n
    over a length L covers from floor(i * L / n) to ceil((i + 1) * L / n).
    """
    n, _, rows, columns = out.shape
    first, last = np.empty(columns, np.int64), np.empty(columns, np.int64)
    share = np.empty(columns, np.float32)
    offset = np.float32(centre * gain)
    for i in range(n):
        left, top, right, bottom = corners[i]
        height, width = bottom - top, right - left
        for x in range(columns):
            first[x] = left + x * width // columns
            last[x] = left - (-(x + 1) * width // columns)
            share[x] = np.float32(gain) / np.float32(last[x] - first[x])
        for y in range(rows):
            y0, y1 = y * height // rows, -(-(y + 1) * height // rows)
            above, below = table[top + y0], table[top + y1]
            row_share = np.float32(1) / np.float32(y1 - y0)
            for x in range(columns):
                a, b = first[x], last[x]
                scale = row_share * share[x]
                for c in range(3):
                    total = below[b, c] - above[b, c] - below[a, c] + above[a, c]
                    out[i, c, y, x] = np.float32(np.uint32(total)) * scale - offset


@compiled()
def _level_row(
    table: NDArray[np.uint32],
    top: int,
    bottom: int,
    left: NDArray[np.int64],
    right: NDArray[np.int64],
    share: NDArray[np.float32],
    sums: NDArray[np.uint32],
    out: NDArray[np.float32],
) -> None:
    """A row of a pyramid level, centred, even and odd pixels apart: out[(channel * _ROWS * 2 + parity) * _ROW + i]."""
    above, below = table[top].reshape(-1), table[bottom].reshape(-1)
    for i in range(sums.shape[0]):
        sums[i] = below[i] - above[i]
    row_share = GAIN / np.float32(bottom - top)
    offset = CENTRE * GAIN
    for x in range(left.shape[0]):
        a, b = left[x] * 3, right[x] * 3
        scale = row_share * share[x]
        target = (x & 1) * _ROW + (x >> 1)
        out[target] = np.float32(sums[b] - sums[a]) * scale - offset
        out[target + 2 * _ROWS * _ROW] = np.float32(sums[b + 1] - sums[a + 1]) * scale - offset
        out[target + 4 * _ROWS * _ROW] = np.float32(sums[b + 2] - sums[a + 2]) * scale - offset


@compiled()
def _add_convolution(
    rows: NDArray[np.float32], kernel: NDArray[np.float32], n: int, bias: float, first: bool, out: NDArray[np.float32]
) -> None:
    """Add a 3×3 convolution of one channel to the four neighbours that one pooled feature is made of.

    rows: four rows, even and odd pixels apart. out[phase * _ROW + i]: phases are (row, column) 00, 01, 10, 11.
    """
    k00, k01, k02 = kernel[0, 0], kernel[0, 1], kernel[0, 2]
    k10, k11, k12 = kernel[1, 0], kernel[1, 1], kernel[1, 2]
    k20, k21, k22 = kernel[2, 0], kernel[2, 1], kernel[2, 2]
    for x in range(n):
        if first:
            p00, p01, p10, p11 = bias, bias, bias, bias
        else:
            p00, p01, p10, p11 = out[x], out[x + _ROW], out[x + 2 * _ROW], out[x + 3 * _ROW]
        a, b, c, d = rows[x], rows[x + _ROW], rows[x + 1], rows[x + _ROW + 1]
        p00 += k00 * a + k01 * b + k02 * c
        p01 += k00 * b + k01 * c + k02 * d
        a, b, c, d = rows[x + 2 * _ROW], rows[x + 3 * _ROW], rows[x + 2 * _ROW + 1], rows[x + 3 * _ROW + 1]
        p00 += k10 * a + k11 * b + k12 * c
        p01 += k10 * b + k11 * c + k12 * d
        p10 += k00 * a + k01 * b + k02 * c
        p11 += k00 * b + k01 * c + k02 * d
        a, b, c, d = rows[x + 4 * _ROW], rows[x + 5 * _ROW], rows[x + 4 * _ROW + 1], rows[x + 5 * _ROW + 1]
        p00 += k20 * a + k21 * b + k22 * c
        p01 += k20 * b + k21 * c + k22 * d
        p10 += k10 * a + k11 * b + k12 * c
        p11 += k10 * b + k11 * c + k12 * d
        a, b, c, d = rows[x + 6 * _ROW], rows[x + 7 * _ROW], rows[x + 6 * _ROW + 1], rows[x + 7 * _ROW + 1]
        p10 += k20 * a + k21 * b + k22 * c
        p11 += k20 * b + k21 * c + k22 * d
        out[x], out[x + _ROW], out[x + 2 * _ROW], out[x + 3 * _ROW] = p00, p01, p10, p11


@compiled()
def _to_tiles(
    values: NDArray[np.float32], column: int, row: int, channel: int, tiles: NDArray[np.float32], tile_columns: int
) -> None:
    """Copy one row of features to where it belongs from `column` of the strip on, which may be in several tiles."""
    n, width = values.shape[0], tiles.shape[3]
    for tile in range(max(0, (column - (width - tile_columns)) // tile_columns), tiles.shape[0]):
        begin = tile * tile_columns
        if begin >= column + n:
            break
        first, last = max(begin, column), min(begin + width, column + n)
        target, source = tiles[tile, channel, row, first - begin :], values[first - column :]
        for x in range(last - first):
            target[x] = source[x]


@compiled(types.void(_u4(3), types.int64, types.int64, _f4(4), _f4(1), _f4(1), _f4(4), types.int64, types.int64))
def pnet_features(
    table: NDArray[np.uint32],
    level_height: int,
    level_width: int,
    weight: NDArray[np.float32],
    bias: NDArray[np.float32],
    slope: NDArray[np.float32],
    tiles: NDArray[np.float32],
    start: int,
    reach: int,
) -> None:
    """A pyramid level and P-Net's first convolution, PReLU and 2×2 ceil-mode max-pooling in one pass.

    The level itself is never stored: four of its rows at a time are resampled from the summed-area table of the picture
    (see `crop_means` for the bins), convolved and pooled. weight: (10, 3, 3, 3). bias, slope: (10,). level_width:
    MAX_LEVEL_WIDTH_PX at most.

    The level's features, ceil((level_height - 2) / 2) rows of ceil((level_width - 2) / 2), are written to the tiles,
    float32 (n, 10, rows + reach, columns + reach), as `handlers.detection.tiles` lays them out: as bands of so many
    rows side by side from column `start` of the strip on, where each band and each tile also has the first `reach`
    rows and columns of the next.
    """
    height, width = table.shape[0] - 1, table.shape[1] - 1
    n_channels = weight.shape[0]
    band_rows, tile_columns = tiles.shape[2] - reach, tiles.shape[3] - reach
    n_rows, n_columns = (level_height - 1) // 2, (level_width - 1) // 2
    padded = (n_columns + _LANES - 1) // _LANES * _LANES
    rows = np.zeros(3 * _ROWS * 2 * _ROW + _LANES, np.float32)
    sums = np.empty((width + 1) * 3, np.uint32)
    phases = np.empty(4 * _ROW, np.float32)
    out = np.empty(n_columns, np.float32)
    left, right = np.empty(level_width, np.int64), np.empty(level_width, np.int64)
    share = np.empty(level_width, np.float32)
    for x in range(level_width):
        left[x] = x * width // level_width
        right[x] = -(-(x + 1) * width // level_width)
        share[x] = np.float32(1) / np.float32(right[x] - left[x])
    for y in range(n_rows):
        if y > 0:  # the last two rows are the next window's first two
            for channel in range(3):
                for half_row in range(_ROWS):
                    keep = (channel * 2 * _ROWS + half_row) * _ROW
                    for x in range(n_columns + 1):
                        rows[keep + x] = rows[keep + _ROWS * _ROW + x]
        for k in range(0 if y == 0 else 2, _ROWS):
            source = 2 * y + k
            if source < level_height:
                top, bottom = source * height // level_height, -(-(source + 1) * height // level_height)
                _level_row(table, top, bottom, left, right, share, sums, rows[2 * k * _ROW :])
        band, row = y // band_rows, y % band_rows
        column = start + band * n_columns
        for channel in range(n_channels):
            _add_convolution(rows, weight[channel, 0], padded, bias[channel], True, phases)
            _add_convolution(rows[2 * _ROWS * _ROW :], weight[channel, 1], padded, bias[channel], False, phases)
            _add_convolution(rows[4 * _ROWS * _ROW :], weight[channel, 2], padded, bias[channel], False, phases)
            if level_width % 2 == 1:  # the last window has one column
                phases[_ROW + n_columns - 1] = phases[n_columns - 1]
                phases[3 * _ROW + n_columns - 1] = phases[2 * _ROW + n_columns - 1]
            if 2 * y + 1 >= level_height - 2:  # the last window has one row
                for x in range(2 * _ROW):
                    phases[2 * _ROW + x] = phases[x]
            falling = slope[channel]
            for x in range(n_columns):
                p00, p01, p10, p11 = phases[x], phases[x + _ROW], phases[x + 2 * _ROW], phases[x + 3 * _ROW]
                p00 = p00 if p00 > 0 else p00 * falling
                p01 = p01 if p01 > 0 else p01 * falling
                p10 = p10 if p10 > 0 else p10 * falling
                p11 = p11 if p11 > 0 else p11 * falling
                p00 = p00 if p00 > p01 else p01
                p10 = p10 if p10 > p11 else p11
                out[x] = p00 if p00 > p10 else p10
            _to_tiles(out, column, row, channel, tiles, tile_columns)
            if band > 0 and row < reach:
                _to_tiles(out, column - n_columns, band_rows + row, channel, tiles, tile_columns)


@compiled(types.void(_f4(4), _i8(2), _f4(4)))
def patches_of(tiles: NDArray[np.float32], positions: NDArray[np.int64], out: NDArray[np.float32]) -> None:
    """Copy windows out of tiles (n, C, H, W): out float32 (N, C, h, w).

    positions: int64 (N, 3) as tile, first row, first column of each.
    """
    for i in range(positions.shape[0]):
        tile, row, column = positions[i]
        for channel in range(out.shape[1]):
            for y in range(out.shape[2]):
                source = tiles[tile, channel, row + y, column : column + out.shape[3]]
                for x in range(out.shape[3]):
                    out[i, channel, y, x] = source[x]


@compiled(types.int64(_f4(4), types.float64, _i8(2)))
def cells_over(logits: NDArray[np.float32], threshold: float, found: NDArray[np.int64]) -> int:
    """Where a logit is `threshold` or more: writes tile, row and column, returns how many.

    logits: float32 (n, 1, h, w). found: int64 (n * h * w, 3).
    """
    n_found = 0
    for tile in range(logits.shape[0]):
        for row in range(logits.shape[2]):
            for column in range(logits.shape[3]):
                if logits[tile, 0, row, column] >= threshold:
                    found[n_found, 0], found[n_found, 1], found[n_found, 2] = tile, row, column
                    n_found += 1
    return n_found


@compiled(types.int64(_f4(2), _i8(1), _i8(1), types.float64, types.boolean, _i8(1)), contract=False)
def non_maximum_suppression(
    boxes: NDArray[np.float32],
    group: NDArray[np.int64],
    order: NDArray[np.int64],
    threshold: float,
    smaller: bool,
    kept: NDArray[np.int64],
) -> int:
    """Greedy suppression within groups; writes the indices of the boxes that stay into `kept` and returns how many.

    boxes: (N, 4). group: (N,). order: (N,) indices by falling preference, one group after the other. See
    `handlers.detection.boxes.suppress`, which is made of this, for the two kinds of overlap.
    """
    n = order.shape[0]
    edge = np.float32(1 if smaller else 0)
    alive = np.ones(n, np.bool_)
    n_kept = 0
    for i in range(n):
        if not alive[i]:
            continue
        first = order[i]
        kept[n_kept] = first
        n_kept += 1
        left, top, right, bottom = boxes[first, 0], boxes[first, 1], boxes[first, 2], boxes[first, 3]
        area = (right - left + edge) * (bottom - top + edge)
        for j in range(i + 1, n):
            other = order[j]
            if group[other] != group[first]:
                break
            if not alive[j]:
                continue
            width = min(right, boxes[other, 2]) - max(left, boxes[other, 0]) + edge
            height = min(bottom, boxes[other, 3]) - max(top, boxes[other, 1]) + edge
            if width <= 0 or height <= 0:
                continue
            shared = width * height
            other_area = (boxes[other, 2] - boxes[other, 0] + edge) * (boxes[other, 3] - boxes[other, 1] + edge)
            # The reference compares with the threshold in float64 for one kind and in float32 for the other.
            if smaller:
                alive[j] = shared / min(area, other_area) <= np.float32(threshold)
            else:
                alive[j] = np.float64(shared / (area + other_area - shared)) <= threshold
    return n_kept


@compiled(
    types.int64(_f4(2), _f8(1), _f8(1), _i8(1), types.float64, types.float64, types.float64, _i8(1)), contract=False
)
def contenders(
    boxes: NDArray[np.float32],
    lowest: NDArray[np.float64],
    highest: NDArray[np.float64],
    group: NDArray[np.int64],
    threshold: float,
    overlap: float,
    overlap_margin: float,
    keep: NDArray[np.int64],
) -> int:
    """Writes the indices of the contenders into `keep` and returns how many; see `handlers.detection.screening`.

    boxes: (N, 4). lowest, highest: (N,) bounds of each score. group: (N,), not falling.
    """
    n = boxes.shape[0]
    sure = np.zeros(n, np.bool_)
    n_kept = 0
    for step in range(2):  # first who surely stays, then who is not surely removed by one of those
        group_start = 0
        for i in range(n):
            if group[group_start] != group[i]:
                group_start = i
            if (lowest[i] if step == 0 else highest[i]) <= threshold:
                continue
            area = (boxes[i, 2] - boxes[i, 0] + 1) * (boxes[i, 3] - boxes[i, 1] + 1)
            free = True
            for j in range(group_start, n):
                if group[j] != group[i]:
                    break
                if j == i:
                    continue
                if not (highest[j] >= lowest[i] if step == 0 else sure[j] and lowest[j] > highest[i]):
                    continue
                width = min(boxes[i, 2], boxes[j, 2]) - max(boxes[i, 0], boxes[j, 0]) + 1
                height = min(boxes[i, 3], boxes[j, 3]) - max(boxes[i, 1], boxes[j, 1]) + 1
                other = (boxes[j, 2] - boxes[j, 0] + 1) * (boxes[j, 3] - boxes[j, 1] + 1)
                shared = max(width, 0) * max(height, 0) / min(area, other)
                if shared > (overlap - overlap_margin if step == 0 else overlap + overlap_margin):
                    free = False
                    break
            if step == 0:
                sure[i] = free
            elif free:
                keep[n_kept] = i
                n_kept += 1
    return n_kept
