from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from model_store.bundle import Bundle
from model_store.errors import ManifestError, WeightsMismatchError
from model_store.manifest import Architecture
from model_store.networks import build_classifier, build_networks, load_networks
from tests.model_bundles import TINY_OPTIONS, emotion_manifest, publish_tiny, tiny_weights


def architecture(family: str, **options: Any) -> Architecture:
    return Architecture(family=family, options=options, classifier="head.weight")


@pytest.mark.parametrize(
    ("family", "options"),
    [
        ("preact-resnet", TINY_OPTIONS),
        ("preact-resnet", {**TINY_OPTIONS, "stem_stride": 1, "dropout": 0.5}),
        ("timm", {"model": "resnet10t"}),
    ],
    ids=["tiny", "full resolution", "timm"],
)
@pytest.mark.parametrize("channels", [1, 3])
def test_classifier_maps_crops_to_logits(family: str, options: dict[str, Any], channels: int) -> None:
    import torch

    network = build_classifier(architecture(family, **options), 5, channels).eval()
    with torch.no_grad():
        logits = network(torch.zeros(2, channels, 48, 48))
    assert logits.shape == (2, 5)
    assert torch.equal(logits[0], logits[1])


@pytest.mark.parametrize(
    ("wrong", "key"),
    [
        (architecture("vgg"), "architecture.family"),
        (architecture("preact-resnet", depth=50), "architecture.options"),
        (architecture("timm"), "architecture.options"),
        (architecture("timm", model="no-such-network"), "architecture.options"),
        (architecture("timm", model="resnet10t", no_such_option=1), "architecture.options"),
    ],
    ids=["family", "option", "no model", "unknown model", "unknown model option"],
)
def test_architecture_that_cannot_be_built_names_the_key(wrong: Architecture, key: str) -> None:
    with pytest.raises(ManifestError, match=key):
        build_classifier(wrong, 7, 1)


def test_output_count_is_the_label_count() -> None:
    (network,) = build_networks(emotion_manifest(labels=("a", "b", "c"))).values()
    assert network.head.out_features == 3


def test_loaded_network_has_the_bundles_weights_and_is_in_evaluation_mode(published: Bundle) -> None:
    import torch
    from safetensors.torch import load_file

    network = load_networks(published)["classifier"]
    assert not network.training
    stored = load_file(published.weights)
    assert set(stored) == set(network.state_dict())
    assert all(torch.equal(stored[name], value) for name, value in network.state_dict().items())


def test_tensor_that_the_architecture_does_not_have_is_refused(tmp_path: Path) -> None:
    import torch
    from safetensors.torch import load, save

    weights = save({**load(tiny_weights()), "extra.weight": torch.zeros(3)})
    with pytest.raises(WeightsMismatchError, match=r"extra\.weight"):
        load_networks(publish_tiny(tmp_path, weights=weights))


def test_tensor_of_another_shape_is_refused(tmp_path: Path) -> None:
    wider = Architecture(family="preact-resnet", options={**TINY_OPTIONS, "widths": [8, 16]}, classifier="head.weight")
    with pytest.raises(WeightsMismatchError, match="size mismatch"):
        load_networks(publish_tiny(tmp_path, architecture=wider))
