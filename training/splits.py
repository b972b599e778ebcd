"""A stratified split of `<class>/<picture>` folders into training, validation and test, kept in a file.

The file is CSV, `path,class,split`: a line for each picture that can be read, sorted by path, the paths relative to the
file's own folder. `training.layouts` reads it. Who gets what follows from the seed and the names alone:

* every class is divided by the shares, rounded by largest remainder, with one picture in each split at least;
* pictures are dealt in the order of a checksum of seed, class and name, so that it does not depend on a random number
  generator's version;
* pictures with equal pixels go to one split together, whatever their classes, larger groups first.
"""

from __future__ import annotations

import csv
import hashlib
import io
import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from training.duplicates import pixel_digest
from training.errors import DataError
from training.layouts import SPLIT_COLUMNS, SPLITS, Rejected, class_folders, class_pictures, read_picture

SHARES = (0.70, 0.15, 0.15)
"""Of training, validation and test."""

LEAST_SHARE = 0.02
LEAST_PICTURES = 3
CHECKED_FROM = 50
MOST_DEVIATION = 0.02
"""A class of at least `CHECKED_FROM` pictures may differ by so much from the share that a split should have of it."""


@dataclass(frozen=True)
class Split:
    """Who is in which split.

    rows: (path in the tree, class, split), sorted. rejected: pictures that cannot be read, in no split. repeated: how
    many pictures have the pixels of another one.
    """

    rows: tuple[tuple[str, str, str], ...]
    rejected: tuple[Rejected, ...]
    repeated: int

    @property
    def counts(self) -> dict[str, dict[str, int]]:
        """Pictures by class and split."""
        counts = {label: dict.fromkeys(SPLITS, 0) for _, label, _ in sorted(self.rows, key=lambda row: row[1])}
        for _, label, split in self.rows:
            counts[label][split] += 1
        return counts

    @property
    def deviation(self) -> tuple[float, str, str]:
        """How far a class's part of a split is at most from its part of the whole: difference, class, split."""
        counts = self.counts
        sizes = {split: sum(of_class[split] for of_class in counts.values()) for split in SPLITS}
        return max(
            (abs(of_class[split] / sizes[split] - sum(of_class.values()) / len(self.rows)), label, split)
            for label, of_class in counts.items()
            for split in SPLITS
        )

    def as_text(self) -> str:
        """A table of the class distributions, with counts and percentages, and their largest deviation."""
        counts = self.counts
        width = max(len("class"), *map(len, counts))
        lines = [f"{'class':{width}}  " + "  ".join(f"{title:>14}" for title in ("all", *SPLITS))]
        columns = {"all": {label: sum(of_class.values()) for label, of_class in counts.items()}}
        columns |= {split: {label: of_class[split] for label, of_class in counts.items()} for split in SPLITS}
        totals = {title: sum(column.values()) for title, column in columns.items()}
        for label in counts:
            cells = (f"{column[label]} {column[label] / totals[title]:6.1%}" for title, column in columns.items())
            lines.append(f"{label:{width}}  " + "  ".join(f"{cell:>14}" for cell in cells))
        lines.append(f"{'':{width}}  " + "  ".join(f"{total:>14}" for total in totals.values()))
        difference, label, split = self.deviation
        lines.append(f"largest deviation from the whole: {difference * 100:.2f} points ({label} in {split})")
        return "\n".join(lines)


def split_tree(tree: Path, shares: tuple[float, float, float] = SHARES, seed: int = 0) -> Split:
    """Divide the pictures of `<class>/<picture>` folders. Reads every picture.

    Raises DataError for shares that are none, a class with fewer than three different pictures that can be read, or
    class distributions that equal pictures keep from being alike (see `MOST_DEVIATION`).
    """
    if not (all(share >= LEAST_SHARE for share in shares) and abs(sum(shares) - 1) <= 1e-6):  # nan is refused, too
        raise DataError(f"shares {shares}: expected three numbers of at least {LEAST_SHARE} that sum to 1")
    class_of, rejected = {}, []
    by_pixels: dict[bytes, list[str]] = defaultdict(list)
    for label, file in class_pictures(tree):
        name = f"{label}/{file.name}"
        pixels = read_picture(name, file)
        if isinstance(pixels, Rejected):
            rejected.append(pixels)
            continue
        class_of[name] = label
        by_pixels[pixel_digest(pixels)].append(name)
    for folder in class_folders(tree):
        different = sum(any(class_of[name] == folder.name for name in names) for names in by_pixels.values())
        if different < LEAST_PICTURES:
            raise DataError(
                f"{folder}: class {folder.name!r} has {different} different pictures that can be read, "
                f"at least {LEAST_PICTURES} are needed"
            )
    split_of = _dealt(list(by_pixels.values()), class_of, shares, seed)
    split = Split(
        tuple((name, class_of[name], split_of[name]) for name in sorted(class_of)),
        tuple(rejected),
        sum(len(names) for names in by_pixels.values() if len(names) > 1),
    )
    _check(tree, split, shares)
    return split


def write_split(split: Split, tree: Path, out: Path) -> None:
    """Write the file in one piece. Raises DataError when another split stands there, or it cannot be written."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(SPLIT_COLUMNS)
    base = Path(os.path.relpath(tree.resolve(), out.parent.resolve()))
    rows = [((base / name).as_posix(), label, which) for name, label, which in split.rows]
    writer.writerows(sorted(rows))
    try:
        data = text.getvalue().encode()
    except UnicodeEncodeError:
        raise DataError(f"{tree}: its path from {out.parent} is not UTF-8") from None
    try:
        if out.exists():
            if out.read_bytes() != data:
                raise DataError(f"{out}: holds another split or something else; remove it or choose another name")
            return
        half = out.with_name(f".{out.name}.{os.getpid()}")
        half.write_bytes(data)
        half.replace(out)
    except OSError as error:
        raise DataError(f"{out}: {error.strerror}") from None


def _dealt(
    units: Sequence[Sequence[str]], class_of: Mapping[str, str], shares: tuple[float, ...], seed: int
) -> dict[str, str]:
    """The split of each picture; a unit's pictures stay together."""
    sizes: dict[str, int] = defaultdict(int)
    for label in class_of.values():
        sizes[label] += 1
    room = {label: dict(zip(SPLITS, _quota(size, shares), strict=True)) for label, size in sizes.items()}

    def checksum(unit: Sequence[str]) -> bytes:
        return min(hashlib.sha256(f"{seed}/{name}".encode()).digest() for name in unit)

    split_of = {}
    for unit in sorted(units, key=lambda unit: (-len(unit), checksum(unit))):
        labels = [class_of[name] for name in unit]
        chosen = max(SPLITS, key=lambda split: sum(room[label][split] for label in labels))
        for name, label in zip(unit, labels, strict=True):
            room[label][chosen] -= 1
            split_of[name] = chosen
    return split_of


def _quota(n: int, shares: tuple[float, ...]) -> list[int]:
    """`n` pictures by shares, largest remainder first, one each at least. n: three or more."""
    counts = [int(n * share + 1e-9) for share in shares]
    remainders = sorted(range(len(shares)), key=lambda index: counts[index] - n * shares[index])
    for index in remainders[: n - sum(counts)]:
        counts[index] += 1
    for index, count in enumerate(counts):
        if count == 0:
            counts[index] += 1
            counts[counts.index(max(counts))] -= 1
    return counts


def _check(tree: Path, split: Split, shares: tuple[float, ...]) -> None:
    for label, of_class in split.counts.items():
        n = sum(of_class.values())
        for which, share in zip(SPLITS, shares, strict=True):
            if of_class[which] == 0:
                raise DataError(f"{tree}: class {label!r}: equal pictures leave none for {which}")
            deviation = abs(of_class[which] / n - share)
            if n >= CHECKED_FROM and deviation > MOST_DEVIATION:
                raise DataError(
                    f"{tree}: class {label!r}: {which} would hold {of_class[which] / n:.1%} of its {n} pictures instead"
                    f" of {share:.1%}, as equal pictures stay together; remove some of them"
                )
