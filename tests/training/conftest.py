"""One tiny finished run of the session, and the bundle that is published from it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from handlers.classifier import EmotionClassifier
from model_store.bundle import Bundle, publish_bundle
from model_store.manifest import CARD_NAME, WEIGHTS_NAME, EmotionManifest
from tests.training.faces import generated_faces, tiny_experiment
from training.config import Experiment
from training.data import FaceSet
from training.evaluate import evaluate, load_network
from training.loop import train
from training.publish import Source, publish
from training.quantise import quantise

SOURCE = Source(command="python -m training train …", data="generated faces", split="generated validation")


@dataclass(frozen=True)
class FinishedRun:
    experiment: Experiment
    folder: Path
    training_set: FaceSet
    validation_set: FaceSet
    source: Source


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> FinishedRun:
    """Three epochs on generated faces, some validation labels wrong; not to be changed."""
    experiment = tiny_experiment(optim__epochs=3)
    training_set, validation_set = generated_faces(112), generated_faces(105, seed=1, wrong_labels=0.3)
    folder = tmp_path_factory.mktemp("run")
    train(experiment, training_set, validation_set, folder, device="cpu", log=lambda line: None)
    return FinishedRun(experiment, folder, training_set, validation_set, SOURCE)


@pytest.fixture(scope="session")
def published(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The bundle of the finished run, in a root of its own; not to be changed."""
    root = tmp_path_factory.mktemp("bundles")
    run = finished_run
    return publish(run.experiment, run.folder, run.validation_set, root, "1.0.0", run.source)


@pytest.fixture
def one_thread() -> Iterator[None]:
    """One CPU thread, as every process of several has: sums come out the same in all of them, and forks are safe."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@dataclass(frozen=True)
class Quantisable:
    """A bundle, the faces that it was trained on, and the faces of its evaluations."""

    bundle: Bundle
    training_set: FaceSet
    validation_set: FaceSet


@pytest.fixture(scope="session")
def quantisable(published: Bundle, finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Quantisable:
    """The published bundle, evaluated on faces that it is sure of: no processor's rounding calls one another class."""
    manifest = published.manifest
    assert isinstance(manifest, EmotionManifest)
    network = load_network(published, "torch", 2)
    faces = generated_faces(210, seed=2, wrong_labels=0.3)
    sure = np.ones(len(faces), bool)
    for scores in manifest.evaluations:
        logits = np.sort(EmotionClassifier(manifest, network, scores.tta).logits(list(faces.crops_u8)), 1)
        sure &= logits[:, -1] - logits[:, -2] > 0.1  # quantisation moves them by 0.01
    chosen = np.flatnonzero(sure)
    names = tuple(faces.names[index] for index in chosen)
    faces = replace(faces, crops_u8=faces.crops_u8[chosen], labels=faces.labels[chosen], names=names)
    evaluations = tuple(
        evaluate(manifest, network, faces, scores.split, scores.tta).evaluation for scores in manifest.evaluations
    )
    bundle = publish_bundle(
        tmp_path_factory.mktemp("quantisable"),
        manifest.model_copy(update={"evaluations": evaluations}),
        {WEIGHTS_NAME: published.weights, CARD_NAME: b"# Tiny faces\n"},
    )
    return Quantisable(bundle, finished_run.training_set, faces)


@pytest.fixture(scope="session")
def quantised(quantisable: Quantisable, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """That bundle as version 1.1.0 with an int8 network, in a root of its own; not to be changed."""
    model, root = quantisable, tmp_path_factory.mktemp("quantised")
    return quantise(model.bundle, model.training_set, model.validation_set, root, "1.1.0", "quantise …", 50)
