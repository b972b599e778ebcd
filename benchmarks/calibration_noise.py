"""How large an expected calibration error a model would show on so few faces if it were perfectly calibrated.

    python -m benchmarks.calibration_noise --validation validation.parquet [--model fer2013-resnet ...] [--draws 1000]

The probabilities are taken at their word: each face is called right with the probability that the model itself gives
to its first label, again and again, and the error of every draw is measured as that of the real labels is. What is
measured of the model, beside the mean and the 95th percentile of the draws, tells whether it can be told from nothing.
"""

from __future__ import annotations

import argparse
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import get_args

import numpy as np
from numpy.typing import NDArray

from handlers.classifier import EmotionClassifier, probabilities_of
from model_store.errors import ModelStoreError
from model_store.manifest import EmotionManifest, Tta
from training.data import load_faces
from training.errors import TrainingError
from training.evaluate import label_source, load_network, open_emotion_bundle
from training.metrics import expected_calibration_error


@dataclass(frozen=True)
class CalibrationNoise:
    """Expected calibration errors, 0 to 1: of the model, and of draws from its own probabilities."""

    measured: float
    mean: float
    percentile_95: float


def calibration_noise(
    probabilities: NDArray[np.floating], labels: NDArray[np.int64], n_draws: int, seed: int = 0
) -> CalibrationNoise:
    """probabilities: (N, K). labels: int64 (N,), indexes of the K. Raises ValueError when there is nothing to draw."""
    if n_draws < 1 or not len(labels):
        raise ValueError("no draw of no face")
    rng = np.random.default_rng(seed)
    confidence, said = probabilities.max(1), probabilities.argmax(1)
    another = (said + 1) % probabilities.shape[1]
    draws = [
        expected_calibration_error(probabilities, np.where(rng.random(len(said)) < confidence, said, another))
        for _ in range(n_draws)
    ]
    measured = expected_calibration_error(probabilities, labels)
    return CalibrationNoise(measured, float(np.mean(draws)), float(np.percentile(draws, 95)))


def main(arguments: list[str] | None = None) -> int:
    """Print the table. Returns the exit code: 0, or 1 after a line on stderr that names what is wrong."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--validation", type=Path, required=True, help="the faces that the models were calibrated on")
    parser.add_argument("--model", nargs="+", metavar="NAME[:VERSION]", default=["fer2013-resnet"])
    parser.add_argument("--draws", type=int, default=1000)
    options = parser.parse_args(arguments)
    if options.draws < 1:
        parser.error(f"--draws: {options.draws} is under 1")
    try:
        print("| model | passes | faces | ECE, % | perfectly calibrated: mean, % | 95th percentile, % |")
        print("|---|---|--:|--:|--:|--:|", flush=True)
        for model in options.model:
            _measure(model, options.validation, options.draws)
    except (TrainingError, ModelStoreError) as error:
        print(f"{type(error).__name__}: {error}", file=sys.stderr)
        return 1
    return 0


def _measure(model: str, path: Path, n_draws: int) -> None:
    bundle = open_emotion_bundle(model)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    faces = load_faces(path, manifest.labels, manifest.input, labels_from=label_source(manifest.labels, path))
    network = load_network(bundle, "torch", 1)
    for tta in get_args(Tta):
        logits = EmotionClassifier(manifest, network, tta).logits(list(faces.crops_u8))
        noise = calibration_noise(probabilities_of(logits, manifest.temperature), faces.labels, n_draws)
        print(
            f"| {manifest.tag} | {tta} | {len(faces)} | {noise.measured * 100:.2f} | {noise.mean * 100:.2f} "
            f"| {noise.percentile_95 * 100:.2f} |",
            flush=True,
        )


if __name__ == "__main__":
    sys.exit(main())
