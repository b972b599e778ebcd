"""`python -m training publish`: a finished run → a calibrated, scored bundle with its card, int8 network included."""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Mapping
from pathlib import Path

from model_store.bundle import BUNDLES_ROOT, new_folder
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
    publish.add_argument("--source", help="what it learned from, for the card; needed unless the faces are FER2013's")
    publish.add_argument("--split", help="what to call the validation split; needed unless it is one of FER2013's")
    publish.add_argument("--command", help="the training command for the card, if it was not the plain one")
    publish.add_argument("--quantise", action="store_true", help="add an int8 network, if one is accurate enough")
    add_split(publish, "data", "with --quantise: the faces that the model was trained on", required=False)
    publish.add_argument("--faces", type=int, default=1024, help="with --quantise: training faces to calibrate on")
    publish.add_argument("--keep-float", type=int, metavar="N", help="with --quantise: so many layers stay in float")
    publish.add_argument("--photos", type=Path, help="<emotion>/<picture> folders to score on, for the card")
    publish.set_defaults(run=_publish)


def _publish(options: argparse.Namespace) -> None:
    from training.errors import DataError
    from training.finished_run import split_name
    from training.publish import Int8Wish, Source, publish
    from training.recipe import loading_spec, sized

    if options.quantise != bool(options.data):
        raise DataError("--quantise: needs --data, the faces to calibrate on, and only then")
    overrides = overrides_from_environment()
    stages = load_recipe_with(options.config, overrides)
    last, spec = stages[-1], loading_spec(stages)
    new_folder(options.bundles, last.name, options.version)
    labels_from = last.data.labels_from
    validation_set = sized(load_split(options, "validation", last.labels, spec, labels_from=labels_from), last)
    training_set = None
    if options.quantise:
        training_set = sized(load_split(options, "data", last.labels, spec, labels_from=labels_from), last)
    found = split_name(validation_set, options.validation_labels or labels_from)
    is_fer2013 = found is not None and (training_set is None or split_name(training_set, labels_from) is not None)
    split, data = options.split or found, options.source
    if data is None and is_fer2013:
        data = _FER2013 if labels_from == "label" else _FERPLUS
    if split is None or data is None:
        raise DataError("these faces are not all FER2013's: say what they are with --split and --source, for the card")
    config = f"--config training/configs/{options.config.name}"
    source = Source(command=options.command or _train_command(options, overrides), data=data, split=split)
    int8, photographs = None, None
    if training_set is not None:
        kept = "" if options.keep_float is None else f" --keep-float {options.keep_float}"
        int8 = Int8Wish(
            training_set,
            f"{_variables(overrides)}python -m training publish {config} --run {shlex.quote(options.run_folder.name)} "
            f"{_faces(options, 'validation')} --version {options.version} "
            f"--quantise {_faces(options, 'data')} --faces {options.faces}{kept}",
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


def _train_command(options: argparse.Namespace, overrides: Mapping[str, object]) -> str:
    """The command that made the run, as far as this one was told: files by their names alone."""
    return (
        f"{_variables(overrides)}python -m training train --config training/configs/{options.config.name} "
        f"{_faces(options, 'data')} {_faces(options, 'validation')} --out {shlex.quote(options.run_folder.name)}"
    )


def _variables(overrides: Mapping[str, object]) -> str:
    return "".join(f"{name}={value} " for name, value in overrides.items())


def _faces(options: argparse.Namespace, name: str) -> str:
    """`--NAME FILE` with the usage and the labels that were asked for."""
    path = getattr(options, name) or Path("train.parquet")
    text = f"--{name} {shlex.quote(path.name)}"
    for key in ("usage", "labels"):
        if (value := getattr(options, f"{name}_{key}")) is not None:
            text += f" --{name}-{key} {value}"
    return text
