"""Prometheus metrics of the API process. Labels come from closed sets only: routes, codes, stages, models, emotions."""

from __future__ import annotations

from prometheus_client import Counter, Histogram

REQUESTS = Counter("mien_requests_total", "Requests by route template and result code", ("route", "code"))
STAGE_SECONDS = Histogram(
    "mien_stage_seconds",
    "Seconds a request waited for each runner, queue included",
    ("stage",),
    buckets=(0.005, 0.01, 0.02, 0.04, 0.08, 0.15, 0.3, 0.6, 1.2, 2.5, 5, 10, 30),
)
FACES_PER_PICTURE = Histogram(
    "mien_faces_per_picture", "Faces found in a picture", buckets=(0, 1, 2, 3, 5, 8, 13, 21, 34, 55)
)
PREDICTIONS = Counter("mien_predictions_total", "Faces by model and emotion called", ("model", "emotion"))
RUNNER_RETRIES = Counter(
    "mien_runner_retries_total", "Calls to a runner sent again after a lost connection", ("stage",)
)
