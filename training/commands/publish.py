"""`python -m training publish`: a finished run → a calibrated, scored bundle with its card, int8 network included."""

from __future__ import annotations

import argparse
from pathlib import Path

from model_store.bundle import BUNDLES_ROOT
from model_store.manifest import EmotionManifest
from training.commands.splits import add_split, load_split
from training.environment import load_recipe_with, overrides_from_environment

_FER2013 = "FER2013 Training split (Goodfellow et al., 2013)"
_FERPLUS = f"{_FER2013}, labels from the votes of FER+ (Barsoum et al., 2016)"


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    publish = commands.add_parser("publish", help="calibrate, score, quantise and bundle a run's best checkpoint")
    publish.add_argument("--config", type=Path, required=True, help="the run's TOML file")
    publish.add_argument("--run", dest="run_folder", type=Path, required=True, help="its folder, over the stages")
    add_split(publish, "validation", "the split that the run was validated on")
    publish.add_argument("--version", required=True, help="like 1.0.0; a version that stands is never replaced")
    publish.add_argument("--bundles", type=Path, default=BUNDLES_ROOT, help="where the bundle will live")
    publish.add_argument("--source", help=f"what it learned from, for the card; {_FER2013} unless given")
    publish.add_argument("--split", help="what to call the validation split; FER2013 PublicTest unless given")
    publish.add_argument("--command", help="the training command for the card, if it was not the plain one")
    publish.add_argument("--quantise", action="store_true", help="add an int8 network, if one is accurate enough")
    add_split(publish, "data", "with --quantise: the faces that the model was trained on", required=False)
    publish.add_argument("--faces", type=int, default=1024, help="with --quantise: training faces to calibrate on")
    publish.add_argument("--keep-float", type=int, metavar="N", help="with --quantise: so many layers stay in float")
    publish.add_argument("--photos", type=Path, help="<emotion>/<picture> folders to score on, for the card")
    publish.set_defaults(run=_publish)


def _publish(options: argparse.Namespace) -> None:
    from training.errors import DataError
    from training.publish import Int8Wish, Source, publish
    from training.recipe import sized

    if options.quantise != bool(options.data):
        raise DataError("--quantise: needs --data, the faces to calibrate on, and only then")
    stages = load_recipe_with(options.config, overrides_from_environment())
    first, last = stages[0], stages[-1]
    labels_from = last.data.labels_from
    validation_set = sized(load_split(options, "validation", first.labels, first.input, labels_from=labels_from), last)
    is_ferplus = labels_from != "label"
    command = options.command or (
        f"python -m training train --config training/configs/{options.config.name} "
        f"--data train.parquet --validation validation.parquet --out {options.run_folder.name}"
    )
    source = Source(
        command=command,
        data=options.source or (_FERPLUS if is_ferplus else _FER2013),
        split=options.split or ("FER2013 PublicTest, FER+ majority" if is_ferplus else "FER2013 PublicTest"),
    )
    int8, photographs = None, None
    if options.quantise:
        training_set = sized(load_split(options, "data", first.labels, first.input, labels_from=labels_from), last)
        kept = "" if options.keep_float is None else f" --keep-float {options.keep_float}"
        int8 = Int8Wish(
            training_set,
            f"python -m training publish --config training/configs/{options.config.name} "
            f"--run {options.run_folder.name} --validation {options.validation.name} --version {options.version} "
            f"--quantise --data {options.data.name} --faces {options.faces}{kept}",
            options.faces,
            options.keep_float,
        )
    if options.photos:
        from handlers.pipeline import load_detector
        from training.wild import find_faces

        photographs = find_faces(load_detector(), options.photos)
    bundle = publish(
        last,
        options.run_folder / f"stage-{len(stages)}" if len(stages) > 1 else options.run_folder,
        validation_set,
        options.bundles,
        options.version,
        source,
        stages=stages,
        int8=int8,
        photographs=photographs,
    )
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    print(f"published {manifest.tag} in {bundle.folder}")
    if options.quantise and manifest.int8 is None:
        print("no int8 network is accurate enough: it has none, and its card says what was tried")
