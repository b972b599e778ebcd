from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from training.duplicates import (
    MOST_BITS,
    MOST_DIFFERENCE,
    Face,
    Fingerprint,
    Twins,
    differs_in_label,
    exact_groups,
    fingerprint,
    near_groups,
    pixel_digest,
    twins,
    within,
)


def picture(seed: int, side: int = 48) -> np.ndarray:
    """A soft pattern, uint8 (side, side), another one for each seed."""
    cells = np.random.default_rng(seed).integers(0, 256, (6, 6), np.uint8)
    return np.asarray(Image.fromarray(cells).resize((side, side), Image.Resampling.BICUBIC))


def faces(*pictures: np.ndarray, labels: str = "", splits: str = "") -> list[Face]:
    """Faces named by number; one letter for each label and split."""
    return [
        Face(split, str(index), label, fingerprint(pixels))
        for index, (pixels, label, split) in enumerate(
            zip(pictures, labels or "x" * len(pictures), splits or "a" * len(pictures), strict=True)
        )
    ]


def names(groups: Sequence[tuple[Face, ...]]) -> list[str]:
    return ["".join(face.name for face in group) for group in groups]


def test_exact_is_equal_pixels_whatever_the_number_of_channels() -> None:
    grey = picture(0)
    one_off = grey.copy()
    one_off[20, 20] ^= 1
    red = np.stack([grey, grey // 2, grey // 2], 2)
    found = exact_groups(faces(grey, picture(1), np.stack([grey] * 3, 2), one_off, red, picture(1), grey[:, ::-1]))
    assert names(found) == ["02", "15"]


def test_digest_knows_the_shape() -> None:
    flat = np.zeros((4, 6), np.uint8)
    assert len({pixel_digest(flat), pixel_digest(flat.T), pixel_digest(flat.reshape(2, 12))}) == 3


@pytest.mark.parametrize(
    "change",
    [
        pytest.param(lambda pixels: pixels[:, ::-1], id="mirrored"),
        pytest.param(lambda pixels: np.asarray(Image.fromarray(pixels).resize((90, 90))), id="resized"),
        pytest.param(lambda pixels: (pixels * 0.7 + 30).astype(np.uint8), id="paler"),
        pytest.param(lambda pixels: pixels ^ 1, id="least bit"),
        pytest.param(lambda pixels: (pixels[:, ::-1] * 0.7).astype(np.uint8), id="mirrored and darker"),
    ],
)
def test_near_finds_what_is_the_same_photograph(change) -> None:
    others = [picture(seed) for seed in range(1, 40)]
    assert names(near_groups(faces(picture(0), *others[:3], change(picture(0)), *others[3:]))) == ["04"]
    assert exact_groups(faces(picture(0), change(picture(0)))) == []


def test_near_is_passed_on() -> None:
    first = picture(0)
    assert names(near_groups(faces(first, picture(1), first[:, ::-1], first, first // 2))) == ["0234"]


def test_near_needs_both_the_hash_and_the_thumbnail() -> None:
    level = fingerprint(picture(0))
    unlike = Fingerprint(b"b", level.hashes, level.thumbnail[::-1])
    far = Fingerprint(b"c", (level.hashes[0] ^ 0b111, level.hashes[1] ^ 0b111), level.thumbnail)
    near = Fingerprint(b"d", (level.hashes[0] ^ (1 << 63 | 1), 0), level.thumbnail)
    made = [Face("a", str(index), "x", one) for index, one in enumerate((level, unlike, far, near))]
    assert np.abs(level.thumbnail - unlike.thumbnail).mean() > MOST_DIFFERENCE
    assert names(near_groups(made)) == ["03"]


def test_near_pairs_are_those_of_every_pair_compared() -> None:
    """Bands find what comparing all hashes finds."""
    rng = np.random.default_rng(2)
    blank = np.zeros((16, 16), np.float32)
    base = [int(value) for value in rng.integers(0, 1 << 63, 12, np.uint64)]
    hashes = [value ^ (1 << int(one)) ^ (1 << int(two)) for value in base for one, two in rng.integers(0, 64, (12, 2))]
    made = [
        Face("a", f"{index},", "x", Fingerprint(bytes([index]), (value, 0), blank))
        for index, value in enumerate(hashes)
    ]
    root = list(range(len(made)))
    for first in range(len(made)):
        for second in range(first):
            if (hashes[first] ^ hashes[second]).bit_count() <= MOST_BITS:
                old, new = root[first], root[second]
                root = [new if value == old else value for value in root]
    groups = {frozenset(made[index].name for index in range(len(made)) if root[index] == value) for value in set(root)}
    expected = {group for group in groups if len(group) > 1}
    assert len(expected) > 5
    assert {frozenset(face.name for face in group) for group in near_groups(made)} == expected


def test_pictures_of_one_grey_do_not_divide_by_zero() -> None:
    flat = [np.full((5, 5), level, np.uint8) for level in (0, 200)]
    assert names(near_groups(faces(*flat, picture(3)))) == ["01"]
    assert not fingerprint(flat[0]).thumbnail.any()


def test_no_faces_have_no_groups() -> None:
    assert exact_groups([]) == near_groups([]) == []


def test_groups_within_a_split_and_their_labels() -> None:
    one, two = picture(0), picture(1)
    found = exact_groups(faces(one, two, one, two, one, labels="xyzyx", splits="aabba"))
    assert names(found) == ["024", "13"]
    assert [differs_in_label(group) for group in found] == [True, False]
    assert names(within(found, "a")) == ["04"]
    assert names(within(found, "b")) == []
    assert not differs_in_label(within(found, "a")[0])


def test_twins_are_counted_from_each_side() -> None:
    #        x in a, x and z in b | y in a, z in b | y in a and b | x in a only, twice
    pictures = [picture(seed) for seed in (0, 0, 0, 1, 1, 2, 2, 3, 3)]
    found = exact_groups(faces(*pictures, labels="xxzyzyyxx", splits="abbababaa"))
    assert twins(found, "a", "b") == Twins(faces=3, with_same_label=1, with_other_label=1, with_both=1)
    assert twins(found, "b", "a") == Twins(faces=4, with_same_label=2, with_other_label=2, with_both=0)
    assert twins(found, "a", "c") == Twins(0, 0, 0, 0)
