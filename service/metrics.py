"""Prometheus metrics of every process of the service, merged by `render`. docs/metrics.md says what each is for.

Labels come from closed sets only: route templates, codes, stages, served models, emotions. Whoever sets the environment
variable PROMETHEUS_MULTIPROC_DIR must do so before this module is imported, as prometheus_client decides then where
values live.
"""

from __future__ import annotations

import os

from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest, values
from prometheus_client.exposition import CONTENT_TYPE_PLAIN_0_0_4
from prometheus_client.multiprocess import MultiProcessCollector

from service.settings import WORKER_VARIABLE

FOLDER_VARIABLE = "PROMETHEUS_MULTIPROC_DIR"

if os.environ.get(FOLDER_VARIABLE) and (_worker := os.environ.get(WORKER_VARIABLE)):
    # By default a file is named after a process, so every restart would leave some for ever.
    values.ValueClass = values.MultiProcessValue(lambda: _worker)  # type: ignore[no-untyped-call]

STAGES = (
    "queue",
    "detect_call",
    "detect_wait",
    "decode",
    "detect",
    "classify_call",
    "classify_wait",
    "classify",
)
_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30)
_BATCH = (1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024)

REQUESTS = Counter("mien_requests_total", "Requests by route template and result code", ("route", "code"))
REQUEST_SECONDS = Histogram(
    "mien_request_seconds", "Seconds from a request's headers to the end of its answer", ("route",), buckets=_SECONDS
)
STAGE_SECONDS = Histogram(
    "mien_stage_seconds", "Seconds of a stage of the way of a request", ("stage",), buckets=_SECONDS
)
BATCH_PICTURES = Histogram("mien_batch_pictures", "Pictures in one batch of the detector", buckets=_BATCH)
BATCH_FACES = Histogram("mien_batch_faces", "Faces in one batch of the emotion model", buckets=_BATCH)
FACES_PER_PICTURE = Histogram(
    "mien_faces_per_picture", "Faces found in a picture", buckets=(0, 1, 2, 3, 5, 8, 13, 21, 34, 55)
)
PREDICTIONS = Counter("mien_predictions_total", "Faces by model and emotion called", ("model", "emotion"))
CONFIDENCE = Histogram(
    "mien_prediction_confidence",
    "Calibrated probability of the emotion called",
    ("model",),
    buckets=(0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0),
)
REJECTIONS = Counter("mien_rejections_total", "Requests turned away, by problem code", ("reason",))
RUNNER_RETRIES = Counter(
    "mien_runner_retries_total", "Calls to a runner sent again after a lost connection", ("stage",)
)
IN_PROGRESS = Gauge("mien_pictures_in_progress", "Pictures in work now", multiprocess_mode="livesum")
QUEUED = Gauge("mien_pictures_queued", "Pictures that wait for their turn now", multiprocess_mode="livesum")
READY = Gauge("mien_ready", "1 if the last picture got through both stages, else 0", multiprocess_mode="livemin")
# Every process that imports this has a value, the runners too, who never set theirs: theirs must not be the least.
READY.set(1)
MODEL_INFO = Gauge(
    "mien_model_info",
    "1 for each model served",
    ("model", "task", "sha256", "architecture"),
    multiprocess_mode="max",
)
JOBS = Gauge("mien_jobs", "Jobs in the folder of jobs, by state", ("state",), multiprocess_mode="livemostrecent")
JOB_FILES = Counter("mien_job_files_total", "Files that jobs scored, by what became of them", ("status",))
JOB_SECONDS = Histogram(
    "mien_job_seconds",
    "Seconds from the first work on a job to its end, interruptions included, by how it ended",
    ("state",),
    buckets=(1, 10, 60, 600, 3600, 4 * 3600, 24 * 3600, 7 * 24 * 3600),
)
BUILD_INFO = Gauge(
    "mien_build_info",
    "1 for the versions and the inference engine in use",
    ("version", "python", "bentoml", "engine"),
    multiprocess_mode="max",
)


def render() -> tuple[bytes, str]:
    """The metrics of all processes in Prometheus' text format, and its content type.

    Without PROMETHEUS_MULTIPROC_DIR (the service in one process, tests) those of this process. Reads a few files of
    each process, so it blocks for some milliseconds.
    """
    registry = REGISTRY
    if os.environ.get(FOLDER_VARIABLE):
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry), CONTENT_TYPE_PLAIN_0_0_4
