"""The engine for x86 processors: OpenVINO on the CPU, every input shape made ready when a network is loaded."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from typing import Any

import numpy as np
import openvino
from numpy.typing import NDArray

from handlers.engines import InputShape, Network, Precision
from handlers.engines.onnx_file import onnx_file
from handlers.errors import ModelUnavailableError
from model_store.servable import ServableModel

_LARGE_BYTES = 4_000_000


class OpenVinoEngine:
    """Runs the ONNX files of a registered model at the batch sizes that it is told.

    Nothing is compiled in a request: another batch size is put together from those. A small network is compiled for
    each of them, since one that changes its batch size loses about 0.1 ms. A large one, where that is little, is
    compiled once for all, since each would keep the weights again.
    """

    name = "openvino"

    def __init__(self, threads: int) -> None:
        self._core = openvino.Core()
        self.has_bf16 = "BF16" in self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self._properties = {
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
            "PERFORMANCE_HINT": "LATENCY",
            "ENABLE_CPU_PINNING": False,  # several processes would be pinned to the same core
        }

    def load(self, model: ServableModel, network: str, shape: InputShape, precision: Precision = "fp32") -> Network:
        """The network, ready for each batch size; see `Engine.load`."""
        path = onnx_file(model, network, precision)
        properties = self._properties | {"INFERENCE_PRECISION_HINT": "bf16" if precision == "bf16" else "f32"}

        def compile_for(batch: int | openvino.Dimension) -> openvino.CompiledModel:
            source.reshape([batch, *shape.item])
            return self._core.compile_model(source, "CPU", properties)

        try:
            source = self._core.read_model(path)
            if path.stat().st_size < _LARGE_BYTES:
                compiled = {batch: compile_for(batch) for batch in shape.batches}
            else:
                shared = compile_for(openvino.Dimension(min(shape.batches), max(shape.batches)))
                compiled = dict.fromkeys(shape.batches, shared)
            ready = _BatchedNetwork(compiled, shape.item)
            for batch in shape.batches:  # what a batch size of a shared network needs is generated on its first use
                ready(np.zeros((batch, *shape.item), np.float32))
        except RuntimeError as error:
            raise ModelUnavailableError(f"{model.manifest.tag}: {path.name} cannot be loaded ({error})") from error
        return ready


class _BatchedNetwork:
    """Compiled networks by batch size as one function on batches of any size; requests and buffers are a thread's."""

    def __init__(self, compiled: Mapping[int, openvino.CompiledModel], item: tuple[int, int, int]) -> None:
        self._compiled = dict(sorted(compiled.items(), reverse=True))
        self._item = item
        any_batch = next(iter(self._compiled.values()))
        self._outputs = [
            tuple(length.get_length() for length in tuple(output.partial_shape)[1:]) for output in any_batch.outputs
        ]
        self._own = threading.local()

    def __call__(self, inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
        outputs = tuple(np.empty((len(inputs), *shape), np.float32) for shape in self._outputs)
        requests = self._requests()
        start, smallest = 0, min(requests)
        for batch, (request, buffer) in requests.items():
            while len(inputs) - start >= (batch if batch > smallest else 1):
                n = min(batch, len(inputs) - start)  # what fills up the last batch is left from an earlier one
                buffer.data[:n] = inputs[start : start + n]
                request.set_input_tensor(0, buffer)
                request.infer()
                for index, output in enumerate(outputs):
                    output[start : start + n] = request.get_output_tensor(index).data[:n]
                start += n
        return outputs

    def _requests(self) -> dict[int, tuple[Any, openvino.Tensor]]:
        """This thread's request and input buffer for each batch size; a request computes one batch at a time."""
        requests: dict[int, tuple[Any, openvino.Tensor]] | None = getattr(self._own, "requests", None)
        if requests is None:
            by_network = {id(compiled): compiled.create_infer_request() for compiled in self._compiled.values()}
            requests = self._own.requests = {
                batch: (by_network[id(compiled)], openvino.Tensor(openvino.Type.f32, [batch, *self._item]))
                for batch, compiled in self._compiled.items()
            }
        return requests
