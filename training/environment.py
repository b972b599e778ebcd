"""The settings that people know from other training scripts, from the environment or a `.env` file."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from training.errors import ConfigError

KEYS: dict[str, tuple[str, type]] = {
    "LEARNING_RATE": ("optim.max_lr", float),
    "BATCH_SIZE": ("optim.batch_size", int),
    "NUM_EPOCHS": ("optim.epochs", int),
    "OPTIMIZER": ("optim.optimizer", str),
    "LR_STEP_SIZE": ("schedule.step_size_epochs", int),
    "LR_GAMMA": ("schedule.gamma", float),
    "IMAGE_SIZE": ("input.size_px", int),
}
"""Variable → the key of an experiment that it stands for, and its type."""


def overrides_from_environment(
    environment: Mapping[str, str] | None = None, env_file: Path = Path(".env")
) -> dict[str, object]:
    """Dotted keys and values for `load_recipe`; an environment variable wins over the file's line.

    Raises ConfigError naming a variable whose value is no number where one is needed.
    """
    values = _read_env_file(env_file) | dict(os.environ if environment is None else environment)
    overrides: dict[str, object] = {}
    for name, (key, kind) in KEYS.items():
        if values.get(name):
            try:
                overrides[key] = kind(values[name])
            except ValueError:
                raise ConfigError(f"{name}: {values[name]!r} is not a number") from None
    return overrides


def _read_env_file(path: Path) -> dict[str, str]:
    """Lines `NAME=value`; blank lines and comments are skipped, quotes around a value fall away."""
    if not path.is_file():
        return {}
    values = {}
    for line in path.read_text().splitlines():
        name, equals, value = line.strip().partition("=")
        if equals and not name.startswith("#"):
            values[name.removeprefix("export ").strip()] = value.strip().strip("\"'")
    return values
