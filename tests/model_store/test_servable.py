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
    SizeMismatchError,
)
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


def test_bundle_swapped_for_another_valid_one_is_refused(servable_folder: Path, tmp_path: Path) -> None:
    other = publish_tiny(tmp_path / "others", seed=9)
    shutil.rmtree(servable_folder / "bundle")
    shutil.copytree(other.folder, servable_folder / "bundle")
    with pytest.raises(ManifestError, match="built from another bundle"):
        open_servable(servable_folder)
