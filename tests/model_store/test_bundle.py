from __future__ import annotations

import io
import json
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save

from model_store.bundle import Bundle, find_bundle, open_bundle, publish_bundle, read_tensor_shapes, record_file
from model_store.errors import (
    BundleExistsError,
    DigestMismatchError,
    FileMissingError,
    FileUnexpectedError,
    LabelMismatchError,
    ManifestError,
    ModelNotFoundError,
    ModelStoreError,
    SizeMismatchError,
    UnsafeWeightsError,
)
from model_store.manifest import MANIFEST_NAME, WEIGHTS_NAME, dump_manifest
from tests.model_bundles import emotion_manifest, publish_tiny


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def with_weights(bundle: Bundle, weights: bytes) -> Path:
    """The bundle's folder with other weights, and a manifest that records just those."""
    bundle.weights.write_bytes(weights)
    files = {**bundle.manifest.files, WEIGHTS_NAME: record_file(bundle.weights)}
    manifest = bundle.manifest.model_copy(update={"files": files})
    (bundle.folder / MANIFEST_NAME).write_text(dump_manifest(manifest))
    return bundle.folder


def head(n_outputs: int, name: str = "head.weight") -> bytes:
    return save({name: np.zeros((n_outputs, 8), np.float32)})


def torch_archive() -> bytes:
    import torch

    buffer = io.BytesIO()
    torch.save({"head.weight": torch.zeros(7, 8)}, buffer)
    return buffer.getvalue()


def header(text: bytes, length: int | None = None) -> bytes:
    return (len(text) if length is None else length).to_bytes(8, "little") + text


def test_published_bundle_opens_with_an_equal_manifest(published: Bundle) -> None:
    opened = open_bundle(published.folder)
    assert opened == published
    assert opened.sha256 == published.sha256
    assert sorted(path.name for path in published.folder.iterdir()) == [
        "MODEL_CARD.md",
        "manifest.json",
        "model.safetensors",
    ]


DAMAGES: dict[str, tuple[Callable[[Path], object], type[ModelStoreError]]] = {
    "weights altered": (lambda folder: flip_a_byte(folder / WEIGHTS_NAME), DigestMismatchError),
    "card altered": (lambda folder: (folder / "MODEL_CARD.md").write_bytes(b"# Tinx\n"), DigestMismatchError),
    "weights truncated": (lambda folder: (folder / WEIGHTS_NAME).write_bytes(b"x"), SizeMismatchError),
    "card longer": (lambda folder: (folder / "MODEL_CARD.md").write_bytes(b"# Tiny\n\n"), SizeMismatchError),
    "weights missing": (lambda folder: (folder / WEIGHTS_NAME).unlink(), FileMissingError),
    "card missing": (lambda folder: (folder / "MODEL_CARD.md").unlink(), FileMissingError),
    "manifest missing": (lambda folder: (folder / MANIFEST_NAME).unlink(), ManifestError),
    "manifest empty": (lambda folder: (folder / MANIFEST_NAME).write_bytes(b""), ManifestError),
    "extra file": (lambda folder: (folder / "hubconf.py").write_text("print('hello')"), FileUnexpectedError),
    "extra folder": (lambda folder: (folder / "cache").mkdir(), FileUnexpectedError),
    "folder missing": (shutil.rmtree, ModelNotFoundError),
}


@pytest.mark.parametrize(("damage", "error"), DAMAGES.values(), ids=DAMAGES.keys())
def test_damaged_bundle_is_refused(bundle: Bundle, damage: Callable[[Path], object], error: type[Exception]) -> None:
    damage(bundle.folder)
    with pytest.raises(error) as caught:
        open_bundle(bundle.folder)
    assert str(bundle.folder) in str(caught.value)


UNSAFE: dict[str, Callable[[], bytes]] = {
    "torch archive": torch_archive,
    **{f"pickle protocol {n}": lambda n=n: pickle.dumps({"head.weight": [0.0] * 7}, n) for n in range(6)},
    "empty": lambda: b"",
    "seven bytes": lambda: b"\0" * 7,
    "header longer than the file": lambda: header(b"{}", 3),
    "header of exabytes": lambda: b"\xff" * 64,
    "header not JSON": lambda: header(b"not json"),
    "header not UTF-8": lambda: header(b"\xff\xfe"),
    "header a list": lambda: header(b"[]"),
    "tensor without a shape": lambda: header(b'{"head.weight": {}}'),
    "tensor with a shape of words": lambda: header(b'{"head.weight": {"shape": ["seven"]}}'),
    "header nested without end": lambda: header(b"[" * 100_000),
}


@pytest.mark.parametrize("weights", UNSAFE.values(), ids=UNSAFE.keys())
def test_weights_that_are_no_safetensors_are_refused_though_their_digest_is_right(
    bundle: Bundle, weights: Callable[[], bytes]
) -> None:
    folder = with_weights(bundle, weights())
    with pytest.raises(UnsafeWeightsError):
        open_bundle(folder)


@pytest.mark.parametrize(
    ("weights", "message"),
    [(head(8), "7 labels for a classifier with 8 outputs"), (head(7, "fc.weight"), "no tensor 'head.weight'")],
    ids=["wrong count", "no such tensor"],
)
def test_labels_must_fit_the_classifier_tensor(bundle: Bundle, weights: bytes, message: str) -> None:
    folder = with_weights(bundle, weights)
    with pytest.raises(LabelMismatchError, match=message):
        open_bundle(folder)


def test_tensor_shapes_come_from_the_header(tmp_path: Path) -> None:
    path = tmp_path / "w"
    path.write_bytes(save({"a": np.zeros((2, 3), np.float16), "b": np.zeros((), np.int64)}, {"note": "x"}))
    assert read_tensor_shapes(path) == {"a": (2, 3), "b": ()}


@pytest.mark.parametrize(
    ("files", "error"),
    [
        ({WEIGHTS_NAME: head(8)}, LabelMismatchError),
        ({WEIGHTS_NAME: pickle.dumps({})}, UnsafeWeightsError),
        ({"MODEL_CARD.md": b"no weights"}, ManifestError),
        ({WEIGHTS_NAME: head(7), ".hidden": b""}, ManifestError),
        ({WEIGHTS_NAME: Path("/nonexistent/weights")}, FileNotFoundError),
    ],
    ids=["labels", "pickle", "no weights", "bad name", "source missing"],
)
def test_failed_publication_leaves_no_file_and_no_version(
    tmp_path: Path, files: dict[str, bytes | Path], error: type[Exception]
) -> None:
    with pytest.raises(error):
        publish_bundle(tmp_path, emotion_manifest(), files)
    assert [path for path in tmp_path.rglob("*") if path.is_file() or path.parent.name == "tiny"] == []
    with pytest.raises(ModelNotFoundError):
        find_bundle(tmp_path, "tiny")


def test_standing_version_is_not_published_over(bundle: Bundle) -> None:
    root = bundle.folder.parents[1]
    with pytest.raises(BundleExistsError, match="that version stands"):
        publish_tiny(root, weights=head(7))
    assert open_bundle(bundle.folder) == bundle
    assert [path.name for path in bundle.folder.parent.iterdir()] == ["1.0.0"]


def test_published_digest_follows_the_weights_and_not_the_folder(tmp_path: Path) -> None:
    first, copy = (publish_tiny(tmp_path / place, weights=head(7)) for place in ("a", "b"))
    other = publish_tiny(tmp_path / "c", weights=save({"head.weight": np.ones((7, 8), np.float32)}))
    assert first.sha256 == copy.sha256 != other.sha256


@pytest.fixture
def versions(tmp_path: Path) -> Path:
    for version in ("1.9.0", "1.10.0", "1.2.10"):
        publish_tiny(tmp_path, weights=head(7), version=version)
    return tmp_path


def test_highest_version_is_found_by_number_not_by_letter(versions: Path) -> None:
    assert find_bundle(versions, "tiny") == versions / "tiny" / "1.10.0"


def test_exact_version_is_found(versions: Path) -> None:
    assert find_bundle(versions, "tiny:1.9.0") == versions / "tiny" / "1.9.0"


@pytest.mark.parametrize("name", ["tiny:1.9", "tiny:1", "tin", "other", "other:1.9.0", "tiny:1.9.00"])
def test_unknown_bundle_is_not_found(versions: Path, name: str) -> None:
    with pytest.raises(ModelNotFoundError, match="no bundle"):
        find_bundle(versions, name)


def test_leftover_of_a_killed_publication_hides_nothing(versions: Path) -> None:
    shutil.copytree(versions / "tiny" / "1.9.0", versions / "tiny" / ".2.0.0.abc123")
    assert find_bundle(versions, "tiny") == versions / "tiny" / "1.10.0"


def test_manifest_on_disk_is_the_canonical_dump(published: Bundle) -> None:
    text = (published.folder / MANIFEST_NAME).read_text()
    assert text == dump_manifest(published.manifest)
    assert json.loads(text)["files"][WEIGHTS_NAME]["size_bytes"] == published.weights.stat().st_size
