from __future__ import annotations

from pathlib import Path

import pytest
import torch

from model_store import registry
from model_store.bundle import Bundle
from model_store.networks import ServedNetwork, load_networks, served_networks
from tests.pictures import noise

SIZES_PX = [(12, 12), (13, 12), (12, 13), (13, 13), (37, 50), (50, 37), (64, 101)]


@pytest.fixture(scope="module")
def bundle(store: Path) -> Bundle:
    return registry.load("mtcnn").bundle


@pytest.fixture(scope="module")
def served(bundle: Bundle) -> dict[str, ServedNetwork]:
    return served_networks(bundle)


def pictures(height: int, width: int) -> torch.Tensor:
    """Two centred pictures, float32 (2, 3, height, width)."""
    pixels = torch.stack([torch.from_numpy(noise(height, width, seed)) for seed in range(2)])
    return ((pixels.float() - 127.5) / 128).permute(0, 3, 1, 2).contiguous()


def test_the_cascade_is_served_in_four_networks_and_only_p_net_without_its_stem(
    served: dict[str, ServedNetwork],
) -> None:
    assert {name: each.stem is not None for name, each in served.items()} == {
        "pnet_tail": True,
        "pnet_screen": True,
        "rnet": False,
        "onet": False,
    }
    parts = [part for each in served.values() for part in (each.network, each.stem) if part is not None]
    assert not any(part.training for part in parts)


def test_a_classifier_is_served_whole(store: Path) -> None:
    served = served_networks(registry.load_default("emotion-classification").bundle)
    assert {name: each.stem for name, each in served.items()} == {"classifier": None}


@pytest.mark.parametrize("size", SIZES_PX, ids=lambda size: "×".join(map(str, size)))
@torch.no_grad()
def test_stem_and_tail_are_p_net(bundle: Bundle, served: dict[str, ServedNetwork], size: tuple[int, int]) -> None:
    offsets, probabilities = load_networks(bundle)["pnet"](pictures(*size))
    tail = served["pnet_tail"]
    assert tail.stem is not None
    features = tail.stem(pictures(*size))
    cells = tail.network(features)
    assert features.shape == (2, 10, (size[0] - 1) // 2, (size[1] - 1) // 2)
    assert cells.shape == (2, 6, features.shape[2] - 4, features.shape[3] - 4)
    torch.testing.assert_close(cells[:, :2].softmax(1), probabilities, atol=1e-6, rtol=0)
    torch.testing.assert_close(cells[:, 2:], offsets, atol=1e-5, rtol=0)


@torch.no_grad()
def test_screen_is_by_how_much_the_tails_face_logit_exceeds_the_other(served: dict[str, ServedNetwork]) -> None:
    features = torch.rand(3, 10, 20, 33, generator=torch.Generator().manual_seed(0)) * 2
    logits = served["pnet_tail"].network(features)
    screened = served["pnet_screen"].network(features)
    torch.testing.assert_close(screened, logits[:, 1:2] - logits[:, :1], atol=1e-5, rtol=0)
