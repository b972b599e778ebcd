from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from handlers.detection.mtcnn import MtcnnDetector
from handlers.detection.reference import ReferenceDetector
from handlers.engines import ENGINE_NAMES, choose_engine
from handlers.errors import EngineUnavailableError, ModelUnavailableError
from handlers.pipeline import load_pipeline
from handlers.results import Analysis
from model_store.export import MAX_ABS_DIFFERENCE
from model_store.servable import ServableModel


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Packages put in here are not installed."""
    hidden: set[str] = set()
    find = util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in hidden else find(name, package)

    monkeypatch.setattr(util, "find_spec", find_spec)
    return hidden


@pytest.fixture
def torch_threads() -> Iterator[None]:
    """The torch engine sets the thread count of the whole process: put it back."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("name", ["", "tensorflow", "ONNXRUNTIME", "onnxruntime "])
def test_unknown_engine_is_refused_with_the_known_names(name: str) -> None:
    with pytest.raises(EngineUnavailableError, match="none of " + ", ".join(ENGINE_NAMES)):
        choose_engine(name)


@pytest.mark.parametrize("threads", [0, -1])
@pytest.mark.parametrize("name", ["auto", "onnxruntime"])
def test_less_than_one_thread_is_refused(name: str, threads: int) -> None:
    with pytest.raises(EngineUnavailableError, match=f"at least 1, not {threads}"):
        choose_engine(name, threads=threads)


@pytest.mark.parametrize("name", ["onnxruntime", "torch"])
def test_engine_that_is_not_installed_is_refused(without: set[str], name: str) -> None:
    without.add(name)
    with pytest.raises(EngineUnavailableError, match=f"'{name}' is not installed here"):
        choose_engine(name)


def test_auto_without_any_engine_is_refused(without: set[str]) -> None:
    without.update(ENGINE_NAMES)
    with pytest.raises(EngineUnavailableError, match="'auto' is not installed here"):
        choose_engine("auto")


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize(("hidden", "chosen"), [(set(), "onnxruntime"), ({"onnxruntime"}, "torch")])
def test_auto_takes_the_first_that_is_installed_and_logs_it(
    without: set[str], caplog: pytest.LogCaptureFixture, hidden: set[str], chosen: str
) -> None:
    without.update(hidden)
    with caplog.at_level(logging.INFO, "handlers.engines"):
        assert choose_engine("auto").name == chosen
    assert [record.getMessage() for record in caplog.records] == [f"engine auto: chose {chosen}"]


@pytest.mark.usefixtures("torch_threads")
@pytest.mark.parametrize("batch", [1, 3, 17])
def test_torch_and_onnxruntime_agree(tiny_model: ServableModel, batch: int) -> None:
    inputs = np.random.default_rng(batch).standard_normal((batch, 1, 32, 32), np.float32)
    outputs = {}
    for name in ("torch", "onnxruntime"):
        networks = choose_engine(name).load(tiny_model)
        assert set(networks) == {"classifier"}
        (outputs[name],) = networks["classifier"](inputs)
        assert outputs[name].shape == (batch, 7)
        assert outputs[name].dtype == np.float32
    np.testing.assert_allclose(outputs["onnxruntime"], outputs["torch"], atol=MAX_ABS_DIFFERENCE, rtol=0)


def test_network_is_safe_in_threads(tiny_model: ServableModel) -> None:
    network = choose_engine("onnxruntime").load(tiny_model)["classifier"]
    batches = [np.random.default_rng(seed).standard_normal((2, 1, 32, 32), np.float32) for seed in range(40)]
    alone = [network(batch)[0] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: network(batch)[0], batches))
    np.testing.assert_array_equal(together, alone)


@pytest.mark.parametrize("content", [b"", b"not a network"], ids=["empty", "text"])
def test_file_that_is_no_network_is_an_unavailable_model(
    tiny_model: ServableModel, tmp_path: Path, content: bytes
) -> None:
    (tmp_path / "classifier.onnx").write_bytes(content)
    with pytest.raises(ModelUnavailableError, match=r"tiny:1\.0\.0: classifier\.onnx cannot be loaded"):
        choose_engine("onnxruntime").load(dataclasses.replace(tiny_model, serving_folder=tmp_path))


@pytest.mark.usefixtures("torch_threads")
def test_both_engines_give_the_same_pipeline(both_models: Path, two_faces: bytes) -> None:
    by_engine = {}
    for engine, kind in (("onnxruntime", MtcnnDetector), ("torch", ReferenceDetector)):
        pipeline = load_pipeline(engine=engine)
        assert type(pipeline.detector) is kind
        (by_engine[engine],) = pipeline.analyze([two_faces])
    ours, reference = by_engine["onnxruntime"], by_engine["torch"]
    assert isinstance(ours, Analysis)
    assert isinstance(reference, Analysis)
    assert len(ours.faces) == len(reference.faces) == 2
    for face, expected in zip(ours.faces, reference.faces, strict=True):
        np.testing.assert_allclose(face.box_px, expected.box_px, atol=0.5)
        np.testing.assert_allclose(list(face.probabilities.values()), list(expected.probabilities.values()), atol=0.02)
