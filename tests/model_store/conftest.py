"""Bundles and stores of the tiny model, built once and copied for each test that changes them."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from model_store import registry
from model_store.bundle import Bundle, open_bundle
from model_store.export import build_servable
from model_store.manifest import INT8_NAME
from model_store.servable import ServableModel
from tests.model_bundles import model_store_at, publish_tiny, publish_tiny_int8


@pytest.fixture(scope="session")
def published(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle; not to be changed."""
    return publish_tiny(tmp_path_factory.mktemp("bundles"))


@pytest.fixture
def bundle(published: Bundle, tmp_path: Path) -> Bundle:
    """A copy of the tiny bundle, to be changed at will."""
    folder = tmp_path / "bundles" / "tiny" / "1.0.0"
    shutil.copytree(published.folder, folder)
    return open_bundle(folder)


@pytest.fixture(scope="session")
def built(published: Bundle, tmp_path_factory: pytest.TempPathFactory) -> ServableModel:
    """The tiny model as registration builds it; not to be changed."""
    return build_servable(published, tmp_path_factory.mktemp("servable"))


@pytest.fixture(scope="session")
def int8_published(built: ServableModel, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """The tiny bundle with an int8 network, made from the weights that it carries; not to be changed."""
    from training.int8_network import quantise_network

    folder = tmp_path_factory.mktemp("int8")
    inputs = np.random.default_rng(0).standard_normal((32, 1, 32, 32), np.float32)
    quantise_network(built.onnx("classifier"), folder / INT8_NAME, inputs)
    return publish_tiny_int8(folder / "bundles", folder / INT8_NAME)


@pytest.fixture(scope="session")
def int8_built(int8_published: Bundle, tmp_path_factory: pytest.TempPathFactory) -> ServableModel:
    """The tiny model with its int8 network, as registration builds it; not to be changed."""
    return build_servable(int8_published, tmp_path_factory.mktemp("servable"))


@pytest.fixture
def servable_folder(built: ServableModel, tmp_path: Path) -> Path:
    """A copy of the built model, to be changed at will."""
    return shutil.copytree(built.serving_folder.parent, tmp_path / "servable")


@pytest.fixture(scope="session")
def _three_models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    with model_store_at(folder / "models"):
        for seed, changes in enumerate(({}, {"version": "1.10.0"}, {"name": "other"})):
            registry.register(publish_tiny(folder / "bundles", seed=seed, **changes))
    return folder


@pytest.fixture
def three_bundles(_three_models: Path) -> Path:
    """The folder of the bundles in `three_models`; not to be changed."""
    return _three_models / "bundles"


@pytest.fixture
def three_models(_three_models: Path, empty_store: Path) -> Path:
    """This test's own store with tiny:1.0.0 (the default), tiny:1.10.0 and other:1.0.0."""
    return shutil.copytree(_three_models / "models", empty_store, dirs_exist_ok=True)
