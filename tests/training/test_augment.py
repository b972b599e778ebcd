from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from training.augment import augment, mixup
from training.config import AugmentConfig

LEVERS: dict[str, dict[str, Any]] = {
    "flip": {"flip": 1.0},
    "rotate": {"rotate_deg": 20},
    "zoom": {"scale": (0.7, 0.9)},
    "shift": {"shift": 0.2},
    "brightness": {"brightness": 0.3},
    "contrast": {"contrast": 0.5},
    "low resolution": {"low_resolution": 1.0, "low_resolution_px": 8},
    "erase": {"erase": 1.0},
}
EVERYTHING = {key: value for lever in LEVERS.values() for key, value in lever.items()} | {"flip": 0.5}


def only(**levers: Any) -> AugmentConfig:
    return AugmentConfig(**{"flip": 0.0, **levers})


def crops(n: int = 8, side: int = 48, channels: int = 1, seed: int = 0) -> torch.Tensor:
    pixels = np.random.default_rng(seed).integers(0, 256, (n, side, side, channels), dtype=np.uint8)
    return torch.from_numpy(pixels)


def draws(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("shape", [(8, 48, 1), (3, 32, 3), (1, 15, 1)])
def test_same_generator_state_gives_the_same_crops_of_the_same_shape(shape: tuple[int, int, int]) -> None:
    batch, config = crops(*shape), AugmentConfig(**EVERYTHING)
    before = batch.clone()
    first, second, other = (augment(batch, config, draws(seed)) for seed in (0, 0, 1))
    assert first.dtype == torch.uint8
    assert first.shape == batch.shape
    assert torch.equal(first, second)
    assert not torch.equal(first, other)
    assert torch.equal(batch, before)


@pytest.mark.parametrize("side", [16, 47, 48, 112])
@pytest.mark.parametrize("channels", [1, 3])
def test_everything_off_changes_no_pixel(side: int, channels: int) -> None:
    batch = crops(4, side, channels)
    assert torch.equal(augment(batch, only(), draws()), batch)


@pytest.mark.parametrize("lever", LEVERS)
def test_each_lever_alone_changes_every_crop_and_by_its_own_draw(lever: str) -> None:
    batch = crops(1).expand(6, -1, -1, -1)
    changed = augment(batch, only(**LEVERS[lever]), draws())
    assert all((changed[row] != batch[row]).any() for row in range(6))
    different = {changed[row].numpy().tobytes() for row in range(6)}
    assert len(different) == (1 if lever in ("flip", "low resolution") else 6)


@pytest.mark.parametrize("lever", ["flip", "erase", "low_resolution"])
def test_probability_is_the_share_of_the_crops_that_change(lever: str) -> None:
    batch = crops(400, 16)
    options = {"low_resolution_px": 8} if lever == "low_resolution" else {}
    changed = augment(batch, only(**{lever: 0.3}, **options), draws())
    share = (changed != batch).flatten(1).any(1).float().mean().item()
    assert 0.22 < share < 0.38


def test_certain_flip_is_the_mirror_image() -> None:
    batch = crops(4, 48, 3)
    flipped = augment(batch, only(flip=1.0), draws())
    assert (flipped.int() - batch.flip(2).int()).abs().max() <= 1


def test_shift_moves_the_picture_and_repeats_its_edge() -> None:
    ramp = torch.arange(48, dtype=torch.uint8)[None, None, :, None].expand(32, 48, -1, 1)
    moved = augment(ramp, only(shift=0.25), draws()).int()
    middle = moved[:, 24, 24, 0] - 24
    assert (middle.min(), middle.max()) >= (-12, 0)
    assert middle.max() <= 12
    assert middle.min() < -6 < 6 < middle.max()
    assert (moved[..., 0].diff(dim=2) >= 0).all()


def test_zoom_enlarges_what_is_in_the_middle() -> None:
    square = torch.zeros(1, 48, 48, 1, dtype=torch.uint8)
    square[:, 18:30, 18:30] = 255
    wider = augment(square, only(scale=(2.0, 2.0)), draws())
    assert 23**2 <= (wider > 127).sum() <= 25**2


def test_light_stays_within_its_range() -> None:
    grey = torch.full((64, 8, 8, 1), 100, dtype=torch.uint8)
    lifted = augment(grey, only(brightness=0.2), draws())[:, 0, 0, 0].int() - 100
    assert lifted.abs().max() <= 51
    assert lifted.min() < -25
    assert lifted.max() > 25
    assert torch.equal(augment(grey, only(contrast=0.9), draws()), grey)


@pytest.mark.parametrize("area", [(0.05, 0.05), (0.2, 0.3)])
def test_erase_covers_one_grey_box_within_the_area(area: tuple[float, float]) -> None:
    side = 48
    batch = crops(64, side)
    batch[batch == 7] = 8
    erased = augment(batch, only(erase=1.0, erase_area=area), draws())
    for before, after in zip(batch, erased, strict=True):
        rows, columns = torch.nonzero(before[..., 0] != after[..., 0], as_tuple=True)
        height, width = (int(line.max() - line.min()) + 1 for line in (rows, columns))
        # A side of a box that falls between two pixels may reach one more.
        assert (height - 1) * (width - 1) <= area[1] * side**2
        assert (height + 1) * (width + 1) >= area[0] * side**2
        box = after[rows.min() : rows.max() + 1, columns.min() : columns.max() + 1]
        assert box.unique().numel() == 1


def test_mixup_blends_inputs_and_targets_with_one_share() -> None:
    inputs = torch.eye(6).reshape(6, 1, 1, 6)
    mixed, targets = mixup(inputs, torch.eye(6), only(mixup=1.0, mixup_alpha=5.0), draws())
    assert torch.equal(mixed.reshape(6, 6), targets)
    assert torch.allclose(targets.sum(1), torch.ones(6))
    shares = {round(value, 6) for value in targets[targets > 0].tolist()} - {1.0}
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(1)


def test_mixup_follows_its_probability_and_its_generator() -> None:
    inputs, targets = torch.rand(8, 1, 4, 4), torch.eye(8)
    assert mixup(inputs, targets, only(mixup=0.0), draws())[0] is inputs
    generator = draws()
    unchanged = sum(mixup(inputs, targets, only(mixup=0.25), generator)[0] is inputs for _ in range(200))
    assert 120 < unchanged < 180
    first, second = (mixup(inputs, targets, only(mixup=1.0), draws(5)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
