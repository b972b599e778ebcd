"""`python -m training split`: class folders → a file that says which picture is in which split."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from training.splits import SHARES, split_tree, write_split


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    split = commands.add_parser("split", help="divide class folders into train, validation and test")
    split.add_argument("--data", type=Path, required=True, metavar="TREE", help="a folder of class folders")
    split.add_argument("--out", type=Path, required=True, metavar="SPLIT.csv")
    split.add_argument("--seed", type=int, default=0)
    split.add_argument(
        "--shares", type=float, nargs=3, default=SHARES, metavar=("TRAIN", "VALIDATION", "TEST"), help="sum to 1"
    )
    split.set_defaults(run=_split)


def _split(options: argparse.Namespace) -> None:
    split = split_tree(options.data, tuple(options.shares), options.seed)
    for rejected in split.rejected:
        print(f"left out {rejected.name}: {rejected.reason}", file=sys.stderr)
    write_split(split, options.data, options.out)
    print(split.as_text())
    if split.repeated:
        print(f"{split.repeated} pictures have the pixels of another one; those are in one split together")
    print(f"{options.out}: {len(split.rows)} pictures")
