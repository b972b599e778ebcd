"""`python -m training train`: a configuration file and two splits → a run's folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from model_store.bundle import BUNDLES_ROOT
from training.commands.splits import add_split, load_split
from training.config import load_recipe
from training.environment import overrides_from_environment


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    train = commands.add_parser("train", help="train, or go on with a run that was stopped")
    train.add_argument("--config", type=Path, required=True, help="a TOML file of training/configs")
    add_split(train, "data", "training faces")
    add_split(train, "validation", "faces that choose the epoch")
    train.add_argument("--out", type=Path, required=True, help="the run's folder")
    train.add_argument("--init", type=Path, metavar="CHECKPOINT", help="weights that a fresh run starts from")
    train.add_argument("--bundles", type=Path, default=BUNDLES_ROOT, help="where the teachers' bundles are")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    train.add_argument("--threads", type=int, help="CPU threads; all cores unless given")
    train.add_argument("--stop-after", type=int, metavar="EPOCHS", help="end early, to be resumed")
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    import torch

    from training.recipe import run_recipe

    if options.threads:
        torch.set_num_threads(options.threads)
    stages = load_recipe(options.config, overrides_from_environment())
    first = stages[0]
    training_set, validation_set = (
        load_split(options, name, first.labels, first.input, labels_from=first.data.labels_from)
        for name in ("data", "validation")
    )
    run_recipe(
        stages,
        training_set,
        validation_set,
        options.out,
        init=options.init,
        bundles=options.bundles,
        device=options.device,
        stop_after=options.stop_after,
        log=lambda line: print(line, flush=True),
    )
