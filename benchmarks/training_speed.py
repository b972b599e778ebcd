"""How fast each recipe's network learns on one thread of this processor, in float32 and in bfloat16.

    python -m benchmarks.training_speed training/configs/fer2013-*.toml

Forward and backward pass and the optimiser's step on made-up faces, in processor time, so that what else the machine
does counts little. Augmentation is not in it (about 15 s of an epoch of FER2013 at 48 px). bfloat16 pays where the
processor has instructions for it, and in networks of dense convolutions: depthwise ones are slower in it on a CPU.
On one thread those learn by `training.depthwise`; the column beside is torch alone, in the same batches by turns.
"""

from __future__ import annotations

import argparse
import sys
import time
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import patch

import torch
from torch import nn
from torch.nn import functional as F

from model_store.errors import ModelStoreError
from training.commands.threads import keep_freed_memory, use_threads
from training.config import Experiment, load_recipe
from training.depthwise import DepthwiseConv2d
from training.devices import Place
from training.errors import TrainingError
from training.learner import Learner

_FER2013_FACES = 28_709
_WARM_UP = 1


@dataclass(frozen=True)
class Row:
    """Faces a second that a recipe's network learns from, by precision.

    torch_alone: in float32 without `training.depthwise`, None for a network that it changes nothing of.
    """

    recipe: str
    size_px: int
    batch_size: int
    float32: float
    torch_alone: float | None
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
    """Measure an experiment's network in every way, with its own optimiser and batch size."""
    with Place.joined("cpu") as place:
        learner = Learner.fresh(experiment, place, init=None, pretrained=False)
    ways = ["float32", "bfloat16"]
    if any(isinstance(module, DepthwiseConv2d) for module in learner.network.modules()):
        ways.append("torch alone")
    rates = dict.fromkeys(ways, 0.0)
    for index in range(_WARM_UP + n_batches):
        for way in ways:
            rate = _faces_per_second(learner, experiment, way)
            if index >= _WARM_UP:
                rates[way] = max(rates[way], rate)
    size_px, batch_size = experiment.input.size_px, experiment.optim.batch_size
    return Row(recipe, size_px, batch_size, rates["float32"], rates.get("torch alone"), rates["bfloat16"])


def _faces_per_second(learner: Learner, experiment: Experiment, way: str) -> float:
    """Of one batch of random numbers."""
    spec, n = experiment.input, experiment.optim.batch_size
    learner.network.train()
    inputs = torch.randn(n, spec.channels, spec.size_px, spec.size_px).to(memory_format=torch.channels_last)
    truth = torch.arange(n) % len(experiment.labels)
    with ExitStack() as stack:
        if way == "torch alone":
            stack.enter_context(patch.object(DepthwiseConv2d, "forward", nn.Conv2d.forward))
        started = time.process_time()
        with torch.autocast("cpu", torch.bfloat16, enabled=way == "bfloat16"):
            logits = learner.network(inputs)
        learner.optimizer.zero_grad(set_to_none=True)
        F.cross_entropy(logits.float(), truth).backward()  # type: ignore[no-untyped-call]
        learner.optimizer.step()
        return n / (time.process_time() - started)


def as_markdown(rows: list[Row]) -> str:
    """A line a recipe; the last column is an epoch of FER2013 in the faster precision."""
    lines = [
        "| recipe | px | batch | float32, faces/s | · torch alone | bfloat16, faces/s | an epoch of FER2013, s |",
        "|---|--:|--:|--:|--:|--:|--:|",
    ]
    for row in rows:
        epoch_s = _FER2013_FACES / max(row.float32, row.bfloat16)
        lines.append(
            f"| {row.recipe} | {row.size_px} | {row.batch_size} | {row.float32:.0f} "
            f"| {'' if row.torch_alone is None else f'{row.torch_alone:.0f}'} | {row.bfloat16:.0f} | {epoch_s:.0f} |"
        )
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
