"""`python -m training publish`: a finished run → a calibrated, scored bundle with its card."""

from __future__ import annotations

import argparse
from pathlib import Path

from model_store.bundle import BUNDLES_ROOT
from training.commands.splits import add_split, load_split
from training.config import load_recipe


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    publish = commands.add_parser("publish", help="calibrate, score and bundle a run's best checkpoint")
    publish.add_argument("--config", type=Path, required=True)
    publish.add_argument("--run", dest="run_folder", type=Path, required=True)
    add_split(publish, "validation", "the split that the run was validated on")
    publish.add_argument("--version", required=True, help="like 1.0.0; a version that stands is never replaced")
    publish.add_argument("--bundles", type=Path, default=BUNDLES_ROOT)
    publish.add_argument("--source", default="FER2013 Training split (Goodfellow et al., 2013)")
    publish.add_argument("--split", default="FER2013 PublicTest", help="what to call the validation split")
    publish.add_argument("--command", help="the training command for the card, if it was not the plain one")
    publish.set_defaults(run=_publish)


def _publish(options: argparse.Namespace) -> None:
    from training.publish import Source, publish

    experiment = load_recipe(options.config)[-1]
    faces = load_split(
        options, "validation", experiment.labels, experiment.input, labels_from=experiment.data.labels_from
    )
    command = options.command or (
        f"python -m training train --config training/configs/{options.config.name} "
        f"--data train.parquet --validation validation.parquet --out {options.run_folder.name}"
    )
    source = Source(command=command, data=options.source, split=options.split)
    bundle = publish(experiment, options.run_folder, faces, options.bundles, options.version, source)
    print(f"published {bundle.manifest.tag} in {bundle.folder}")
