"""Optional OpenTelemetry traces over OTLP/HTTP, from the caller's span through the API into the runners.

They are ours alone: a provider and a context apart from OpenTelemetry's global ones. BentoML opens a span of its own
around every request, sampled at 0 and never exported; a span of ours beneath it would be dropped too, or orphaned.
And a global provider would have libraries export what they trace as well.

Attributes are what the code names: never image bytes, never a query string.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from typing import TYPE_CHECKING

from opentelemetry import trace
from opentelemetry.context import Context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.request_context import current_request_id
from service.settings import PREFIX, Settings, SettingsError

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import TracerProvider

Attribute = str | int | float | bool
_SERVICE_NAME = "mien"
# A collector that does not answer must not hold up a process that is to stop.
_EXPORT_TIMEOUT_S = 2.0
_SHUTDOWN_S = 2.0

_w3c = TraceContextTextMapPropagator()
_current: ContextVar[Context | None] = ContextVar("mien_trace", default=None)
_tracer: trace.Tracer | None = None
_provider: TracerProvider | None = None


def configure_tracing(settings: Settings, process: str) -> None:
    """Export the spans of this process from now on, if `settings.otlp_endpoint` is set; otherwise do nothing.

    process: its role, `api`, `detector` or `emotion`. Raises SettingsError when the exporter is not installed.
    OpenTelemetry's own variables choose the sampler (OTEL_TRACES_SAMPLER) and the
    collector's headers (OTEL_EXPORTER_OTLP_HEADERS).
    """
    global _tracer, _provider
    endpoint = settings.otlp_endpoint
    if not endpoint or _tracer is not None:
        return
    try:
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
        from opentelemetry.sdk.resources import SERVICE_NAME, Resource
        from opentelemetry.sdk.trace import TracerProvider
        from opentelemetry.sdk.trace.export import BatchSpanProcessor
    except ImportError as error:
        raise SettingsError(
            f"{PREFIX}OTLP_ENDPOINT: traces need the package opentelemetry-exporter-otlp-proto-http ({error})"
        ) from error
    resource = Resource.create({SERVICE_NAME: _SERVICE_NAME, "mien.process": process})
    exporter = OTLPSpanExporter(endpoint=f"{endpoint.rstrip('/')}/v1/traces", timeout=_EXPORT_TIMEOUT_S)
    _provider = TracerProvider(resource=resource)
    _provider.add_span_processor(BatchSpanProcessor(exporter))
    _tracer = _provider.get_tracer(__name__)


def shutdown_tracing() -> None:
    """Send the spans that wait, for two seconds at most, and make no more. Call it when the process stops.

    uvicorn ends a process by the signal that it got, so nothing at the interpreter's exit would do it.
    """
    global _tracer, _provider
    provider, _tracer, _provider = _provider, None, None
    if provider is not None:
        # It would wait for half a minute, batch by batch.
        sending = threading.Thread(target=provider.shutdown, name="last-traces", daemon=True)
        sending.start()
        sending.join(_SHUTDOWN_S)


@contextlib.contextmanager
def span(name: str, **attributes: Attribute) -> Iterator[trace.Span]:
    """Trace the block as a part of the current span, or as a new trace outside one.

    The request's id is added. An exception ends the span as failed, under the exception's class only, as its text may
    quote the request. Yields the span, for attributes that are known later.
    """
    if _tracer is None:
        yield trace.INVALID_SPAN
        return
    with _started(_tracer, name, _current.get() or Context(), attributes) as started:
        yield started


@contextlib.contextmanager
def span_from(carrier: Mapping[str, str] | None, name: str, **attributes: Attribute) -> Iterator[trace.Span]:
    """Like `span`, but part of the span that `carrier` names: of another process, or of the caller's headers.

    carrier: what `carrier` returned, or W3C `traceparent` and `tracestate` headers in lower case. Without it, or when
    it cannot be read, this is a new trace.
    """
    if _tracer is None:
        yield trace.INVALID_SPAN
        return
    with _started(_tracer, name, _w3c.extract(carrier or {}, Context()), attributes) as started:
        yield started


def carrier() -> dict[str, str] | None:
    """The current span for `span_from` in another process; None when there is none."""
    context = _current.get()
    if _tracer is None or context is None:
        return None
    headers: dict[str, str] = {}
    _w3c.inject(headers, context)
    return headers


@contextlib.contextmanager
def _started(
    tracer: trace.Tracer, name: str, parent: Context, attributes: Mapping[str, Attribute]
) -> Iterator[trace.Span]:
    request_id = current_request_id()
    started = tracer.start_span(
        name, parent, attributes={"request_id": request_id, **attributes} if request_id else attributes
    )
    token = _current.set(trace.set_span_in_context(started, parent))
    try:
        yield started
    except BaseException as error:
        started.set_status(trace.StatusCode.ERROR, type(error).__name__)
        raise
    finally:
        _current.reset(token)
        started.end()
