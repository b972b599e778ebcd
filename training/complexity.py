"""What a network costs: parameters, multiply-adds, bytes as published, milliseconds on one thread."""

from __future__ import annotations

import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from model_store.export import export_onnx
from model_store.manifest import InputSpec

ROUNDS = 60
_WARM_UP = 5


@dataclass(frozen=True)
class Complexity:
    """Learned numbers, and the multiply-adds of one face."""

    parameters: int
    macs: int


def complexity_of(network: nn.Module, spec: InputSpec) -> Complexity:
    """Count a network's parameters (buffers are none) and the multiply-adds of one input of that spec.

    network: in evaluation mode.
    """
    parameters = sum(parameter.numel() for parameter in network.parameters())
    return Complexity(parameters, count_macs(network, (spec.channels, spec.size_px, spec.size_px)))


def count_macs(network: nn.Module, shape: tuple[int, int, int]) -> int:
    """Multiply-adds of convolutions and matrix products, attention included, for one input of shape (C, H, W).

    The usual convention of papers: biases, norms, activations and pooling are not counted, and pixels of the padding
    count as pixels. network: in evaluation mode.
    """
    example = torch.zeros((1, *shape), device=next(network.parameters()).device)
    # The mathematical form of attention is matrix products, which every version of the counter knows.
    with torch.no_grad(), sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:
        network(example)
    return int(counter.get_total_flops()) // 2


def export_for_timing(network: nn.Module, spec: InputSpec, path: Path) -> Path:
    """Write a network in evaluation mode to the ONNX file `path`, as registration would. Returns the path."""
    export_onnx(network, np.zeros((2, spec.channels, spec.size_px, spec.size_px), np.float32), path, free_size=False)
    return path


def latencies_ms(files: Sequence[tuple[Path, InputSpec]], rounds: int = ROUNDS) -> list[float]:
    """Median milliseconds of one face on one thread, for each ONNX file in onnxruntime.

    The files take turns, so that what else the machine does meets all of them alike, and the clock is the thread's own
    processor time, which stands while another program has the core. Rounded to a microsecond.
    """
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    options.log_severity_level = 3
    rng = np.random.default_rng(0)
    runs = []
    for path, spec in files:
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        face: NDArray[np.float32] = rng.standard_normal((1, spec.channels, spec.size_px, spec.size_px), np.float32)
        runs.append((session, {session.get_inputs()[0].name: face}))
    taken: list[list[float]] = [[] for _ in runs]
    for index in range(-_WARM_UP, rounds):
        for times, (session, feed) in zip(taken, runs, strict=True):
            started = time.thread_time()
            session.run(None, feed)
            if index >= 0:
                times.append(time.thread_time() - started)
    return [round(statistics.median(times) * 1e3, 3) for times in taken]
