"""What `test_processes` starts twice by torchrun: a run that is stopped and resumed, and one of another network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import distributed, nn

import training.learner
from tests.training.faces import generated_faces, tiny_experiment
from training.augment import augment
from training.config import Experiment
from training.devices import Place
from training.errors import ConfigError
from training.loop import train

FACES, VALIDATION = generated_faces(48), generated_faces(21, seed=1, wrong_labels=0.3)


class Linear(nn.Module):
    """No batch norm: its gradient is the mean of the gradients of any two halves of a batch."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = nn.Linear(256, 12)
        self.unused_for_now = nn.Linear(12, 12)
        self.head = nn.Linear(12, 7)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        logits: torch.Tensor = self.head(self.unused_for_now(self.hidden(x.flatten(1)).relu()).relu())
        return logits


def without_batch_norm() -> Experiment:
    return tiny_experiment(
        augment={"flip": 0.5, "shift": 0.1, "mixup": 0.5},
        loss={"sampler": "weighted", "class_weights": "balanced"},
        freeze=[{"modules": ["unused_for_now"], "until_epoch": 1}],
        optim__accumulate=2,
        optim__clip_norm=0.5,
    )


def learn(folder: Path, shown: list[np.ndarray[Any, Any]]) -> None:
    """Two epochs of the network without batch norm; `shown` is given every batch before it is shared out."""

    def recorded(crops: torch.Tensor, *options: Any) -> torch.Tensor:
        changed = augment(crops, *options)
        shown.append(changed.numpy().copy())
        return changed

    build, training.learner.build_network = training.learner.build_network, lambda *_, **__: Linear()
    kept, training.loop.augment = training.loop.augment, recorded
    try:
        train(without_batch_norm(), FACES, VALIDATION, folder, device="cpu")
    finally:
        training.learner.build_network, training.loop.augment = build, kept


def main(folder: Path) -> None:
    torch.set_num_threads(1)
    with Place.joined("cpu") as place:
        shown: list[np.ndarray[Any, Any]] = []
        learn(folder / "linear", shown)
        np.save(folder / f"shown-{place.rank}.npy", np.stack(shown))
        whole = tiny_experiment(optim__epochs=2, network__options={"widths": [16, 16], "blocks_per_stage": 1})
        train(whole, FACES, VALIDATION, folder / "whole", device="cpu")
        train(whole, FACES, VALIDATION, folder / "parts", device="cpu", stop_after=1)
        train(whole, FACES, VALIDATION, folder / "parts", device="cpu")
        try:
            train(tiny_experiment(optim__batch_size=15), FACES, VALIDATION, folder / "odd", device="cpu")
        except ConfigError as error:
            (folder / f"odd-{place.rank}.txt").write_text(str(error))
    assert not distributed.is_initialized()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
