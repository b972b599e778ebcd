from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from tests.training.faces import generated_faces, tiny_experiment
from training.checkpoint import load_checkpoint
from training.config import FreezeConfig
from training.errors import ConfigError
from training.freezing import apply_freeze, frozen_names
from training.history import LAST
from training.learner import build_network
from training.loop import train

pytestmark = pytest.mark.usefixtures("one_thread")


def rules(*pairs: tuple[tuple[str, ...], int | None]) -> list[FreezeConfig]:
    return [FreezeConfig(modules=modules, until_epoch=until) for modules, until in pairs]


def stages() -> nn.Module:
    """Names as timm's: `stages.1` is not the beginning of `stages.10`."""
    layers = [nn.Sequential(nn.Conv2d(1, 1, 1), nn.BatchNorm2d(1)) for _ in range(11)]
    network = nn.Module()
    network.pos_embed = nn.Parameter(torch.zeros(1))
    network.stages = nn.ModuleList(layers)
    network.head = nn.Linear(1, 2)
    return network


def test_stages_wake_one_after_the_other() -> None:
    freeze = rules((("stages.3",), 1), (("stages.2",), 3), (("stages.1", "pos_embed"), 5), (("stages.0",), None))
    frozen = [
        {name.removesuffix(".0.weight") for name in frozen_names(stages(), freeze, epoch) if "0.weight" in name}
        for epoch in range(7)
    ]
    late, all_of = {"stages.0"}, {"stages.0", "stages.1", "stages.2"}
    assert frozen == [{*all_of, "stages.3"}, all_of, all_of, late | {"stages.1"}, late | {"stages.1"}, late, late]
    assert "pos_embed" in frozen_names(stages(), freeze, 4)
    assert "pos_embed" not in frozen_names(stages(), freeze, 5)


def test_unknown_module_and_nothing_left_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"freeze\.1\.modules: the network has no 'stage'"):
        frozen_names(stages(), rules((("head",), 1), (("stage",), 1)), 0)
    everything = rules((("stages", "pos_embed", "head"), 2))
    with pytest.raises(ConfigError, match="freeze: nothing is left to learn in epoch 1"):
        frozen_names(stages(), everything, 1)
    assert frozen_names(stages(), everything, 2) == set()


def test_batch_norm_that_is_frozen_whole_keeps_its_statistics_until_it_wakes() -> None:
    network, freeze = stages(), rules((("stages.1",), 2), (("stages.2.1.weight",), 2))
    for epoch, is_training in ((0, False), (2, True)):
        network.train()
        apply_freeze(network, freeze, epoch)
        assert network.get_submodule("stages.1.1").training == is_training
        assert network.get_submodule("stages.2.1").training
        assert network.get_submodule("stages.10.1").training
        assert network.get_parameter("stages.1.0.weight").requires_grad == is_training
        assert network.get_parameter("stages.10.0.weight").requires_grad


OPTIMISERS: dict[str, dict[str, Any]] = {
    "sgd": {"optim__momentum": 0.9},
    "adam": {"optim__optimizer": "adam"},
    "adamw": {"optim__optimizer": "adamw"},
    "sgd float16": {"optim__precision": "float16"},
}


@pytest.mark.parametrize("name", OPTIMISERS)
def test_what_is_frozen_is_unchanged_to_the_bit_and_moves_from_its_epoch_on(name: str, tmp_path: Path) -> None:
    experiment = tiny_experiment(
        optim__epochs=3,
        optim__weight_decay=0.1,
        optim__ema_decay=0.6,
        freeze=[{"modules": ["stem", "blocks.0"], "until_epoch": 1}, {"modules": ["blocks.1.norm1"]}],
        **OPTIMISERS[name],
    )
    with torch.random.fork_rng():
        torch.manual_seed(experiment.seed)
        start = build_network(experiment).state_dict()
    faces = generated_faces(32)
    for epoch, frozen in ((1, ("stem.", "blocks.0.", "blocks.1.norm1.")), (3, ("blocks.1.norm1.",))):
        train(experiment, faces, faces, tmp_path, device="cpu", stop_after=epoch, log=lambda line: None)
        tensors, _ = load_checkpoint(tmp_path / LAST)
        for key, before in start.items():
            for part in ("network", "average"):
                same = torch.equal(tensors[f"{part}.{key}"], before)
                assert same == key.startswith(frozen), f"{part}.{key} in epoch {epoch}"
