"""The options by which every command is given labelled faces, and how they are read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import get_args

from model_store.manifest import InputSpec
from training.data import FaceSet, load_faces
from training.ferplus import LabelsFrom


def add_split(parser: argparse.ArgumentParser, name: str, what: str, *, required: bool = True) -> None:
    """Add `--NAME PATH`, `--NAME-usage USAGE` and `--NAME-labels SOURCE`."""
    parser.add_argument(f"--{name}", type=Path, required=required, help=f"{what}: .parquet, .csv or class folders")
    parser.add_argument(
        f"--{name}-usage",
        help="with a .csv: Training, PublicTest or PrivateTest of fer2013.csv, train, validation or test of a split",
    )
    parser.add_argument(
        f"--{name}-labels",
        choices=get_args(LabelsFrom),
        help="the data's own labels or FER+'s votes; unless given, the configuration's if there is one, else label",
    )


def load_split(
    options: argparse.Namespace,
    name: str,
    labels: tuple[str, ...],
    spec: InputSpec,
    *,
    labels_from: LabelsFrom = "label",
) -> FaceSet:
    """The faces of `--NAME`; a line on stderr for each that cannot be read or reason why some have no label.

    labels_from: the configuration's, which `--NAME-labels` overrides. Validation faces get the majority label where
    training takes the votes' distribution, as in Barsoum et al. (2016). Raises DataError.
    """
    if name == "validation" and labels_from == "ferplus-distribution":
        labels_from = "ferplus-majority"
    labels_from = getattr(options, f"{name}_labels") or labels_from
    path, usage = getattr(options, name), getattr(options, f"{name}_usage")
    faces = load_faces(path, labels, spec, usage=usage, labels_from=labels_from)
    for rejected in faces.rejected:
        print(f"left out {rejected.name}: {rejected.reason}", file=sys.stderr)
    for reason, count in faces.left_out:
        print(f"left out {count} faces: {reason}", file=sys.stderr)
    return faces


def split_title(options: argparse.Namespace, name: str, faces: FaceSet, labels_from: LabelsFrom) -> str:
    """What to call `--NAME`: `--split`, else FER2013's own name for its splits, else the usage or the file's name."""
    from training.finished_run import split_name

    chosen: str | None = options.split or split_name(faces, getattr(options, f"{name}_labels") or labels_from)
    return chosen or getattr(options, f"{name}_usage") or getattr(options, name).name
