from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from tests.training.faces import spec_of, tiny_experiment
from training.complexity import complexity_of, count_macs, export_for_timing, latencies_ms
from training.learner import build_network


class Attention(nn.Module):
    """One head over the pixels as tokens, all projections of width 6."""

    def __init__(self) -> None:
        super().__init__()
        self.project = nn.Linear(6, 18)

    def forward(self, pictures: torch.Tensor) -> torch.Tensor:
        query, key, value = self.project(pictures.flatten(2).transpose(1, 2)).unsqueeze(1).chunk(3, -1)
        return F.scaled_dot_product_attention(query, key, value)


@pytest.mark.parametrize(
    ("network", "shape", "macs"),
    [
        # Each output pixel of each output channel: kernel area × input channels of its group.
        pytest.param(nn.Conv2d(3, 8, 3, padding=1), (3, 10, 12), 10 * 12 * 8 * 9 * 3, id="dense"),
        pytest.param(nn.Conv2d(3, 8, 3, padding=1, bias=False), (3, 10, 12), 10 * 12 * 8 * 9 * 3, id="bias is free"),
        pytest.param(nn.Conv2d(3, 8, 3), (3, 10, 12), 8 * 10 * 8 * 9 * 3, id="no padding"),
        pytest.param(nn.Conv2d(4, 6, (1, 5), stride=2), (4, 9, 9), 5 * 3 * 6 * 5 * 4, id="stride"),
        pytest.param(nn.Conv2d(8, 8, 3, padding=1, groups=8), (8, 10, 10), 10 * 10 * 8 * 9, id="depthwise"),
        pytest.param(nn.Conv2d(8, 12, 3, padding=1, groups=4), (8, 5, 5), 5 * 5 * 12 * 9 * 2, id="grouped"),
        pytest.param(nn.Sequential(nn.Flatten(), nn.Linear(12, 7)), (3, 2, 2), 12 * 7, id="linear"),
        # 10 tokens: three projections of 6 to 6, then every token's 6 numbers with every token, twice.
        pytest.param(Attention(), (6, 2, 5), 10 * 18 * 6 + 2 * 10 * 10 * 6, id="attention"),
        pytest.param(
            nn.Sequential(nn.Conv2d(1, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.AvgPool2d(2), nn.Hardswish()),
            (1, 6, 6),
            6 * 6 * 4,
            id="only products count",
        ),
    ],
)
def test_multiply_adds_counted_by_hand(network: nn.Module, shape: tuple[int, int, int], macs: int) -> None:
    assert count_macs(network.eval(), shape) == macs


def test_parameters_are_what_learns() -> None:
    network = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 14 * 14, 2)).eval()
    found = complexity_of(network, spec_of())
    assert found.parameters == (9 * 4 + 4) + (4 + 4) + (4 * 14 * 14 * 2 + 2)  # running means are no parameters
    assert found.macs == 14 * 14 * 4 * 9 + 4 * 14 * 14 * 2


def test_a_network_is_left_as_it_was() -> None:
    experiment = tiny_experiment()
    network = build_network(experiment).eval()
    before = {name: tensor.clone() for name, tensor in network.state_dict().items()}
    complexity_of(network, experiment.input)
    assert all(torch.equal(tensor, before[name]) for name, tensor in network.state_dict().items())
    assert not network.training


def test_every_file_is_timed(tmp_path: Path) -> None:
    spec = spec_of()
    network = nn.Sequential(nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(2 * 14 * 14, 3)).eval()
    path = export_for_timing(network, spec, tmp_path / "network.onnx")
    times = latencies_ms([(path, spec), (path, spec)], rounds=3)
    assert len(times) == 2
    assert all(ms > 0 for ms in times)
    assert latencies_ms([]) == []
