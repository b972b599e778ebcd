"""A finished run → a bundle: calibrated on the validation split, scored, quantised if asked to, with its model card."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from pydantic import ValidationError
from safetensors.torch import save

from handlers.classifier import EmotionClassifier
from handlers.engines.torch_engine import TorchEngine
from model_store.bundle import Bundle, new_folder, publish_bundle
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
from training.complexity import complexity_of
from training.config import Experiment
from training.data import FaceSet
from training.errors import CheckpointError
from training.evaluate import report
from training.finished_run import as_stored
from training.history import BEST
from training.learner import architecture_of, build_network
from training.provenance import Provenance
from training.quantise import quantise
from training.wild import Photographs, score_wild

_WAYS: tuple[Tta, ...] = ("none", "flip")


class Source(Record):
    """Where a bundle says it comes from, in words for its card."""

    command: str
    data: str
    split: str


@dataclass(frozen=True)
class Int8Wish:
    """Ask for an int8 network beside the weights; see `training.quantise.quantise`. command: for its record."""

    training_set: FaceSet
    command: str
    n: int = 1024
    keep_float: int | None = None


def publish(
    experiment: Experiment,
    run: Path,
    validation_set: FaceSet,
    root: Path,
    version: str,
    source: Source,
    *,
    stages: Sequence[Experiment] = (),
    int8: Int8Wish | None = None,
    photographs: Photographs | None = None,
) -> Bundle:
    """Publish the run's best checkpoint as `<root>/<experiment.name>/<version>/`.

    experiment: of the last stage, whose folder `run` is. stages: all of the recipe, for the record; the folders of
    several are beside `run`. int8: also make an int8 network; where none passes the gate, the bundle comes without it,
    with the figures in its card.
    photographs: score the bundle on them, for the card.
    Temperature and scores are those of the stored weights, see `training.finished_run.as_stored`.
    Raises BundleExistsError when that version stands, CheckpointError when the run is of another configuration or was
    validated on other data, ManifestError when the version or the configuration makes no manifest, and what
    `publish_bundle` and `quantise` raise.
    """
    new_folder(root, experiment.name, version)
    tensors, state = load_checkpoint(run / BEST)
    expected = {"config_sha256": experiment.sha256(), "validation_sha256": validation_set.sha256}
    for key, value in expected.items():
        if state.get(key) != value:
            raise CheckpointError(f"{run / BEST}: its {key} is not that of the given configuration and data")
    stored, rounding = as_stored(tensors, experiment, validation_set)
    network = build_network(experiment)
    network.load_state_dict(stored)
    run_network = TorchEngine(torch.get_num_threads()).wrap(network)
    manifest = _unscored(stages or (experiment,), run, state, version, source, rounding)
    crops = list(validation_set.crops_u8)
    logits = {tta: EmotionClassifier(manifest, run_network, tta).logits(crops) for tta in _WAYS}
    manifest = manifest.model_copy(update={"temperature": fit_temperature(logits["none"], validation_set.labels)})
    reports = [report(manifest, logits[tta], validation_set, source.split, tta) for tta in _WAYS]
    manifest = manifest.model_copy(update={"evaluations": tuple(scored.evaluation for scored in reports)})
    if int8 is not None:
        with tempfile.TemporaryDirectory() as work:
            plain = publish_bundle(Path(work), manifest, {WEIGHTS_NAME: save(stored), CARD_NAME: b""})
            return quantise(
                plain,
                int8.training_set,
                validation_set,
                root,
                version,
                int8.command,
                int8.n,
                keep_float=int8.keep_float,
                or_without=True,
                photographs=photographs,
            )
    card = model_card(
        manifest,
        reports,
        complexity_of(network, manifest.input),
        wild=() if photographs is None else [score_wild(EmotionClassifier(manifest, run_network), photographs)],
    )
    return publish_bundle(root, manifest, {WEIGHTS_NAME: save(stored), CARD_NAME: card.encode()})


def _unscored(
    stages: Sequence[Experiment],
    run: Path,
    state: dict[str, object],
    version: str,
    source: Source,
    rounding: str,
) -> EmotionManifest:
    """The manifest of a checkpoint with that state, without scores. Raises ManifestError or CheckpointError."""
    experiment = stages[-1]
    averaged = ", averaged weights" if experiment.optim.ema_decay > 0 else ""
    history = state["history"]
    if not isinstance(history, list):
        raise CheckpointError("the checkpoint has no history")
    try:
        return EmotionManifest(
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
                note=(
                    f"epoch {len(history)} of {experiment.optim.epochs}{averaged}, "
                    f"{_start(stages, run, state)}{_teaching(experiment)}{rounding}"
                ),
                provenance=_provenance(stages, state),
            ),
            licence="Apache-2.0",
            source=source.data,
            files={WEIGHTS_NAME: FileRecord(size_bytes=0, sha256="0" * 64)},
        )
    except ValidationError as error:
        raise ManifestError(explain_validation(error)) from None


def _start(stages: Sequence[Experiment], run: Path, state: dict[str, object]) -> str:
    """What the first stage began with: a later one's checkpoint knows the digest of the stage before it."""
    n_stages = len(stages)
    if n_stages == 1:
        return f"from {_first_weights(stages[0], state)}"
    _, first_state = load_checkpoint(run.with_name("stage-1") / BEST)
    network = stages[-1].network
    begun_from = f"stage {n_stages - 1}'s best epoch"
    if network.init_stages:
        begun_from = f"the mean of stages {' and '.join(map(str, network.init_stages))}"
    elif network.init_bundle:
        begun_from = network.init_bundle
    first = _first_weights(stages[0], first_state)
    return f"stage {n_stages} of {n_stages}, begun from {begun_from}; the first from {first}"


def _first_weights(experiment: Experiment, state: dict[str, object]) -> str:
    if (init := state.get("init_sha256")) is not None:
        return f"{experiment.network.init_bundle or 'a checkpoint'} with sha256 {init}"
    return "timm's pretrained weights" if experiment.network.pretrained else "fresh weights"


def _teaching(experiment: Experiment) -> str:
    """Who taught beside the label, and at which share."""
    targets = experiment.targets
    text = ""
    if targets.teachers:
        text += f", taught by {' and '.join(targets.teachers)} at a share of {targets.teacher_weight:g}"
    if targets.votes:
        text += f", by FER+'s annotators at a share of {targets.votes:g}"
    return text


def _provenance(stages: Sequence[Experiment], state: dict[str, object]) -> tuple[str, ...]:
    """Nothing for a checkpoint from before class counts were kept."""
    counts = state.get("class_counts")
    if not isinstance(counts, list):
        return ()
    return tuple(Provenance.of(stages, [int(count) for count in counts]).as_lines())
