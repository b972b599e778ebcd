"""Traces, received as a collector receives them: OTLP over HTTP, from this process and from others."""

from __future__ import annotations

import asyncio
import builtins
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from opentelemetry import trace as global_trace
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.proto.trace.v1.trace_pb2 import Span, Status
from pydantic import ValidationError

from handlers.pipeline import FAKE
from service import tracing
from service.request_context import enter_request, leave_request
from service.settings import Settings, SettingsError
from tests.service.server_process import REPOSITORY, free_port, home_with_models, running_service

CALLER = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"


class Collector:
    """The other end: keeps every span with the attributes of its process."""

    def __init__(self) -> None:
        self.received: list[tuple[dict[str, str], Span]] = []
        self.paths: set[str] = set()
        collector = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = self.rfile.read(int(self.headers["Content-Length"]))
                collector.paths.add(self.path)
                for resource in ExportTraceServiceRequest.FromString(body).resource_spans:
                    process = {item.key: item.value.string_value for item in resource.resource.attributes}
                    collector.received += [(process, span) for scope in resource.scope_spans for span in scope.spans]
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_: Any) -> None:
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", free_port()), Handler)
        self.url = f"http://127.0.0.1:{self.server.server_port}"

    def span(self, name: str) -> Span:
        (found,) = [span for _, span in self.received if span.name == name]
        return found


@pytest.fixture
def collector() -> Iterator[Collector]:
    collector = Collector()
    threading.Thread(target=collector.server.serve_forever, args=(0.02,), daemon=True).start()
    yield collector
    collector.server.shutdown()
    collector.server.server_close()


@pytest.fixture(autouse=True)
def _untraced() -> Iterator[None]:
    yield
    tracing.shutdown_tracing()


def attributes(span: Span) -> dict[str, str]:
    return {item.key: item.value.string_value for item in span.attributes}


def test_without_an_endpoint_nothing_is_traced() -> None:
    tracing.configure_tracing(Settings(), "api")

    with tracing.span("outer") as span, tracing.span_from({"traceparent": CALLER}, "inner"):
        span.set_attribute("code", 200)

        assert tracing.carrier() is None
        assert not span.is_recording()


def test_spans_nest_and_say_which_process_and_request_they_are_of(collector: Collector) -> None:
    tracing.configure_tracing(Settings(otlp_endpoint=collector.url + "/"), "api")
    token = enter_request("request-7")

    with tracing.span("request", route="/v1/analyze") as request:
        with tracing.span("detect"):
            pass
        request.set_attribute("code", "200")
    leave_request(token)
    tracing.shutdown_tracing()

    request_span, detect_span = collector.span("request"), collector.span("detect")
    assert collector.paths == {"/v1/traces"}
    assert {(process["service.name"], process["mien.process"]) for process, _ in collector.received} == {
        ("mien", "api")
    }
    assert attributes(request_span) == {"route": "/v1/analyze", "code": "200", "request_id": "request-7"}
    assert request_span.parent_span_id == b""
    assert (detect_span.trace_id, detect_span.parent_span_id) == (request_span.trace_id, request_span.span_id)
    assert request_span.start_time_unix_nano <= detect_span.start_time_unix_nano
    assert detect_span.end_time_unix_nano <= request_span.end_time_unix_nano


def test_a_callers_trace_goes_on_here(collector: Collector) -> None:
    tracing.configure_tracing(Settings(otlp_endpoint=collector.url), "api")

    with tracing.span_from({"traceparent": CALLER, "tracestate": "vendor=1"}, "request"):
        passed_on = tracing.carrier()
    tracing.shutdown_tracing()

    span = collector.span("request")
    _, trace_id, caller_id, _ = CALLER.split("-")
    assert (span.trace_id.hex(), span.parent_span_id.hex()) == (trace_id, caller_id)
    assert passed_on == {"traceparent": f"00-{trace_id}-{span.span_id.hex()}-01", "tracestate": "vendor=1"}


def test_a_caller_who_traces_nothing_is_not_traced_here_either(collector: Collector) -> None:
    tracing.configure_tracing(Settings(otlp_endpoint=collector.url), "api")

    with tracing.span_from({"traceparent": CALLER.removesuffix("01") + "00"}, "unsampled"), tracing.span("inner"):
        pass
    with tracing.span("sampled"):
        pass
    tracing.shutdown_tracing()

    assert [span.name for _, span in collector.received] == ["sampled"]


@pytest.mark.parametrize("carrier", [None, {}, {"traceparent": "nonsense"}, {"traceparent": "00-" + "0" * 32}])
def test_an_unreadable_carrier_starts_a_new_trace(collector: Collector, carrier: dict[str, str] | None) -> None:
    tracing.configure_tracing(Settings(otlp_endpoint=collector.url), "api")

    with tracing.span_from(carrier, "request"):
        pass
    tracing.shutdown_tracing()

    assert collector.span("request").parent_span_id == b""


def test_a_failure_is_named_but_its_text_stays_here(collector: Collector) -> None:
    tracing.configure_tracing(Settings(otlp_endpoint=collector.url), "api")

    with pytest.raises(ValueError, match="private"), tracing.span("request"):
        raise ValueError("private")
    tracing.shutdown_tracing()

    span = collector.span("request")
    assert (span.status.code, span.status.message) == (Status.STATUS_CODE_ERROR, "ValueError")
    assert "private" not in str(span)


def test_concurrent_requests_keep_their_spans_apart(collector: Collector) -> None:
    tracing.configure_tracing(Settings(otlp_endpoint=collector.url), "api")

    async def request(index: int) -> None:
        with tracing.span(f"request-{index}"):
            await asyncio.sleep(0.001 * (index % 3))
            with tracing.span(f"inner-{index}"):
                await asyncio.sleep(0.001)

    async def all_requests() -> None:
        await asyncio.gather(*map(request, range(20)))

    asyncio.run(all_requests())
    tracing.shutdown_tracing()

    parents = [(collector.span(f"inner-{i}").parent_span_id, collector.span(f"request-{i}").span_id) for i in range(20)]
    assert all(parent == span_id for parent, span_id in parents)
    assert len({span.trace_id for _, span in collector.received}) == 20


def test_a_foreign_span_around_ours_has_no_say(collector: Collector) -> None:
    # Like the one that BentoML opens around each request: never sampled, never exported.
    foreign = global_trace.NonRecordingSpan(global_trace.SpanContext(1, 1, False, global_trace.TraceFlags(0)))
    tracing.configure_tracing(Settings(otlp_endpoint=collector.url), "api")

    with global_trace.use_span(foreign), tracing.span("request"):
        assert global_trace.get_current_span() is foreign
    tracing.shutdown_tracing()

    assert collector.span("request").parent_span_id == b""


def test_a_trace_crosses_processes_and_is_sent_when_a_process_ends_by_a_signal(collector: Collector) -> None:
    # As uvicorn ends: the clean-up runs, then the signal kills.
    program = """
import os, signal, sys
from service import tracing
from service.settings import Settings
tracing.configure_tracing(Settings(), "detector")
with tracing.span_from({"traceparent": sys.argv[1]}, "detect"):
    pass
tracing.shutdown_tracing()
os.kill(os.getpid(), signal.SIGTERM)
"""
    tracing.configure_tracing(Settings(otlp_endpoint=collector.url), "api")

    with tracing.span("request"):
        carrier = tracing.carrier()
        assert carrier is not None
        other = subprocess.run(
            [sys.executable, "-c", program, carrier["traceparent"]],
            cwd=REPOSITORY,
            env={**os.environ, "MIEN_OTLP_ENDPOINT": collector.url},
            timeout=60,
        )
    tracing.shutdown_tracing()

    request, detect = collector.span("request"), collector.span("detect")
    assert other.returncode == -signal.SIGTERM
    assert (detect.trace_id, detect.parent_span_id) == (request.trace_id, request.span_id)
    assert {process["mien.process"] for process, _ in collector.received} == {"api", "detector"}


def test_a_collector_that_hangs_does_not_hold_up_the_end() -> None:
    # Connections to it are made and never answered.
    collector = Collector()
    tracing.configure_tracing(Settings(otlp_endpoint=collector.url), "api")
    with tracing.span("request"):
        pass

    ending = threading.Thread(target=tracing.shutdown_tracing)
    ending.start()
    ending.join(15)

    assert not ending.is_alive()
    collector.server.server_close()


def test_a_missing_exporter_is_a_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_exporter(name: str, *args: Any, **kwargs: Any) -> Any:
        if name.startswith("opentelemetry.exporter"):
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_exporter)

    with pytest.raises(SettingsError, match=r"MIEN_OTLP_ENDPOINT: .*opentelemetry-exporter-otlp-proto-http"):
        tracing.configure_tracing(Settings(otlp_endpoint="http://127.0.0.1:4318"), "api")


@pytest.mark.parametrize("endpoint", ["127.0.0.1:4318", "file:///etc/passwd", "grpc://collector:4317"])
def test_an_endpoint_that_is_not_http_is_refused(endpoint: str) -> None:
    with pytest.raises(ValidationError, match="otlp_endpoint"):
        Settings(otlp_endpoint=endpoint)


def test_one_request_to_the_service_is_one_trace_through_all_its_processes(
    collector: Collector, store: Path, tmp_path: Path, astronaut_png: bytes
) -> None:
    settings = {"MIEN_MODELS": FAKE, "MIEN_DETECTOR": FAKE, "MIEN_OTLP_ENDPOINT": collector.url}

    with running_service(home_with_models(tmp_path, store / "models"), **settings) as service:
        response = httpx.post(
            f"{service.url}/v1/analyze?secret=in-the-query",
            content=astronaut_png,
            headers={"traceparent": CALLER, "X-Request-ID": "traced-1"},
            timeout=30,
        )
        assert response.status_code == 200

    # Spans leave in batches, the last when a process ends.
    _, trace_id, caller_id, _ = CALLER.split("-")
    spans = [(process, span) for process, span in collector.received if span.trace_id.hex() == trace_id]
    ids = {span.span_id for _, span in spans}
    assert {process["mien.process"] for process, _ in spans} == {"api", "detector", "emotion"}
    assert [span.parent_span_id.hex() for _, span in spans if span.parent_span_id not in ids] == [caller_id]
    assert {attributes(span).get("request_id") for _, span in spans} == {"traced-1"}
    assert {process["service.name"] for process, _ in collector.received} == {"mien"}
    assert "in-the-query" not in str(collector.received)
