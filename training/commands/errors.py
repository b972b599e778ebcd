"""`python -m training errors`: where a bundle is wrong, as Markdown tables."""

from __future__ import annotations

import argparse
from pathlib import Path

from model_store.bundle import BUNDLES_ROOT
from model_store.manifest import EmotionManifest
from training.commands.splits import add_split, load_split


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    errors = commands.add_parser("errors", help="where a bundle is wrong: confusions, blur, pose, votes, twins")
    errors.add_argument("--model", default="fer2013-resnet", metavar="NAME[:VERSION]")
    errors.add_argument("--bundles", type=Path, default=BUNDLES_ROOT, help="where the bundle lives")
    add_split(errors, "data", "labelled faces that it was not trained on")
    add_split(errors, "training", "the faces that it was trained on, to find the same pixels", required=False)
    errors.add_argument("--tta", choices=("none", "flip"), default="none")
    errors.add_argument("--threads", type=int, default=2)
    errors.set_defaults(run=_errors)


def _errors(options: argparse.Namespace) -> None:
    from handlers.classifier import EmotionClassifier, probabilities_of
    from handlers.pipeline import load_detector
    from training import error_analysis as analysis
    from training.evaluate import label_source, load_network, open_emotion_bundle, report

    bundle = open_emotion_bundle(options.model, options.bundles)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    source = label_source(manifest.labels, options.data)
    faces = load_split(options, "data", manifest.labels, manifest.input, labels_from=source)
    network = load_network(bundle, "torch", options.threads)
    logits = EmotionClassifier(manifest, network, options.tta).logits(list(faces.crops_u8))
    scores = report(manifest, logits, faces, options.data_usage or options.data.name, options.tta)
    answers = analysis.Answers(faces, probabilities_of(logits, manifest.temperature))

    evaluation = scores.evaluation
    print(
        f"{manifest.tag} on {evaluation.split}, {evaluation.n} faces, TTA {evaluation.tta}: {evaluation.accuracy:.2%}"
    )
    tables = [analysis.confusion_table(analysis.commonest_confusions(scores.confusion, manifest.labels))]
    parts = {
        "sharpness": analysis.by_sharpness(answers),
        "pose": analysis.by_pose(answers, load_detector()),
        "annotators of FER+": analysis.by_agreement(answers),
        "confidence": analysis.by_confidence(answers),
    }
    if options.training:
        source = label_source(manifest.labels, options.training)
        training = load_split(options, "training", manifest.labels, manifest.input, labels_from=source)
        parts["the same pixels"] = analysis.by_twin(answers, training)
    tables += [analysis.part_table(title, rows) for title, rows in parts.items() if rows]
    for table in tables:
        print(f"\n{table}")
