"""timm's networks by family: heads, stems, export, and weights that are really loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from model_store.errors import ManifestError, PretrainedWeightsError
from model_store.export import check_parity, export_onnx
from model_store.manifest import Architecture
from model_store.networks import build_classifier
from model_store.networks.timm_networks import build_timm

FAMILIES: dict[str, tuple[str, dict[str, Any]]] = {
    "mobilenetv3_small_100": ("classifier", {}),
    "mobilenetv2_100": ("classifier", {}),
    "efficientnet_b0": ("classifier", {}),
    "resnet18": ("fc", {}),
    "mobilevitv2_100": ("head.fc", {}),
    "vit_base_patch16_224.augreg_in21k": ("head", {"img_size": 64, "patch_size": 16, "depth": 1}),
}
"""The classifier's name, and what makes the network small enough for a test."""


def architecture(model: str, **options: Any) -> Architecture:
    return Architecture(family="timm", options={"model": model, **options}, classifier="head.weight")


@pytest.mark.parametrize("model", FAMILIES)
def test_hidden_layer_takes_the_classifiers_place(model: str) -> None:
    name, options = FAMILIES[model]
    with torch.device("meta"):
        network = build_timm(9, 1, model=model, head_hidden=512, head_dropout=0.4, **options).eval()
        plain = build_timm(9, 1, model=model, **options)
        assert network(torch.zeros(2, 1, 64, 64)).shape == (2, 9)
    head, linear = network.get_submodule(name), plain.get_submodule(name)
    assert [type(layer) for layer in head] == [nn.Linear, nn.ReLU, nn.Dropout, nn.Linear]
    assert (head[0].in_features, head[0].out_features, head[2].p, head[3].out_features) == (
        linear.in_features,
        512,
        0.4,
        9,
    )
    rest = {key for key in plain.state_dict() if not key.startswith(f"{name}.")}
    assert {key for key in network.state_dict() if not key.startswith(f"{name}.")} == rest


@pytest.mark.parametrize("model", [model for model in FAMILIES if not model.startswith("vit")])
def test_stem_of_stride_1_doubles_every_feature_map(model: str) -> None:
    """Seen at the last feature map, before it is averaged."""
    with torch.device("meta"):
        sides = [
            build_timm(7, 1, model=model, stem_stride=stride).forward_features(torch.zeros(1, 1, 128, 128)).shape[-1]
            for stride in (2, 1)
        ]
    assert sides == [4, 8]


@pytest.mark.parametrize("model", ["mobilenetv2_100", "efficientnet_b0"])
def test_strides_are_moved_and_left_out_by_name(model: str) -> None:
    """Sides of the feature maps behind each stage of blocks, of 48 px."""

    def sides(**options: Any) -> list[int]:
        with torch.device("meta"):
            network = build_timm(7, 1, model=model, **options).eval()
            found: list[int] = []
            for blocks in network.blocks:  # type: ignore[union-attr]
                blocks.register_forward_hook(lambda module, given, maps: found.append(maps.shape[-1]))
            network(torch.zeros(1, 1, 48, 48))
        return found

    assert sides() == [24, 12, 6, 3, 3, 2, 2]
    moved = {"blocks.0.0.conv_dw": 2}
    assert sides(stem_stride=1, strides=moved) == [24, 12, 6, 3, 3, 2, 2]
    assert sides(stem_stride=1, strides={**moved, "blocks.3.0.conv_dw": 1}) == [24, 12, 6, 6, 6, 3, 3]


@pytest.mark.parametrize(
    ("strides", "message"),
    [
        ({"blocks.9.0.conv_dw": 1}, "no padded convolution 'blocks.9.0.conv_dw'"),
        ({"blocks.0.0": 1}, "no padded convolution 'blocks.0.0'"),
        ({"blocks.0.0.conv_pw": 2}, "no padded convolution 'blocks.0.0.conv_pw'"),
        ({"blocks.0.0.conv_dw": 0}, "0 is under 1"),
        ({"blocks.0.0.conv_dw": "two"}, "architecture.options: "),
        (["blocks.0.0.conv_dw"], "architecture.options: "),
    ],
    ids=["absent", "no convolution", "no padding", "zero", "a word", "a list"],
)
def test_stride_that_cannot_be_set_is_a_manifest_error_of_one_line(strides: Any, message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        build_classifier(architecture("mobilenetv2_050", strides=strides), 7, 1)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"stem_stride": 1}, "stem_stride: vit_base_patch16_224 begins with patches"),
        ({"head_dropout": 0.4}, "head_dropout: only between the two layers"),
        ({"no_such_option": 1}, "no_such_option"),
        ({"img_size": "large"}, "architecture.options: "),
    ],
    ids=["patches", "dropout without a layer", "unknown", "of another type"],
)
def test_option_that_does_not_fit_is_a_manifest_error_of_one_line(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ManifestError, match=message) as caught:
        build_classifier(architecture("vit_base_patch16_224", depth=1, **options), 7, 1)
    assert "\n" not in str(caught.value)


_SLOW_TO_EXPORT = ("mobilenetv2_100", "efficientnet_b0", "mobilevitv2_100")


@pytest.mark.parametrize(
    "model",
    [pytest.param(model, marks=pytest.mark.slow if model in _SLOW_TO_EXPORT else ()) for model in FAMILIES],
)
def test_export_passes_the_parity_gate_with_any_batch_size(model: str, tmp_path: Path) -> None:
    _, options = FAMILIES[model]
    torch.manual_seed(0)
    network = build_timm(7, 1, model=model, **options).eval()
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((n, 1, 64, 64), np.float32) for n in (1, 3, 8)]
    export_onnx(network, batches[2], tmp_path / "network.onnx", free_size=False)
    assert check_parity(network, tmp_path / "network.onnx", batches, []).n_random == 12


@pytest.fixture
def hub_cache(tmp_path: Path) -> Path:
    """A hub's cache as a download leaves it, with known weights of resnet10t for 1,000 classes and RGB."""
    from safetensors.torch import save_file

    torch.manual_seed(5)
    network = build_timm(1000, 3, model="resnet10t")
    folder = tmp_path / "hub" / "models--timm--resnet10t.c3_in1k"
    (folder / "refs").mkdir(parents=True)
    (folder / "refs" / "main").write_text("0" * 40)
    snapshot = folder / "snapshots" / ("0" * 40)
    snapshot.mkdir(parents=True)
    save_file(network.state_dict(), str(snapshot / "model.safetensors"))
    return tmp_path / "hub"


def weights_in(cache: Path) -> Path:
    return next(cache.rglob("model.safetensors"))


def pretrained_resnet(cache: Path, n_outputs: int = 7, in_channels: int = 3, **options: Any) -> nn.Module:
    chosen = architecture("resnet10t", cache_dir=str(cache), **options)
    return build_classifier(chosen, n_outputs, in_channels, pretrained=True)


def test_pretrained_weights_are_loaded_from_the_cache_but_for_the_head(hub_cache: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(weights_in(hub_cache))
    torch.manual_seed(6)
    own = pretrained_resnet(hub_cache).state_dict()
    assert own["fc.weight"].shape == (7, 512)
    backbone = [name for name in own if not name.startswith("fc.")]
    assert len(backbone) > 50
    assert all(torch.equal(own[name], stored[name]) for name in backbone)


def test_grey_stem_is_the_pretrained_one_summed_over_rgb(hub_cache: Path) -> None:
    from safetensors.torch import load_file

    stored = load_file(weights_in(hub_cache))
    network = pretrained_resnet(hub_cache, in_channels=1, head_hidden=16).state_dict()
    torch.testing.assert_close(network["conv1.0.weight"], stored["conv1.0.weight"].sum(1, keepdim=True))
    assert torch.equal(network["layer4.0.conv1.weight"], stored["layer4.0.conv1.weight"])
    assert network["fc.3.weight"].shape == (7, 16)


@pytest.mark.parametrize("content", [b"", b"<html>not found</html>", "truncated", "another network"])
def test_cached_file_that_is_no_such_weights_is_a_clear_error(hub_cache: Path, content: bytes | str) -> None:
    from safetensors.torch import save

    path = weights_in(hub_cache)
    if content == "truncated":
        content = path.read_bytes()[:-100]
    elif content == "another network":
        content = save({"conv1.0.weight": torch.zeros(2, 3, 5, 5)})
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(PretrainedWeightsError, match="resnet10t: its pretrained weights could not be loaded") as caught:
        pretrained_resnet(hub_cache)
    assert "\n" not in str(caught.value)


def test_wrong_option_beside_pretrained_is_not_blamed_on_the_weights(hub_cache: Path) -> None:
    with pytest.raises(ManifestError, match="no_such_option"):
        pretrained_resnet(hub_cache, no_such_option=1)


def test_family_without_pretrained_weights_says_so() -> None:
    chosen = Architecture(family="plain-cnn", options={}, classifier="head.weight")
    with pytest.raises(PretrainedWeightsError, match="a plain-cnn has no pretrained weights"):
        build_classifier(chosen, 7, 1, pretrained=True)


def test_name_that_would_fetch_from_anywhere_is_refused() -> None:
    for model in ("hf-hub:somebody/something", "local-dir:/tmp/x"):
        with pytest.raises(ManifestError, match=r"model: .* is no plain name of timm"):
            build_classifier(architecture(model), 7, 3)
