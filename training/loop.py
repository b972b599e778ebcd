"""The training loop: seeded, resumable at every epoch, averaged weights; on a CPU, a GPU, or several by torchrun.

Reads top to bottom: `train` sets up, `_run_epoch` learns, `_validate` scores; `training.history` says what is kept.
An epoch's random draws come from (seed, epoch) alone, so a resumed run makes the same ones as an undisturbed run: on a
CPU, with the same number of threads, it ends with the same bytes.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack, nullcontext
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from handlers.classifier import probabilities_of
from handlers.preprocess import normalise
from model_store.bundle import file_sha256
from training.augment import augment, mix
from training.calibrate import negative_log_likelihood
from training.checkpoint import load_checkpoint, save_checkpoint
from training.config import Experiment
from training.data import FaceSet
from training.devices import Place
from training.errors import CheckpointError, ConfigError, DataError, TrainingError
from training.freezing import apply_freeze
from training.history import BEST, EXPERIMENT, LAST, EpochRecord, open_board, write_history, write_scalars
from training.learner import Learner
from training.losses import class_counts, classification_loss, loss_weights
from training.metrics import Scores, score
from training.sampling import epoch_order
from training.schedules import learning_rate_at, stops_early
from training.targets import training_targets

_AUTOCAST = {"bfloat16": torch.bfloat16, "float16": torch.float16}


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
    do not fit the experiment, ConfigError for a device that is not there or a configuration that does not fit the
    network, PretrainedWeightsError when weights cannot be fetched, TrainingError when the loss is no number any more.
    """
    check_sets(experiment, training_set, validation_set)
    targets = torch.from_numpy(training_targets(training_set, experiment.targets, teachers))
    with ExitStack() as closing:
        place = closing.enter_context(Place.joined(device))
        check_place(experiment, run, place)
        n_epochs = experiment.optim.epochs
        is_resumed = (run / LAST).exists()
        learner = Learner.fresh(experiment, place, init=init, pretrained=init is None and not is_resumed)
        identity: dict[str, object] = {
            "config_sha256": experiment.sha256(),
            "data_sha256": training_set.sha256,
            "votes_sha256": training_set.votes_sha256 if experiment.targets.votes else None,
            "validation_sha256": validation_set.sha256,
            "init_sha256": None if init is None else file_sha256(init),
            "world_size": place.world_size,
        }
        if experiment.targets.teachers and teachers is not None:
            identity["teachers_sha256"] = hashlib.sha256(teachers.astype("<f4").tobytes()).hexdigest()

        try:
            run.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigError(f"{run}: {error.strerror}") from None
        history = _resume(run / LAST, identity, learner) if is_resumed else []
        if place.is_first:
            (run / EXPERIMENT).write_text(experiment.model_dump_json(indent=2) + "\n")
            if is_resumed:
                write_history(run, history)
                log(f"resumed after epoch {len(history)} of {n_epochs}")
        counts = class_counts(torch.from_numpy(training_set.labels), len(experiment.labels))
        weights = loss_weights(experiment.loss, counts)
        about = {
            **identity,
            "experiment": json.loads(experiment.model_dump_json()),
            "class_counts": counts.tolist(),
            "class_weights": None if weights is None else [round(weight, 6) for weight in weights.tolist()],
        }
        best = max((record.validation_accuracy for record in history), default=-1.0)

        board = None
        for epoch in range(len(history), n_epochs):
            losses = [record.validation_loss for record in history]
            if (stop_after is not None and epoch >= stop_after) or stops_early(experiment, losses):
                break
            started = time.monotonic()
            learning_rate, train_loss, train_accuracy = _run_epoch(
                experiment, training_set, targets, weights, learner, epoch, losses, place
            )
            # Batch-norm statistics differ between processes: the first one's count, and everybody decides by them.
            scores, validation_loss = place.from_first(lambda: _validate(learner.average, validation_set, experiment))
            if scores is None:
                kept = f"{LAST} holds the epoch before; " if history else ""
                raise TrainingError(
                    f"epoch {epoch + 1}: the validation loss is {validation_loss}; {kept}"
                    "a lower optim.max_lr or optim.clip_norm may help"
                )
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
            is_best, best = scores.accuracy > best, max(best, scores.accuracy)
            if place.is_first:
                state = {
                    **about,
                    "epoch": record.epoch,
                    "train_accuracy": record.train_accuracy,
                    "validation_accuracy": record.validation_accuracy,
                    "history": [asdict(entry) for entry in history],
                    "scaler": learner.scaler.state_dict(),
                }
                if board is None:
                    board = closing.enter_context(open_board(run, epoch))
                write_scalars(board, record)
                write_history(run, history)
                if is_best:
                    save_checkpoint(run / BEST, learner.average.state_dict(), state)
                save_checkpoint(run / LAST, learner.tensors(), state)
                log(
                    f"epoch {epoch + 1:3d}/{n_epochs}  loss {train_loss:.4f}  validation {validation_loss:.4f}  "
                    f"accuracy {scores.accuracy:.4f}  macro F1 {scores.macro_f1:.4f}  best {best:.4f}  "
                    f"{record.seconds:.0f} s"
                )
            place.wait_for_all()
    return history


def check_sets(experiment: Experiment, training_set: FaceSet, validation_set: FaceSet) -> None:
    """Raise DataError when the sets do not fit the experiment."""
    for faces in (training_set, validation_set):
        if faces.label_names != experiment.labels:
            raise DataError(f"labels {faces.label_names}, the experiment has {experiment.labels}")
    if len(training_set) < experiment.optim.batch_size:
        raise DataError(f"{len(training_set)} faces are less than one batch of {experiment.optim.batch_size}")
    if experiment.targets.votes and training_set.votes is None:
        raise DataError("targets.votes: this data set has no FER+ votes")


def check_place(experiment: Experiment, run: Path, place: Place) -> None:
    """Raise ConfigError when the processes cannot share a batch, or the folder cannot be made or written into."""
    batch_size = experiment.optim.batch_size
    if batch_size % place.world_size:
        raise ConfigError(f"optim.batch_size: {batch_size} faces cannot be shared equally by {place.world_size}")
    try:
        standing = next(path for path in (run, *run.absolute().parents) if path.exists())
    except OSError as error:
        raise ConfigError(f"{run}: {error.strerror}") from None
    if not standing.is_dir():
        raise ConfigError(f"{run}: {standing} is not a folder")
    if not os.access(standing, os.W_OK | os.X_OK):
        raise ConfigError(f"{run}: {standing} may not be written into")


def _run_epoch(
    experiment: Experiment,
    faces: FaceSet,
    targets: torch.Tensor,
    weights: torch.Tensor | None,
    learner: Learner,
    epoch: int,
    validation_losses: Sequence[float],
    place: Place,
) -> tuple[float, float, float]:
    """One pass over the training set. Returns the last learning rate, the mean loss and the share of hits."""
    optim, network = experiment.optim, learner.network
    generator = torch.Generator().manual_seed(experiment.seed * 100_003 + epoch)
    # Dropout draws from the global generator: each process its own masks, for it has its own faces.
    torch.manual_seed(experiment.seed * 100_003 + epoch + place.rank * 50_021)
    n_batches = len(faces) // optim.batch_size
    order = epoch_order(torch.from_numpy(faces.labels), experiment.loss, generator)[: n_batches * optim.batch_size]
    steps_per_epoch = -(-n_batches // optim.accumulate)
    weights = None if weights is None else weights.to(place.device)
    network.train()
    apply_freeze(network, experiment.freeze, epoch)
    # Anew for each epoch, because it counts on gradients of what was not frozen when it was made.
    spread = DistributedDataParallel(network) if place.world_size > 1 else None
    total_loss, n_hits, learning_rate = 0.0, 0.0, 0.0
    learner.optimizer.zero_grad(set_to_none=True)
    batches = tqdm(torch.split(order, optim.batch_size), leave=False, disable=None if place.is_first else True)
    for index, rows in enumerate(batches):
        place_in_step = index % optim.accumulate
        group_size = min(optim.accumulate, n_batches - index + place_in_step)
        ends_step = place_in_step + 1 == group_size
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
        with nullcontext() if spread is None or ends_step else spread.no_sync():
            with torch.autocast(
                place.device.type, _AUTOCAST.get(optim.precision, torch.bfloat16), enabled=optim.precision in _AUTOCAST
            ):
                logits = (spread or network)(mixed)
            loss = classification_loss(logits.float(), taught, experiment.loss, weights)
            learner.scaler.scale(loss / group_size).backward()  # type: ignore[no-untyped-call]
        if ends_step:
            learner.scaler.unscale_(learner.optimizer)
            nn.utils.clip_grad_norm_(network.parameters(), optim.clip_norm)
            learner.scaler.step(learner.optimizer)
            learner.scaler.update()
            learner.optimizer.zero_grad(set_to_none=True)
            learner.update_average(min(optim.ema_decay, (1 + step) / (10 + step)))
        total_loss += loss.item()
        n_hits += (logits.argmax(1) == taught.argmax(1)).float().mean().item()
    mean_loss, accuracy = place.mean([total_loss / n_batches, n_hits / n_batches])
    return learning_rate, mean_loss, round(accuracy, 5)


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


def _validate(network: nn.Module, faces: FaceSet, experiment: Experiment) -> tuple[Scores | None, float]:
    """Scores and loss; a loss that is no number has no scores."""
    logits = predict_logits(network, faces, experiment)
    loss = negative_log_likelihood(logits, faces.labels, 1.0)
    if not math.isfinite(loss):
        return None, loss
    return score(probabilities_of(logits, temperature=1.0), faces.labels, experiment.labels), loss


def _resume(path: Path, identity: dict[str, object], learner: Learner) -> list[EpochRecord]:
    tensors, state = load_checkpoint(path)
    for key, value in identity.items():
        # Checkpoints of before there was a digest of the teachers' answers have none.
        if state.get(key, value if key == "teachers_sha256" else None) != value:
            raise CheckpointError(f"{path}: its {key} is not this run's; choose another --out or remove it")
    records, scaler = state.get("history"), state.get("scaler")
    if not isinstance(records, list) or not isinstance(scaler, dict):
        raise CheckpointError(f"{path}: it has no history")
    learner.restore(tensors, scaler)
    return [EpochRecord(**record) for record in records]
