from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from handlers.engines import Network
from handlers.errors import EngineUnavailableError
from model_store.bundle import BUNDLES_ROOT, Bundle, open_bundle
from model_store.errors import ModelNotFoundError
from model_store.manifest import MANIFEST_NAME, MAX_INT8_ACCURACY_LOSS, EmotionManifest, read_manifest
from tests.model_bundles import emotion_manifest
from tests.training.conftest import FinishedRun
from tests.training.faces import generated_faces, spec_of
from training.data import FER2013_LABELS, FaceSet, load_faces
from training.errors import DataError
from training.evaluate import Report, evaluate, label_source, load_network, open_emotion_bundle
from training.ferplus import FERPLUS_EMOTIONS


def shipped_classifiers() -> list[Path]:
    manifests = sorted(BUNDLES_ROOT.glob(f"*/*/{MANIFEST_NAME}"))
    return [path.parent for path in manifests if isinstance(read_manifest(path), EmotionManifest)]


def shipped_int8_classifiers() -> list[Path]:
    manifests = {folder: read_manifest(folder / MANIFEST_NAME) for folder in shipped_classifiers()}
    return [folder for folder, manifest in manifests.items() if isinstance(manifest, EmotionManifest) and manifest.int8]


def reports_of(bundle: Bundle, run: FinishedRun, engine: str) -> list[Report]:
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    network = load_network(bundle, engine, 2)
    return [evaluate(manifest, network, run.validation_set, run.source.split, tta.tta) for tta in manifest.evaluations]


def lop_sided(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32]]:
    """A network whose logits are the mean light of seven columns, so that a mirrored face gets others."""
    return (np.ascontiguousarray(inputs[:, 0, :, :7].mean(1)),)


def test_flip_averages_the_logits_of_a_face_and_its_mirror_image() -> None:
    manifest = emotion_manifest(input=spec_of(16), temperature=1.0)
    faces = generated_faces(70)
    mirrored = replace(faces, crops_u8=np.ascontiguousarray(faces.crops_u8[:, :, ::-1]))
    plain, flipped = (
        [evaluate(manifest, lop_sided, some, "generated", tta).confusion.tolist() for some in (faces, mirrored)]
        for tta in ("none", "flip")
    )
    assert plain[0] != plain[1]
    assert flipped[0] == flipped[1]


def test_temperature_changes_the_calibration_and_nothing_else() -> None:
    cold, warm = (
        evaluate(
            emotion_manifest(input=spec_of(16), temperature=temperature), lop_sided, generated_faces(70), "x", "none"
        ).evaluation
        for temperature in (0.5, 2.0)
    )
    assert cold.ece != warm.ece
    assert cold.model_copy(update={"ece": warm.ece}) == warm


def test_faces_with_other_labels_are_refused(published: Bundle, finished_run: FinishedRun) -> None:
    assert isinstance(published.manifest, EmotionManifest)
    faces = replace(finished_run.validation_set, label_names=FER2013_LABELS[::-1])
    with pytest.raises(DataError, match=r"the data has the labels .* the model"):
        evaluate(published.manifest, lop_sided, faces, "x", "none")


def test_report_as_json_holds_every_figure(published: Bundle, finished_run: FinishedRun) -> None:
    report = reports_of(published, finished_run, "torch")[0]
    values = json.loads(json.dumps(report.as_json()))
    assert values.pop("model") == "tiny-faces:1.0.0"
    assert values.pop("precision") == "fp32"
    assert values.pop("temperature") == published.manifest.temperature  # type: ignore[union-attr]
    assert values.pop("labels") == list(FER2013_LABELS)
    confusion = np.array(values.pop("confusion"))
    assert values == report.evaluation.model_dump()
    assert confusion.sum(1).tolist() == [metrics["n"] for metrics in values["per_class"].values()]
    assert round(np.trace(confusion) / values["n"], 5) == values["accuracy"]


def test_report_as_text_shows_every_figure_in_its_row(published: Bundle, finished_run: FinishedRun) -> None:
    report = reports_of(published, finished_run, "torch")[1]
    scores, lines = report.evaluation, report.as_text().splitlines()
    assert lines[0].startswith("tiny-faces:1.0.0 on generated validation (n = 105, TTA flip, fp32, temperature ")
    for value in (scores.accuracy, scores.macro_f1, scores.ece_uncalibrated, scores.ece):
        assert f"{value:.4f}" in lines[1]
    assert lines[3].split()[4:11] == list(FER2013_LABELS)
    for line, (label, metrics), row in zip(lines[4:], scores.per_class.items(), report.confusion, strict=True):
        figures = [f"{value:.4f}" for value in (metrics.precision, metrics.recall, metrics.f1)]
        assert line.split() == [label, *map(str, row), *figures, str(metrics.n)]


@pytest.mark.usefixtures("empty_store")
def test_onnxruntime_agrees_with_torch(published: Bundle, finished_run: FinishedRun) -> None:
    for torch_report, onnx_report in zip(
        *(reports_of(published, finished_run, engine) for engine in ("torch", "onnxruntime")), strict=True
    ):
        assert np.array_equal(torch_report.confusion, onnx_report.confusion)
        assert onnx_report.evaluation.accuracy == torch_report.evaluation.accuracy
        assert onnx_report.evaluation.ece == pytest.approx(torch_report.evaluation.ece, abs=1e-4)


def test_models_of_the_eight_emotions_read_the_majority_of_the_votes(tmp_path: Path) -> None:
    split = tmp_path / "split.csv"
    split.write_text("path,class,split\n")
    ours = ("angry", "happy", "sad", "surprise", "neutral", "disgust", "fear", "contempt")
    for labels in (FERPLUS_EMOTIONS, ours):
        assert label_source(labels, tmp_path / "validation.parquet") == "ferplus-majority"
        assert label_source(labels, tmp_path) == label_source(labels, split) == "label"
    assert label_source(FER2013_LABELS, tmp_path / "validation.parquet") == "label"


def test_unknown_engine_is_refused(published: Bundle) -> None:
    with pytest.raises(EngineUnavailableError, match="'abacus' is none of"):
        load_network(published, "abacus", 2)


def test_bundle_is_found_by_name_and_version(published: Bundle) -> None:
    root = published.folder.parents[1]
    for name in ("tiny-faces", "tiny-faces:1.0.0"):
        assert open_emotion_bundle(name, root) == published
    for name in ("tiny-faces:2.0.0", "tiny"):
        with pytest.raises(ModelNotFoundError, match=name):
            open_emotion_bundle(name, root)


def remembering(network: Network) -> Network:
    """The network, which computes each batch once: both test-time augmentations need the plain one."""
    seen: dict[int, tuple[NDArray[np.float32], ...]] = {}

    def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        key = hash(inputs.tobytes())
        if key not in seen:
            seen[key] = network(inputs)
        return seen[key]

    return run


every_shipped_classifier = pytest.mark.parametrize(
    "folder",
    shipped_classifiers() or [pytest.param(None, marks=pytest.mark.skip("no emotion bundle ships yet"))],
    ids=lambda folder: "-".join(folder.parts[-2:]) if folder else "none",
)


def public_test(manifest: EmotionManifest, fer2013: Path) -> FaceSet:
    """PublicTest with the labels that the model was scored on: FER2013's, or the majority of FER+'s annotators."""
    path = fer2013 / "validation.parquet"
    return load_faces(path, manifest.labels, manifest.input, labels_from=label_source(manifest.labels, path))


@every_shipped_classifier
def test_shipped_bundle_scores_about_what_its_manifest_says_on_every_tenth_face(folder: Path, fer2013: Path) -> None:
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    faces = public_test(manifest, fer2013)
    tenth = faces.rows(np.arange(0, len(faces), 10))
    scores = manifest.evaluations[0]
    assert len(faces) == scores.n
    again = evaluate(manifest, load_network(bundle, "torch", 1), tenth, scores.split, scores.tta).evaluation
    assert again.accuracy == pytest.approx(scores.accuracy, abs=0.07)  # three standard errors


@pytest.mark.slow
@every_shipped_classifier
def test_shipped_bundle_scores_what_its_manifest_says(folder: Path, fer2013: Path) -> None:
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    faces = public_test(manifest, fer2013)
    network = remembering(load_network(bundle, "torch", 2))
    assert [scores.tta for scores in manifest.evaluations] == ["none", "flip"]
    for scores in manifest.evaluations:
        again = evaluate(manifest, network, faces, scores.split, scores.tta).evaluation
        # Another CPU moves a logit by 1e-6, which can tip the fifth decimal of a mean, and no count.
        for key in ("ece", "ece_uncalibrated"):
            assert getattr(again, key) == pytest.approx(getattr(scores, key), abs=1.1e-5)
        again = again.model_copy(update={"ece": scores.ece, "ece_uncalibrated": scores.ece_uncalibrated})
        assert again == scores
    served = manifest.evaluations[0]
    assert served.n == len(faces)
    assert served.accuracy >= 0.66
    assert served.macro_f1 >= 0.60
    assert served.ece <= 0.03


@pytest.mark.slow
@pytest.mark.parametrize("engine", ["onnxruntime", "openvino"])
@pytest.mark.parametrize(
    "folder",
    shipped_int8_classifiers() or [pytest.param(None, marks=pytest.mark.skip("no int8 network ships yet"))],
    ids=lambda folder: "-".join(folder.parts[-2:]) if folder else "none",
)
def test_shipped_int8_network_scores_what_its_manifest_says(folder: Path, engine: str, fer2013: Path) -> None:
    pytest.importorskip(engine)
    bundle = open_bundle(folder)
    manifest = bundle.manifest
    assert isinstance(manifest, EmotionManifest)
    assert manifest.int8 is not None
    faces = public_test(manifest, fer2013)
    network = remembering(load_network(bundle, engine, 2, "int8"))
    assert [scores.tta for scores in manifest.int8.evaluations] == ["none", "flip"]
    for fp32, scores in zip(manifest.evaluations, manifest.int8.evaluations, strict=True):
        again = evaluate(manifest, network, faces, scores.split, scores.tta).evaluation
        assert again.n == scores.n
        assert again.accuracy >= fp32.accuracy - MAX_INT8_ACCURACY_LOSS
        # Another engine or processor rounds a few activations to the other side, which tips a few faces.
        assert again.accuracy == pytest.approx(scores.accuracy, abs=0.002)
        assert again.macro_f1 == pytest.approx(scores.macro_f1, abs=0.004)
        assert again.ece == pytest.approx(scores.ece, abs=0.005)
        assert again.ece <= 0.03
