from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from tests.training.faces import changed, tiny_values, write_toml
from training.config import Experiment
from training.environment import VARIABLES, load_recipe_with, overrides_from_environment
from training.errors import ConfigError

EXAMPLE = Path(__file__).parents[2] / ".env.example"
STEP = {"schedule": {"kind": "step"}}
ALL = {
    "LEARNING_RATE": ("3e-3", 0.003),
    "BATCH_SIZE": ("24", 24),
    "NUM_EPOCHS": ("7", 7),
    "DROPOUT_RATE": ("0.35", 0.35),
    "OPTIMIZER": ("AdamW", "adamw"),
    "LR_STEP_SIZE": ("4", 4),
    "LR_GAMMA": ("0.5", 0.5),
    "IMAGE_SIZE": ("32", 32),
}


def loaded(folder: Path, overrides: dict[str, object], **changes: Any) -> tuple[Experiment, ...]:
    dotted = {path.replace("__", "."): value for path, value in changes.items()}
    return load_recipe_with(write_toml(folder / "tiny.toml", changed(tiny_values(), dotted)), overrides)


def test_every_variable_is_read_and_stands_for_its_key(tmp_path: Path) -> None:
    assert ALL.keys() == VARIABLES.keys()
    overrides = overrides_from_environment({name: text for name, (text, _) in ALL.items()}, tmp_path / "absent")
    assert overrides == {name: value for name, (_, value) in ALL.items()}
    (experiment,) = loaded(tmp_path, overrides, **STEP)
    optim, schedule = experiment.optim, experiment.schedule
    assert (optim.max_lr, optim.batch_size, optim.epochs, optim.optimizer) == (0.003, 24, 7, "adamw")
    assert (schedule.step_size_epochs, schedule.gamma) == (4, 0.5)
    assert experiment.network.options["dropout"] == 0.35
    assert experiment.input.size_px == 32


def test_nothing_set_changes_nothing(tmp_path: Path) -> None:
    assert overrides_from_environment({"PATH": "/bin", "BATCH_SIZE": "", "LR_GAMMA": " "}, tmp_path / "absent") == {}
    (plain,), (same,) = loaded(tmp_path, {}), loaded(tmp_path, {"BATCH_SIZE": 16})
    assert plain == same
    assert loaded(tmp_path, {"BATCH_SIZE": 17})[0].sha256() != plain.sha256()


def test_file_is_read_with_quotes_comments_and_export_and_the_environment_wins(tmp_path: Path) -> None:
    file = tmp_path / ".env"
    file.write_text(
        "# BATCH_SIZE=1000\n\nexport LEARNING_RATE='0.02'\nNUM_EPOCHS=\"9\"\nOPTIMIZER=adam # the old one\n"
        "BATCH_SIZE = 12\nOTHER_TOOL=whatever\nIMAGE_SIZE=\n"
    )
    expected = {"LEARNING_RATE": 0.02, "NUM_EPOCHS": 9, "OPTIMIZER": "adam", "BATCH_SIZE": 12}
    assert overrides_from_environment({}, file) == expected
    assert overrides_from_environment({"BATCH_SIZE": "64"}, file) == {**expected, "BATCH_SIZE": 64}


def test_file_that_is_no_text_is_refused(tmp_path: Path) -> None:
    (tmp_path / ".env").write_bytes(b"BATCH_SIZE=\xff\xfe")
    with pytest.raises(ConfigError, match=r"\.env: "):
        overrides_from_environment({}, tmp_path / ".env")


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("LEARNING_RATE", "fast"),
        ("LEARNING_RATE", "0"),
        ("LEARNING_RATE", "nan"),
        ("LEARNING_RATE", "inf"),
        ("BATCH_SIZE", "1"),
        ("BATCH_SIZE", "8.5"),
        ("NUM_EPOCHS", "0"),
        ("DROPOUT_RATE", "1"),
        ("DROPOUT_RATE", "-0.1"),
        ("OPTIMIZER", "lion"),
        ("LR_STEP_SIZE", "0"),
        ("LR_GAMMA", "1.5"),
        ("IMAGE_SIZE", "4"),
    ],
)
def test_value_that_cannot_be_is_refused_by_its_variable(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=rf"^{name}: .*, not '{re.escape(text)}'; NUM_EPOCHS: |^NUM_EPOCHS: .*"):
        overrides_from_environment({name: text, "NUM_EPOCHS": "0"}, tmp_path / "absent")
    with pytest.raises(ConfigError, match=rf"^{name}: .*, not '{re.escape(text)}'$"):
        overrides_from_environment({name: text}, tmp_path / "absent")


@pytest.mark.parametrize(
    ("network", "option"),
    [
        ({"family": "preact-resnet", "options": {"dropout": 0.1}}, "dropout"),
        ({"family": "plain-cnn"}, "dropout"),
        ({"family": "timm", "options": {"model": "resnet18"}}, "drop_rate"),
        ({"family": "timm", "options": {"model": "efficientnet_b0", "head_hidden": 512}}, "head_dropout"),
    ],
)
def test_dropout_reaches_the_option_of_the_family(network: dict[str, Any], option: str, tmp_path: Path) -> None:
    network = {"classifier": "head.weight", **network}
    (experiment,) = loaded(tmp_path, {"DROPOUT_RATE": 0.3}, network=network)
    assert experiment.network.options == {**network.get("options", {}), option: 0.3}


def test_dropout_of_a_family_without_one_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^DROPOUT_RATE: the network's family has no dropout$"):
        loaded(tmp_path, {"DROPOUT_RATE": 0.3}, network__family="mtcnn")


def test_size_reaches_the_option_of_a_network_that_has_one(tmp_path: Path) -> None:
    network = {"family": "timm", "classifier": "head.weight", "options": {"model": "vit_tiny", "img_size": 224}}
    (experiment,) = loaded(tmp_path, {"IMAGE_SIZE": 96}, network=network)
    assert (experiment.input.size_px, experiment.network.options["img_size"]) == (96, 96)


@pytest.mark.parametrize(("name", "kind"), [("LR_STEP_SIZE", "plateau"), ("LR_GAMMA", "one-cycle")])
def test_variable_that_the_schedule_has_no_use_for_is_refused(name: str, kind: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: only the schedule"):
        loaded(tmp_path, {name: 1}, schedule={"kind": kind})


def test_every_stage_that_has_a_use_for_a_variable_gets_it(tmp_path: Path) -> None:
    stages = [{"optim": {"epochs": 9}, "schedule": {"kind": "step"}}, {"optim": {"epochs": 3}}]
    first, second = loaded(tmp_path, {"NUM_EPOCHS": 1, "LR_GAMMA": 0.25}, stages=stages)
    assert (first.optim.epochs, second.optim.epochs) == (1, 1)
    assert (first.schedule.gamma, second.schedule.gamma) == (0.25, 0.1)


def test_example_lists_every_variable_with_a_value_that_can_be(tmp_path: Path) -> None:
    lines = EXAMPLE.read_text().splitlines()
    assert all(line.startswith("#") or not line for line in lines), "as it stands it sets nothing"
    (tmp_path / ".env").write_text("\n".join(re.sub(r"^#(?=[A-Z_]+=)", "", line) for line in lines))
    assert overrides_from_environment({}, tmp_path / ".env").keys() == VARIABLES.keys()
