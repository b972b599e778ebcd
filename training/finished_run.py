"""Reading what a run left in its folder: configuration, best weights as they are stored, history, scores."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from safetensors.torch import save
from torch import nn

from handlers.classifier import probabilities_of
from handlers.engines import Network
from handlers.engines.torch_engine import TorchEngine
from handlers.preprocess import normalise
from model_store.manifest import Evaluation, Fraction, ModelName, Record, Sha256, explain_validation
from training.checkpoint import load_checkpoint
from training.config import Experiment
from training.data import FaceSet
from training.errors import CheckpointError
from training.ferplus import LabelsFrom
from training.history import BEST, EXPERIMENT, HISTORY
from training.int8_network import evenly_spaced
from training.layouts import FER2013_USAGES
from training.learner import build_network

METRICS = "metrics.json"
MAX_ROUNDING = 0.02
"""By how much a probability may move when kernels are rounded to float16; where one moves more they stay float32."""

_ROUNDED_FACES = 512
_CURVES = ("train_loss", "validation_loss", "train_accuracy", "validation_accuracy", "learning_rate")


class RunMetrics(Record):
    """`metrics.json`. The temperature is fitted without test-time augmentation and used with and without it.

    `evaluations` are without test-time augmentation, then with the mirrored face; the confusion, the areas under the
    ROC curves and the likelihoods (nats a face) are without. `ms` is a median on one thread of the machine that wrote
    the file. `class_counts` are the training set's, in the order of `labels`.
    """

    name: ModelName
    config_sha256: Sha256
    data_sha256: Sha256
    epoch: Annotated[int, Field(gt=0)]
    epochs: Annotated[int, Field(gt=0)]
    labels: tuple[str, ...]
    class_counts: tuple[int, ...]
    temperature: Annotated[float, Field(gt=0)]
    nll_uncalibrated: Annotated[float, Field(ge=0)]
    nll: Annotated[float, Field(ge=0)]
    evaluations: Annotated[tuple[Evaluation, ...], Field(min_length=1)]
    worst_class: str
    auc: dict[str, Fraction]
    macro_auc: Fraction | None
    confusion: tuple[tuple[int, ...], ...]
    parameters: int
    macs: int
    size_bytes: int
    ms: float


def last_stage(run: Path) -> Path:
    """The folder with a run's final weights: its last stage's, or the run's own where it has no stages.

    Raises CheckpointError when there are no weights yet.
    """
    numbered = {name: path for path in run.glob("stage-*/") if (name := path.name.removeprefix("stage-")).isdigit()}
    stages = [numbered[name] for name in sorted(numbered, key=int, reverse=True)]
    for folder in (*stages, run):
        if (folder / BEST).exists():
            return folder
    raise CheckpointError(f"{run}: no {BEST} in it")


def read_experiment(folder: Path) -> Experiment:
    """The configuration that a run's folder keeps. Raises CheckpointError when there is none, or a broken one."""
    path = folder / EXPERIMENT
    try:
        return Experiment.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: {explain_validation(error)}") from None


def read_metrics(folder: Path) -> RunMetrics:
    """The `metrics.json` of a run's folder. Raises CheckpointError when there is none, or a broken one."""
    path = folder / METRICS
    try:
        return RunMetrics.model_validate_json(path.read_bytes())
    except OSError as error:
        raise CheckpointError(f"{path}: {error.strerror}; `python -m training report` writes it") from None
    except ValidationError as error:
        raise CheckpointError(f"{path}: {explain_validation(error)}") from None


def as_stored(
    tensors: dict[str, torch.Tensor], experiment: Experiment, faces: FaceSet
) -> tuple[dict[str, torch.Tensor], str]:
    """The tensors as a bundle stores them, and a note on it where kernels stay in float32.

    Kernels are stored as float16, half the bytes, unless that moves a probability of some of the faces by more than
    `MAX_ROUNDING`.
    """
    halved = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    crops_u8 = faces.crops_u8[evenly_spaced(len(faces), _ROUNDED_FACES)]
    exact, rounded = (_probabilities(experiment, weights, crops_u8) for weights in (tensors, halved))
    moved = float(np.abs(exact - rounded).max())
    if moved <= MAX_ROUNDING:
        return halved, ""
    return tensors, f", kernels stored as float32 (as float16 they move a probability by {moved:.2g})"


def _probabilities(
    experiment: Experiment, tensors: dict[str, torch.Tensor], crops_u8: NDArray[np.uint8]
) -> NDArray[np.float32]:
    network = build_network(experiment)
    network.load_state_dict(tensors)
    run: Network = TorchEngine(torch.get_num_threads()).wrap(network)
    return probabilities_of(run(normalise(crops_u8, experiment.input))[0], 1.0)


def load_best(
    folder: Path, experiment: Experiment, faces: FaceSet | None = None
) -> tuple[nn.Module, int, dict[str, object]]:
    """The best epoch's network, in evaluation mode on the CPU; its bytes; the checkpoint's state.

    faces: the validation faces, for weights as they are published, see `as_stored`; as they were trained unless given.

    Raises CheckpointError when the folder has none, or one of another configuration.
    """
    tensors, state = load_checkpoint(folder / BEST)
    if state.get("config_sha256") != experiment.sha256():
        raise CheckpointError(f"{folder / BEST}: it is of another configuration")
    if not isinstance(state.get("history"), list):
        raise CheckpointError(f"{folder / BEST}: it has no history")
    stored = tensors if faces is None else as_stored(tensors, experiment, faces)[0]
    network = build_network(experiment)
    network.load_state_dict(stored)
    network.eval().to(memory_format=torch.channels_last)
    return network, len(save(stored)), state


def read_curves(folder: Path) -> tuple[dict[str, NDArray[np.float64]], list[int]]:
    """The curves of all stages up to the folder's, end to end, and how many epochs each stage has.

    Raises CheckpointError when a stage has no history.
    """
    folders = [folder]
    prefix, _, number = folder.name.rpartition("-")
    if prefix == "stage" and number.isdigit():
        folders = [folder.with_name(f"stage-{index}") for index in range(1, int(number) + 1)]
    stages, curves = [], {key: list[float]() for key in _CURVES}
    for path in (one / HISTORY for one in folders):
        try:
            with path.open(newline="") as file:
                rows = list(csv.DictReader(file))
            for row in rows:
                for key in _CURVES:
                    curves[key].append(float(row[key]))
        except (OSError, KeyError, ValueError) as error:
            raise CheckpointError(f"{path}: no history of a run ({error})") from None
        stages.append(len(rows))
    return {key: np.array(values) for key, values in curves.items()}, stages


def split_name(faces: FaceSet, labels_from: LabelsFrom) -> str | None:
    """`FER2013 PublicTest`, say, for faces that all have its names; `, FER+ majority` where FER+'s votes label them.

    So runs and bundles that were scored on the same faces say so in the same words. None for other faces.
    """
    for usage in FER2013_USAGES:
        if all(name is not None and name.startswith(f"{usage}_") for name in faces.names):
            return f"FER2013 {usage}" + ("" if labels_from == "label" else ", FER+ majority")
    return None
