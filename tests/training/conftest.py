"""One tiny finished run of the session, and the bundle that is published from it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest

from model_store.bundle import Bundle
from tests.training.faces import generated_faces, tiny_experiment
from training.config import Experiment
from training.data import FaceSet
from training.loop import train
from training.publish import Source, publish

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
