from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from model_store.errors import (
    DigestMismatchError,
    FileMissingError,
    FileUnexpectedError,
    ManifestError,
    ModelNotFoundError,
    ModelStoreError,
    NetworkNotFoundError,
    SizeMismatchError,
)
from model_store.manifest import INT8_NAME
from model_store.servable import ServableModel, open_servable
from tests.model_bundles import publish_tiny


def edit_record(folder: Path, **changes: object) -> None:
    path = folder / "serving" / "serving.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def flip_last_byte(path: Path) -> None:
    data = path.read_bytes()
    path.write_bytes(data[:-1] + bytes([data[-1] ^ 1]))


def test_built_model_opens_again(built: ServableModel) -> None:
    opened = open_servable(built.serving_folder.parent)
    assert opened == built
    assert opened.onnx("classifier").is_file()
    assert opened.manifest.tag == "tiny:1.0.0"
    assert opened.serving.bundle_sha256 == opened.bundle.sha256


DAMAGES: dict[str, tuple[Callable[[Path], object], type[ModelStoreError]]] = {
    "onnx altered": (lambda folder: flip_last_byte(folder / "serving/classifier.onnx"), DigestMismatchError),
    "onnx truncated": (lambda folder: (folder / "serving/classifier.onnx").write_bytes(b"\x08"), SizeMismatchError),
    "onnx missing": (lambda folder: (folder / "serving/classifier.onnx").unlink(), FileMissingError),
    "extra file": (lambda folder: (folder / "serving/classifier.onnx.data").write_bytes(b""), FileUnexpectedError),
    "record missing": (lambda folder: (folder / "serving/serving.json").unlink(), ManifestError),
    "record empty": (lambda folder: (folder / "serving/serving.json").write_bytes(b""), ManifestError),
    "record with an unknown key": (lambda folder: edit_record(folder, device="gpu"), ManifestError),
    "record of another bundle": (lambda folder: edit_record(folder, bundle_sha256="0" * 64), ManifestError),
    "serving folder missing": (lambda folder: shutil.rmtree(folder / "serving"), ManifestError),
    "bundle missing": (lambda folder: shutil.rmtree(folder / "bundle"), ModelNotFoundError),
    "weights altered": (lambda folder: flip_last_byte(folder / "bundle/model.safetensors"), DigestMismatchError),
}


@pytest.mark.parametrize(("damage", "error"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_model_is_refused(servable_folder: Path, damage: Callable[[Path], object], error: type) -> None:
    damage(servable_folder)
    with pytest.raises(error):
        open_servable(servable_folder)


def test_int8_network_is_the_bundles_own_file(int8_built: ServableModel) -> None:
    folder = int8_built.serving_folder.parent
    assert open_servable(folder) == int8_built
    assert int8_built.onnx("classifier", "int8") == folder / "bundle" / INT8_NAME
    assert int8_built.onnx("classifier", "fp32") == folder / "serving" / "classifier.onnx"
    assert [path.name for path in folder.rglob("*.onnx") if "int8" in path.name] == [INT8_NAME]


def test_network_that_is_not_there_in_int8_is_refused(built: ServableModel, int8_built: ServableModel) -> None:
    for model, network in ((built, "classifier"), (int8_built, "onet")):
        with pytest.raises(NetworkNotFoundError, match=rf"tiny:1\.0\.0 has no int8 network '{network}'"):
            model.onnx(network, "int8")


def test_altered_int8_network_is_refused(int8_built: ServableModel, tmp_path: Path) -> None:
    folder = shutil.copytree(int8_built.serving_folder.parent, tmp_path / "servable")
    flip_last_byte(folder / "bundle" / INT8_NAME)
    with pytest.raises(DigestMismatchError, match=INT8_NAME):
        open_servable(folder)


def test_record_from_before_int8_opens(servable_folder: Path) -> None:
    path = servable_folder / "serving" / "serving.json"
    values = json.loads(path.read_text())
    assert values.pop("int8") is None
    path.write_text(json.dumps(values))
    assert open_servable(servable_folder).serving.int8 is None


def test_bundle_swapped_for_another_valid_one_is_refused(servable_folder: Path, tmp_path: Path) -> None:
    other = publish_tiny(tmp_path / "others", seed=9)
    shutil.rmtree(servable_folder / "bundle")
    shutil.copytree(other.folder, servable_folder / "bundle")
    with pytest.raises(ManifestError, match="built from another bundle"):
        open_servable(servable_folder)
