"""How far FER2013's labels can be known at all: what annotators, a network, and both together say of PublicTest.

    python -m benchmarks.label_noise --data train.parquet --validation validation.parquet [--model fer2013-resnet]

Nobody knows the ceiling. This bounds it from below: the label is predicted from the votes of FER+'s ten annotators (a
softmax regression fitted on Training), from the network, and from both (a second regression, cross-validated on
PublicTest in five parts). Who sees the picture and ten people's opinions of it should do better than either. "both" is
a little optimistic: the network's epoch was chosen on PublicTest, and the second regression learns its weights there.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handlers.classifier import EmotionClassifier, probabilities_of
from model_store.errors import ModelStoreError
from model_store.manifest import EmotionManifest
from training.data import load_faces
from training.errors import DataError, TrainingError
from training.evaluate import load_network, open_emotion_bundle
from training.votes import softmax_regression, vote_features

_PARTS = 5


def main(arguments: list[str] | None = None) -> int:
    """Print the table. Returns the exit code: 0, or 1 after a line on stderr that names what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True, help="Training, with FER+ votes")
    parser.add_argument("--validation", type=Path, required=True, help="PublicTest, with FER+ votes")
    parser.add_argument("--model", default="fer2013-resnet")
    options = parser.parse_args(arguments)
    try:
        _measure(options)
    except (TrainingError, ModelStoreError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(options: argparse.Namespace) -> None:
    bundle = open_emotion_bundle(options.model)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    train, test = (load_faces(path, manifest.labels, manifest.input) for path in (options.data, options.validation))
    if train.votes is None or test.votes is None:
        raise DataError("both need FER+'s votes: Parquet files with columns ferplus_*, or fer2013new.csv")
    n_classes, truth = len(manifest.labels), test.labels

    of_votes = softmax_regression(vote_features(train.votes), train.labels, n_classes)(vote_features(test.votes))
    classifier = EmotionClassifier(manifest, load_network(bundle, "torch", 1), "flip")
    of_network = probabilities_of(classifier.logits(list(test.crops_u8)), manifest.temperature)
    both = np.log(np.concatenate([of_votes, of_network], 1) + 1e-4).astype(np.float64)
    of_both = np.empty_like(of_votes)
    part = np.random.default_rng(0).integers(0, _PARTS, len(truth))
    for index in range(_PARTS):
        held_out = part == index
        fitted = softmax_regression(both[~held_out], truth[~held_out], n_classes, 1e-3)
        of_both[held_out] = fitted(both[held_out])
    print(f"{'what is known':44}{'accuracy':>10}{'log loss':>10}")
    for name, probabilities in (
        ("the votes", of_votes),
        (f"the picture, as {manifest.tag} with flip", of_network),
        ("both", of_both),
    ):
        print(f"{name:44}{_accuracy(probabilities, truth):10.2%}{_log_loss(probabilities, truth):10.4f}")


def _accuracy(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    return float((probabilities.argmax(1) == truth).mean())


def _log_loss(probabilities: NDArray[np.float32], truth: NDArray[np.int64]) -> float:
    return float(-np.log(probabilities[np.arange(len(truth)), truth]).mean())


if __name__ == "__main__":
    sys.exit(main())
