"""Bundle → what serving runs: ONNX for every network, refused unless it computes what the torch weights compute.

The only module of `model_store`, beside `networks` and `mtcnn`, that needs torch.
"""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from model_store.bundle import Bundle, record_file
from model_store.errors import ParityError
from model_store.manifest import INT8_NAME, EmotionManifest
from model_store.networks import served_networks
from model_store.servable import (
    BUNDLE_FOLDER,
    SERVING_FOLDER,
    SERVING_NAME,
    SERVING_VERSION,
    Int8Agreement,
    NetworkParity,
    ServableModel,
    ServingRecord,
    open_servable,
)

if TYPE_CHECKING:
    from torch import nn

MAX_ABS_DIFFERENCE = 1e-3
"""The parity gate. Differences seen are near 1e-5 on logits; a wrong export is off by whole units."""

MAX_INT8_PROBABILITY_DIFFERENCE = 0.25
"""The int8 gate, against nonsense only: rounding moves a probability by up to about 0.1 on single faces. Whether the
network is accurate enough is the manifest's gate."""

_N_RANDOM = 8
_MTCNN_INPUT_PX = {"rnet": 24, "onet": 48}
_PNET_SIZES_PX = ((12, 12), (13, 40), (57, 33), (96, 128))


def build_servable(bundle: Bundle, folder: Path) -> ServableModel:
    """Fill the empty `folder` with the bundle, its ONNX files and their record, and open the result.

    Raises ParityError when an export is off by more than `MAX_ABS_DIFFERENCE` on random or real inputs, and what
    `check_int8` raises.
    """
    import torch

    shutil.copytree(bundle.folder, folder / BUNDLE_FOLDER)
    serving = folder / SERVING_FOLDER
    serving.mkdir()
    parity = {}
    for name, served in served_networks(bundle).items():
        random_inputs, real_inputs = _parity_inputs(bundle, name)
        if served.stem is not None:
            random_inputs = [_run(served.stem, images) for images in random_inputs]
            real_inputs = [_run(served.stem, images) for images in real_inputs]
        path = serving / f"{name}.onnx"
        export_onnx(served.network, random_inputs[-1], path, free_size=served.stem is not None)
        parity[name] = check_parity(served.network, path, random_inputs, real_inputs)
    record = ServingRecord(
        schema_version=SERVING_VERSION,
        bundle_sha256=bundle.sha256,
        exporter=f"torch {torch.__version__}",
        parity=parity,
        int8=check_int8(bundle, serving / "classifier.onnx"),
        files={path.name: record_file(path) for path in sorted(serving.iterdir())},
    )
    (serving / SERVING_NAME).write_text(record.model_dump_json(indent=2) + "\n")
    return open_servable(folder)


def export_onnx(network: nn.Module, example: NDArray[np.float32], path: Path, *, free_size: bool) -> None:
    """Export one network to a single ONNX file with a free batch size, and free height and width if `free_size`.

    example: float32 (N, C, H, W) with no length 1 in it nor made of it (torch would take a 1 for a constant).
    """
    import torch

    free = {0: torch.export.Dim.DYNAMIC}
    if free_size:
        free |= {2: torch.export.Dim.DYNAMIC, 3: torch.export.Dim.DYNAMIC}
    torch.onnx.export(
        network,
        (torch.from_numpy(example),),
        path,
        dynamo=True,
        dynamic_shapes=(free,),
        input_names=["input"],
        external_data=False,
        verbose=False,
    )


def check_parity(
    network: nn.Module,
    path: Path,
    random_inputs: list[NDArray[np.float32]],
    real_inputs: list[NDArray[np.float32]],
) -> NetworkParity:
    """Run the torch network and the ONNX file on the same batches. Raises ParityError when they differ too much."""
    import onnxruntime
    import torch

    session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    input_name = session.get_inputs()[0].name
    worst = 0.0
    for batch in (*random_inputs, *real_inputs):
        with torch.no_grad():
            reference = network(torch.from_numpy(batch))
        outputs = session.run(None, {input_name: batch})
        references = reference if isinstance(reference, tuple) else (reference,)
        for output, expected in zip(outputs, references, strict=True):
            difference = float(np.abs(output - expected.numpy()).max())
            worst = max(worst, difference if np.isfinite(difference) else float("inf"))
    if worst > MAX_ABS_DIFFERENCE:
        raise ParityError(f"{path.name}: differs from the torch weights by {worst:.2g}, allowed {MAX_ABS_DIFFERENCE}")
    return NetworkParity(
        n_random=sum(len(batch) for batch in random_inputs),
        n_real=sum(len(batch) for batch in real_inputs),
        max_abs_difference=worst,
    )


def check_int8(bundle: Bundle, fp32: Path) -> Int8Agreement | None:
    """Run the bundle's int8 network and its fp32 export on real inputs; None when the bundle has no int8 network.

    Raises ParityError when the int8 file is no network that onnxruntime runs, when its outputs are not logits of the
    labels, or when a probability differs by more than `MAX_INT8_PROBABILITY_DIFFERENCE`.
    """
    import onnxruntime
    import torch

    manifest = bundle.manifest
    if not isinstance(manifest, EmotionManifest) or manifest.int8 is None:
        return None
    _, (inputs,) = _parity_inputs(bundle, "classifier")
    probabilities = []
    for path in (fp32, bundle.folder / INT8_NAME):
        parts = []
        for batch in (inputs[:1], inputs[1:]):  # two sizes: the batch size must be free
            try:
                session = onnxruntime.InferenceSession(str(path), providers=["CPUExecutionProvider"])
                (logits,) = session.run(None, {"input": batch})
            except Exception as error:  # onnxruntime's own exception types share no base but Exception
                raise ParityError(f"{path.name}: onnxruntime cannot run it ({error})") from error
            expected = (len(batch), len(manifest.labels))
            if logits.dtype != np.float32 or logits.shape != expected:
                raise ParityError(f"{path.name}: outputs {logits.dtype} {logits.shape}, expected float32 {expected}")
            parts.append(torch.from_numpy(logits))
        probabilities.append(torch.softmax(torch.cat(parts) / manifest.temperature, 1))
    worst = float((probabilities[0] - probabilities[1]).abs().max())
    if not worst <= MAX_INT8_PROBABILITY_DIFFERENCE:  # so that NaN is refused
        raise ParityError(
            f"{INT8_NAME}: a probability differs from the fp32 network's by {worst:.2g}, "
            f"allowed {MAX_INT8_PROBABILITY_DIFFERENCE}"
        )
    return Int8Agreement(n_real=len(inputs), max_probability_difference=worst)


def _run(stem: nn.Module, images: NDArray[np.float32]) -> NDArray[np.float32]:
    """Pictures (N, C, H, W) → what the network behind the stem takes."""
    import torch

    with torch.no_grad():
        features: NDArray[np.float32] = stem(torch.from_numpy(images)).numpy()
    return features


def _parity_inputs(bundle: Bundle, network: str) -> tuple[list[NDArray[np.float32]], list[NDArray[np.float32]]]:
    """Batches (N, C, H, W) for the parity gate: noise, and patches of a real photograph around a face."""
    rng = np.random.default_rng(0)
    manifest = bundle.manifest
    if isinstance(manifest, EmotionManifest):
        spec = manifest.input
        sizes = [(spec.size_px, spec.size_px)]
        channels = spec.channels
        mean, std = (np.array(values, np.float32) for values in (spec.mean, spec.std))
    else:
        side = _MTCNN_INPUT_PX.get(network)
        sizes = list(_PNET_SIZES_PX) if side is None else [(side, side)]
        channels, mean, std = 3, np.full(3, 0.5, np.float32), np.full(3, 0.5, np.float32)
    random_inputs, real_inputs = [], []
    for size in sizes:
        random_inputs.append(rng.standard_normal((_N_RANDOM, channels, *size), np.float32))
        patches = np.stack([_resized(patch, size, channels) for patch in _real_patches()])
        real_inputs.append(((patches / 255 - mean) / std).astype(np.float32).transpose(0, 3, 1, 2).copy())
    return random_inputs, real_inputs


def _real_patches() -> list[Image.Image]:
    """Squares of the astronaut photograph of scikit-image: the face, parts of it, and things that are no face."""
    import skimage

    with Image.open(Path(skimage.__file__).parent / "data" / "astronaut.png") as file:
        photo = file.convert("RGB")
    corners = [(170, 60, 280), (180, 80, 270), (200, 100, 250), (0, 0, 120), (300, 200, 500), (50, 250, 350)]
    return [photo.crop((left, top, right, top + right - left)) for left, top, right in corners]


def _resized(patch: Image.Image, size: tuple[int, int], channels: int) -> NDArray[np.float32]:
    height, width = size
    image = patch.convert("L" if channels == 1 else "RGB").resize((width, height), Image.Resampling.BILINEAR)
    return np.asarray(image, np.float32).reshape(height, width, channels)
