from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from training.averaging import average_weights
from training.errors import CheckpointError


def written(path: Path, **tensors: torch.Tensor) -> Path:
    save_file(tensors, path)
    return path


def test_mean_of_stored_halves_is_taken_in_full_precision(tmp_path: Path) -> None:
    values = [torch.tensor([1.0, 2.0]), torch.tensor([2.0, 6.0]), torch.tensor([3.0, 1.0])]
    files = [
        written(tmp_path / f"{index}.safetensors", w=value.half(), seen=torch.tensor(index + 7))
        for index, value in enumerate(values)
    ]
    mean = average_weights(files)
    assert mean["w"].dtype == torch.float32
    assert torch.equal(mean["w"], torch.tensor([2.0, 3.0]))
    assert mean["seen"] == 7


@pytest.mark.parametrize("other", [{"w": torch.zeros(3)}, {"v": torch.zeros(2)}, {}])
def test_other_networks_are_refused(other: dict[str, torch.Tensor], tmp_path: Path) -> None:
    files = [written(tmp_path / "a.safetensors", w=torch.zeros(2)), written(tmp_path / "b.safetensors", **other)]
    with pytest.raises(CheckpointError, match=r"b\.safetensors: not the weights of the same network as .*a\."):
        average_weights(files)
