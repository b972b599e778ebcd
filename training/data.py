"""Labelled faces from the layouts in which FER2013 is passed around, as one array in memory.

| layout | path | split |
|---|---|---|
| Parquet with an `image` struct (`bytes`, `path`) and a `label` index | `train.parquet` | the file itself |
| `<class>/<picture>` folders (Kaggle's `train/` and `test/`) | the folder that holds the classes | the folder itself |
| the original `fer2013.csv` with `emotion,pixels,Usage` | `fer2013.csv` | `Training`, `PublicTest` or `PrivateTest` |
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handlers.decode import decode_image
from handlers.errors import HandlerError
from handlers.preprocess import resize_crop
from model_store.manifest import InputSpec
from training.errors import DataError
from training.votes import FERPLUS_CATEGORIES

FER2013_LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
"""The original label order of FER2013 (Goodfellow et al., 2013), which the Parquet and CSV layouts use."""

_FER2013_SIDE_PX = 48
_FOLDER_ALIASES = {"anger": "angry", "disgusted": "disgust", "fearful": "fear", "happiness": "happy"}
_PICTURE_SUFFIXES = frozenset((".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff"))
_VOTE_COLUMNS = tuple(f"ferplus_{name}" for name in (
    "neutral", "happiness", "surprise", "sadness", "anger", "disgust", "fear", "contempt", "unknown", "nf",
))  # fmt: skip
_USAGES = ("Training", "PublicTest", "PrivateTest")


@dataclass(frozen=True)
class Rejected:
    """A row or file that could not be used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class FaceSet:
    """Faces ready for augmentation.

    crops_u8: uint8 (N, S, S, C), already of the network's size and channels. labels: int64 (N,), indices into
    `label_names`. names: where each face came from. sha256: over label names, labels and pixels, so it is the same
    for every layout that holds the same faces in the same order. votes: int8 (N, 10), how many annotators of FER+ chose
    each of `training.votes.FERPLUS_CATEGORIES`, zeros for a face that nobody voted on; None when the data has none.
    soft_labels: float32 (N, K), a distribution over `label_names` that stands for the label in training; None when the
    labels are all there is.
    """

    crops_u8: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    label_names: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    votes: NDArray[np.int8] | None = None
    soft_labels: NDArray[np.float32] | None = None

    def __post_init__(self) -> None:
        if self.crops_u8.dtype != np.uint8 or self.crops_u8.ndim != 4:
            raise DataError(f"crops {self.crops_u8.dtype} {self.crops_u8.shape}, expected uint8 (N, S, S, C)")
        if not len(self.crops_u8) == len(self.labels) == len(self.names):
            raise DataError("crops, labels and names differ in length")
        for array, width in ((self.votes, len(FERPLUS_CATEGORIES)), (self.soft_labels, len(self.label_names))):
            if array is not None and array.shape != (len(self.labels), width):
                raise DataError(f"votes or soft labels {array.shape}, expected {(len(self.labels), width)}")

    def __len__(self) -> int:
        return len(self.labels)

    @property
    def sha256(self) -> str:
        """Digest of labels, pixels and soft labels, in order."""
        digest = hashlib.sha256("\n".join(self.label_names).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(self.crops_u8.tobytes())
        if self.soft_labels is not None:
            digest.update(self.soft_labels.astype("<f4").tobytes())
        return digest.hexdigest()

    @property
    def votes_sha256(self) -> str | None:
        """Digest of the votes, None without."""
        return None if self.votes is None else hashlib.sha256(self.votes.tobytes()).hexdigest()


def load_faces(
    path: Path,
    label_names: tuple[str, ...],
    spec: InputSpec,
    *,
    usage: str | None = None,
    labels_from: str = "label",
) -> FaceSet:
    """Read a data set in any of the module's layouts, which is told from the path.

    usage: the `Usage` value to keep; needed for the CSV layout and refused for the others.
    Pictures that cannot be decoded are listed in `rejected`, not fatal. Raises DataError when the path holds none of
    the layouts, has a label that `label_names` lacks, or yields no face.
    """
    if path.suffix == ".csv":
        if usage not in _USAGES:
            raise DataError(f"{path}: say which Usage to read, one of {', '.join(_USAGES)}")
        rows = _rows_of_csv(path, usage)
    elif usage is not None:
        raise DataError(f"{path}: a Usage can be chosen only in the CSV layout")
    elif path.is_dir():
        rows = _rows_of_folders(path, label_names)
    elif path.suffix == ".parquet":
        rows = _rows_of_parquet(path)
    else:
        raise DataError(f"{path}: neither a .parquet or .csv file nor a folder of class folders")

    crops, labels, names, votes, rejected = [], [], [], [], []
    for name, pixels, label, row_votes in rows:
        if label not in label_names:
            raise DataError(f"{path}: {name} is labelled {label!r}, which is none of {', '.join(label_names)}")
        if isinstance(pixels, Rejected):
            rejected.append(pixels)
            continue
        crops.append(resize_crop(pixels, spec))
        labels.append(label_names.index(label))
        names.append(name)
        votes.append(row_votes)
    if not crops:
        raise DataError(f"{path}: no usable face ({len(rejected)} rejected)")
    all_votes = None if votes[0] is None else np.array(votes, np.int8)
    return FaceSet(np.stack(crops), np.array(labels, np.int64), tuple(names), label_names, tuple(rejected), all_votes)


_Row = tuple[str, NDArray[np.uint8] | Rejected, str, list[int] | None]


def _rows_of_parquet(path: Path) -> Iterator[_Row]:
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
    for row in table.to_pylist():
        image = row["image"]
        votes = [row[column] or 0 for column in vote_columns] or None
        yield image["path"], _decode(image["path"], image["bytes"]), _fer2013_label(path, row["label"]), votes


def _rows_of_folders(path: Path, label_names: tuple[str, ...]) -> Iterator[_Row]:
    folders = sorted(child for child in path.iterdir() if child.is_dir())
    if not folders:
        raise DataError(f"{path}: no class folders")
    for folder in folders:
        label = folder.name if folder.name in label_names else _FOLDER_ALIASES.get(folder.name, folder.name)
        for file in sorted(folder.iterdir()):
            if file.suffix.lower() in _PICTURE_SUFFIXES:
                name = f"{folder.name}/{file.name}"
                yield name, _decode(name, file.read_bytes()), label, None


def _rows_of_csv(path: Path, usage: str) -> Iterator[_Row]:
    side = _FER2013_SIDE_PX
    try:
        with path.open(newline="") as file:
            reader = csv.DictReader(file)
            if not {"emotion", "pixels", "Usage"} <= set(reader.fieldnames or ()):
                raise DataError(f"{path}: expected the columns emotion, pixels, Usage")
            for number, row in enumerate(reader):
                if row["Usage"] != usage:
                    continue
                name = f"{usage}_{number}"
                try:
                    pixels = np.array((row["pixels"] or "").split(), np.uint8).reshape(side, side)
                except (ValueError, OverflowError) as error:
                    yield name, Rejected(name, str(error)), _fer2013_label(path, row["emotion"]), None
                    continue
                yield name, pixels, _fer2013_label(path, row["emotion"]), None
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
