"""`python -m training compare`: the zoo table of runs and bundles."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    compare = commands.add_parser("compare", help="a table of runs and bundles: scores, size, time")
    compare.add_argument("paths", nargs="+", type=Path, metavar="RUN_OR_BUNDLE", help="folders")
    compare.add_argument("--out", type=Path, metavar="DIR", help="also write zoo.md, zoo.json and pictures there")
    compare.add_argument("--rounds", type=_positive, default=60, help="how often each network is timed")
    compare.set_defaults(run=_compare)


def _positive(text: str) -> int:
    value = int(text)
    if value < 1:
        raise ValueError
    return value


def _compare(options: argparse.Namespace) -> None:
    import torch

    from training.compare import as_markdown, compare, conditions, tables_of, write_comparison
    from training.errors import DataError

    if options.out and options.out.exists() and not options.out.is_dir():
        raise DataError(f"--out: {options.out} is a file")
    torch.set_num_threads(1)
    rows, n_failed = compare(
        options.paths, rounds=options.rounds, complain=lambda line: print(line, file=sys.stderr, flush=True)
    )
    for table in tables_of(rows):
        print(as_markdown(table))
    if rows:
        print(conditions(options.rounds))
        if options.out:
            print(f"written: {write_comparison(options.out, rows, options.rounds)}", file=sys.stderr)
    if n_failed:
        raise DataError(f"{n_failed} of {len(options.paths)} could not be read")
    if not rows:
        raise DataError("no run and no bundle among them")
