"""The portable engine: ONNX Runtime on the CPU."""

from __future__ import annotations

import numpy as np
import onnxruntime
from numpy.typing import NDArray

from handlers.engines import InputShape, Network, Precision
from handlers.engines.onnx_file import onnx_file
from handlers.errors import ModelUnavailableError
from model_store.servable import ServableModel


class OnnxRuntimeEngine:
    """Runs the ONNX files of a registered model, at any batch size; computes in float32 where bf16 is allowed."""

    name = "onnxruntime"
    has_bf16 = False

    def __init__(self, threads: int) -> None:
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = threads
        self._options.inter_op_num_threads = 1
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._options.log_severity_level = 3

    def load(self, model: ServableModel, network: str, shape: InputShape, precision: Precision = "fp32") -> Network:
        """A session on the network's file; see `Engine.load`."""
        path = onnx_file(model, network, precision)
        try:
            session = onnxruntime.InferenceSession(str(path), self._options, providers=["CPUExecutionProvider"])
        except Exception as error:  # onnxruntime's own exception types share no base but Exception
            raise ModelUnavailableError(f"{model.manifest.tag}: {path.name} cannot be loaded ({error})") from error
        input_name = session.get_inputs()[0].name

        def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            return tuple(session.run(None, {input_name: np.ascontiguousarray(inputs)}))

        return run
