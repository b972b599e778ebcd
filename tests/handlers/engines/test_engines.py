"""What holds for every engine, and which one is chosen."""

from __future__ import annotations

import dataclasses
import logging
import platform
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib import util
from importlib.machinery import ModuleSpec
from pathlib import Path

import numpy as np
import pytest

from handlers.detection.mtcnn import MtcnnDetector
from handlers.detection.reference import ReferenceDetector
from handlers.detection.tiles import TILE_SHAPE
from handlers.engines import ENGINE_NAMES, Engine, InputShape, Precision, choose_engine
from handlers.errors import EngineUnavailableError, ModelUnavailableError
from handlers.pipeline import load_pipeline
from handlers.results import Analysis
from model_store import registry
from model_store.export import MAX_ABS_DIFFERENCE
from model_store.servable import ServableModel

ENGINES = [name for name in ENGINE_NAMES if name != "auto"]
ONNX_ENGINES = [name for name in ENGINES if name != "torch"]
TINY = InputShape((1, 32, 32))


@pytest.fixture(autouse=True, scope="module")
def _torch_threads() -> Iterator[None]:
    """The torch engine sets the thread count of the whole process: put it back."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def without(monkeypatch: pytest.MonkeyPatch) -> set[str]:
    """Packages put in here are not installed."""
    hidden: set[str] = set()
    find = util.find_spec

    def find_spec(name: str, package: str | None = None) -> ModuleSpec | None:
        return None if name in hidden else find(name, package)

    monkeypatch.setattr(util, "find_spec", find_spec)
    return hidden


def engine_called(name: str) -> Engine:
    """That engine; skips where it is not installed."""
    try:
        return choose_engine(name)
    except EngineUnavailableError as error:
        pytest.skip(str(error))


@pytest.mark.parametrize("name", ["", "tensorflow", "ONNXRUNTIME", "onnxruntime "])
def test_unknown_engine_is_refused_with_the_known_names(name: str) -> None:
    with pytest.raises(EngineUnavailableError, match="none of " + ", ".join(ENGINE_NAMES)):
        choose_engine(name)


@pytest.mark.parametrize("threads", [0, -1])
@pytest.mark.parametrize("name", ["auto", "onnxruntime"])
def test_less_than_one_thread_is_refused(name: str, threads: int) -> None:
    with pytest.raises(EngineUnavailableError, match=f"at least 1, not {threads}"):
        choose_engine(name, threads=threads)


@pytest.mark.parametrize("name", ENGINES)
def test_engine_that_is_not_installed_is_refused(without: set[str], name: str) -> None:
    without.add(name)
    with pytest.raises(EngineUnavailableError, match=f"'{name}' is not installed here"):
        choose_engine(name)


def test_auto_without_any_engine_is_refused(without: set[str]) -> None:
    without.update(ENGINE_NAMES)
    with pytest.raises(EngineUnavailableError, match="'auto' is not installed here"):
        choose_engine("auto")


@pytest.mark.parametrize(
    ("machine", "hidden", "chosen"),
    [
        ("x86_64", set(), "openvino"),
        ("AMD64", set(), "openvino"),
        ("x86_64", {"openvino"}, "onnxruntime"),
        ("x86_64", {"openvino", "onnxruntime"}, "torch"),
        ("aarch64", set(), "onnxruntime"),
        ("arm64", set(), "onnxruntime"),
        ("aarch64", {"onnxruntime"}, "torch"),
        ("", set(), "onnxruntime"),
    ],
)
def test_auto_takes_the_first_that_is_installed_and_made_for_the_processor_and_logs_it(
    without: set[str],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    machine: str,
    hidden: set[str],
    chosen: str,
) -> None:
    without.update(hidden)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    with caplog.at_level(logging.INFO, "handlers.engines"):
        assert choose_engine("auto").name == chosen
    assert [record.getMessage() for record in caplog.records] == [f"engine auto: chose {chosen}"]


def test_engine_that_is_named_is_taken_on_any_processor(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(platform, "machine", lambda: "aarch64")
    for name in ENGINES:
        assert choose_engine(name).name == name


def input_shapes(model: ServableModel) -> dict[str, InputShape]:
    """The model's networks, and the inputs that serving gives them."""
    if model.manifest.task == "emotion-classification":
        return {"classifier": InputShape((model.manifest.input.channels, *[model.manifest.input.size_px] * 2))}
    return {
        "pnet_tail": InputShape((10, 5, 5), (64,)),
        "pnet_screen": InputShape(TILE_SHAPE, (1,)),
        "rnet": InputShape((3, 24, 24), (1, 4, 16)),
        "onet": InputShape((3, 48, 48)),
    }


@pytest.mark.parametrize("task", ["emotion-classification", "face-detection"])
@pytest.mark.parametrize("name", ONNX_ENGINES)
def test_every_network_is_the_torch_weights_at_every_batch_size(store: Path, name: str, task: registry.Task) -> None:
    engine, reference, model = engine_called(name), choose_engine("torch"), registry.load_default(task)
    assert set(input_shapes(model)) == set(model.serving.parity)
    for network, shape in input_shapes(model).items():
        inputs = np.random.default_rng(0).standard_normal((40, *shape.item), np.float32)
        expected = reference.load(model, network, shape)(inputs)
        loaded = engine.load(model, network, shape)
        for n in range(1, 41) if name == "openvino" else (1, 2, 17, 40):  # which alone puts sizes together
            part = slice(40 - n, 40) if n % 2 else slice(n)
            outputs = loaded(inputs[part])
            for output, other in zip(outputs, expected, strict=True):
                assert (output.dtype, output.shape) == (np.float32, (n, *other.shape[1:]))
                np.testing.assert_allclose(output, other[part], atol=MAX_ABS_DIFFERENCE, rtol=0)


@pytest.mark.parametrize("name", ENGINES)
def test_outputs_are_the_callers_own(tiny_model: ServableModel, name: str) -> None:
    network = engine_called(name).load(tiny_model, "classifier", TINY)
    inputs = np.random.default_rng(0).standard_normal((5, 1, 32, 32), np.float32)
    (first,) = network(inputs)
    before = first.copy()
    network(inputs[::-1].copy())
    np.testing.assert_array_equal(first, before)


@pytest.mark.parametrize("name", ONNX_ENGINES)
def test_inputs_may_be_a_view(tiny_model: ServableModel, name: str) -> None:
    network = engine_called(name).load(tiny_model, "classifier", TINY)
    inputs = np.random.default_rng(0).standard_normal((6, 1, 32, 32), np.float32)
    for view in (inputs[::-1], inputs[:, :, :, ::-1], inputs[::2], inputs.transpose(0, 1, 3, 2)):
        np.testing.assert_array_equal(network(view)[0], network(view.copy())[0])


@pytest.mark.parametrize("name", ENGINES)
def test_network_is_safe_in_threads(tiny_model: ServableModel, name: str) -> None:
    network = engine_called(name).load(tiny_model, "classifier", TINY)
    rng = np.random.default_rng(0)
    batches = [rng.standard_normal((1 + index % 7, 1, 32, 32), np.float32) for index in range(60)]
    alone = [network(batch)[0] for batch in batches]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(lambda batch: network(batch)[0], batches * 3))
    for output, expected in zip(together, alone * 3, strict=True):
        np.testing.assert_array_equal(output, expected)


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@pytest.mark.parametrize("network", ["", "pnet", "classifier.onnx", "../bundle/model"])
@pytest.mark.parametrize("name", ENGINES)
def test_network_that_the_model_does_not_have_is_an_unavailable_model(
    tiny_model: ServableModel, name: str, network: str, precision: Precision
) -> None:
    with pytest.raises(ModelUnavailableError, match=rf"tiny:1\.0\.0 has no network '{network}'"):
        engine_called(name).load(tiny_model, network, TINY, precision)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("openvino", r"tiny:1\.0\.0 has no int8 network"),
        ("onnxruntime", r"tiny:1\.0\.0 has no int8 network"),
        ("torch", "the torch engine runs no int8 networks: choose openvino or onnxruntime"),
    ],
)
def test_int8_of_a_model_without_it_is_an_unavailable_model(tiny_model: ServableModel, name: str, message: str) -> None:
    with pytest.raises(ModelUnavailableError, match=message):
        engine_called(name).load(tiny_model, "classifier", TINY, "int8")


@pytest.mark.parametrize("content", [None, b"", b"not a network"], ids=["absent", "empty", "text"])
@pytest.mark.parametrize("name", ONNX_ENGINES)
def test_file_that_is_no_network_is_an_unavailable_model(
    tiny_model: ServableModel, tmp_path: Path, name: str, content: bytes | None
) -> None:
    if content is not None:
        (tmp_path / "classifier.onnx").write_bytes(content)
    broken = dataclasses.replace(tiny_model, serving_folder=tmp_path)
    with pytest.raises(ModelUnavailableError, match=r"tiny:1\.0\.0: classifier\.onnx cannot be loaded"):
        engine_called(name).load(broken, "classifier", TINY)


@pytest.mark.parametrize("cut", [0.3, 0.9, 0.999])
@pytest.mark.parametrize("name", ONNX_ENGINES)
def test_file_that_was_cut_off_is_an_unavailable_model(
    tiny_model: ServableModel, tmp_path: Path, name: str, cut: float
) -> None:
    whole = tiny_model.onnx("classifier").read_bytes()
    (tmp_path / "classifier.onnx").write_bytes(whole[: int(len(whole) * cut)])
    broken = dataclasses.replace(tiny_model, serving_folder=tmp_path)
    with pytest.raises(ModelUnavailableError, match=r"classifier\.onnx cannot be loaded"):
        engine_called(name).load(broken, "classifier", TINY)


@pytest.mark.parametrize("name", ONNX_ENGINES)
def test_engine_gives_the_pipeline_of_the_torch_engine(both_models: Path, two_faces: bytes, name: str) -> None:
    engine_called(name)
    by_engine = {}
    for engine, kind in ((name, MtcnnDetector), ("torch", ReferenceDetector)):
        pipeline = load_pipeline(engine=engine)
        assert type(pipeline.detector) is kind
        (by_engine[engine],) = pipeline.analyze([two_faces])
    ours, reference = by_engine.values()
    assert isinstance(ours, Analysis)
    assert isinstance(reference, Analysis)
    assert len(ours.faces) == len(reference.faces) == 2
    for face, expected in zip(ours.faces, reference.faces, strict=True):
        np.testing.assert_allclose(face.box_px, expected.box_px, atol=0.5)
        np.testing.assert_allclose(list(face.probabilities.values()), list(expected.probabilities.values()), atol=0.02)
