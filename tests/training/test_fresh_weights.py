import math

import pytest
import timm
import torch
from pydantic import ValidationError
from torch import nn

from model_store.networks.timm_networks import build_timm
from tests.training.faces import tiny_experiment
from training.config import NetworkConfig
from training.devices import Place
from training.fresh_weights import draw_small_weights
from training.learner import Learner


def drawn(model: str, **options: object) -> nn.Module:
    torch.manual_seed(3)
    network = build_timm(7, 1, model=model, **options)  # type: ignore[arg-type]
    draw_small_weights(network)
    return network


@pytest.mark.parametrize("model", ["mobilenetv3_small_100", "mobilenetv2_100", "efficientnet_b0"])
def test_convolutions_are_drawn_as_torch_draws_them(model: str) -> None:
    for module in drawn(model).modules():
        if isinstance(module, nn.Conv2d) and module.weight.numel() > 1_000:
            bound = 1 / math.sqrt(module.weight[0].numel())  # uniform within it
            assert module.weight.abs().max() <= bound
            assert module.weight.std().item() == pytest.approx(bound / math.sqrt(3), rel=0.1)


@pytest.mark.parametrize("model", ["mobilenetv3_small_100", "mobilenetv2_100", "efficientnet_b0"])
def test_residual_branches_begin_at_zero(model: str) -> None:
    network = drawn(model).eval()
    blocks = [module for module in network.modules() if getattr(module, "has_skip", False)]
    n_channels = [next(block.children()).in_channels for block in blocks]  # type: ignore[union-attr]

    assert len(blocks) >= 5
    for block, n in zip(blocks, n_channels, strict=True):
        maps = torch.randn(2, n, 6, 6)  # type: ignore[call-overload]
        assert torch.equal(block(maps), maps)
    norms = [module for module in network.modules() if isinstance(module, nn.BatchNorm2d)]
    assert sum(not norm.weight.any() for norm in norms) == len(blocks)


def test_all_classes_begin_equally_likely() -> None:
    network = drawn("efficientnet_b0", head_hidden=512, head_dropout=0.4).train()
    shares = network(torch.randn(16, 1, 48, 48)).softmax(1)
    assert shares.min() > 0.1
    assert shares.max() < 0.2


def test_the_seed_decides_and_other_networks_are_drawn_too() -> None:
    one, other = drawn("mobilenetv2_100").state_dict(), drawn("mobilenetv2_100").state_dict()
    assert all(torch.equal(one[name], other[name]) for name in one)
    draw_small_weights(timm.create_model("resnet18", num_classes=7))


def test_a_recipe_asks_for_them() -> None:
    experiment = tiny_experiment(
        network__family="timm",
        network__classifier="classifier.weight",
        network__options={"model": "mobilenetv3_small_050"},
        network__fresh_weights="small",
    )
    with Place.joined("cpu") as place:
        learner = Learner.fresh(experiment, place, init=None, pretrained=False)

    head = dict(learner.network.named_parameters())["classifier.weight"]
    assert head.std().item() == pytest.approx(0.01, rel=0.1)
    average = learner.average.state_dict()
    assert all(torch.equal(tensor, average[name]) for name, tensor in learner.network.state_dict().items())


def test_weights_are_fetched_or_drawn() -> None:
    with pytest.raises(ValidationError, match="not together with pretrained"):
        NetworkConfig(family="timm", classifier="fc.weight", pretrained=True, fresh_weights="small")
