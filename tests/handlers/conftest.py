"""Detectors on the registered MTCNN, the tiny emotion model, and two pictures with faces."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from handlers.detection.mtcnn import MtcnnDetector, load_networks
from handlers.engines import choose_engine
from model_store import registry
from model_store.bundle import Bundle
from model_store.export import build_servable
from model_store.manifest import INT8_NAME
from model_store.servable import ServableModel
from tests.handlers.face_scenes import face_patch, place_faces
from tests.model_bundles import model_store_at, publish_tiny, publish_tiny_int8
from tests.pictures import encoded


@pytest.fixture(scope="session")
def mtcnn_model(store: Path) -> ServableModel:
    return registry.load_default("face-detection")


@pytest.fixture(scope="session")
def detector(mtcnn_model: ServableModel) -> MtcnnDetector:
    return MtcnnDetector(load_networks(choose_engine(), mtcnn_model))


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> ServableModel:
    bundle = publish_tiny(tmp_path_factory.mktemp("bundles"))
    return build_servable(bundle, tmp_path_factory.mktemp("servable"))


@pytest.fixture(scope="session")
def _int8_bundle(tiny_model: ServableModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    from training.int8_network import quantise_network

    folder = tmp_path_factory.mktemp("int8")
    inputs = np.random.default_rng(0).standard_normal((32, 1, 32, 32), np.float32)
    quantise_network(tiny_model.onnx("classifier"), folder / INT8_NAME, inputs)
    return publish_tiny_int8(folder / "bundles", folder / INT8_NAME, name="tiny-int8")


@pytest.fixture(scope="session")
def _both_models(store: Path, _int8_bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("both")
    shutil.copytree(store / "models" / "mtcnn", folder / "models" / "mtcnn")
    with model_store_at(folder / "models"):
        registry.register(publish_tiny(folder / "bundles"))
        registry.register(_int8_bundle)
        registry.promote("mtcnn")
    return folder / "models"


@pytest.fixture
def both_models(_both_models: Path, empty_store: Path) -> Path:
    """This test's own store with mtcnn:1.0.0 and tiny:1.0.0, both the defaults of their tasks, and tiny-int8:1.0.0.

    The last has the weights of tiny and, beside them, an int8 network made of them.
    """
    return shutil.copytree(_both_models, empty_store, dirs_exist_ok=True)


@pytest.fixture(scope="session")
def one_face(astronaut_png: bytes) -> bytes:
    """A small JPEG with one face, 160×160."""
    return encoded(place_faces(160, 160, [(face_patch(astronaut_png, 110), 20, 25)]), "JPEG", quality=90)


@pytest.fixture(scope="session")
def two_faces(astronaut_png: bytes) -> bytes:
    """A small JPEG with two faces of different sizes, 192×144."""
    patches = [(face_patch(astronaut_png, 100), 0, 10), (face_patch(astronaut_png, 70, degrees=-8), 110, 40)]
    return encoded(place_faces(144, 192, patches), "JPEG", quality=90)
