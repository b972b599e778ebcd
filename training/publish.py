"""A finished run → a bundle: calibrated on the validation split, scored, with its model card."""

from __future__ import annotations

from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save

from handlers.classifier import EmotionClassifier
from handlers.engines.torch_engine import TorchEngine
from model_store.bundle import Bundle, publish_bundle
from model_store.errors import ManifestError
from model_store.manifest import (
    CARD_NAME,
    WEIGHTS_NAME,
    EmotionManifest,
    FileRecord,
    Record,
    TrainingRecord,
    Tta,
    explain_validation,
)
from training.calibrate import fit_temperature
from training.card import model_card
from training.checkpoint import load_checkpoint
from training.config import Experiment
from training.data import FaceSet
from training.errors import CheckpointError
from training.evaluate import report
from training.loop import BEST, architecture_of, build_network


class Source(Record):
    """Where a bundle says it comes from, in words for its card."""

    command: str
    data: str
    split: str


def publish(
    experiment: Experiment, run: Path, validation_set: FaceSet, root: Path, version: str, source: Source
) -> Bundle:
    """Publish the run's best checkpoint as `<root>/<experiment.name>/<version>/`.

    Kernels are stored as float16 (half the bytes); temperature and scores are those of the stored, rounded weights.
    Raises CheckpointError when the run is of another configuration or was validated on other data, ManifestError when
    the version or the configuration makes no manifest, and what `publish_bundle` raises.
    """
    tensors, state = load_checkpoint(run / BEST)
    expected = {"config_sha256": experiment.sha256(), "validation_sha256": validation_set.sha256}
    for key, value in expected.items():
        if state.get(key) != value:
            raise CheckpointError(f"{run / BEST}: its {key} is not that of the given configuration and data")
    stored = {name: tensor.half() if tensor.ndim > 1 else tensor for name, tensor in tensors.items()}
    network = build_network(experiment)
    network.load_state_dict(stored)
    run_network = TorchEngine(torch.get_num_threads()).wrap(network)

    history = state["history"]
    if not isinstance(history, list):
        raise CheckpointError(f"{run / BEST}: it has no history")
    init = state.get("init_sha256")
    start = "from fresh weights" if init is None else f"from a checkpoint with sha256 {init}"
    try:
        manifest = EmotionManifest(
            schema_version=1,
            name=experiment.name,
            version=version,
            task="emotion-classification",
            architecture=architecture_of(experiment),
            labels=experiment.labels,
            input=experiment.input,
            face_crop=experiment.face_crop,
            temperature=1.0,
            evaluations=(),
            training=TrainingRecord(
                command=source.command,
                config_sha256=experiment.sha256(),
                data_sha256=str(state["data_sha256"]),
                note=f"epoch {len(history)} of {experiment.optim.epochs}, averaged weights, {start}",
            ),
            licence="Apache-2.0",
            source=source.data,
            files={WEIGHTS_NAME: FileRecord(size_bytes=0, sha256="0" * 64)},
        )
    except ValidationError as error:
        raise ManifestError(explain_validation(error)) from None
    ways: tuple[Tta, ...] = ("none", "flip")
    crops = list(validation_set.crops_u8)
    logits = {tta: EmotionClassifier(manifest, run_network, tta).logits(crops) for tta in ways}
    manifest = manifest.model_copy(update={"temperature": fit_temperature(logits["none"], validation_set.labels)})
    reports = [report(manifest, logits[tta], validation_set, source.split, tta) for tta in ways]
    manifest = manifest.model_copy(update={"evaluations": tuple(scored.evaluation for scored in reports)})
    n_parameters = sum(parameter.numel() for parameter in network.parameters())
    card = model_card(manifest, reports, n_parameters)
    return publish_bundle(root, manifest, {WEIGHTS_NAME: save(stored), CARD_NAME: card.encode()})
