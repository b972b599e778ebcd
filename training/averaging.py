"""The mean of several networks' weights, from which training goes on."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from training.checkpoint import load_weights
from training.errors import CheckpointError


def average_weights(files: Sequence[Path]) -> dict[str, torch.Tensor]:
    """The mean of the tensors of checkpoints or bundles of one network, float32; counters are those of the first.

    Networks that were trained on from the same weights often lie in one valley, where their mean is better than each
    (Wortsman et al., 2022, "Model soups"). The mean of batch norms' statistics is only near those of the mean network:
    train on for an epoch.

    Raises CheckpointError for files that cannot be read, or whose tensors differ in name or shape.
    """
    tensors = [load_weights(file) for file in files]
    first = tensors[0]
    for file, others in zip(files, tensors, strict=True):
        if {name: tensor.shape for name, tensor in others.items()} != {n: tensor.shape for n, tensor in first.items()}:
            raise CheckpointError(f"{file}: not the weights of the same network as {files[0]}")
    return {
        name: torch.stack([others[name].float() for others in tensors]).mean(0)
        if tensor.is_floating_point()
        else tensor
        for name, tensor in first.items()
    }
