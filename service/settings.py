"""Every setting of the service, read once from the environment and refused by name when wrong."""

from __future__ import annotations

import functools
import ipaddress
import math
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, field_validator, model_validator
from pydantic_settings import BaseSettings, NoDecode, SettingsConfigDict

from handlers.cores import usable_cores
from handlers.decode import DecodeLimits
from handlers.detection.settings import SMALLEST_MIN_FACE_SIZE_PX, DetectionSettings
from handlers.pipeline import ClassifierPrecision
from model_store.manifest import Tta
from service.jobs.roots import Root, parse_roots

PREFIX = "MIEN_"
WORKER_VARIABLE = f"{PREFIX}WORKER"
"""Not a setting: the supervisor tells each worker its name in it."""
RUNNERS_VARIABLE = f"{PREFIX}RUNNERS"
"""Not a setting: the supervisor's list of the sockets of each runner's workers, JSON by BentoML's service name."""
JOBS_DIR_VARIABLE = f"{PREFIX}JOBS_DIR"
"""The supervisor sets it for its workers where it was left out."""
Probability = Annotated[float, Field(gt=0, lt=1)]
_DETECTION = DetectionSettings()


class SettingsError(Exception):
    """A setting that is wrong; the message names the environment variable."""


class Settings(BaseSettings):
    """The settings. Each field is the environment variable of its name in capitals, with the prefix `MIEN_`."""

    model_config = SettingsConfigDict(env_prefix=PREFIX, frozen=True, extra="ignore", use_attribute_docstrings=True)

    host: str = "127.0.0.1"
    """IP address to bind, or localhost. Anything but loopback needs MIEN_ALLOW_PUBLIC."""

    port: Annotated[int, Field(ge=1, le=65535)] = 3000
    """TCP port of REST, metrics and probes."""

    allow_public: bool = False
    """Bind an address that other machines reach although there are no API keys."""

    state_dir: Path | None = None
    """The only folder that is written: sockets, metrics, temporary files. A private temporary one if left out."""

    api_keys_file: Path | None = None
    """File of API keys, read again when it changes: `NAME KEY SCOPES` a line, see docs/serving.md. Open if left out."""

    scoring_roots: Annotated[tuple[str, ...], NoDecode] = ()
    """Folders and buckets that jobs may read, comma-separated: `/data/photos`, `name=/folder`, `s3://bucket/prefix`."""

    jobs_dir: Path | None = None
    """Folder of the jobs and their results, which replicas may share; `jobs` in MIEN_STATE_DIR if left out."""

    job_workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that work on a job; there are none while there is no job."""

    job_niceness: Annotated[int, Field(ge=0, le=19)] = 19
    """Niceness of the processes that work on jobs: at 19 they take what requests leave, at 0 an equal share."""

    max_jobs: Annotated[int, Field(ge=1, le=100_000)] = 100
    """Jobs that wait or run; one more gets `overloaded` (429)."""

    max_jobs_per_caller: Annotated[int, Field(ge=1, le=100_000)] = 20
    """Of these, jobs of one API key; one more gets `overloaded` (429). Without API keys there is no such bound."""

    max_finished_jobs: Annotated[int, Field(ge=1, le=1_000_000)] = 1000
    """Finished jobs that are kept for one caller, who gets `overloaded` (429) for a new one until some are removed."""

    job_part_size: Annotated[int, Field(ge=1, le=100_000)] = 512
    """About how many files one part of a job's results has; an interruption costs the work on unfinished parts."""

    cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    """Origins whose pages may call the service, comma-separated, or `*`; none if left out."""

    otlp_endpoint: Annotated[str, Field(pattern=r"^https?://")] | None = None
    """Base URL of an OpenTelemetry collector (OTLP over HTTP) that gets traces; none are made if left out."""

    topology: Literal["runners", "inline"] = "runners"
    """`runners`: detector and emotion model in processes of their own; `inline`: both in each API process."""

    models: Annotated[tuple[str, ...], NoDecode, Field(min_length=1)] = ("default",)
    """Emotion models to serve, comma-separated names or name:version of the store; the first answers by default."""

    detector: str = "default"
    """Face detector: a name of the store, `default` or `fake`."""

    engine: Literal["auto", "openvino", "onnxruntime", "torch"] = "auto"
    """Inference engine of both runners: auto, openvino, onnxruntime or torch."""

    precision: ClassifierPrecision = "auto"
    """Precision of the emotion models: fp32, int8, or auto, which is int8 where the model and the engine have it."""

    min_face_size_px: Annotated[int, Field(ge=SMALLEST_MIN_FACE_SIZE_PX, le=10_000)] = _DETECTION.min_face_size_px
    """Smallest face looked for unless the request says otherwise; larger is faster, see docs/detection.md."""

    detection_thresholds: Annotated[tuple[Probability, Probability, Probability], NoDecode] = _DETECTION.thresholds
    """Least face probability that P-Net, R-Net and O-Net let pass, three numbers with commas."""

    detection_max_side_px: Annotated[int, Field(ge=64, le=65_535)] = _DETECTION.max_side_px
    """Pictures with a longer side are searched as if they were shrunk to this."""

    threads: Annotated[int, Field(ge=1, le=64)] = 1
    """Compute threads of one inference call in each runner process."""

    tta: Tta = "none"
    """Test-time augmentation: `flip` averages each face with its mirror image, a little better at twice the cost."""

    api_workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that speak HTTP."""

    detector_workers: Annotated[int, Field(ge=0, le=64)] = 0
    """Processes that detect faces; 0: one a usable processor core, four at most."""

    emotion_workers: Annotated[int, Field(ge=1, le=64)] = 1
    """Processes that classify faces."""

    detector_batch_size: Annotated[int, Field(ge=2, le=256)] = 4
    """Most pictures in one adaptive batch of the detector."""

    emotion_batch_size: Annotated[int, Field(ge=2, le=1024)] = 64
    """Most faces in one adaptive batch of the emotion model."""

    batch_latency_ms: Annotated[int, Field(ge=100, le=60_000)] = 10_000
    """Longest wait that adaptive batching may plan for before it sheds load with 503; a bound, not a delay."""

    timeout_s: Annotated[float, Field(gt=0, le=600)] = 30.0
    """Longest time for one request; then it gets `timeout` (504). A request may ask for less: X-Request-Timeout-Ms."""

    concurrency: Annotated[int, Field(ge=0, le=4096)] = 0
    """Pictures that one API process has in work at once; 0: eight for each detector process, shared by the API's."""

    queue_size: Annotated[int, Field(ge=0, le=4096)] = 64
    """Pictures that wait in one API process for their turn; one more gets `overloaded` (429)."""

    queue_timeout_ms: Annotated[int, Field(ge=1, le=600_000)] = 2_000
    """Longest wait, in the queue and for the runners; who waited or would wait longer gets `overloaded` (429)."""

    max_pending_bytes: Annotated[int, Field(ge=1024)] = 256 * 1024 * 1024
    """Most bytes of request bodies that one API process holds at once; one more request gets `overloaded` (429)."""

    readiness_interval_s: Annotated[float, Field(gt=0, le=600)] = 5.0
    """When no picture got through for this long, a small one of ours is sent, and /readyz says what became of it."""

    grace_s: Annotated[float, Field(gt=0, le=600)] = 25.0
    """At SIGTERM: longest time for the requests under way; then processes are killed."""

    max_files: Annotated[int, Field(ge=1, le=1024)] = 32
    """Most pictures in one request of the batch doors."""

    max_request_bytes: Annotated[int, Field(ge=1024)] = 64 * 1024 * 1024
    """Largest body of a request with several pictures."""

    max_header_bytes: Annotated[int, Field(ge=1024, le=65_536)] = 16 * 1024
    """Most bytes of a request's headers and address together."""

    max_image_bytes: Annotated[int, Field(ge=1024)] = DecodeLimits().max_bytes
    """Largest image file accepted."""

    max_image_pixels: Annotated[int, Field(ge=1, le=80_000_000)] = DecodeLimits().max_pixels
    """Most pixels of a picture, width times height."""

    max_image_side_px: Annotated[int, Field(ge=1, le=65_535)] = DecodeLimits().max_side_px
    """Longest side of a picture."""

    log_level: Literal["debug", "info", "warning", "error"] = "info"
    """Least severe log line that is written."""

    @field_validator("detection_thresholds", mode="before")
    @classmethod
    def _split_thresholds(cls, thresholds: object) -> object:
        return tuple(part.strip() for part in thresholds.split(",")) if isinstance(thresholds, str) else thresholds

    @field_validator("cors_origins", "models", "scoring_roots", mode="before")
    @classmethod
    def _split_names(cls, names: object) -> object:
        return tuple(part.strip() for part in names.split(",") if part.strip()) if isinstance(names, str) else names

    @field_validator("scoring_roots")
    @classmethod
    def _roots_are_roots(cls, texts: tuple[str, ...]) -> tuple[str, ...]:
        parse_roots(texts)
        return texts

    @field_validator("host")
    @classmethod
    def _numeric_host(cls, host: str) -> str:
        # BentoML takes no names.
        return str(ipaddress.ip_address("127.0.0.1" if host == "localhost" else host))

    @model_validator(mode="after")
    def _public_only_when_told(self) -> Self:
        protected = self.api_keys_file is not None or self.allow_public
        if not protected and not ipaddress.ip_address(self.host).is_loopback:
            raise ValueError(
                f"{PREFIX}HOST: {self.host} is reached by other machines; set {PREFIX}API_KEYS_FILE, or "
                f"{PREFIX}ALLOW_PUBLIC=true to allow it without keys"
            )
        return self

    @property
    def roots(self) -> tuple[Root, ...]:
        """Where jobs may read, `scoring_roots` parsed."""
        return parse_roots(self.scoring_roots)

    @property
    def n_detector_workers(self) -> int:
        """Detector processes, `detector_workers` resolved."""
        return self.detector_workers or min(usable_cores(), 4)

    @property
    def n_concurrent(self) -> int:
        """Pictures in work at once in one API process, `concurrency` resolved."""
        if self.concurrency:
            return self.concurrency
        working = self.api_workers if self.topology == "inline" else self.n_detector_workers
        return math.ceil(8 * working / self.api_workers)

    @property
    def detection(self) -> DetectionSettings:
        """How faces are looked for."""
        return DetectionSettings(
            min_face_size_px=self.min_face_size_px,
            thresholds=self.detection_thresholds,
            max_side_px=self.detection_max_side_px,
        )

    @property
    def limits(self) -> DecodeLimits:
        """What a picture may cost, for the decoder."""
        return DecodeLimits(self.max_image_bytes, self.max_image_pixels, self.max_image_side_px)


@functools.lru_cache(maxsize=1)
def get_settings() -> Settings:
    """The process's settings. Raises SettingsError that names every wrong environment variable."""
    try:
        return Settings()
    except ValidationError as error:
        raise SettingsError(_by_variable(error)) from None


def _by_variable(error: ValidationError) -> str:
    problems = [
        f"{PREFIX}{str(item['loc'][0]).upper()}: {item['msg']}"
        if item["loc"]
        else item["msg"].removeprefix("Value error, ")
        for item in error.errors(include_url=False, include_context=False, include_input=False)
    ]
    return "; ".join(problems)
