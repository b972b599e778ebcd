from __future__ import annotations

import pytest
import torch
from torch import distributed

from training.devices import Place, is_first_process
from training.errors import ConfigError


@pytest.fixture(autouse=True)
def no_torchrun(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WORLD_SIZE", "RANK", "LOCAL_RANK", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.delenv(name, raising=False)


def test_one_process_is_first_and_alone() -> None:
    with Place.joined("cpu") as place:
        assert place == Place(torch.device("cpu"), 0, 1)
        assert place.is_first
        assert place.mean([0.1, 3.0]) == [0.1, 3.0]
        assert place.from_first(lambda: "value") == "value"
        place.wait_for_all()
        assert not distributed.is_initialized()


def test_auto_takes_the_gpu_that_is_there() -> None:
    with Place.joined("auto") as place:
        assert place.device.type == ("cuda" if torch.cuda.is_available() else "cpu")


@pytest.mark.parametrize("device", ["tpu9", "cuda:99", "cpu:x"])
def test_device_that_is_not_there_is_refused(device: str) -> None:
    with pytest.raises(ConfigError, match=f"^device {device}: "), Place.joined(device):
        pass


@pytest.mark.parametrize(
    ("environment", "problem"),
    [
        ({"WORLD_SIZE": "two"}, "WORLD_SIZE, RANK and LOCAL_RANK: whole numbers"),
        ({"WORLD_SIZE": "2", "RANK": "0"}, "2 processes: .*MASTER_ADDR"),
        ({"WORLD_SIZE": "2", "RANK": "2"}, "RANK: 2 of WORLD_SIZE 2"),
        ({"WORLD_SIZE": "0"}, "RANK: 0 of WORLD_SIZE 0"),
    ],
)
def test_half_of_torchruns_environment_is_refused(
    environment: dict[str, str], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    with pytest.raises(ConfigError, match=problem), Place.joined("cpu"):
        pass
    assert not distributed.is_initialized()


@pytest.mark.parametrize(
    ("environment", "is_first"),
    [({}, True), ({"RANK": "3"}, True), ({"RANK": "1", "WORLD_SIZE": "2"}, False), ({"WORLD_SIZE": "2"}, True)],
)
def test_rank_counts_among_several_processes_only(
    environment: dict[str, str], is_first: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert is_first_process() is is_first
    if "WORLD_SIZE" not in environment:
        with Place.joined("cpu") as place:
            assert place.is_first
