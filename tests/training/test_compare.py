from __future__ import annotations

import argparse
import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from model_store.bundle import Bundle, publish_bundle
from model_store.manifest import (
    CARD_NAME,
    INT8_NAME,
    WEIGHTS_NAME,
    CalibrationRecord,
    EmotionManifest,
    Int8Record,
)
from model_store.networks import load_networks
from tests.training.conftest import FinishedRun
from training.artefacts import write_artefacts
from training.commands import compare as compare_command
from training.compare import ZooRow, as_markdown, compare, conditions, tables_of, write_comparison
from training.complexity import export_for_timing
from training.errors import DataError

ROW = ZooRow(
    name="first 1.0.0",
    precision="fp32",
    split="FER2013 PublicTest",
    n=3589,
    labels=("angry", "happy"),
    accuracy=0.70123,
    accuracy_flip=0.71456,
    macro_f1=0.66391,
    worst_class="angry",
    worst_recall=0.4789,
    worst_f1=0.53129,
    ece_uncalibrated=0.05341,
    ece=0.01812,
    parameters=6_285_079,
    macs=175_429_248,
    size_bytes=12_619_588,
    ms=6.1239,
)
INT8 = replace(ROW, precision="int8", accuracy=0.70012, accuracy_flip=None, size_bytes=6_400_000, ms=3.0)


@dataclass(frozen=True)
class Compared:
    run: Path
    rows: list[ZooRow]
    n_failed: int
    complaints: list[str]


@pytest.fixture(scope="module")
def with_int8(published: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The published bundle as version 1.1.0, with an int8 network that is its float network under that name."""
    manifest = published.manifest
    assert isinstance(manifest, EmotionManifest)
    root = tmp_path_factory.mktemp("with-int8")
    file = export_for_timing(load_networks(published)["classifier"], manifest.input, root / "network.onnx")
    calibration = CalibrationRecord(split="x", n=1, data_sha256="0" * 64, method="none")
    record = Int8Record(command="x", quantiser="x", calibration=calibration, evaluations=manifest.evaluations)
    manifest = manifest.model_copy(update={"version": "1.1.0", "int8": record})
    return publish_bundle(root, manifest, {WEIGHTS_NAME: published.weights, INT8_NAME: file, CARD_NAME: b"# Card\n"})


@pytest.fixture(scope="module")
def compared(
    finished_run: FinishedRun, published: Bundle, with_int8: Bundle, tmp_path_factory: pytest.TempPathFactory
) -> Compared:
    folder = tmp_path_factory.mktemp("compared")
    run = folder / "a-run"
    shutil.copytree(finished_run.folder, run / "stage-1")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.artefacts.export_for_timing", lambda network, spec, path: path)
        patch.setattr("training.artefacts.latencies_ms", lambda files: [1.5])
        patch.setattr("training.plots._DPI", 30)
        write_artefacts(
            run / "stage-1", finished_run.experiment, finished_run.validation_set, split="generated validation"
        )
    bare = folder / "bare"
    shutil.copytree(finished_run.folder, bare)
    damaged = folder / "damaged"
    shutil.copytree(published.folder, damaged)
    (damaged / "MODEL_CARD.md").write_text("other")
    complaints: list[str] = []

    def exported(network: object, spec: object, path: Path) -> Path:
        """The networks are all the same one, and its export is beside the bundle."""
        return shutil.copyfile(with_int8.folder / INT8_NAME, path)

    paths = [bare, run, folder / "absent", published.folder, damaged, with_int8.folder.parent]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("training.compare.export_for_timing", exported)
        rows, n_failed = compare(paths, rounds=2, complain=complaints.append)
    return Compared(run, rows, n_failed, complaints)


def test_rows_hold_what_manifests_and_metrics_say(compared: Compared, published: Bundle, with_int8: Bundle) -> None:
    found = {(row.name, row.precision): row for row in compared.rows}
    assert set(found) == {
        ("tiny-faces (a-run)", "fp32"),
        ("tiny-faces 1.0.0", "fp32"),
        ("tiny-faces 1.1.0", "fp32"),
        ("tiny-faces 1.1.0", "int8"),
    }
    for bundle, version in ((published, "1.0.0"), (with_int8, "1.1.0")):
        manifest, row = bundle.manifest, found[f"tiny-faces {version}", "fp32"]
        assert isinstance(manifest, EmotionManifest)
        plain, flipped = manifest.evaluations
        assert (row.accuracy, row.accuracy_flip, row.macro_f1) == (plain.accuracy, flipped.accuracy, plain.macro_f1)
        assert (row.ece_uncalibrated, row.ece, row.n) == (plain.ece_uncalibrated, plain.ece, plain.n)
        assert row.size_bytes == manifest.files[WEIGHTS_NAME].size_bytes
        worst = min(plain.per_class.values(), key=lambda metrics: metrics.f1)
        assert (row.worst_f1, row.worst_recall) == (worst.f1, worst.recall)
    manifest, row = with_int8.manifest, found["tiny-faces 1.1.0", "int8"]
    assert isinstance(manifest, EmotionManifest)
    assert manifest.int8 is not None
    assert row.accuracy == manifest.int8.evaluations[0].accuracy
    assert row.size_bytes == manifest.files[INT8_NAME].size_bytes
    run, bundle_row = found["tiny-faces (a-run)", "fp32"], found["tiny-faces 1.0.0", "fp32"]
    assert (run.accuracy, run.parameters, run.macs) == (bundle_row.accuracy, bundle_row.parameters, bundle_row.macs)
    assert all(row.ms > 0 for row in compared.rows)


def test_best_comes_first_and_int8_follows_its_network(compared: Compared) -> None:
    firsts = [row.accuracy for row in compared.rows if row.precision == "fp32"]
    assert firsts == sorted(firsts, reverse=True)
    for before, row in zip(compared.rows, compared.rows[1:], strict=False):
        if row.precision == "int8":
            assert (before.name, before.precision) == (row.name, "fp32")


def test_what_cannot_be_read_is_named_and_the_others_go_on(compared: Compared) -> None:
    assert compared.n_failed == len(compared.complaints) == 3
    bare, absent, damaged = compared.complaints
    assert "bare" in bare
    assert "training report" in bare
    assert "absent: DataError: no such folder" in absent
    assert "damaged: " in damaged
    assert "MODEL_CARD.md" in damaged


def test_files_are_left_out_and_are_no_failure(tmp_path: Path) -> None:
    (tmp_path / "train.log").write_text("epoch 1")
    said: list[str] = []
    assert compare([tmp_path / "train.log"], complain=said.append) == ([], 0)
    assert said == [f"{tmp_path / 'train.log'}: a file, left out"]


def test_other_faces_or_labels_get_a_table_of_their_own() -> None:
    more = replace(ROW, name="second", labels=("happy", "angry"))  # the order of the outputs is no matter
    other_split, other_labels = replace(ROW, split="FER+"), replace(ROW, labels=("angry", "contempt"))
    fewer = replace(ROW, n=100)
    tables = tables_of([other_split, ROW, INT8, other_labels, more, fewer])
    assert tables[0] == [ROW, INT8, more]
    assert sorted(len(table) for table in tables[1:]) == [1, 1, 1]


def test_markdown_shows_every_figure() -> None:
    heading, _, header, rule, fp32, int8 = as_markdown([ROW, INT8]).splitlines()
    assert "FER2013 PublicTest" in heading
    assert "3589" in heading
    assert fp32 == (
        "| first 1.0.0 | 70.12% | 71.46% | 0.6639 | angry: 47.9%, 0.531 | 5.34% → 1.81% "
        "| 6.29 M | 175 M | 12.6 MB | 6.12 |"
    )
    assert int8.startswith("| · int8 | 70.01% | – | ")
    assert int8.endswith("|  |  | 6.4 MB | 3.00 |")
    assert {line.count("|") for line in (header, rule, fp32, int8)} == {11}


def test_written_comparison_has_a_picture_for_each_table(tmp_path: Path) -> None:
    rows = [ROW, INT8, replace(ROW, labels=("angry", "sad", "contempt")), replace(ROW, split="FER+ majority")]
    path = write_comparison(tmp_path / "zoo", rows, 7)
    text = path.read_text()
    names = {file.name for file in path.parent.iterdir()}
    pictures = {name for name in names if name.endswith(".png")}
    assert pictures == {
        "accuracy-ms-fer2013-publictest.png",
        "accuracy-ms-fer2013-publictest-3.png",
        "accuracy-ms-fer-majority.png",
    }
    assert all(f"({name})" in text for name in pictures)
    assert names - pictures == {"zoo.md", "zoo.json"}
    assert as_markdown([ROW, INT8]) in text
    assert "median of 7" in text
    assert "onnxruntime" in conditions()
    assert json.loads((path.parent / "zoo.json").read_text())[1]["ms"] == 3.0


def test_command_prints_what_it_can_and_fails_for_the_rest(
    published: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("training.compare.export_for_timing", lambda network, spec, path: path)
    monkeypatch.setattr("training.compare.latencies_ms", lambda files, rounds: [2.5] * len(files))
    parser = argparse.ArgumentParser()
    compare_command.add_parser(parser.add_subparsers())
    given = ["compare", str(published.folder), str(tmp_path / "absent"), "--out", str(tmp_path / "zoo")]
    options = parser.parse_args(given)
    with pytest.raises(DataError, match="1 of 2"):
        options.run(options)
    captured = capsys.readouterr()
    assert "| tiny-faces 1.0.0 |" in captured.out
    assert "| 2.50 |" in captured.out
    assert "absent: DataError" in captured.err
    assert (tmp_path / "zoo" / "zoo.md").exists()
    with pytest.raises(SystemExit):
        parser.parse_args([*given, "--rounds", "0"])
