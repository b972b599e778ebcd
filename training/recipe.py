"""A configuration file from data to weights: its stages one after the other, each from the best epoch of the last.

A file without `[[stages]]` trains in the run's folder itself; one with stages in `stage-1`, `stage-2`, … inside it.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from handlers.preprocess import resize_crop
from model_store.bundle import BUNDLES_ROOT, file_sha256
from training.checkpoint import load_weights, save_checkpoint
from training.config import Experiment
from training.data import FaceSet
from training.devices import Place
from training.evaluate import open_emotion_bundle
from training.loop import BEST, train
from training.schedules import stops_early
from training.targets import teacher_probabilities


def run_recipe(
    stages: tuple[Experiment, ...],
    training_set: FaceSet,
    validation_set: FaceSet,
    run: Path,
    *,
    init: Path | None = None,
    bundles: Path = BUNDLES_ROOT,
    device: str = "auto",
    stop_after: int | None = None,
    log: Callable[[str], None] = print,
) -> Path:
    """Train every stage, or go on where an earlier call was stopped. Returns the folder of the last stage that began.

    The sets hold the faces at the first stage's size, see `sized`. init: a checkpoint that the first stage starts from.
    bundles: where the teachers are. stop_after: end early after so many epochs of the stage that is under way.
    Raises what `training.loop.train` raises, and DataError or BundleError for teachers that are not there.
    """
    folder = run
    with Place.joined(device) as place:
        for index, experiment in enumerate(stages):
            if len(stages) > 1:
                folder = run / f"stage-{index + 1}"
                if place.is_first:
                    log(f"stage {index + 1} of {len(stages)}")
            faces, validation_faces = sized(training_set, experiment), sized(validation_set, experiment)
            history = train(
                experiment,
                faces,
                validation_faces,
                folder,
                teachers=_teachers(experiment, faces, bundles, run, place),
                init=init or _init_bundle(experiment, bundles),
                device=device,
                stop_after=stop_after,
                log=log,
            )
            losses = [record.validation_loss for record in history]
            if len(history) < experiment.optim.epochs and not stops_early(experiment, losses):
                break  # the next stage starts from the best epoch of all
            init = folder / BEST
    return folder


def sized(faces: FaceSet, experiment: Experiment) -> FaceSet:
    """The faces at the size and with the channels of the experiment's network."""
    spec = experiment.input
    if faces.crops_u8.shape[1:] == (spec.size_px, spec.size_px, spec.channels):
        return faces
    return replace(faces, crops_u8=np.stack([resize_crop(crop, spec) for crop in faces.crops_u8]))


def _init_bundle(experiment: Experiment, bundles: Path) -> Path | None:
    name = experiment.network.init_bundle
    return None if name is None else open_emotion_bundle(name, bundles).weights


def _teachers(
    experiment: Experiment, faces: FaceSet, bundles: Path, run: Path, place: Place
) -> NDArray[np.float32] | None:
    """The teachers' probabilities, kept in the run's folder: they take minutes, and a resumed run needs them again.

    The file's name says whose they are: other faces, weights or another temperature have another file.
    """
    targets = experiment.targets
    if not targets.teachers:
        return None
    opened = [open_emotion_bundle(name, bundles) for name in targets.teachers]
    key = [faces.sha256, targets.temperature, *(file_sha256(bundle.weights) for bundle in opened)]
    file = run / f"teachers-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.safetensors"
    if place.is_first and not file.exists():
        probabilities = teacher_probabilities(opened, faces, targets.temperature, threads=torch.get_num_threads())
        run.mkdir(parents=True, exist_ok=True)
        save_checkpoint(file, {"probabilities": torch.from_numpy(probabilities)}, {})
    place.wait_for_all()
    return load_weights(file)["probabilities"].numpy()
