from __future__ import annotations

import pickle
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from safetensors.numpy import save_file

from training.checkpoint import load_checkpoint, save_checkpoint
from training.errors import CheckpointError

TENSORS = {
    "kernel": torch.arange(24.0).reshape(2, 3, 2, 2).to(memory_format=torch.channels_last),
    "half": torch.tensor([0.1, -2.0], dtype=torch.float16),
    "count": torch.tensor(7),
}
STATE: dict[str, object] = {"data_sha256": "ab" * 32, "history": [{"epoch": 1, "train_loss": 0.1 + 0.2}]}


def test_tensors_and_state_come_back_exactly(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    tensors, state = load_checkpoint(path)
    assert state == STATE
    assert tensors.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert tensors[name].dtype == tensor.dtype
        assert torch.equal(tensors[name], tensor)


def test_saving_again_replaces_and_leaves_one_file(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    save_checkpoint(path, {"kernel": torch.zeros(1)}, {"epoch": 2})
    assert list(tmp_path.iterdir()) == [path]
    assert load_checkpoint(path)[1] == {"epoch": 2}


def test_file_holds_no_pickle(tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    data = path.read_bytes()
    assert data[:2] not in (b"PK", b"\x80\x02", b"\x80\x04")
    assert int.from_bytes(data[:8], "little") < len(data)
    with pytest.raises(pickle.UnpicklingError):
        pickle.loads(data)


@pytest.mark.parametrize(
    ("tensors", "state", "error"),
    [
        ({"a": torch.zeros(2)}, {"unserialisable": object()}, TypeError),
        ({"a": (shared := torch.zeros(2)), "b": shared}, {}, RuntimeError),
    ],
    ids=["state", "tensors"],
)
def test_failed_write_keeps_the_old_file_and_leaves_nothing(
    tensors: dict[str, torch.Tensor], state: dict[str, object], error: type[Exception], tmp_path: Path
) -> None:
    path = tmp_path / "last.safetensors"
    save_checkpoint(path, TENSORS, STATE)
    before = path.read_bytes()
    with pytest.raises(error):
        save_checkpoint(path, tensors, state)
    assert list(tmp_path.iterdir()) == [path]
    assert path.read_bytes() == before


def test_failed_rename_leaves_nothing(tmp_path: Path) -> None:
    (tmp_path / "last.safetensors" / "in the way").mkdir(parents=True)
    with pytest.raises(OSError):
        save_checkpoint(tmp_path / "last.safetensors", TENSORS, STATE)
    assert [path.name for path in tmp_path.iterdir()] == ["last.safetensors"]


def test_write_to_a_missing_folder_fails(tmp_path: Path) -> None:
    with pytest.raises((OSError, SafetensorError)):
        save_checkpoint(tmp_path / "absent" / "last.safetensors", TENSORS, STATE)


def absent(path: Path) -> None:
    assert not path.exists()


def folder(path: Path) -> None:
    path.mkdir()


def empty(path: Path) -> None:
    path.touch()


def cut_in_the_header(path: Path) -> None:
    save_checkpoint(path, TENSORS, STATE)
    path.write_bytes(path.read_bytes()[:50])


def cut_in_the_data(path: Path) -> None:
    save_checkpoint(path, TENSORS, STATE)
    path.write_bytes(path.read_bytes()[:-1])


def torch_archive(path: Path) -> None:
    torch.save(TENSORS, path)


def plain_safetensors(path: Path) -> None:
    save_file({"kernel": np.zeros(3, np.float32)}, path)


def other_metadata(path: Path) -> None:
    save_file({"kernel": np.zeros(3, np.float32)}, path, {"format": "pt"})


def state_that_is_no_json(path: Path) -> None:
    save_file({"kernel": np.zeros(3, np.float32)}, path, {"state": "{"})


def state_that_is_no_record(path: Path) -> None:
    save_file({"kernel": np.zeros(3, np.float32)}, path, {"state": "[1]"})


@pytest.mark.parametrize(
    "build",
    [
        absent,
        folder,
        empty,
        cut_in_the_header,
        cut_in_the_data,
        torch_archive,
        plain_safetensors,
        other_metadata,
        state_that_is_no_json,
        state_that_is_no_record,
    ],
)
def test_anything_else_is_refused(build: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "last.safetensors"
    build(path)
    with pytest.raises(CheckpointError, match=r"last\.safetensors: not a checkpoint of this program"):
        load_checkpoint(path)
