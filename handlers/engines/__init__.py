"""Inference engines: each turns a registered model's networks into functions on arrays."""

from __future__ import annotations

import logging
from collections.abc import Callable
from importlib import util
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from handlers.errors import EngineUnavailableError
from model_store.servable import ServableModel

logger = logging.getLogger(__name__)


class Network(Protocol):
    """One network, safe to call from several threads."""

    def __call__(self, inputs: NDArray[np.float32], /) -> tuple[NDArray[np.float32], ...]:
        """float32 (N, C, H, W) → the network's outputs in order, each with N rows."""
        ...


class Engine(Protocol):
    """Loads networks. `name` is what settings and logs call it."""

    name: str

    def load(self, model: ServableModel) -> dict[str, Network]:
        """The model's networks by name. Raises ModelUnavailableError when they cannot be loaded."""
        ...


def _onnxruntime(threads: int) -> Engine:
    from handlers.engines.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(threads)


def _torch(threads: int) -> Engine:
    from handlers.engines.torch_engine import TorchEngine

    return TorchEngine(threads)


_ENGINES: dict[str, tuple[str, Callable[[int], Engine]]] = {
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "torch": ("torch", _torch),
}
ENGINE_NAMES = ("auto", *_ENGINES)


def choose_engine(name: str = "auto", *, threads: int = 1) -> Engine:
    """The engine called `name`; `auto` is the first of the table that is installed, and the log says which.

    threads: compute threads of one call. One is right for a process among several that share the cores.
    Raises EngineUnavailableError for an unknown name, a package that is not installed, or less than one thread.
    """
    if threads < 1:
        raise EngineUnavailableError(f"threads must be at least 1, not {threads}")
    if name not in ENGINE_NAMES:
        raise EngineUnavailableError(f"engine {name!r} is none of {', '.join(ENGINE_NAMES)}")
    for candidate in _ENGINES if name == "auto" else (name,):
        package, build = _ENGINES[candidate]
        if util.find_spec(package) is not None:
            if name == "auto":
                logger.info("engine auto: chose %s", candidate)
            return build(threads)
    raise EngineUnavailableError(f"engine {name!r} is not installed here")
