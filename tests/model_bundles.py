"""A tiny emotion model with random weights, and BentoML stores that hold it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from model_store.bundle import Bundle, publish_bundle
from model_store.manifest import (
    CARD_NAME,
    INT8_NAME,
    WEIGHTS_NAME,
    Architecture,
    CalibrationRecord,
    ClassMetrics,
    EmotionManifest,
    Evaluation,
    FaceCropSpec,
    FileRecord,
    InputSpec,
    Int8Record,
    TrainingRecord,
)

LABELS = ("angry", "disgust", "fear", "happy", "sad", "surprise", "neutral")
TINY_OPTIONS: dict[str, Any] = {"widths": [8, 8], "blocks_per_stage": 1}
_ZEROS = "0" * 64


def emotion_manifest(**changes: Any) -> EmotionManifest:
    """The manifest of the tiny model; `changes` replace whole keys. `files` is a placeholder until published."""
    values: dict[str, Any] = {
        "schema_version": 1,
        "name": "tiny",
        "version": "1.0.0",
        "task": "emotion-classification",
        "architecture": Architecture(family="preact-resnet", options=TINY_OPTIONS, classifier="head.weight"),
        "licence": "Apache-2.0",
        "source": "random weights",
        "labels": LABELS,
        "input": InputSpec(size_px=32, channels=1, mean=(0.5,), std=(0.25,), interpolation="bilinear"),
        "face_crop": FaceCropSpec(scale=1.2, shift_x=0.0, shift_y=0.05, alignment="none"),
        "temperature": 1.5,
        "evaluations": (),
        "training": TrainingRecord(command="none", config_sha256=_ZEROS, data_sha256=_ZEROS, note=""),
        "files": {WEIGHTS_NAME: FileRecord(size_bytes=0, sha256=_ZEROS)},
    }
    return EmotionManifest(**{**values, **changes})


def tiny_weights(seed: int = 0) -> bytes:
    """The safetensors file of a tiny network, its weights drawn from `seed`."""
    import torch
    from safetensors.torch import save

    from model_store.networks.preact_resnet import PreActResNet

    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network = PreActResNet(len(LABELS), 1, **TINY_OPTIONS)
    return save(network.state_dict())


def publish_tiny(root: Path, *, weights: bytes | Path | None = None, seed: int = 0, **changes: Any) -> Bundle:
    """Publish the tiny model under `root`, with other weights than the seed's if given."""
    files = {WEIGHTS_NAME: tiny_weights(seed) if weights is None else weights, CARD_NAME: b"# Tiny\n"}
    return publish_bundle(root, emotion_manifest(**changes), files)


def publish_tiny_int8(root: Path, int8: bytes | Path, **changes: Any) -> Bundle:
    """Publish the tiny model with an int8 network, which is said to be as accurate as the weights are."""
    metrics = ClassMetrics(precision=0.5, recall=0.5, f1=0.5, n=1)
    evaluation = Evaluation(
        split="test",
        tta="none",
        n=7,
        accuracy=0.5,
        macro_f1=0.5,
        ece_uncalibrated=0.1,
        ece=0.1,
        per_class=dict.fromkeys(LABELS, metrics),
    )
    record = Int8Record(
        command="none",
        quantiser="a test",
        calibration=CalibrationRecord(split="none", n=1, data_sha256=_ZEROS, method="none"),
        evaluations=(evaluation,),
    )
    files = dict.fromkeys((WEIGHTS_NAME, INT8_NAME), FileRecord(size_bytes=0, sha256=_ZEROS))
    manifest = emotion_manifest(evaluations=(evaluation,), int8=record, files=files, **changes)
    return publish_bundle(root, manifest, {WEIGHTS_NAME: tiny_weights(), INT8_NAME: int8, CARD_NAME: b"# Tiny\n"})


@contextmanager
def model_store_at(folder: Path) -> Iterator[None]:
    """Make `folder` the BentoML model store for as long as the block runs."""
    from bentoml._internal.configuration.containers import BentoMLContainer
    from bentoml._internal.models import ModelStore

    folder.mkdir(parents=True, exist_ok=True)
    BentoMLContainer.model_store.set(ModelStore(folder))
    try:
        yield
    finally:
        BentoMLContainer.model_store.reset()
