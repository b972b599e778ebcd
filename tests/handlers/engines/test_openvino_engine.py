from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from handlers.engines import InputShape, choose_engine
from handlers.pipeline import load_pipeline
from handlers.results import Analysis
from model_store import registry
from model_store.servable import ServableModel
from tests.handlers.composites import composite
from tests.pictures import encoded

openvino = pytest.importorskip("openvino", reason="needs openvino")


@pytest.fixture
def compilations(monkeypatch: pytest.MonkeyPatch) -> list[dict[str, Any]]:
    """Grows with every network that OpenVINO compiles, by its properties."""
    calls: list[dict[str, Any]] = []
    compile_model = openvino.Core.compile_model

    def counted(self: object, model: object, device: str, properties: dict[str, Any]) -> object:
        calls.append(properties)
        return compile_model(self, model, device, properties)

    monkeypatch.setattr(openvino.Core, "compile_model", counted)
    return calls


@pytest.mark.parametrize("batches", [(1,), (1, 4, 16), (16, 1, 4), (1, 3, 7, 50), (64,), (5, 12)], ids=str)
def test_any_number_of_inputs_is_put_together_from_the_batch_sizes(
    tiny_model: ServableModel, batches: tuple[int, ...], compilations: list[dict[str, Any]]
) -> None:
    network = choose_engine("openvino").load(tiny_model, "classifier", InputShape((1, 32, 32), batches))
    n_compilations = len(compilations)
    assert 1 <= n_compilations <= len(batches)
    inputs = np.random.default_rng(0).standard_normal((70, 1, 32, 32), np.float32)
    single = np.concatenate([network(inputs[index : index + 1])[0] for index in range(70)])
    for n in (1, 2, 3, 4, 5, 15, 16, 17, 37, 50, 70):
        np.testing.assert_allclose(network(inputs[:n])[0], single[:n], atol=1e-5, rtol=0)
    assert len(compilations) == n_compilations


def test_what_fills_up_a_batch_changes_nothing(tiny_model: ServableModel) -> None:
    network = choose_engine("openvino").load(tiny_model, "classifier", InputShape((1, 32, 32), (8,)))
    inputs = np.random.default_rng(0).standard_normal((11, 1, 32, 32), np.float32)
    (expected,) = network(inputs)
    network(np.full((8, 1, 32, 32), np.nan, np.float32))
    np.testing.assert_array_equal(network(inputs[8:])[0], expected[8:])
    with ThreadPoolExecutor(1) as pool:  # a thread with buffers that were never written
        np.testing.assert_array_equal(pool.submit(network, inputs[:3]).result()[0], network(inputs[:3])[0])


@pytest.mark.parametrize("threads", [1, 3])
def test_threads_and_precision_reach_openvino(
    tiny_model: ServableModel, threads: int, compilations: list[dict[str, Any]]
) -> None:
    engine = choose_engine("openvino", threads=threads)
    for precision, hint in (("fp32", "f32"), ("bf16", "bf16")):
        engine.load(tiny_model, "classifier", InputShape((1, 32, 32)), precision)
        assert (compilations[-1]["INFERENCE_NUM_THREADS"], compilations[-1]["INFERENCE_PRECISION_HINT"]) == (
            threads,
            hint,
        )


def test_no_inputs_are_no_outputs(tiny_model: ServableModel) -> None:
    network = choose_engine("openvino").load(tiny_model, "classifier", InputShape((1, 32, 32)))
    assert network(np.empty((0, 1, 32, 32), np.float32))[0].shape == (0, 7)


@pytest.mark.parametrize("task", ["emotion-classification", "face-detection"])
def test_batch_size_of_a_network_changes_its_outputs_by_rounding_only(store: Path, task: registry.Task) -> None:
    model = registry.load_default(task)
    network, item = {"emotion-classification": ("classifier", (1, 48, 48)), "face-detection": ("onet", (3, 48, 48))}[
        task
    ]
    loaded = choose_engine("openvino").load(model, network, InputShape(item))
    inputs = np.random.default_rng(0).standard_normal((21, *item), np.float32)
    together = loaded(inputs)
    alone = [np.concatenate(rows) for rows in zip(*(loaded(row[np.newaxis]) for row in inputs), strict=True)]
    for output, expected in zip(together, alone, strict=True):
        np.testing.assert_allclose(output, expected, atol=1e-4, rtol=0)


def test_nothing_is_compiled_after_a_pipeline_is_loaded(store: Path, compilations: list[dict[str, Any]]) -> None:
    pipeline = load_pipeline(engine="openvino")
    n_compilations = len(compilations)
    assert n_compilations >= 5
    images = [encoded(composite(seed), "JPEG") for seed in (5, 7, 8, 9, 10, 3)]
    alone = [pipeline.analyze([image])[0] for image in images]
    with ThreadPoolExecutor(3) as pool:
        results = [*pipeline.analyze(images), *pool.map(lambda image: pipeline.analyze([image])[0], images)]
    counts = [len(result.faces) for result in results if isinstance(result, Analysis)]
    assert counts == [len(result.faces) for result in alone if isinstance(result, Analysis)] * 2
    assert len(set(counts)) >= 4
    assert len(compilations) == n_compilations


def test_bf16_may_be_less_exact_and_fp32_is_not(store: Path) -> None:
    model, shape = registry.load_default("face-detection"), InputShape((3, 48, 48))
    inputs = np.random.default_rng(0).standard_normal((4, 3, 48, 48), np.float32)
    fp32, bf16, reference = (
        choose_engine(engine).load(model, "onet", shape, precision)(inputs)[1]
        for engine, precision in (("openvino", "fp32"), ("openvino", "bf16"), ("onnxruntime", "bf16"))
    )
    np.testing.assert_allclose(fp32, reference, atol=1e-4, rtol=0)
    np.testing.assert_allclose(bf16, reference, atol=0.1, rtol=0)
