"""`python -m training quantise`: a bundle → its next version, with an int8 network."""

from __future__ import annotations

import argparse
from pathlib import Path

from model_store.bundle import BUNDLES_ROOT
from model_store.manifest import EmotionManifest
from training.commands.splits import add_split, load_split


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    quantise = commands.add_parser("quantise", help="add an int8 network to a bundle, as a new version of it")
    quantise.add_argument("--model", required=True, metavar="NAME[:VERSION]")
    quantise.add_argument("--bundles", type=Path, default=BUNDLES_ROOT, help="where the bundle lives, and the new one")
    add_split(quantise, "data", "the faces that the model was trained on")
    add_split(quantise, "validation", "the faces of the model's evaluations")
    quantise.add_argument("--version", required=True, help="like 1.1.0; a version that stands is never replaced")
    quantise.add_argument("--faces", type=int, default=1024, help="training faces to calibrate on")
    quantise.add_argument(
        "--keep-float", type=int, metavar="N", help="so many layers stay in float; as few as are needed unless given"
    )
    quantise.set_defaults(run=_quantise)


def _quantise(options: argparse.Namespace) -> None:
    from training.evaluate import open_emotion_bundle
    from training.quantise import quantise

    bundle = open_emotion_bundle(options.model, options.bundles)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    training_set, validation_set = (
        load_split(options, name, manifest.labels, manifest.input) for name in ("data", "validation")
    )
    kept = "" if options.keep_float is None else f" --keep-float {options.keep_float}"
    command = (
        f"python -m training quantise --model {manifest.tag} --data {options.data.name} "
        f"--validation {options.validation.name} --version {options.version} --faces {options.faces}{kept}"
    )
    published = quantise(
        bundle,
        training_set,
        validation_set,
        options.bundles,
        options.version,
        command,
        options.faces,
        keep_float=options.keep_float,
    )
    print(f"published {published.manifest.tag} in {published.folder}")
