from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from handlers.classifier import EmotionClassifier
from model_store.bundle import Bundle, open_bundle
from model_store.errors import BundleExistsError, ManifestError
from model_store.manifest import CARD_NAME, INT8_NAME, EmotionManifest
from tests.training.conftest import FinishedRun
from tests.training.faces import generated_faces, tiny_experiment
from training import publish as module
from training.calibrate import fit_temperature, negative_log_likelihood
from training.checkpoint import load_checkpoint, save_checkpoint
from training.data import FaceSet
from training.errors import CheckpointError
from training.evaluate import evaluate, load_network
from training.finished_run import load_best
from training.history import BEST
from training.publish import Int8Wish, publish


def manifest_of(bundle: Bundle) -> EmotionManifest:
    assert isinstance(bundle.manifest, EmotionManifest)
    return bundle.manifest


def test_published_bundle_opens_and_says_where_it_comes_from(published: Bundle, finished_run: FinishedRun) -> None:
    bundle = open_bundle(published.folder)
    manifest, experiment = manifest_of(bundle), finished_run.experiment
    assert bundle == published
    assert published.folder.parts[-2:] == (experiment.name, "1.0.0")
    assert {path.name for path in published.folder.iterdir()} == {"manifest.json", "model.safetensors", CARD_NAME}
    assert manifest.labels == experiment.labels
    assert manifest.input == experiment.input
    assert manifest.face_crop == experiment.face_crop
    assert manifest.training.config_sha256 == experiment.sha256()
    assert manifest.training.data_sha256 == finished_run.training_set.sha256
    assert manifest.training.command == finished_run.source.command
    n_epochs = len(load_checkpoint(finished_run.folder / BEST)[1]["history"])  # type: ignore[arg-type]
    assert manifest.training.note == f"epoch {n_epochs} of 3, averaged weights, from fresh weights"


def test_weights_are_the_best_checkpoints_with_kernels_as_float16(published: Bundle, finished_run: FinishedRun) -> None:
    stored = load_file(published.weights)
    best, _ = load_checkpoint(finished_run.folder / BEST)
    assert stored.keys() == best.keys()
    for name, tensor in best.items():
        expected = tensor.half() if tensor.ndim > 1 else tensor
        assert stored[name].dtype == expected.numpy().dtype
        assert np.array_equal(stored[name], expected.numpy()), name
    assert {array.dtype.name for array in stored.values() if array.ndim > 1} == {"float16"}


def test_figures_are_those_of_the_stored_weights(published: Bundle, finished_run: FinishedRun) -> None:
    manifest, faces = manifest_of(published), finished_run.validation_set
    network = load_network(open_bundle(published.folder), "torch", 2)
    assert [scores.tta for scores in manifest.evaluations] == ["none", "flip"]
    for scores in manifest.evaluations:
        again = evaluate(manifest, network, faces, finished_run.source.split, scores.tta)
        assert again.evaluation == scores
    assert manifest.evaluations[0] != manifest.evaluations[1].model_copy(update={"tta": "none"})


def test_temperature_is_fitted_on_the_validation_split(published: Bundle, finished_run: FinishedRun) -> None:
    manifest, faces = manifest_of(published), finished_run.validation_set
    network = load_network(published, "torch", 2)
    logits = EmotionClassifier(manifest, network).logits(list(faces.crops_u8))
    assert manifest.temperature == fit_temperature(logits, faces.labels) != 1
    before, after = (negative_log_likelihood(logits, faces.labels, value) for value in (1.0, manifest.temperature))
    assert after < before
    assert all(0 <= scores.ece < scores.ece_uncalibrated for scores in manifest.evaluations[:1])


def test_version_that_stands_is_not_replaced(published: Bundle, finished_run: FinishedRun) -> None:
    before = {path.name: path.read_bytes() for path in published.folder.iterdir()}
    root = published.folder.parents[1]
    run = finished_run
    with pytest.raises(BundleExistsError, match=r"1\.0\.0: that version stands"):
        publish(run.experiment, run.folder, run.validation_set, root, "1.0.0", run.source)
    assert {path.name: path.read_bytes() for path in published.folder.iterdir()} == before


def test_publishing_twice_gives_the_same_files(published: Bundle, finished_run: FinishedRun, tmp_path: Path) -> None:
    run = finished_run
    again = publish(run.experiment, run.folder, run.validation_set, tmp_path, "1.0.0", run.source)
    assert again.sha256 == published.sha256


def test_another_face_crop_may_be_published(finished_run: FinishedRun, tmp_path: Path) -> None:
    run = finished_run
    experiment = tiny_experiment(optim__epochs=3, face_crop__scale=1.3)
    bundle = publish(experiment, run.folder, run.validation_set, tmp_path, "1.0.1", run.source)
    assert manifest_of(bundle).face_crop.scale == 1.3


def refused(finished: FinishedRun, root: Path, error: type[Exception], message: str, **changes: object) -> None:
    arguments = {
        "experiment": finished.experiment,
        "run": finished.folder,
        "validation_set": finished.validation_set,
        "root": root,
        "version": "1.0.0",
        "source": finished.source,
        **changes,
    }
    with pytest.raises(error, match=message):
        publish(**arguments)  # type: ignore[arg-type]
    assert not list(root.rglob("*.safetensors"))


def test_run_of_another_configuration_is_refused(finished_run: FinishedRun, tmp_path: Path) -> None:
    other = tiny_experiment(optim__epochs=3, optim__max_lr=0.2)
    refused(finished_run, tmp_path, CheckpointError, "its config_sha256 is not that of", experiment=other)


@pytest.mark.parametrize("other", [generated_faces(105, seed=1), generated_faces(112)], ids=["labels", "training"])
def test_other_validation_data_is_refused(finished_run: FinishedRun, other: FaceSet, tmp_path: Path) -> None:
    refused(finished_run, tmp_path, CheckpointError, "its validation_sha256 is not that of", validation_set=other)


def test_folder_without_a_run_is_refused(finished_run: FinishedRun, tmp_path: Path) -> None:
    refused(finished_run, tmp_path, CheckpointError, r"best\.safetensors: not a checkpoint", run=tmp_path / "absent")


@pytest.mark.parametrize("version", ["1.0", "v1.0.0", "../1.0.0", ""])
def test_odd_version_is_refused(finished_run: FinishedRun, version: str, tmp_path: Path) -> None:
    refused(finished_run, tmp_path, ManifestError, "version: ", version=version)


def test_int8_network_comes_in_the_same_version_and_with_the_same_weights(
    published: Bundle, finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("model_store.manifest.MAX_INT8_ACCURACY_LOSS", 1.0)  # the tiny run is not sure of its faces
    monkeypatch.setattr("training.quantise.MAX_INT8_ACCURACY_LOSS", 1.0)
    run = finished_run
    wish = Int8Wish(run.training_set, "publish --quantise", n=21)
    bundle = publish(run.experiment, run.folder, run.validation_set, tmp_path, "1.0.0", run.source, int8=wish)
    manifest = manifest_of(open_bundle(bundle.folder))
    assert manifest.int8 is not None
    assert manifest.int8.command == "publish --quantise"
    without = {"int8": None, "files": manifest_of(published).files}
    assert manifest.model_copy(update=without) == published.manifest
    assert bundle.weights.read_bytes() == published.weights.read_bytes()
    assert set(manifest.files) == {"model.safetensors", INT8_NAME, CARD_NAME}


def test_kernels_that_float16_does_not_hold_stay_float32(
    finished_run: FinishedRun, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("training.finished_run.MAX_ROUNDING", 0.0)
    run = finished_run
    bundle = publish(run.experiment, run.folder, run.validation_set, tmp_path, "1.0.0", run.source)
    best, _ = load_checkpoint(run.folder / BEST)
    stored = load_file(bundle.weights)
    assert all(np.array_equal(stored[name], tensor.numpy()) for name, tensor in best.items())
    assert "kernels stored as float32" in manifest_of(bundle).training.note
    _, size_bytes, _ = load_best(run.folder, run.experiment, run.validation_set)
    assert size_bytes == manifest_of(bundle).files["model.safetensors"].size_bytes


def test_note_names_teachers_votes_and_start(tmp_path: Path) -> None:
    experiment = tiny_experiment(
        network__init_bundle="old:1.0.0", targets={"teachers": ["a:1.0.0"], "teacher_weight": 0.35, "votes": 0.3}
    )
    assert module._start([experiment], tmp_path, {"init_sha256": "abc"}) == "from old:1.0.0 with sha256 abc"
    assert module._teaching(experiment) == (
        ", taught by a:1.0.0 at a share of 0.35, by FER+'s annotators at a share of 0.3"
    )
    assert module._start([tiny_experiment()], tmp_path, {}) == "from fresh weights"
    assert module._teaching(tiny_experiment()) == ""


TIMM = {"family": "timm", "classifier": "fc.weight", "pretrained": True, "options": {"model": "resnet18"}}


@pytest.mark.parametrize(
    ("changes", "first_init", "start"),
    [
        ({"network__init_bundle": "old:1.0.0"}, "abc", "old:1.0.0 with sha256 abc"),
        ({"network": TIMM}, None, "timm's pretrained weights"),
        ({}, None, "fresh weights"),
    ],
)
def test_note_of_several_stages_says_what_the_first_began_with(
    changes: dict[str, object], first_init: str | None, start: str, tmp_path: Path
) -> None:
    (tmp_path / "stage-1").mkdir()
    save_checkpoint(tmp_path / "stage-1" / BEST, {}, {"init_sha256": first_init})
    stages = [tiny_experiment(**changes), tiny_experiment(), tiny_experiment()]
    assert module._start(stages, tmp_path / "stage-3", {"init_sha256": "of stage 2"}) == (
        f"stage 3 of 3, begun from stage 2's best epoch; the first from {start}"
    )


@pytest.mark.parametrize(
    ("changes", "start"),
    [({"init_stages": (1, 2)}, "the mean of stages 1 and 2"), ({"init_bundle": "old:1.0.0"}, "old:1.0.0")],
)
def test_note_of_several_stages_says_what_the_last_began_with(
    changes: dict[str, object], start: str, tmp_path: Path
) -> None:
    (tmp_path / "stage-1").mkdir()
    save_checkpoint(tmp_path / "stage-1" / BEST, {}, {"init_sha256": None})
    plain = tiny_experiment()
    last = plain.model_copy(update={"network": plain.network.model_copy(update=changes)})
    stages = [plain, plain, last]
    assert module._start(stages, tmp_path / "stage-3", {"init_sha256": "of a mean"}) == (
        f"stage 3 of 3, begun from {start}; the first from fresh weights"
    )


def test_manifest_and_card_keep_how_the_weights_were_made(published: Bundle) -> None:
    lines = manifest_of(open_bundle(published.folder)).training.provenance
    assert [line.partition(": ")[0] for line in lines] == ["Training faces", "Training", "What it was taught", "Start"]
    card = (published.folder / CARD_NAME).read_text()
    assert all(f"* **{line.replace(': ', '**: ', 1)}\n" in card for line in lines)


def test_weights_that_are_no_average_are_not_called_one(finished_run: FinishedRun, tmp_path: Path) -> None:
    experiment = tiny_experiment(optim__epochs=3, optim__ema_decay=0.0)
    state = load_checkpoint(finished_run.folder / BEST)[1]
    manifest = module._unscored((experiment,), tmp_path, state, "1.0.0", finished_run.source, "")
    assert "averaged" not in manifest.training.note
    assert "of 3, from fresh weights" in manifest.training.note


def test_version_that_stands_is_refused_before_the_run_is_read(published: Bundle, finished_run: FinishedRun) -> None:
    run, root = finished_run, published.folder.parents[1]
    with pytest.raises(BundleExistsError):
        publish(run.experiment, root / "no run", run.validation_set, root, "1.0.0", run.source)
