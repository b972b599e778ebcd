"""The rows of each layout in which labelled faces are passed around, told from the path and the CSV's first line.

| layout | path | usage |
|---|---|---|
| Parquet with an `image` struct (`bytes`, `path`) and a `label` index | `train.parquet` | none: the file itself |
| `<class>/<picture>` folders | the folder that holds the classes | none: the folder itself |
| the original `fer2013.csv` with `emotion,pixels,Usage` | `fer2013.csv` | `Training`, `PublicTest` or `PrivateTest` |
| a split file with `path,class,split`, see `training.splits` | `split.csv` | `train`, `validation` or `test` |

Votes of FER+ come from the Parquet columns `ferplus_*`, or from `fer2013new.csv` beside `fer2013.csv`.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handlers.decode import decode_image
from handlers.errors import HandlerError
from training.errors import DataError
from training.ferplus import VOTES_FILE, read_votes
from training.label_names import FER2013_LABELS

FER2013_USAGES = ("Training", "PublicTest", "PrivateTest")
SPLITS = ("train", "validation", "test")
SPLIT_COLUMNS = ("path", "class", "split")

_FER2013_COLUMNS = ("emotion", "pixels", "Usage")
_FER2013_SIDE_PX = 48
_PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
_VOTE_COLUMNS = tuple(f"ferplus_{name}" for name in (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "nf",
))  # fmt: skip


@dataclass(frozen=True)
class Rejected:
    """A row or file that could not be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Row:
    """One labelled picture as its layout holds it.

    pixels: uint8 (H, W) grey or (H, W, 3) RGB, or why there are none. label: in the data set's own words. votes: how
    many annotators chose each of `training.ferplus.FERPLUS_CATEGORIES`, zeros where nobody voted; None for data without
    votes.
    """

    name: str
    pixels: NDArray[np.uint8] | Rejected
    label: str
    votes: tuple[int, ...] | None = None


def usages_of(path: Path) -> tuple[str, ...]:
    """The usages among which `read_rows` wants one, none for layouts without. Raises DataError."""
    if path.suffix != ".csv":
        return ()
    return SPLITS if _is_split_file(path) else FER2013_USAGES


def read_rows(path: Path, usage: str | None = None) -> Iterator[Row]:
    """The rows of a data set, in order, decoded one at a time.

    usage: which part of a CSV file to read; refused for the other layouts. A picture that cannot be read is a row with
    the reason. Raises DataError, some of it while rows are read, when the path holds none of the layouts.
    """
    if path.suffix == ".csv":
        usages = (*FER2013_USAGES, *SPLITS) if usage is None else usages_of(path)
        if usage is None or usage not in usages:
            raise DataError(f"{path}: say which Usage to read, one of {', '.join(usages)}")
        return _rows_of_split_file(path, usage) if usages == SPLITS else _rows_of_fer2013_csv(path, usage)
    if usage is not None:
        raise DataError(f"{path}: a Usage can be chosen only in the CSV layout")
    if path.is_dir():
        return _rows_of_folders(path)
    if path.suffix == ".parquet":
        return _rows_of_parquet(path)
    raise DataError(f"{path}: neither a .parquet or .csv file nor a folder of class folders")


def class_pictures(tree: Path) -> Iterator[tuple[str, Path]]:
    """Class name and file of every picture in `<class>/<picture>` folders, sorted by both; hidden files are left out.

    A class folder without pictures gives nothing. Raises DataError when there are no class folders.
    """
    for folder in class_folders(tree):
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in _PICTURE_SUFFIXES and not file.name.startswith("."):
                yield folder.name, file


def class_folders(tree: Path) -> list[Path]:
    """The class folders of a tree, sorted by name. Raises DataError when there are none."""
    if not tree.is_dir():
        raise DataError(f"{tree}: not a folder of class folders")
    folders = sorted(child for child in tree.iterdir() if child.is_dir() and not child.name.startswith("."))
    if not folders:
        raise DataError(f"{tree}: no class folders")
    return folders


def read_picture(name: str, file: Path) -> NDArray[np.uint8] | Rejected:
    """The pixels of a file, uint8 (H, W) or (H, W, 3) RGB, or why there are none.

    A name that is not UTF-8 is rejected, with escapes for what no file of text can hold.
    """
    try:
        name.encode()
    except UnicodeEncodeError:
        return Rejected(name.encode(errors="backslashreplace").decode(), "its name is not UTF-8")
    try:
        return _decode(name, file.read_bytes())
    except OSError as error:
        return Rejected(name, f"unreadable: {error.strerror}")


def _rows_of_parquet(path: Path) -> Iterator[Row]:
    import pyarrow.parquet as pq

    try:
        present = pq.read_schema(path).names
        vote_columns = _VOTE_COLUMNS if set(_VOTE_COLUMNS) <= set(present) else ()
        table = pq.read_table(path, columns=["image", "label", *vote_columns])
    except (OSError, ValueError, KeyError) as error:
        raise DataError(f"{path}: {error}") from None
    fields = {field.name for field in table.schema.field("image").flatten()}
    if not {"image.bytes", "image.path"} <= fields:
        raise DataError(f"{path}: the column image is not a struct of bytes and path")
    for number, row in enumerate(table.to_pylist()):
        image = row["image"] or {}
        name = f"row {number}" if image.get("path") is None else image["path"]
        votes = tuple(row[column] or 0 for column in vote_columns) or None
        yield Row(name, _decode(name, image.get("bytes") or b""), _fer2013_label(path, row["label"]), votes)


def _rows_of_folders(path: Path) -> Iterator[Row]:
    for label, file in class_pictures(path):
        name = f"{label}/{file.name}"
        yield Row(name, read_picture(name, file), label)


def _rows_of_split_file(path: Path, usage: str) -> Iterator[Row]:
    for number, row in enumerate(_read_csv(path, SPLIT_COLUMNS), start=2):
        if row["split"] not in SPLITS:
            raise DataError(f"{path}: line {number}: split {row['split']!r}, expected one of {', '.join(SPLITS)}")
        if row["split"] == usage:
            yield Row(row["path"], read_picture(row["path"], path.parent / row["path"]), row["class"])


def _rows_of_fer2013_csv(path: Path, usage: str) -> Iterator[Row]:
    side = _FER2013_SIDE_PX
    votes_file = path.parent / VOTES_FILE
    votes = read_votes(votes_file) if votes_file.exists() else None
    number = -1
    for number, row in enumerate(_read_csv(path, _FER2013_COLUMNS)):
        if votes is not None and (number >= len(votes) or votes[number][0] != row["Usage"]):
            raise DataError(f"{votes_file}: row {number} is not of {path.name}'s Usage {row['Usage']!r}")
        if row["Usage"] != usage:
            continue
        name = f"{usage}_{number}"
        label, own_votes = _fer2013_label(path, row["emotion"]), None if votes is None else votes[number][1]
        pixels: NDArray[np.uint8] | Rejected
        try:
            pixels = np.array((row["pixels"] or "").split(), np.uint8).reshape(side, side)
        except (ValueError, OverflowError) as error:
            pixels = Rejected(name, str(error))
        yield Row(name, pixels, label, own_votes)
    if votes is not None and len(votes) != number + 1:
        raise DataError(f"{votes_file}: {len(votes)} rows, {path.name} has {number + 1}")


def _is_split_file(path: Path) -> bool:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            columns = set(next(csv.reader(file), ()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from None
    if set(_FER2013_COLUMNS) <= columns:
        return False
    if set(SPLIT_COLUMNS) <= columns:
        return True
    expected = f"{', '.join(_FER2013_COLUMNS)} or {', '.join(SPLIT_COLUMNS)}"
    raise DataError(f"{path}: expected the columns {expected}")


def _read_csv(path: Path, columns: tuple[str, ...]) -> Iterator[dict[str, str]]:
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            for row in csv.DictReader(file):
                yield {column: row[column] or "" for column in columns}
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path}: {error}") from None


def _decode(name: str, data: bytes) -> NDArray[np.uint8] | Rejected:
    try:
        return decode_image(data)
    except HandlerError as error:
        return Rejected(name, f"{error.code}: {error.detail}")


def _fer2013_label(path: Path, index: int | str) -> str:
    try:
        position = int(index)
        if not 0 <= position < len(FER2013_LABELS):
            raise ValueError
    except (TypeError, ValueError):
        raise DataError(f"{path}: label {index!r} is not an index of {', '.join(FER2013_LABELS)}") from None
    return FER2013_LABELS[position]
