from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from model_store.bundle import Bundle
from model_store.errors import ParityError, UnsafeWeightsError, WeightsMismatchError
from model_store.export import MAX_ABS_DIFFERENCE, MAX_INT8_PROBABILITY_DIFFERENCE, build_servable, check_parity
from model_store.networks import load_networks
from model_store.servable import ServableModel
from tests.model_bundles import LABELS, publish_tiny, publish_tiny_int8, tiny_weights


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


def onnx_network(logits: list[float], *, batch: int | None = None, dtype: str = "FLOAT") -> bytes:
    """A network (N, 1, 32, 32) → (N, K) whose logits are the same for every input."""
    import onnx
    from onnx import helper, numpy_helper

    kind = getattr(onnx.TensorProto, dtype)
    size = "N" if batch is None else batch
    graph = helper.make_graph(
        [
            helper.make_node("ReduceSum", ["input", "axes"], ["sum"], keepdims=1),
            helper.make_node("Reshape", ["sum", "column"], ["flat"]),
            helper.make_node("Mul", ["flat", "zeros"], ["nothing"]),
            helper.make_node("Add", ["nothing", "logits"], ["float"]),
            helper.make_node("Cast", ["float"], ["output"], to=kind),
        ],
        "constant",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, [size, 1, 32, 32])],
        [helper.make_tensor_value_info("output", kind, [size, len(logits)])],
        [
            numpy_helper.from_array(np.array([1, 2, 3]), "axes"),
            numpy_helper.from_array(np.array([-1, 1]), "column"),
            numpy_helper.from_array(np.zeros(len(logits), np.float32), "zeros"),
            numpy_helper.from_array(np.array(logits, np.float32), "logits"),
        ],
    )
    model: bytes = helper.make_model(
        graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10
    ).SerializeToString()
    return model


def test_agreement_of_the_int8_network_is_recorded(built: ServableModel, int8_built: ServableModel) -> None:
    agreement = int8_built.serving.int8
    assert agreement is not None
    assert 0 < agreement.max_probability_difference <= MAX_INT8_PROBABILITY_DIFFERENCE
    assert agreement.n_real > 1
    assert built.serving.int8 is None


INT8_NETWORKS: dict[str, tuple[bytes, str]] = {
    "no network": (b"not a network", "onnxruntime cannot run it"),
    "sure of one label": (onnx_network([20.0] + [0.0] * 6), "a probability differs from the fp32 network's by 0"),
    "not a number": (onnx_network([float("nan")] * 7), "a probability differs from the fp32 network's by nan"),
    "eight labels": (onnx_network([0.0] * 8), r"outputs float32 \(1, 8\), expected float32 \(1, 7\)"),
    "another type": (onnx_network([0.0] * 7, dtype="DOUBLE"), "outputs float64"),
    "batches of one": (onnx_network([0.0] * 7, batch=1), "onnxruntime cannot run it"),
}


@pytest.mark.parametrize(("network", "message"), INT8_NETWORKS.values(), ids=INT8_NETWORKS.keys())
def test_int8_network_that_is_nonsense_fails_the_gate(tmp_path: Path, network: bytes, message: str) -> None:
    bundle = publish_tiny_int8(tmp_path / "bundles", network)
    with pytest.raises(ParityError, match=rf"model\.int8\.onnx: {message}"):
        build_servable(bundle, tmp_path / "servable")


def test_network_as_sure_of_every_label_passes_the_int8_gate(tmp_path: Path) -> None:
    """What `test_int8_network_that_is_nonsense_fails_the_gate` varies: the random weights are nearly as unsure."""
    bundle = publish_tiny_int8(tmp_path / "bundles", onnx_network([0.0] * len(LABELS)))
    assert build_servable(bundle, tmp_path / "servable").serving.int8 is not None
