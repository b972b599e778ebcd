"""What each form of a network scores and costs: fp32, dynamic int8 and static int8, as ONNX files in onnxruntime."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from handlers.engines import Network
from model_store.manifest import EmotionManifest, InputSpec, Tta
from training.complexity import latencies_ms
from training.data import FaceSet
from training.evaluate import Report, evaluate


@dataclass(frozen=True)
class ExportRow:
    """One form of a network: its accuracies as shares, milliseconds a face, and bytes.

    accuracy_flip: with flip TTA, None where that was not scored. ms: median of one face on one thread,
    measured here and now.
    """

    name: str
    accuracy: float
    accuracy_flip: float | None
    ms: float
    size_bytes: int


def row_of(name: str, network: Path, spec: InputSpec, reports: Sequence[Report]) -> ExportRow:
    """The row of an ONNX file whose scores are known: reports without TTA and, it may be, with flip."""
    accuracy = {report.evaluation.tta: report.evaluation.accuracy for report in reports}
    (ms,) = latencies_ms([(network, spec)])
    return ExportRow(name, accuracy["none"], accuracy.get("flip"), ms, network.stat().st_size)


def reports_of_file(
    manifest: EmotionManifest, network: Path, faces: FaceSet, ways: Sequence[tuple[str, Tta]]
) -> list[Report]:
    """Score an ONNX file that no engine loads yet. ways: a split's name and TTA for each report."""
    run = network_of_file(network)
    known: dict[bytes, tuple[NDArray[np.float32], ...]] = {}

    def remembering(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        key = hashlib.sha256(inputs.tobytes()).digest()  # with flip TTA half of the inputs come again
        if key not in known:
            known[key] = run(inputs)
        return known[key]

    return [evaluate(manifest, remembering, faces, split, tta) for split, tta in ways]


def network_of_file(network: Path) -> Network:
    """An ONNX file as an engine would load it, in onnxruntime on all cores."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])

    def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        return tuple(session.run(None, {"input": inputs}))

    return run


def write_dynamic_int8(fp32: Path, int8: Path) -> None:
    """Write `fp32` with 8-bit weights, its activations' ranges taken afresh from every input.

    Weights are unsigned: onnxruntime has no other integer convolution with dynamic ranges on the CPU.
    """
    import onnx
    from onnxruntime.quantization import QuantType, quantize_dynamic

    network = onnx.load(fp32)
    del network.graph.value_info[:]  # shapes that do not survive the quantiser's transposing of linear layers
    plain = int8.with_name(f"plain-{int8.name}")
    onnx.save(network, plain)
    quantize_dynamic(plain, int8, op_types_to_quantize=["Conv", "Gemm", "MatMul"], weight_type=QuantType.QUInt8)
