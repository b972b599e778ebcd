"""The metrics: merged over processes, bounded, and as docs/metrics.md has them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

from prometheus_client.metrics import MetricWrapperBase
from prometheus_client.parser import text_string_to_metric_families

from service import metrics
from service.settings import WORKER_VARIABLE
from tests.service.server_process import REPOSITORY, Samples

DOCUMENT = REPOSITORY / "docs" / "metrics.md"


def parsed(text: str) -> Samples:
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def in_a_process(folder: Path | None, program: str, worker: str = "") -> str:
    """What a process that has imported the metrics as `m` prints; with `folder`, one of several."""
    environment = {name: value for name, value in os.environ.items() if name != metrics.FOLDER_VARIABLE}
    if folder is not None:
        environment |= {metrics.FOLDER_VARIABLE: str(folder), WORKER_VARIABLE: worker}
    return subprocess.run(
        [sys.executable, "-c", f"from service import metrics as m\n{program}"],
        cwd=REPOSITORY,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    ).stdout


RENDER = "print(m.render()[0].decode(), end='')"


def test_counts_of_all_processes_are_added_even_of_those_that_ended(tmp_path: Path) -> None:
    count = "m.REQUESTS.labels('/v1/analyze', '200').inc(2); m.STAGE_SECONDS.labels('decode').observe(0.003)"
    in_a_process(tmp_path, count)
    in_a_process(tmp_path, count)

    samples = parsed(in_a_process(tmp_path, RENDER))

    labels = frozenset({("route", "/v1/analyze"), ("code", "200")})
    assert samples["mien_requests_total", labels] == 4
    assert samples["mien_stage_seconds_count", frozenset({("stage", "decode")})] == 2


def test_the_service_is_ready_when_no_api_process_objects(tmp_path: Path) -> None:
    # The first stands for a runner: it has the gauge too and never sets it.
    in_a_process(tmp_path, "")
    in_a_process(tmp_path, "m.READY.set(1)")

    ready = parsed(in_a_process(tmp_path, f"m.READY.set(1); {RENDER}"))
    one_is_not = parsed(in_a_process(tmp_path, f"m.READY.set(0); {RENDER}"))

    assert ready["mien_ready", frozenset()] == 1
    assert one_is_not["mien_ready", frozenset()] == 0


def test_gauges_are_one_series_without_process_numbers(tmp_path: Path) -> None:
    program = """
m.QUEUED.set(2); m.IN_PROGRESS.set(3)
m.MODEL_INFO.labels("fake:1.0.0", "emotion-classification", "abc", "none").set(1)
m.BUILD_INFO.labels("0.1.0", "3.11", "1.4.39", "openvino").set(1)
"""
    in_a_process(tmp_path, program)

    samples = parsed(in_a_process(tmp_path, program + RENDER))

    assert (samples["mien_pictures_queued", frozenset()], samples["mien_pictures_in_progress", frozenset()]) == (4, 6)
    assert [value for (name, _), value in samples.items() if name.endswith("_info")] == [1, 1]


def test_the_queue_of_a_process_that_died_is_not_counted(tmp_path: Path) -> None:
    died = in_a_process(tmp_path, "import os; m.QUEUED.set(5); print(os.getpid())").strip()

    program = f"from prometheus_client import multiprocess; multiprocess.mark_process_dead({died}); {RENDER}"
    samples = parsed(in_a_process(tmp_path, program))

    assert samples["mien_pictures_queued", frozenset()] == 0


def test_a_process_alone_shows_its_own() -> None:
    samples = parsed(in_a_process(None, f"m.REQUESTS.labels('/v1/analyze', '200').inc(); {RENDER}"))

    assert samples["mien_requests_total", frozenset({("route", "/v1/analyze"), ("code", "200")})] == 1


def test_a_replaced_worker_goes_on_with_the_counters_and_the_files_of_the_dead_one(tmp_path: Path) -> None:
    program = "m.REQUESTS.labels('/v1/analyze', '200').inc(); m.QUEUED.inc(5);"
    in_a_process(tmp_path, program, worker="api-1")
    before = sorted(tmp_path.iterdir())
    forget = "from prometheus_client.multiprocess import mark_process_dead; mark_process_dead('api-1');"
    in_a_process(tmp_path, forget)

    samples = parsed(in_a_process(tmp_path, program + RENDER, worker="api-1"))

    assert samples["mien_requests_total", frozenset({("route", "/v1/analyze"), ("code", "200")})] == 2
    assert samples["mien_pictures_queued", frozenset()] == 5, "what waited in the dead one waits no more"
    assert [file.name for file in sorted(tmp_path.iterdir()) if "api-1" in file.name] == [file.name for file in before]


def test_stages_take_from_a_millisecond_to_half_a_minute() -> None:
    buckets = metrics.STAGE_SECONDS._upper_bounds

    assert buckets[0] <= 0.001
    assert buckets[-2] >= 30


def documented(heading: str) -> list[list[str]]:
    """The rows of the table under the heading cells, without back-quotes."""
    _, _, table = DOCUMENT.read_text().partition(f"| {heading} |")
    rows = []
    for line in table.splitlines()[2:]:
        if not line.startswith("|"):
            break
        rows.append([cell.strip().replace("`", "") for cell in line.strip("|").split("|")])
    return rows


def test_the_documented_table_is_what_the_module_has() -> None:
    rows = documented("metric | kind | labels | what | when to look")
    in_document = {(name, kind, tuple(filter(None, labels.split(", ")))) for name, kind, labels, *_ in rows}
    ours = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    # prometheus_client keeps a counter's name without the ending that it writes.
    in_module = {
        (metric._name + ("_total" if metric._type == "counter" else ""), metric._type, metric._labelnames)
        for metric in ours
    }

    assert in_document == in_module
    assert all(all(row) for row in ([*row[:2], *row[3:]] for row in rows))


def test_the_documented_stages_are_what_the_module_has() -> None:
    assert [stage for stage, *_ in documented("stage | observed | seconds of")] == list(metrics.STAGES)


def test_the_documented_queries_ask_for_metrics_that_exist() -> None:
    queries = re.findall(r"```promql\n(.*?)```", DOCUMENT.read_text(), re.DOTALL)
    asked = {name for query in queries for name in re.findall(r"mien_\w+", query)}
    known = {row[0] for row in documented("metric | kind | labels | what | when to look")} | {
        "mien_worker_restarts_total"
    }

    assert len(queries) == 5
    assert {re.sub("_(bucket|sum|count)$", "", name) for name in asked} <= known
