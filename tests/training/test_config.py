from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import training
from tests.training.faces import changed, tiny_experiment, tiny_values, write_toml
from training.config import load_experiment
from training.errors import ConfigError
from training.loop import build_network

SHIPPED = sorted((Path(training.__file__).parent / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_experiment_builds_a_network_with_an_output_a_label(path: Path) -> None:
    experiment = load_experiment(path)
    weights = build_network(experiment).state_dict()
    assert weights[experiment.network.classifier].shape[0] == len(set(experiment.labels))


def test_values_and_defaults_of_a_toml_file_are_kept(tmp_path: Path) -> None:
    experiment = load_experiment(write_toml(tmp_path / "tiny.toml", tiny_values()))
    assert experiment == tiny_experiment()
    assert experiment.optim.max_lr == 0.1
    assert experiment.network.options == {"widths": [16, 16], "blocks_per_stage": 1, "stem_stride": 1}
    assert experiment.optim.precision == "float32"


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optim.max_lr": "fast"}, "optim.max_lr"),
        ({"optim.max_lr": 0}, "optim.max_lr"),
        ({"optim.max_lr": math.nan}, "optim.max_lr"),
        ({"optim.epochs": 1.5}, "optim.epochs"),
        ({"optim.epochs": None}, "optim.epochs"),
        ({"optim.batch_size": 1}, "optim.batch_size"),
        ({"optim.precision": "float16"}, "optim.precision"),
        ({"optim.learning_rate": 0.1}, "optim.learning_rate"),
        ({"network": None}, "network"),
        ({"network.options": [8, 8]}, "network.options"),
        ({"augment.flip": 1.5}, "augment.flip"),
        ({"augment.scale": [0.0, 1.0]}, "augment.scale.0"),
        ({"augment.mixup_alpha": 0}, "augment.mixup_alpha"),
        ({"input.channels": 2}, "input.channels"),
        ({"input.std": [0.0]}, "input.std.0"),
        ({"input.mean": [0.5, 0.5]}, "input"),
        ({"face_crop.alignment": "eyes"}, "face_crop.alignment"),
        ({"labels": ["happy"]}, "labels"),
        ({"labels": ["happy", "sad", "happy"]}, "labels"),
        ({"name": "Not a name"}, "name"),
        ({"seed": -1}, "seed"),
        ({"extra": {"key": 1}}, "extra"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_wrong_key_is_refused_by_its_path(changes: dict[str, Any], key: str, tmp_path: Path) -> None:
    path = write_toml(tmp_path / "wrong.toml", changed(tiny_values(), changes))
    with pytest.raises(ConfigError) as caught:
        load_experiment(path)
    where, _, problem = str(caught.value).partition(": ")
    assert where == str(path)
    assert problem.startswith(f"{key}: ")


def test_every_wrong_key_is_named(tmp_path: Path) -> None:
    wrong = changed(tiny_values(), {"optim.max_lr": -1, "seed": "one"})
    with pytest.raises(ConfigError, match=r"seed: .*; optim\.max_lr: "):
        load_experiment(write_toml(tmp_path / "wrong.toml", wrong))


@pytest.mark.parametrize("content", [b"name = ", b"[optim]\n[optim]\n", b'name = "\xff"'])
def test_file_that_is_not_toml_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml: "):
        load_experiment(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        load_experiment(tmp_path / "absent.toml")


@pytest.mark.parametrize(
    "changes",
    [
        {"seed": 4},
        {"labels": ["disgust", "angry", "fear", "happy", "sad", "surprise", "neutral"]},
        {"network__options": {"widths": [16, 17], "blocks_per_stage": 1}},
        {"input__mean": [0.51]},
        {"augment__flip": 0.1},
        {"optim__epochs": 3},
    ],
    ids=lambda changes: next(iter(changes)),
)
def test_digest_changes_with_what_determines_the_weights(changes: dict[str, Any]) -> None:
    assert tiny_experiment(**changes).sha256() != tiny_experiment().sha256()


def test_digest_does_not_change_with_the_face_crop() -> None:
    assert tiny_experiment(face_crop__scale=1.3).sha256() == tiny_experiment().sha256()
