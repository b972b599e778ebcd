"""The options by which every command is given labelled faces, and how they are read."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from model_store.manifest import InputSpec
from training.data import FaceSet, load_faces


def add_split(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    """Add `--NAME PATH` and `--NAME-usage USAGE`."""
    parser.add_argument(f"--{name}", type=Path, required=True, help=f"{what}: .parquet, .csv or class folders")
    parser.add_argument(f"--{name}-usage", help="with a .csv: Training, PublicTest or PrivateTest")


def load_split(
    options: argparse.Namespace, name: str, labels: tuple[str, ...], spec: InputSpec, *, labels_from: str = "label"
) -> FaceSet:
    """The faces of `--NAME`; a line on stderr for each that cannot be read. Raises DataError."""
    path, usage = getattr(options, name), getattr(options, f"{name}_usage")
    faces = load_faces(path, labels, spec, usage=usage, labels_from=labels_from)
    for rejected in faces.rejected:
        print(f"left out {rejected.name}: {rejected.reason}", file=sys.stderr)
    return faces
