"""Face crop → network input: the one preprocessing that training, bulk scoring and serving share.

Built from the manifest's `InputSpec` and nothing else. A byte-exact test holds training and serving together.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.manifest import InputSpec

_RESAMPLING = {
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
    "lanczos": Image.Resampling.LANCZOS,
}


def resize_crop(crop_u8: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.uint8]:
    """Bring one crop to the network's size and channels.

    crop_u8: uint8 (H, W) grey or (H, W, 3) RGB, H and W at least 1.
    Returns uint8 (size_px, size_px, channels). A crop that already has that shape comes back unchanged, so the
    function can be applied twice without harm. Pillow's resampling widens its kernel when it shrinks (no aliasing).
    Raises ValueError for another dtype or shape.
    """
    if crop_u8.dtype != np.uint8:
        raise ValueError(f"crop dtype {crop_u8.dtype}, expected uint8")
    if crop_u8.ndim == 3 and crop_u8.shape[2] == 1:
        crop_u8 = crop_u8[:, :, 0]
    if crop_u8.ndim not in (2, 3) or 0 in crop_u8.shape or (crop_u8.ndim == 3 and crop_u8.shape[2] != 3):
        raise ValueError(f"crop shape {crop_u8.shape}, expected (H, W), (H, W, 1) or (H, W, 3)")
    image = Image.fromarray(crop_u8)
    image = image.convert("L" if spec.channels == 1 else "RGB")
    if image.size != (spec.size_px, spec.size_px):
        image = image.resize((spec.size_px, spec.size_px), _RESAMPLING[spec.interpolation])
    return np.asarray(image).reshape(spec.size_px, spec.size_px, spec.channels)


def normalise(batch_u8: NDArray[np.uint8], spec: InputSpec) -> NDArray[np.float32]:
    """uint8 (N, S, S, C) → contiguous float32 (N, C, S, S), (x / 255 - mean) / std by channel.

    Raises ValueError when the shape is not the spec's.
    """
    expected = (spec.size_px, spec.size_px, spec.channels)
    if batch_u8.dtype != np.uint8 or batch_u8.ndim != 4 or batch_u8.shape[1:] != expected:
        raise ValueError(f"batch {batch_u8.dtype} {batch_u8.shape}, expected uint8 (N, {expected})")
    scale = np.float32(1) / (np.float32(255) * np.asarray(spec.std, np.float32))
    offset = np.asarray(spec.mean, np.float32) / np.asarray(spec.std, np.float32)
    scaled = batch_u8.astype(np.float32) * scale - offset
    return np.ascontiguousarray(scaled.transpose(0, 3, 1, 2))


def preprocess(crops_u8: Sequence[NDArray[np.uint8]], spec: InputSpec) -> NDArray[np.float32]:
    """Crops of any sizes (see `resize_crop`) → float32 (N, channels, size_px, size_px), in order."""
    shape = (spec.size_px, spec.size_px, spec.channels)
    batch = np.empty((len(crops_u8), *shape), np.uint8)
    for index, crop in enumerate(crops_u8):
        batch[index] = crop if crop.shape == shape and crop.dtype == np.uint8 else resize_crop(crop, spec)
    return normalise(batch, spec)
