"""The files of a run, and what an epoch writes into them.

    experiment.json   the checked configuration        last.safetensors   everything needed to go on
    history.csv       a line an epoch                  best.safetensors   averaged weights of the best epoch
    tensorboard/      the same for TensorBoard

An epoch counts once `last.safetensors` holds it. History and TensorBoard are written before, and a run that was killed
in between writes its epoch again over them.
"""

from __future__ import annotations

import csv
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.utils.tensorboard import SummaryWriter

LAST, BEST, HISTORY, EXPERIMENT = "last.safetensors", "best.safetensors", "history.csv", "experiment.json"
TENSORBOARD = "tensorboard"


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


def write_history(run: Path, history: Sequence[EpochRecord]) -> None:
    """Write `history.csv`, whole or not at all."""
    temporary = run / f".{HISTORY}.{os.getpid()}.tmp"
    with temporary.open("w", newline="") as file:
        writer = csv.DictWriter(file, fieldnames=[field.name for field in fields(EpochRecord)])
        writer.writeheader()
        writer.writerows(asdict(record) for record in history)
    temporary.replace(run / HISTORY)


@contextmanager
def open_board(run: Path, n_epochs_behind: int) -> Iterator[SummaryWriter]:
    """TensorBoard's writer of this session; what an earlier one wrote about later epochs is void from here on."""
    from torch.utils.tensorboard import SummaryWriter

    first = n_epochs_behind + 1
    with SummaryWriter(str(run / TENSORBOARD), purge_step=first) as board:
        yield board


def write_scalars(board: SummaryWriter, record: EpochRecord) -> None:
    """Write the record's numbers at its epoch, through to the file."""
    for key, value in asdict(record).items():
        if key != "epoch":
            board.add_scalar(key, value, record.epoch)
    board.flush()
