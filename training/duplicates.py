"""Pictures that occur more than once: the same pixels, or nearly the same, within a split and across splits.

Exact: the decoded pixels are equal, where a colour picture without colour counts as grey.

Near: of two pictures, or of one and the other's mirror image, both hold:
* their 64-bit difference hashes differ in at most `MOST_BITS` bits. A bit says whether one of 9×8 grey cells is darker
  than the cell to its right (dHash, N. Krawetz, 2013);
* their 16×16 grey thumbnails, brought to mean 0 and deviation 1, differ by at most `MOST_DIFFERENCE` on average. The
  hash alone takes faces in one pose and one light for twins (on FER2013 up to 0.25 every pair looked at was one
  photograph, from 0.3 on hardly any).
Near is passed on: pictures that have a twin in common are one group.
"""

from __future__ import annotations

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from PIL import Image

MOST_BITS = 2
MOST_DIFFERENCE = 0.25

_CELLS = (9, 8)
_THUMBNAIL = (16, 16)
_BITS = 64


@dataclass(frozen=True)
class Fingerprint:
    """What is kept of a picture to find its twins.

    digest: of shape and pixels. hashes: the difference hashes of the picture and of its mirror image. thumbnail:
    float32 (16, 16), mean 0 and deviation 1; zeros for a picture of one grey.
    """

    digest: bytes
    hashes: tuple[int, int]
    thumbnail: NDArray[np.float32]


@dataclass(frozen=True)
class Face:
    """A picture of a data set: its split's name, its own name, its label, its fingerprint."""

    split: str
    name: str
    label: str
    fingerprint: Fingerprint


Group = tuple[Face, ...]


def pixel_digest(pixels_u8: NDArray[np.uint8]) -> bytes:
    """16 bytes that are equal for equal pixels. pixels_u8: uint8 (H, W) grey or (H, W, 3) RGB."""
    grey = _without_colour(pixels_u8)
    return hashlib.blake2b(repr(grey.shape).encode() + grey.tobytes(), digest_size=16).digest()


def fingerprint(pixels_u8: NDArray[np.uint8]) -> Fingerprint:
    """The fingerprint of a picture, uint8 (H, W) grey or (H, W, 3) RGB."""
    grey = Image.fromarray(_without_colour(pixels_u8)).convert("L")
    cells = np.asarray(grey.resize(_CELLS, Image.Resampling.BOX), np.int16)
    thumbnail = np.asarray(grey.resize(_THUMBNAIL, Image.Resampling.BOX), np.float32)
    spread = thumbnail.std()
    level = (thumbnail - thumbnail.mean()) / spread if spread else np.zeros_like(thumbnail)
    return Fingerprint(pixel_digest(pixels_u8), (_difference_hash(cells), _difference_hash(cells[:, ::-1])), level)


def exact_groups(faces: Sequence[Face]) -> list[Group]:
    """Groups of two or more faces with equal pixels, in the order of their first faces."""
    by_digest: dict[bytes, list[Face]] = defaultdict(list)
    for face in faces:
        by_digest[face.fingerprint.digest].append(face)
    return [tuple(members) for members in by_digest.values() if len(members) > 1]


def near_groups(faces: Sequence[Face]) -> list[Group]:
    """Groups of two or more faces that are nearly the same or equal, in the order of their first faces."""
    parent = list(range(len(faces)))

    def root(index: int) -> int:
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    for first, second in _near_pairs([face.fingerprint for face in faces]):
        low, high = sorted((root(first), root(second)))
        parent[high] = low
    members: dict[int, list[Face]] = defaultdict(list)
    for index, face in enumerate(faces):
        members[root(index)].append(face)
    return [tuple(group) for group in members.values() if len(group) > 1]


def differs_in_label(group: Group) -> bool:
    """Whether the faces of a group carry more than one label."""
    return len({face.label for face in group}) > 1


def within(groups: Iterable[Group], split: str) -> list[Group]:
    """What the groups have in one split: groups of two or more of its faces."""
    parts = (tuple(face for face in group if face.split == split) for group in groups)
    return [part for part in parts if len(part) > 1]


@dataclass(frozen=True)
class Twins:
    """How many faces of a split have a twin in another split.

    with_same_label: every twin there has the face's label. with_other_label: none has. with_both: some have.
    """

    faces: int
    with_same_label: int
    with_other_label: int
    with_both: int


def twins(groups: Iterable[Group], split: str, other: str) -> Twins:
    """Count the faces of `split` that have a twin in `other`."""
    same = different = both = 0
    for group in groups:
        there = {face.label for face in group if face.split == other}
        for face in group if there else ():
            if face.split != split:
                continue
            if face.label not in there:
                different += 1
            elif len(there) == 1:
                same += 1
            else:
                both += 1
    return Twins(same + different + both, same, different, both)


def _without_colour(pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    if pixels.ndim == 3 and (pixels == pixels[:, :, :1]).all():
        pixels = pixels[:, :, 0]
    return np.ascontiguousarray(pixels)


def _difference_hash(cells: NDArray[np.int16]) -> int:
    return int.from_bytes(np.packbits(cells[:, :-1] < cells[:, 1:]).tobytes(), "big")


def _near_pairs(prints: Sequence[Fingerprint]) -> Iterator[tuple[int, int]]:
    """Pairs of indices, some of them more than once.

    Hashes that differ in at most k bits are equal in one of k + 1 bands, so only those are compared. A picture is
    looked up by its own hash and by its mirror image's; the pictures found are kept by their own.
    """
    hashes = np.array([pair for item in prints for pair in item.hashes], np.uint64).reshape(-1, 2)
    thumbnails = np.array([item.thumbnail for item in prints], np.float32).reshape(-1, *_THUMBNAIL)
    edges = np.linspace(0, _BITS, MOST_BITS + 2).astype(int)
    for low, high in pairwise(edges):
        mask = np.uint64((1 << int(high)) - (1 << int(low)))
        own = hashes[:, 0] & mask
        order = np.argsort(own, kind="stable")
        in_order = own[order]
        for mirrored in (0, 1):
            wanted = hashes[:, mirrored] & mask
            starts, ends = np.searchsorted(in_order, wanted, "left"), np.searchsorted(in_order, wanted, "right")
            for index in np.flatnonzero(ends > starts):
                others = order[starts[index] : ends[index]]
                others = others[others != index]
                close = np.bitwise_count(hashes[others, 0] ^ hashes[index, mirrored]) <= MOST_BITS
                others = others[close]
                if not len(others):
                    continue
                picture = thumbnails[index, :, ::-1] if mirrored else thumbnails[index]
                difference = np.abs(thumbnails[others] - picture).mean(axis=(1, 2))
                for other in others[difference <= MOST_DIFFERENCE]:
                    yield int(index), int(other)
