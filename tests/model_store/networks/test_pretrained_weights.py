"""Weights that are not there: one line at once, whatever the network does."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import pytest
from PIL import Image

from model_store.errors import PretrainedWeightsError
from model_store.networks import pretrained_weights
from model_store.networks.pretrained_weights import HUB_TIMEOUT_S, weights_overlay
from training.__main__ import main
from training.label_names import FER2013_LABELS

REPOSITORY = Path(__file__).parents[3]


class Hub:
    """Stands for the hub's HTTP session: answers, or fails as a network does."""

    def __init__(self, failure: Exception | None = None) -> None:
        self.failure = failure
        self.asked: list[tuple[str, float]] = []

    def head(self, url: str, *, timeout: float) -> None:
        self.asked.append((url, timeout))
        if self.failure is not None:
            raise self.failure


def command_of_a_pretrained_run(folder: Path) -> list[str]:
    """The options of `training train` for a picture a class."""
    for label in FER2013_LABELS:
        (folder / "faces" / label).mkdir(parents=True)
        Image.fromarray(np.zeros((48, 48), np.uint8)).save(folder / "faces" / label / "face.png")
    config = (REPOSITORY / "training" / "configs" / "pretrained-resnet18.toml").read_text()
    (folder / "experiment.toml").write_text(config.replace("batch_size = 32", "batch_size = 2"))
    paths = {"--data": "faces", "--validation": "faces", "--out": "run", "--config": "experiment.toml"}
    return [*(part for option, path in paths.items() for part in (option, str(folder / path))), "--device", "cpu"]


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    hub = Hub()
    monkeypatch.setattr(pretrained_weights, "get_session", lambda: hub)
    return hub


@pytest.mark.parametrize(
    "failure",
    [httpx.ConnectError("no route\nto host"), httpx.ConnectTimeout("5 s"), httpx.ProxyError("403"), OSError("TLS")],
    ids=lambda failure: type(failure).__name__,
)
def test_hub_out_of_reach_is_said_once_and_in_one_line(hub: Hub, failure: Exception, tmp_path: Path) -> None:
    hub.failure = failure
    with pytest.raises(PretrainedWeightsError, match=r"timm/resnet18\.a1_in1k.*out of reach") as caught:
        weights_overlay("resnet18", str(tmp_path))
    assert "\n" not in str(caught.value)
    assert str(tmp_path) in str(caught.value)
    assert [timeout for _, timeout in hub.asked] == [HUB_TIMEOUT_S]


def test_hub_within_reach_leaves_the_download_to_timm(hub: Hub, tmp_path: Path) -> None:
    assert weights_overlay("resnet18", str(tmp_path)) is None
    assert len(hub.asked) == 1


def test_cached_file_is_used_without_asking_the_hub(hub: Hub, tmp_path: Path) -> None:
    folder = tmp_path / "models--timm--vit_base_patch16_224.augreg_in21k"
    snapshot = folder / "snapshots" / ("1" * 40)
    snapshot.mkdir(parents=True)
    (folder / "refs").mkdir()
    (folder / "refs" / "main").write_text("1" * 40)
    (snapshot / "model.safetensors").write_bytes(b"weights")
    overlay = weights_overlay("vit_base_patch16_224.augreg_in21k", str(tmp_path))
    assert overlay == {"file": str(snapshot / "model.safetensors"), "custom_load": False}
    assert hub.asked == []


@pytest.mark.parametrize("model", ["resnet18.no_such_tag", "no_such_network"])
def test_name_without_weights_is_refused_before_any_network(hub: Hub, model: str) -> None:
    with pytest.raises(PretrainedWeightsError, match=f"{model}: timm has no pretrained weights"):
        weights_overlay(model)
    assert hub.asked == []


@pytest.mark.slow
def test_training_from_weights_that_are_not_to_be_had_ends_in_one_line(tmp_path: Path) -> None:
    """The whole command in a process that finds an empty cache and no hub: its exit code, and no line of a retry."""
    arguments = command_of_a_pretrained_run(tmp_path)
    nowhere = {"HF_HOME": str(tmp_path / "empty"), "HF_ENDPOINT": "http://127.0.0.1:9"}
    result = subprocess.run(
        [sys.executable, "-m", "training", "train", *arguments],
        cwd=tmp_path,
        env={**os.environ, **nowhere, "PYTHONPATH": str(REPOSITORY)},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert result.returncode == 1
    last = result.stderr.strip().splitlines()[-1]
    assert last.startswith("PretrainedWeightsError: resnet18: its pretrained weights")
    assert "http://127.0.0.1:9 is out of reach" in last
    assert "Traceback" not in result.stderr
    assert "Retrying" not in result.stderr


def test_command_names_the_missing_weights_and_exits_with_1(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    hub.failure = httpx.ConnectError("no route to host")
    monkeypatch.setattr(pretrained_weights.constants, "HF_HUB_CACHE", str(tmp_path / "empty"))
    assert main(["train", *command_of_a_pretrained_run(tmp_path)]) == 1
    last = capsys.readouterr().err.strip().splitlines()[-1]
    assert last.startswith("PretrainedWeightsError: resnet18: its pretrained weights")
    assert not (tmp_path / "run").exists()
