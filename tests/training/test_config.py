from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

import training
from tests.training.faces import changed, tiny_experiment, tiny_values, write_toml
from training.config import load_recipe, parse_recipe
from training.errors import ConfigError

SMALL = Path(training.__file__).parent / "configs" / "fer2013-small.toml"
SHIPPED = sorted((Path(training.__file__).parent / "configs").glob("*.toml"))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.stem)
def test_shipped_recipe_is_valid(path: Path) -> None:
    stages = load_recipe(path)
    assert {stage.labels for stage in stages} == {stages[0].labels}
    assert {stage.name for stage in stages} == {stages[0].name}


def test_values_and_defaults_of_a_toml_file_are_kept(tmp_path: Path) -> None:
    (experiment,) = load_recipe(write_toml(tmp_path / "tiny.toml", tiny_values()))
    assert experiment == tiny_experiment()
    assert experiment.optim.max_lr == 0.1
    assert experiment.network.options == {"widths": [16, 16], "blocks_per_stage": 1, "stem_stride": 1}
    assert experiment.optim.precision == "float32"
    assert experiment.schedule.kind == "one-cycle"
    assert experiment.freeze == ()


def test_whole_numbers_are_fine_where_any_number_is(tmp_path: Path) -> None:
    values = changed(tiny_values(), {"optim.max_lr": 1, "augment.rotate_deg": 12, "augment.scale": [1, 2]})
    (experiment,) = load_recipe(write_toml(tmp_path / "tiny.toml", values))
    assert (experiment.optim.max_lr, experiment.augment.rotate_deg, experiment.augment.scale) == (1.0, 12.0, (1.0, 2.0))


@pytest.mark.parametrize(
    ("changes", "key"),
    [
        ({"optim.max_lr": "fast"}, "optim.max_lr"),
        ({"optim.max_lr": 0}, "optim.max_lr"),
        ({"optim.max_lr": math.nan}, "optim.max_lr"),
        ({"optim.epochs": 1.5}, "optim.epochs"),
        ({"optim.epochs": None}, "optim.epochs"),
        ({"optim.batch_size": 1}, "optim.batch_size"),
        ({"optim.precision": "int8"}, "optim.precision"),
        ({"optim.epochs": "10"}, "optim.epochs"),
        ({"optim.epochs": True}, "optim.epochs"),
        ({"optim.max_lr": "0.1"}, "optim.max_lr"),
        ({"optim.max_lr": True}, "optim.max_lr"),
        ({"optim.max_lr": math.inf}, "optim.max_lr"),
        ({"optim.accumulate": 0}, "optim.accumulate"),
        ({"optim.optimizer": "lion"}, "optim.optimizer"),
        ({"optim.backbone_lr_factor": 0}, "optim.backbone_lr_factor"),
        ({"network.pretrained": 1}, "network.pretrained"),
        ({"network.pretrained": True}, "network.pretrained"),
        ({"data.labels_from": "votes"}, "data.labels_from"),
        ({"augment.mixup": 0.6, "augment.cutmix": 0.5}, "augment.cutmix"),
        ({"augment.scale": [1.2, 0.8]}, "augment.scale"),
        ({"augment.jpeg_quality": [20, 96]}, "augment.jpeg_quality.1"),
        ({"augment.jpeg_quality": [20, 19]}, "augment.jpeg_quality"),
        ({"augment.erase_area": [0.3, 0.2]}, "augment.erase_area"),
        ({"augment.blur_sigma_px": [2, 1]}, "augment.blur_sigma_px"),
        ({"augment.shift": 1}, "augment.shift"),
        ({"targets.teachers": ["a:1.0.0"]}, "targets.teacher_weight"),
        ({"targets.teacher_weight": 0.5}, "targets.teacher_weight"),
        (
            {"targets.teachers": ["a"], "targets.teacher_weight": 0.7, "targets.votes": 0.4},
            "targets.votes",
        ),
        ({"targets.temperature": 0}, "targets.temperature"),
        ({"targets.label_smoothing": 1}, "targets.label_smoothing"),
        ({"loss.kind": "hinge"}, "loss.kind"),
        ({"loss.class_balance_beta": 1}, "loss.class_balance_beta"),
        ({"loss.sampler": "random"}, "loss.sampler"),
        ({"schedule.kind": "cosine"}, "schedule.kind"),
        ({"schedule.gamma": 1.1}, "schedule.gamma"),
        ({"schedule.step_size_epochs": 0}, "schedule.step_size_epochs"),
        (
            {"schedule.kind": "warmup-plateau-cosine", "schedule.warmup_fraction": 0.7},
            "schedule.plateau_fraction",
        ),
        ({"freeze": [{"modules": ["stem"]}, {"modules": []}]}, "freeze.1.modules"),
        ({"freeze": [{"modules": ["stem"], "until_epoch": -1}]}, "freeze.0.until_epoch"),
        ({"freeze": [{"module": "stem", "modules": ["stem"]}]}, "freeze.0.module"),
        ({"stages": []}, "stages"),
        ({"stages": [1]}, "stages"),
        ({"stages": [{"seed": 1}, {"optim": {"epochs": 0}}]}, "stages.1.optim.epochs"),
        ({"stages": [{"seed": 1}, {"freeze": [{"modules": []}]}]}, "stages.1.freeze.0.modules"),
        ({"stages": [{"seed": 1}, {"optim": 3}]}, "stages.1.optim"),
        ({"stages": [{"seed": 1}, {"seeds": 3}]}, "stages.1.seeds"),
        ({"stages": [{}, {"labels": ["sad", "happy"]}]}, "stages.1.labels"),
        ({"stages": [{}, {}, {"data": {"labels_from": "ferplus-majority"}}]}, "stages.2.data"),
        (
            {"network": {"family": "timm", "classifier": "fc", "pretrained": True, "init_bundle": "a:1.0.0"}},
            "network.init_bundle",
        ),
        ({"stages": [{"seed": 1}, {"seed": 2}], "optim.epochs": 0}, "optim.epochs"),
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
        load_recipe(path)
    where, _, problem = str(caught.value).partition(": ")
    assert where == str(path)
    assert problem.startswith(f"{key}: ")


def test_every_wrong_key_is_named(tmp_path: Path) -> None:
    wrong = changed(tiny_values(), {"optim.max_lr": -1, "seed": "one"})
    with pytest.raises(ConfigError, match=r"seed: .*; optim\.max_lr: "):
        load_recipe(write_toml(tmp_path / "wrong.toml", wrong))


@pytest.mark.parametrize("content", [b"name = ", b"[optim]\n[optim]\n", b'name = "\xff"'])
def test_file_that_is_not_toml_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bad.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=r"bad\.toml: "):
        load_recipe(path)


def test_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"absent\.toml: No such file"):
        load_recipe(tmp_path / "absent.toml")


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


def test_what_is_wrong_in_the_whole_file_is_said_once() -> None:
    values = changed(tiny_values(), {"stages": [{"seed": 1}, {"seed": 2}], "optim.max_lr": 0})
    with pytest.raises(ConfigError) as caught:
        parse_recipe(values, "here")
    assert str(caught.value) == "here: optim.max_lr: Input should be greater than 0"


def test_problem_of_two_keys_reads_like_one() -> None:
    with pytest.raises(ConfigError, match=r"^here: augment\.scale: the first value is over the second$"):
        parse_recipe(changed(tiny_values(), {"augment.scale": [2, 1]}), "here")


def test_stages_are_laid_over_the_file_table_by_table(tmp_path: Path) -> None:
    later = {"optim": {"epochs": 1, "max_lr": 0.01}, "targets": {"label_smoothing": 0.1}}
    values = changed(tiny_values(), {"stages": [{}, later], "optim.momentum": 0.8})
    first, second = load_recipe(write_toml(tmp_path / "tiny.toml", values))
    assert first == tiny_experiment(optim__momentum=0.8)
    assert second == tiny_experiment(
        optim__momentum=0.8, optim__epochs=1, optim__max_lr=0.01, targets__label_smoothing=0.1
    )


@pytest.mark.parametrize("written", [{"augment": {"flip": 0.0, "mixup": 0.0}}, {"schedule": {"kind": "one-cycle"}}])
def test_default_that_is_written_out_does_not_change_the_digest(written: dict[str, Any]) -> None:
    assert tiny_experiment(**written).sha256() == tiny_experiment().sha256()


def test_digest_of_a_published_recipe_stands() -> None:
    """Checkpoints and bundles record it: a key that is added must not move it."""
    (small,) = load_recipe(SMALL)
    assert small.sha256() == "3074f69aa171e9a70e96b8d082a743e1855efdb007897a23d7facd62335c834b"
