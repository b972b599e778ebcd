"""`python -m training train`: a configuration file and two splits → a run's folder."""

from __future__ import annotations

import argparse
from pathlib import Path

from model_store.bundle import BUNDLES_ROOT
from model_store.errors import ManifestError
from training.commands.splits import add_split, load_split, split_title
from training.commands.threads import add_threads, keep_freed_memory, use_threads
from training.environment import load_recipe_with, overrides_from_environment
from training.errors import ConfigError

_DROPOUT_OPTIONS = ("dropout", "drop_rate", "head_dropout")


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    train = commands.add_parser("train", help="train, or go on with a run that was stopped")
    train.add_argument("--config", type=Path, required=True, help="a TOML file of training/configs")
    add_split(train, "data", "training faces")
    add_split(train, "validation", "faces that choose the epoch")
    train.add_argument("--split", help="what to call that split; FER2013's name for it, else the file's, unless given")
    train.add_argument("--out", type=Path, required=True, help="the run's folder")
    train.add_argument("--bundles", type=Path, default=BUNDLES_ROOT, help="where teachers are, and network.init_bundle")
    train.add_argument("--device", default="auto", help="auto, cpu, cuda or cuda:1")
    add_threads(train)
    train.add_argument("--stop-after", type=int, metavar="EPOCHS", help="end early, to be resumed")
    train.set_defaults(run=_train)


def _train(options: argparse.Namespace) -> None:
    from training.artefacts import write_artefacts
    from training.devices import is_first_process
    from training.finished_run import read_experiment
    from training.recipe import loading_spec, run_recipe, sized

    use_threads(options)
    keep_freed_memory()
    if options.stop_after is not None and options.stop_after < 1:
        raise ConfigError(f"--stop-after: {options.stop_after} is under 1")
    overrides = overrides_from_environment()
    stages = load_recipe_with(options.config, overrides)
    is_first = is_first_process()
    if overrides and is_first:
        print("from the environment or .env:", *(f"{name}={value}" for name, value in overrides.items()), flush=True)
    labels, labels_from, spec = stages[0].labels, stages[0].data.labels_from, loading_spec(stages)
    if options.data_labels not in (None, labels_from):
        raise ConfigError(
            f"--data-labels: {options.data_labels}, but data.labels_from of {options.config} is {labels_from}, which "
            "the run and its card record"
        )
    training_set, validation_set = (
        load_split(options, name, labels, spec, labels_from=labels_from) for name in ("data", "validation")
    )
    try:
        outcome = run_recipe(
            stages,
            training_set,
            validation_set,
            options.out,
            bundles=options.bundles,
            device=options.device,
            stop_after=options.stop_after,
            log=lambda line: print(line, flush=True),
        )
    except ManifestError as error:
        if "DROPOUT_RATE" in overrides and any(f"'{option}'" in str(error) for option in _DROPOUT_OPTIONS):
            raise ConfigError(f"DROPOUT_RATE: the network takes no dropout ({error})") from None
        raise
    if is_first and outcome.is_finished:
        reached = read_experiment(outcome.folder)
        split = split_title(options, "validation", validation_set, labels_from)
        write_artefacts(outcome.folder, reached, sized(validation_set, reached), split=split)
