"""Random changes to training crops: pixels in, pixels out, before the shared preprocessing.

All on whole batches in torch, on whatever device the batch is on. The loop augments on the CPU, where an epoch of
FER2013 at 48 px costs about 15 s of one core.
"""

from __future__ import annotations

import io
import math

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from training.config import AugmentConfig


def augment(crops_u8: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Change each crop by its own draw: geometry, light, resolution, blur, JPEG, erasing, in that order.

    crops_u8: uint8 (N, S, S, C). generator: a CPU generator; the same state gives the same crops on every device.
    Returns a new uint8 tensor of the same shape.
    """
    images = crops_u8.permute(0, 3, 1, 2).float()
    images = _warp(images, config, generator)
    images = _relight(images, config, generator)
    images = _lower_resolution(images, config, generator)
    if config.blur:
        images = _blur(images, config, generator)
    if config.jpeg:
        images = _compress(images, config, generator)
    images = _erase(images, config, generator)
    return images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1)


def mix(
    inputs: torch.Tensor, targets: torch.Tensor, config: AugmentConfig, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Mix a batch with a permutation of itself by one draw: mixup, cutmix or nothing, with the configured chances.

    Mixup (Zhang et al., 2018) blends whole faces. Cutmix (Yun et al., 2019) copies one rectangle, the same in all
    faces; the targets are mixed by its share of the pixels. inputs: float (N, C, S, S). targets: float (N, K), each
    row a distribution. Same shapes back.
    """
    draw = _uniform(1, generator).item()
    if draw >= config.mixup + config.cutmix:
        return inputs, targets
    blends = draw < config.mixup
    share = _beta(config.mixup_alpha if blends else config.cutmix_alpha, generator)
    order = torch.randperm(len(inputs), generator=generator).to(inputs.device)
    if blends:
        mixed = share * inputs + (1 - share) * inputs[order]
    else:
        rows, columns = _rectangle(inputs.shape[-2:], 1 - share, generator)
        mixed = inputs.clone()
        mixed[:, :, rows, columns] = inputs[order][:, :, rows, columns]
        covered = (rows.stop - rows.start) * (columns.stop - columns.start)
        share = 1 - covered / (inputs.shape[-2] * inputs.shape[-1])
    return mixed, share * targets + (1 - share) * targets[order]


def _rectangle(size: torch.Size, area: float, generator: torch.Generator) -> tuple[slice, slice]:
    """A rectangle of about that share of the picture around a random centre, cut off at the border."""
    spans = []
    for side in size:
        half = side * math.sqrt(area) / 2
        centre = _uniform(1, generator).item() * side
        spans.append(slice(max(0, round(centre - half)), min(side, round(centre + half))))
    return spans[0], spans[1]


def _uniform(n: int, generator: torch.Generator, low: float = 0.0, high: float = 1.0) -> torch.Tensor:
    return low + (high - low) * torch.rand(n, generator=generator)


def _beta(alpha: float, generator: torch.Generator) -> float:
    """One draw of Beta(alpha, alpha) from a ratio of two gamma draws."""
    pair = torch._standard_gamma(torch.tensor([alpha, alpha]), generator=generator)
    return float(pair[0] / pair.sum().clamp_min(1e-12))


def _warp(images: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Flip, rotate, scale and shift in one bilinear resampling; what comes from outside repeats the edge."""
    n = len(images)
    angle = _uniform(n, generator, -1, 1) * math.radians(config.rotate_deg)
    zoom = _uniform(n, generator, *config.scale)
    shift_x, shift_y = (_uniform(n, generator, -2, 2) * config.shift for _ in range(2))
    mirror = torch.where(_uniform(n, generator) < config.flip, -1.0, 1.0)
    cos, sin = angle.cos() / zoom, angle.sin() / zoom
    theta = torch.stack(
        [torch.stack([cos * mirror, -sin, shift_x], 1), torch.stack([sin * mirror, cos, shift_y], 1)], 1
    )
    grid = F.affine_grid(theta.to(images.device), list(images.shape), align_corners=False)
    return F.grid_sample(images, grid, mode="bilinear", padding_mode="border", align_corners=False)


def _relight(images: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Stretch the contrast around the crop's mean, then move the brightness; both relative to 255."""
    n = len(images)
    gain = _uniform(n, generator, 1 - config.contrast, 1 + config.contrast).to(images.device)
    lift = _uniform(n, generator, -255, 255).to(images.device) * config.brightness
    mean = images.mean((1, 2, 3), keepdim=True)
    changed = (images - mean) * gain[:, None, None, None] + mean + lift[:, None, None, None]
    return changed.clamp(0, 255)


def _lower_resolution(images: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Shrink a share of the crops to a random size down to `low_resolution_px` and bring them back: a far face."""
    chosen = _uniform(len(images), generator) < config.low_resolution
    side = images.shape[-1]
    small = int(torch.randint(min(config.low_resolution_px, side), side + 1, (1,), generator=generator))
    if not chosen.any() or small == side:
        return images
    shrunk = F.interpolate(images, size=(small, small), mode="bilinear", antialias=True)
    restored = F.interpolate(shrunk, size=(side, side), mode="bilinear", align_corners=False)
    return torch.where(chosen[:, None, None, None].to(images.device), restored, images)


def _blur(images: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Gaussian blur of a share of the crops, all of a batch by one random sigma in pixels: out of focus."""
    chosen = _uniform(len(images), generator) < config.blur
    sigma = _uniform(1, generator, *config.blur_sigma_px).item()
    radius = math.ceil(3 * sigma)
    line = torch.exp(-0.5 * (torch.arange(-radius, radius + 1) / sigma) ** 2).to(images.device)
    line = line / line.sum()
    flat = images.reshape(-1, 1, *images.shape[2:])
    padded = F.pad(flat, (radius, radius, radius, radius), mode="replicate")
    blurred = F.conv2d(F.conv2d(padded, line[None, None, :, None]), line[None, None, None, :]).reshape(images.shape)
    return torch.where(chosen[:, None, None, None].to(images.device), blurred, images)


def _compress(images: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Write a share of the crops as JPEG, each at its own quality, and read them back: a picture off the web."""
    chosen = _uniform(len(images), generator) < config.jpeg
    low, high = config.jpeg_quality
    qualities = torch.randint(low, high + 1, (len(images),), generator=generator)
    crops_u8 = images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    compressed = images.clone()
    for row in chosen.nonzero()[:, 0].tolist():
        crop = crops_u8[row] if crops_u8.shape[3] == 3 else crops_u8[row, :, :, 0]
        file = io.BytesIO()
        Image.fromarray(crop).save(file, "JPEG", quality=int(qualities[row]))
        again = np.array(Image.open(file)).reshape(crops_u8.shape[1:])
        compressed[row] = torch.from_numpy(again).permute(2, 0, 1).to(images)
    return compressed


def _erase(images: torch.Tensor, config: AugmentConfig, generator: torch.Generator) -> torch.Tensor:
    """Cover a random rectangle with one random grey (Zhong et al., 2020), in a share of the crops."""
    n, _, height, width = images.shape
    chosen = _uniform(n, generator) < config.erase
    area = _uniform(n, generator, *config.erase_area) * height * width
    ratio = _uniform(n, generator, math.log(0.4), math.log(2.5)).exp()
    box_h = (area * ratio).sqrt().clamp(1, height)
    box_w = (area / ratio).sqrt().clamp(1, width)
    top = _uniform(n, generator) * (height - box_h)
    left = _uniform(n, generator) * (width - box_w)
    grey = _uniform(n, generator, 0, 255)
    rows, columns = torch.arange(height)[None, :, None], torch.arange(width)[None, None, :]
    top, left, box_h, box_w = (value[:, None, None] for value in (top, left, box_h, box_w))
    inside = (rows >= top) & (rows < top + box_h) & (columns >= left) & (columns < left + box_w)
    covered = (inside & chosen[:, None, None])[:, None].to(images.device)
    return torch.where(covered, grey[:, None, None, None].to(images.device), images)
