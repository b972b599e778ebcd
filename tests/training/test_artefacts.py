from __future__ import annotations

import argparse
import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from model_store.bundle import Bundle
from model_store.manifest import EmotionManifest
from tests.training.conftest import FinishedRun
from tests.training.faces import generated_faces, parquet_rows, tiny_experiment, write_parquet
from training.artefacts import report_text, report_values, write_artefacts
from training.checkpoint import load_checkpoint, save_checkpoint
from training.commands import report as report_command
from training.config import Experiment
from training.data import FaceSet
from training.errors import CheckpointError
from training.finished_run import (
    RunMetrics,
    last_stage,
    load_best,
    read_curves,
    read_experiment,
    read_metrics,
    split_name,
)
from training.metrics import score
from training.recipe import sized

NAMES = ("angry", "happy", "sad")


@dataclass(frozen=True)
class Reported:
    folder: Path
    metrics: RunMetrics
    said: list[str]


@pytest.fixture(scope="module")
def reported(finished_run: FinishedRun, tmp_path_factory: pytest.TempPathFactory) -> Reported:
    folder = tmp_path_factory.mktemp("reported") / "run"
    shutil.copytree(finished_run.folder, folder)
    said: list[str] = []
    metrics = write_artefacts(
        folder, finished_run.experiment, finished_run.validation_set, split="generated", log=said.append
    )
    return Reported(folder, metrics, said)


@pytest.fixture
def untimed(monkeypatch: pytest.MonkeyPatch) -> None:
    """No export, and of the pictures a coarse one, for the tests that are about neither."""
    for name in ("draw_training_curves", "draw_confusion", "draw_reliability"):
        monkeypatch.setattr(f"training.artefacts.{name}", lambda *given: None)
    monkeypatch.setattr("training.artefacts.export_for_timing", lambda network, spec, path: path)
    monkeypatch.setattr("training.artefacts.latencies_ms", lambda files: [1.5])
    monkeypatch.setattr("training.plots._DPI", 30)


def test_scores_are_those_of_the_bundle_that_is_published(reported: Reported, published: Bundle) -> None:
    manifest = published.manifest
    assert isinstance(manifest, EmotionManifest)
    metrics = reported.metrics
    assert metrics.temperature == pytest.approx(manifest.temperature, abs=2e-5)
    for mine, theirs in zip(metrics.evaluations, manifest.evaluations, strict=True):
        assert (mine.tta, mine.n, mine.accuracy) == (theirs.tta, theirs.n, theirs.accuracy)
        assert mine.per_class == theirs.per_class
        assert (mine.ece, mine.ece_uncalibrated) == pytest.approx((theirs.ece, theirs.ece_uncalibrated), abs=2e-5)
    assert metrics.config_sha256 == manifest.training.config_sha256
    assert metrics.data_sha256 == manifest.training.data_sha256
    assert metrics.size_bytes == manifest.files["model.safetensors"].size_bytes
    assert metrics.nll <= metrics.nll_uncalibrated
    assert 1 <= metrics.epoch <= metrics.epochs == 3


def test_every_file_is_there_and_metrics_can_be_read_back(reported: Reported, finished_run: FinishedRun) -> None:
    before = {path.name for path in finished_run.folder.iterdir()}
    assert {path.name for path in reported.folder.iterdir()} - before == {
        "metrics.json",
        "metrics.csv",
        "classification_report.txt",
        "classification_report.json",
        "predictions.csv",
        "training_curves.png",
        "confusion_matrix.png",
        "confusion_matrix_flip.png",
        "roc.png",
        "reliability.png",
    }
    assert read_metrics(reported.folder) == reported.metrics
    (line,) = reported.said
    assert f"accuracy {reported.metrics.evaluations[0].accuracy:.4f}" in line
    assert "metrics.json" in line


def test_predictions_add_up_to_the_confusion(reported: Reported, finished_run: FinishedRun) -> None:
    metrics = reported.metrics
    confusion = np.zeros((7, 7), int)
    with (reported.folder / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for row in rows:
        confusion[metrics.labels.index(row["label"]), metrics.labels.index(row["called"])] += 1
        shares = {label: float(row[label]) for label in metrics.labels}
        assert sum(shares.values()) == pytest.approx(1, abs=1e-4)
        assert float(row["confidence"]) == shares[row["called"]] == max(shares.values())
    assert [row["face"] for row in rows] == list(finished_run.validation_set.names)
    assert confusion.tolist() == [list(row) for row in metrics.confusion]
    assert np.trace(confusion) / len(rows) == pytest.approx(metrics.evaluations[0].accuracy, abs=1e-5)


def test_csv_holds_the_numbers_of_the_json(reported: Reported) -> None:
    metrics = reported.metrics
    with (reported.folder / "metrics.csv").open(newline="") as file:
        found = {(row["metric"], row["class"], row["tta"]): float(row["value"]) for row in csv.DictReader(file)}
    for scores in metrics.evaluations:
        assert found["accuracy", "", scores.tta] == scores.accuracy
        assert found["ece", "", scores.tta] == scores.ece
        for label, one in scores.per_class.items():
            assert found["recall", label, scores.tta] == one.recall
    for key in ("temperature", "parameters", "macs", "size_bytes", "ms", "epoch"):
        assert found[key, "", ""] == getattr(metrics, key)
    assert found["auc", "happy", "none"] == metrics.auc["happy"]
    assert (
        found["macro_auc", "", "none"]
        == metrics.macro_auc
        == pytest.approx(np.mean(list(metrics.auc.values())), abs=1e-5)
    )


def test_counts_are_those_of_the_training_set(reported: Reported, finished_run: FinishedRun) -> None:
    counts = np.bincount(finished_run.training_set.labels, minlength=7)
    assert reported.metrics.class_counts == tuple(counts.tolist())


def test_report_of_a_small_case_worked_out_by_hand() -> None:
    # angry 2 of 3 found and 2 of 3 called right; happy 1 of 2, 1 of 2; sad 1 of 1, 1 of 1.
    called = np.eye(3)[[0, 0, 1, 1, 0, 2]]
    scores = score(called, np.array([0, 0, 0, 1, 1, 2]), NAMES)
    values = report_values(scores)
    assert values["angry"] == {"precision": 0.66667, "recall": 0.66667, "f1-score": 0.66667, "support": 3}
    assert values["accuracy"] == 0.66667
    assert values["macro avg"] == {"precision": 0.72222, "recall": 0.72222, "f1-score": 0.72222, "support": 6}
    assert values["weighted avg"] == {"precision": 0.66667, "recall": 0.66667, "f1-score": 0.66667, "support": 6}
    table = {line.split("  ")[0].strip(): line.split() for line in report_text(scores).splitlines() if line.strip()}
    assert table["happy"][1:] == ["0.5000", "0.5000", "0.5000", "2"]
    assert table["macro avg"][2:] == ["0.7222", "0.7222", "0.7222", "6"]
    assert table["accuracy"][1:] == ["0.6667", "6"]


def test_other_validation_faces_are_refused(finished_run: FinishedRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run.folder, folder)
    with pytest.raises(CheckpointError, match="validation faces"):
        write_artefacts(folder, finished_run.experiment, generated_faces(105, seed=5))
    with pytest.raises(CheckpointError, match="another configuration"):
        write_artefacts(folder, tiny_experiment(seed=9), finished_run.validation_set)
    assert not (folder / "metrics.json").exists()


def break_json(folder: Path) -> None:
    (folder / "metrics.json").write_text('{"name": 3}')
    (folder / "experiment.json").write_text('{"name": 3}')


@pytest.mark.parametrize("change", [break_json, shutil.rmtree], ids=["broken", "absent"])
def test_unreadable_files_are_named(reported: Reported, tmp_path: Path, change: Callable[[Path], None]) -> None:
    folder = tmp_path / "run"
    shutil.copytree(reported.folder, folder)
    change(folder)
    with pytest.raises(CheckpointError, match=r"metrics\.json"):
        read_metrics(folder)
    with pytest.raises(CheckpointError, match=r"experiment\.json"):
        read_experiment(folder)


def with_stages(run: FinishedRun, folder: Path, n: int) -> Path:
    for index in range(1, n + 1):
        shutil.copytree(run.folder, folder / f"stage-{index}")
    return folder


def test_last_stage_is_the_highest_number_with_weights(finished_run: FinishedRun, tmp_path: Path) -> None:
    run = with_stages(finished_run, tmp_path / "run", 2)
    shutil.copytree(run / "stage-2", run / "stage-10")
    shutil.copytree(run / "stage-2", run / "stage-x")
    assert last_stage(run) == run / "stage-10"
    (run / "stage-10" / "best.safetensors").unlink()  # has only begun
    assert last_stage(run) == run / "stage-2"
    assert last_stage(finished_run.folder) == finished_run.folder
    with pytest.raises(CheckpointError, match="best"):
        last_stage(tmp_path)


def test_curves_of_all_stages_are_joined(finished_run: FinishedRun, tmp_path: Path) -> None:
    run = with_stages(finished_run, tmp_path / "run", 2)
    alone, one = read_curves(finished_run.folder)
    joined, both = read_curves(run / "stage-2")
    assert (one, both) == ([3], [3, 3])
    assert joined["train_loss"].tolist() == alone["train_loss"].tolist() * 2
    assert read_curves(run / "stage-1")[1] == [3]
    (run / "stage-1" / "history.csv").write_text("epoch\n1\n")
    with pytest.raises(CheckpointError, match=r"history\.csv"):
        read_curves(run / "stage-2")


def test_splits_of_fer2013_have_one_name_whatever_the_file() -> None:
    faces = generated_faces(3)
    public = replace(faces, names=("PublicTest_57272892.jpg", "PublicTest_28709", "PublicTest_1.jpg"))
    assert split_name(public, "label") == "FER2013 PublicTest"
    assert split_name(public, "ferplus-distribution") == "FER2013 PublicTest, FER+ majority"
    assert split_name(replace(public, names=("Training_1", *public.names[1:])), "label") is None
    assert split_name(faces, "label") is None


def test_best_is_rounded_as_it_is_published(finished_run: FinishedRun) -> None:
    network, _, _ = load_best(finished_run.folder, finished_run.experiment, finished_run.validation_set)
    kernels = [parameter for parameter in network.parameters() if parameter.ndim > 1]
    assert kernels
    assert all((kernel == kernel.half().float()).all() for kernel in kernels)


@pytest.mark.usefixtures("untimed")
def test_command_reports_a_run_with_stages_of_two_sizes(
    finished_run: FinishedRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second stage sees the first one's faces resized, so their digest is not that of the file read anew."""
    run = with_stages(finished_run, tmp_path / "run", 2)
    faces = finished_run.validation_set
    larger = finished_run.experiment.model_copy(
        update={"input": finished_run.experiment.input.model_copy(update={"size_px": 24})}
    )
    chosen_on = rewrite(run / "stage-2", larger, faces)
    file = write_parquet(tmp_path / "validation.parquet", parquet_rows(faces))
    parser = argparse.ArgumentParser()
    report_command.add_parser(parser.add_subparsers())
    options = parser.parse_args(["report", "--run", str(run), "--validation", str(file), "--threads", "1"])
    options.run(options)
    metrics = read_metrics(run / "stage-2")
    assert metrics.evaluations[0].n == chosen_on
    assert metrics.evaluations[0].split == "validation.parquet"
    assert metrics.ms == 1.5
    assert not (run / "stage-1" / "metrics.json").exists()
    shown = capsys.readouterr().out
    assert (run / "stage-2" / "classification_report.txt").read_text() in shown


def rewrite(folder: Path, experiment: Experiment, faces: FaceSet) -> int:
    """Make a stage look as if it had been trained with the experiment and chosen on these faces."""
    own = sized(faces, experiment)
    tensors, state = load_checkpoint(folder / "best.safetensors")
    state |= {"config_sha256": experiment.sha256(), "validation_sha256": own.sha256}
    save_checkpoint(folder / "best.safetensors", tensors, state)
    (folder / "experiment.json").write_text(experiment.model_dump_json())
    return len(own)


@pytest.mark.usefixtures("untimed")
def test_a_class_without_validation_faces_has_no_area(finished_run: FinishedRun, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    shutil.copytree(finished_run.folder, folder)
    faces = finished_run.validation_set
    labels = np.where(faces.labels == 1, 0, faces.labels)
    chosen = replace(faces, labels=labels)
    rewrite(folder, finished_run.experiment, chosen)
    metrics = write_artefacts(folder, finished_run.experiment, chosen, log=lambda line: None)
    assert set(metrics.auc) == set(metrics.labels) - {"disgust"}
    assert metrics.worst_class != "disgust"
    assert json.loads((folder / "metrics.json").read_text())["confusion"][1] == [0] * 7
