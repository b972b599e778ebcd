"""A configuration file from data to weights: its stages one after the other.

A stage starts from the best epoch of the last, from a bundle that it names, or from the mean of several before it.

A file without `[[stages]]` trains in the run's folder itself; one with stages in `stage-1`, `stage-2`, … inside it,
beside `stages.json`, the configurations of them all.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import TypeAdapter, ValidationError

from handlers.preprocess import resize_crop
from model_store.bundle import BUNDLES_ROOT, file_sha256
from model_store.manifest import InputSpec, explain_validation
from training.averaging import average_weights
from training.checkpoint import load_weights, save_checkpoint
from training.config import Experiment
from training.data import FaceSet
from training.devices import Place
from training.errors import CheckpointError
from training.evaluate import open_emotion_bundle
from training.finished_run import read_experiment
from training.history import BEST
from training.loop import check_place, check_sets, train
from training.schedules import stops_early
from training.targets import teacher_probabilities

STAGES = "stages.json"
_STAGES = TypeAdapter(tuple[Experiment, ...])


@dataclass(frozen=True)
class RecipeRun:
    """The folder of the last stage that began, and whether the last stage of all has reached its end."""

    folder: Path
    is_finished: bool


def run_recipe(
    stages: tuple[Experiment, ...],
    training_set: FaceSet,
    validation_set: FaceSet,
    run: Path,
    *,
    bundles: Path = BUNDLES_ROOT,
    device: str = "auto",
    stop_after: int | None = None,
    log: Callable[[str], None] = print,
) -> RecipeRun:
    """Train every stage, or go on where an earlier call was stopped.

    The sets hold the faces as `loading_spec` says, see `sized`. bundles: where the teachers are, and what the first
    stage starts from. stop_after: end early after so many epochs of the stage that is under way.
    Raises what `training.loop.train` raises, and DataError or BundleError for teachers that are not there. What can be
    told without training is told of every stage before the teachers are asked, which takes minutes.
    """
    folders = [run / f"stage-{index + 1}" for index in range(len(stages))] if len(stages) > 1 else [run]
    is_finished = False
    with Place.joined(device) as place:
        for experiment, its_own in zip(stages, folders, strict=True):
            check_sets(experiment, training_set, validation_set)
            check_place(experiment, its_own, place)
        if len(stages) > 1 and place.is_first:
            run.mkdir(parents=True, exist_ok=True)
            (run / STAGES).write_bytes(_STAGES.dump_json(stages, indent=2) + b"\n")
        for index, (experiment, folder) in enumerate(zip(stages, folders, strict=True)):
            if len(stages) > 1 and place.is_first:
                log(f"stage {index + 1} of {len(stages)}")
            faces, validation_faces = sized(training_set, experiment), sized(validation_set, experiment)
            history = train(
                experiment,
                faces,
                validation_faces,
                folder,
                teachers=_teachers(experiment, faces, bundles, run, place),
                init=_start(stages[: index + 1], folders, bundles, run, place),
                device=device,
                stop_after=stop_after,
                log=log,
            )
            losses = [record.validation_loss for record in history]
            is_finished = len(history) >= experiment.optim.epochs or stops_early(experiment, losses)
            if not is_finished:
                break  # the next stage starts from the best epoch of all
    return RecipeRun(folder, is_finished)


def loading_spec(stages: Sequence[Experiment]) -> InputSpec:
    """How a recipe's faces are read from their pictures: as large as its largest stage, in colour if any stage is."""
    largest = max((stage.input for stage in stages), key=lambda spec: spec.size_px)
    richest = max((stage.input for stage in stages), key=lambda spec: spec.channels)
    if richest.channels == largest.channels:
        return largest
    return richest.model_copy(update={"size_px": largest.size_px, "interpolation": largest.interpolation})


def read_stages(run: Path) -> tuple[Experiment, ...]:
    """The configurations of a run's stages, one of a run without. Raises CheckpointError for a folder without a run."""
    path = run / STAGES
    try:
        stages = _STAGES.validate_json(path.read_bytes())
    except FileNotFoundError:  # no stages, or a run of before this file, whose faces were read for its first stage
        first = run / "stage-1"
        return (read_experiment(first if first.is_dir() else run),)
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: {explain_validation(error)}") from None
    if not stages:
        raise CheckpointError(f"{path}: it lists no stages")
    return stages


def sized(faces: FaceSet, experiment: Experiment) -> FaceSet:
    """The faces at the size and with the channels of the experiment's network."""
    spec = experiment.input
    if faces.crops_u8.shape[1:] == (spec.size_px, spec.size_px, spec.channels):
        return faces
    return replace(faces, crops_u8=np.stack([resize_crop(crop, spec) for crop in faces.crops_u8]))


def _start(
    stages: Sequence[Experiment], folders: Sequence[Path], bundles: Path, run: Path, place: Place
) -> Path | None:
    """The weights that the last of these stages starts from; None for fresh or fetched ones."""
    wanted = stages[-1].network.init_stages
    if not wanted:
        named = _init_bundle(stages[-1], bundles)
        return named if named is not None or len(stages) == 1 else folders[len(stages) - 2] / BEST
    files = [folders[number - 1] / BEST if number else _init_bundle(stages[0], bundles) for number in wanted]
    present = [file for file in files if file is not None]  # the recipe was checked: 0 is a bundle
    return _kept(run, "mean", [file_sha256(file) for file in present], place, lambda: average_weights(present))


def _init_bundle(experiment: Experiment, bundles: Path) -> Path | None:
    name = experiment.network.init_bundle
    return None if name is None else open_emotion_bundle(name, bundles).weights


def _teachers(
    experiment: Experiment, faces: FaceSet, bundles: Path, run: Path, place: Place
) -> NDArray[np.float32] | None:
    """The teachers' probabilities: they take minutes, and a resumed run needs them again."""
    targets = experiment.targets
    if not targets.teachers:
        return None
    opened = [open_emotion_bundle(name, bundles) for name in targets.teachers]
    key = [faces.sha256, targets.temperature, *(file_sha256(bundle.weights) for bundle in opened)]

    def ask() -> dict[str, torch.Tensor]:
        probabilities = teacher_probabilities(opened, faces, targets.temperature, threads=torch.get_num_threads())
        return {"probabilities": torch.from_numpy(probabilities)}

    return load_weights(_kept(run, "teachers", key, place, ask))["probabilities"].numpy()


def _kept(run: Path, what: str, key: object, place: Place, make: Callable[[], dict[str, torch.Tensor]]) -> Path:
    """A file of tensors in the run's folder, made once, by the first process; another key has another file."""
    file = run / f"{what}-{hashlib.sha256(repr(key).encode()).hexdigest()[:16]}.safetensors"
    if place.is_first and not file.exists():
        tensors = make()
        run.mkdir(parents=True, exist_ok=True)
        save_checkpoint(file, tensors, {})
    place.wait_for_all()
    return file
