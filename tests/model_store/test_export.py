from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_store.bundle import Bundle
from model_store.errors import ParityError, UnsafeWeightsError, WeightsMismatchError
from model_store.export import MAX_ABS_DIFFERENCE, build_servable, check_parity
from model_store.networks import load_networks
from model_store.servable import ServableModel
from tests.model_bundles import publish_tiny, tiny_weights


def batch(seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((4, 1, 32, 32), np.float32)


def test_parity_of_the_built_model_is_recorded(built: ServableModel) -> None:
    (parity,) = built.serving.parity.values()
    assert set(built.serving.parity) == {"classifier"}
    assert 0 <= parity.max_abs_difference <= MAX_ABS_DIFFERENCE
    assert parity.n_random > 0
    assert parity.n_real > 0
    assert built.serving.exporter.startswith("torch ")


def test_export_takes_any_batch_size(built: ServableModel) -> None:
    network = load_networks(built.bundle)["classifier"]
    sizes = [batch()[:1], batch(), np.repeat(batch(), 5, axis=0)]
    parity = check_parity(network, built.onnx("classifier"), sizes[:2], sizes[2:])
    assert (parity.n_random, parity.n_real) == (5, 20)


def test_export_of_other_weights_fails_the_gate(built: ServableModel, tmp_path: Path) -> None:
    other = load_networks(publish_tiny(tmp_path, seed=1))["classifier"]
    with pytest.raises(ParityError, match=r"classifier\.onnx: differs from the torch weights"):
        check_parity(other, built.onnx("classifier"), [batch()], [])


@pytest.mark.parametrize("change", [2 * MAX_ABS_DIFFERENCE, float("nan"), float("inf")])
def test_one_changed_weight_fails_the_gate(built: ServableModel, change: float) -> None:
    import torch

    network = load_networks(built.bundle)["classifier"]
    with torch.no_grad():
        network.head.bias[3] += change
    with pytest.raises(ParityError):
        check_parity(network, built.onnx("classifier"), [], [batch()])


@pytest.mark.parametrize("tensor", ["stem.weight", "head.bias"])
def test_weights_without_a_tensor_of_the_architecture_are_refused(tmp_path: Path, tensor: str) -> None:
    from safetensors.torch import load, save

    weights = save({name: value for name, value in load(tiny_weights()).items() if name != tensor})
    bundle = publish_tiny(tmp_path / "bundles", weights=weights)
    with pytest.raises(WeightsMismatchError, match=tensor):
        build_servable(bundle, tmp_path)


def test_weights_with_a_header_and_no_data_are_refused(tmp_path: Path, published: Bundle) -> None:
    whole = published.weights.read_bytes()
    header_only = whole[: 8 + int.from_bytes(whole[:8], "little")]
    with pytest.raises(UnsafeWeightsError):
        build_servable(publish_tiny(tmp_path / "bundles", weights=header_only), tmp_path)
