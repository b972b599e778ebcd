"""Every experiment file of the repository: its network, its frozen parts, two steps of its recipe, and 32 faces learnt.

Whole networks are looked at on torch's meta device, which computes shapes alone. What is trained is made smaller where
the size is not the point: pictures of 32 px instead of 224, a transformer of two layers instead of twelve.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from tests.training.faces import changed
from training.checkpoint import load_checkpoint
from training.config import Experiment, load_recipe, parse_recipe
from training.data import FaceSet
from training.freezing import frozen_names
from training.learner import build_network
from training.loop import train

CONFIGS = sorted((Path(__file__).parents[2] / "training" / "configs").glob("*.toml"))
NAMES = [path.stem for path in CONFIGS]

SMALL_PX = 32
_SMALLER: dict[str, dict[str, Any]] = {
    "pretrained-vit": {
        "network.options.img_size": SMALL_PX,
        "network.options.patch_size": 8,
        "network.options.depth": 2,
        "network.options.embed_dim": 192,
        "network.options.num_heads": 3,
    },
    "fer2013-vit": {"network.options.img_size": SMALL_PX, "network.options.depth": 2},
    "fer2013-mobilevitv2": {"input.size_px": 64},
    "pretrained-mobilevitv2": {"input.size_px": 64},
}
"""Beside pictures of SMALL_PX. MobileViTv2 cuts its last feature map into patches of 2×2, so that must have as many."""

_NEEDS_NOTHING: dict[str, Any] = {"network.pretrained": False, "network.init_bundle": None}
"""No hub, and no bundle that may not have been published yet."""


def values_of(path: Path, changes: dict[str, Any]) -> dict[str, Any]:
    values = tomllib.loads(path.read_text())
    present = {key: value for key, value in changes.items() if value is not None or _holds(values, key)}
    return changed(values, present)


def _holds(values: dict[str, Any], path: str) -> bool:
    section, _, key = path.rpartition(".")
    return key in values.get(section, {})


def stages_of(path: Path, **changes: Any) -> tuple[Experiment, ...]:
    return parse_recipe(values_of(path, changes), path.stem)


def made_up_faces(
    experiment: Experiment, n: int, *, pictures: int | None = None, random_labels: bool = False
) -> FaceSet:
    """`n` faces of the experiment's size, labels in turn, or `pictures` of them again and again; votes for a few."""
    rng = np.random.default_rng(0)
    size, n_classes = experiment.input.size_px, len(experiment.labels)
    pictures = pictures or n
    labels = rng.integers(0, n_classes, pictures) if random_labels else np.arange(pictures) % n_classes
    coarse = rng.integers(0, 256, (pictures, 8, 8, experiment.input.channels), dtype=np.uint8)
    crops = np.kron(coarse, np.ones((1, size // 8, size // 8, 1), np.uint8))
    rows = np.arange(n) % pictures
    votes = rng.integers(0, 4, (n, 10)).astype(np.int8)
    soft = np.eye(n_classes, dtype=np.float32)[labels[rows]] if experiment.data.labels_from != "label" else None
    names = tuple(f"face_{index}" for index in range(n))
    return FaceSet(crops[rows], labels[rows].astype(np.int64), names, experiment.labels, (), votes, soft)


def teachers_for(experiment: Experiment, n: int) -> np.ndarray | None:
    if not experiment.targets.teachers:
        return None
    return np.random.default_rng(1).dirichlet(np.ones(len(experiment.labels)), n).astype(np.float32)


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_network_of_the_experiment_answers_each_label(path: Path) -> None:
    for experiment in load_recipe(path):
        with torch.device("meta"):
            network = build_network(experiment).eval()
            spec = experiment.input
            logits = network(torch.zeros(2, spec.channels, spec.size_px, spec.size_px))
        assert logits.shape == (2, len(experiment.labels))


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_named_classifier_is_the_last_tensor_and_counts_the_labels(path: Path) -> None:
    experiment = load_recipe(path)[0]
    eleven = replace_labels(experiment, tuple(f"label {index}" for index in range(11)))
    with torch.device("meta"):
        own, wider = (build_network(version).state_dict() for version in (experiment, eleven))
    assert own[experiment.network.classifier].shape[0] == len(experiment.labels)
    differing = {name for name in own if own[name].shape != wider[name].shape}
    head = experiment.network.classifier.removesuffix(".weight")
    assert differing == {f"{head}.weight", f"{head}.bias"}


def replace_labels(experiment: Experiment, labels: tuple[str, ...]) -> Experiment:
    return experiment.model_copy(update={"labels": labels})


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_experiment_freezes_what_it_says_and_leaves_the_head_free(path: Path) -> None:
    for experiment in load_recipe(path):
        with torch.device("meta"):
            network = build_network(experiment)
        n_parameters = len(list(network.parameters()))
        counts = []
        for epoch in range(experiment.optim.epochs):
            frozen = frozen_names(network, experiment.freeze, epoch)
            assert experiment.network.classifier not in frozen
            counts.append(len(frozen))
        assert counts == sorted(counts, reverse=True)
        assert counts[0] < n_parameters
        assert (counts[0] > 0) == bool(experiment.freeze)


def test_mobilevitv2_wakes_its_stages_from_the_deepest() -> None:
    (experiment,) = load_recipe(CONFIGS[NAMES.index("pretrained-mobilevitv2")])
    with torch.device("meta"):
        network = build_network(experiment)
    learning = [
        {
            stage
            for stage in range(5)
            if f"stages.{stage}." not in " ".join(frozen_names(network, experiment.freeze, epoch))
        }
        for epoch in range(7)
    ]
    assert learning == [{4}, {3, 4}, {3, 4}, {2, 3, 4}, {2, 3, 4}, {1, 2, 3, 4}, {1, 2, 3, 4}]


def test_pretrained_vit_keeps_its_embeddings_and_first_layer() -> None:
    (experiment,) = load_recipe(CONFIGS[NAMES.index("pretrained-vit")])
    with torch.device("meta"):
        network = build_network(experiment)
    frozen = frozen_names(network, experiment.freeze, 2)
    first = {name for name, _ in network.named_parameters() if name.startswith("blocks.0.")}
    assert frozen == {"cls_token", "pos_embed", "patch_embed.proj.weight", "patch_embed.proj.bias"} | first


def test_pretrained_and_from_scratch_variants_come_in_pairs() -> None:
    asks = {path.stem: [experiment.network.pretrained for experiment in load_recipe(path)] for path in CONFIGS}
    pretrained = {name.removeprefix("pretrained-") for name in asks if name.startswith("pretrained-")}
    assert pretrained == {"mobilenetv3-small", "mobilenetv2", "efficientnet-b0", "resnet18", "mobilevitv2", "vit"}
    for name in pretrained:
        assert all(asks[f"pretrained-{name}"])
        assert not any(asks[f"fer2013-{name}"])


@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_recipe_trains_two_steps(path: Path, tmp_path: Path) -> None:
    """Each stage as it stands: its targets, losses, optimiser, schedule, freezing and augmentation."""
    two_steps_of_each_stage(path, tmp_path, {"input.size_px": SMALL_PX, **_SMALLER.get(path.stem, {})})


@pytest.mark.slow
@pytest.mark.parametrize("path", CONFIGS, ids=NAMES)
def test_recipe_trains_two_steps_at_full_size(path: Path, tmp_path: Path) -> None:
    two_steps_of_each_stage(path, tmp_path, {})


def two_steps_of_each_stage(path: Path, folder: Path, smaller: dict[str, Any]) -> None:
    for index, experiment in enumerate(parse_recipe(values_of(path, {**_NEEDS_NOTHING, **smaller}), path.stem)):
        experiment = with_optim(experiment, epochs=1, batch_size=8, accumulate=1)
        faces = made_up_faces(experiment, 16)
        run = folder / f"stage-{index}"
        torch.manual_seed(experiment.seed)
        before = build_network(experiment).state_dict()[experiment.network.classifier].clone()
        (record,) = train(
            experiment, faces, faces, run, teachers=teachers_for(experiment, 16), device="cpu", log=lambda line: None
        )
        assert 0.5 < record.train_loss < 10
        tensors, _ = load_checkpoint(run / "last.safetensors")
        after = tensors[f"network.{experiment.network.classifier}"]
        assert torch.isfinite(after).all()
        assert not torch.equal(after, before)


_LEARNS_BY_HEART: dict[str, Any] = {
    "augment": {"flip": 0.0},
    "targets": {},
    "loss": {},
    "freeze": [],
    "schedule": {"kind": "one-cycle", "warmup_fraction": 0.2},
    "optim": {
        "epochs": 3,
        "batch_size": 32,
        "max_lr": 1e-3,
        "optimizer": "adamw",
        "weight_decay": 0.0,
        "ema_decay": 0.0,
    },
}
_NO_DROPOUT: dict[str, Any] = {
    f"network.options.{key}": 0.0 for key in ("dropout", "head_dropout", "drop_rate", "drop_path_rate")
}
_FAST = {"fer2013-small"}
_SLOW_LEARNERS = {
    f"{start}-{network}" for start in ("fer2013", "pretrained") for network in ("vit", "mobilevitv2", "mobilenetv2")
}


@pytest.mark.parametrize(
    "path", [pytest.param(path, marks=() if path.stem in _FAST else pytest.mark.slow) for path in CONFIGS], ids=NAMES
)
def test_network_of_the_experiment_overfits_32_pictures(path: Path, tmp_path: Path) -> None:
    """Random labels, so that only learning by heart helps; the recipe is one that does so fast, on a small copy.

    Seen while it learns, over the last of three epochs (twelve for slow learners) that show each picture twenty times.
    """
    values = values_of(path, {**_NEEDS_NOTHING, "input.size_px": SMALL_PX, **_SMALLER.get(path.stem, {})})
    own = values["network"]["options"]
    no_dropout = {key: value for key, value in _NO_DROPOUT.items() if key.rpartition(".")[2] in own}
    values = changed({key: value for key, value in values.items() if key != "stages"} | _LEARNS_BY_HEART, no_dropout)
    (experiment,) = parse_recipe(values, path.stem)
    if path.stem in _SLOW_LEARNERS:
        experiment = with_optim(experiment, epochs=12)
    faces = made_up_faces(experiment, 32 * 20, pictures=32, random_labels=True)
    history = train(experiment, faces, made_up_faces(experiment, 32), tmp_path, device="cpu", log=lambda line: None)
    assert history[-1].train_loss < 0.2
    assert history[-1].train_accuracy > 0.98


def with_optim(experiment: Experiment, **changes: Any) -> Experiment:
    return experiment.model_copy(update={"optim": experiment.optim.model_copy(update=changes)})
