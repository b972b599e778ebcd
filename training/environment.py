"""The settings that people know from other training scripts, from the environment or a `.env` file.

`.env.example` lists them. They stand in every stage of a recipe instead of the file's values, so they are part of
the experiment's digest: a run that was begun with them goes on only with them.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from dotenv import dotenv_values
from pydantic import ConfigDict, Field, TypeAdapter, ValidationError
from pydantic.fields import FieldInfo

from model_store.manifest import InputSpec
from training.config import Experiment, OptimConfig, ScheduleConfig, load_recipe
from training.errors import ConfigError

Keys = Callable[[Mapping[str, Any]], tuple[str, ...]]


@dataclass(frozen=True)
class Variable:
    """What a variable may hold, and the dotted keys of a stage that it stands for: none when the stage has no use."""

    kind: TypeAdapter[Any]
    keys: Keys
    unused: str
    """Why no stage has a use for it."""


def _as(field: FieldInfo) -> TypeAdapter[Any]:
    kind: Any = Annotated[field.annotation, *field.metadata] if field.metadata else field.annotation
    return TypeAdapter(kind, config=ConfigDict(allow_inf_nan=False))


def _always(*keys: str) -> Keys:
    return lambda stage: keys


def _with_schedule(key: str, *kinds: str) -> Keys:
    return lambda stage: (key,) if _section(stage, "schedule").get("kind") in kinds else ()


def _dropout_keys(stage: Mapping[str, Any]) -> tuple[str, ...]:
    network = _section(stage, "network")
    if network.get("family") in ("preact-resnet", "plain-cnn"):
        return ("network.options.dropout",)
    if network.get("family") == "timm":
        has_own_head = "head_hidden" in _section(network, "options")
        return ("network.options.head_dropout" if has_own_head else "network.options.drop_rate",)
    return ()


def _size_keys(stage: Mapping[str, Any]) -> tuple[str, ...]:
    """Transformers are told the size in their options, too: their position embedding depends on it."""
    options = _section(_section(stage, "network"), "options")
    return ("input.size_px", "network.options.img_size") if "img_size" in options else ("input.size_px",)


_OPTIM, _SCHEDULE = OptimConfig.model_fields, ScheduleConfig.model_fields
VARIABLES: dict[str, Variable] = {
    "LEARNING_RATE": Variable(_as(_OPTIM["max_lr"]), _always("optim.max_lr"), ""),
    "BATCH_SIZE": Variable(_as(_OPTIM["batch_size"]), _always("optim.batch_size"), ""),
    "NUM_EPOCHS": Variable(_as(_OPTIM["epochs"]), _always("optim.epochs"), ""),
    "DROPOUT_RATE": Variable(
        TypeAdapter(Annotated[float, Field(ge=0, lt=1)]), _dropout_keys, "the network's family has no dropout"
    ),
    "OPTIMIZER": Variable(_as(_OPTIM["optimizer"]), _always("optim.optimizer"), ""),
    "LR_STEP_SIZE": Variable(
        _as(_SCHEDULE["step_size_epochs"]),
        _with_schedule("schedule.step_size_epochs", "step"),
        "only the schedule step has steps",
    ),
    "LR_GAMMA": Variable(
        _as(_SCHEDULE["gamma"]),
        _with_schedule("schedule.gamma", "step", "plateau"),
        "only the schedules step and plateau have a factor",
    ),
    "IMAGE_SIZE": Variable(_as(InputSpec.model_fields["size_px"]), _size_keys, ""),
}
"""The variables by name."""


def overrides_from_environment(
    environment: Mapping[str, str] | None = None, env_file: Path = Path(".env")
) -> dict[str, object]:
    """The variables of VARIABLES that are set, checked; one of the environment wins over the file's line.

    Empty values count as unset. environment: this process's unless given.
    Raises ConfigError naming each variable whose value cannot be, or a file that is no text.
    """
    try:
        in_file = dotenv_values(env_file, interpolate=False) if env_file.is_file() else {}
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{env_file}: {error}") from None
    values = {**in_file, **(os.environ if environment is None else environment)}
    overrides: dict[str, object] = {}
    problems = []
    for name, variable in VARIABLES.items():
        text = (values.get(name) or "").strip()
        if not text:
            continue
        try:
            overrides[name] = variable.kind.validate_strings(text.lower())
        except ValidationError as error:
            problems.append(f"{name}: {error.errors()[0]['msg']}, not {text!r}")
    if problems:
        raise ConfigError("; ".join(problems))
    return overrides


def load_recipe_with(path: Path, overrides: Mapping[str, object]) -> tuple[Experiment, ...]:
    """`training.config.load_recipe` with the variables' values in every stage that has a use for them.

    Raises ConfigError as it does, and for a variable that no stage has a use for.
    """
    used: set[str] = set()

    def change(stage: dict[str, Any]) -> dict[str, Any]:
        keys = {name: VARIABLES[name].keys(stage) for name in overrides}
        for name, value in overrides.items():
            for key in keys[name]:
                stage = _with_value(stage, key.split("."), value)
                used.add(name)
        return stage

    stages = load_recipe(path, change)
    for name in overrides:
        if name not in used:
            raise ConfigError(f"{name}: {VARIABLES[name].unused}")
    return stages


def _section(table: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    """A table's table, empty when there is none: what is wrong with it, validation says better."""
    section = table.get(key)
    return section if isinstance(section, dict) else {}


def _with_value(table: Mapping[str, Any], path: list[str], value: object) -> dict[str, Any]:
    first, *rest = path
    return {**table, first: _with_value(_section(table, first), rest, value) if rest else value}
