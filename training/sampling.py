"""Which faces an epoch shows, and in which order."""

from __future__ import annotations

import torch

from training.config import LossConfig


def epoch_order(labels: torch.Tensor, config: LossConfig, generator: torch.Generator) -> torch.Tensor:
    """Indices int64 (N,) into the training faces, as many as there are faces.

    "shuffled" is a permutation. "weighted" draws with replacement so that every class comes up equally often on
    average: for training sets only, a validation set is scored as it is. labels: int64 (N,).
    """
    if config.sampler == "shuffled":
        return torch.randperm(len(labels), generator=generator)
    counts = torch.bincount(labels)
    return torch.multinomial(1.0 / counts[labels].double(), len(labels), replacement=True, generator=generator)
