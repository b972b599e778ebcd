"""What a run leaves for its readers: scores as JSON, CSV and text, and the pictures of `training.plots`.

    metrics.json                  everything below as numbers, see `training.finished_run.RunMetrics`; written last
    metrics.csv                   the same scores, a row a number
    classification_report.txt     precision, recall, F1 of each class (and .json)
    predictions.csv               what the network calls each face, and how sure it is
    training_curves.png  confusion_matrix.png  confusion_matrix_flip.png  roc.png  reliability.png

Scores are those of the best epoch's weights as they are published, see `training.finished_run.as_stored`.
"""

from __future__ import annotations

import csv
import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from handlers.classifier import probabilities_of
from model_store.manifest import explain_validation
from training.calibrate import fit_temperature, negative_log_likelihood
from training.complexity import complexity_of, export_for_timing, latencies_ms
from training.config import Experiment
from training.data import FaceSet
from training.errors import CheckpointError
from training.evaluate import evaluation_of
from training.finished_run import METRICS, RunMetrics, load_best, read_curves
from training.history import BEST
from training.loop import predict_logits
from training.metrics import Scores, reliability_bins, roc_curves, worst_class
from training.plots import draw_confusion, draw_reliability, draw_roc, draw_training_curves

REPORT_TEXT = "classification_report.txt"


def write_artefacts(
    folder: Path,
    experiment: Experiment,
    validation_set: FaceSet,
    *,
    split: str = "validation",
    log: Callable[[str], None] = print,
) -> RunMetrics:
    """Score a finished or stopped run's best checkpoint on the faces that chose it, and write the module's files.

    folder: a run's, or that of its last stage. validation_set: of the experiment's size, channels and labels.
    split: what to call these faces. Files that stand are replaced.
    Raises CheckpointError when the folder has no run, or one of another configuration or other validation faces.
    """
    network, size_bytes, state = load_best(folder, experiment, validation_set)
    if state.get("validation_sha256") != validation_set.sha256:
        raise CheckpointError(f"{folder / BEST}: it was not chosen on the given validation faces")
    labels, truth = experiment.labels, validation_set.labels
    logits = predict_logits(network, validation_set, experiment)
    mirrored = replace(validation_set, crops_u8=np.ascontiguousarray(validation_set.crops_u8[:, :, ::-1]))
    logits_flip = (logits + predict_logits(network, mirrored, experiment)) * np.float32(0.5)
    temperature = fit_temperature(logits, truth)
    plain, scores = evaluation_of(logits, temperature, validation_set, split, "none")
    flipped, scores_flip = evaluation_of(logits_flip, temperature, validation_set, split, "flip")
    raw, calibrated = (probabilities_of(logits, value) for value in (1.0, temperature))

    about = f"{experiment.name}, {split}"
    history, stages = read_curves(folder)
    draw_training_curves(folder / "training_curves.png", history, stages)
    for name, found, way in (("", scores, "no"), ("_flip", scores_flip, "flip")):
        title = f"{about}: {found.accuracy:.2%}, {way} TTA"
        draw_confusion(folder / f"confusion_matrix{name}.png", found.confusion, labels, title)
    curves = roc_curves(calibrated, truth, labels)
    draw_roc(folder / "roc.png", curves, f"{about}:\none class against the rest")
    panels = {
        "before temperature": (reliability_bins(raw, truth), plain.ece_uncalibrated),
        f"after temperature {temperature:.3f}": (reliability_bins(calibrated, truth), plain.ece),
    }
    draw_reliability(folder / "reliability.png", panels)
    (folder / REPORT_TEXT).write_text(report_text(scores))
    (folder / "classification_report.json").write_text(json.dumps(report_values(scores), indent=2) + "\n")
    _write_predictions(folder / "predictions.csv", validation_set, calibrated)

    areas = {name: round(curve.auc, 5) for name, curve in curves.items()}
    complexity = complexity_of(network, experiment.input)
    with tempfile.TemporaryDirectory() as work:
        exported = export_for_timing(network, experiment.input, Path(work) / "classifier.onnx")
        (ms,) = latencies_ms([(exported, experiment.input)])
    metrics = _checked(
        folder / BEST,
        {
            "name": experiment.name,
            "config_sha256": experiment.sha256(),
            "data_sha256": state.get("data_sha256"),
            "epoch": len(state["history"]),  # type: ignore[arg-type]
            "epochs": experiment.optim.epochs,
            "labels": labels,
            "class_counts": tuple(state.get("class_counts", ())),  # type: ignore[arg-type]
            "temperature": temperature,
            "nll_uncalibrated": round(negative_log_likelihood(logits, truth, 1.0), 5),
            "nll": round(negative_log_likelihood(logits, truth, temperature), 5),
            "evaluations": (plain, flipped),
            "worst_class": worst_class(scores.per_class),
            "auc": areas,
            "macro_auc": round(float(np.mean(list(areas.values()))), 5) if areas else None,
            "confusion": tuple(tuple(row) for row in scores.confusion.tolist()),
            "parameters": complexity.parameters,
            "macs": complexity.macs,
            "size_bytes": size_bytes,
            "ms": ms,
        },
    )
    _write_scores(folder / "metrics.csv", metrics)
    (folder / METRICS).write_text(metrics.model_dump_json(indent=2) + "\n")
    log(f"{metrics.name}: accuracy {scores.accuracy:.4f}, with flip {scores_flip.accuracy:.4f}; see {folder / METRICS}")
    return metrics


def report_values(scores: Scores) -> dict[str, object]:
    """Scores in the shape of scikit-learn's `classification_report(output_dict=True)`."""
    counts = np.array([metrics.n for metrics in scores.per_class.values()])
    by_class = np.array([(one.precision, one.recall, one.f1) for one in scores.per_class.values()])
    keys = ("precision", "recall", "f1-score")
    means = {"macro avg": by_class.mean(0), "weighted avg": counts @ by_class / counts.sum()}
    return {
        **{
            name: {**dict(zip(keys, row.tolist(), strict=True)), "support": int(n)}
            for name, row, n in zip(scores.per_class, by_class, counts, strict=True)
        },
        "accuracy": scores.accuracy,
        **{
            name: {**{key: round(float(value), 5) for key, value in zip(keys, row, strict=True)}, "support": scores.n}
            for name, row in means.items()
        },
    }


def report_text(scores: Scores) -> str:
    """The same as a table for people."""
    width = max(len("weighted avg"), *(len(name) for name in scores.per_class))
    lines = [f"{'':{width}} {'precision':>10} {'recall':>10} {'f1-score':>10} {'support':>10}", ""]
    for name, values in report_values(scores).items():
        if isinstance(values, dict):
            figures = " ".join(f"{values[key]:10.4f}" for key in ("precision", "recall", "f1-score"))
            lines.append(f"{name:{width}} {figures} {values['support']:10d}")
        else:
            lines += ["", f"{name:{width}} {'':10} {'':10} {values:10.4f} {scores.n:10d}"]
    return "\n".join(lines) + "\n"


def _checked(path: Path, values: dict[str, object]) -> RunMetrics:
    try:
        return RunMetrics.model_validate(values)
    except ValidationError as error:
        raise CheckpointError(f"{path}: {explain_validation(error)}") from None


def _write_predictions(path: Path, faces: FaceSet, probabilities: NDArray[np.float32]) -> None:
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["face", "label", "called", "confidence", *faces.label_names])
        for name, label, row in zip(faces.names, faces.labels, probabilities, strict=True):
            called = int(row.argmax())
            shown = [f"{value:.5f}" for value in (row[called], *row)]
            writer.writerow([name, faces.label_names[label], faces.label_names[called], *shown])


def _write_scores(path: Path, metrics: RunMetrics) -> None:
    """A row a number: what, of which class (empty for all), with which test-time augmentation (or empty)."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["metric", "class", "tta", "value"])
        for scores in metrics.evaluations:
            for key in ("n", "accuracy", "macro_f1", "ece_uncalibrated", "ece"):
                writer.writerow([key, "", scores.tta, getattr(scores, key)])
            for label in metrics.labels:
                for key in ("n", "precision", "recall", "f1"):
                    writer.writerow([key, label, scores.tta, getattr(scores.per_class[label], key)])
        for label, area in metrics.auc.items():
            writer.writerow(["auc", label, "none", area])
        for key in ("macro_auc", "nll_uncalibrated", "nll"):
            writer.writerow([key, "", "none", getattr(metrics, key)])
        for key in ("temperature", "epoch", "parameters", "macs", "size_bytes", "ms"):
            writer.writerow([key, "", "", getattr(metrics, key)])
