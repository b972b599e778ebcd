from __future__ import annotations

import io
import math
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from training.augment import augment, mix
from training.config import AugmentConfig

LEVERS: dict[str, dict[str, Any]] = {
    "flip": {"flip": 1.0},
    "rotate": {"rotate_deg": 20},
    "zoom": {"scale": (0.7, 0.9)},
    "shift": {"shift": 0.2},
    "brightness": {"brightness": 0.3},
    "contrast": {"contrast": 0.5},
    "low resolution": {"low_resolution": 1.0, "low_resolution_px": 8},
    "blur": {"blur": 1.0},
    "jpeg": {"jpeg": 1.0},
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
    assert len(different) == (1 if lever in ("flip", "low resolution", "blur") else 6)


@pytest.mark.parametrize("lever", ["flip", "erase", "low_resolution", "blur", "jpeg"])
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
    mixed, targets = mix(inputs, torch.eye(6), only(mixup=1.0, mixup_alpha=5.0), draws())
    assert torch.equal(mixed.reshape(6, 6), targets)
    assert torch.allclose(targets.sum(1), torch.ones(6))
    shares = {round(value, 6) for value in targets[targets > 0].tolist()} - {1.0}
    assert len(shares) == 2
    assert sum(shares) == pytest.approx(1)


def test_mixup_follows_its_probability_and_its_generator() -> None:
    inputs, targets = torch.rand(8, 1, 4, 4), torch.eye(8)
    assert mix(inputs, targets, only(mixup=0.0), draws())[0] is inputs
    generator = draws()
    unchanged = sum(mix(inputs, targets, only(mixup=0.25), generator)[0] is inputs for _ in range(200))
    assert 120 < unchanged < 180
    first, second = (mix(inputs, targets, only(mixup=1.0), draws(5)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])


@pytest.mark.parametrize("n", [1, 7])
def test_levers_that_are_off_draw_nothing_of_their_own(n: int) -> None:
    """What the running experiments draw, in number and order: a lever that is added later must not move it."""
    used, expected = draws(3), draws(3)
    augment(crops(n, 16), only(flip=0.5, shift=0.1), used)
    for _ in range(8):  # angle, zoom, two shifts, mirror, gain, lift, which crops lose resolution
        torch.rand(n, generator=expected)
    torch.randint(16, 17, (1,), generator=expected)
    for _ in range(6):  # erasing: which crops, area, ratio, top, left, grey
        torch.rand(n, generator=expected)
    assert torch.equal(used.get_state(), expected.get_state())
    mix(torch.rand(n, 1, 4, 4), torch.eye(n), only(), used)
    torch.rand(1, generator=expected)
    assert torch.equal(used.get_state(), expected.get_state())


def test_rotation_turns_about_the_middle_by_at_most_its_angle() -> None:
    bar = torch.zeros(64, 48, 48, 1, dtype=torch.uint8)
    bar[:, 4:44, 22:26] = 255
    turned = augment(bar, only(rotate_deg=20), draws())[..., 0].float()
    rows = torch.arange(48.0)
    weight = turned.sum(2)
    centre = (turned * torch.arange(48.0)).sum(2) / weight.clamp_min(1)
    angles = []
    for image in range(64):
        inside = weight[image] > 400
        x, y = centre[image][inside], rows[inside]
        slope = ((x - x.mean()) * (y - y.mean())).sum() / (y - y.mean()).square().sum()
        angles.append(math.degrees(math.atan(float(slope))))
        assert float(centre[image, 23:25].mean()) == pytest.approx(23.5, abs=0.6)
    assert -20.5 < min(angles) < -12 < 12 < max(angles) < 20.5


@pytest.mark.parametrize("channels", [1, 3])
def test_contrast_stretches_about_the_mean(channels: int) -> None:
    batch = torch.full((32, 8, 8, channels), 90, dtype=torch.uint8)
    batch[:, :, 4:] = 110
    stretched = augment(batch, only(contrast=0.5), draws()).float()
    assert stretched.mean((1, 2, 3)).tolist() == pytest.approx([100] * 32, abs=0.6)
    half = (stretched[:, 0, 4, 0] - stretched[:, 0, 0, 0]) / 2
    assert 4.5 <= half.min() < 7 < 13 < half.max() <= 15.5


def test_low_resolution_keeps_only_coarse_detail() -> None:
    fine = torch.zeros(4, 48, 48, 1, dtype=torch.uint8)
    fine[:, ::2] = 200  # a line of every other row is gone under half of the resolution
    contrasts = []
    for seed in range(20):  # each its own size from 8 to 48 px
        coarse = augment(fine, only(low_resolution=1.0, low_resolution_px=8), draws(seed)).float()
        assert float(coarse.mean()) == pytest.approx(100, abs=6)
        contrasts.append(float(coarse.std() / fine.float().std()))
    assert min(contrasts) < 0.1
    assert sum(contrast < 0.5 for contrast in contrasts) >= 10


@pytest.mark.parametrize("channels", [1, 3])
def test_blur_is_a_gaussian_of_its_sigma(channels: int) -> None:
    point = torch.zeros(1, 31, 31, channels, dtype=torch.uint8)
    point[:, 15, 15] = 255
    spread = augment(point, only(blur=1.0, blur_sigma_px=(1.0, 1.0)), draws())[0, :, :, 0].float()
    assert float(spread[15, 15]) == pytest.approx(255 / (2 * math.pi), abs=1.5)
    assert float(spread[15, 16]) == pytest.approx(255 / (2 * math.pi) * math.exp(-0.5), abs=1.5)
    assert float(spread[14, 16]) == pytest.approx(255 / (2 * math.pi) * math.exp(-1), abs=1.5)
    edge = torch.full((1, 20, 20, channels), 77, dtype=torch.uint8)
    assert torch.equal(augment(edge, only(blur=1.0), draws()), edge)


@pytest.mark.parametrize("channels", [1, 3])
def test_jpeg_is_pillows_of_a_drawn_quality(channels: int) -> None:
    batch = torch.from_numpy(np.stack([smooth(channels, seed) for seed in range(6)]))
    written = augment(batch, only(jpeg=1.0, jpeg_quality=(30, 30)), draws()).numpy()
    for before, after in zip(batch.numpy(), written, strict=True):
        file = io.BytesIO()
        Image.fromarray(before.squeeze()).save(file, "JPEG", quality=30)
        assert np.array_equal(np.array(Image.open(file)).reshape(before.shape), after)
        assert 0 < np.abs(after.astype(int) - before).mean() < 30


def smooth(channels: int, seed: int) -> NDArray[np.uint8]:
    coarse = np.random.default_rng(seed).integers(0, 256, (6, 6, channels), dtype=np.uint8)
    return np.asarray(Image.fromarray(coarse.squeeze()).resize((24, 24))).reshape(24, 24, channels)


def test_cutmix_copies_one_rectangle_and_mixes_the_targets_by_its_pixels() -> None:
    inputs = torch.arange(5.0)[:, None, None, None].expand(5, 2, 12, 12).contiguous()
    kept = inputs.clone()
    seen = set()
    for seed in range(30):
        mixed, targets = mix(inputs, torch.eye(5), only(cutmix=1.0), draws(seed))
        assert torch.equal(inputs, kept)
        assert torch.allclose(targets.sum(1), torch.ones(5))
        own = mixed == torch.arange(5.0)[:, None, None, None]
        assert torch.equal(own[:, 0], own[:, 1])
        for row in range(5):
            shares = torch.bincount(mixed[row, 0].flatten().long(), minlength=5) / 144
            assert torch.allclose(targets[row], shares)
        moved = (~own[:, 0]).any(0)
        seen.add(round(float(moved.float().mean()), 4))
        if moved.any():
            rows, columns = torch.nonzero(moved, as_tuple=True)
            assert moved.sum() == (rows.max() - rows.min() + 1) * (columns.max() - columns.min() + 1)
    assert len(seen) > 10


def test_a_batch_gets_mixup_or_cutmix_or_neither() -> None:
    inputs, targets = torch.eye(64).reshape(64, 1, 8, 8), torch.eye(64)
    kinds = {"neither": 0, "cutmix": 0, "mixup": 0}
    generator = draws()
    for _ in range(300):
        mixed, _ = mix(inputs, targets, only(mixup=0.3, cutmix=0.3, mixup_alpha=5.0), generator)
        blended = ((mixed > 0) & (mixed < 1)).any()
        kinds["neither" if mixed is inputs else "mixup" if blended else "cutmix"] += 1
    assert all(65 < count < 145 for count in kinds.values()), kinds  # 120, 90 and 90 on average
