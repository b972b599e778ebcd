"""One TOML file an experiment, checked key by key."""

from __future__ import annotations

import hashlib
import json
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AfterValidator,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    field_validator,
)

from model_store.manifest import FaceCropSpec, InputSpec, ModelName
from training.errors import ConfigError
from training.ferplus import LabelsFrom

Probability = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Quality = Annotated[int, Field(ge=1, le=95)]


def _rising(values: tuple[float, float]) -> tuple[float, float]:
    if values[0] > values[1]:
        raise ValueError("the first value is over the second")
    return values


_Rises = AfterValidator(_rising)


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, strict=True)


class NetworkConfig(_Section):
    """Builder and options: see `model_store.networks.BUILDERS`.

    `pretrained` starts the backbone from the weights that timm fetches for the model's name (`timm` family only).
    `init_bundle` starts from a published bundle of the same network (`name:version`), but for a head of another size;
    a network has one start, so it takes no `pretrained`. In `[[stages]]` it belongs to the stage that names it, or to
    the first. `init_stages` starts a stage from the mean of the best weights of these stages before it, by number;
    0 is the bundle that the first stage started from. `fresh_weights` says how a network that starts from nothing is
    drawn: "builder" as its library does, "small" see `training.fresh_weights`.
    """

    family: str
    classifier: str
    options: dict[str, JsonValue] = {}
    pretrained: bool = False
    init_bundle: str | None = None
    init_stages: tuple[Annotated[int, Field(ge=0)], ...] = ()
    fresh_weights: Literal["builder", "small"] = "builder"

    @field_validator("pretrained")
    @classmethod
    def _only_timm_has_weights(cls, pretrained: bool, info: ValidationInfo) -> bool:
        if pretrained and info.data.get("family") != "timm":
            raise ValueError("only the timm family has weights to fetch")
        return pretrained

    @field_validator("fresh_weights")
    @classmethod
    def _are_not_fetched(cls, fresh_weights: str, info: ValidationInfo) -> str:
        if fresh_weights != "builder" and info.data.get("pretrained"):
            raise ValueError("not together with pretrained = true")
        return fresh_weights

    @field_validator("init_bundle")
    @classmethod
    def _is_the_only_start(cls, init_bundle: str | None, info: ValidationInfo) -> str | None:
        if init_bundle is not None and info.data.get("pretrained"):
            raise ValueError("not together with pretrained = true")
        return init_bundle

    @field_validator("init_stages")
    @classmethod
    def _are_several(cls, init_stages: tuple[int, ...], info: ValidationInfo) -> tuple[int, ...]:
        if init_stages and len(set(init_stages)) != len(init_stages):
            raise ValueError("each stage counts once")
        if init_stages and info.data.get("init_bundle") is not None:
            raise ValueError("not together with init_bundle: a stage has one start")
        return init_stages


class AugmentConfig(_Section):
    """Random changes to training crops; see `training.augment` for what each does.

    Cropping and resizing is `scale` with `shift`: a crop window of random size and place, brought back to the
    network's size. What would lie outside the picture repeats its edge.
    """

    flip: Probability = 0.5
    rotate_deg: Annotated[float, Field(ge=0, le=180)] = 0.0
    scale: Annotated[tuple[Positive, Positive], _Rises] = (1.0, 1.0)
    shift: Annotated[float, Field(ge=0, lt=1)] = 0.0
    brightness: Annotated[float, Field(ge=0, lt=1)] = 0.0
    contrast: Annotated[float, Field(ge=0, lt=1)] = 0.0
    low_resolution: Probability = 0.0
    low_resolution_px: Annotated[int, Field(ge=8)] = 20
    blur: Probability = 0.0
    blur_sigma_px: Annotated[tuple[Positive, Positive], _Rises] = (0.4, 1.2)
    jpeg: Probability = 0.0
    jpeg_quality: Annotated[tuple[Quality, Quality], _Rises] = (25, 75)
    erase: Probability = 0.0
    erase_area: Annotated[tuple[Probability, Probability], _Rises] = (0.02, 0.2)
    mixup: Probability = 0.0
    mixup_alpha: Positive = 0.4
    cutmix: Probability = 0.0
    cutmix_alpha: Positive = 1.0

    @field_validator("cutmix")
    @classmethod
    def _leaves_room_for_mixup(cls, cutmix: float, info: ValidationInfo) -> float:
        if cutmix + info.data.get("mixup", 0.0) > 1:
            raise ValueError("a batch gets mixup or cutmix, so together they are at most 1")
        return cutmix


class DataConfig(_Section):
    """Which labels the faces carry.

    `label` takes the data set's own. The `ferplus` sources take the votes of FER+ for its eight emotions, as in
    Barsoum et al. (2016): see `training.ferplus`.
    """

    labels_from: LabelsFrom = "label"


class TargetsConfig(_Section):
    """What the network is taught for a face: a blend of its label, of teachers and of annotators' votes.

    `teachers` are published bundles (`name:version`) with the same labels; their mean probability, at
    `temperature`, has the share `teacher_weight`. `votes` has the share of FER+'s annotators, translated to the
    labels (see `training.votes`). The label keeps the rest.
    """

    teachers: tuple[str, ...] = ()
    teacher_weight: Annotated[Probability, Field(validate_default=True)] = 0.0
    temperature: Positive = 1.0
    votes: Probability = 0.0
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0

    @field_validator("teacher_weight")
    @classmethod
    def _comes_with_teachers(cls, teacher_weight: float, info: ValidationInfo) -> float:
        if "teachers" in info.data and bool(info.data["teachers"]) != (teacher_weight > 0):
            raise ValueError("over 0 with teachers, and only then")
        return teacher_weight

    @field_validator("votes")
    @classmethod
    def _leave_room_for_teachers(cls, votes: float, info: ValidationInfo) -> float:
        if votes + info.data.get("teacher_weight", 0.0) > 1:
            raise ValueError("together with teacher_weight at most 1")
        return votes


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
    """The optimiser, and an average of the weights. `backbone_lr_factor` slows all but the head.

    `batch_size` faces make a batch, on all processes together; `accumulate` batches make a step of the optimiser.
    `momentum` belongs to sgd, which is Nesterov's. `weight_decay` is decoupled from the gradient in adamw only.
    """

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
    plateau_fraction: Annotated[float, Field(ge=0, lt=1, validate_default=True)] = 0.3
    step_size_epochs: Annotated[int, Field(gt=0)] = 7
    gamma: Annotated[float, Field(gt=0, le=1)] = 0.1
    patience_epochs: Annotated[int, Field(ge=0)] = 3
    min_lr: Annotated[float, Field(ge=0)] = 0.0
    early_stop_epochs: Annotated[int, Field(ge=0)] = 0

    @field_validator("plateau_fraction")
    @classmethod
    def _leaves_steps_for_the_cosine(cls, plateau_fraction: float, info: ValidationInfo) -> float:
        kind, warmup = info.data.get("kind"), info.data.get("warmup_fraction", 0.0)
        if kind == "warmup-plateau-cosine" and warmup + plateau_fraction >= 1:
            raise ValueError("together with warmup_fraction under 1")
        return plateau_fraction


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

    def sha256(self) -> str:
        """Digest of what determines the weights: everything but `face_crop`, which only serving uses.

        Values that are a key's default are left out, so a key that is added later leaves old digests alone.
        """
        text = self.model_dump_json(exclude={"face_crop"}, exclude_defaults=True)
        return hashlib.sha256(text.encode()).hexdigest()


Change = Callable[[dict[str, Any]], dict[str, Any]]
"""The values of one stage, as its file has them → the values that are checked."""


def load_recipe(path: Path, change: Change | None = None) -> tuple[Experiment, ...]:
    """Read and check a TOML file: the experiments that are run one after the other, one unless it has `[[stages]]`.

    change: applied to the values of every stage, see `training.environment`.
    Raises ConfigError naming each wrong key by its path.
    """
    try:
        values = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError(f"{path}: {error.strerror}") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: {error}") from None
    return parse_recipe(values, str(path), change)


def parse_recipe(values: Mapping[str, Any], where: str, change: Change | None = None) -> tuple[Experiment, ...]:
    """Check the values of a TOML file, see `load_recipe`. Raises ConfigError naming each wrong key by its path.

    A key that a stage has itself is named `stages.1.optim.epochs`, 0 is the first; one of the whole file without.
    All stages have the same `labels` and `data`: the faces are read and labelled once.
    """
    base = {key: value for key, value in values.items() if key != "stages"}
    stages = values.get("stages", [{}])
    if not isinstance(stages, list) or not stages or not all(isinstance(stage, dict) for stage in stages):
        raise ConfigError(f"{where}: stages: expected one or more [[stages]] tables")
    experiments, problems = [], []
    for index, stage in enumerate(stages):
        merged = _laid_over(base, stage)
        if index and not _holds(stage, ("network", "init_bundle")) and isinstance(merged.get("network"), dict):
            merged["network"] = {key: value for key, value in merged["network"].items() if key != "init_bundle"}
        if change is not None:
            merged = change(merged)
        try:
            experiments.append(Experiment.model_validate_json(_as_json(merged)))
        except ValidationError as error:
            for item in error.errors(include_url=False, include_context=False, include_input=False):
                prefix = f"stages.{index}." if _holds(stage, item["loc"]) else ""
                path = ".".join(str(part) for part in item["loc"])
                problems.append(f"{prefix}{path}: {item['msg'].removeprefix('Value error, ')}")
    if not problems:
        problems = [
            f"stages.{index}.{key}: not the first stage's; the faces are read and labelled once for all stages"
            for index, experiment in enumerate(experiments)
            for key in ("labels", "data")
            if getattr(experiment, key) != getattr(experiments[0], key)
        ]
        problems += [
            f"stages.{index}.network.init_stages: there is no stage {number} before this one"
            for index, experiment in enumerate(experiments)
            for number in experiment.network.init_stages
            if number > index or (number == 0 and (index == 0 or experiments[0].network.init_bundle is None))
        ]
    if problems:
        raise ConfigError(f"{where}: {'; '.join(dict.fromkeys(problems))}")
    return tuple(experiments)


def _laid_over(base: Mapping[str, Any], above: Mapping[str, Any]) -> dict[str, Any]:
    """`base` with the values of `above`, table by table."""
    merged = dict(base)
    for key, value in above.items():
        under = merged.get(key)
        merged[key] = _laid_over(under, value) if isinstance(under, dict) and isinstance(value, dict) else value
    return merged


def _holds(table: object, path: Sequence[int | str]) -> bool:
    """Whether the table itself has the key at the path; an item of a list belongs to who has the list."""
    for part in path:
        if not isinstance(table, dict):
            return True
        if part not in table:
            return False
        table = table[part]
    return True


def _as_json(values: Mapping[str, Any]) -> str:
    """TOML values as JSON, through which pydantic's strict mode takes lists for tuples. Dates become text."""
    return json.dumps(values, default=str)
