"""`python -m training inspect`: classes, unreadable files and duplicates of one data set or two."""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterator
from pathlib import Path

from training.commands.splits import add_split
from training.errors import DataError
from training.ferplus import LabelsFrom
from training.inspection import SplitContents, contents_of, inspect_splits
from training.layouts import read_rows, usages_of


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    inspect = commands.add_parser("inspect", help="count classes, list unreadable files, find duplicates")
    add_split(inspect, "data", "labelled faces; every usage of a .csv unless one is given")
    add_split(inspect, "validation", "faces to compare them with", required=False)
    inspect.add_argument("--near", action="store_true", help="find nearly equal and mirrored pictures, too")
    inspect.add_argument("--json", action="store_true", help="print JSON instead of text")
    inspect.set_defaults(run=_inspect)


def _inspect(options: argparse.Namespace) -> None:
    splits: list[SplitContents] = []
    for option in ("data", "validation"):
        path: Path | None = getattr(options, option)
        if path is None:
            continue
        labels_from: LabelsFrom = getattr(options, f"{option}_labels") or "label"
        for name, usage in _parts(path, getattr(options, f"{option}_usage")):
            if any(split.name == name for split in splits):
                name = str(path if usage is None else f"{path}:{usage}")
            contents = contents_of(name, read_rows(path, usage), labels_from)
            if contents.faces or contents.rejected:
                splits.append(contents)
    if not any(split.faces for split in splits):
        raise DataError(f"{options.data}: no usable face")
    found = inspect_splits(splits, near=options.near)
    print(json.dumps(found.as_json(), indent=2) if options.json else found.as_text())


def _parts(path: Path, usage: str | None) -> Iterator[tuple[str, str | None]]:
    """Name and usage of each split that a path and the usage asked for stand for."""
    if usage is not None:
        yield usage, usage
    elif usages := usages_of(path):
        yield from ((each, each) for each in usages)
    else:
        yield path.stem, None
