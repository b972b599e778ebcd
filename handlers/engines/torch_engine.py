"""The reference engine: the torch weights themselves, on a GPU when there is one."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from handlers.engines import Network
from handlers.errors import ModelUnavailableError
from model_store.errors import ModelStoreError
from model_store.servable import ServableModel

if TYPE_CHECKING:
    from torch import nn


class TorchEngine:
    """Runs the bundle's safetensors through the networks of `model_store.networks`."""

    name = "torch"

    def __init__(self, threads: int) -> None:
        import torch

        torch.set_num_threads(threads)
        self.device = "cuda" if torch.cuda.is_available() else "cpu"

    def load(self, model: ServableModel) -> dict[str, Network]:
        """The networks in evaluation mode. Raises ModelUnavailableError when weights and architecture disagree."""
        from model_store.networks import load_networks

        try:
            networks = load_networks(model.bundle)
        except ModelStoreError as error:
            raise ModelUnavailableError(str(error)) from error
        return {name: self.wrap(network) for name, network in networks.items()}

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
