"""A published bundle and training faces → a new version of it that also carries an int8 network, if that is as good.

Static quantisation (Jacob et al., 2018): 8-bit weights by channel, and 8-bit activations whose ranges are read off
training faces beforehand. The result is an ONNX file with QuantizeLinear and DequantizeLinear nodes, which both
onnxruntime and OpenVINO turn into integer arithmetic.
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from handlers.preprocess import preprocess
from model_store.bundle import Bundle, publish_bundle, record_file
from model_store.export import export_onnx
from model_store.manifest import (
    CARD_NAME,
    INT8_NAME,
    WEIGHTS_NAME,
    CalibrationRecord,
    EmotionManifest,
    Int8Record,
    dump_manifest,
    parse_manifest,
)
from model_store.networks import load_networks
from training.card import model_card
from training.data import FaceSet
from training.errors import DataError
from training.evaluate import Report, evaluate

if TYPE_CHECKING:
    import onnx

SEED = 0
PERCENTILE = 99.999
METHOD = f"percentile {PERCENTILE} of each activation's magnitude"


def quantise(
    bundle: Bundle, training_set: FaceSet, validation_set: FaceSet, root: Path, version: str, command: str, n: int
) -> Bundle:
    """Publish `<root>/<name>/<version>/`: the bundle's weights and records, and an int8 network.

    training_set: the faces that the model was trained on; `n` of them calibrate, at 3 MB of memory each (48 px).
    validation_set: the faces of the manifest's evaluations. command: how this was called, for the record.
    Nothing is written unless the int8 network passes the manifest's accuracy gate. Raises ManifestError when it does
    not, or when the version makes no manifest; DataError for other faces than those, or more than there are; and what
    `publish_bundle` raises.
    """
    manifest = _changed(bundle, version=version)
    if not manifest.evaluations:
        raise DataError(f"{bundle.manifest.tag} has no evaluations to hold the int8 network against")
    if training_set.sha256 != manifest.training.data_sha256:
        raise DataError(f"the faces to calibrate on are not those that {bundle.manifest.tag} was trained on")
    calibration_set = stratified_sample(training_set, n, SEED)
    size_px = manifest.input.size_px
    with tempfile.TemporaryDirectory() as work:
        fp32, int8 = Path(work) / "fp32.onnx", Path(work) / INT8_NAME
        torch_network = load_networks(bundle)["classifier"]
        example = np.zeros((2, manifest.input.channels, size_px, size_px), np.float32)
        export_onnx(torch_network, example, fp32, free_size=False)
        quantise_network(fp32, int8, preprocess(list(calibration_set.crops_u8), manifest.input))

        reports, int8_reports = (_reports(manifest, network, validation_set) for network in (fp32, int8))
        for again, scores in zip((report.evaluation for report in reports), manifest.evaluations, strict=True):
            if (again.n, again.accuracy) != (scores.n, scores.accuracy):
                raise DataError(
                    f"the validation faces are not {scores.split}: n = {again.n} with accuracy {again.accuracy}, "
                    f"in the manifest n = {scores.n} with accuracy {scores.accuracy}"
                )
        record = Int8Record(
            command=command,
            quantiser=f"onnxruntime {metadata.version('onnxruntime')}",
            calibration=CalibrationRecord(
                split=manifest.source, n=n, data_sha256=calibration_set.sha256, method=METHOD
            ),
            evaluations=tuple(report.evaluation for report in int8_reports),
        )
        files = {WEIGHTS_NAME: manifest.files[WEIGHTS_NAME], INT8_NAME: record_file(int8)}
        manifest = _changed(bundle, version=version, files=files, int8=record)
        n_parameters = sum(parameter.numel() for parameter in torch_network.parameters())
        card = model_card(manifest, reports, n_parameters)
        return publish_bundle(root, manifest, {WEIGHTS_NAME: bundle.weights, INT8_NAME: int8, CARD_NAME: card.encode()})


def stratified_sample(faces: FaceSet, n: int, seed: int) -> FaceSet:
    """`n` of the faces in their order, every class with its share of them, drawn from `seed`.

    Shares are rounded by the largest remainder. Raises DataError unless there are `n` faces, and `n` is at least 1.
    """
    if not 1 <= n <= len(faces):
        raise DataError(f"{n} faces to calibrate on, of {len(faces)}")
    shares = np.bincount(faces.labels, minlength=len(faces.label_names)) * n / len(faces)
    quotas = np.floor(shares).astype(int)
    quotas[np.argsort(quotas - shares, kind="stable")[: n - quotas.sum()]] += 1
    rng = np.random.default_rng(seed)
    chosen = np.sort(
        np.concatenate(
            [
                rng.choice(np.flatnonzero(faces.labels == label), quota, replace=False)
                for label, quota in enumerate(quotas)
            ]
        )
    )
    names = tuple(faces.names[index] for index in chosen)
    return replace(faces, crops_u8=faces.crops_u8[chosen], labels=faces.labels[chosen], names=names, rejected=())


def quantise_network(fp32: Path, int8: Path, inputs: NDArray[np.float32]) -> None:
    """Write the ONNX network `fp32` to `int8` with 8-bit convolutions and linear layers; the same inputs give the
    same bytes.

    inputs: float32 (N, C, H, W), what the ranges of the activations are read off.
    The first convolution and the last linear layer stay in float: they cost little, and the probabilities stay closer
    to the float network's. Weights use 7 of their 8 bits, so that the sum of two products fits in 16 bits: processors
    without VNNI instructions add them so, and saturate silently.
    """
    import onnx
    from onnxruntime.quantization import CalibrationMethod, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    prepared = int8.with_name("prepared.onnx")
    quant_pre_process(fp32, prepared, skip_optimization=True, skip_symbolic_shape=True)
    nodes = onnx.load(prepared).graph.node
    convolutions = [node.name for node in nodes if node.op_type == "Conv"]
    linear_layers = [node.name for node in nodes if node.op_type in ("Gemm", "MatMul")]
    with contextlib.redirect_stdout(io.StringIO()):  # the calibrator prints its progress
        quantize_static(
            prepared,
            int8,
            _CalibrationInputs(inputs),
            op_types_to_quantize=["Conv", "Gemm", "MatMul"],
            nodes_to_exclude=convolutions[:1] + linear_layers[-1:],
            per_channel=True,
            reduce_range=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
            calibrate_method=CalibrationMethod.Percentile,
            extra_options={"CalibPercentile": PERCENTILE},
        )
    network = onnx.load(int8)
    _drop_notes(network)
    onnx.save(network, int8)


class _CalibrationInputs:
    """Inputs one by one, as onnxruntime's calibrator asks for them; it can join batches of one size only."""

    def __init__(self, inputs: NDArray[np.float32]) -> None:
        self._batches: Iterator[NDArray[np.float32]] = iter(inputs[:, None])

    def get_next(self) -> dict[str, NDArray[np.float32]] | None:
        """The next feed, None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {"input": batch}


def _drop_notes(network: onnx.ModelProto) -> None:
    """Remove what the exporter notes of its own source (stack traces with paths of this machine)."""
    graph = network.graph
    del graph.value_info[:]
    for part in (graph, *graph.node, *graph.input, *graph.output, *graph.initializer):
        del part.metadata_props[:]


def _reports(manifest: EmotionManifest, network: Path, faces: FaceSet) -> list[Report]:
    """One report for each of the manifest's evaluations, of an ONNX file that no engine loads yet."""
    import onnxruntime

    session = onnxruntime.InferenceSession(str(network), providers=["CPUExecutionProvider"])

    def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        return tuple(session.run(None, {"input": inputs}))

    return [evaluate(manifest, run, faces, scores.split, scores.tta) for scores in manifest.evaluations]


def _changed(bundle: Bundle, **changes: object) -> EmotionManifest:
    """The bundle's manifest with other values, validated as on reading it. Raises ManifestError or DataError."""
    changed = bundle.manifest.model_copy(update=changes)
    manifest = parse_manifest(dump_manifest(changed), changed.tag)
    if not isinstance(manifest, EmotionManifest):
        raise DataError(f"{changed.tag} is not an emotion classifier")
    return manifest
