import copy

import pytest
import timm
import torch
from torch import nn

from model_store.networks import timm_networks
from training.depthwise import DepthwiseConv2d, quicken_depthwise


def convolution(n_channels: int, taps: int, stride: int, padding: int, *, bias: bool = False) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(n_channels, n_channels, taps, stride, padding, groups=n_channels, bias=bias)


def learned(layer: nn.Module, maps: torch.Tensor, direction: torch.Tensor) -> dict[str, torch.Tensor]:
    """The layer's result and every gradient of the result's product with a direction."""
    maps = maps.clone().requires_grad_()
    result = layer(maps)
    result.backward(direction)
    assert maps.grad is not None
    gradients = {name: parameter.grad for name, parameter in layer.named_parameters()}
    return {"result": result.detach(), "maps": maps.grad, **gradients}  # type: ignore[dict-item]


@pytest.mark.parametrize("layout", [torch.channels_last, torch.contiguous_format], ids=["channels last", "contiguous"])
@pytest.mark.parametrize(
    ("n_channels", "size", "taps", "stride", "padding", "bias"),
    [
        (64, (7, 5), 3, 1, 1, False),
        (64, (7, 5), 3, 2, 1, True),
        (72, (2, 2), 5, 1, 2, False),
        (96, (6, 9), 5, 2, 2, True),
        (65, (1, 1), 3, 1, 1, False),
        (64, (8, 8), 3, 3, 0, False),
        (64, (4, 4), 2, 2, 1, False),
    ],
)
def test_learns_what_torch_learns(
    n_channels: int,
    size: tuple[int, int],
    taps: int,
    stride: int,
    padding: int,
    bias: bool,
    layout: torch.memory_format,
) -> None:
    plain = convolution(n_channels, taps, stride, padding, bias=bias)
    quick = DepthwiseConv2d.of(copy.deepcopy(plain))
    maps = torch.randn(5, n_channels, *size).to(memory_format=layout)
    direction = torch.randn_like(plain(maps))

    expected, found = learned(plain, maps, direction), learned(quick, maps, direction)
    assert list(expected) == list(found)
    for name, tensor in expected.items():
        assert found[name].shape == tensor.shape
        assert torch.allclose(found[name], tensor, rtol=1e-4, atol=1e-5), name


def test_the_gradient_is_that_of_the_sum_over_places() -> None:
    quick = DepthwiseConv2d.of(convolution(64, 3, 1, 1))
    maps = torch.randn(2, 64, 3, 4)
    quick(maps).sum().backward()

    assert quick.weight.grad is not None
    centre = maps.sum((0, 2, 3))  # the middle tap sees every place once
    corner = maps[:, :, :-1, :-1].sum((0, 2, 3))  # the first tap lies outside for the first row and column
    assert torch.allclose(quick.weight.grad[:, 0, 1, 1], centre, atol=1e-4)
    assert torch.allclose(quick.weight.grad[:, 0, 0, 0], corner, atol=1e-4)


def test_gradients_add_up_over_batches() -> None:
    quick = DepthwiseConv2d.of(convolution(64, 3, 1, 1))
    maps = torch.randn(2, 64, 4, 4)
    quick(maps).sum().backward()
    assert quick.weight.grad is not None
    once = quick.weight.grad.clone()
    quick(maps).sum().backward()

    assert torch.equal(quick.weight.grad, 2 * once)


def test_frozen_weights_and_maps_that_need_no_gradient_get_none() -> None:
    frozen = DepthwiseConv2d.of(convolution(64, 3, 1, 1))
    frozen.requires_grad_(False)
    maps = torch.randn(2, 64, 4, 4, requires_grad=True)
    frozen(maps).sum().backward()
    assert frozen.weight.grad is None
    assert maps.grad is not None

    first = DepthwiseConv2d.of(convolution(64, 3, 1, 1))
    first(torch.randn(2, 64, 4, 4)).sum().backward()
    assert first.weight.grad is not None


def test_stays_in_float32_under_autocast() -> None:
    plain = convolution(64, 3, 1, 1)
    quick = DepthwiseConv2d.of(plain)
    maps = torch.randn(2, 64, 6, 6)
    with torch.autocast("cpu", torch.bfloat16):
        result = quick(maps.bfloat16())

    assert result.dtype == torch.float32
    assert torch.allclose(result, plain(maps.bfloat16().float()), atol=1e-5)


def test_a_network_keeps_its_parameters_and_names() -> None:
    torch.manual_seed(0)
    network = timm_networks.build_timm(7, 1, model="mobilenetv3_small_100").eval()
    names = list(network.state_dict())
    parameters = list(network.parameters())
    maps = torch.randn(2, 1, 48, 48).to(memory_format=torch.channels_last)
    expected = network(maps)
    quicken_depthwise(network)

    assert sum(isinstance(module, DepthwiseConv2d) for module in network.modules()) >= 8
    assert list(network.state_dict()) == names
    assert all(now is before for now, before in zip(network.parameters(), parameters, strict=True))
    assert torch.allclose(network(maps), expected, atol=1e-5)


@pytest.mark.parametrize(
    "other",
    [
        nn.Conv2d(64, 64, 3),
        nn.Conv2d(64, 64, 3, groups=32),
        nn.Conv2d(64, 128, 3, groups=64),
        nn.Conv2d(64, 64, 3, groups=64, dilation=2),
        nn.Conv2d(64, 64, 3, groups=64, padding="same"),
        nn.Conv2d(64, 64, 3, groups=64, padding=1, padding_mode="reflect"),
        nn.Conv2d(16, 16, 3, groups=16),
    ],
    ids=["dense", "groups", "two outputs a channel", "dilated", "same", "reflect", "few channels"],
)
def test_other_convolutions_are_left_alone(other: nn.Conv2d) -> None:
    network = nn.Sequential(other)
    quicken_depthwise(network)
    assert network[0] is other


def test_networks_without_depthwise_convolutions_are_left_alone() -> None:
    network = timm.create_model("resnet18", num_classes=7)
    modules = list(network.modules())
    quicken_depthwise(network)
    assert all(now is before for now, before in zip(network.modules(), modules, strict=True))
