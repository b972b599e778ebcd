"""Labelled faces in memory: one array of crops of the network's size, whatever layout they come from."""

from __future__ import annotations

import hashlib
from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handlers.preprocess import resize_crop
from model_store.manifest import InputSpec
from training.errors import DataError
from training.ferplus import FERPLUS_CATEGORIES, LabelsFrom, columns_of_emotions, emotion_shares
from training.label_names import FER2013_LABELS as FER2013_LABELS
from training.label_names import matching_label
from training.layouts import Rejected as Rejected
from training.layouts import Row, read_rows


@dataclass(frozen=True)
class FaceSet:
    """Faces ready for augmentation.

    crops_u8: uint8 (N, S, S, C), already of the network's size and channels. labels: int64 (N,), indices into
    `label_names`; a likeliest class where there are soft labels. names: where each face came from. rejected: pictures
    that cannot be read. votes: int8 (N, 10), how many annotators of FER+ chose each of
    `training.ferplus.FERPLUS_CATEGORIES`, zeros for a face that nobody voted on; None when the data has none.
    soft_labels: float32 (N, K), a distribution over `label_names` that stands for the label in training; None when the
    labels are all there is. left_out: how many readable faces have no label, by reason.
    """

    crops_u8: NDArray[np.uint8]
    labels: NDArray[np.int64]
    names: tuple[str, ...]
    label_names: tuple[str, ...]
    rejected: tuple[Rejected, ...]
    votes: NDArray[np.int8] | None = None
    soft_labels: NDArray[np.float32] | None = None
    left_out: tuple[tuple[str, int], ...] = ()

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

    def rows(self, chosen: NDArray[np.int64]) -> FaceSet:
        """The faces of these indices, in their order, with nothing rejected or left out."""
        return FaceSet(
            self.crops_u8[chosen],
            self.labels[chosen],
            tuple(self.names[index] for index in chosen),
            self.label_names,
            (),
            None if self.votes is None else self.votes[chosen],
            None if self.soft_labels is None else self.soft_labels[chosen],
        )

    @cached_property
    def sha256(self) -> str:
        """Digest of label names, labels, pixels and soft labels, in order, whatever the layout that held them.

        Computed once: the arrays are not to be changed after it was asked for.
        """
        digest = hashlib.sha256("\n".join(self.label_names).encode())
        digest.update(self.labels.astype("<i8").tobytes())
        digest.update(np.ascontiguousarray(self.crops_u8).reshape(-1).data)
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
    labels_from: LabelsFrom = "label",
) -> FaceSet:
    """Read a data set in any layout of `training.layouts`, which is told from the path.

    usage: which part of a CSV file to keep; needed for that layout and refused for the others. labels_from: the data
    set's own labels, or FER+'s votes by one of the rules of `training.ferplus`; "ferplus-distribution" also gives soft
    labels. Pictures that cannot be decoded are listed in `rejected`, not fatal; faces whose votes settle on no emotion
    are counted in `left_out`. Raises DataError when the path holds none of the layouts, has a label that `label_names`
    lacks, lacks the votes that are asked for, or yields no face.
    """
    votes_decide = labels_from != "label"
    emotion_columns = columns_of_emotions(label_names) if votes_decide else []
    crops, labels, names, rejected = [], [], [], []
    votes: list[tuple[int, ...] | None] = []
    for row in read_rows(path, usage):
        if votes_decide and row.votes is None:
            raise DataError(f"{path}: has no FER+ votes: a Parquet file with columns ferplus_*, or fer2013new.csv")
        label = 0 if votes_decide else _label_index(path, row, label_names)
        if isinstance(row.pixels, Rejected):
            rejected.append(row.pixels)
            continue
        crops.append(resize_crop(row.pixels, spec))
        labels.append(label)
        names.append(row.name)
        votes.append(row.votes)
    if not crops:
        raise DataError(f"{path}: no usable face ({len(rejected)} rejected)")
    faces = FaceSet(
        np.stack(crops),
        np.array(labels, np.int64),
        tuple(names),
        label_names,
        tuple(rejected),
        None if votes[0] is None else np.array(votes, np.int8),
    )
    return _labelled_by_votes(path, faces, labels_from, emotion_columns) if votes_decide else faces


def _label_index(path: Path, row: Row, label_names: tuple[str, ...]) -> int:
    label = matching_label(row.label, label_names)
    if label is None:
        raise DataError(f"{path}: {row.name} is labelled {row.label!r}, which is none of {', '.join(label_names)}")
    return label_names.index(label)


def _labelled_by_votes(path: Path, faces: FaceSet, labels_from: LabelsFrom, emotion_columns: list[int]) -> FaceSet:
    assert faces.votes is not None
    said = emotion_shares(faces.votes, labels_from)
    kept = np.array([reason is None for reason in said.reasons])
    if not kept.any():
        raise DataError(f"{path}: no usable face: FER+'s votes settle on no emotion for any of {len(faces)}")
    shares = said.shares[kept]
    soft = np.zeros_like(shares)
    soft[:, emotion_columns] = shares
    return FaceSet(
        faces.crops_u8[kept],
        np.array(emotion_columns)[shares.argmax(1)],
        tuple(name for name, keep in zip(faces.names, kept, strict=True) if keep),
        faces.label_names,
        faces.rejected,
        faces.votes[kept],
        soft if labels_from == "ferplus-distribution" else None,
        tuple(sorted(Counter(reason for reason in said.reasons if reason is not None).items())),
    )
