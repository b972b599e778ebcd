from __future__ import annotations

import pytest

from benchmarks.jobs import LOADS, latency_table, measure


@pytest.mark.slow
def test_requests_are_measured_without_and_with_a_job() -> None:
    results = measure(1, 0.5, 0, 20_000, MIEN_MODELS="fake", MIEN_DETECTOR="fake", MIEN_TOPOLOGY="inline")

    assert set(results) == {"alone", *LOADS}
    assert results["alone"]["job_rate"] >= 0
    for load in LOADS:
        for kind in ("without", "with"):
            assert set(results[load][kind]["statuses"]) == {"200"}
            assert 0 < results[load][kind]["p50_ms"] <= results[load][kind]["p95_ms"]
    assert all(load in latency_table(results) for load in LOADS)
