"""Everything that the results of a run depend on besides the pictures, resolved once and the same in every process."""

from __future__ import annotations

import hashlib
import json
from dataclasses import asdict, dataclass, field
from typing import Literal

from handlers.decode import DecodeLimits
from handlers.detection.settings import DetectionSettings
from handlers.engines import choose_engine
from handlers.errors import ModelUnavailableError
from handlers.pipeline import (
    DEFAULT,
    FAKE,
    ClassifierPrecision,
    Pipeline,
    describe_classifier,
    load_classifier,
    load_detector,
    resolve_precision,
)
from model_store import registry
from model_store.errors import ModelStoreError
from model_store.manifest import EmotionManifest, Tta

Format = Literal["parquet", "csv", "jsonl"]
FORMATS: tuple[Format, ...] = ("parquet", "csv", "jsonl")
PART_SIZE = 512

_ROWS_VERSION = 1
"""Raised when the same pictures and models give other rows than before: parts of an older Mien are then scored anew."""


@dataclass(frozen=True)
class RunConfig:
    """Tags are `name:version`, digests are SHA-256 of the bundles' manifests (`fake` for the fakes)."""

    model: str
    model_digest: str
    labels: tuple[str, ...]
    detector: str
    detector_digest: str
    runtime: str
    precision: ClassifierPrecision
    tta: Tta = "none"
    limits: DecodeLimits = field(default_factory=DecodeLimits)
    detection: DetectionSettings = field(default_factory=DetectionSettings)
    format: Format = "parquet"
    part_size: int = PART_SIZE

    @property
    def fingerprint(self) -> str:
        """Changes when any field does."""
        text = json.dumps([_ROWS_VERSION, asdict(self)], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()

    def load_pipeline(self) -> Pipeline:
        """The pipeline that makes these results, single-threaded.

        Raises HandlerError, also when another model of the same name and version is registered here.
        """
        _check_registered(self.model, self.model_digest)
        _check_registered(self.detector, self.detector_digest)
        detector = FAKE if self.detector_digest == FAKE else self.detector
        model = FAKE if self.model_digest == FAKE else self.model
        return Pipeline(
            load_detector(detector, self.runtime, settings=self.detection),
            load_classifier(model, self.runtime, tta=self.tta, precision=self.precision),
            self.limits,
            self.detection.min_face_size_px,
        )


def _check_registered(tag: str, digest: str) -> None:
    if digest == FAKE:
        return
    try:
        found = registry.load(tag).bundle.sha256
    except ModelStoreError as error:
        raise ModelUnavailableError(str(error)) from error
    if found != digest:
        raise ModelUnavailableError(f"the {tag} registered here is not the one that the run was started with")


def resolve_config(
    model: str = DEFAULT,
    *,
    runtime: str = "auto",
    precision: ClassifierPrecision = "auto",
    tta: Tta = "none",
    limits: DecodeLimits | None = None,
    detection: DetectionSettings | None = None,
    format: Format = "parquet",
    part_size: int = PART_SIZE,
) -> RunConfig:
    """Look the models up and settle every `auto`. The arguments are those of `handlers.load_pipeline`.

    Raises ModelUnavailableError or EngineUnavailableError.
    """
    limits, detection = limits or DecodeLimits(), detection or DetectionSettings()
    spec = describe_classifier(model)
    if not isinstance(spec, EmotionManifest):
        return RunConfig(
            spec.tag, FAKE, spec.labels, spec.tag, FAKE, FAKE, "fp32", "none", limits, detection, format, part_size
        )
    chosen = choose_engine(runtime)
    try:
        digest = registry.load(spec.tag).bundle.sha256
        detector = registry.load_default("face-detection")
    except ModelStoreError as error:
        raise ModelUnavailableError(str(error)) from error
    return RunConfig(
        spec.tag,
        digest,
        spec.labels,
        detector.manifest.tag,
        detector.bundle.sha256,
        chosen.name,
        resolve_precision(spec, chosen.name, precision),
        tta,
        limits,
        detection,
        format,
        part_size,
    )
