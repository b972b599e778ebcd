"""The training loop: seeded, resumable at every epoch, averaged weights, one-cycle schedule.

Reads top to bottom: `train` sets up, `_run_epoch` learns, `_validate` scores, the run folder keeps everything:

    experiment.json   the checked configuration        last.safetensors   everything needed to go on
    history.csv       a line an epoch                  best.safetensors   averaged weights of the best epoch

An epoch's random draws come from (seed, epoch) alone, so a resumed run makes the same ones as an undisturbed run.
"""

from __future__ import annotations

import csv
import math
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn import functional as F
from tqdm import tqdm

from handlers.classifier import probabilities_of
from handlers.preprocess import normalise
from model_store.bundle import file_sha256
from model_store.manifest import Architecture
from model_store.networks import build_classifier
from training.augment import augment, mixup
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import Experiment, OptimConfig
from training.data import FaceSet
from training.errors import CheckpointError, DataError
from training.metrics import score

LAST, BEST, HISTORY = "last.safetensors", "best.safetensors", "history.csv"


@dataclass(frozen=True)
class EpochRecord:
    """One line of `history.csv`. Validation scores are of the averaged weights, without test-time augmentation."""

    epoch: int
    learning_rate: float
    train_loss: float
    validation_accuracy: float
    validation_macro_f1: float
    validation_ece: float
    seconds: float


def train(
    experiment: Experiment,
    training_set: FaceSet,
    validation_set: FaceSet,
    run: Path,
    *,
    init: Path | None = None,
    device: str = "auto",
    stop_after: int | None = None,
    log: Callable[[str], None] = print,
) -> list[EpochRecord]:
    """Train until the experiment's last epoch, from the run folder's last checkpoint if there is one.

    The epoch with the best validation accuracy is kept in `best.safetensors`.
    init: a checkpoint (`best.safetensors` of another run, say) whose weights a fresh run starts from.
    device: `auto` takes a GPU when there is one. stop_after: end early after this epoch count (to be resumed).
    Raises CheckpointError when the folder holds a run of another configuration or other data, DataError when the sets
    do not fit the experiment.
    """
    for faces in (training_set, validation_set):
        if faces.label_names != experiment.labels:
            raise DataError(f"labels {faces.label_names}, the experiment has {experiment.labels}")
    if len(training_set) < experiment.optim.batch_size:
        raise DataError(f"{len(training_set)} faces are less than one batch of {experiment.optim.batch_size}")
    target = torch.device(("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device)
    torch.manual_seed(experiment.seed)
    network = build_network(experiment).to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    average = build_network(experiment).to(target, memory_format=torch.channels_last)  # type: ignore[call-overload]
    if init is not None:
        try:
            network.load_state_dict(load_checkpoint(init)[0])
        except RuntimeError as error:
            raise CheckpointError(f"{init}: not the weights of this network ({error})") from None
    average.load_state_dict(network.state_dict())
    optimizer = _optimizer(network, experiment.optim)
    identity: dict[str, object] = {
        "config_sha256": experiment.sha256(),
        "data_sha256": training_set.sha256,
        "validation_sha256": validation_set.sha256,
        "init_sha256": None if init is None else file_sha256(init),
    }

    run.mkdir(parents=True, exist_ok=True)
    history: list[EpochRecord] = []
    if (run / LAST).exists():
        history = _resume(run / LAST, identity, network, average, optimizer)
        log(f"resumed after epoch {len(history)} of {experiment.optim.epochs}")
    (run / "experiment.json").write_text(experiment.model_dump_json(indent=2) + "\n")
    best = max((record.validation_accuracy for record in history), default=-1.0)

    for epoch in range(len(history), experiment.optim.epochs):
        if stop_after is not None and epoch >= stop_after:
            break
        started = time.monotonic()
        loss, learning_rate = _run_epoch(experiment, training_set, network, average, optimizer, epoch, target)
        probabilities = probabilities_of(predict_logits(average, validation_set, experiment), temperature=1.0)
        scores = score(probabilities, validation_set.labels, experiment.labels)
        history.append(
            EpochRecord(
                epoch + 1,
                learning_rate,
                loss,
                scores.accuracy,
                scores.macro_f1,
                scores.ece,
                round(time.monotonic() - started, 2),
            )
        )
        state = {**identity, "history": [asdict(record) for record in history]}
        if scores.accuracy > best:
            best = scores.accuracy
            save_checkpoint(run / BEST, average.state_dict(), state)
        save_checkpoint(run / LAST, _everything(network, average, optimizer), state)
        _write_history(run / HISTORY, history)
        log(
            f"epoch {epoch + 1:3d}/{experiment.optim.epochs}  loss {loss:.4f}  "
            f"accuracy {scores.accuracy:.4f}  macro F1 {scores.macro_f1:.4f}  best {best:.4f}  "
            f"{history[-1].seconds:.0f} s"
        )
    return history


def build_network(experiment: Experiment) -> nn.Module:
    """The experiment's network with fresh weights from torch's global generator."""
    return build_classifier(architecture_of(experiment), len(experiment.labels), experiment.input.channels)


def architecture_of(experiment: Experiment) -> Architecture:
    """The experiment's network as the manifest records it."""
    network = experiment.network
    return Architecture(family=network.family, options=dict(network.options), classifier=network.classifier)


def learning_rate_at(step: int, n_steps: int, optim: OptimConfig) -> float:
    """One cycle: half a cosine up from a 25th of `max_lr`, then half a cosine down to nothing."""
    peak = optim.warmup_fraction * n_steps
    if step < peak:
        low = optim.max_lr / 25
        return low + (optim.max_lr - low) * 0.5 * (1 - math.cos(math.pi * step / peak))
    return optim.max_lr * 0.5 * (1 + math.cos(math.pi * (step - peak) / max(1.0, n_steps - peak)))


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


def _optimizer(network: nn.Module, optim: OptimConfig) -> torch.optim.SGD:
    """Weight decay on convolutions and the head only: pulling norms and biases to zero costs accuracy."""
    decayed = [p for p in network.parameters() if p.ndim > 1]
    free = [p for p in network.parameters() if p.ndim <= 1]
    groups = [{"params": decayed, "weight_decay": optim.weight_decay}, {"params": free, "weight_decay": 0.0}]
    return torch.optim.SGD(groups, lr=optim.max_lr, momentum=optim.momentum, nesterov=optim.momentum > 0)


def _run_epoch(
    experiment: Experiment,
    faces: FaceSet,
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
    epoch: int,
    device: torch.device,
) -> tuple[float, float]:
    """One pass over the training set. Returns the mean loss and the last learning rate."""
    optim, spec = experiment.optim, experiment.input
    generator = torch.Generator().manual_seed(experiment.seed * 100_003 + epoch)
    torch.manual_seed(experiment.seed * 100_003 + epoch)  # dropout draws from the global generator
    n_batches = len(faces) // optim.batch_size
    order = torch.randperm(len(faces), generator=generator)[: n_batches * optim.batch_size]
    total_loss, learning_rate = 0.0, 0.0
    network.train()
    for index, rows in enumerate(tqdm(torch.split(order, optim.batch_size), leave=False, disable=None)):
        step = epoch * n_batches + index
        learning_rate = learning_rate_at(step, n_batches * optim.epochs, optim)
        for group in optimizer.param_groups:
            group["lr"] = learning_rate
        crops = augment(torch.from_numpy(faces.crops_u8[rows.numpy()]), experiment.augment, generator)
        inputs = torch.from_numpy(normalise(crops.numpy(), spec)).to(device, memory_format=torch.channels_last)
        targets = F.one_hot(torch.from_numpy(faces.labels[rows.numpy()]), len(experiment.labels)).float()
        inputs, targets = mixup(inputs, targets.to(device), experiment.augment, generator)
        with torch.autocast(device.type, torch.bfloat16, enabled=optim.precision == "bfloat16"):
            logits = network(inputs)
        loss = F.cross_entropy(logits.float(), targets, label_smoothing=optim.label_smoothing)
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(network.parameters(), optim.clip_norm)
        optimizer.step()
        _update_average(average, network, min(optim.ema_decay, (1 + step) / (10 + step)))
        total_loss += loss.item()
    return total_loss / n_batches, learning_rate


@torch.no_grad()
def _update_average(average: nn.Module, network: nn.Module, decay: float) -> None:
    """Exponential moving average of weights and batch-norm statistics; counters are copied."""
    for mean, now in zip(average.state_dict().values(), network.state_dict().values(), strict=True):
        if mean.is_floating_point():
            mean.lerp_(now, 1 - decay)
        else:
            mean.copy_(now)


def _everything(network: nn.Module, average: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    tensors = {f"network.{name}": tensor for name, tensor in network.state_dict().items()}
    tensors |= {f"average.{name}": tensor for name, tensor in average.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        if state.get("momentum_buffer") is not None:
            tensors[f"momentum.{index}"] = state["momentum_buffer"]
    return tensors


def _resume(
    path: Path,
    identity: dict[str, object],
    network: nn.Module,
    average: nn.Module,
    optimizer: torch.optim.Optimizer,
) -> list[EpochRecord]:
    tensors, state = load_checkpoint(path)
    for key, value in identity.items():
        if state.get(key) != value:
            raise CheckpointError(f"{path}: its {key} is not this run's; choose another --out or remove it")
    split: dict[str, dict[str, torch.Tensor]] = {"network": {}, "average": {}, "momentum": {}}
    for name, tensor in tensors.items():
        part, _, rest = name.partition(".")
        split[part][rest] = tensor
    network.load_state_dict(split["network"])
    average.load_state_dict(split["average"])
    packed = optimizer.state_dict()
    packed["state"] = {int(index): {"momentum_buffer": tensor} for index, tensor in split["momentum"].items()}
    optimizer.load_state_dict(packed)
    records = state["history"]
    if not isinstance(records, list):
        raise CheckpointError(f"{path}: it has no history")
    return [EpochRecord(**record) for record in records]


def _write_history(path: Path, history: list[EpochRecord]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=list(asdict(history[0])))
        writer.writeheader()
        writer.writerows(asdict(record) for record in history)
