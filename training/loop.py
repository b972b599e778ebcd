"""The training loop: seeded, resumable at every epoch, averaged weights; on a CPU, a GPU, or several by torchrun.

Reads top to bottom: `train` sets up, `_run_epoch` learns, `_validate` scores, the run folder keeps everything:

    experiment.json   the checked configuration        last.safetensors   everything needed to go on
    history.csv       a line an epoch                  best.safetensors   averaged weights of the best epoch
    tensorboard/      the same for TensorBoard

An epoch's random draws come from (seed, epoch) alone, so a resumed run makes the same ones as an undisturbed run.
"""

from __future__ import annotations

import csv
import json
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from handlers.classifier import probabilities_of
from handlers.preprocess import normalise
from model_store.bundle import file_sha256
from model_store.manifest import Architecture
from model_store.networks import build_classifier
from training.augment import augment, mix
from training.calibrate import negative_log_likelihood
from training.checkpoint import load_checkpoint, load_weights, save_checkpoint
from training.config import Experiment
from training.data import FaceSet
from training.devices import Place
from training.errors import CheckpointError, DataError
from training.freezing import apply_freeze
from training.losses import class_counts, classification_loss, loss_weights
from training.metrics import score
from training.sampling import epoch_order
from training.schedules import learning_rate_at, stops_early
from training.targets import training_targets

LAST, BEST, HISTORY, EXPERIMENT = "last.safetensors", "best.safetensors", "history.csv", "experiment.json"
_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


@dataclass(frozen=True)
class EpochRecord:
    """One line of `history.csv`. Validation scores are of the averaged weights, without test-time augmentation.

    `train_accuracy` is over the augmented faces as the network met them, against the likeliest class of each target.
    """

    epoch: int
    learning_rate: float
    train_loss: float
    train_accuracy: float
    validation_loss: float
    validation_accuracy: float
    validation_macro_f1: float
    validation_ece: float
    seconds: float


@dataclass
class _Learner:
    """What changes while a run learns."""

    network: nn.Module
    average: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler


def train(
    experiment: Experiment,
    training_set: FaceSet,
    validation_set: FaceSet,
    run: Path,
    *,
    teachers: NDArray[np.float32] | None = None,
    init: Path | None = None,
    device: str = "auto",
    stop_after: int | None = None,
    log: Callable[[str], None] = print,
) -> list[EpochRecord]:
    """Train until the experiment's last epoch, from the run folder's last checkpoint if there is one.

    The epoch with the best validation accuracy is kept in `best.safetensors`.
    teachers: float32 (N, K), see `training.targets.teacher_probabilities`; for an experiment with teachers.
    init: a checkpoint (`best.safetensors` of another run, say) or a bundle's weights that a fresh run starts from.
    device: see `training.devices.Place`. stop_after: end early after this epoch count (to be resumed).
    Raises CheckpointError when the folder holds a run of another configuration or other data, DataError when the sets
    do not fit the experiment, ConfigError for a device that is not there or frozen modules that the network lacks.
    """
    for faces in (training_set, validation_set):
        if faces.label_names != experiment.labels:
            raise DataError(f"labels {faces.label_names}, the experiment has {experiment.labels}")
    if len(training_set) < experiment.optim.batch_size:
        raise DataError(f"{len(training_set)} faces are less than one batch of {experiment.optim.batch_size}")
    targets = torch.from_numpy(training_targets(training_set, experiment.targets, teachers))

    place = Place.find(device)
    torch.manual_seed(experiment.seed)
    network, average = (
        build_network(experiment, pretrained=index == 0 and init is None).to(
            place.device, memory_format=torch.channels_last
        )  # type: ignore[call-overload]
        for index in range(2)
    )
    if init is not None:
        _load_init(network, init, experiment.network.classifier)
    average.load_state_dict(network.state_dict())
    apply_freeze(network, experiment.freeze, 0)  # refuses unknown modules before anything is written
    learner = _Learner(
        network,
        average,
        _optimizer(network, experiment),
        torch.amp.GradScaler(place.device.type, enabled=experiment.optim.precision == "float16"),
    )
    identity: dict[str, object] = {
        "config_sha256": experiment.sha256(),
        "data_sha256": training_set.sha256,
        "votes_sha256": training_set.votes_sha256 if experiment.targets.votes else None,
        "validation_sha256": validation_set.sha256,
        "init_sha256": None if init is None else file_sha256(init),
        "world_size": place.world_size,
    }

    run.mkdir(parents=True, exist_ok=True)
    history: list[EpochRecord] = []
    if (run / LAST).exists():
        history = _resume(run / LAST, identity, learner)
        log(f"resumed after epoch {len(history)} of {experiment.optim.epochs}")
    if place.is_first:
        (run / EXPERIMENT).write_text(experiment.model_dump_json(indent=2) + "\n")
    counts = class_counts(torch.from_numpy(training_set.labels), len(experiment.labels))
    weights = loss_weights(experiment.loss, counts)
    about = {
        **identity,
        "experiment": json.loads(experiment.model_dump_json()),
        "class_counts": counts.tolist(),
        "class_weights": None if weights is None else [round(weight, 6) for weight in weights.tolist()],
    }
    best = max((record.validation_accuracy for record in history), default=-1.0)

    for epoch in range(len(history), experiment.optim.epochs):
        losses = [record.validation_loss for record in history]
        if (stop_after is not None and epoch >= stop_after) or stops_early(experiment, losses):
            break
        started = time.monotonic()
        learning_rate, train_loss, train_accuracy = _run_epoch(
            experiment, training_set, targets, weights, learner, epoch, losses, place
        )
        scores, validation_loss = _validate(average, validation_set, experiment)
        record = EpochRecord(
            epoch + 1,
            learning_rate,
            train_loss,
            train_accuracy,
            validation_loss,
            scores.accuracy,
            scores.macro_f1,
            scores.ece,
            round(time.monotonic() - started, 2),
        )
        history.append(record)
        state = {**about, "history": [asdict(entry) for entry in history], "scaler": learner.scaler.state_dict()}
        is_best, best = scores.accuracy > best, max(best, scores.accuracy)
        if place.is_first:
            if is_best:
                save_checkpoint(run / BEST, average.state_dict(), state)
            save_checkpoint(run / LAST, _everything(learner), state)
            _write_history(run / HISTORY, history)
            _write_tensorboard(run / "tensorboard", record)
        place.wait_for_all()
        log(
            f"epoch {epoch + 1:3d}/{experiment.optim.epochs}  loss {train_loss:.4f}  validation {validation_loss:.4f}  "
            f"accuracy {scores.accuracy:.4f}  macro F1 {scores.macro_f1:.4f}  best {best:.4f}  {record.seconds:.0f} s"
        )
    return history


def build_network(experiment: Experiment, *, pretrained: bool = False) -> nn.Module:
    """The experiment's network, with fresh weights from torch's global generator.

    pretrained: let an experiment that asks for pretrained weights fetch them.
    Raises PretrainedWeightsError when they cannot be fetched.
    """
    return build_classifier(
        architecture_of(experiment),
        len(experiment.labels),
        experiment.input.channels,
        pretrained=pretrained and experiment.network.pretrained,
    )


def architecture_of(experiment: Experiment) -> Architecture:
    """The experiment's network as the manifest records it."""
    network = experiment.network
    return Architecture(family=network.family, options=dict(network.options), classifier=network.classifier)


@torch.no_grad()
def predict_logits(network: nn.Module, faces: FaceSet, experiment: Experiment) -> NDArray[np.float32]:
    """Logits float32 (N, K) in evaluation mode and full precision."""
    device = next(network.parameters()).device
    network.eval()
    batches = []
    for start in range(0, len(faces), 256):
        inputs = torch.from_numpy(normalise(faces.crops_u8[start : start + 256], experiment.input))
        batches.append(network(inputs.to(device, memory_format=torch.channels_last)).float().cpu().numpy())
    return np.concatenate(batches)


def _validate(network: nn.Module, faces: FaceSet, experiment: Experiment) -> tuple[Any, float]:
    logits = predict_logits(network, faces, experiment)
    scores = score(probabilities_of(logits, temperature=1.0), faces.labels, experiment.labels)
    return scores, negative_log_likelihood(logits, faces.labels, 1.0)


def _load_init(network: nn.Module, init: Path, classifier: str) -> None:
    """Take over a checkpoint's or a bundle's weights; a head for another number of labels stays fresh."""
    tensors = load_weights(init)
    own = network.state_dict()
    head = classifier.rpartition(".")[0]
    if classifier in tensors and tensors[classifier].shape != own[classifier].shape:
        tensors |= {name: own[name] for name in (f"{head}.weight", f"{head}.bias") if name in own}
    try:
        network.load_state_dict(tensors)
    except RuntimeError as error:
        raise CheckpointError(f"{init}: not the weights of this network ({error})") from None


def _optimizer(network: nn.Module, experiment: Experiment) -> torch.optim.Optimizer:
    """Weight decay on kernels and the head only: pulling norms and biases to zero costs accuracy.

    Four groups, head and backbone with and without decay; `lr_factor` scales the schedule for a group.
    """
    optim = experiment.optim
    head = experiment.network.classifier.rpartition(".")[0]
    groups = []
    for in_head in (True, False):
        for decayed in (True, False):
            chosen = [
                parameter
                for name, parameter in network.named_parameters()
                if name.startswith(f"{head}.") == in_head and (parameter.ndim > 1) == decayed
            ]
            if chosen:
                factor = 1.0 if in_head else optim.backbone_lr_factor
                decay = optim.weight_decay if decayed else 0.0
                groups.append({"params": chosen, "weight_decay": decay, "lr": optim.max_lr, "lr_factor": factor})
    if optim.optimizer == "sgd":
        return torch.optim.SGD(groups, momentum=optim.momentum, nesterov=optim.momentum > 0)
    if optim.optimizer == "adam":
        return torch.optim.Adam(groups)
    return torch.optim.AdamW(groups)


def _run_epoch(
    experiment: Experiment,
    faces: FaceSet,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    learner: _Learner,
    epoch: int,
    validation_losses: Sequence[float],
    place: Place,
) -> tuple[float, float, float]:
    """One pass over the training set. Returns the last learning rate, the mean loss and the share of hits."""
    optim, network = experiment.optim, learner.network
    generator = torch.Generator().manual_seed(experiment.seed * 100_003 + epoch)
    torch.manual_seed(experiment.seed * 100_003 + epoch)  # dropout draws from the global generator
    n_batches = len(faces) // optim.batch_size
    order = epoch_order(torch.from_numpy(faces.labels), experiment.loss, generator)[: n_batches * optim.batch_size]
    steps_per_epoch = -(-n_batches // optim.accumulate)
    weights = None if weights is None else weights.to(place.device)
    network.train()
    apply_freeze(network, experiment.freeze, epoch)
    model = DistributedDataParallel(network) if place.world_size > 1 else network
    total_loss, n_hits, learning_rate = 0.0, 0.0, 0.0
    learner.optimizer.zero_grad(set_to_none=True)
    batches = tqdm(torch.split(order, optim.batch_size), leave=False, disable=None if place.is_first else True)
    for index, rows in enumerate(batches):
        step = epoch * steps_per_epoch + index // optim.accumulate
        learning_rate = learning_rate_at(experiment, step, steps_per_epoch, validation_losses)
        for group in learner.optimizer.param_groups:
            group["lr"] = learning_rate * group["lr_factor"]
        crops = augment(torch.from_numpy(faces.crops_u8[rows.numpy()]), experiment.augment, generator)
        inputs = torch.from_numpy(normalise(crops.numpy(), experiment.input))
        mixed, taught = mix(inputs, targets[rows], experiment.augment, generator)
        mine = slice(place.rank, None, place.world_size)  # every process draws the same batch and learns its share
        mixed = mixed[mine].to(place.device, memory_format=torch.channels_last)
        taught = taught[mine].to(place.device)
        with torch.autocast(
            place.device.type, _AUTOCAST.get(optim.precision, torch.bfloat16), enabled=optim.precision in _AUTOCAST
        ):
            logits = model(mixed)
        loss = classification_loss(logits.float(), taught, experiment.loss, weights)
        learner.scaler.scale(loss / optim.accumulate).backward()
        if (index + 1) % optim.accumulate == 0 or index + 1 == n_batches:
            learner.scaler.unscale_(learner.optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), optim.clip_norm)
            learner.scaler.step(learner.optimizer)
            learner.scaler.update()
            learner.optimizer.zero_grad(set_to_none=True)
            _update_average(learner.average, network, min(optim.ema_decay, (1 + step) / (10 + step)))
        total_loss += loss.item()
        n_hits += (logits.argmax(1) == taught.argmax(1)).float().mean().item()
    mean_loss, accuracy = place.mean([total_loss / n_batches, n_hits / n_batches])
    return learning_rate, mean_loss, round(accuracy, 5)


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of weights and batch-norm statistics; counters are copied."""
    for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)
        else:
            mean.copy_(now)


def _everything(learner: _Learner) -> dict[str, torch.Tensor]:
    tensors = {f"network.{name}": tensor for name, tensor in learner.network.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in learner.average.state_dict().items()}
    for index, state in learner.optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{index}.{key}": value for key, value in state.items() if value is not None}
    return tensors


def _resume(path: Path, identity: dict[str, object], learner: _Learner) -> list[EpochRecord]:
    tensors, state = load_checkpoint(path)
    for key, value in identity.items():
        if state.get(key) != value:
            raise CheckpointError(f"{path}: its {key} is not this run's; choose another --out or remove it")
    split: dict[str, dict[str, torch.Tensor]] = {"network": {}, "average": {}, "optimizer": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        split[part][rest] = tensor
    learner.network.load_state_dict(split["network"])
    learner.average.load_state_dict(split["average"])
    packed = learner.optimizer.state_dict()
    packed["state"] = {}
    for name, tensor in split["optimizer"].items():
        index, _, key = name.partition(".")
        packed["state"].setdefault(int(index), {})[key] = tensor
    learner.optimizer.load_state_dict(packed)
    records, scaler = state["history"], state["scaler"]
    if not isinstance(records, list) or not isinstance(scaler, dict):
        raise CheckpointError(f"{path}: it has no history")
    learner.scaler.load_state_dict(scaler)
    return [EpochRecord(**record) for record in records]


def _write_history(path: Path, history: list[EpochRecord]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(history[0])))
        writer.writeheader()
        writer.writerows(asdict(record) for record in history)


def _write_tensorboard(folder: Path, record: EpochRecord) -> None:
    from torch.utils.tensorboard import SummaryWriter

    with SummaryWriter(str(folder)) as writer:  # type: ignore[no-untyped-call]
        for key, value in asdict(record).items():
            if key != "epoch":
                writer.add_scalar(key, value, record.epoch)  # type: ignore[no-untyped-call]
