"""The manifest: the one frozen, versioned record of everything that serving must know of a model."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import (
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    TypeAdapter,
    ValidationError,
    model_validator,
)

from model_store.errors import LabelMismatchError, ManifestError

SCHEMA_VERSION = 1
MANIFEST_NAME = "manifest.json"
WEIGHTS_NAME = "model.safetensors"
INT8_NAME = "model.int8.onnx"
CARD_NAME = "MODEL_CARD.md"

MAX_INT8_ACCURACY_LOSS = 0.003
"""The accuracy gate: how much less than the fp32 network the int8 network may score on the same faces."""

TASKS = ("face-detection", "emotion-classification")

Tta = Literal["none", "flip"]
Fraction = Annotated[float, Field(ge=0, le=1)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
ModelName = Annotated[str, Field(pattern=r"^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$")]
ModelVersion = Annotated[str, Field(pattern=r"^(0|[1-9][0-9]{0,5})(\.(0|[1-9][0-9]{0,5})){2}$")]


# A Literal would take true and 1.0 for 1.
SchemaVersion = Annotated[int, Field(ge=SCHEMA_VERSION, le=SCHEMA_VERSION)]


class Record(BaseModel):
    """A frozen record that refuses unknown keys, missing keys, NaN and quiet type conversion."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)


class FileRecord(Record):
    """Size in bytes and sha256 of one file of the bundle."""

    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Sha256


class Architecture(Record):
    """Which network the weights belong to.

    `family` is a key of `model_store.networks.BUILDERS`, `options` are the builder's keyword arguments, and
    `classifier` names the weight tensor whose first dimension counts the classes (null for a detector).
    """

    family: str
    options: dict[str, JsonValue]
    classifier: str | None


class InputSpec(Record):
    """How a face crop becomes a network input: resized to a square, scaled to 0..1, then (x - mean) / std by channel.

    With one channel the crop is first made grey by ITU-R 601 luma; with three it stays RGB.
    """

    size_px: Annotated[int, Field(ge=8, le=1024)]
    channels: Literal[1, 3]
    mean: tuple[float, ...]
    std: tuple[Annotated[float, Field(gt=0)], ...]
    interpolation: Literal["bilinear", "bicubic", "lanczos"]

    @model_validator(mode="after")
    def _one_value_a_channel(self) -> Self:
        for key in ("mean", "std"):
            if len(getattr(self, key)) != self.channels:
                raise ValueError(f"{key} has {len(getattr(self, key))} values for {self.channels} channels")
        return self


class FaceCropSpec(Record):
    """The square that is cut out of the photograph, relative to the detector's box.

    The side is `scale` times the longer side of the box. The centre is the box's centre moved by `shift_x` and
    `shift_y` times that longer side (right and down positive). Pixels outside the photograph repeat its edge.
    """

    scale: Annotated[float, Field(gt=0.2, lt=5)]
    shift_x: Annotated[float, Field(gt=-1, lt=1)]
    shift_y: Annotated[float, Field(gt=-1, lt=1)]
    alignment: Literal["none"]


class ClassMetrics(Record):
    """Precision, recall and F1 of one label, and how many samples carry it."""

    precision: Fraction
    recall: Fraction
    f1: Fraction
    n: Annotated[int, Field(ge=0)]


class Evaluation(Record):
    """Scores on one split, with the test-time augmentation stated."""

    split: str
    tta: Tta
    n: Annotated[int, Field(gt=0)]
    accuracy: Fraction
    macro_f1: Fraction
    ece_uncalibrated: Fraction
    ece: Fraction
    per_class: dict[str, ClassMetrics]


class TrainingRecord(Record):
    """Where the weights come from: the recipe's command and the digests of its config and data.

    `provenance` are lines `what: how` for the card, see `training.provenance`.
    """

    command: str
    config_sha256: Sha256
    data_sha256: Sha256
    note: str
    provenance: tuple[str, ...] = ()


class CalibrationRecord(Record):
    """The training faces that the ranges of the int8 activations were read off, and how.

    `data_sha256` is the digest of these `n` faces alone, drawn from `split`.
    """

    split: str
    n: Annotated[int, Field(gt=0)]
    data_sha256: Sha256
    method: str


class Int8Record(Record):
    """The quantised network in `model.int8.onnx`: made by which command and quantiser, calibrated on what, its scores.

    The network takes and gives what the fp32 network does (float32 in, logits out), and has the same temperature.
    `float_layers` are the nodes of the ONNX graph that were left in float beside its first convolution and its last
    linear layer, the most sensitive first.
    """

    command: str
    quantiser: str
    calibration: CalibrationRecord
    evaluations: Annotated[tuple[Evaluation, ...], Field(min_length=1)]
    float_layers: tuple[str, ...] = ()


class BaseManifest(Record):
    """What every model has, whatever its task."""

    schema_version: SchemaVersion
    name: ModelName
    version: ModelVersion
    architecture: Architecture
    licence: str
    source: str
    files: dict[str, FileRecord]

    @model_validator(mode="after")
    def _files_are_plain_names(self) -> Self:
        for name in self.files:
            if "/" in name or "\\" in name or name.startswith(".") or name == MANIFEST_NAME:
                raise ValueError(f"files: {name!r} is not a plain file name")
        if WEIGHTS_NAME not in self.files:
            raise ValueError(f"files: {WEIGHTS_NAME} is missing")
        return self

    @property
    def tag(self) -> str:
        """`name:version`, as the BentoML store writes it."""
        return f"{self.name}:{self.version}"


class DetectionManifest(BaseManifest):
    """A face detector: a cascade of networks in one weights file, told apart by the prefix of their tensors."""

    task: Literal["face-detection"]
    weights_source: dict[str, FileRecord]


class EmotionManifest(BaseManifest):
    """An emotion classifier. `int8` is null in a bundle that carries no quantised network."""

    task: Literal["emotion-classification"]
    labels: tuple[Annotated[str, Field(min_length=1)], ...]
    input: InputSpec
    face_crop: FaceCropSpec
    temperature: Annotated[float, Field(gt=0)]
    evaluations: tuple[Evaluation, ...]
    training: TrainingRecord
    int8: Int8Record | None = None

    @model_validator(mode="after")
    def _labels_and_scores_fit(self) -> Self:
        if len(self.labels) < 2 or len(set(self.labels)) != len(self.labels):
            raise ValueError("labels: at least two, all different")
        if self.architecture.classifier is None:
            raise ValueError("architecture.classifier: an emotion classifier must name its last weight tensor")
        for index, evaluation in enumerate(self.evaluations):
            if set(evaluation.per_class) != set(self.labels):
                raise ValueError(f"evaluations.{index}.per_class: the keys are not the labels")
        return self

    @model_validator(mode="after")
    def _int8_passes_the_gate(self) -> Self:
        if self.int8 is None:
            if INT8_NAME in self.files:
                raise ValueError(f"int8: missing, but files has {INT8_NAME}")
            return self
        if INT8_NAME not in self.files:
            raise ValueError(f"files: {INT8_NAME} is missing, which int8 describes")
        on_faces, int8_on_faces = (
            [(scores.split, scores.tta, scores.n) for scores in evaluations]
            for evaluations in (self.evaluations, self.int8.evaluations)
        )
        if on_faces != int8_on_faces:
            raise ValueError("int8.evaluations: not those of evaluations, with the same split, tta and n in turn")
        for index, (fp32, int8) in enumerate(zip(self.evaluations, self.int8.evaluations, strict=True)):
            where = f"int8.evaluations.{index}"
            if set(int8.per_class) != set(self.labels):
                raise ValueError(f"{where}.per_class: the keys are not the labels")
            if int8.accuracy < round(fp32.accuracy - MAX_INT8_ACCURACY_LOSS, 5):
                raise ValueError(
                    f"{where}.accuracy: {int8.accuracy} is more than {MAX_INT8_ACCURACY_LOSS} below the fp32 network's "
                    f"{fp32.accuracy} (split {int8.split}, tta {int8.tta})"
                )
        return self

    def check_outputs(self, n_outputs: int) -> None:
        """Raise LabelMismatchError unless there is one label for each of the classifier's `n_outputs`."""
        if n_outputs != len(self.labels):
            raise LabelMismatchError(f"{self.tag}: {len(self.labels)} labels for a classifier with {n_outputs} outputs")


Manifest = Annotated[DetectionManifest | EmotionManifest, Field(discriminator="task")]
_ADAPTER: TypeAdapter[DetectionManifest | EmotionManifest] = TypeAdapter(Manifest)


def parse_manifest(text: str | bytes, where: str = MANIFEST_NAME) -> DetectionManifest | EmotionManifest:
    """Read a manifest from JSON text.

    Raises ManifestError with a line `path: what is wrong` for every key that is unknown, missing or of another type.
    """
    try:
        return _ADAPTER.validate_json(text)
    except ValidationError as error:
        raise ManifestError(f"{where}: {explain_validation(error)}") from None


def read_manifest(path: Path) -> DetectionManifest | EmotionManifest:
    """Read the manifest file at `path`. Raises ManifestError when it is absent or does not follow the schema."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise ManifestError(f"{path}: {error.strerror}") from None
    return parse_manifest(text, str(path))


def dump_manifest(manifest: BaseManifest) -> str:
    """The manifest as the JSON text that `parse_manifest` reads; equal manifests give equal bytes.

    An optional record that is absent is not written, so a manifest from before that record keeps its digest.
    """
    return manifest.model_dump_json(indent=2, exclude_defaults=True) + "\n"


def explain_validation(error: ValidationError) -> str:
    """Every problem of a pydantic validation as `key.path: message`, joined by `; `."""
    problems = []
    for item in error.errors(include_url=False, include_context=False, include_input=False):
        path = ".".join(str(part) for part in item["loc"]) or "(whole)"
        problems.append(f"{path}: {item['msg']}")
    return "; ".join(problems)
