from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from model_store.bundle import Bundle, open_bundle
from model_store.manifest import EmotionManifest
from tests.training.conftest import FinishedRun, Quantisable
from tests.training.faces import (
    changed,
    generated_faces,
    parquet_rows,
    tiny_values,
    write_folders,
    write_parquet,
    write_toml,
)
from training.__main__ import main
from training.config import Experiment
from training.data import FaceSet
from training.environment import VARIABLES
from training.history import HISTORY
from training.recipe import sized


@dataclass(frozen=True)
class Workplace:
    """Files of a tiny experiment: its TOML, training faces in class folders and validation faces in Parquet."""

    config: Path
    training: Path
    validation: Path
    run: Path
    bundles: Path

    def train(self, *more: str) -> int:
        paths = ["--config", self.config, "--data", self.training, "--validation", self.validation, "--out", self.run]
        return main(["train", *map(str, paths), "--device", "cpu", *more])

    def publish(self, version: str, *more: str) -> int:
        paths = ["--config", self.config, "--run", self.run, "--validation", self.validation, "--bundles", self.bundles]
        names = ["--split", "generated", "--source", "drawn by a test"]
        return main(["publish", *map(str, paths), "--version", version, *names, *more])

    def quantise(self, model: str, version: str, *more: str) -> int:
        paths = ["--data", self.training, "--validation", self.validation, "--bundles", self.bundles]
        return main(["quantise", "--model", model, *map(str, paths), "--version", version, *more])

    def evaluate(self, model: str, *more: str) -> int:
        return main(
            ["evaluate", "--model", model, "--bundles", str(self.bundles), "--data", str(self.validation), *more]
        )


@pytest.fixture
def workplace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Workplace:
    monkeypatch.chdir(tmp_path)  # where no .env of a developer's is
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    validation_rows = parquet_rows(generated_faces(35, seed=1, wrong_labels=0.3))
    return Workplace(
        config=write_toml(tmp_path / "tiny.toml", tiny_values()),
        training=write_folders(tmp_path / "train", generated_faces(49)),
        validation=write_parquet(tmp_path / "validation.parquet", [*validation_rows, ("broken.png", b"broken", 1)]),
        run=tmp_path / "run",
        bundles=tmp_path / "bundles",
    )


def test_train_publish_evaluate(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    assert workplace.train("--stop-after", "1") == 0
    assert len((workplace.run / HISTORY).read_text().splitlines()) == 2
    assert workplace.train() == 0
    out, err = capsys.readouterr()
    assert [line[:11] for line in out.splitlines()] == ["epoch   1/2", "resumed aft", "epoch   2/2", "tiny-faces:"]
    assert (workplace.run / "metrics.json").exists()
    assert err.count("left out broken.png: unsupported_format") == 2

    assert workplace.publish("1.0.0") == 0
    folder = workplace.bundles / "tiny-faces" / "1.0.0"
    assert capsys.readouterr().out == f"published tiny-faces:1.0.0 in {folder}\n"
    manifest = open_bundle(folder).manifest
    assert isinstance(manifest, EmotionManifest)
    assert manifest.source == "drawn by a test"
    assert "training/configs/tiny.toml" in manifest.training.command

    for scores in manifest.evaluations:
        assert workplace.evaluate("tiny-faces", "--tta", scores.tta, "--json") == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["split"] == "validation.parquet"
        assert printed["temperature"] == manifest.temperature
        expected = scores.model_dump(exclude={"split"})
        assert {key: printed[key] for key in expected} == expected
    assert workplace.evaluate("tiny-faces:1.0.0") == 0
    assert f"accuracy {manifest.evaluations[0].accuracy:.4f}" in capsys.readouterr().out


def last_error_of(code: int, capsys: pytest.CaptureFixture[str]) -> str:
    out, err = capsys.readouterr()
    assert code == 1
    assert "published" not in out
    assert "Traceback" not in err
    return err.splitlines()[-1]


def test_train_says_what_is_wrong(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    write_toml(workplace.config, changed(tiny_values(), {"optim.max_lr": "fast"}))
    assert last_error_of(workplace.train(), capsys).startswith(f"ConfigError: {workplace.config}: optim.max_lr: ")

    write_toml(workplace.config, changed(tiny_values(), {"network.family": "perceptron"}))
    error = last_error_of(workplace.train(), capsys)
    assert error == "ManifestError: architecture.family: 'perceptron' is none of plain-cnn, preact-resnet, timm"

    write_toml(workplace.config, changed(tiny_values(), {"optim.batch_size": 50}))
    assert last_error_of(workplace.train(), capsys) == "DataError: 49 faces are less than one batch of 50"

    error = last_error_of(workplace.train("--data-usage", "Training"), capsys)
    assert error.lower().startswith(f"dataerror: {workplace.training}: a usage can be chosen only in ".lower())

    write_toml(workplace.config, tiny_values())
    assert workplace.train("--stop-after", "1") == 0
    write_toml(workplace.config, changed(tiny_values(), {"seed": 9}))
    assert last_error_of(workplace.train(), capsys).startswith("CheckpointError: ")


@pytest.fixture
def published_workplace(workplace: Workplace, finished_run: FinishedRun, published: Bundle) -> Workplace:
    """The files of the session's finished run and bundle."""
    values = changed(tiny_values(), {"optim.epochs": 3})
    return Workplace(
        config=write_toml(workplace.config, values),
        training=workplace.training,
        validation=write_parquet(workplace.validation, parquet_rows(finished_run.validation_set)),
        run=finished_run.folder,
        bundles=published.folder.parents[1],
    )


@pytest.mark.parametrize(
    ("version", "error"),
    [("1.0.0", "BundleExistsError: "), ("1.0", "ManifestError: version: "), ("latest", "ManifestError: version: ")],
)
def test_publish_says_what_is_wrong(
    version: str, error: str, published_workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert last_error_of(published_workplace.publish(version), capsys).startswith(error)


def test_publish_of_another_experiment_is_refused(
    published_workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    write_toml(published_workplace.config, tiny_values())
    error = last_error_of(published_workplace.publish("2.0.0"), capsys)
    assert error.startswith("CheckpointError: ")
    assert "config_sha256" in error


@pytest.mark.parametrize(
    ("model", "more", "error"),
    [
        ("absent", [], "ModelNotFoundError: no bundle absent under "),
        ("tiny-faces:9.9.9", [], "ModelNotFoundError: no bundle tiny-faces:9.9.9 under "),
        ("tiny-faces", ["--data", "absent.parquet"], "DataError: absent.parquet: "),
        ("tiny-faces", ["--data", "fer2013.csv"], "DataError: fer2013.csv: "),
        ("tiny-faces", ["--threads", "0", "--engine", "onnxruntime"], "EngineUnavailableError: threads must be"),
        ("tiny-faces", ["--threads", "0"], "EngineUnavailableError: threads must be"),
    ],
)
def test_evaluate_says_what_is_wrong(
    model: str, more: list[str], error: str, published_workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert last_error_of(published_workplace.evaluate(model, *more), capsys).startswith(error)


@pytest.fixture
def quantisable_workplace(workplace: Workplace, quantisable: Quantisable) -> Workplace:
    """A copy of a bundle that may be quantised, with the faces that it was trained and evaluated on."""
    shutil.copytree(quantisable.bundle.folder.parents[1], workplace.bundles)
    write_parquet(workplace.validation, parquet_rows(quantisable.validation_set))
    training = workplace.run.with_name("train.parquet")
    return replace(workplace, training=write_parquet(training, parquet_rows(quantisable.training_set)))


@pytest.mark.slow  # test_quantise.py and test_evaluate.py do the same without the command line
def test_quantise_and_evaluate_int8(quantisable_workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    workplace = quantisable_workplace
    assert workplace.quantise("tiny-faces", "1.1.0", "--faces", "50") == 0
    folder = workplace.bundles / "tiny-faces" / "1.1.0"
    assert capsys.readouterr().out == f"published tiny-faces:1.1.0 in {folder}\n"
    manifest = open_bundle(folder).manifest
    assert isinstance(manifest, EmotionManifest)
    assert manifest.int8 is not None
    assert manifest.int8.calibration.n == 50
    assert manifest.int8.command == (
        "python -m training quantise --model tiny-faces:1.0.0 --data train.parquet "
        "--validation validation.parquet --version 1.1.0 --faces 50"
    )
    for scores in manifest.int8.evaluations:
        assert workplace.evaluate("tiny-faces", "--precision", "int8", "--tta", scores.tta, "--json") == 0
        printed = json.loads(capsys.readouterr().out)
        assert printed["precision"] == "int8"
        expected = scores.model_dump(exclude={"split"})
        assert {key: printed[key] for key in expected} == expected
    assert workplace.evaluate("tiny-faces", "--precision", "int8") == 0
    assert "TTA none, int8, temperature" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("version", "more", "error"),
    [
        ("1.0.0", [], "BundleExistsError: "),
        ("1.1", [], "ManifestError: tiny-faces:1.1: "),
        ("1.1.0", ["--faces", "113"], "DataError: 113 faces to calibrate on, of 112"),
        ("1.1.0", ["--model", "absent"], "ModelNotFoundError: no bundle absent under "),
        ("1.1.0", ["--data", "absent.parquet"], "DataError: absent.parquet: "),
    ],
)
def test_quantise_says_what_is_wrong(
    version: str, more: list[str], error: str, quantisable_workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    code = quantisable_workplace.quantise("tiny-faces", version, "--faces", "50", *more)
    assert last_error_of(code, capsys).startswith(error)


@pytest.mark.parametrize(
    ("engine", "error"),
    [
        ("onnxruntime", "ModelUnavailableError: tiny-faces:1.0.0 has no int8 network"),
        ("torch", "ModelUnavailableError: the torch engine runs no int8"),
    ],
)
def test_evaluate_of_int8_that_is_not_there_says_so(
    engine: str, error: str, published_workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    code = published_workplace.evaluate("tiny-faces", "--precision", "int8", "--engine", engine)
    assert last_error_of(code, capsys).startswith(error)


@pytest.mark.parametrize(
    "arguments", [[], ["fly"], ["train"], ["evaluate", "--model", "tiny", "--data", "x", "--tta", "crop"]]
)
def test_wrong_usage_exits_with_2(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(arguments)
    assert caught.value.code == 2
    assert "usage: python -m training" in capsys.readouterr().err


def test_environment_overrides_the_file_and_is_printed(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (workplace.config.parent / ".env").write_text("NUM_EPOCHS=1\nDROPOUT_RATE='0.25'\nBATCH_SIZE=8\n")
    monkeypatch.setenv("BATCH_SIZE", "24")
    assert workplace.train("--stop-after", "1") == 0
    first, *_, last, scores = capsys.readouterr().out.splitlines()
    assert scores.startswith("tiny-faces: accuracy ")
    assert first == "from the environment or .env: BATCH_SIZE=24 NUM_EPOCHS=1 DROPOUT_RATE=0.25"
    assert last.startswith("epoch   1/1 ")
    experiment = json.loads((workplace.run / "experiment.json").read_text())
    assert experiment["optim"]["batch_size"] == 24
    assert experiment["network"]["options"]["dropout"] == 0.25
    monkeypatch.delenv("BATCH_SIZE")
    assert "config_sha256 is not this run's" in last_error_of(workplace.train(), capsys)


@pytest.mark.parametrize(
    ("variable", "value", "error"),
    [
        ("BATCH_SIZE", "many", "ConfigError: BATCH_SIZE: Input should be a valid integer"),
        ("LR_GAMMA", "0.5", "ConfigError: LR_GAMMA: only the schedules step and plateau have a factor"),
    ],
)
def test_variable_that_cannot_be_is_named(
    variable: str,
    value: str,
    error: str,
    workplace: Workplace,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv(variable, value)
    assert last_error_of(workplace.train(), capsys).startswith(error)


def test_dropout_that_a_network_of_timm_does_not_take_is_named(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    network = {"family": "timm", "classifier": "fc.weight", "options": {"model": "resnet18"}}
    monkeypatch.setenv("DROPOUT_RATE", "0.5")

    def refuses(*arguments: object, **options: object) -> None:
        raise TypeError("ResNet.__init__() got an unexpected keyword argument 'drop_rate'")

    monkeypatch.setattr("timm.create_model", refuses)
    write_toml(workplace.config, changed(tiny_values(), {"network": network}))
    error = last_error_of(workplace.train(), capsys)
    assert error.startswith("ConfigError: DROPOUT_RATE: the network takes no dropout (")


@pytest.mark.parametrize("option", ["--threads", "--stop-after"])
def test_train_without_threads_or_epochs_is_refused(
    option: str, workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    assert last_error_of(workplace.train(option, "0"), capsys) == f"ConfigError: {option}: 0 is under 1"


def test_labels_that_the_experiment_does_not_record_are_refused(
    workplace: Workplace, capsys: pytest.CaptureFixture[str]
) -> None:
    error = last_error_of(workplace.train("--data-labels", "ferplus-majority"), capsys)
    assert error.startswith("ConfigError: --data-labels: ferplus-majority, but data.labels_from of ")
    assert not workplace.run.exists()
    assert workplace.train("--data-labels", "label", "--stop-after", "1") == 0


def test_folder_that_is_a_file_is_one_line(workplace: Workplace, capsys: pytest.CaptureFixture[str]) -> None:
    workplace.run.write_text("")
    assert last_error_of(workplace.train(), capsys) == (
        f"ConfigError: {workplace.run}: {workplace.run} is not a folder"
    )


def test_rank_that_was_left_over_keeps_nothing_from_being_saved(
    workplace: Workplace, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    monkeypatch.delenv("WORLD_SIZE", raising=False)
    assert workplace.train("--stop-after", "2") == 0
    assert (workplace.run / "best.safetensors").exists()
    assert (workplace.run / "metrics.json").exists()  # it stopped where the recipe ends


def test_stages_of_growing_size_are_read_and_reported_at_the_largest(
    workplace: Workplace, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    values = changed(tiny_values(), {"input.size_px": 8, "optim.epochs": 1})
    write_toml(workplace.config, {**values, "stages": [{"seed": 1}, {"input": {"size_px": 16}}]})
    sizes: list[tuple[int, ...]] = []

    def noted(faces: FaceSet, experiment: Experiment) -> FaceSet:
        sizes.append(faces.crops_u8.shape[1:3])
        return sized(faces, experiment)

    monkeypatch.setattr("training.recipe.sized", noted)
    assert workplace.train() == 0
    assert set(sizes) == {(16, 16)}
    (workplace.run / "stage-2" / "metrics.json").unlink()
    assert main(["report", "--run", str(workplace.run), "--validation", str(workplace.validation)]) == 0
    assert (workplace.run / "stage-2" / "metrics.json").exists()
    assert workplace.publish("1.0.0") == 0
