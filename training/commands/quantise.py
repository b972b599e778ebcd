"""`python -m training quantise`: a bundle → its next version, with an int8 network.

The faces of `--data` have to be the very ones that the manifest's digest is of, labels included. For a model of FER+'s
eight emotions they get the distribution of the votes, as the recipes teach it; one that was taught the majority needs
`--data-labels ferplus-majority`. Its validation faces get the majority.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from model_store.bundle import BUNDLES_ROOT, new_folder
from model_store.manifest import EmotionManifest
from training.commands.splits import add_split, load_split
from training.ferplus import LabelsFrom


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
    quantise.add_argument("--photos", type=Path, help="<emotion>/<picture> folders to score on, for the card")
    quantise.set_defaults(run=_quantise)


def _quantise(options: argparse.Namespace) -> None:
    from training.evaluate import label_source, open_emotion_bundle
    from training.quantise import quantise

    bundle = open_emotion_bundle(options.model, options.bundles)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    new_folder(options.bundles, manifest.name, options.version)
    is_voted = label_source(manifest.labels, options.data) != "label"
    taught: LabelsFrom = "ferplus-distribution" if is_voted else "label"
    scored = label_source(manifest.labels, options.validation)
    training_set = load_split(options, "data", manifest.labels, manifest.input, labels_from=taught)
    validation_set = load_split(options, "validation", manifest.labels, manifest.input, labels_from=scored)
    kept = "" if options.keep_float is None else f" --keep-float {options.keep_float}"
    command = (
        f"python -m training quantise --model {manifest.tag} --data {options.data.name} "
        f"--validation {options.validation.name} --version {options.version} --faces {options.faces}{kept}"
    )
    photographs = None
    if options.photos:
        from handlers.pipeline import load_detector
        from training.wild import find_faces

        photographs = find_faces(load_detector(), options.photos)
    published = quantise(
        bundle,
        training_set,
        validation_set,
        options.bundles,
        options.version,
        command,
        options.faces,
        keep_float=options.keep_float,
        photographs=photographs,
    )
    print(f"published {published.manifest.tag} in {published.folder}")
