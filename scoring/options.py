"""The options of the command: their names, ranges and help."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import NoReturn, TypeVar

SUCCEEDED, FAILED, SOME_FILES_FAILED = 0, 1, 2
SHARD_VARIABLE = "JOB_COMPLETION_INDEX"
"""Kubernetes tells each pod of an indexed job its index in it."""

_EPILOG = f"""\
INPUT is a folder, a glob in quotes ('photos/*/*.jpg'), a list file (a path a line) or an fsspec URL (s3://bucket/folder).
OUT gets one row a face, and one for every picture without a face or that failed, in OUT/parts; manifest.json, which
names these parts; summary.json; and at the end the empty file _SUCCESS. The same command again goes on where it was
stopped, and scores only what is new or has changed.

exit codes:
  {SUCCEEDED}  every file was scored
  {SOME_FILES_FAILED}  the run finished, and some files failed: their rows say why
  {FAILED}  the run failed or was stopped; what stands in OUT is kept

examples:
  python -m scoring photos --recursive --output scores
  python -m scoring 's3://bucket/photos/*.jpg' --output s3://bucket/scores --workers 8
  python -m scoring photos --output scores --include '*.jpg' --include '*.png' --format csv
  python -m scoring photos --output /mnt/scores --shard 0/4      and 1/4, 2/4, 3/4, anywhere and in any order
  python -m scoring s3://bucket/photos --output s3://bucket/scores --engine ray --ray-address auto
"""

Value = TypeVar("Value", bound=float)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        # argparse ends with 2, which here means that some files failed.
        print(f"error: {message} (see --help)", file=sys.stderr)
        raise SystemExit(FAILED)


def make_parser() -> argparse.ArgumentParser:
    """The parser; it ends the process with 1 and one line on stderr when the options are wrong."""
    parser = _Parser(
        prog="python -m scoring",
        usage="python -m scoring INPUT --output OUT [options]",
        description="Score the facial expressions in every picture of a folder or bucket; stop and go on at any time.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("input", nargs="+", metavar="INPUT", help="folder, glob, list file or fsspec URL")
    parser.add_argument("--output", required=True, metavar="OUT", help="folder or fsspec URL of the results")

    which = parser.add_argument_group("which files")
    which.add_argument("--recursive", action="store_true", help="folders below INPUT, too")
    which.add_argument(
        "--include", action="append", default=[], metavar="PATTERN", help="only such names, like '*.jpg'; repeatable"
    )
    shards = which.add_mutually_exclusive_group()
    shards.add_argument("--shard", type=_shard, metavar="I/N", help="only this of N shares of the parts, I from 0")
    shards.add_argument(
        "--shards", type=_number(int, 1, 1_000_000), metavar="N", help=f"the same, I taken from {SHARD_VARIABLE}"
    )
    _add_result_options(parser.add_argument_group("what the results depend on (a change scores everything anew)"))
    _add_work_options(parser.add_argument_group("how the work is done"))
    return parser


def _add_result_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--model", default="default", metavar="NAME[:VERSION]", help="emotion model, or fake")
    group.add_argument(
        "--runtime",
        choices=("auto", "openvino", "onnxruntime", "torch"),
        default="auto",
        help="auto: the fastest that is installed",
    )
    group.add_argument(
        "--precision", choices=("auto", "fp32", "int8"), default="auto", help="auto: int8 where the model has it"
    )
    group.add_argument("--tta", choices=("none", "flip"), default="none", help="flip: average with the mirror image")
    group.add_argument(
        "--min-face-size", type=_number(int, 12, 10_000), metavar="PX", help="smallest face looked for (default: 20)"
    )
    group.add_argument(
        "--detection-thresholds",
        type=_thresholds,
        metavar="P,R,O",
        help="least face probability of the detector's three networks (default: 0.6,0.7,0.7)",
    )
    group.add_argument(
        "--detection-max-side",
        type=_number(int, 64, 65_535),
        metavar="PX",
        help="larger pictures are searched as if shrunk to this (default: 2560)",
    )
    group.add_argument(
        "--max-image-bytes",
        type=_number(int, 1024, 2**40),
        metavar="N",
        help="largest file that is read (default: 20971520)",
    )
    group.add_argument(
        "--max-image-pixels",
        type=_number(int, 1, 80_000_000),
        metavar="N",
        help="most pixels of a picture (default: 50000000)",
    )
    group.add_argument(
        "--max-image-side",
        type=_number(int, 1, 65_535),
        metavar="PX",
        help="longest side of a picture (default: 16384)",
    )
    group.add_argument("--format", choices=("parquet", "csv", "jsonl"), default="parquet", help="default: %(default)s")
    group.add_argument(
        "--part-size", type=_number(int, 1, 100_000), metavar="N", help="inputs in a part, on average (default: 512)"
    )


def _add_work_options(group: argparse._ArgumentGroup) -> None:
    group.add_argument("--engine", choices=("local", "ray"), default="local", help="default: %(default)s")
    group.add_argument("--workers", type=_number(int, 1, 4096), metavar="N", help="default: one a usable core")
    group.add_argument(
        "--ray-address", metavar="ADDRESS", help="a running cluster (auto, or HOST:PORT); else Ray is started here"
    )
    group.add_argument(
        "--file-timeout-s",
        type=_number(float, 0.1, 86_400),
        default=300.0,
        metavar="SECONDS",
        help="longest time for one file (default: 300)",
    )
    group.add_argument(
        "--retry-failed",
        action="store_true",
        help="try files again that ended their worker or failed inside (those not readable or too slow always are)",
    )
    group.add_argument("--nice", type=_number(int, 0, 19), metavar="N", help="lower the workers' priority, to 19")
    group.add_argument(
        "--progress",
        choices=("auto", "bar", "plain", "none"),
        default="auto",
        help="auto: a bar on a terminal, else a line every ten seconds",
    )
    group.add_argument(
        "--log-level", choices=("debug", "info", "warning", "error"), default="warning", help="default: %(default)s"
    )


def _number(kind: Callable[[str], Value], least: float, most: float) -> Callable[[str], Value]:
    def parse(text: str) -> Value:
        try:
            value = kind(text)
        except ValueError:
            raise argparse.ArgumentTypeError(f"{text!r} is not a number") from None
        if not least <= value <= most:
            raise argparse.ArgumentTypeError(f"must be from {least:,} to {most:,}, not {text}")
        return value

    return parse


def _shard(text: str) -> tuple[int, int]:
    index, slash, n = text.partition("/")
    if not (slash and index.isascii() and n.isascii() and index.isdigit() and n.isdigit()):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0/4: the index from 0, and how many there are")
    return int(index), int(n)


def _thresholds(text: str) -> tuple[float, ...]:
    try:
        thresholds = tuple(float(part) for part in text.split(","))
    except ValueError:
        thresholds = ()
    if len(thresholds) != 3 or not all(0 < threshold < 1 for threshold in thresholds):
        raise argparse.ArgumentTypeError(f"{text!r} is not like 0.6,0.7,0.7: three numbers between 0 and 1")
    return thresholds
