from __future__ import annotations

from itertools import combinations
from math import gcd

import numpy as np
import pytest

from tests.handlers.composites import DEFECTS, FACE_COUNTS, SIZES_PX, composite


def is_grey(pixels: np.ndarray) -> bool:
    return bool((pixels == pixels[:, :, :1]).all())


@pytest.mark.parametrize("seed", [2, 6, 7, 12])
def test_seed_decides_everything(seed: int) -> None:
    pixels = composite(seed)
    assert pixels.dtype == np.uint8
    assert pixels.shape == (*SIZES_PX[seed % len(SIZES_PX)][::-1], 3)
    np.testing.assert_array_equal(composite(seed), pixels)


def test_no_two_are_the_same() -> None:
    assert len({composite(seed).tobytes() for seed in range(20)}) == 20


def test_every_size_meets_every_count_and_defect_also_in_every_nth_composite() -> None:
    cycles = (2, len(SIZES_PX), len(FACE_COUNTS), len(DEFECTS))
    assert [gcd(a, b) for a, b in combinations(cycles, 2)] == [1] * 6
    assert (min(FACE_COUNTS), max(FACE_COUNTS)) == (0, 30)


def test_grey_ones_are_grey_and_coloured_ones_are_not() -> None:
    (grey,) = (index for index, defects in enumerate(DEFECTS) if defects == ("grey",))
    assert all(is_grey(composite(seed)) for seed in range(grey, 30, len(DEFECTS)))
    assert not all(is_grey(composite(seed)) for seed in range(grey + 1, 30, len(DEFECTS)))
