from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.detection.tiles import BAND_ROWS, REACH, TILE_COLUMNS, TILE_SHAPE, TileLayout


def every_position(layout: TileLayout) -> NDArray[np.int64]:
    """All positions of the tiles' cells, int64 (N, 3), in the order in which a screen over them finds them."""
    return np.argwhere(np.ones((layout.n_tiles, BAND_ROWS, TILE_COLUMNS), bool))


def every_cell(level_shapes: list[tuple[int, int]]) -> list[tuple[int, int, int]]:
    return [
        (level, row, column)
        for level, (rows, columns) in enumerate(level_shapes)
        for row in range(rows - REACH)
        for column in range(columns - REACH)
    ]


@pytest.mark.parametrize(
    "shapes",
    [
        [(5, 5)],
        [(5, 900)],
        [(900, 5)],
        [(BAND_ROWS + REACH, TILE_COLUMNS + REACH)],
        [(BAND_ROWS + REACH + 1, TILE_COLUMNS + REACH + 1)],
        [(2 * BAND_ROWS + REACH - 1, 50), (BAND_ROWS + REACH + 1, 40), (5, 30)],
        [(143, 191), (101, 135), (71, 95), (50, 67), (35, 47), (24, 33), (17, 23), (11, 15), (8, 10), (5, 7)],
    ],
    ids=lambda shapes: " ".join(f"{rows}×{columns}" for rows, columns in shapes),
)
def test_every_cell_lies_in_the_tiles_once_and_they_come_by_level_row_and_column(shapes: list[tuple[int, int]]) -> None:
    layout = TileLayout(shapes)
    cells, positions = layout.cells(every_position(layout))
    assert [tuple(cell) for cell in cells.tolist()] == every_cell(shapes)
    assert len({tuple(position) for position in positions.tolist()}) == len(cells)


@pytest.mark.parametrize("seed", range(20))
def test_random_levels_have_every_cell_once(seed: int) -> None:
    rng = np.random.default_rng(seed)
    shapes = [(int(rows), int(columns)) for rows, columns in rng.integers(5, 80, (int(rng.integers(1, 9)), 2))]
    layout = TileLayout(shapes)
    cells, _ = layout.cells(every_position(layout))
    assert [tuple(cell) for cell in cells.tolist()] == every_cell(shapes)


def test_positions_come_in_the_cells_order_whatever_order_they_had() -> None:
    layout = TileLayout([(40, 50), (20, 30)])
    positions = every_position(layout)
    shuffled = np.random.default_rng(0).permutation(positions)
    for ours, expected in zip(layout.cells(shuffled), layout.cells(positions), strict=True):
        np.testing.assert_array_equal(ours, expected)


def test_bands_of_all_levels_lie_side_by_side() -> None:
    layout = TileLayout([(2 * BAND_ROWS + REACH + 1, 50), (BAND_ROWS + REACH, 40), (5, 30)])
    assert layout.starts == [0, 3 * 50, 3 * 50 + 40]
    assert layout.n_tiles == 2  # 220 columns of features, 216 of cells


@pytest.mark.parametrize(
    ("position", "cell"),
    [
        ((0, 0, 0), (0, 0, 0)),
        ((0, 15, 45), (0, 15, 45)),
        ((0, 0, 46), None),  # the network would reach from the first band into the second
        ((0, 0, 49), None),
        ((0, 0, 50), (0, 16, 0)),
        ((0, 4, 95), (0, 20, 45)),
        ((0, 5, 50), None),  # beyond the last of 21 rows
        ((0, 15, 95), None),
        ((0, 0, 96), None),
        ((0, 0, 100), (1, 0, 0)),
        ((0, 0, 127), (1, 0, 27)),
        ((1, 1, 0), (1, 1, 28)),
        ((1, 2, 0), None),
        ((1, 1, 7), (1, 1, 35)),
        ((1, 1, 8), None),
        ((1, 1, 127), None),  # beyond the last band
    ],
)
def test_position_is_a_cell_or_left_out(position: tuple[int, int, int], cell: tuple[int, int, int] | None) -> None:
    layout = TileLayout([(21 + REACH, 46 + REACH), (2 + REACH, 36 + REACH)])
    cells, positions = layout.cells(np.array([position]))
    assert [tuple(each) for each in cells.tolist()] == ([] if cell is None else [cell])
    assert [tuple(each) for each in positions.tolist()] == ([] if cell is None else [position])


def test_no_positions_are_no_cells() -> None:
    cells, positions = TileLayout([(40, 50)]).cells(np.empty((0, 3), np.int64))
    assert cells.shape == positions.shape == (0, 3)


def test_a_tile_holds_what_the_network_reaches_over() -> None:
    assert TILE_SHAPE[1:] == (BAND_ROWS + REACH, TILE_COLUMNS + REACH)
