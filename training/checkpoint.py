"""Checkpoints: one safetensors file, written whole or not at all, never a pickle."""

from __future__ import annotations

import json
import os
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from training.errors import CheckpointError


def save_checkpoint(path: Path, tensors: dict[str, torch.Tensor], state: dict[str, object]) -> None:
    """Write tensors and a JSON-able `state` to `path` by way of a temporary name in the same folder."""
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    contiguous = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    try:
        save_file(contiguous, temporary, metadata={"state": json.dumps(state)})
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)


def load_checkpoint(path: Path) -> tuple[dict[str, torch.Tensor], dict[str, object]]:
    """Read what `save_checkpoint` wrote.

    Raises CheckpointError when the file is absent, cut short or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            state = json.loads((file.metadata() or {})["state"])
            if not isinstance(state, dict):
                raise ValueError("its state is not an object")
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: not a checkpoint of this program ({error})") from None
    return tensors, state


def load_weights(path: Path) -> dict[str, torch.Tensor]:
    """The tensors of a checkpoint's or a bundle's safetensors file.

    Raises CheckpointError when the file is absent, cut short or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{path}: not a safetensors file ({error})") from None
