from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from model_store.errors import LabelMismatchError, ManifestError
from model_store.manifest import INT8_NAME, EmotionManifest, dump_manifest, parse_manifest, read_manifest
from tests.model_bundles import LABELS, emotion_manifest

Change = Callable[[dict[str, Any]], None]

SCORES = {
    "split": "test",
    "tta": "none",
    "n": 10,
    "accuracy": 0.5,
    "macro_f1": 0.5,
    "ece_uncalibrated": 0.1,
    "ece": 0.1,
    "per_class": {label: {"precision": 0.5, "recall": 0.5, "f1": 0.5, "n": 1} for label in LABELS},
}


def put(path: str, value: Any) -> Change:
    *parents, last = path.split(".")

    def change(manifest: dict[str, Any]) -> None:
        for key in parents:
            manifest = manifest[key]
        manifest[last] = value

    return change


def drop(path: str) -> Change:
    *parents, last = path.split(".")

    def change(manifest: dict[str, Any]) -> None:
        for key in parents:
            manifest = manifest[key]
        del manifest[last]

    return change


WEIGHTS_ONLY = {"model.safetensors": {"size_bytes": 1, "sha256": "0" * 64}}
INT8: dict[str, Any] = {
    "command": "quantise",
    "quantiser": "onnxruntime 1",
    "calibration": {"split": "training", "n": 5, "data_sha256": "0" * 64, "method": "percentile"},
    "evaluations": [SCORES, {**SCORES, "tta": "flip"}],
}


def put_int8(**changes: Any) -> Change:
    """Evaluations with and without flip, both accuracies 0.5; an int8 file and its record with `changes`."""

    def change(manifest: dict[str, Any]) -> None:
        manifest["evaluations"] = [SCORES, {**SCORES, "tta": "flip"}]
        manifest["files"][INT8_NAME] = {"size_bytes": 1, "sha256": "0" * 64}
        manifest["int8"] = {**INT8, **changes}

    return change


def then(*changes: Change) -> Change:
    def change(manifest: dict[str, Any]) -> None:
        for one in changes:
            one(manifest)

    return change


def changed(change: Change) -> str:
    values = json.loads(dump_manifest(emotion_manifest()))
    change(values)
    return json.dumps(values)


REFUSED: dict[str, tuple[Change, str]] = {
    "unknown key": (put("colour", "red"), "colour"),
    "unknown nested key": (put("input.colour", "red"), "input.colour"),
    "missing key": (drop("temperature"), "temperature"),
    "missing nested key": (drop("training.data_sha256"), "training.data_sha256"),
    "text for a number": (put("temperature", "1.5"), "temperature"),
    "number for a text": (put("licence", 2), "licence"),
    "fraction for a whole number": (put("input.size_px", 48.5), "input.size_px"),
    "NaN temperature": (put("temperature", float("nan")), "temperature"),
    "infinite mean": (put("input.mean", [float("inf")]), "input.mean"),
    "zero temperature": (put("temperature", 0), "temperature"),
    "zero std": (put("input.std", [0.0]), "input.std"),
    "two channels": (put("input.channels", 2), "input.channels"),
    "mean too long": (put("input.mean", [0.5, 0.5, 0.5]), "mean has 3 values for 1 channels"),
    "std too short": (put("input.std", []), "std has 0 values for 1 channels"),
    "unknown interpolation": (put("input.interpolation", "nearest"), "input.interpolation"),
    "size too small": (put("input.size_px", 4), "input.size_px"),
    "duplicate labels": (put("labels", ["happy", "happy"]), "labels"),
    "one label": (put("labels", ["happy"]), "labels"),
    "empty label": (put("labels", ["happy", ""]), "labels.1"),
    "no classifier tensor": (put("architecture.classifier", None), "architecture.classifier"),
    "name with capitals": (put("name", "Tiny"), "name"),
    "name that climbs": (put("name", "../tiny"), "name"),
    "short version": (put("version", "1.0"), "version"),
    "version with a suffix": (put("version", "1.0.0rc1"), "version"),
    "another schema": (put("schema_version", 2), "schema_version"),
    "schema as text": (put("schema_version", "1"), "schema_version"),
    "schema as truth": (put("schema_version", True), "schema_version"),
    "schema as float": (put("schema_version", 1.0), "schema_version"),
    "unknown task": (put("task", "age"), "task"),
    "no task": (drop("task"), "task"),
    "file outside the bundle": (put("files.a/b", {"size_bytes": 1, "sha256": "0" * 64}), "files"),
    "hidden file": (put("files", {".x": {"size_bytes": 1, "sha256": "0" * 64}}), "files"),
    "manifest among its files": (put("files", {"manifest.json": {"size_bytes": 1, "sha256": "0" * 64}}), "files"),
    "no weights file": (put("files", {}), "files"),
    "digest too short": (put("files", {"model.safetensors": {"size_bytes": 1, "sha256": "ab"}}), "sha256"),
    "negative size": (put("files", {"model.safetensors": {"size_bytes": -1, "sha256": "0" * 64}}), "size_bytes"),
    "accuracy over one": (put("evaluations", [{**SCORES, "accuracy": 1.5}]), "evaluations.0.accuracy"),
    "scores of other labels": (put("evaluations", [{**SCORES, "per_class": {}}]), "evaluations.0.per_class"),
    "unknown tta": (put("evaluations", [{**SCORES, "tta": "ten-crop"}]), "evaluations.0.tta"),
    "int8 less accurate": (
        put_int8(evaluations=[{**SCORES, "accuracy": 0.49699}, {**SCORES, "tta": "flip"}]),
        "int8.evaluations.0.accuracy: 0.49699 is more than 0.003 below the fp32 network's 0.5 (split test, tta none)",
    ),
    "int8 less accurate with flip": (
        put_int8(evaluations=[SCORES, {**SCORES, "tta": "flip", "accuracy": 0.4}]),
        "int8.evaluations.1.accuracy",
    ),
    "int8 without its file": (then(put_int8(), put("files", WEIGHTS_ONLY)), f"files: {INT8_NAME} is missing"),
    "int8 file without its record": (then(put_int8(), drop("int8")), f"int8: missing, but files has {INT8_NAME}"),
    "int8 null beside its file": (then(put_int8(), put("int8", None)), f"int8: missing, but files has {INT8_NAME}"),
    "int8 without evaluations": (put_int8(evaluations=[]), "int8.evaluations"),
    "int8 on another split": (
        put_int8(evaluations=[{**SCORES, "split": "other"}, {**SCORES, "tta": "flip"}]),
        "int8.evaluations: not those of evaluations",
    ),
    "int8 on fewer faces": (
        put_int8(evaluations=[{**SCORES, "n": 9}, {**SCORES, "tta": "flip"}]),
        "int8.evaluations: not those of evaluations",
    ),
    "int8 only with flip": (
        put_int8(evaluations=[{**SCORES, "tta": "flip"}]),
        "int8.evaluations: not those of evaluations",
    ),
    "int8 with flip, fp32 without": (
        then(put_int8(), put("evaluations", [SCORES])),
        "int8.evaluations: not those of evaluations",
    ),
    "int8 scores of other labels": (
        put_int8(evaluations=[SCORES, {**SCORES, "tta": "flip", "per_class": {}}]),
        "int8.evaluations.1.per_class: the keys are not the labels",
    ),
    "int8 of no calibration face": (put_int8(calibration={**INT8["calibration"], "n": 0}), "int8.calibration.n"),
    "int8 with an unknown key": (put_int8(temperature=1.5), "int8.temperature"),
}


@pytest.mark.parametrize(("change", "path"), REFUSED.values(), ids=REFUSED.keys())
def test_refuses_and_names_the_key(change: Change, path: str) -> None:
    with pytest.raises(ManifestError) as caught:
        parse_manifest(changed(change), "somewhere.json")
    assert str(caught.value).startswith("somewhere.json: ")
    assert path in str(caught.value)


@pytest.mark.parametrize("text", [b"", b"{", b"[]", b"null", b'"text"', b"\xff\xfe", b"\x00" * 20])
def test_refuses_what_is_not_a_json_object(text: bytes) -> None:
    with pytest.raises(ManifestError):
        parse_manifest(text)


def test_every_problem_is_named_at_once() -> None:
    def change(values: dict[str, Any]) -> None:
        del values["temperature"]
        values["extra"] = 1
        values["input"]["channels"] = "1"

    with pytest.raises(ManifestError) as caught:
        parse_manifest(changed(change))
    assert all(path in str(caught.value) for path in ("temperature", "extra", "input.channels"))


def test_round_trip_gives_equal_manifests_and_equal_bytes() -> None:
    text = changed(put("evaluations", [SCORES]))
    manifest = parse_manifest(text)
    assert parse_manifest(dump_manifest(manifest)) == manifest
    assert dump_manifest(parse_manifest(dump_manifest(manifest))) == dump_manifest(manifest)
    assert manifest.tag == "tiny:1.0.0"


@pytest.mark.parametrize("accuracy", [0.497, 0.5, 0.9])
def test_int8_network_may_lose_three_thousandths(accuracy: float) -> None:
    text = changed(put_int8(evaluations=[{**SCORES, "accuracy": accuracy}, {**SCORES, "tta": "flip"}]))
    manifest = parse_manifest(text)
    assert isinstance(manifest, EmotionManifest)
    assert manifest.int8 is not None
    assert [scores.accuracy for scores in manifest.int8.evaluations] == [accuracy, 0.5]
    assert parse_manifest(dump_manifest(manifest)) == manifest


def test_manifest_without_int8_is_valid_and_keeps_its_bytes() -> None:
    text = dump_manifest(emotion_manifest())
    assert "int8" not in json.loads(text)
    manifest = parse_manifest(text)
    assert isinstance(manifest, EmotionManifest)
    assert manifest.int8 is None
    assert dump_manifest(manifest) == text
    assert parse_manifest(changed(put("int8", None))) == manifest


def test_manifest_is_frozen() -> None:
    manifest = emotion_manifest()
    with pytest.raises(ValidationError):
        manifest.temperature = 2.0  # type: ignore[misc]
    with pytest.raises(ValidationError):
        manifest.input.size_px = 64  # type: ignore[misc]


def test_label_count_must_be_the_output_count() -> None:
    emotion_manifest().check_outputs(7)
    with pytest.raises(LabelMismatchError, match="7 labels for a classifier with 8 outputs"):
        emotion_manifest().check_outputs(8)


def test_absent_manifest_is_a_manifest_error_with_its_path(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match=r"absent\.json: No such file"):
        read_manifest(tmp_path / "absent.json")


def test_provenance_is_kept_and_a_manifest_without_it_keeps_its_bytes() -> None:
    manifest = emotion_manifest()
    assert "provenance" not in dump_manifest(manifest)
    record = manifest.training.model_copy(update={"provenance": ("Start: fresh weights.",)})
    manifest = manifest.model_copy(update={"training": record})
    assert parse_manifest(dump_manifest(manifest)) == manifest
