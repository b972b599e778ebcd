"""One TOML file an experiment, checked key by key."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, ConfigDict, Field, JsonValue, ValidationError, field_validator, model_validator

from model_store.manifest import FaceCropSpec, InputSpec, ModelName, explain_validation
from training.errors import ConfigError

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class NetworkConfig(_Section):
    """Builder and options: see `model_store.networks.BUILDERS`.

    `pretrained` starts the backbone from the weights that timm fetches for the model's name (`timm` family only).
    `init_bundle` starts from a published bundle of the same network (`name:version`), but for a head of another size.
    """

    family: str
    classifier: str
    options: dict[str, JsonValue] = {}
    pretrained: bool = False
    init_bundle: str | None = None


class AugmentConfig(_Section):
    """Random changes to training crops; see `training.augment` for what each does."""

    flip: Probability = 0.5
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: tuple[Positive, Positive] = (1.0, 1.0)
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.0
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    low_resolution: Probability = 0.0
    low_resolution_px: Annotated[int, Field(ge=8)] = 20
    blur: Probability = 0.0
    blur_sigma_px: tuple[Positive, Positive] = (0.4, 1.2)
    jpeg: Probability = 0.0
    jpeg_quality: tuple[Annotated[int, Field(ge=1, le=95)], Annotated[int, Field(ge=1, le=95)]] = (25, 75)
    erase: Probability = 0.0
    erase_area: tuple[Probability, Probability] = (0.02, 0.2)
    mixup: Probability = 0.0
    mixup_alpha: Positive = 0.4
    cutmix: Probability = 0.0
    cutmix_alpha: Positive = 1.0

    @model_validator(mode="after")
    def _ranges_rise(self) -> Self:
        for key in ("scale", "blur_sigma_px", "jpeg_quality", "erase_area"):
            low, high = getattr(self, key)
            if low > high:
                raise ValueError(f"{key}: the first value is over the second")
        if self.mixup + self.cutmix > 1:
            raise ValueError("mixup and cutmix: a batch gets one of them, so together at most 1")
        return self


class DataConfig(_Section):
    """Which labels the faces carry.

    `label` takes the data set's own. The `ferplus` sources take the votes of FER+ for its eight emotions, as in
    Barsoum et al. (2016): see `training.ferplus`.
    """

    labels_from: Literal["label", "ferplus-majority", "ferplus-distribution"] = "label"


class TargetsConfig(_Section):
    """What the network is taught for a face: a blend of its label, of teachers and of annotators' votes.

    `teachers` are published bundles (`name:version`) with the same labels; their mean probability, at
    `temperature`, has the share `teacher_weight`. `votes` has the share of FER+'s annotators, translated to the
    labels (see `training.votes`). The label keeps the rest.
    """

    teachers: tuple[str, ...] = ()
    teacher_weight: Probability = 0.0
    temperature: Positive = 1.0
    votes: Probability = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @model_validator(mode="after")
    def _shares_fit(self) -> Self:
        if self.teacher_weight + self.votes > 1:
            raise ValueError("teacher_weight and votes: together at most 1")
        if bool(self.teachers) != (self.teacher_weight > 0):
            raise ValueError("teachers: needed with a teacher_weight, and only then")
        return self


class LossConfig(_Section):
    """How a wrong answer counts, and how often each face is shown; see `training.losses` and `training.sampling`.

    `class_weights` "balanced" weighs a class by total / (classes × count). `class_balance_beta` is the β of Cui et
    al. (2019). `sampler` "weighted" shows each class equally often.
    """

    kind: Literal["cross-entropy", "focal", "class-balanced-focal"] = "cross-entropy"
    focal_gamma: Annotated[float, Field(ge=0)] = 2.0
    class_balance_beta: Annotated[float, Field(ge=0, lt=1)] = 0.9999
    class_weights: Literal["none", "balanced"] = "none"
    sampler: Literal["shuffled", "weighted"] = "shuffled"


class OptimConfig(_Section):
    """The optimiser, and an average of the weights. `backbone_lr_factor` slows all but the head."""

    epochs: Annotated[int, Field(gt=0)]
    batch_size: Annotated[int, Field(gt=1)]
    max_lr: Positive
    optimizer: Literal["sgd", "adam", "adamw"] = "sgd"
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    weight_decay: Annotated[float, Field(ge=0)] = 5e-4
    backbone_lr_factor: Positive = 1.0
    accumulate: Annotated[int, Field(gt=0)] = 1
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.999
    clip_norm: Positive = 5.0
    precision: Literal["float32", "bfloat16", "float16"] = "float32"


class ScheduleConfig(_Section):
    """How the learning rate moves from step to step; see `training.schedules`.

    `warmup_fraction` and `plateau_fraction` are shares of all steps; `step_size_epochs`, `gamma` and
    `patience_epochs` belong to "step" and "plateau". `early_stop_epochs` ends a run whose validation loss has not
    fallen for so many epochs (0: never).
    """

    kind: Literal["one-cycle", "constant", "step", "plateau", "warmup-plateau-cosine"] = "one-cycle"
    warmup_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    plateau_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.3
    step_size_epochs: Annotated[int, Field(gt=0)] = 7
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    patience_epochs: Annotated[int, Field(ge=0)] = 3
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    early_stop_epochs: Annotated[int, Field(ge=0)] = 0


class FreezeConfig(_Section):
    """Modules that do not learn before `until_epoch` (0 is the first epoch; null: never).

    `modules` are prefixes of parameter names, `blocks.3` say.
    """

    modules: Annotated[tuple[str, ...], Field(min_length=1)]
    until_epoch: Annotated[int, Field(ge=0)] | None = None


class Experiment(_Section):
    """A whole experiment. `labels` are in the order of the network's outputs.

    A file may list `[[stages]]`, each a partial experiment laid over the rest of the file: see `load_recipe`.
    """

    name: ModelName
    seed: Annotated[int, Field(ge=0)] = 0
    labels: Annotated[tuple[str, ...], Field(min_length=2)]
    network: NetworkConfig
    input: InputSpec
    face_crop: FaceCropSpec
    data: DataConfig = DataConfig()
    augment: AugmentConfig = AugmentConfig()
    targets: TargetsConfig = TargetsConfig()
    loss: LossConfig = LossConfig()
    optim: OptimConfig
    schedule: ScheduleConfig = ScheduleConfig()
    freeze: tuple[FreezeConfig, ...] = ()

    @field_validator("labels")
    @classmethod
    def _all_differ(cls, labels: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(labels)) != len(labels):
            raise ValueError("all must differ")
        return labels

    @model_validator(mode="after")
    def _sections_fit(self) -> Self:
        if self.network.pretrained and self.network.family != "timm":
            raise ValueError("network.pretrained: only the timm family has weights to fetch")
        return self

    def sha256(self) -> str:
        """Digest of what determines the weights: everything but `face_crop`, which only serving uses.

        Values that are a key's default are left out, so a key that is added later leaves old digests alone.
        """
        text = self.model_dump_json(exclude={"face_crop"}, exclude_defaults=True)
        return hashlib.sha256(text.encode()).hexdigest()


def load_recipe(path: Path, overrides: Mapping[str, object] | None = None) -> tuple[Experiment, ...]:
    """Read and check a TOML file: the experiments that are run one after the other, one unless it has `[[stages]]`.

    overrides: dotted keys, `optim.epochs` say, and values that stand in every stage instead of the file's.
    Raises ConfigError naming each wrong key by its path.
    """
    try:
        values = tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse_recipe(values, str(path), overrides)


def parse_recipe(
    values: Mapping[str, object], where: str, overrides: Mapping[str, object] | None = None
) -> tuple[Experiment, ...]:
    """Check the values of a TOML file, see `load_recipe`. Raises ConfigError naming each wrong key by its path."""
    base = {key: value for key, value in values.items() if key != "stages"}
    stages = values.get("stages", [{}])
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError(f"{where}: stages: expected one or more [[stages]] tables")
    experiments = []
    for index, stage in enumerate(stages):
        merged = _laid_over(base, stage)
        for key, value in (overrides or {}).items():
            section, _, leaf = key.rpartition(".")
            merged = _laid_over(merged, {section: {leaf: value}} if section else {leaf: value})
        try:
            experiments.append(Experiment.model_validate_json(_as_json(merged)))
        except ValidationError as error:
            place = f"{where}: stages.{index}" if "stages" in values else where
            raise ConfigError(f"{place}: {explain_validation(error)}") from None
    return tuple(experiments)


def _laid_over(base: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `above`, table by table."""
    merged = dict(base)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _laid_over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def _as_json(values: Mapping[str, Any]) -> str:
    """TOML values as JSON, through which pydantic's strict mode takes lists for tuples. Dates become text."""
    return json.dumps(values, default=str)
