"""Which ONNX file of a registered model an engine runs."""

from __future__ import annotations

from pathlib import Path

from handlers.engines import Precision
from handlers.errors import ModelUnavailableError
from model_store.errors import ModelStoreError
from model_store.servable import ServableModel


def onnx_file(model: ServableModel, network: str, precision: Precision) -> Path:
    """The file of a network at a precision. Raises ModelUnavailableError when the model has no such network."""
    if network not in model.serving.parity:
        raise ModelUnavailableError(f"{model.manifest.tag} has no network {network!r}")
    try:
        return model.onnx(network, "int8" if precision == "int8" else "fp32")
    except ModelStoreError as error:
        raise ModelUnavailableError(str(error)) from error
