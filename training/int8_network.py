"""An ONNX network in float32 → the same in 8-bit arithmetic, but for the layers that do not bear it.

Static quantisation (Jacob et al., 2018): 8-bit weights by channel, and 8-bit activations whose ranges are read off
faces beforehand. The result has QuantizeLinear and DequantizeLinear nodes, which both onnxruntime and OpenVINO turn
into integer arithmetic.
"""

from __future__ import annotations

import contextlib
import io
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from handlers.classifier import probabilities_of

if TYPE_CHECKING:
    import onnx

PERCENTILE = 99.999
METHOD = f"percentile {PERCENTILE} of each activation's magnitude"
_OPERATIONS = ("Conv", "Gemm", "MatMul")
_LARGEST_CHUNK = 128
_PROBE_FACES = 64


def evenly_spaced(n: int, most: int) -> NDArray[np.int64]:
    """Up to `most` of the indices 0 to n - 1: data from class folders is sorted, its first rows are of one class."""
    return np.linspace(0, n - 1, min(n, most)).round().astype(np.int64)


class Int8Writer:
    """Writes int8 networks of one float network, with whichever layers left in float.

    fp32: the ONNX file. inputs: float32 (N, C, H, W), what the ranges of the activations are read off, once. work: a
    folder for files that nobody needs later. The same inputs give the same files.
    The first convolution and the last linear layer always stay in float: they cost little, and the probabilities stay
    closer to the float network's. Weights use 7 of their 8 bits, so that the sum of two products fits in 16 bits:
    processors without VNNI instructions add them so, and saturate silently.
    """

    def __init__(self, fp32: Path, inputs: NDArray[np.float32], work: Path) -> None:
        import onnx
        from onnxruntime.quantization.shape_inference import quant_pre_process

        self._fp32, self._inputs = fp32, inputs
        self._prepared, self._ranges, self._trial = (
            work / name for name in ("prepared.onnx", "ranges.json", "trial.onnx")
        )
        quant_pre_process(fp32, self._prepared, skip_optimization=True, skip_symbolic_shape=True)
        graph = onnx.load(self._prepared).graph
        constants = {tensor.name for tensor in graph.initializer}
        weighted = [node for node in graph.node if node.op_type in _OPERATIONS and node.input[1] in constants]
        convolutions = [node.name for node in weighted if node.op_type == "Conv"]
        linear_layers = [node.name for node in weighted if node.op_type != "Conv"]
        self._always_float = (*convolutions[:1], *linear_layers[-1:])
        self.layers = tuple(node.name for node in weighted if node.name not in self._always_float)
        """The layers that can be in 8 bits, by their names in the ONNX graph, from the input on."""

    def write(self, int8: Path, float_layers: Collection[str] = ()) -> None:
        """Write the network to `int8` with these of `layers` in float."""
        import onnx
        from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static

        with contextlib.redirect_stdout(io.StringIO()):  # the calibrator prints its progress
            quantize_static(
                self._prepared,
                int8,
                _CalibrationInputs(self._inputs),
                op_types_to_quantize=list(_OPERATIONS),
                nodes_to_exclude=[*self._always_float, *float_layers],
                per_channel=True,
                reduce_range=True,
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                calibrate_method=CalibrationMethod.Percentile,
                calibration_cache_path=self._ranges,
                extra_options={
                    "CalibPercentile": PERCENTILE,
                    "CalibStridedMinMax": _chunk(len(self._inputs)),
                    "MatMulConstBOnly": True,
                },
            )
        network = onnx.load(int8)
        _drop_notes(network)
        onnx.save(network, int8)

    def most_sensitive(self) -> list[str]:
        """`layers`, first those that do most harm: how far the probabilities move when a layer alone is in 8 bits.

        Distances are Kullback-Leibler divergences from the float network's, their mean over inputs from all of them.
        """
        probe = self._inputs[evenly_spaced(len(self._inputs), _PROBE_FACES)]
        wanted = _probabilities(self._fp32, probe)
        harm = {}
        for layer in self.layers:
            self.write(self._trial, [other for other in self.layers if other != layer])
            given = _probabilities(self._trial, probe)
            harm[layer] = float((wanted * np.log(wanted / given)).sum(1).mean())
        return sorted(self.layers, key=lambda layer: -harm[layer])


def quantise_network(fp32: Path, int8: Path, inputs: NDArray[np.float32]) -> None:
    """Write the ONNX network `fp32` to `int8` with all layers in 8 bits that `Int8Writer` knows; see there."""
    work = int8.parent / f"{int8.stem}-work"
    work.mkdir()
    Int8Writer(fp32, inputs, work).write(int8)


class _CalibrationInputs:
    """Inputs one by one, as onnxruntime's calibrator asks for them; it can join batches of one size only.

    The calibrator keeps every activation of a range in memory, so it is told to go through the inputs range by range.
    """

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self._inputs = inputs
        self.set_range(0, len(inputs))

    def __len__(self) -> int:
        return len(self._inputs)

    def set_range(self, start_index: int, end_index: int) -> None:
        self._batches: Iterator[NDArray[np.float32]] = iter(self._inputs[start_index:end_index, None])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next feed, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


def _chunk(n: int) -> int:
    """The largest divisor of `n` up to `_LARGEST_CHUNK`: the calibrator takes ranges of one length only."""
    return next(size for size in range(min(n, _LARGEST_CHUNK), 0, -1) if n % size == 0)


def _probabilities(network: Path, inputs: NDArray[np.float32]) -> NDArray[np.float64]:
    import onnxruntime

    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])
    (logits,) = session.run(None, {"input": inputs})
    return np.maximum(probabilities_of(logits, 1.0).astype(np.float64), 1e-9)


def _drop_notes(network: onnx.ModelProto) -> None:
    """Remove what the exporter notes of its own source (stack traces with paths of this machine)."""
    graph = network.graph
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]
