"""`python -m training evaluate`: a bundle's scores on a split, as a table or JSON."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path

from handlers.engines import ENGINE_NAMES
from model_store.bundle import BUNDLES_ROOT
from model_store.manifest import EmotionManifest
from training.commands.splits import add_split, load_split


def add_parser(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add the subparser."""
    evaluate = commands.add_parser("evaluate", help="score a bundle")
    evaluate.add_argument("--model", required=True, metavar="NAME[:VERSION]")
    evaluate.add_argument("--bundles", type=Path, default=BUNDLES_ROOT, help="where the bundle lives")
    add_split(evaluate, "data", "labelled faces")
    evaluate.add_argument("--tta", choices=("none", "flip"), default="none")
    evaluate.add_argument("--precision", choices=("fp32", "int8"), default="fp32")
    evaluate.add_argument("--engine", choices=ENGINE_NAMES, help="torch unless given, onnxruntime for int8")
    evaluate.add_argument("--threads", type=int, default=2)
    evaluate.add_argument("--json", action="store_true", help="print JSON instead of tables")
    evaluate.set_defaults(run=_evaluate)


def _evaluate(options: argparse.Namespace) -> None:
    from training.evaluate import evaluate, label_source, load_network, open_emotion_bundle

    bundle = open_emotion_bundle(options.model, options.bundles)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    labels_from = label_source(manifest.labels, options.data)
    faces = load_split(options, "data", manifest.labels, manifest.input, labels_from=labels_from)
    engine = options.engine or ("torch" if options.precision == "fp32" else "onnxruntime")
    network = load_network(bundle, engine, options.threads, options.precision)
    report = evaluate(manifest, network, faces, options.data_usage or options.data.name, options.tta)
    report = replace(report, precision=options.precision)
    print(json.dumps(report.as_json(), indent=2) if options.json else report.as_text())
