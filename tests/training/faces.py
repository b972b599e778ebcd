"""Generated faces that a tiny network can tell apart, the three file layouts, and a tiny experiment on them."""

from __future__ import annotations

import copy
import csv
import json
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn.modules.module import register_module_forward_pre_hook

from model_store.manifest import InputSpec
from model_store.networks.preact_resnet import PreActResNet
from tests.pictures import encoded
from training.config import Experiment, parse_recipe
from training.data import FER2013_LABELS, FaceSet
from training.ferplus import FERPLUS_CATEGORIES

SIDE_PX = 16
_GRID = 4


def spec_of(size_px: int = SIDE_PX, channels: int = 1, interpolation: str = "bilinear") -> InputSpec:
    return InputSpec.model_validate(
        {
            "size_px": size_px,
            "channels": channels,
            "mean": (0.5, 0.45, 0.4)[:channels],
            "std": (0.25, 0.26, 0.27)[:channels],
            "interpolation": interpolation,
        }
    )


def generated_faces(
    n: int, *, side_px: int = SIDE_PX, channels: int = 1, seed: int = 0, wrong_labels: float = 0.0
) -> FaceSet:
    """`n` faces, their classes in turn: a coarse pattern for each class under noise. A share gets a random label."""
    rng = np.random.default_rng(seed)
    shown = np.arange(n) % len(FER2013_LABELS)
    patterns = np.random.default_rng(99).integers(40, 216, (len(FER2013_LABELS), _GRID, _GRID))
    cell = np.ones((side_px // _GRID, side_px // _GRID), int)
    pixels = np.stack([np.kron(patterns[label], cell) for label in shown])[..., None]
    crops = np.clip(pixels + rng.normal(0, 25, (n, side_px, side_px, channels)), 0, 255).astype(np.uint8)
    labels = np.where(rng.random(n) < wrong_labels, rng.integers(0, len(FER2013_LABELS), n), shown)
    return FaceSet(crops, labels.astype(np.int64), tuple(f"face_{i:03}" for i in range(n)), FER2013_LABELS, ())


def write_folders(folder: Path, faces: FaceSet) -> Path:
    for crop, label, name in zip(faces.crops_u8, faces.labels, faces.names, strict=True):
        file = folder / faces.label_names[label] / f"{name}.png"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_bytes(encoded(crop.squeeze()))
    return folder


def write_parquet(path: Path, rows: list[tuple[str | None, bytes | None, int | None]]) -> Path:
    """Rows of name, picture bytes and label."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    image = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    images = [{"bytes": data, "path": name} for name, data, _ in rows]
    labels = [label for _, _, label in rows]
    pq.write_table(pa.table({"image": pa.array(images, image), "label": pa.array(labels, pa.int8())}), path)
    return path


def parquet_rows(faces: FaceSet) -> list[tuple[str | None, bytes | None, int | None]]:
    return [
        (name, encoded(crop.squeeze(), "WEBP", lossless=True), int(label))
        for crop, label, name in zip(faces.crops_u8, faces.labels, faces.names, strict=True)
    ]


def write_csv(path: Path, rows: list[list[Any]], header: tuple[str, ...] = ("emotion", "pixels", "Usage")) -> Path:
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([header, *rows])
    return path


def csv_rows(faces: FaceSet, usage: str = "Training") -> list[list[Any]]:
    return [
        [int(label), " ".join(map(str, crop.ravel())), usage]
        for crop, label in zip(faces.crops_u8, faces.labels, strict=True)
    ]


def tiny_values() -> dict[str, Any]:
    """A whole experiment on 16-px faces, as its TOML file holds it: no augmentation, two epochs."""
    # Under 16 channels oneDNN writes past a workspace (strided 1×1 convolution, channels last): oneDNN issue 6035.
    return {
        "name": "tiny-faces",
        "seed": 3,
        "labels": list(FER2013_LABELS),
        "network": {
            "family": "preact-resnet",
            "classifier": "head.weight",
            "options": {"widths": [16, 16], "blocks_per_stage": 1, "stem_stride": 1},
        },
        "input": {"size_px": SIDE_PX, "channels": 1, "mean": [0.5], "std": [0.25], "interpolation": "bilinear"},
        "face_crop": {"scale": 1.1, "shift_x": 0.0, "shift_y": 0.05, "alignment": "none"},
        "augment": {"flip": 0.0},
        "optim": {"epochs": 2, "batch_size": 16, "max_lr": 0.1},
    }


def changed(values: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """A deep copy with `section.key` entries set, or removed where the new value is None."""
    values = copy.deepcopy(values)
    for path, value in changes.items():
        *sections, key = path.split(".")
        target = values
        for section in sections:
            target = target.setdefault(section, {})
        if value is None:
            del target[key]
        else:
            target[key] = value
    return values


def tiny_experiment(**changes: Any) -> Experiment:
    """The tiny experiment; write `optim__epochs=4` for a key of a section."""
    dotted = {path.replace("__", "."): value for path, value in changes.items()}
    (experiment,) = parse_recipe(changed(tiny_values(), dotted), "tiny")
    return experiment


def write_toml(path: Path, values: dict[str, Any]) -> Path:
    def lines(table: dict[str, Any], prefix: str) -> list[str]:
        own = [f"{key} = {_toml(value)}" for key, value in table.items() if not isinstance(value, dict)]
        for key, value in table.items():
            if isinstance(value, dict):
                own += [f"[{prefix}{key}]", *lines(value, f"{prefix}{key}.")]
        return own

    path.write_text("\n".join(lines(values, "")) + "\n")
    return path


def _toml(value: object) -> str:
    if isinstance(value, dict):
        return "{ " + ", ".join(f"{key} = {_toml(inner)}" for key, inner in value.items()) + " }"
    if isinstance(value, list):
        return f"[{', '.join(map(_toml, value))}]"
    return str(value) if isinstance(value, float) and not math.isfinite(value) else json.dumps(value)


@contextmanager
def fed_to_the_network() -> Iterator[list[NDArray[np.float32]]]:
    """What every `PreActResNet` is fed while the block runs."""
    batches: list[NDArray[np.float32]] = []

    def record(module: torch.nn.Module, inputs: tuple[torch.Tensor, ...]) -> None:
        if isinstance(module, PreActResNet):
            batches.append(inputs[0].detach().contiguous().numpy().copy())

    handle = register_module_forward_pre_hook(record)
    try:
        yield batches
    finally:
        handle.remove()


def write_voted_parquet(
    path: Path, rows: list[tuple[str | None, bytes | None, int | None]], votes: Sequence[tuple[int, ...] | None]
) -> Path:
    """`write_parquet` with FER+'s ten votes for each row, None for a face that nobody voted on."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    table = pq.read_table(write_parquet(path, rows))
    for index, category in enumerate((*FERPLUS_CATEGORIES[:9], "nf")):
        cast = [None if row is None else row[index] for row in votes]
        table = table.append_column(f"ferplus_{category}", pa.array(cast, pa.int8()))
    pq.write_table(table, path)
    return path


def write_votes(path: Path, rows: list[tuple[str, tuple[int, ...] | None]]) -> Path:
    """Microsoft's `fer2013new.csv`: usage and ten votes of each row."""
    with path.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["Usage", "Image name", *FERPLUS_CATEGORIES[:9], "NF"])
        for number, (usage, votes) in enumerate(rows):
            writer.writerow([usage, f"fer{number:07}.png", *(votes or (0,) * 10)])
    return path
