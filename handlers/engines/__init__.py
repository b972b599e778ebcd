"""Inference engines: each turns a registered model's networks into functions on arrays."""

from __future__ import annotations

import logging
import platform
from collections.abc import Callable
from dataclasses import dataclass
from importlib import util
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from handlers.errors import EngineUnavailableError
from model_store.servable import ServableModel

logger = logging.getLogger(__name__)

Precision = Literal["fp32", "bf16", "int8"]


@dataclass(frozen=True)
class InputShape:
    """What a network will be asked, so that an engine can prepare for it once, when it loads.

    item: (C, H, W) of one input. batches: the batch sizes to prepare; others are put together from them, the last one
    filled up.
    """

    item: tuple[int, int, int]
    batches: tuple[int, ...] = (1, 4)


class Network(Protocol):
    """One network, safe to call from several threads."""

    def __call__(self, inputs: NDArray[np.float32], /) -> tuple[NDArray[np.float32], ...]:
        """float32 (N, C, H, W), N at least 1 → the network's outputs in order, each with N rows."""
        ...


class Engine(Protocol):
    """Loads networks. `name` is what settings and logs call it."""

    name: str
    has_bf16: bool
    """Whether bfloat16 is faster than float32 here, and so worth loading a network for."""

    def load(self, model: ServableModel, network: str, shape: InputShape, precision: Precision = "fp32") -> Network:
        """One network of a model.

        precision: `bf16` may compute in bfloat16 where the processor has it, and is fp32 elsewhere; `int8` runs the
        quantised network that the model carries. Raises ModelUnavailableError when it cannot be loaded.
        """
        ...


def _openvino(threads: int) -> Engine:
    from handlers.engines.openvino_engine import OpenVinoEngine

    return OpenVinoEngine(threads)


def _onnxruntime(threads: int) -> Engine:
    from handlers.engines.onnxruntime_engine import OnnxRuntimeEngine

    return OnnxRuntimeEngine(threads)


def _torch(threads: int) -> Engine:
    from handlers.engines.torch_engine import TorchEngine

    return TorchEngine(threads)


_ENGINES: dict[str, tuple[str, Callable[[int], Engine]]] = {
    "openvino": ("openvino", _openvino),
    "onnxruntime": ("onnxruntime", _onnxruntime),
    "torch": ("torch", _torch),
}
ENGINE_NAMES = ("auto", *_ENGINES)
_X86 = ("x86_64", "AMD64")


def choose_engine(name: str = "auto", *, threads: int = 1) -> Engine:
    """The engine called `name`; `auto` is the first of the table that is installed, and the log says which.

    `auto` takes openvino on x86 processors only, which it is made for. threads: compute threads of one call. One is
    right for a process among several that share the cores.
    Raises EngineUnavailableError for an unknown name, a package that is not installed, or less than one thread.
    """
    if threads < 1:
        raise EngineUnavailableError(f"threads must be at least 1, not {threads}")
    if name not in ENGINE_NAMES:
        raise EngineUnavailableError(f"engine {name!r} is none of {', '.join(ENGINE_NAMES)}")
    for candidate in _ENGINES if name == "auto" else (name,):
        package, build = _ENGINES[candidate]
        if name == "auto" and candidate == "openvino" and platform.machine() not in _X86:
            continue
        if util.find_spec(package) is not None:
            if name == "auto":
                logger.info("engine auto: chose %s", candidate)
            return build(threads)
    raise EngineUnavailableError(f"engine {name!r} is not installed here")
