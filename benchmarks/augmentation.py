"""What each augmentation gives when it is trained with: one network goes on from the same weights with each in turn.

    python -m benchmarks.augmentation --config training/configs/fer2013-small.toml --model fer2013-small \
        --data train.parquet --validation validation.parquet --photos photos --out runs/augmentation

Every run starts from the bundle's weights, and differs from the others in `[augment]` alone: mirror images, and one of
the levers below. It is taught by the labels. Then it is scored on the validation faces as they are and spoiled (see
docs/in-the-wild.md), and by the whole chain on photographs. A run that was stopped goes on; a finished one is scored
again.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from handlers.classifier import EmotionClassifier
from handlers.engines.torch_engine import TorchEngine
from handlers.errors import HandlerError
from handlers.pipeline import load_detector
from model_store.bundle import BUNDLES_ROOT, Bundle
from model_store.errors import ModelStoreError
from model_store.manifest import EmotionManifest
from training.commands.threads import keep_freed_memory, use_threads
from training.config import Experiment, load_recipe
from training.data import FaceSet, load_faces
from training.errors import TrainingError
from training.evaluate import open_emotion_bundle
from training.finished_run import load_best
from training.levers import lever_scores_of_faces
from training.loop import train
from training.quantise import stratified_sample
from training.wild import Photographs, find_faces, score_wild

LEVERS: dict[str, dict[str, Any]] = {
    "mirror images alone": {},
    "crop jitter": {"rotate_deg": 8, "scale": [0.88, 1.12], "shift": 0.06},
    "light and contrast": {"brightness": 0.2, "contrast": 0.4},
    "low resolution": {"low_resolution": 0.4, "low_resolution_px": 16},
    "blur": {"blur": 0.4},
    "JPEG": {"jpeg": 0.4},
}
LEVERS["all of them"] = {key: value for lever in LEVERS.values() for key, value in lever.items()}

SPOILED = (("blur, sigma px", "1.5"), ("seen at px", "16"), ("JPEG quality", "15"), ("brighter by", "-80"))
"""The levers of `training.levers` that have columns of their own, with their strengths."""


@dataclass(frozen=True)
class Row:
    """What a network scores that was trained with one lever.

    spoiled: accuracy with each of `SPOILED`. wrong_box: mean accuracy over the wrong boxes of `training.levers`.
    photos, neutral_recall: of the whole chain on photographs.
    """

    lever: str
    accuracy: float
    spoiled: tuple[float, ...]
    wrong_box: float
    photos: float
    neutral_recall: float


def main(arguments: list[str] | None = None) -> int:
    """Print the table. Returns the exit code: 0, or 1 after a line on stderr that names what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, required=True, help="the recipe whose network and input these are")
    parser.add_argument(
        "--model", required=True, metavar="NAME[:VERSION]", help="the bundle that every run starts from"
    )
    parser.add_argument("--bundles", type=Path, default=BUNDLES_ROOT)
    parser.add_argument("--data", type=Path, required=True, help="training faces")
    parser.add_argument("--validation", type=Path, required=True)
    parser.add_argument("--photos", type=Path, required=True, help="<emotion>/<picture> folders")
    parser.add_argument("--out", type=Path, required=True, help="the runs' folder")
    parser.add_argument("--epochs", type=int, default=2)
    parser.add_argument("--max-lr", type=float, default=0.02)
    parser.add_argument("--precision", choices=("float32", "bfloat16"), default="float32", help="of the training")
    parser.add_argument("--faces", type=int, default=1200, help="validation faces to spoil, drawn by class")
    parser.add_argument("--threads", type=int, default=1)
    options = parser.parse_args(arguments)
    try:
        use_threads(options)
        keep_freed_memory()
        _measure(options)
    except (TrainingError, ModelStoreError, HandlerError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(options: argparse.Namespace) -> None:
    bundle = open_emotion_bundle(options.model, options.bundles)
    recipe = load_recipe(options.config)[-1]
    training_set, validation_set = (
        load_faces(path, recipe.labels, recipe.input) for path in (options.data, options.validation)
    )
    photographs = find_faces(load_detector(threads=options.threads), options.photos)
    rows = []
    for lever in LEVERS:
        experiment = with_lever(recipe, lever, options.epochs, options.max_lr, options.precision)
        run = options.out / lever.replace(" ", "-")
        train(experiment, training_set, validation_set, run, init=bundle.weights, device="cpu")
        rows.append(score_run(lever, experiment, run, bundle, validation_set, photographs, options.faces))
    print(f"{bundle.manifest.tag}, {options.epochs} epochs more with each\n\n{as_markdown(rows)}")


def with_lever(recipe: Experiment, lever: str, epochs: int, max_lr: float, precision: str = "float32") -> Experiment:
    """The recipe's network and input, taught by the labels for some epochs with mirror images and one lever."""
    values = recipe.model_dump(mode="json", include={"name", "seed", "labels", "network", "input", "face_crop"})
    values["network"] |= {"init_bundle": None, "init_stages": [], "pretrained": False}
    optim = {
        "epochs": epochs,
        "max_lr": max_lr,
        "batch_size": recipe.optim.batch_size,
        "optimizer": "sgd",
        "precision": precision,
    }
    return Experiment.model_validate(
        {**values, "augment": {"flip": 0.5, **LEVERS[lever]}, "optim": optim, "schedule": {"kind": "one-cycle"}},
        strict=False,
    )


def score_run(
    lever: str,
    experiment: Experiment,
    run: Path,
    bundle: Bundle,
    validation_set: FaceSet,
    photographs: Photographs,
    n_spoiled: int,
) -> Row:
    """Score the best epoch of a run; `n_spoiled` validation faces are spoiled."""
    network, _, _ = load_best(run, experiment)
    assert isinstance(bundle.manifest, EmotionManifest)
    classifier = EmotionClassifier(bundle.manifest, TorchEngine(torch.get_num_threads()).wrap(network))
    called = classifier.classify(list(validation_set.crops_u8)).argmax(1)
    sample = stratified_sample(validation_set, min(n_spoiled, len(validation_set)), seed=0)
    scores = lever_scores_of_faces(classifier, sample)
    found = {(score.lever, score.strength): score.accuracy for score in scores}
    wrong_boxes = [score.accuracy for score in scores if score.lever.startswith("box ")]
    wild = score_wild(classifier, photographs)
    return Row(
        lever,
        float((called == validation_set.labels).mean()),
        tuple(found[key] for key in SPOILED),
        sum(wrong_boxes) / len(wrong_boxes),
        wild.accuracy,
        wild.recall.get("neutral", float("nan")),
    )


def as_markdown(rows: list[Row]) -> str:
    """A line a lever."""
    spoiled = [f"{lever} {strength}" for lever, strength in SPOILED]
    heads = ["trained with", "validation", *spoiled, "wrong boxes", "photos", "photos: neutral recall"]
    lines = ["| " + " | ".join(heads) + " |", "|---" + "|--:" * (len(heads) - 1) + "|"]
    for row in rows:
        values = (row.accuracy, *row.spoiled, row.wrong_box, row.photos, row.neutral_recall)
        lines.append(f"| {row.lever} | " + " | ".join(f"{value:.1%}" for value in values) + " |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
