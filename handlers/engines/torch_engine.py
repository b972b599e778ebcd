"""The reference engine: the torch weights themselves, on a GPU when there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from handlers.engines import InputShape, Network, Precision
from handlers.errors import ModelUnavailableError
from model_store.errors import ModelStoreError
from model_store.servable import ServableModel

if TYPE_CHECKING:
    from torch import nn


class TorchEngine:
    """Runs the bundle's safetensors through the networks of `model_store.networks`."""

    name = "torch"
    has_bf16 = False

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def load(self, model: ServableModel, network: str, shape: InputShape, precision: Precision = "fp32") -> Network:
        """The network in evaluation mode, always in float32.

        Raises ModelUnavailableError when weights and architecture disagree, and for int8, which torch does not run.
        """
        from model_store.networks import served_networks

        if precision == "int8":
            raise ModelUnavailableError("the torch engine runs no int8 networks: choose openvino or onnxruntime")
        try:
            networks = served_networks(model.bundle)
        except ModelStoreError as error:
            raise ModelUnavailableError(str(error)) from error
        if network not in networks:
            raise ModelUnavailableError(f"{model.manifest.tag} has no network {network!r}")
        return self.wrap(networks[network].network)

    def wrap(self, network: nn.Module) -> Network:
        """A torch module as a function on arrays; the module is moved to the engine's device."""
        import torch

        network = network.to(self.device).eval()

        def run(inputs: NDArray[np.float32]) -> tuple[NDArray[np.float32], ...]:
            with torch.inference_mode():
                outputs = network(torch.from_numpy(inputs).to(self.device))
            outputs = outputs if isinstance(outputs, tuple) else (outputs,)
            return tuple(output.float().cpu().numpy() for output in outputs)

        return run
