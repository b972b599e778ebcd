from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from numpy.typing import NDArray
from onnx import helper, numpy_helper

from training.int8_network import Int8Writer, _CalibrationInputs, _chunk, evenly_spaced, quantise_network


def write_network(path: Path) -> Path:
    """Four convolutions of 4 channels on (N, 1, 8, 8), pooling and a linear layer to 3 logits.

    The third convolution has a huge weight on a channel that is always 0: 8 bits leave nothing of its other weights.
    """
    rng = np.random.default_rng(0)
    shapes = {"c1": (4, 1, 3, 3), "c2": (4, 4, 3, 3), "c3": (4, 4, 3, 3), "c4": (4, 4, 3, 3), "fc": (4, 3)}
    arrays = {name: rng.normal(0, 0.5, shape).astype(np.float32) for name, shape in shapes.items()}
    arrays["c2"][3] = 0
    arrays["c3"][:, 3] = 1000.0
    nodes, before = [], "input"
    for name in ("c1", "c2", "c3", "c4"):
        nodes.append(helper.make_node("Conv", [before, name], [f"{name}_out"], name=name, pads=[1, 1, 1, 1]))
        nodes.append(helper.make_node("Relu", [f"{name}_out"], [f"{name}_relu"], name=f"{name}_relu"))
        before = f"{name}_relu"
    nodes += [
        helper.make_node("GlobalAveragePool", [before], ["pooled"], name="pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], name="flatten"),
        helper.make_node("MatMul", ["flat", "fc"], ["logits"], name="fc"),
    ]
    graph = helper.make_graph(
        nodes,
        "four convolutions",
        [helper.make_tensor_value_info("input", onnx.TensorProto.FLOAT, ["n", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", onnx.TensorProto.FLOAT, ["n", 3])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10), path)
    return path


@pytest.fixture
def inputs() -> NDArray[np.float32]:
    return np.random.default_rng(1).standard_normal((24, 1, 8, 8), np.float32)


@pytest.fixture
def writer(inputs: NDArray[np.float32], tmp_path: Path) -> Int8Writer:
    return Int8Writer(write_network(tmp_path / "fp32.onnx"), inputs, tmp_path)


def weight_types(path: Path) -> dict[str, str]:
    """The type of each layer's weights in the file."""
    graph = onnx.load(path).graph
    kinds = {tensor.name: numpy_helper.to_array(tensor).dtype.name for tensor in graph.initializer}
    sources = {output: node for node in graph.node for output in node.output}
    return {
        node.name: kinds[weight] if (weight := node.input[1]) in kinds else kinds[sources[weight].input[0]]
        for node in graph.node
        if node.op_type in ("Conv", "MatMul")
    }


def test_first_convolution_and_last_linear_layer_are_not_to_choose(writer: Int8Writer) -> None:
    assert writer.layers == ("c2", "c3", "c4")


def test_named_layers_stay_in_float(writer: Int8Writer, tmp_path: Path) -> None:
    writer.write(tmp_path / "int8.onnx", ["c3"])
    assert weight_types(tmp_path / "int8.onnx") == {
        "c1": "float32", "c2": "int8", "c3": "float32", "c4": "int8", "fc": "float32",
    }  # fmt: skip


def test_layer_that_8_bits_ruin_is_the_most_sensitive(writer: Int8Writer) -> None:
    ranking = writer.most_sensitive()
    assert ranking[0] == "c3"
    assert sorted(ranking) == ["c2", "c3", "c4"]


def test_same_inputs_give_the_same_file_whatever_was_written_before(
    writer: Int8Writer, inputs: NDArray[np.float32], tmp_path: Path
) -> None:
    writer.write(tmp_path / "first.onnx")
    writer.write(tmp_path / "other.onnx", ["c2"])
    writer.write(tmp_path / "again.onnx")
    quantise_network(tmp_path / "fp32.onnx", tmp_path / "alone.onnx", inputs)
    first, again, alone = ((tmp_path / f"{name}.onnx").read_bytes() for name in ("first", "again", "alone"))
    assert first == again == alone


def test_rows_are_taken_from_all_of_a_sorted_set() -> None:
    assert evenly_spaced(101, 5).tolist() == [0, 25, 50, 75, 100]
    assert evenly_spaced(3, 64).tolist() == [0, 1, 2]
    assert evenly_spaced(1, 64).tolist() == [0]


def test_sensitivity_is_probed_on_inputs_from_first_to_last(
    inputs: NDArray[np.float32], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    probed: list[NDArray[np.float32]] = []

    def recorded(network: Path, probe: NDArray[np.float32]) -> NDArray[np.float64]:
        probed.append(probe)
        return np.full((len(probe), 3), 1 / 3)

    monkeypatch.setattr("training.int8_network._probabilities", recorded)
    monkeypatch.setattr("training.int8_network._PROBE_FACES", 4)
    Int8Writer(write_network(tmp_path / "fp32.onnx"), inputs, tmp_path).most_sensitive()
    assert np.array_equal(probed[0], inputs[[0, 8, 15, 23]])


@pytest.mark.parametrize(("n", "size"), [(1024, 128), (50, 50), (21, 21), (300, 100), (131, 1)])
def test_ranges_of_the_inputs_are_equally_long(n: int, size: int) -> None:
    assert _chunk(n) == size


def test_calibration_goes_through_the_range_it_is_told(inputs: NDArray[np.float32]) -> None:
    reader = _CalibrationInputs(inputs)
    reader.set_range(2, 4)
    feeds = []
    while (feed := reader.get_next()) is not None:
        feeds.append(feed["input"])
    assert np.array_equal(np.concatenate(feeds), inputs[2:4])
    assert {feed.shape for feed in feeds} == {(1, 1, 8, 8)}
