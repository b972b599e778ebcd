"""Everything HTTP of the API process in one ASGI application: limits, keys and CORS around the doors.

BentoML's own addresses are not reached: what a caller sees is ours.
"""

from __future__ import annotations

import importlib.metadata
from collections.abc import Callable
from typing import Any

from fastapi import FastAPI
from starlette.datastructures import Headers
from starlette.middleware.cors import CORSMiddleware
from starlette.responses import Response

from handlers.errors import InvalidRequestError
from service import openapi
from service.admission import Admission
from service.api_keys import ApiKeys
from service.catalog import add_model_doors
from service.jobs.doors import JOBS_PATH, add_job_doors, is_download
from service.middleware import (
    SECURITY_HEADERS,
    TIMEOUT_HEADER,
    App,
    ASGIScope,
    Policy,
    Receive,
    RequestMiddleware,
    Send,
)
from service.operations import METRICS_PATH, OPEN_PATHS, add_operator_addresses
from service.problems import problem_response
from service.request_context import HEADER, current_request_id, enter_request, leave_request
from service.rest import ONE_PICTURE_PATHS, SEVERAL_PICTURES_PATHS, add_error_handlers, add_rest_doors
from service.settings import Settings

# A form's boundaries and the headers of its parts come on top of its files.
_FORM_BYTES = 64 * 1024


def build_rest_app(settings: Settings) -> FastAPI:
    """The doors. Its `state` needs `analyzer` and `readiness` before it answers."""
    app = FastAPI(
        title="Mien",
        version=importlib.metadata.version("mien"),
        description="Reads facial expressions in photographs. Scores describe expressions, not feelings.",
        docs_url=None,
        redoc_url=None,
        openapi_url=None,
        redirect_slashes=False,
        # FastAPI's own would send addresses and exceptions wherever a process-wide provider sends to.
        telemetry={"tracing": False, "metrics": False, "logs": False, "auto_configure": False},
    )
    app.state.settings = settings
    add_rest_doors(app)
    add_model_doors(app)
    add_job_doors(app, settings)
    add_operator_addresses(app)
    add_error_handlers(app)
    schema: dict[str, Any] = openapi.build_openapi(app)
    describe: Callable[[], dict[str, Any]] = lambda: schema  # noqa: E731
    app.openapi = describe  # type: ignore[method-assign]
    return app


def build_edge(settings: Settings, app: FastAPI, keys: ApiKeys, admission: Admission) -> App:
    """Put the middleware around the doors, once. It lies inside Starlette's answer to exceptions, which has no id."""
    form_overhead = settings.max_image_bytes + _FORM_BYTES
    policy = Policy(
        timeout_s=settings.timeout_s,
        max_header_bytes=settings.max_header_bytes,
        open_paths=OPEN_PATHS,
        scopes={METRICS_PATH: "metrics", JOBS_PATH: "jobs"},
        is_download=is_download,
        work_paths={
            **dict.fromkeys(ONE_PICTURE_PATHS, form_overhead),
            **dict.fromkeys(SEVERAL_PICTURES_PATHS, settings.max_request_bytes),
        },
    )
    app.add_middleware(RequestMiddleware, policy=policy, keys=keys, admission=admission)
    if settings.cors_origins:
        # The outer one: a browser must be able to read the errors of the inner one, too.
        app.add_middleware(
            _Cors,
            allow_origins=settings.cors_origins,
            allow_methods=["GET", "POST", "DELETE"],
            allow_headers=["Authorization", "Content-Type", "X-API-Key", HEADER, TIMEOUT_HEADER],
            expose_headers=[HEADER, "Location", "Retry-After"],
        )
    return app


class _Cors(CORSMiddleware):
    """Starlette's, but a refused preflight request is a problem like any other error."""

    def preflight_response(self, request_headers: Headers) -> Response:
        response = super().preflight_response(request_headers)
        token = enter_request(request_headers.get(HEADER))
        try:
            if response.status_code >= 400:
                response = problem_response(InvalidRequestError("CORS: this origin, method or header is not allowed"))
            response.headers[HEADER] = current_request_id()
        finally:
            leave_request(token)
        for name, value in SECURITY_HEADERS.items():
            response.headers.setdefault(name, value)
        return response


class EdgeMiddleware:
    """Hands BentoML's HTTP traffic to `edge`, and leaves start and stop of the process to BentoML."""

    def __init__(self, app: App, edge: App) -> None:
        self._app, self._edge = app, edge

    async def __call__(self, scope: ASGIScope, receive: Receive, send: Send) -> None:
        """ASGI entry point."""
        await (self._app if scope["type"] == "lifespan" else self._edge)(scope, receive, send)
