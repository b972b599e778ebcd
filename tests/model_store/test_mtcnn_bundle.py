from __future__ import annotations

import shutil
from importlib import metadata
from pathlib import Path

import pytest

from model_store import mtcnn, registry
from model_store.bundle import read_tensor_shapes
from model_store.errors import (
    DigestMismatchError,
    FileMissingError,
    ModelNotFoundError,
    SizeMismatchError,
)
from model_store.export import MAX_ABS_DIFFERENCE


@pytest.fixture
def package_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of facenet-pytorch's weight files, and the package's metadata pointing at the copy."""
    package = metadata.distribution("facenet-pytorch")
    data = shutil.copytree(
        str(package.locate_file("facenet_pytorch/data")), tmp_path / "site" / "facenet_pytorch" / "data"
    )
    monkeypatch.setattr(type(package), "locate_file", lambda _, path: tmp_path / "site" / path)
    return data


def flip_a_byte(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)


def test_bundle_holds_every_tensor_of_the_three_networks(package_data: Path, tmp_path: Path) -> None:
    bundle = mtcnn.publish_mtcnn(tmp_path / "bundles")
    shapes = read_tensor_shapes(bundle.weights)
    assert {name.split(".")[0] for name in shapes} == {"pnet", "rnet", "onet"}
    assert shapes["onet.dense6_3.weight"] == (10, 256)
    assert bundle.manifest.tag == "mtcnn:1.0.0"
    assert bundle.manifest.task == "face-detection"
    assert dict(bundle.manifest.weights_source) == mtcnn.WEIGHTS_LOCK


def test_bundle_is_the_same_bytes_every_time(tmp_path: Path) -> None:
    first, second = (mtcnn.publish_mtcnn(tmp_path / place) for place in "ab")
    assert first.sha256 == second.sha256


@pytest.mark.parametrize("network", mtcnn.NETWORKS)
def test_altered_package_weights_are_refused(package_data: Path, tmp_path: Path, network: str) -> None:
    flip_a_byte(package_data / f"{network}.pt")
    with pytest.raises(DigestMismatchError, match=f"{network}.pt"):
        mtcnn.publish_mtcnn(tmp_path / "bundles")
    assert not (tmp_path / "bundles").exists()


def test_truncated_and_missing_package_weights_are_refused(package_data: Path, tmp_path: Path) -> None:
    (package_data / "rnet.pt").write_bytes(b"")
    with pytest.raises(SizeMismatchError, match=r"rnet\.pt"):
        mtcnn.publish_mtcnn(tmp_path / "bundles")
    (package_data / "rnet.pt").unlink()
    with pytest.raises(FileMissingError, match=r"rnet\.pt"):
        mtcnn.publish_mtcnn(tmp_path / "bundles")


def test_absent_package_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(name: str) -> metadata.Distribution:
        raise metadata.PackageNotFoundError(name)

    monkeypatch.setattr(metadata, "distribution", absent)
    with pytest.raises(ModelNotFoundError, match="facenet-pytorch"):
        mtcnn.publish_mtcnn(tmp_path)


def test_registered_networks_hold_the_parity_gate(store: Path) -> None:
    parity = registry.load("mtcnn").serving.parity
    assert set(parity) == {"pnet_tail", "pnet_screen", "rnet", "onet"}
    assert all(value.max_abs_difference <= MAX_ABS_DIFFERENCE and value.n_real > 0 for value in parity.values())
    assert registry.defaults()["face-detection"] == "mtcnn:1.0.0"
