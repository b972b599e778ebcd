"""`python -m training wild`: what models read in photographs, and which flaws of a picture cost them most."""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from handlers.engines import ENGINE_NAMES, Precision
from model_store.bundle import BUNDLES_ROOT, bundle_names

if TYPE_CHECKING:
    from handlers.classifier import EmotionClassifier
    from handlers.detection import Detector
    from training.wild import Photographs


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    wild = commands.add_parser("wild", help="score models on <emotion>/<picture> folders, from detector to emotion")
    wild.add_argument("--photos", type=Path, required=True, help="the folder that holds the emotions' folders")
    wild.add_argument(
        "--model", nargs="+", default=[], metavar="NAME[:VERSION]", help="every bundle's newest version unless given"
    )
    wild.add_argument("--bundles", type=Path, default=BUNDLES_ROOT, help="where the bundles live")
    wild.add_argument("--precision", nargs="+", choices=("int8", "fp32"), default=["int8", "fp32"])
    wild.add_argument("--engine", choices=ENGINE_NAMES, default="auto")
    wild.add_argument("--threads", type=int, default=1)
    wild.add_argument("--json", action="store_true", help="print JSON instead of tables")
    wild.add_argument("--levers", action="store_true", help="also spoil the pictures in many ways, and correct priors")
    wild.add_argument(
        "--data", type=Path, help="with --levers: labelled face crops to spoil, too (.parquet or folders)"
    )
    wild.add_argument("--faces", type=int, help="with --data: so many, drawn by class; all unless given")
    wild.set_defaults(run=_wild)


def _wild(options: argparse.Namespace) -> None:
    from handlers.pipeline import load_detector
    from training.errors import DataError
    from training.evaluate import open_emotion_bundle
    from training.wild import called_table, classifiers_of, find_faces, score_wild, wild_table

    if options.json and options.levers:
        raise DataError("--json: the tables of --levers have no such form")
    names = options.model or bundle_names(options.bundles)
    if not names:
        raise DataError(f"{options.bundles}: no bundles in it")
    bundles = [open_emotion_bundle(name, options.bundles) for name in names]
    detector = load_detector(engine=options.engine, threads=options.threads)
    photographs = find_faces(detector, options.photos)
    for name in photographs.unreadable:
        print(f"left out {name}: no picture that can be read", file=sys.stderr)
    classifiers = [
        entry
        for bundle in bundles
        for entry in classifiers_of(bundle, options.precision, options.engine, threads=options.threads)
    ]
    reports = [score_wild(classifier, photographs, precision) for precision, classifier in classifiers]
    if options.json:
        print(json.dumps([report.as_json() for report in reports], indent=2))
    else:
        first = reports[0]
        print(f"{first.n_pictures} pictures, no face in {first.n_without_face}, {first.n_unreadable} unreadable\n")
        print(wild_table(reports))
        print(f"\n{called_table(reports)}")
        for report in reports:
            if report.n_left_out:
                print(f"\n{report.model} has no label for {report.n_left_out} of the faces")
    if options.levers:
        _pull_levers(options, detector, photographs, classifiers)


def _pull_levers(
    options: argparse.Namespace,
    detector: Detector,
    photographs: Photographs,
    classifiers: list[tuple[Precision, EmotionClassifier]],
) -> None:
    """Print the tables of the lever study: box jitter, and for each model spoiled crops and the prior of neutral."""
    from training.data import load_faces
    from training.detector_jitter import jitter_table, measure_jitter
    from training.levers import (
        lever_scores_of_faces,
        lever_scores_of_portraits,
        lever_table,
        prior_scores,
        prior_table,
    )
    from training.quantise import stratified_sample
    from training.wild import face_crops, known_faces, truth_of

    print("\nThe box of the same face in other versions of its picture, from the 5th to the 95th percentile:\n")
    print(jitter_table(measure_jitter(detector, photographs.portraits)))
    for precision, classifier in classifiers:
        portraits = known_faces(classifier, photographs)
        name = options.photos.name
        spoiled = {name: lever_scores_of_portraits(classifier, portraits)}
        probabilities = classifier.classify(face_crops(classifier, portraits))
        priors = {name: prior_scores(classifier, probabilities, truth_of(classifier, portraits))}
        if options.data:
            faces = load_faces(options.data, classifier.labels, classifier.input)
            if options.faces:
                faces = stratified_sample(faces, options.faces, seed=0)
            name = options.data.stem if options.data.stem != options.photos.name else f"{options.data.name}, crops"
            spoiled[name] = lever_scores_of_faces(classifier, faces)
            priors[name] = prior_scores(classifier, classifier.classify(list(faces.crops_u8)), faces.labels)
        print(f"\n{classifier.tag} {precision}, faces spoiled:\n\n{lever_table(spoiled)}")
        print(f"\n{classifier.tag} {precision}, with another prior for neutral:\n\n{prior_table(priors)}")
