"""Prints how far a detector is from `facenet_pytorch.MTCNN` on the whole parity corpus.

    python -m tests.handlers.detection.parity_report --engine onnxruntime

Needs MTCNN registered in the store of BENTOML_HOME; takes about a minute. Exit code 1 when it is beyond the tolerances.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from itertools import chain

from handlers.engines import ENGINE_NAMES
from handlers.pipeline import load_detector
from tests.handlers.detection.parity import (
    Comparison,
    Reference,
    astronaut_and_composites,
    compare_all,
    photographs,
    summarise,
)


def main(arguments: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.handlers.detection.parity_report")
    parser.add_argument("--engine", default="auto", choices=ENGINE_NAMES)
    parser.add_argument("--every", type=int, default=1, metavar="N", help="only every N-th composite")
    options = parser.parse_args(arguments)

    reference = Reference()
    comparisons = compare_all(
        load_detector(engine=options.engine),
        lambda picture: reference.detect(picture.rgb_u8),
        chain(astronaut_and_composites(options.every), photographs()),
    )
    summary = summarise(comparisons)
    if different := [comparison for comparison in comparisons if not comparison.is_equal]:
        print(_table(different))
    print(f"{options.engine}: {summary}")
    return 0 if summary.is_parity else 1


def _table(comparisons: Sequence[Comparison]) -> str:
    """The comparisons as a Markdown table."""
    rows = [
        "| picture | longer side | faces | reference | least IoU | landmarks | confidence |",
        "|---|---|---|---|---|---|---|",
        *(
            f"| {each.picture} | {each.longer_side_px} px | {each.n_found} | {each.n_expected} "
            f"| {each.min_overlap:.4f} | {each.max_landmark_shift_px:.2f} px | {each.max_confidence_difference:.4f} |"
            for each in comparisons
        ),
    ]
    return "\n".join(rows)


if __name__ == "__main__":
    sys.exit(main())
