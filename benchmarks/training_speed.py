"""How fast each recipe's network learns on one thread of this processor, in float32 and in bfloat16.

    python -m benchmarks.training_speed training/configs/fer2013-*.toml

Forward and backward pass and the optimiser's step on made-up faces, in processor time, so that what else the machine
does counts little. Augmentation is not in it (about 15 s of an epoch of FER2013 at 48 px). bfloat16 pays where the
processor has instructions for it, and in networks of dense convolutions: depthwise ones are slower in it on a CPU.
"""

from __future__ import annotations

import argparse
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import torch
from torch.nn import functional as F

from model_store.errors import ModelStoreError
from training.commands.threads import keep_freed_memory, use_threads
from training.config import Experiment, load_recipe
from training.devices import Place
from training.errors import TrainingError
from training.learner import Learner

_FER2013_FACES = 28_709
_WARM_UP = 1


@dataclass(frozen=True)
class Row:
    """Faces a second that a recipe's network learns from, by precision."""

    recipe: str
    size_px: int
    batch_size: int
    float32: float
    bfloat16: float


def main(arguments: list[str] | None = None) -> int:
    """Print the table. Returns the exit code: 0, or 1 after a line on stderr that names what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("configs", nargs="+", type=Path, metavar="CONFIG", help="TOML files of training/configs")
    parser.add_argument("--batches", type=int, default=4, help="timed batches; the fastest counts")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        use_threads(options)
        keep_freed_memory()
        print(as_markdown([row_of(path.stem, load_recipe(path)[-1], options.batches) for path in options.configs]))
    except (TrainingError, ModelStoreError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def row_of(recipe: str, experiment: Experiment, n_batches: int) -> Row:
    """Measure an experiment's network in both precisions, with its own optimiser and batch size."""
    with Place.joined("cpu") as place:
        float32, bfloat16 = (faces_per_second(experiment, place, is_half, n_batches) for is_half in (False, True))
    return Row(recipe, experiment.input.size_px, experiment.optim.batch_size, float32, bfloat16)


def faces_per_second(experiment: Experiment, place: Place, is_half: bool, n_batches: int) -> float:
    """The fastest of `n_batches` batches of random numbers, after one that does not count."""
    spec, n = experiment.input, experiment.optim.batch_size
    learner = Learner.fresh(experiment, place, init=None, pretrained=False)
    learner.network.train()
    inputs = torch.randn(n, spec.channels, spec.size_px, spec.size_px).to(memory_format=torch.channels_last)
    truth = torch.arange(n) % len(experiment.labels)
    seconds = []
    for _ in range(_WARM_UP + n_batches):
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_half):
            logits = learner.network(inputs)
        learner.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), truth).backward()  # type: ignore[no-untyped-call]
        learner.optimizer.step()
        seconds.append(time.process_time() - started)
    return n / min(seconds[_WARM_UP:])


def as_markdown(rows: list[Row]) -> str:
    """A line a recipe; the last column is an epoch of FER2013 in the faster precision."""
    lines = [
        "| recipe | input, px | batch | float32, faces/s | bfloat16, faces/s | an epoch of FER2013, s |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        epoch_s = _FER2013_FACES / max(row.float32, row.bfloat16)
        lines.append(
            f"| {row.recipe} | {row.size_px} | {row.batch_size} | {row.float32:.0f} | {row.bfloat16:.0f} "
            f"| {epoch_s:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
