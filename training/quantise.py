"""A published bundle and training faces → a new version of it that also carries an int8 network, if that is as good.

Layers that do not bear 8 bits are left in float until the manifest's accuracy gate is passed, the most sensitive first:
networks with squeeze-and-excitation and hard swish, MobileNetV3 say, need that, residual networks do not.
"""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path

import numpy as np

from handlers.classifier import EmotionClassifier
from handlers.engines import Precision
from handlers.preprocess import preprocess
from model_store.bundle import Bundle, new_folder, publish_bundle, record_file
from model_store.export import export_onnx
from model_store.manifest import (
    CARD_NAME,
    INT8_NAME,
    MAX_INT8_ACCURACY_LOSS,
    WEIGHTS_NAME,
    CalibrationRecord,
    EmotionManifest,
    Int8Record,
    dump_manifest,
    parse_manifest,
)
from model_store.networks import load_networks
from training.card import model_card
from training.complexity import complexity_of
from training.data import FaceSet
from training.errors import DataError
from training.evaluate import Report
from training.export_study import ExportRow, network_of_file, reports_of_file, row_of, write_dynamic_int8
from training.int8_network import METHOD, Int8Writer
from training.wild import Photographs, WildReport, score_wild

SEED = 0
_ROUNDED_FACES = 2.5
"""So many faces may be called otherwise by the ONNX file than by torch: their two best logits are all but equal."""
_STEPS = (0, 1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64)
_LARGEST_FLOAT_SHARE = 0.5


class Int8GateError(DataError):
    """No int8 network passed the accuracy gate. `rows` are the figures of all that was tried."""

    def __init__(self, message: str, rows: Sequence[ExportRow]) -> None:
        super().__init__(message)
        self.rows = tuple(rows)


def quantise(
    bundle: Bundle,
    training_set: FaceSet,
    validation_set: FaceSet,
    root: Path,
    version: str,
    command: str,
    n: int,
    *,
    keep_float: int | None = None,
    or_without: bool = False,
    photographs: Photographs | None = None,
) -> Bundle:
    """Publish `<root>/<name>/<version>/`: the bundle's weights and records, and an int8 network.

    training_set: the faces that the model was trained on; `n` of them calibrate (multiples of 128 do it in the least
    memory). validation_set: the faces of the manifest's evaluations. command: how this was called, for the record.
    keep_float: how many layers stay in float beside the first and the last; as few as pass the manifest's accuracy
    gate unless given, and at most half. or_without: where no int8 network passes, publish without one, with the
    figures in the card. photographs: what to score on, for the card.
    Else nothing is written unless the int8 network passes. Raises Int8GateError when none does, ManifestError when the
    version makes no manifest; DataError for other faces than those, or more than there are; and what `publish_bundle`
    raises.
    """
    manifest = _changed(bundle, version=version)
    new_folder(root, manifest.name, version)
    if not manifest.evaluations:
        raise DataError(f"{bundle.manifest.tag} has no evaluations to hold the int8 network against")
    if training_set.sha256 != manifest.training.data_sha256:
        raise DataError(f"the faces to calibrate on are not those that {bundle.manifest.tag} was trained on")
    calibration_set = stratified_sample(training_set, n, SEED)
    size_px = manifest.input.size_px
    with tempfile.TemporaryDirectory() as work:
        fp32, dynamic = Path(work) / "fp32.onnx", Path(work) / "dynamic.onnx"
        torch_network = load_networks(bundle)["classifier"]
        example = np.zeros((2, manifest.input.channels, size_px, size_px), np.float32)
        export_onnx(torch_network, example, fp32, free_size=False)
        writer = Int8Writer(fp32, preprocess(list(calibration_set.crops_u8), manifest.input), Path(work))
        counts = _float_counts(len(writer.layers), keep_float)
        reports = _reports(manifest, fp32, validation_set)
        for again, scores in zip((report.evaluation for report in reports), manifest.evaluations, strict=True):
            if again.n != scores.n or abs(again.accuracy - scores.accuracy) * scores.n > _ROUNDED_FACES:
                raise DataError(
                    f"the validation faces are not {scores.split}: n = {again.n} with accuracy {again.accuracy}, "
                    f"in the manifest n = {scores.n} with accuracy {scores.accuracy}"
                )
        reports = [
            replace(report, evaluation=scores) for report, scores in zip(reports, manifest.evaluations, strict=True)
        ]
        write_dynamic_int8(fp32, dynamic)
        rows = [
            row_of("fp32", fp32, manifest.input, reports),
            row_of("dynamic int8", dynamic, manifest.input, _reports(manifest, dynamic, validation_set)),
        ]
        trials = _trials(writer, manifest, reports, validation_set, Path(work), counts)
        rows += [row_of(trial.name, trial.path, manifest.input, trial.reports) for trial in trials]
        chosen = trials[-1]
        files: dict[str, bytes | Path] = {WEIGHTS_NAME: bundle.weights}
        changes: dict[str, object] = {"version": version, "int8": None}
        if chosen.passes:
            files[INT8_NAME] = chosen.path
            changes["int8"] = Int8Record(
                command=command,
                quantiser=f"onnxruntime {metadata.version('onnxruntime')}",
                calibration=CalibrationRecord(
                    split=manifest.source, n=n, data_sha256=calibration_set.sha256, method=METHOD
                ),
                evaluations=tuple(report.evaluation for report in chosen.reports),
                float_layers=chosen.float_layers,
            )
        elif not or_without:
            raise Int8GateError(_refusal(bundle.manifest.tag, trials, reports), rows)
        recorded = {name: record_file(path) for name, path in files.items() if isinstance(path, Path)}
        manifest = _changed(bundle, **changes, files=recorded)
        card = model_card(
            manifest,
            reports,
            complexity_of(torch_network, manifest.input),
            exports=rows,
            wild=() if photographs is None else _wild(manifest, fp32, chosen, photographs),
        )
        return publish_bundle(root, manifest, {**files, CARD_NAME: card.encode()})


@dataclass(frozen=True)
class _Trial:
    """One int8 network, which layers it has in float beside the first and the last, and what it scores."""

    path: Path
    float_layers: tuple[str, ...]
    reports: list[Report]
    passes: bool

    @property
    def name(self) -> str:
        if not self.float_layers:
            return "static int8"
        return f"static int8, {len(self.float_layers)} more layers in float"


def _float_counts(n_layers: int, keep_float: int | None) -> list[int]:
    """How many layers to leave in float, one try after the other. Raises DataError for more than half of them."""
    most = int(n_layers * _LARGEST_FLOAT_SHARE)
    if keep_float is None:
        return [step for step in _STEPS if step <= most]
    if not 0 <= keep_float <= most:
        raise DataError(f"{keep_float} layers in float: of this network's {n_layers} it can be 0 to {most}")
    return [keep_float]


def _trials(
    writer: Int8Writer,
    manifest: EmotionManifest,
    reports: Sequence[Report],
    faces: FaceSet,
    work: Path,
    counts: Sequence[int],
) -> list[_Trial]:
    """Networks with `counts` layers in float, more and more; the last one passes the gate, or none does."""
    ranking: list[str] = []
    trials: list[_Trial] = []
    for count in counts:
        if count and not ranking:
            ranking = writer.most_sensitive()
        path, float_layers = work / f"int8-{count}.onnx", tuple(ranking[:count])
        writer.write(path, float_layers)
        int8_reports = _reports(manifest, path, faces)
        passes = all(
            int8.evaluation.accuracy >= round(fp32.evaluation.accuracy - MAX_INT8_ACCURACY_LOSS, 5)
            for fp32, int8 in zip(reports, int8_reports, strict=True)
        )
        trials.append(_Trial(path, float_layers, int8_reports, passes))
        if passes:
            break
    return trials


def _wild(manifest: EmotionManifest, fp32: Path, int8: _Trial, photographs: Photographs) -> list[WildReport]:
    files: list[tuple[Precision, Path]] = [("fp32", fp32)]
    if int8.passes:
        files.append(("int8", int8.path))
    return [
        score_wild(EmotionClassifier(manifest, network_of_file(path)), photographs, precision)
        for precision, path in files
    ]


def _refusal(tag: str, trials: Sequence[_Trial], reports: Sequence[Report]) -> str:
    def figures(scored: Sequence[Report]) -> str:
        return ", ".join(f"{report.evaluation.accuracy:.2%} (TTA {report.evaluation.tta})" for report in scored)

    tried = "; ".join(f"{trial.name} {figures(trial.reports)}" for trial in trials)
    return (
        f"{tag}: no int8 network comes within {MAX_INT8_ACCURACY_LOSS:.1%} of fp32's {figures(reports)}: {tried}. "
        "It can be published without one"
    )


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
    return faces.rows(chosen)


def _reports(manifest: EmotionManifest, network: Path, faces: FaceSet) -> list[Report]:
    """One report for each of the manifest's evaluations."""
    return reports_of_file(manifest, network, faces, [(scores.split, scores.tta) for scores in manifest.evaluations])


def _changed(bundle: Bundle, **changes: object) -> EmotionManifest:
    """The bundle's manifest with other values, validated as on reading it. Raises ManifestError or DataError."""
    changed = bundle.manifest.model_copy(update=changes)
    manifest = parse_manifest(dump_manifest(changed), changed.tag)
    if not isinstance(manifest, EmotionManifest):
        raise DataError(f"{changed.tag} is not an emotion classifier")
    return manifest
