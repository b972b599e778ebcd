"""`python -m training`: train, evaluate, publish, quantise, fit-crop."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from handlers.engines import ENGINE_NAMES
from handlers.errors import HandlerError
from model_store.bundle import BUNDLES_ROOT
from model_store.errors import ModelStoreError
from model_store.manifest import EmotionManifest, FaceCropSpec
from training.config import load_experiment
from training.data import FaceSet, load_faces
from training.errors import TrainingError

_CROP_SCALES = (0.8, 0.9, 1.0, 1.1, 1.2, 1.35, 1.5)


def main(arguments: list[str] | None = None) -> int:
    """Run one command. Returns the exit code: 0, or 1 after a line on stderr that names what is wrong."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except (TrainingError, ModelStoreError, HandlerError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m training", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    train = commands.add_parser("train", help="train, or go on with a run that was stopped")
    train.add_argument("--config", type=Path, required=True, help="a TOML file of training/configs")
    _add_split(train, "data", "training faces")
    _add_split(train, "validation", "faces that choose the epoch")
    train.add_argument("--out", type=Path, required=True, help="the run's folder")
    train.add_argument("--init", type=Path, metavar="CHECKPOINT", help="weights that a fresh run starts from")
    train.add_argument("--device", default="auto", help="auto, cpu or cuda")
    train.add_argument("--stop-after", type=int, metavar="EPOCHS", help="end early, to be resumed")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser("evaluate", help="score a bundle")
    evaluate.add_argument("--model", required=True, metavar="NAME[:VERSION]")
    evaluate.add_argument("--bundles", type=Path, default=BUNDLES_ROOT, help="where the bundle lives")
    _add_split(evaluate, "data", "labelled faces")
    evaluate.add_argument("--tta", choices=("none", "flip"), default="none")
    evaluate.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    evaluate.add_argument("--engine", choices=ENGINE_NAMES, help="torch unless given, onnxruntime for int8")
    evaluate.add_argument("--threads", type=int, default=2)
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of tables")
    evaluate.set_defaults(run=_evaluate)

    publish = commands.add_parser("publish", help="calibrate, score and bundle a run's best checkpoint")
    publish.add_argument("--config", type=Path, required=True)
    publish.add_argument("--run", dest="run_folder", type=Path, required=True)
    _add_split(publish, "validation", "the split that the run was validated on")
    publish.add_argument("--version", required=True, help="like 1.0.0; a version that stands is never replaced")
    publish.add_argument("--bundles", type=Path, default=BUNDLES_ROOT)
    publish.add_argument("--source", default="FER2013 Training split (Goodfellow et al., 2013)")
    publish.add_argument("--split", default="FER2013 PublicTest", help="what to call the validation split")
    publish.add_argument("--command", help="the training command for the card, if it was not the plain one")
    publish.set_defaults(run=_publish)

    quantise = commands.add_parser("quantise", help="add an int8 network to a bundle, as a new version of it")
    quantise.add_argument("--model", required=True, metavar="NAME[:VERSION]")
    quantise.add_argument("--bundles", type=Path, default=BUNDLES_ROOT, help="where the bundle lives, and the new one")
    _add_split(quantise, "data", "the faces that the model was trained on")
    _add_split(quantise, "validation", "the faces of the model's evaluations")
    quantise.add_argument("--version", required=True, help="like 1.1.0; a version that stands is never replaced")
    quantise.add_argument("--faces", type=int, default=1024, help="training faces to calibrate on")
    quantise.set_defaults(run=_quantise)

    fit = commands.add_parser("fit-crop", help="find the face-crop geometry, and check it on photographs")
    fit.add_argument("--config", type=Path, required=True)
    _add_split(fit, "data", "training faces")
    fit.add_argument("--n", type=int, default=2000, help="faces to fit on")
    fit.add_argument("--photos", type=Path, help="<label>/<picture> folders to score geometries on")
    fit.add_argument("--model", default="default", help="the emotion model that scores them")
    fit.set_defaults(run=_fit_crop)
    return parser


def _add_split(parser: argparse.ArgumentParser, name: str, what: str) -> None:
    parser.add_argument(f"--{name}", type=Path, required=True, help=f"{what}: .parquet, .csv or class folders")
    parser.add_argument(f"--{name}-usage", help="with a .csv: Training, PublicTest or PrivateTest")


def _train(options: argparse.Namespace) -> None:
    from training.loop import train

    experiment = load_experiment(options.config)
    training_set = load_faces(options.data, experiment.labels, experiment.input, usage=options.data_usage)
    validation_set = load_faces(options.validation, experiment.labels, experiment.input, usage=options.validation_usage)
    for faces in (training_set, validation_set):
        _report_rejected(faces)
    train(
        experiment,
        training_set,
        validation_set,
        options.out,
        init=options.init,
        device=options.device,
        stop_after=options.stop_after,
        log=lambda line: print(line, flush=True),
    )


def _evaluate(options: argparse.Namespace) -> None:
    from training.evaluate import evaluate, load_network, open_emotion_bundle

    bundle = open_emotion_bundle(options.model, options.bundles)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    faces = load_faces(options.data, manifest.labels, manifest.input, usage=options.data_usage)
    _report_rejected(faces)
    engine = options.engine or ("torch" if options.precision == "fp32" else "onnxruntime")
    network = load_network(bundle, engine, options.threads, options.precision)
    report = evaluate(manifest, network, faces, options.data_usage or options.data.name, options.tta)
    report = replace(report, precision=options.precision)
    print(json.dumps(report.as_json(), indent=2) if options.json else report.as_text())


def _publish(options: argparse.Namespace) -> None:
    from training.publish import Source, publish

    experiment = load_experiment(options.config)
    faces = load_faces(options.validation, experiment.labels, experiment.input, usage=options.validation_usage)
    command = options.command or (
        f"python -m training train --config training/configs/{options.config.name} "
        f"--data train.parquet --validation validation.parquet --out {options.run_folder.name}"
    )
    source = Source(command=command, data=options.source, split=options.split)
    bundle = publish(experiment, options.run_folder, faces, options.bundles, options.version, source)
    print(f"published {bundle.manifest.tag} in {bundle.folder}")


def _quantise(options: argparse.Namespace) -> None:
    from training.evaluate import open_emotion_bundle
    from training.quantise import quantise

    bundle = open_emotion_bundle(options.model, options.bundles)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    training_set = load_faces(options.data, manifest.labels, manifest.input, usage=options.data_usage)
    validation_set = load_faces(options.validation, manifest.labels, manifest.input, usage=options.validation_usage)
    for faces in (training_set, validation_set):
        _report_rejected(faces)
    command = (
        f"python -m training quantise --model {manifest.tag} --data {options.data.name} "
        f"--validation {options.validation.name} --version {options.version} --faces {options.faces}"
    )
    published = quantise(bundle, training_set, validation_set, options.bundles, options.version, command, options.faces)
    print(f"published {published.manifest.tag} in {published.folder}")


def _fit_crop(options: argparse.Namespace) -> None:
    from handlers.pipeline import load_classifier, load_detector
    from training.face_crop_fit import fit_face_crop, score_crops

    experiment = load_experiment(options.config)
    faces = load_faces(options.data, experiment.labels, experiment.input, usage=options.data_usage)
    detector = load_detector()
    fit = fit_face_crop(detector, faces, options.n)
    print(f"a face found in {fit.n_found} of {fit.n_faces} training crops")
    for name in ("scale", "shift_x", "shift_y"):
        values = getattr(fit, name)
        print(f"{name:8} median {values.median:+.3f}, half of the faces in {values.low:+.3f} … {values.high:+.3f}")
    if options.photos:
        shift_x, shift_y = fit.spec.shift_x, fit.spec.shift_y
        shifts = dict.fromkeys([(0.0, 0.0), (shift_x, shift_y)])
        specs = [fit.spec] + [
            FaceCropSpec(scale=scale, shift_x=x, shift_y=y, alignment="none")
            for x, y in shifts
            for scale in _CROP_SCALES
        ]
        scores, n_missed = score_crops(detector, load_classifier(options.model), options.photos, specs)
        print(f"\nphotographs: {scores[0].n} with a face, {n_missed} without")
        for entry in scores:
            spec = entry.spec
            print(
                f"scale {spec.scale:4.2f}  shift {spec.shift_x:+.2f} {spec.shift_y:+.2f}  accuracy {entry.accuracy:.3f}"
            )


def _report_rejected(faces: FaceSet) -> None:
    for rejected in faces.rejected:
        print(f"left out {rejected.name}: {rejected.reason}", file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
