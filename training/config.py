"""One TOML file an experiment, checked key by key."""

from __future__ import annotations

import hashlib
import tomllib
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator

from model_store.manifest import FaceCropSpec, InputSpec, ModelName, explain_validation
from training.errors import ConfigError

Probability = Annotated[float, Field(ge=0, le=1)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)


class NetworkConfig(_Section):
    """Builder and options: see `model_store.networks.BUILDERS`."""

    family: str
    classifier: str
    options: dict[str, JsonValue] = {}


class AugmentConfig(_Section):
    """Random changes to training crops; see `training.augment` for what each does."""

    flip: Probability = 0.5
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: tuple[Annotated[float, Field(gt=0)], Annotated[float, Field(gt=0)]] = (1.0, 1.0)
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.0
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    low_resolution: Probability = 0.0
    low_resolution_px: Annotated[int, Field(ge=8)] = 20
    erase: Probability = 0.0
    erase_area: tuple[Probability, Probability] = (0.02, 0.2)
    mixup: Probability = 0.0
    mixup_alpha: Annotated[float, Field(gt=0)] = 0.4


class OptimConfig(_Section):
    """SGD with Nesterov momentum on a one-cycle schedule (Smith and Topin, 2018), and an average of the weights."""

    epochs: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=1)]
    max_lr: Annotated[float, Field(gt=0)]
    warmup_fraction: Annotated[float, Field(gt=0, lt=1)] = 0.25
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    clip_norm: Annotated[float, Field(gt=0)] = 5.0
    precision: Literal["float32", "bfloat16"] = "float32"


class Experiment(_Section):
    """A whole experiment. `labels` are in the order of the network's outputs."""

    name: ModelName
    seed: Annotated[int, Field(ge=0)] = 0
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    network: NetworkConfig
    input: InputSpec
    face_crop: FaceCropSpec
    augment: AugmentConfig
    optim: OptimConfig

    @field_validator("labels")
    @classmethod
    def _all_differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("all must differ")
        return labels

    def sha256(self) -> str:
        """Digest of what determines the weights: everything but `face_crop`, which only serving uses."""
        text = self.model_dump_json(exclude={"face_crop"})
        return hashlib.sha256(text.encode()).hexdigest()


def load_experiment(path: Path) -> Experiment:
    """Read and check a TOML file. Raises ConfigError naming each wrong key by its path."""
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse_experiment(values, str(path))


def parse_experiment(values: dict[str, object], where: str) -> Experiment:
    """Check the values of a TOML file. Raises ConfigError naming each wrong key by its path."""
    try:
        return Experiment.model_validate(values, strict=False)
    except ValidationError as error:
        raise ConfigError(f"{where}: {explain_validation(error)}") from None
